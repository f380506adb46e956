/**
 * The order of a copy's clusters: that of the disk, as in qemu-img's images,
 * however many writes are in flight.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { Random } from "../model.ts";
import { BDRV, qemuTest, runOk, TempDir } from "../qemu.ts";

const MIB = 1024 * 1024;

for (
  const options of [
    // Each request of 2 MiB continues in another L2 table.
    "-o cluster_size=4k",
    "-o cluster_size=8k -m 16",
    "-o cluster_size=64k",
    "-o cluster_size=64k -S 0",
    // Some clusters are allocated already, others get freed.
    "-n",
    "-n -m 4",
  ]
) {
  qemuTest(
    `convert ${options} lays clusters out as qemu-img does`,
    async () => {
      await using folder = new TempDir();
      const cwd = folder.path;
      const random = new Random(7);
      {
        using file = Deno.openSync(folder.file("disk"), {
          create: true,
          write: true,
        });
        file.truncateSync(24 * MIB);
        // Data that begins and ends within clusters, and takes many requests.
        file.seekSync(5 * 8192 + 4096, Deno.SeekMode.Start);
        file.writeSync(random.bytes(9 * MIB));
        file.seekSync(12 * MIB + 512 * 1024, Deno.SeekMode.Start);
        file.writeSync(random.bytes(8 * MIB + 4096));
      }
      const maps: string[] = [];
      for (const program of [["qemu-img"], [...BDRV, "qemu-img"]]) {
        await runOk(["qemu-img", "create", "-q", "-f", "qcow2", "a", "24M"], {
          cwd,
        });
        const there = [
          ...["-c", "write 7M 1M"],
          ...[8, 9, 10, 11].flatMap((at) => ["-c", `write -c ${at}M 64k`]),
          ...[14, 15, 16].flatMap((at) => ["-c", `write -c ${at}M 64k`]),
        ];
        await runOk(["qemu-io", ...there, "a"], { cwd });
        const words = `convert ${options} -f raw -O qcow2 disk a`.split(" ");
        await runOk([...program, ...words], { cwd });
        await runOk(["qemu-img", "check", "a"], { cwd });
        await runOk(["qemu-img", "compare", "-f", "raw", "disk", "a"], { cwd });
        maps.push(
          await runOk(["qemu-img", "map", "--output=json", "a"], { cwd }),
        );
      }
      assertEquals(maps[1], maps[0]);
    },
    ["qemu-img", "qemu-io"],
  );
}
