/**
 * Commands about the process: `sigraise`, `abort`, `sleep` and `quit`.
 *
 * @module
 */
import { delay } from "../../core/abort.ts";
import { type IoCommand, Refusal } from "./command.ts";
import { process } from "../../core/platform/this_process.ts";
import { giveWay } from "../../core/runtime.ts";
import { cInteger } from "../numbers.ts";
import { byteCount } from "./numbers.ts";

/** One more than the last signal of Linux. */
const SIGNALS_END = 65;
const SIGABRT = 6;

/** `sigraise`. */
export const sigraise: IoCommand = {
  name: "sigraise",
  usage: "signal",
  summary: "raises a signal",
  min: 1,
  max: 1,
  needs: "nothing",

  async run({ session, words }) {
    const signal = byteCount(words[0]);
    if (signal > SIGNALS_END) {
      throw new Refusal(
        `signal argument '${words[0]}' is too large to be a valid signal`,
      );
    }
    session.program.output.flush();
    await raise(signal);
  },
};

/** `abort`: buffered output is lost, as in a crash. */
export const abort: IoCommand = {
  name: "abort",
  summary: "simulate a program crash using abort(3)",
  needs: "nothing",
  run: () => raise(SIGABRT),
};

async function raise(signal: number): Promise<void> {
  try {
    process.raise(signal);
  } catch {
    // There is no such signal; QEMU ignores the result of `raise`.
  }
  // A signal with a listener arrives only between turns.
  await giveWay();
}

/** `sleep`. */
export const sleep: IoCommand = {
  name: "sleep",
  summary: "waits for the given value in milliseconds",
  min: 1,
  max: 1,
  needs: "nothing",

  async run({ session, words }) {
    const time = cInteger(words[0]);
    if (time === undefined || time < 0) {
      throw new Refusal(`${words[0]} is not a valid number`);
    }
    await session.background.during(delay(time));
  },
};

/** `quit`. */
export const quit: IoCommand = {
  name: "quit",
  alias: "q",
  summary: "exit the program",
  max: Infinity,
  needs: "nothing",
  run({ session }) {
    session.hasQuit = true;
  },
};
