/**
 * Suggestions for mistyped commands, options and values: the nearest known one.
 * Loaded only after an error.
 *
 * @module
 */
import type { BlockError } from "../core/errors.ts";
import { listDrivers } from "../core/registry.ts";
import type { OptionSpec } from "./getopt.ts";
import { CACHE_MODES } from "./images.ts";

/**
 * The message with a suggestion after the unknown word; `undefined` if it
 * contains no unknown word, or none is near.
 *
 * @param error The error, which may list the known words.
 * @param commands The names of the program's commands.
 * @param options The options of the command.
 */
export function suggestion(
  error: Error,
  commands: readonly string[],
  options: readonly OptionSpec[],
): string | undefined {
  const { message } = error;
  const words = wordsOf(error);
  for (const [pattern, known] of kinds(commands, options)) {
    const match = pattern.exec(message);
    if (!match) continue;
    const near = nearest(match[1], words ?? known());
    // Do not suggest the word itself.
    if (!near || near === match[1]) continue;
    const end = match.index + match[0].length;
    return `${message.slice(0, end)} (did you mean '${near}'?)` +
      message.slice(end);
  }
  return undefined;
}

/** The known words, if the error lists them. */
function wordsOf(error: Error): readonly string[] | undefined {
  for (let at: unknown = error; at instanceof Error; at = at.cause) {
    const { words } = at as Partial<BlockError>;
    if (words) return words;
  }
  return undefined;
}

/** Patterns of messages about unknown words, and the known words. */
function kinds(
  commands: readonly string[],
  options: readonly OptionSpec[],
): [RegExp, () => readonly string[]][] {
  const argumentsOf = (name: string) =>
    options.find(({ long }) => long === name)?.argument?.split("|") ?? [];
  return [
    [/Command not found: (\S+)/, () => commands],
    [
      /unrecognized option '(--[^'=]*)[^']*'/,
      () => options.flatMap(({ long }) => long ? [`--${long}`] : []),
    ],
    [/Unknown (?:driver|file format) '([^']*)'/, driverNames],
    [/Unknown protocol '([^']*)'/, protocolNames],
    [/Invalid parameter '([^']*)'/, none],
    [/(?:does not|doesn't) support the option '([^']*)'/, none],
    [/does not accept value '([^']*)'/, none],
    [/[Ii]nvalid parameter value: (\S+?)(?=;|$)/, none],
    [/Unknown compatibility level ([^\s;]+)/, none],
    [/Invalid (?:source )?cache (?:option|mode): ([^\s;]+)/, () => CACHE_MODES],
    [
      /Invalid preallocation mode '([^']*)'/,
      () => argumentsOf("preallocation"),
    ],
  ];
}

function driverNames(): string[] {
  return listDrivers().map(({ name }) => name);
}

function protocolNames(): string[] {
  return listDrivers().flatMap(({ name, role, schemes }) =>
    role === "protocol" ? [name] : schemes ?? []
  );
}

/** Such an error lists the words itself. */
function none(): string[] {
  return [];
}

/**
 * The word nearest to another, if near enough: up to a third of the letters may
 * differ, or the rest may be missing.
 */
export function nearest(
  word: string,
  known: readonly string[],
): string | undefined {
  let best: string | undefined;
  let least = Math.floor(Math.max(word.replace(/^--/, "").length, 3) / 3) + 1;
  for (const candidate of known) {
    const distance = editDistance(word, candidate);
    if (distance < least) [best, least] = [candidate, distance];
  }
  return best ?? onlyOneThatBegins(word, known);
}

function onlyOneThatBegins(
  word: string,
  known: readonly string[],
): string | undefined {
  const fitting = known.filter((candidate) => candidate.startsWith(word));
  return word.length > 1 && fitting.length === 1 ? fitting[0] : undefined;
}

/** The number of letters to insert, remove, replace, or swap with the next. */
function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = last[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      row[j] = Math.min(last[j] + 1, row[j - 1] + 1, replaced);
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] &&
        a[i - 2] === b[j - 1];
      if (swapped) row[j] = Math.min(row[j], beforeLast[j - 2] + 1);
    }
    [beforeLast, last] = [last, row];
  }
  return last[b.length];
}
