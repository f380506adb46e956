/** What flushes, and writes with FUA, guarantee for each format. @module */
import { assertEquals } from "@std/assert";
import { isEqual } from "../../core/runtime.ts";
import { openNode } from "../../core/open.ts";
import { createImage, MemoryStore, openImage } from "../../mod.ts";
import { PowerLog } from "../power_log.ts";
import { contentOf, storeOf } from "./qcow2/bytes.ts";

const SIZE = 4 * 1024 * 1024;
const secrets = () => "sesame";

const KINDS: readonly [driver: string, options?: Record<string, unknown>][] = [
  ["qcow2"],
  ["parallels"],
  ["qcow"],
  ["qed"],
  ["luks", { "key-secret": "s", "iter-time": 0 }],
  ["vdi"],
  ["vdi", { static: true }],
  ["vhdx"],
  ["vhdx", { subformat: "fixed" }],
  ["vmdk"],
  ["vmdk", { zeroed_grain: true }],
  ["vmdk", { subformat: "streamOptimized" }],
  ["vpc"],
  ["vpc", { subformat: "fixed" }],
];

for (const [driver, options = {}] of KINDS) {
  const key = driver === "luks" ? { "key-secret": "s" } : {};
  const kind = [driver, ...Object.entries(options).flat()].join(" ");
  Deno.test(`${kind}: what was flushed, or written with FUA, is durable`, async () => {
    const store = new MemoryStore();
    const created = { driver: "memory", store };
    await createImage(driver, created, { size: SIZE, ...options }, { secrets });
    const log = new PowerLog(contentOf(store));
    const node = await openNode({ driver, file: log, ...key }, { secrets });
    const disk = new Uint8Array(SIZE);
    // Where data is encrypted, unwritten ranges may read as anything.
    await node.readv(0, [disk]);
    const fua = { fua: true };
    const stream = options.subformat === "streamOptimized";
    const steps: [offset: number, byte: number, flags?: { fua: boolean }][] = [
      [0, 1, fua],
      [1_000_000, 2],
      [1_000_000, 3, fua],
      [SIZE - 65536, 4],
    ];
    for (const [at, byte, flags] of steps) {
      // Streams take whole grains, each written once.
      if (stream && byte === 2) continue;
      const offset = stream ? at - at % 65536 : at;
      const bytes = new Uint8Array(65536).fill(byte);
      await node.writev!(offset, [bytes], flags);
      disk.set(bytes, offset);
      if (!flags) await node.flush!();
      await assertDurable();
    }
    if (node.writeZeroes && !stream) {
      await node.writeZeroes(0, 65536, fua);
      disk.fill(0, 0, 65536);
      await assertDurable();
    }
    await node.close();

    async function assertDurable() {
      const file = { driver: "memory", store: storeOf(log.durable) };
      await using image = await openImage(
        { driver, file, ...key },
        // After a crash, the image has to be repaired before it can be changed.
        { secrets, readOnly: driver === "parallels" },
      );
      assertEquals(isEqual(await image.read(0, SIZE), disk), true);
    }
  });
}
