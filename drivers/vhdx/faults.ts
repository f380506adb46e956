/**
 * Errors for invalid images. QEMU reports most faults as an invalid argument;
 * here the reason follows.
 *
 * @module
 */
import { BlockError, type ErrorCode, strerror } from "../../core/errors.ts";

/** The error for a fault of an image. */
export function fault(
  filename: string,
  code: ErrorCode,
  reason: string,
): BlockError {
  const detail = ` (${reason})`;
  const message = `Could not open '${filename}': ${strerror(code)}${detail}`;
  return new BlockError(code, message, { detail });
}
