/**
 * `deno task web [FOLDER]`: builds the page into `dist/web/`, as static files:
 * they work on any server, and opened from the disk as well.
 *
 * @module
 */
import * as esbuild from "esbuild";

const ROOT = new URL("..", import.meta.url).pathname;
const TARGET = "es2022";

/** File contents, by name. */
type Files = Record<string, string>;

/**
 * A program with all its imports, for browsers: as one classic script, or with
 * what it imports dynamically in separate `parts`.
 */
async function bundle(module: string, parts: boolean): Promise<Files> {
  const folder = await Deno.makeTempDir();
  try {
    // Deno resolves modules, npm's among them; esbuild lowers syntax that not
    // all browsers have.
    const how = parts ? ["--code-splitting"] : [];
    const { success, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        ...["bundle", "--quiet", "--platform", "browser", ...how],
        ...["--outdir", folder, `${ROOT}${module}`],
      ],
      cwd: ROOT,
    }).output();
    if (!success) throw new Error(new TextDecoder().decode(stderr));
    const name = module.replace(/^.*\/(.*)\.ts$/, "$1");
    const result = await esbuild.build({
      entryPoints: [`${folder}/${name}.js`],
      bundle: true,
      write: false,
      minify: true,
      splitting: parts,
      format: parts ? "esm" : "iife",
      outdir: folder,
      chunkNames: "parts/[name]-[hash]",
      target: TARGET,
      // What only other runtimes load is never reached in a browser.
      external: ["node:*"],
      logLevel: "warning",
    });
    return Object.fromEntries(
      result.outputFiles.map(({ path, text }) => [
        path.slice(folder.length + 1),
        text,
      ]),
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** The page's files, by name. */
export async function buildPage(): Promise<Files> {
  const files: Files = {};
  try {
    Object.assign(
      files,
      await bundle("web/page.ts", false),
      await bundle("web/worker.ts", true),
    );
    const whole = await bundle("web/worker.ts", false);
    const text = JSON.stringify(whole["worker.js"]);
    files["offline.js"] = `globalThis.WORKER_PROGRAM=${text};\n`;
  } finally {
    await esbuild.stop();
  }
  for (const name of ["index.html", "style.css"]) {
    files[name] = await Deno.readTextFile(`${ROOT}web/${name}`);
  }
  return files;
}

if (import.meta.main) {
  const folder = Deno.args[0] ?? `${ROOT}dist/web`;
  const files = await buildPage();
  // Parts left over from an earlier build would never be used.
  await Deno.remove(folder, { recursive: true }).catch(() => {});
  await Deno.mkdir(`${folder}/parts`, { recursive: true });
  for (const [name, text] of Object.entries(files)) {
    await Deno.writeTextFile(`${folder}/${name}`, text);
  }
  console.log(`${folder}/index.html`);
}
