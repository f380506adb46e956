/**
 * The protocols `null-co` and `null-aio`: disks that drop whatever is written.
 *
 * @module
 */
import { checkSignal, delay } from "../core/abort.ts";
import { fillVector, type IoVector, vectorLength } from "../core/bytes.ts";
import type { BlockDriver } from "../core/driver.ts";
import { invalid } from "../core/errors.ts";
import type {
  BlockNode,
  Extent,
  ReadFlags,
  RequestFlags,
} from "../core/node.ts";
import { type OptionTable, parseOptions } from "../core/options.ts";

const OPEN_OPTIONS: OptionTable = {
  filename: {
    type: "string",
    help: "The driver's name, followed by `://`",
  },
  size: {
    type: "size",
    default: 1024 ** 3,
    help: "Size of the disk in bytes",
  },
  "latency-ns": {
    type: "number",
    default: 0,
    help: "Nanoseconds (approximated) to wait before completing a request",
  },
  "read-zeroes": {
    type: "boolean",
    default: false,
    help: "Read zeroes; otherwise buffers are left as they are",
  },
};

/**
 * A disk that accepts all writes and stores nothing, for measuring the layers
 * above it. Options: `size`, `latency-ns`, `read-zeroes`.
 */
export const nullCoDriver: BlockDriver = nullDriver("null-co");

/** As {@linkcode nullCoDriver}; in QEMU the two differ internally. */
export const nullAioDriver: BlockDriver = nullDriver("null-aio");

function nullDriver(name: string): BlockDriver {
  const driver: BlockDriver = {
    name,
    role: "protocol",
    openOptions: OPEN_OPTIONS,
    strongOptions: ["size", "read-zeroes"],
    plainName: (options) =>
      Object.keys(options).length > 0 ? undefined : `${name}://`,
    // deno-lint-ignore require-await -- the interface is asynchronous
    async open(options, context) {
      const parsed = parseOptions(OPEN_OPTIONS, options);
      const { filename = `${name}://` } = parsed;
      if (filename !== `${name}://`) {
        throw invalid(
          `The only allowed filename for this driver is '${name}://'`,
        );
      }
      return nullNode(driver, context.readOnly, {
        size: parsed.size as number | undefined ?? 1024 ** 3,
        latency: (parsed["latency-ns"] as number | undefined ?? 0) / 1e6,
        zeroes: parsed["read-zeroes"] as boolean | undefined ?? false,
      });
    },
  };
  return driver;
}

interface NullOptions {
  size: number;
  /** Milliseconds. */
  latency: number;
  zeroes: boolean;
}

function nullNode(
  driver: BlockDriver,
  readOnly: boolean,
  { size, latency, zeroes }: NullOptions,
): BlockNode {
  const pass = async ({ signal }: RequestFlags = {}) => {
    if (latency > 0) await delay(latency, signal);
  };
  const node: BlockNode = {
    driver,
    filename: `${driver.name}://`,
    size,
    readOnly,
    children: {},
    readv(_offset: number, iov: IoVector, flags?: ReadFlags) {
      if (zeroes) fillVector(iov, 0, vectorLength(iov));
      return pass(flags);
    },
    writev: (_offset, _iov, flags) => pass(flags),
    async flush(flags) {
      checkSignal(flags?.signal);
      await pass(flags);
    },
    // deno-lint-ignore require-await -- the interface is asynchronous
    async status(offset, length, flags): Promise<Extent> {
      checkSignal(flags?.signal);
      return {
        allocated: true,
        zero: zeroes,
        length,
        hostOffset: offset,
        file: node,
      };
    },
    info: () => Promise.resolve({ actualSize: 0 }),
    close: () => Promise.resolve(),
  };
  return node;
}
