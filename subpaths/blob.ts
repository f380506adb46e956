/**
 * Blobs, files that a user chose, and buffers: importing this registers the
 * driver `blob`.
 *
 * @module
 */
import { provideDriver } from "../core/registry.ts";
import { blobDriver } from "../drivers/blob/driver.ts";

provideDriver(blobDriver);

export { blobDriver };
