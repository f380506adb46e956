/**
 * `deno task web [FOLDER]`: builds the page into `dist/web/`, as files that any
 * server can serve, or none: opened from the disk, it works as well.
 *
 * @module
 */
import * as esbuild from "esbuild";

const ROOT = new URL("..", import.meta.url).pathname;
const TARGET = "es2022";

/** The text of files, by name. */
type Files = Record<string, string>;

/**
 * A program with all that it imports, for browsers: one plain script, or with
 * what it imports dynamically in `parts` of their own.
 */
async function bundle(module: string, parts: boolean): Promise<Files> {
  const folder = await Deno.makeTempDir();
  try {
    // Deno knows where modules come from, npm's among them; esbuild lowers
    // what not all browsers have.
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

/** The files of the page, by name. */
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
  // Parts that an earlier build has left would never be used.
  await Deno.remove(folder, { recursive: true }).catch(() => {});
  await Deno.mkdir(`${folder}/parts`, { recursive: true });
  for (const [name, text] of Object.entries(files)) {
    await Deno.writeTextFile(`${folder}/${name}`, text);
  }
  console.log(`${folder}/index.html`);
}
