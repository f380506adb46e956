/** `convert -O qcow2`, with what creating needs: see `drivers/reading.ts`. @module */
import "../../drivers/creating.ts";
export { command } from "./convert.ts";
