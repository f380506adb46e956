/**
 * The command line: `deno run -A jsr:@bdrv/bdrv/cli COMMAND`, and, the same as
 * `qemu-img`, `deno run -A jsr:@bdrv/bdrv/cli qemu-img COMMAND`. On Node.js and
 * Bun, the npm package's program `bdrv` starts it.
 *
 * @module
 */

// Check the runtime before importing anything: others cannot even load the
// imports, and old ones do not know whether this is the main program.
if (!("Deno" in globalThis)) refuse();
else if (import.meta.main) {
  surviveSizeLimit();
  const { main } = await import("./cli/main.ts").catch(explainPermission);
  Deno.exit(await main(Deno.args));
}

/**
 * Run a command in this process, with its standard streams.
 *
 * @param args The words after the program's name.
 * @returns the exit code.
 *
 * @example
 * ```ts ignore
 * import { main } from "@bdrv/bdrv/cli";
 * const code = await main(["info", "disk.qcow2"]);
 * ```
 */
export async function main(args: readonly string[]): Promise<number> {
  if ("Deno" in globalThis) surviveSizeLimit();
  else await import("./cli/on_node.ts");
  const { main } = await import("./cli/main.ts");
  return await main(args);
}

/**
 * Writes past a limit on the size of files (`ulimit -f`) fail, in place of a
 * signal that ends the program without a word. This precedes all imports, since
 * Deno's cache of modules may be what exceeds the limit.
 */
function surviveSizeLimit(): void {
  if (Deno.build.os === "windows") return;
  Deno.addSignalListener("SIGXFSZ", ignore);
}

function ignore(): void {}

/** Explain a missing permission to load a module. */
function explainPermission(error: Error): never {
  if (!error.message.startsWith("Requires ")) throw error;
  const [refusal] = error.message.split("\n");
  console.error(
    `bdrv: ${refusal}; it has to cover bdrv's own modules, which are loaded ` +
      "when they are used",
  );
  Deno.exit(1);
}

/** Say what is needed to a user who started this with another runtime. */
function refuse(): void {
  const { process } = globalThis as unknown as {
    process: { exitCode: number };
  };
  // Old versions have `undefined` here, even for the main program.
  if ((import.meta.main as boolean | undefined) === false) return;
  console.error(
    "bdrv needs Deno 2: run it with 'deno run -A', or, where only Node.js is " +
      "installed, with 'npx -y deno run -A'; the npm package needs no Deno",
  );
  process.exitCode = 1;
}
