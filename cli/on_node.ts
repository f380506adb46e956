/**
 * What the command line needs on Node.js and Bun.
 *
 * @module
 */
import "../core/platform/on_node.ts";
import { surviveSignal } from "../core/runtime.ts";

// At a limit on the size of files, fail with an error, as `cli.ts` has Deno do.
surviveSignal("SIGXFSZ");
