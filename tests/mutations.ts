/**
 * Mutates bytes of images of each format, and checks that nothing worse comes
 * of it than a clear error: no crash, no hang, no memory out of proportion, no
 * map that contradicts what is read, and no write that cannot be read back. By
 * hand, as often as desired:
 * `deno run -A tests/mutations.ts [FORMAT|all] [COUNT] [FIRST]`.
 *
 * @module
 */
import process from "node:process";
import { AbsentVerbError, UnexpectedError } from "../core/errors.ts";
import { isEqual, isZero } from "../core/runtime.ts";
import {
  BlockError,
  convert,
  getDriver,
  type Image,
  inspect,
  loadDriver,
  MemoryStore,
  openImage,
  type OpenOptions,
  type StackObject,
} from "../mod.ts";
import { openNode } from "../core/open.ts";
import { Random } from "./model.ts";
import {
  type Bytes,
  PARTS,
  type Sample,
  SAMPLES,
  SIZE,
} from "./mutation_samples.ts";

/** The limit on processor time, in milliseconds. */
const LONGEST = 10_000;
/** The limit on memory growth along the way, in bytes. */
const MOST_MEMORY = 300 * 1024 ** 2;
/**
 * The largest buffer that may be allocated, touched or not, in bytes: a little
 * more than the largest block of a cloop image.
 */
const LARGEST_BUFFER = 65 * 1024 ** 2;
/** The unit in which samples are copied and restored, in bytes. */
const PAGE = 4096;
/** Samples larger than this are copied and restored page by page. */
const SMALL = 512 * 1024;
/** The most bytes of a disk to read at once. */
const LOOK = 140_000;

/** The most extents of a map to compare with what is read. */
const MAX_EXTENTS = 60;

/** The formats whose images are mutated. */
export const FORMATS: readonly string[] = Object.keys(SAMPLES);

/** Values that have broken programs before. */
const VALUES = [
  ...[0n, 1n, 2n, 3n, 6n, 7n, 8n, 9n, 127n, 255n, 511n, 512n, 513n, 4096n],
  ...[65536n, 1n << 20n, 0x7fffffffn, 0x80000000n, 0xfffffffen, 0xffffffffn],
  ...[1n << 32n, 1n << 40n, (1n << 53n) - 1n, 1n << 53n, (1n << 56n) - 512n],
  ...[1n << 62n, (1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n],
];

/** Pieces of text that have broken programs before. */
const TEXTS = [
  ...["", " ", "\n", "\0", '"', "<", ">", "&#0;", "=", "%00", "\u00e9", "-1"],
  ...["../", "/dev/zero", "nbd://127.0.0.1:1/x", "json:{}", "x".repeat(300)],
  ...["0x10", "1e3", "NaN", "RW", "ZERO", "FLAT", "SPARSE", "streamOptimized"],
];

/** An image that is mutated, restored, and mutated again. */
class Victim {
  readonly sample: Sample;
  readonly bytes: Bytes;
  /** The size of the file, which may have been truncated. */
  size: number;
  /** Offsets of nonzero words that look like metadata. */
  readonly words: readonly number[];
  readonly #pages: ReadonlySet<number>;
  readonly #touched = new Set<number>();

  constructor(sample: Sample) {
    this.sample = sample;
    this.bytes = sample.bytes.slice();
    this.size = this.bytes.length;
    const pages = new Set<number>();
    for (let at = 0; at < this.size; at += PAGE) {
      if (!isZero(this.bytes.subarray(at, at + PAGE))) pages.add(at);
    }
    this.#pages = pages;
    this.words = [...pages].flatMap((at) => wordsOf(this.bytes, at));
  }

  get isSmall(): boolean {
    return this.bytes.length <= SMALL;
  }

  /** Note that a range is about to change. */
  touch(start: number, end: number): void {
    const last = Math.min(end, this.bytes.length);
    for (let at = start - start % PAGE; at < last; at += PAGE) {
      this.#touched.add(at);
    }
  }

  isTouched(start: number, end: number): boolean {
    for (const at of this.#touched) {
      if (at < end && at + PAGE > start) return true;
    }
    return false;
  }

  restore(): void {
    const { sample: { bytes } } = this;
    if (this.isSmall) this.bytes.set(bytes);
    else {
      for (const at of this.#touched) {
        this.bytes.set(bytes.subarray(at, at + PAGE), at);
      }
    }
    this.#touched.clear();
    this.size = bytes.length;
  }

  /** A copy of a range, to be used as a file. */
  store(start = 0, end: number = this.size): MemoryStore {
    const store = new MemoryStore(end - start);
    if (this.isSmall) store.write(0, this.bytes.subarray(start, end));
    else {
      for (const pages of [this.#pages, this.#touched]) {
        for (const at of pages) {
          const stop = Math.min(end, at + PAGE);
          if (at >= start && at < stop) {
            store.write(at - start, this.bytes.subarray(at, stop));
          }
        }
      }
    }
    return store;
  }

  /** The protocol's description of the file, or of the first of several. */
  file(): StackObject {
    const { files } = this.sample;
    if (!files) return { driver: "memory", store: this.store() };
    let at = 0;
    for (const { name, length } of files) {
      PARTS.set(name, this.store(at, at + length));
      at += length;
    }
    return { driver: "parts", url: `parts://x/${files[0].name}` };
  }
}

/** Nonzero words of a page; none if it is mostly full, as pages of data are. */
function wordsOf(bytes: Bytes, page: number): number[] {
  const words: number[] = [];
  const end = Math.min(bytes.length, page + PAGE);
  for (let at = page; at < end; at += 4) {
    if (!isZero(bytes.subarray(at, at + 4))) words.push(at);
  }
  return words.length < PAGE / 4 / 2 ? words : [];
}

/** Replace a number of a few bytes, or change it slightly. */
function putNumber(
  { bytes }: Victim,
  start: number,
  most: number,
  random: Random,
): string {
  const length = random.pick([1, 2, 4, 8]);
  const room = Math.min(most, bytes.length - start);
  const at = start + random.below(Math.max(1, room - 8));
  const aligned = at - at % length;
  const isLittle = random.below(2) === 0;
  const place = (i: number) => aligned + (isLittle ? i : length - 1 - i);
  let value = 0n;
  const kind = random.below(6);
  if (kind < 2) value = BigInt(random.below(256));
  else if (kind < 5) value = random.pick(VALUES);
  else {
    for (let i = length - 1; i >= 0; i--) {
      value = value << 8n | BigInt(bytes[place(i)] ?? 0);
    }
    const step = BigInt(random.pick([1, 2, 8, 512, 4096, 65536]));
    value = BigInt.asUintN(64, random.oneIn(2) ? value + step : value - step);
  }
  for (let i = 0; i < length && place(i) < bytes.length; i++) {
    bytes[place(i)] = Number(value >> BigInt(8 * i) & 0xffn);
  }
  return `${aligned} (${length}) = 0x${value.toString(16)}`;
}

/** Replace a word of a text; what does not fit any more is cut off. */
function changeText(
  { bytes }: Victim,
  [start, end]: readonly [number, number],
  random: Random,
): string {
  const area = bytes.subarray(start, Math.min(end, bytes.length));
  const stop = area.indexOf(0);
  const old = new TextDecoder("latin1")
    .decode(stop < 0 ? area : area.subarray(0, stop));
  const words = old.split(/([0-9]+|[^\S ]+|[^0-9\s]+)/);
  const at = random.below(words.length);
  const word = random.below(3) === 0
    ? random.pick(VALUES).toString()
    : random.below(2) === 0
    ? random.pick(TEXTS)
    : random.pick(words);
  words.splice(at, random.below(2) + random.below(2), word);
  const text = new TextEncoder().encode(words.join(""));
  // Text in the middle of a file has a fixed length, and is padded with spaces.
  area.fill(stop < 0 ? 0x20 : 0);
  area.set(text.subarray(0, area.length));
  return `text at ${start}, word ${at} = ${word.slice(0, 40)}`;
}

/** Mutate it in one way. */
function mutate(victim: Victim, random: Random): string {
  const { bytes, sample } = victim;
  const { places = [], texts = [], damage } = sample;
  const { length } = bytes;
  victim.touch(0, 1);
  if (damage && random.oneIn(2)) {
    const what = damage(bytes, random);
    if (what !== "") return what;
  }
  if (texts.length > 0 && random.oneIn(3)) {
    const text = random.pick(texts);
    victim.touch(...text);
    return changeText(victim, text, random);
  }
  const ends = [0, 0, 512, 1536, length - 1536, length - 8192, length - 512];
  const pick = () =>
    Math.max(0, Math.min(random.pick([...ends, ...places]), length - 16));
  const kind = random.below(8);
  if (kind === 0) {
    const at = random.below(length);
    victim.touch(at, at + 1);
    bytes[at] ^= 1 << random.below(8);
    return `byte ${at} = ${bytes[at]}`;
  }
  if (kind === 1) {
    // Duplicate an entry, or put one structure in place of another.
    const unit = random.pick([4, 8, 16, 32, 64]);
    const [from, to] = [pick(), pick()].map((start) =>
      Math.min(start + unit * random.below(512 / unit), length - unit)
    );
    if (from < 0 || to < 0) return "nothing";
    victim.touch(to, to + unit);
    bytes.copyWithin(to, from, from + unit);
    return `${to} = ${unit} bytes of ${from}`;
  }
  if (victim.words.length > 0 && kind < 6) {
    const at = random.pick(victim.words);
    victim.touch(at, at + 16);
    return putNumber(victim, at, 12, random);
  }
  const start = pick();
  victim.touch(start, start + PAGE);
  return putNumber(victim, start, random.pick([128, 512, 4096]), random);
}

/** Whether an error was thrown on purpose, with a clear message. */
function isClear(error: unknown): boolean {
  if (error instanceof SuppressedError) {
    return isClear(error.error) && isClear(error.suppressed);
  }
  return error instanceof BlockError && !(error instanceof UnexpectedError) &&
    !(error instanceof AbsentVerbError) && error.message.trim() !== "" &&
    !/\n +at /.test(error.message);
}

/** The result of a call, unless it fails as it may. */
async function attempt<T>(act: () => Promise<T>): Promise<T | undefined> {
  try {
    return await act();
  } catch (error) {
    if (!isClear(error)) throw error;
    return undefined;
  }
}

/** A write must be readable, as long as nothing else has been damaged. */
async function writeSomething(image: Image, random: Random): Promise<void> {
  if (image.readOnly || image.size < 4096) return;
  const { corruptions } = await image.check().catch(() => ({ corruptions: 1 }));
  const last = Math.min(image.size, SIZE) - 1024;
  const offset = random.below(last / 512) * 512;
  const bytes = new Uint8Array(512).fill(1 + random.below(255));
  await image.write(offset, bytes);
  const found = await image.read(offset, 512);
  if (corruptions === 0 && found.some((byte) => byte !== bytes[0])) {
    throw new Error(`data written at ${offset} is lost`);
  }
  await image.flush();
  if (!random.oneIn(4)) return;
  const length = Math.min(SIZE, image.size) - offset;
  await attempt(() => image.writeZeroes(offset, Math.min(length, 150_016)));
  await attempt(() => image.discard(0, Math.min(image.size, 1_048_576)));
  await attempt(() => image.resize(image.size + 131_072));
  await attempt(() =>
    image.check({ repair: { leaks: true, corruptions: true } })
  );
  await attempt(() => image.read(0, Math.min(image.size, LOOK)));
}

/** Read everything of reasonable size: at once, by its map, and as a copy. */
async function readAll(image: Image, random: Random): Promise<void> {
  const { size } = image;
  const start = await attempt(() => image.read(0, Math.min(size, LOOK)));
  const length = Math.min(size, 5000);
  await attempt(() => image.read(size - length, length));
  await attempt(async () => {
    let count = 0;
    let at = 0;
    for await (const extent of image.extents()) {
      if (extent.offset !== at || extent.length <= 0) {
        throw new Error(`the map continues at ${extent.offset}, not at ${at}`);
      }
      at += extent.length;
      if (++count > MAX_EXTENTS || at > size) break;
      const { offset, zero } = extent;
      const most = Math.min(extent.length, zero ? 8192 : 65536);
      const found = await attempt(() => image.read(offset, most));
      if (zero && found && !isZero(found)) {
        throw new Error(`what the map calls zeroes at ${offset} is data`);
      }
      const known = start?.subarray(offset, offset + most);
      if (found && known && !isEqual(known, found.subarray(0, known.length))) {
        throw new Error(`the bytes at ${offset} are not always the same`);
      }
    }
    if (count <= MAX_EXTENTS && at !== size) {
      throw new Error(`the map ends at ${at}`);
    }
  });
  if (size > 4 * SIZE || !random.oneIn(4)) return;
  const store = new MemoryStore(size);
  const stack = { driver: "raw", file: { driver: "memory", store } };
  await attempt(async () => {
    await using target = await openImage(stack);
    await convert(image, target, { targetIsZero: true });
    const copy = await target.read(0, Math.min(size, LOOK));
    if (!start || !isEqual(copy, start)) {
      throw new Error("the copy differs from what was read");
    }
  });
}

/** Unpack everything of reasonable size. */
async function unpack(format: string, file: StackObject): Promise<void> {
  const driver = await loadDriver(getDriver(format));
  const node = await openNode(file);
  try {
    let length = 0;
    for await (const part of driver.unpack!({}, node)) {
      length += part.length;
      if (length > 4 * SIZE) break;
    }
  } finally {
    await node.close();
  }
}

async function use(
  format: string,
  victim: Victim,
  random: Random,
): Promise<void> {
  const { sample: { files, isStream, secrets, options: more } } = victim;
  const options: OpenOptions = {
    gate: files ? ({ filename }) => filename.startsWith("parts:") : "deny",
    maxChain: 1,
    secrets,
    // Deriving a key takes a hundred times as long as everything else.
    withoutKeys: secrets !== undefined && !random.oneIn(40),
  };
  const file = victim.file();
  // Opening takes most of the time, so each mutation gets only some of the
  // checks.
  if (random.oneIn(4)) await attempt(() => inspect(file));
  if (isStream) return void await attempt(() => unpack(format, file));
  const driver = await loadDriver(getDriver(format));
  const stack = (file: StackObject): StackObject =>
    driver.isContainer
      ? { driver: "raw", file: { driver: format, file } }
      : { driver: format, ...more, file };
  if (random.oneIn(4)) {
    await attempt(async () => {
      const how = { ...options, readOnly: true, unpack: true };
      await using image = await openImage({ file }, how);
      await attempt(() => image.info());
    });
  }
  const isWritable = !driver.isContainer && driver.create !== undefined;
  if (isWritable && random.oneIn(2)) {
    await attempt(async () => {
      await using image = await openImage(stack(file), options);
      await attempt(() => writeSomething(image, random));
    });
    return;
  }
  await attempt(async () => {
    const how = { ...options, readOnly: true };
    await using image = await openImage(stack(file), how);
    await attempt(() => image.info());
    await readAll(image, random);
    await attempt(() => image.check());
  });
}

/** The size of the largest buffer allocated since this was last 0. */
let largest = 0;
let askedBy = "";

/** Track the sizes of buffers: they take no memory until they are touched. */
function watchBuffers(): void {
  const scope = globalThis as unknown as Record<string, unknown>;
  for (
    const name of [
      ...["ArrayBuffer", "Uint8Array", "Uint16Array", "Uint32Array"],
      ...["Float64Array", "BigUint64Array", "Int32Array"],
    ]
  ) {
    const original = scope[name] as {
      new (...args: unknown[]): { byteLength: number };
      BYTES_PER_ELEMENT?: number;
    };
    const unit = original.BYTES_PER_ELEMENT ?? 1;
    scope[name] = new Proxy(original, {
      construct(target, args, newTarget) {
        const [count] = args;
        if (typeof count === "number" && count * unit > largest) {
          largest = count * unit;
          if (largest > LARGEST_BUFFER) askedBy = new Error().stack ?? "";
        }
        return Reflect.construct(target, args, newTarget);
      },
    });
  }
}

let isWatching = false;

/** The maxima over all images of a format. */
export interface Extremes {
  milliseconds: number;
  buffer: number;
}

/**
 * Mutate images of a format, each in ways that the seed determines.
 *
 * @returns a line for each wrong outcome.
 */
export async function runMutations(
  format: string,
  first: number,
  count: number,
  most: Extremes = { milliseconds: 0, buffer: 0 },
): Promise<string[]> {
  const victims = (await SAMPLES[format]()).map((one) => new Victim(one));
  const driver = format.replace(/ .*/, "");
  const wrong: string[] = [];
  if (!isWatching) watchBuffers();
  isWatching = true;
  let before = Deno.memoryUsage().rss;
  for (let seed = first; seed < first + count; seed++) {
    const random = new Random(seed);
    const victim = random.pick(victims);
    const { bytes, sample } = victim;
    const steps: string[] = [];
    for (let left = 1 + random.below(3); left > 0; left--) {
      steps.push(mutate(victim, random));
    }
    if (!random.oneIn(4)) {
      for (const { range, seal } of sample.seals ?? []) {
        if (!victim.isTouched(...range)) continue;
        victim.touch(...range);
        seal(bytes);
      }
    }
    sample.damage?.(bytes, random);
    if (!sample.files && random.oneIn(12)) {
      victim.size = random.below(bytes.length + 1);
      steps.push(`cut to ${victim.size}`);
    }
    largest = 0;
    const start = process.cpuUsage();
    let problem: string | undefined;
    try {
      await use(driver, victim, random);
    } catch (error) {
      problem = error instanceof Error ? error.stack : String(error);
    }
    const { user, system } = process.cpuUsage(start);
    const time = (user + system) / 1000;
    const memory = Deno.memoryUsage().rss - before;
    before += memory;
    if (time > LONGEST) problem ??= `${Math.round(time)} ms`;
    if (memory > MOST_MEMORY) problem ??= `${memory} bytes`;
    if (largest > LARGEST_BUFFER) {
      problem ??= `a buffer of ${largest} bytes ${askedBy}`;
    }
    most.milliseconds = Math.max(most.milliseconds, Math.round(time));
    most.buffer = Math.max(most.buffer, largest);
    if (problem) {
      wrong.push(`${format} ${seed} (${steps.join("; ")}): ${problem}`);
    }
    victim.restore();
  }
  return wrong;
}

if (import.meta.main) {
  const [format = "all", count = "1000", first = "0"] = Deno.args;
  const formats = format === "all" ? FORMATS : [format];
  let failures = 0;
  for (const name of formats) {
    const most: Extremes = { milliseconds: 0, buffer: 0 };
    const wrong = await runMutations(name, Number(first), Number(count), most);
    for (const line of wrong) console.log(line);
    console.log(
      `${name}: ${count} changed, ${wrong.length} wrong; at most ` +
        `${most.milliseconds} ms and a buffer of ${most.buffer} bytes`,
    );
    failures += wrong.length;
  }
  Deno.exit(failures > 0 ? 1 : 0);
}
