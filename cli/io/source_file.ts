/**
 * Reading a file named on the command line, of any kind.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { hostError } from "../../core/platform/system_calls.ts";
import type { InputFile } from "../../core/platform/process.ts";
import { process } from "../../core/platform/this_process.ts";

/**
 * The first bytes of a file, device or pipe, at most `most`. It is read to the
 * end, as the size of a device does not tell how much there is.
 *
 * @param patience Milliseconds to wait for a pipe's writer.
 * @throws {BlockError} as the system does; ENXIO for a pipe without a writer.
 */
export async function headOf(
  filename: string,
  most: number,
  patience?: number,
): Promise<Uint8Array> {
  try {
    using file = await openInTime(filename, patience);
    const bytes = new Uint8Array(most);
    let length = 0;
    while (length < most) {
      const count = await file.read(bytes.subarray(length));
      if (count === null || count === 0) break;
      length += count;
    }
    return bytes.subarray(0, length);
  } catch (error) {
    throw hostError(error);
  }
}

/**
 * Open a file of any kind. Opening a pipe waits until its other end is opened.
 *
 * @param patience Milliseconds to wait for that.
 * @throws {BlockError} ENXIO for a pipe without a writer.
 */
export async function openInTime(
  filename: string,
  patience = 5000,
): Promise<InputFile> {
  const { isFifo } = process.status(filename);
  const opening = process.openInput(filename);
  if (!isFifo) return await opening;
  const { promise: expired, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new BlockError("ENXIO")), patience);
  try {
    return await Promise.race([opening, expired]);
  } catch (error) {
    // A writer may still come later: close the file then.
    opening.then((file) => file[Symbol.dispose](), () => {});
    throw error;
  } finally {
    clearTimeout(timer);
  }
}
