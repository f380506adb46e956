/**
 * Differences between the output of QEMU's releases. We follow the newest one,
 * or the one that `BDRV_QEMU_VERSION` names.
 *
 * @module
 */
import { process } from "../core/platform/this_process.ts";
import { SIZE_HINT } from "../core/options.ts";
import { valueText } from "../core/values.ts";
import { CommandError } from "./command_error.ts";
import type { Json } from "./json.ts";

/** The environment variable that selects a release. */
const VARIABLE = "BDRV_QEMU_VERSION";

/** The releases that can be selected, oldest first. */
export const RELEASES: readonly string[] = [
  "7.2",
  "8.0",
  "8.1",
  "8.2",
  "9.0",
  "9.1",
  "9.2",
  "10.0",
  "10.1",
  "10.2",
  "11.0",
  "11.1",
];

/** Variants, each with the release in which it appeared. */
type Variants<T> = readonly (readonly [since: number, variant: T])[];

/** A list of words, which may be empty. */
type Words = readonly string[];

/** Words that a message has now and had then, and the hint that it had. */
type Reworded = readonly [now: string | RegExp, then: string, hint?: string];

/** Mistakes in JSON, which had no position. */
const FORMER_JSON: readonly Reworded[] = [
  [/(JSON parse error, )premature end of input/, "$1premature EOI"],
  [/(JSON parse error, )expecting ':'/, "$1missing : in object pair"],
  [/(JSON parse error, )expected ',' or '}'/, "$1expected separator in dict"],
  [/(JSON parse error, )expected ',' or '\]'/, "$1expected separator in list"],
  [/(JSON parse error, )expecting key/, "$1expecting value"],
  [/\d+:\d+: (?=JSON parse error, )/, ""],
];

/**
 * All differences. The first variant of each is that of 7.2; older releases are
 * not covered.
 */
const DIFFERENCES = {
  /** The last part of the version. */
  corrections: [[7.2, 22], [8.0, 0], [11.1, 3]],

  /** `info` describes the nodes below an image, too. */
  childInfo: [[7.2, false], [8.0, true]],

  /** Drivers of files whose empty details are shown. */
  fileSpecific: [
    [7.2, []],
    [8.0, ["file", "host_device"]],
  ] as Variants<Words>,

  /** The heading of empty details is shown. */
  emptyDetails: [[7.2, true], [8.0, false]],

  /** Details of formats that `info` does not show yet. */
  laterDetails: [[7.2, ["detached-header"]], [9.0, []]] as Variants<Words>,

  /** The JSON of `map` reports compression. */
  mapCompressed: [[7.2, false], [8.2, true]],

  /** The snapshot list: its columns, and an unknown count. */
  snapshotList: [
    [7.2, { id: 9, join: " ", gap: "", hours: 2, clock: 13, unknown: "" }],
    [9.0, { id: 7, join: "_", gap: " ", hours: 4, clock: 15, unknown: "--" }],
  ],

  /** The default action of `snapshot`. */
  snapshotDefault: [[7.2, undefined], [10.0, "l"]],

  /** If `snapshot -c` fails, the error number is shown, too. */
  snapshotErrno: [[7.2, true], [10.0, false]],

  /** How the help of a single command begins, to which its messages refer. */
  commandHelp: [[7.2, undefined], [10.0, "summary"], [10.1, "usage"]],

  /** Mistakes in options are worded like the C library's. */
  libraryMistakes: [[7.2, false], [10.0, true]],

  /** What a message says that the help contains. */
  tryHelp: [[7.2, "information"], [10.0, "info"], [10.1, "information"]],

  /**
   * Invalid numbers are quoted, and negative ones are out of range; the end of
   * the message.
   */
  quotedNumber: [[7.2, undefined], [10.0, "."], [10.1, ""]],

  /** What the messages of `bench` call the size of a step. */
  stepSize: [[7.2, "step_size"], [10.0, "step size"]],

  /**
   * Unknown words are quoted as soon as they are parsed; the text between them.
   */
  quotedChoice: [[7.2, undefined], [10.0, ""], [10.1, ","]],

  /** The smallest request count, queue depth and size of `bench`. */
  benchLeast: [[7.2, 0], [10.0, 1]],

  /** `resize` finds its size anywhere among the arguments. */
  resizeAnywhere: [[7.2, false], [10.0, true]],

  /** The format of a probed backing file is on a line of its own. */
  detectedLine: [[7.2, ""], [10.0, "\n"]],

  /** `bitmap` has `--remove-all`. */
  bitmapActions: [
    [7.2, "--add, --remove, --clear"],
    [11.1, "--add, --remove, --remove-all, --clear"],
  ],

  /** Options of new images that `-o help` does not list yet. */
  laterOptions: [
    [7.2, ["detached-header", "keep_data_file"]],
    [9.0, ["keep_data_file"]],
    [11.1, []],
  ] as Variants<Words>,

  /** The first letters of `qemu-io` commands that do not exist yet. */
  laterIoCommands: [
    [7.2, ["aio_discard", "zone_"]],
    [8.1, ["aio_discard"]],
    [11.0, []],
  ] as Variants<Words>,

  /** The letter of the `qemu-io` option for registered buffers. */
  registeredBuffer: [[7.2, ""], [8.0, "r"]],

  /** Data files are created as plain files, whatever their names begin with. */
  plainNames: [[7.2, false], [10.2, true]],

  /** Messages of drivers that were worded differently. */
  reworded: [
    [7.2, [...FORMER_JSON, [
      "does not support creating new images, so an existing image must be " +
      "selected as the target; however, opening the given target as an " +
      "existing image failed:",
      "does not support image creation, and opening the image failed:",
    ], [
      /Value '-[^']*' is out of range for parameter ('[^']*')/,
      "Parameter $1 expects a non-negative number below 2^64",
      SIZE_HINT,
    ]]],
    [10.0, FORMER_JSON],
    [11.1, []],
  ] as Variants<readonly Reworded[]>,
} as const satisfies { readonly [name: string]: Variants<unknown> };

type Differences = typeof DIFFERENCES;

let selected = RELEASES.at(-1)!;

/**
 * Follow the release named in the environment. Without permission to read that,
 * follow the newest one, without prompting.
 *
 * @throws {CommandError} if the release is unknown.
 */
export function selectRelease(): void {
  const wanted = process.variable(VARIABLE);
  if (!wanted) return;
  const [release] = /^\d+\.\d+(?=(\.\d+)?$)/.exec(wanted) ?? [];
  if (release === undefined || !RELEASES.includes(release)) {
    throw new CommandError(
      `Invalid ${VARIABLE} ${valueText(wanted)}: it must be one of ` +
        RELEASES.join(", "),
    );
  }
  selected = release;
}

/** The version of QEMU whose output is followed, such as `11.1.3`. */
export function qemuVersion(): string {
  return `${selected}.${inRelease("corrections")}`;
}

/** The variant that the followed release has of a difference. */
export function inRelease<Name extends keyof Differences>(
  name: Name,
): Differences[Name][number][1] {
  const variants: Variants<Differences[Name][number][1]> = DIFFERENCES[name];
  return variants.findLast(([since]) => since <= Number(selected))![1];
}

/** Details of a format, without those newer than the release. */
export function knownDetails(details: Json): Json {
  if (Array.isArray(details)) return details.map(knownDetails);
  if (typeof details !== "object" || details === null) return details;
  const later = inRelease("laterDetails");
  return Object.fromEntries(
    Object.entries(details)
      .filter(([name]) => !later.includes(name))
      .map(([name, value]) => [name, knownDetails(value)]),
  );
}
