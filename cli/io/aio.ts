/**
 * `aio_read`, `aio_write`, `aio_discard` and `aio_flush`: requests in the background.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import {
  type Call,
  type IoCommand,
  Refusal,
  SILENT,
  TERSE,
} from "./command.ts";
import { byteCount } from "./numbers.ts";
import {
  REGISTERED,
  registered,
  SHOWING,
  type Showing,
  shown,
  takeShowing,
  UNREAD,
} from "./read.ts";
import { reportText } from "./report.ts";
import { timed, vectorOf } from "./requests.ts";
import {
  checkBuffer,
  FILL,
  FUA,
  takeWriting,
  UNMAP,
  UNTOUCHED,
  type WriteOptions,
  ZERO,
} from "./write.ts";

const INVALID = { short: "i", help: "do nothing, as for an invalid request" };

/** `aio_read`. */
export const aioRead: IoCommand = {
  name: "aio_read",
  get usage() {
    return `[-Ciq${registered()}v] [-P pattern] off len [len..]`;
  },
  summary: "asynchronously reads a number of bytes",
  min: 2,
  max: Infinity,
  options: [...SHOWING, INVALID],

  run(call) {
    const { program, image, background } = call.session;
    const showing: Showing = {};
    for (const [option, argument] of call.options()) {
      if (option === "i") {
        return program.print("injecting invalid read request\n");
      }
      takeShowing(showing, option, argument);
    }
    if (call.operands.length < 2) throw call.misused();
    const [at, ...sizes] = call.operands;
    const offset = byteCount(at);
    const { whole, parts } = vectorOf(sizes, UNREAD);
    background.add(
      reported(
        "readv",
        () => image.readv(offset, parts),
        (time) => shown(whole, offset, time, showing).text,
      ),
    );
  },
};

/** `aio_write`. */
export const aioWrite: IoCommand = {
  name: "aio_write",
  get usage() {
    return `[-Cfiq${registered()}uz] [-P pattern] off len [len..]`;
  },
  summary: "asynchronously writes a number of bytes",
  min: 2,
  max: Infinity,
  needs: "writable",
  options: [TERSE, FUA, INVALID, SILENT, UNMAP, ZERO, FILL, REGISTERED],

  run(call) {
    const { program, background } = call.session;
    const options: WriteOptions = {};
    for (const [option, argument] of call.options()) {
      if (option === "i") {
        return program.print("injecting invalid write request\n");
      }
      takeWriting(options, option, argument);
    }
    if (call.operands.length < 2) throw call.misused();
    checkTogether(options, call.operands.length);
    const offset = byteCount(call.operands[0]);
    const { length, request } = requestOf(call, options, offset);
    const { silent, terse = false } = options;
    background.add(
      reported(
        "aio_write",
        request,
        (seconds) =>
          silent
            ? ""
            : reportText({ verb: "wrote", offset, length, seconds, terse }),
      ),
    );
  },
};

/** `aio_discard`. */
export const aioDiscard: IoCommand = {
  name: "aio_discard",
  usage: "[-Cq] off len",
  summary: "asynchronously discards a number of bytes",
  min: 2,
  max: Infinity,
  needs: "writable",
  options: [TERSE, SILENT],

  run(call) {
    const { image, background, opening } = call.session;
    const options: WriteOptions = {};
    for (const option of call.options()) takeWriting(options, ...option);
    if (call.operands.length !== 2) throw call.misused();
    const [offset, length] = call.operands.map((word) => byteCount(word));
    const { silent, terse = false } = options;
    const request = async () => {
      // Even if discards are ignored, the range must be within the disk.
      if (offset + length > image.size) throw new BlockError("EIO");
      if (opening.discard) await image.discard(offset, length);
    };
    const report = (seconds: number) =>
      silent
        ? ""
        // The two blanks are QEMU's.
        : reportText({ verb: "discarded ", offset, length, seconds, terse });
    background.add(reported("aio_discard", request, report));
  },
};

function checkTogether(options: WriteOptions, operands: number): void {
  const { zero, unmap } = options;
  if (zero && operands !== 2) {
    throw new Refusal("-z supports only a single length parameter");
  }
  if (unmap && !zero) throw new Refusal("-u requires -z to be specified");
  checkBuffer(options);
}

function requestOf(
  call: Call,
  options: WriteOptions,
  offset: number,
): { length: number; request: () => Promise<void> } {
  const { image } = call.session;
  const sizes = call.operands.slice(1);
  if (options.zero) {
    const length = byteCount(sizes[0]);
    return {
      length,
      request: () => image.writeZeroes(offset, length, options),
    };
  }
  const { whole, parts } = vectorOf(sizes, options.pattern ?? UNTOUCHED);
  return {
    length: whole.length,
    request: () => image.writev(offset, parts, options),
  };
}

/** Start a request; returns its report, once it is finished. */
async function reported(
  what: string,
  request: () => Promise<unknown>,
  report: (seconds: number) => string,
): Promise<string> {
  try {
    return report(await timed(what, request));
  } catch (error) {
    if (error instanceof Refusal) return `${error.message}\n`;
    throw error;
  }
}

/** `aio_flush`. */
export const aioFlush: IoCommand = {
  name: "aio_flush",
  summary: "completes all outstanding aio requests",
  run: ({ session }) => session.background.drain(),
};
