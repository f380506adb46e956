/**
 * The command line: `deno run -A jsr:@bdrv/bdrv/cli COMMAND …`, the same as
 * `qemu-img`, `deno run -A jsr:@bdrv/bdrv/cli qemu-img COMMAND …`.
 *
 * @module
 */

// Other runtimes could not even load what is imported here, and old ones do not
// know whether this is the program. So it is looked at before.
if (!("Deno" in globalThis)) refuse();
else if (import.meta.main) {
  const { main } = await import("./cli/main.ts").catch(tellPermission);
  Deno.exit(await main(Deno.args));
}

/** What loads its parts late has to be permitted to read them. */
function tellPermission(error: Error): never {
  if (!error.message.startsWith("Requires ")) throw error;
  console.error(`bdrv: ${error.message}`);
  Deno.exit(1);
}

/** Say what is needed, in the words of a program that was started by Node.js. */
function refuse(): void {
  const { process } = globalThis as unknown as {
    process: { exitCode: number };
  };
  // Old versions say `undefined` here, also of the program.
  if ((import.meta.main as boolean | undefined) === false) return;
  console.error(
    "bdrv needs Deno 2: run it with 'deno run -A', or, where only Node.js is " +
      "installed, with 'npx -y deno run -A'",
  );
  process.exitCode = 1;
}
