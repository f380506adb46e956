/**
 * The process of the current runtime.
 *
 * @module
 */
import { denoProcess } from "./deno_process.ts";
import { provided } from "./mod.ts";
import type { Process } from "./process.ts";

/** This process. */
export const process: Process = denoProcess() ?? provided.process!();
