import { assertEquals } from "@std/assert";
import { isEqual } from "../../../core/runtime.ts";
import { type Image, openImage } from "../../../mod.ts";
import { Random, seedsToRun } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";
import { qemuTest, run, TempDir } from "../../qemu.ts";
import { MIB, newImage, stackOf } from "./bytes.ts";

const SIZE = 4 * MIB;

/** What had been flushed, and when. */
interface Flushed {
  readonly moment: number;
  readonly disk: Uint8Array;
}

/** Write at random, flushing after each write or after a few. */
async function writeTo(
  image: Image,
  log: PowerLog,
  random: Random,
): Promise<Flushed[]> {
  const disk = new Uint8Array(SIZE);
  const flushed: Flushed[] = [{ moment: 0, disk: disk.slice() }];
  for (let i = 0; i < 10; i++) {
    const bytes = random.bytes(1 + random.below(3000));
    const offset = random.below(SIZE - bytes.length);
    disk.set(bytes, offset);
    await image.write(offset, bytes);
    await image.flush();
    flushed.push({ moment: log.now, disk: disk.slice() });
  }
  return flushed;
}

/** Assert that each byte is as last flushed, or as to be flushed next. */
function assertHolds(
  found: Uint8Array,
  flushed: readonly Flushed[],
  moment: number,
): void {
  const next = flushed.findIndex((one) => one.moment > moment);
  const before = flushed.at(next < 0 ? -1 : next - 1)!.disk;
  const after = flushed.at(next)!.disk;
  const at = found.findIndex((byte, i) =>
    byte !== before[i] && byte !== after[i]
  );
  if (at >= 0) throw new Error(`cut at ${moment}: byte ${at} is ${found[at]}`);
}

/** Hyper-V's demands on an image: all blocks in the file, each used once. */
async function assertSound(image: Image): Promise<void> {
  const { corruptions } = await image.check();
  assertEquals(corruptions, 0);
  const places = new Set<number>();
  for await (const { hostOffset, length } of image.extents()) {
    if (hostOffset === undefined) continue;
    for (let at = hostOffset; at < hostOffset + length; at += MIB) {
      assertEquals([at % MIB, places.has(at)], [0, false]);
      places.add(at);
    }
  }
}

Deno.test("a power cut at any write leaves a sound image with all flushed data", async () => {
  for (const seed of seedsToRun(2)) {
    const random = new Random(seed);
    const log = new PowerLog(await newImage({ size: SIZE }));
    let flushed: Flushed[];
    {
      await using image = await openImage({ driver: "vhdx", file: log });
      flushed = await writeTo(image, log, random);
    }
    const moments = Array.from({ length: log.now + 1 }, (_, i) => i);
    for (const { moment, file } of log.cuts(moments, random)) {
      await using image = await openImage(stackOf(file));
      await assertSound(image);
      const found = await image.read(0, SIZE);
      assertHolds(found, flushed, moment);
      // The next write does not overwrite anything else.
      const fresh = random.bytes(100);
      const offset = random.below(SIZE - 100);
      await image.write(offset, fresh);
      await image.flush();
      found.set(fresh, offset);
      assertEquals(isEqual(await image.read(0, SIZE), found), true);
    }
  }
});

Deno.test("writes between two flushes may reach the disk in any order", async () => {
  const random = new Random(7);
  const log = new PowerLog(await newImage({ size: SIZE }));
  {
    await using image = await openImage({ driver: "vhdx", file: log });
    await writeTo(image, log, random);
  }
  for (const { what, file } of log.reordered()) {
    try {
      await using image = await openImage(stackOf(file));
      await assertSound(image);
      await image.read(0, SIZE);
    } catch (error) {
      throw new Error(what, { cause: error });
    }
  }
});

Deno.test("a power cut may interrupt the replay of a log, too", async () => {
  const random = new Random(3);
  const log = new PowerLog(await newImage({ size: SIZE }));
  let flushed: Flushed[];
  {
    await using image = await openImage({ driver: "vhdx", file: log });
    flushed = await writeTo(image, log, random);
  }
  let replays = 0;
  for (let moment = 0; moment <= log.now; moment += 2) {
    const file = log.cut(moment, random);
    const again = new PowerLog(file);
    const first = await openImage({ driver: "vhdx", file: again });
    const { corruptionsFixed } = await first.check();
    await first.close();
    if (corruptionsFixed === 0) continue;
    replays++;
    for (const { file } of again.reordered()) {
      await using image = await openImage(stackOf(file));
      await assertSound(image);
      assertHolds(await image.read(0, SIZE), flushed, moment);
    }
  }
  assertEquals(replays > 5, true);
});

qemuTest("QEMU replays the log as we do", async () => {
  await using folder = new TempDir();
  const random = new Random(11);
  const log = new PowerLog(await newImage({ size: SIZE }));
  {
    await using image = await openImage({ driver: "vhdx", file: log });
    await writeTo(image, log, random);
  }
  let replays = 0;
  const name = folder.file("cut.vhdx");
  for (let moment = 0; moment <= log.now && replays < 6; moment += 5) {
    const bytes = log.cut(moment, random);
    await Deno.writeFile(name, bytes);
    const found = await run(["qemu-img", "check", "-r", "all", name]);
    assertEquals([found.code, found.stderr], [0, ""]);
    if (!found.stdout.includes("1 corruptions")) continue;
    replays++;
    await using ours = await openImage(stackOf(bytes));
    await using theirs = await openImage(name, { readOnly: true });
    const [one, other] = [await ours.read(0, SIZE), await theirs.read(0, SIZE)];
    assertEquals(isEqual(one, other), true);
  }
  assertEquals(replays > 0, true);
});
