/**
 * The power fails while an image is flushed and written to at the same time. A
 * flush need not make durable what is written meanwhile; but then nothing may
 * refer to it.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { wrapNode } from "../../core/filter.ts";
import type { BlockNode } from "../../core/node.ts";
import { isEqual } from "../../core/runtime.ts";
import {
  BlockError,
  type Image,
  openImage,
  type StackObject,
} from "../../mod.ts";
import { type Effect, Random } from "../model.ts";
import { PowerLog } from "../power_log.ts";
import { newImage, stackOf } from "./format_tests.ts";
import { contentOf, storeOf } from "./qcow2/bytes.ts";

const MIB = 1024 * 1024;

/** Bytes of the disk and of its units, and what else the image is made with. */
interface Kind {
  readonly driver: string;
  readonly unit: number;
  readonly options?: Record<string, unknown>;
  /** Whether it can lie over a backing file. */
  readonly hasBacking?: boolean;
  /** Whether whole units are written, each once. */
  readonly isStream?: boolean;
  /** Whether they are written compressed. */
  readonly isCompressed?: boolean;
  /** Most calls of a request at which something else is done. Default: 9. */
  readonly calls?: number;
}

const KINDS: readonly Kind[] = [
  { driver: "parallels", unit: 4096, options: { cluster_size: 4096 } },
  { driver: "qcow", unit: 4096, hasBacking: true },
  {
    driver: "qcow2",
    unit: 4096,
    options: { cluster_size: 4096 },
    hasBacking: true,
  },
  {
    driver: "qed",
    unit: 4096,
    options: { cluster_size: 4096, table_size: 1 },
    hasBacking: true,
  },
  ...["qcow", "qcow2"].map((driver) => ({
    driver,
    unit: 4096,
    options: driver === "qcow2" ? { cluster_size: 4096 } : {},
    isCompressed: true,
    hasBacking: true,
  })),
  { driver: "vdi", unit: MIB, calls: 3 },
  { driver: "vhdx", unit: MIB, options: { block_size: MIB }, calls: 2 },
  { driver: "vmdk", unit: 65536, hasBacking: true },
  {
    driver: "vmdk",
    unit: 65536,
    options: { subformat: "streamOptimized" },
    isStream: true,
  },
  { driver: "vpc", unit: 2 * MIB, options: { force_size: true }, calls: 2 },
];

/** Calls of a file, by the moment at which something else is done. */
type Moment = { readonly verbs: readonly string[]; readonly after: boolean };

const MOMENTS: readonly Moment[] = [
  { verbs: ["flush"], after: false },
  { verbs: ["flush"], after: true },
  { verbs: ["writev", "truncate"], after: false },
  { verbs: ["writev", "truncate"], after: true },
];

for (const kind of KINDS) {
  for (const isOverlay of kind.hasBacking ? [false, true] : [false]) {
    const where = isOverlay ? " over another" : "";
    const what = kind.isStream ? " stream" : kind.isCompressed ? " -c" : "";
    const name = `${kind.driver}${what}${where}`;
    Deno.test(`${name}: nothing refers to what a write beside a flush has not stored`, async () => {
      let tried = 0;
      for (const moment of MOMENTS) {
        for (let call = 1; call <= (kind.calls ?? 9); call++) {
          const subject = new Subject(kind, isOverlay);
          if (!await subject.run(moment, call)) break;
          tried++;
          await subject.cut(`call ${call} of ${moment.verbs}`);
        }
      }
      assert(tried > 5, `${tried} moments`);
    });
  }
}

class Subject {
  readonly #kind: Kind;
  readonly #random = new Random(1);
  readonly #link: StackObject | false;
  readonly #before: Uint8Array<ArrayBuffer>;
  readonly #effects: Effect[] = [];
  #log!: PowerLog;

  constructor(kind: Kind, isOverlay: boolean) {
    this.#kind = kind;
    const size = 4 * kind.unit;
    const start = isOverlay ? this.#random.bytes(size) : new Uint8Array(size);
    this.#before = start;
    const below = { driver: "memory", store: storeOf(start.slice()) };
    this.#link = isOverlay && { backing: { driver: "raw", file: below } };
  }

  /**
   * Change something, and flush; at a call that this makes, write elsewhere and
   * flush as well.
   *
   * @returns whether there was such a call.
   */
  async run({ verbs, after }: Moment, call: number): Promise<boolean> {
    const { driver, unit, options, isStream } = this.#kind;
    const size = 4 * unit;
    const fresh = storeOf(await newImage(driver, { size, ...options }));
    {
      // So that tables exist.
      const file = { driver: "memory", store: fresh };
      await using image = await openImage({ driver, file, ...this.#link });
      const bytes = this.#random.bytes(isStream ? unit : Math.min(unit, 9000));
      await image.write(0, bytes);
      this.#before.set(bytes);
    }
    this.#log = new PowerLog(contentOf(fresh));
    let isReached = false;
    let isArmed = false;
    let beside: Promise<unknown> = Promise.resolve();
    let left = call;
    const file = hooked(this.#log, verbs, after, async () => {
      if (!isArmed || --left > 0) return;
      isArmed = false;
      isReached = true;
      const writing = this.#change(image, 2).then(() => image.flush());
      beside = Promise.all([image.flush(), writing]);
      // As far as it gets: it may have to wait for what waits for it here.
      await Promise.race([beside, ticks(2000)]);
    });
    await using image = await openImage({ driver, file, ...this.#link });
    isArmed = true;
    await this.#change(image, 1);
    await image.flush();
    isArmed = false;
    await beside;
    await this.#change(image, 3);
    return isReached;
  }

  /** Write to the middle of a unit, or to all of it. */
  async #change(image: Image, index: number): Promise<void> {
    const { unit, isStream, isCompressed } = this.#kind;
    if (isStream || isCompressed) {
      const bytes = this.#random.dullBytes(unit);
      this.#effects.push({ offset: index * unit, bytes });
      if (isStream) await image.write(index * unit, bytes);
      else await image.writeCompressed(index * unit, bytes);
      return;
    }
    const bytes = this.#random.bytes(Math.min(unit / 2, 9000));
    const offset = index * unit + unit / 4;
    this.#effects.push({ offset, bytes });
    await image.write(offset, bytes);
  }

  /** Each byte is old or new. */
  #checkContent(found: Uint8Array): void {
    for (let start = 0; start < found.length; start += 4096) {
      const old = this.#before.subarray(start, start + 4096);
      const now = found.subarray(start, start + 4096);
      if (isEqual(now, old)) continue;
      const wrong = now.findIndex((byte, at) =>
        byte !== old[at] &&
        !this.#effects.some(({ offset, bytes }) =>
          bytes[start + at - offset] === byte
        )
      );
      assertEquals(wrong, -1, `byte ${start + wrong} is neither old nor new`);
    }
  }

  async cut(when: string): Promise<void> {
    for (const { what, file } of this.#log.reordered()) {
      try {
        await this.#examine(file);
      } catch (error) {
        throw new Error(`${when}: ${what}: ${error}`, { cause: error });
      }
    }
  }

  async #examine(file: Uint8Array): Promise<void> {
    const { driver, isStream } = this.#kind;
    const stack = { ...stackOf(driver, file), ...this.#link };
    await checkTables(stack);
    if (driver === "parallels") {
      // It can be written to only once it was repaired.
      await using image = await openImage(stack, { purpose: "check" });
      await image.check({ repair: { leaks: true, corruptions: true } });
    }
    await using image = await openImage(stack);
    const found = await image.read(0, this.#before.length);
    this.#checkContent(found);
    if (isStream) return;
    // What is written next takes nobody's place.
    const fresh = this.#random.bytes(100);
    const offset = this.#random.below(found.length - 100);
    await image.write(offset, fresh);
    await image.flush();
    found.set(fresh, offset);
    assertEquals(isEqual(await image.read(0, found.length), found), true);
  }
}

/** The tables refer to space of the file, each part of it once. */
async function checkTables(stack: StackObject): Promise<void> {
  const how = { purpose: "check", readOnly: true } as const;
  const lines: string[] = [];
  try {
    await using image = await openImage(stack, how);
    await image.check({ report: (line) => lines.push(line) });
  } catch (error) {
    // VHD has nothing to check; a log of VHDX must be replayed first.
    if (error instanceof BlockError && /ENOTSUP|EPERM/.test(error.code)) return;
    throw error;
  }
  assertEquals(lines.filter((line) => !isHarmless(line)), []);
}

/** Whether a line is about space that is lost, or about the missing close. */
function isHarmless(line: string): boolean {
  // The header of a VDI image may count blocks that no entry has yet.
  const counts = /allocated blocks mismatch, is (\d+), should be (\d+)/
    .exec(line);
  if (counts) return Number(counts[1]) < Number(counts[2]);
  return /leaked|closed/i.test(line);
}

/** A file with something done before or after each call of some verbs. */
function hooked(
  file: BlockNode,
  verbs: readonly string[],
  after: boolean,
  act: () => Promise<void>,
): BlockNode {
  const around = (verb: string, call: () => Promise<void>) => async () => {
    const isMeant = verbs.includes(verb);
    if (isMeant && !after) await act();
    await call();
    if (isMeant && after) await act();
  };
  return wrapNode(file, {
    writev: (...args) => around("writev", () => file.writev!(...args))(),
    truncate: (...args) => around("truncate", () => file.truncate!(...args))(),
    flush: (...args) => around("flush", () => file.flush!(...args))(),
  });
}

async function ticks(count: number): Promise<void> {
  while (count-- > 0) await null;
}
