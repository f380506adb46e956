/**
 * Changes bytes of images of each format, and looks whether anything worse comes
 * of it than a clear error: a crash, a hang, memory out of proportion, or a
 * write that cannot be read back. By hand, as often as wanted:
 * `deno run -A tests/mutations.ts [FORMAT|all] [COUNT] [FIRST]`.
 *
 * @module
 */
import { AbsentVerbError, UnexpectedError } from "../core/errors.ts";
import {
  BlockError,
  createImage,
  type Image,
  inspect,
  MemoryStore,
  openImage,
  streamImage,
} from "../mod.ts";
import { Random } from "./model.ts";
import { contentOf } from "./drivers/qcow2/bytes.ts";
import { patch as patchVhd } from "./drivers/vpc/bytes.ts";
import { patch as patchVhdx, PLACE as VHDX } from "./drivers/vhdx/bytes.ts";

type Bytes = Uint8Array<ArrayBuffer>;

const MIB = 1024 * 1024;
const SIZE = 3 * MIB;
/** Milliseconds that nothing may take. */
const LONGEST = 10_000;
/** Bytes by which memory may grow on the way. */
const MOST_MEMORY = 300 * MIB;
/** Bytes of a page, as they are copied. */
const PAGE = 4096;

/** Create options for the images of each format that are changed. */
const KINDS: { readonly [format: string]: readonly Record<string, unknown>[] } =
  {
    parallels: [{}],
    qcow: [{}],
    qcow2: [{}, { cluster_size: 4096 }, { extended_l2: true }],
    qed: [{}],
    vdi: [{}, { static: true }],
    vhdx: [{ block_size: MIB }, { subformat: "fixed", block_size: MIB }],
    vmdk: [{}, { zeroed_grain: true }, { subformat: "streamOptimized" }],
    vpc: [{}, { subformat: "fixed" }],
  };

/** The formats whose images are changed. */
export const FORMATS: readonly string[] = Object.keys(KINDS);

/** Values that have broken programs before. */
const VALUES = [
  ...[0n, 1n, 2n, 3n, 6n, 7n, 8n, 9n, 127n, 255n, 511n, 512n, 513n, 4096n],
  ...[65536n, 1n << 20n, 0x7fffffffn, 0x80000000n, 0xfffffffen, 0xffffffffn],
  ...[1n << 32n, 1n << 40n, (1n << 53n) - 1n, 1n << 53n, (1n << 56n) - 512n],
  ...[1n << 62n, (1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n],
];

async function samplesOf(format: string): Promise<Bytes[]> {
  const samples: Bytes[] = [];
  for (const options of KINDS[format]) {
    const store = new MemoryStore();
    const file = { driver: "memory", store };
    let bytes: Bytes;
    if (options.subformat === "streamOptimized") {
      const disk = new MemoryStore(SIZE);
      disk.write(100_000, new Uint8Array(200_000).fill(1));
      const raw = { driver: "raw", file: { driver: "memory", store: disk } };
      await using image = await openImage(raw);
      const stream = streamImage(format, image.node, { create: options });
      bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    } else {
      await createImage(format, file, { size: SIZE, ...options });
      await using image = await openImage({ driver: format, file });
      await image.write(100_000, new Uint8Array(2000).fill(1));
      await image.write(image.size - 600, new Uint8Array(500).fill(2));
      await image.flush();
      bytes = contentOf(store);
    }
    samples.push(bytes);
  }
  return samples;
}

/** Pages that are not all zeroes. */
function pagesOf(bytes: Bytes): Set<number> {
  const pages = new Set<number>();
  for (let at = 0; at < bytes.length; at += PAGE) {
    if (bytes.subarray(at, at + PAGE).some(Boolean)) pages.add(at);
  }
  return pages;
}

/** Put a value of a few bytes anywhere, mostly where numbers are. */
function mutate(
  format: string,
  bytes: Bytes,
  pages: Set<number>,
  random: Random,
): string {
  const touch = (start: number, end: number) => {
    for (let at = start - start % PAGE; at < end; at += PAGE) pages.add(at);
  };
  const put = (view: DataView, most: number) => {
    const length = random.pick([1, 2, 4, 8]);
    const at = random.below(Math.max(1, Math.min(most, view.byteLength) - 8));
    const aligned = at - at % length;
    const value = random.below(3) === 0
      ? BigInt(random.below(256))
      : random.pick(VALUES);
    const isLittle = random.below(2) === 0;
    for (let i = 0; i < length; i++) {
      const byte = Number(value >> BigInt(8 * i) & 0xffn);
      view.setUint8(aligned + (isLittle ? i : length - 1 - i), byte);
    }
    return `${aligned} (${length}) = 0x${value.toString(16)}`;
  };
  // What has a checksum gets the right one, or no change would come through.
  if (format === "vhdx" && random.below(2) === 0) {
    let what = "";
    const at = random.pick([VHDX.header, VHDX.otherHeader, VHDX.regions]);
    touch(at, at + 65536);
    patchVhdx(bytes, at, (view) => what = put(view, 96));
    return `${at} + ${what}`;
  }
  if (format === "vpc" && random.below(2) === 0) {
    let what = "";
    const at = random.pick([0, 512, bytes.length - 512]);
    touch(at, at + 1024);
    patchVhd(bytes, at, (view) => what = put(view, 640));
    return `${at} + ${what}`;
  }
  const places = [0, 0, 512, 1536, bytes.length - 1536, bytes.length - 8192];
  if (format === "vhdx") places.push(VHDX.bat, VHDX.metadata, VHDX.items);
  if (format === "qcow2") places.push(65536, 3 * 65536, 4 * 65536, 4 * PAGE);
  if (format === "vmdk") places.push(21 * 512, 65536);
  const start = Math.max(0, Math.min(random.pick(places), bytes.length - 16));
  const part = new DataView(bytes.buffer, start, bytes.length - start);
  touch(start, Math.min(bytes.length, start + 4096));
  return `${start} + ${put(part, random.pick([128, 512, 4096]))}`;
}

/** Whether somebody has thrown it on purpose. */
function isClear(error: unknown): boolean {
  if (error instanceof SuppressedError) {
    return isClear(error.error) && isClear(error.suppressed);
  }
  return error instanceof BlockError && !(error instanceof UnexpectedError) &&
    !(error instanceof AbsentVerbError) && error.message.trim() !== "" &&
    !/\n +at /.test(error.message);
}

async function attempt(act: () => Promise<unknown>): Promise<boolean> {
  try {
    await act();
    return true;
  } catch (error) {
    if (!isClear(error)) throw error;
    return false;
  }
}

/** What is written is there, as long as nothing else is. */
async function writeSomething(image: Image, random: Random): Promise<void> {
  if (image.readOnly || image.size < 4096) return;
  const { corruptions } = await image.check().catch(() => ({ corruptions: 1 }));
  const last = Math.min(image.size, SIZE) - 1024;
  const offset = random.below(last / 512) * 512;
  const bytes = new Uint8Array(512).fill(1 + random.below(255));
  await image.write(offset, bytes);
  const found = await image.read(offset, 512);
  if (corruptions === 0 && found.some((byte) => byte !== bytes[0])) {
    throw new Error(`what was written at ${offset} is not there`);
  }
  await image.flush();
}

async function use(
  format: string,
  store: () => MemoryStore,
  random: Random,
): Promise<void> {
  const options = { gate: "deny", maxChain: 1 } as const;
  await attempt(() => inspect({ driver: "memory", store: store() }));
  for (const readOnly of [true, false]) {
    const stack = {
      driver: format,
      file: { driver: "memory", store: store() },
    };
    await attempt(async () => {
      await using image = await openImage(stack, { ...options, readOnly });
      await attempt(() => image.info());
      await attempt(() => image.read(0, Math.min(image.size, 300_000)));
      await attempt(() => {
        const length = Math.min(image.size, 5000);
        return image.read(image.size - length, length);
      });
      await attempt(async () => {
        let count = 0;
        for await (const _ of image.extents()) if (++count > 200) break;
      });
      if (readOnly) await attempt(() => image.check());
      else await attempt(() => writeSomething(image, random));
    });
  }
}

/**
 * Change images of a format, each in some ways that the seed determines.
 *
 * @returns what was wrong with whose outcome, a line each.
 */
export async function runMutations(
  format: string,
  first: number,
  count: number,
): Promise<string[]> {
  const samples = (await samplesOf(format))
    .map((bytes) => ({ bytes, pages: pagesOf(bytes) }));
  const wrong: string[] = [];
  for (let seed = first; seed < first + count; seed++) {
    const random = new Random(seed);
    const sample = random.pick(samples);
    const bytes = sample.bytes.slice();
    const pages = new Set(sample.pages);
    const steps: string[] = [];
    for (let left = 1 + random.below(3); left > 0; left--) {
      steps.push(mutate(format, bytes, pages, random));
    }
    const size = random.below(12) === 0
      ? random.below(bytes.length + 1)
      : bytes.length;
    if (size < bytes.length) steps.push(`cut to ${size}`);
    const store = () => {
      const copy = new MemoryStore(size);
      for (const at of pages) {
        const end = Math.min(size, at + PAGE);
        if (at < end) copy.write(at, bytes.subarray(at, end));
      }
      return copy;
    };
    const start = performance.now();
    const before = Deno.memoryUsage().rss;
    let problem: string | undefined;
    try {
      await use(format, store, random);
    } catch (error) {
      problem = error instanceof Error ? error.stack : String(error);
    }
    const time = performance.now() - start;
    const memory = Deno.memoryUsage().rss - before;
    if (time > LONGEST) problem ??= `${Math.round(time)} ms`;
    if (memory > MOST_MEMORY) problem ??= `${memory} bytes`;
    if (problem) {
      wrong.push(`${format} ${seed} (${steps.join("; ")}): ${problem}`);
    }
  }
  return wrong;
}

if (import.meta.main) {
  const [format = "all", count = "1000", first = "0"] = Deno.args;
  const formats = format === "all" ? FORMATS : [format];
  let failures = 0;
  for (const name of formats) {
    const wrong = await runMutations(name, Number(first), Number(count));
    for (const line of wrong) console.log(line);
    console.log(`${name}: ${count} changed, ${wrong.length} wrong`);
    failures += wrong.length;
  }
  Deno.exit(failures > 0 ? 1 : 0);
}
