/**
 * `deno task web [FOLDER]`: builds the page into `dist/web/`, as files that any
 * server can serve, or none: opened from the disk, it works as well.
 *
 * @module
 */
import * as esbuild from "esbuild";

const ROOT = new URL("..", import.meta.url).pathname;
const TARGET = "es2022";

/** A program with all that it imports, for browsers, as one plain script. */
async function bundle(
  module: string,
  define: Record<string, string> = {},
): Promise<string> {
  const whole = await Deno.makeTempFile({ suffix: ".js" });
  try {
    // Deno knows where modules come from, npm's among them; esbuild lowers
    // what not all browsers have.
    const { success, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        ...["bundle", "--quiet", "--platform", "browser", "--output", whole],
        `${ROOT}${module}`,
      ],
      cwd: ROOT,
    }).output();
    if (!success) throw new Error(new TextDecoder().decode(stderr));
    const result = await esbuild.build({
      stdin: { contents: await Deno.readTextFile(whole), loader: "js" },
      bundle: true,
      write: false,
      minify: true,
      format: "iife",
      target: TARGET,
      // What only other runtimes load is never reached in a browser.
      external: ["node:*"],
      logLevel: "warning",
      define,
    });
    return result.outputFiles[0].text;
  } finally {
    await Deno.remove(whole);
  }
}

/** The files of the page, by name. */
export async function buildPage(): Promise<Record<string, string>> {
  const files: Record<string, string> = {};
  try {
    const worker = await bundle("web/worker.ts");
    files["page.js"] = await bundle("web/page.ts", {
      WORKER_PROGRAM: JSON.stringify(worker),
    });
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
  await Deno.mkdir(folder, { recursive: true });
  for (const [name, text] of Object.entries(files)) {
    await Deno.writeTextFile(`${folder}/${name}`, text);
  }
  console.log(`${folder}/index.html`);
}
