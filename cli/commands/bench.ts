/** `bench`: measure how fast an image is. @module */
import "../../drivers/reading.ts";
import { bench } from "../../core/jobs/bench.ts";
import { asBlockError, BlockError, reasonOf } from "../../core/errors.ts";
import type { CacheMode } from "../../core/open_options.ts";
import {
  type Command,
  FORCE_SHARE,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
  QUIET,
} from "../command.ts";
import {
  CACHE_MODES,
  cacheMode,
  openImageArgument,
  usingNodes,
} from "../images.ts";
import {
  INT32_MAX,
  integerText,
  numberArgument,
  sizeArgument,
} from "../numbers.ts";
import { fixed } from "../../core/values.ts";
import { CommandError, notAmong } from "../program.ts";
import { inRelease } from "../qemu_releases.ts";
import type { AioMode } from "../../core/traits.ts";

class Settings {
  cache: CacheMode = "writeback";
  aio?: AioMode;
  write = false;
  count = 75_000;
  depth = 64;
  offset = 0;
  length = 4096;
  step = 0;
  pattern = 0;
  flushInterval = 0;
  drain = true;
}

/** The command. */
export const command: Command = {
  summary: "Measure how fast an image is",
  operands: "FILE",
  options: [
    HELP,
    QUIET,
    OBJECT,
    IMAGE_OPTS,
    FORCE_SHARE,
    FORMAT,
    {
      short: "c",
      long: "count",
      argument: "N",
      help: "requests in all; default: 75000",
    },
    {
      short: "d",
      long: "depth",
      argument: "N",
      help: "requests in flight; default: 64",
    },
    {
      short: "s",
      long: "buffer-size",
      argument: "SIZE",
      help: "bytes of a request; default: 4096",
    },
    {
      short: "o",
      long: "offset",
      argument: "OFFSET",
      help: "offset of the first request",
    },
    {
      short: "S",
      long: "step-size",
      argument: "SIZE",
      help: "bytes from one request to the next; default: its length",
    },
    { short: "w", long: "write", help: "write rather than read" },
    {
      long: "pattern",
      argument: "BYTE",
      help: "the byte to write; default: 0",
    },
    {
      long: "flush-interval",
      argument: "N",
      help: "flush after every so many requests",
    },
    { long: "no-drain", help: "go on sending requests during a flush" },
    {
      short: "t",
      long: "cache",
      argument: "CACHE",
      help: "cache mode: writeback, none, unsafe, …",
    },
    {
      short: "i",
      long: "aio",
      argument: "AIO",
      help: "accepted for compatibility: threads, native or io_uring",
    },
    { short: "n", long: "native", help: "the same as -i native" },
  ],
  notes: "Requests have increasing offsets, and start over at the end of\n" +
    "the disk.",

  async run(invocation) {
    const { program } = invocation;
    const settings = parse(invocation);
    const [file] = invocation.operands;
    const { cache, aio } = settings;
    const node = await openImageArgument(program, file, {
      ...invocation.image,
      writable: settings.write,
      cache,
      aio,
    });
    const { write, count, depth, offset, length, flushInterval } = settings;
    const step = settings.step || length;
    return await usingNodes([node], async () => {
      program.print(
        `Sending ${count} ${write ? "write" : "read"} requests, ${length} ` +
          `bytes each, ${depth} in parallel (starting at offset ` +
          `${integerText(offset)}, step size ${step})\n`,
      );
      if (flushInterval > 0) {
        program.print(`Sending flush every ${flushInterval} requests\n`);
      }
      if (write && !node.writev) throw failed(new BlockError("ENOTSUP"));
      const fua = cache === "writethrough" || cache === "directsync";
      let seconds;
      try {
        seconds = await bench(node, { ...settings, step, fua });
      } catch (error) {
        throw failed(asBlockError(error));
      }
      program.print(`Run completed in ${fixed(seconds, 3)} seconds.\n`);
      return 0;
    });
  },
};

function failed(error: BlockError): CommandError {
  return new CommandError(`Failed request: ${reasonOf(error)}`);
}

function parse(invocation: Invocation): Settings {
  const settings = new Settings();
  const least = inRelease("benchLeast");
  const most = INT32_MAX;
  for (const [option, argument] of invocation.options()) {
    if (option === "c") {
      settings.count = numberArgument("request count", argument, least, most);
    } else if (option === "d") {
      settings.depth = numberArgument("queue depth", argument, least, most);
    } else if (option === "flush-interval") {
      settings.flushInterval = numberArgument(
        "flush interval",
        argument,
        0,
        most,
      );
    } else if (option === "pattern") {
      settings.pattern = numberArgument("pattern byte", argument, 0, 255);
    } else if (option === "s") {
      settings.length = sizeArgument("buffer size", argument, least, most);
    } else if (option === "S") {
      settings.step = sizeArgument(inRelease("stepSize"), argument, 0, most);
    } else if (option === "o") {
      settings.offset = sizeArgument("offset", argument);
    } else if (option === "t") settings.cache = benchCache(argument);
    else if (option === "i") settings.aio = aioMode(argument);
    else if (option === "n") settings.aio = "native";
    else if (option === "w") settings.write = true;
    else if (option === "no-drain") settings.drain = false;
  }
  invocation.expectOneImage();
  check(settings);
  return settings;
}

function check(settings: Settings): void {
  if (!settings.write && settings.flushInterval > 0) {
    throw new CommandError(
      "--flush-interval is only available in write tests",
    );
  }
  if (settings.flushInterval > 0 && settings.flushInterval < settings.depth) {
    throw new CommandError("Flush interval can't be smaller than depth");
  }
  // With a depth of 0, QEMU hangs.
  if (settings.depth === 0 && settings.count > 0) {
    const detail = " '0'";
    throw new CommandError(`Invalid queue depth${detail} specified`, {
      detail,
    });
  }
}

function benchCache(text: string): CacheMode {
  try {
    return cacheMode(text, "cache mode");
  } catch {
    throw notAmong("Invalid cache mode", CACHE_MODES);
  }
}

const AIO_MODES: readonly AioMode[] = ["threads", "native", "io_uring"];

function aioMode(text: string): AioMode {
  if (!AIO_MODES.includes(text as AioMode)) {
    throw notAmong(`Invalid aio option: ${text}`, AIO_MODES);
  }
  return text as AioMode;
}
