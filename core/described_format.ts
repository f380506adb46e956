/**
 * Images that can be described but not used, since their format has no driver.
 *
 * @module
 */
import type { BlockDriver } from "./driver.ts";
import type { ImageFormat } from "./formats.ts";
import { noDriverText, UnsupportedFormatError } from "./probe.ts";

/** A stand-in for a missing driver, for `info` alone. */
export function describingDriver(format: ImageFormat): BlockDriver {
  const driver: BlockDriver = {
    name: format.name,
    role: "format",
    async open(_options, context) {
      const file = await context.openChild("file");
      const { filename } = file;
      const refuse = () =>
        Promise.reject(new UnsupportedFormatError(format, filename));
      context.warn(`'${filename}' ${noDriverText(format)}`);
      return {
        driver,
        filename,
        readOnly: true,
        children: { file },
        size: 0,
        // Only its own driver could read the size from the header.
        info: () => Promise.resolve({ sizeUnknown: true }),
        readv: refuse,
        status: refuse,
        close: () => Promise.resolve(),
      };
    },
  };
  return driver;
}
