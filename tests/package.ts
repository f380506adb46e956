/**
 * Checks the package as its users get it: whether JSR would accept it, and
 * whether the module graph of the command line is complete. Part of `deno task
 * ok`.
 *
 * JSR cannot be reached from every development machine, so `links/` stands in
 * for the packages in use. `deno publish` refuses imports of linked folders
 * inside the package, so the copy made here has them beside it.
 *
 * @module
 */
import config from "../deno.json" with { type: "json" };

const ROOT = new URL("..", import.meta.url).pathname;

async function deno(
  cwd: string,
  args: string[],
  env: Record<string, string> = {},
): Promise<void> {
  const { code } = await new Deno.Command(Deno.execPath(), { args, cwd, env })
    .spawn().status;
  if (code !== 0) throw new Error(`deno ${args.join(" ")}: exit code ${code}`);
}

/** Copy a file or a folder. */
async function copy(from: string, to: string): Promise<void> {
  if ((await Deno.stat(from)).isFile) return await Deno.copyFile(from, to);
  await Deno.mkdir(to);
  for await (const { name } of Deno.readDir(from)) {
    await copy(`${from}/${name}`, `${to}/${name}`);
  }
}

const temp = await Deno.makeTempDir({ prefix: "bdrv-package-" });
try {
  const tree = `${temp}/bdrv`;
  await Deno.mkdir(tree);
  await copy(`${ROOT}links`, `${temp}/links`);
  for (const name of config.publish.include) {
    await copy(`${ROOT}${name}`, `${tree}/${name}`);
  }
  const links = config.links.map((link) => link.replace("./", "../"));
  await Deno.writeTextFile(
    `${tree}/deno.json`,
    JSON.stringify({ ...config, links }),
  );
  await deno(tree, ["publish", "--dry-run", "--allow-dirty", "--quiet"]);
  // Any file will do as the base binary, which would have to be downloaded, to
  // check that every module can be embedded.
  await deno(
    tree,
    ["compile", "--quiet", "-A", "--output", `${temp}/bdrv.bin`, "cli.ts"],
    { DENORT_BIN: "/bin/true" },
  );
} finally {
  await Deno.remove(temp, { recursive: true });
}
