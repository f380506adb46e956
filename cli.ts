/**
 * The command line: `deno run -A jsr:@bdrv/bdrv/cli COMMAND …`, the same as
 * `qemu-img`, `deno run -A jsr:@bdrv/bdrv/cli qemu-img COMMAND …`.
 *
 * @module
 */
import { main } from "./cli/main.ts";

if (import.meta.main) Deno.exit(await main(Deno.args));
