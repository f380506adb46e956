/**
 * What hostile VHD and VHDX images must not achieve, whatever is done with
 * them.
 */
import { assertEquals } from "@std/assert";
import { Random } from "../qcow2/damage.ts";
import { mistake, OPERATIONS } from "../../hostile.ts";
import { storeOf } from "../qcow2/bytes.ts";
import { patch as patchVhd, PLACE as VHD } from "../vpc/bytes.ts";
import { patch as patchVhdx, PLACE as VHDX } from "./bytes.ts";
import { GOLDEN, goldenBytes } from "./golden.ts";

/** How many images are made; BDRV_HOSTILE_SEEDS sets more. */
const SEEDS = Number(Deno.env.get("BDRV_HOSTILE_SEEDS") ?? "60");
const FIRST = Number(Deno.env.get("BDRV_HOSTILE_FIRST") ?? "0");
/** The time limit of each operation, in milliseconds. */
const LONGEST = 10_000;
/** The limit on the growth of memory in use by its end, in bytes. */
const MOST_MEMORY = 400 * 1024 ** 2;

const USED = [
  "info",
  "map",
  "check",
  "check -r all",
  "read",
  "write",
  "convert",
  "compare",
  "bench",
];

/** Values that have broken programs before. */
const VALUES = [
  ...[0n, 1n, 2n, 3n, 4n, 6n, 7n, 8n, 511n, 512n, 2048n, 4096n, 65536n],
  ...[1n << 20n, 1n << 21n, 1n << 28n, 0x7fffffffn, 0x80000000n, 0xffffffffn],
  ...[1n << 32n, 1n << 40n, (1n << 53n) - 1n, 1n << 53n, 1n << 62n],
  ...[(1n << 63n) - 1n, 1n << 63n, (1n << 64n) - (1n << 20n), (1n << 64n) - 1n],
];

/** A field's offset and length. */
type Field = readonly [at: number, length: number];

/** Fields of the footer, and of the dynamic header. */
const FOOTER: readonly Field[] = [
  ...[[8, 4], [12, 4], [16, 8], [28, 4], [40, 8], [48, 8]] as Field[],
  ...[[56, 2], [58, 1], [59, 1], [60, 4]] as Field[],
];
const DYNAMIC: readonly Field[] = [
  ...[[8, 8], [16, 8], [24, 4], [28, 4], [32, 4]] as Field[],
  ...[[576, 4], [580, 4], [584, 4], [592, 8]] as Field[],
];

/** Fields of the header, the region table, and the metadata. */
const HEADER: readonly Field[] = [[8, 8], [48, 8], [64, 2], [66, 2], [68, 4], [
  72,
  8,
]];
const REGIONS: readonly Field[] = [
  ...[[8, 4], [32, 8], [40, 4], [44, 4], [64, 8], [72, 4], [76, 4]] as Field[],
];
const METADATA: readonly Field[] = [
  ...[[10, 2], [48, 4], [52, 4], [56, 4], [80, 4], [176, 4]] as Field[],
  ...[[65536, 4], [65540, 4], [65544, 8], [65568, 4], [65572, 4]] as Field[],
];

function set(
  view: DataView,
  [at, length]: Field,
  random: Random,
  littleEndian: boolean,
): string {
  const value = random.pick(VALUES);
  for (let i = 0; i < length; i++) {
    const byte = Number(value >> BigInt(8 * i) & 0xffn);
    view.setUint8(at + (littleEndian ? i : length - 1 - i), byte);
  }
  return `${at} = 0x${value.toString(16)}`;
}

function damageVhd(bytes: Uint8Array<ArrayBuffer>, random: Random): string {
  const view = new DataView(bytes.buffer);
  switch (random.below(5)) {
    case 0: {
      let what = "";
      const at = random.pick([VHD.footer, bytes.length - 512]);
      patchVhd(bytes, at, (view) => {
        what = set(view, random.pick(FOOTER), random, false);
      });
      return `footer at ${at}: ${what}`;
    }
    case 1: {
      let what = "";
      patchVhd(bytes, VHD.header, (view) => {
        what = set(view, random.pick(DYNAMIC), random, false);
      });
      return `dynamic header: ${what}`;
    }
    case 2:
      return set(view, [VHD.table + 4 * random.below(4), 4], random, false);
    case 3:
      return set(view, [VHD.table + random.below(2000), 1], random, false);
    default:
      return set(view, [random.below(bytes.length - 8), 8], random, false);
  }
}

function damageVhdx(bytes: Uint8Array<ArrayBuffer>, random: Random): string {
  const view = new DataView(bytes.buffer);
  const patched = (at: number, fields: readonly Field[]) => {
    let what = "";
    patchVhdx(bytes, at, (view) => {
      what = set(view, random.pick(fields), random, true);
    });
    return `${at}: ${what}`;
  };
  const within = (start: number, [at, length]: Field) =>
    set(view, [start + at, length], random, true);
  switch (random.below(7)) {
    case 0:
      return patched(random.pick([VHDX.header, VHDX.otherHeader]), HEADER);
    case 1:
      return patched(VHDX.regions, REGIONS);
    case 2:
      return within(VHDX.metadata, random.pick(METADATA));
    case 3:
      return within(VHDX.bat + 8 * random.below(6), [0, 8]);
    case 4:
      return within(VHDX.bat + 8 * random.below(6), [random.below(8), 1]);
    case 5:
      return within(VHDX.log + 4096 * random.below(8), [random.below(96), 8]);
    default:
      return within(0, [random.below(bytes.length - 8), 8]);
  }
}

for (const driver of ["vpc", "vhdx"]) {
  Deno.test(`on a damaged ${driver} image, each operation succeeds or says why not`, async () => {
    const names = GOLDEN.map(({ name }) => name)
      .filter((name) => name.endsWith(driver));
    const images = await Promise.all(names.map(goldenBytes));
    const found: string[] = [];
    for (let seed = FIRST; seed < FIRST + SEEDS; seed++) {
      const random = new Random(seed);
      let bytes = random.pick(images).slice();
      const steps: string[] = [];
      for (let left = 1 + random.below(3); left > 0; left--) {
        const damage = driver === "vpc" ? damageVhd : damageVhdx;
        steps.push(damage(bytes, random));
      }
      if (random.below(8) === 0) {
        bytes = bytes.slice(0, random.below(bytes.length));
      }
      for (const name of USED) {
        const file = { driver: "memory", store: storeOf(bytes) };
        const start = performance.now();
        const before = Deno.memoryUsage().rss;
        let wrong: string | undefined;
        try {
          const victim = { stack: { driver, file }, options: {} };
          await OPERATIONS[name](victim, new Random(seed));
        } catch (error) {
          wrong = mistake(error);
        }
        const time = performance.now() - start;
        if (time > LONGEST) wrong ??= `${Math.round(time)} ms`;
        const memory = Deno.memoryUsage().rss - before;
        if (memory > MOST_MEMORY) wrong ??= `${memory} bytes`;
        if (wrong) found.push(`${seed} ${name} (${steps}): ${wrong}`);
      }
    }
    assertEquals(found.join("\n"), "");
  });
}
