/**
 * `deno task compile --with=bun`: the command line and Bun in one executable
 * file, for machines that cannot download Deno's runtime. Bun comes from npm.
 *
 * @module
 */
import config from "../deno.json" with { type: "json" };
import { stdModule, TOOLS } from "./std.ts";

const ROOT = new URL("..", import.meta.url).pathname;

/** The entry point that Bun compiles: it starts the command line. */
const START = `import "./cli/on_node.ts";
import { main } from "./cli/main.ts";
process.exit(await main(process.argv.slice(2)));
`;

async function run(program: string, args: string[], cwd: string) {
  const { success, stdout, stderr } = await new Deno.Command(program, {
    args,
    cwd,
    stdout: "piped",
    stderr: "piped",
  }).output();
  if (success) return;
  const text = new TextDecoder().decode(
    new Uint8Array([...stderr, ...stdout]),
  );
  const lines = text.split("\n").filter((line) => line.trim() !== "");
  throw new Error(lines.find((line) => /error/i.test(line)) ?? lines[0] ?? "");
}

/** Compile to a file. */
export async function compileWithBun(output: string): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "bdrv-bun-" });
  try {
    const dependencies = Object.entries(config.imports).flatMap(
      ([name, specifier]) => {
        const version = /^npm:.+@(.+)$/.exec(specifier)?.[1];
        return version && !TOOLS.includes(name) ? [[name, version]] : [];
      },
    );
    await Deno.writeTextFile(
      `${folder}/package.json`,
      JSON.stringify({
        type: "module",
        dependencies: Object.fromEntries(dependencies),
      }),
    );
    const npm = ["install", "--silent", "--no-audit", "--no-fund"];
    await run("npm", npm, folder);
    for (const name of ["cli.ts", "mod.ts", "deno.json"]) {
      await Deno.copyFile(`${ROOT}${name}`, `${folder}/${name}`);
    }
    for (const name of ["cli", "core", "drivers", "subpaths"]) {
      await copyFolder(`${ROOT}${name}`, `${folder}/${name}`);
    }
    await Deno.writeTextFile(`${folder}/start.ts`, START);
    const bun = ["-y", "bun@1", "build", "--compile", "--minify"];
    const std = `${folder}/node_modules/@std/io`;
    await Deno.mkdir(std, { recursive: true });
    await Deno.copyFile(
      await stdModule("@std/io/write-all", "cli/output.ts"),
      `${std}/write-all.ts`,
    );
    const how = ["--external=@std/cli/*", "start.ts", `--outfile=${output}`];
    await run("npx", [...bun, ...how], folder);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new Error("Bun comes from npm, which is not installed");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function copyFolder(from: string, to: string): Promise<void> {
  await Deno.mkdir(to);
  for await (const { name, isDirectory } of Deno.readDir(from)) {
    const [source, target] = [`${from}/${name}`, `${to}/${name}`];
    if (isDirectory) await copyFolder(source, target);
    else await Deno.copyFile(source, target);
  }
}
