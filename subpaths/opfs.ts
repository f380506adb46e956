/**
 * Files of a browser: importing this registers the driver `opfs`.
 *
 * @module
 */
import { provideDriver } from "../core/registry.ts";
import { opfsDriver } from "../drivers/blob/opfs.ts";

provideDriver(opfsDriver);

export type { OpfsAccess, OpfsFileHandle } from "../drivers/blob/opfs.ts";
export { opfsDriver };
