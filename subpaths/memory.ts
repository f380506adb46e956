/**
 * Bytes in memory: importing this registers the driver `memory`.
 *
 * @module
 */
import { provideDriver } from "../core/registry.ts";
import { memoryDriver } from "../drivers/memory.ts";

provideDriver(memoryDriver);

export { MemoryStore } from "../core/memory_store.ts";
export { memoryDriver };
