/** `bench -w`, with what writing needs: see `drivers/reading.ts`. @module */
import "../../drivers/writing.ts";
export { command } from "./bench.ts";
