/**
 * Devices, compared with QEMU: two equal ones, one for each program, are used
 * in the same ways by the same names; output, exit code and content must be
 * equal.
 */
import { assertEquals } from "@std/assert";
import { LoopDevice, loopTest } from "../loop.ts";
import { BDRV, run, runOk, TempDir } from "../qemu.ts";

const SIZE = 8 * 1024 * 1024;

/**
 * Calls by format, on the devices `a`, with text, and `b`, with zeroes, and on
 * some files.
 */
const SCRIPTS: { [name: string]: string[][] } = {
  raw: [
    ["qemu-img", "info", "a"],
    ["qemu-img", "info", "--output=json", "a"],
    ["qemu-img", "info", "--output=json", "-f", "host_device", "a"],
    ["qemu-img", "info", "--output=json", "host_cdrom:a"],
    [
      ...["qemu-img", "info", "--output=json", "--image-opts"],
      "driver=raw,offset=512,file.filename=a",
    ],
    ["qemu-img", "info", "file:a"],
    ["qemu-img", "info", "host_device:plain"],
    ["qemu-img", "map", "--output=json", "a"],
    ["qemu-img", "measure", "-O", "qcow2", "a"],
    ["qemu-img", "convert", "-O", "qcow2", "a", "copy.qcow2"],
    ["qemu-img", "compare", "a", "copy.qcow2"],
    ["qemu-img", "dd", "if=a", "of=part", "bs=1000", "count=5"],
    [
      ..."qemu-io -f raw -c".split(" "),
      "write -P 1 1001 7",
      ...["-c", "write -z 1M 1M", "-c", "write -z -u 100 200000"],
      ...["-c", "write -z -n 2M 1M", "-c", "write -z -u -n 2M 1M"],
      ...["-c", "discard 4M 1M", "-c", "write 8M 512", "-c", "map"],
      ...["-c", "truncate 9M", "-c", "read -P 1 1001 7", "a"],
    ],
    ["qemu-img", "resize", "-f", "raw", "a", "16M"],
    ["qemu-img", "resize", "-f", "raw", "--shrink", "a", "4M"],
    ["qemu-img", "convert", "-f", "raw", "-O", "raw", "text", "a"],
    ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "text", "b"],
    ["qemu-img", "dd", "-f", "raw", "if=text", "of=b", "bs=1000", "count=3"],
    ["qemu-img", "create", "-f", "raw", "b", "16M"],
    ["qemu-img", "convert", "-f", "raw", "-O", "raw", "large", "b"],
  ],
  qcow2: [
    [..."qemu-img create -q -f qcow2 -o preallocation=full a 6M".split(" ")],
    ["qemu-img", "create", "-q", "-f", "qcow2", "a", "16M"],
    [
      ...["qemu-io", "-c", "write -P 1 0 1M", "-c", "write -P 2 1000001 3"],
      ...["-c", "discard 64k 64k", "-c", "read -P 0 2M 1M", "a"],
    ],
    ["qemu-img", "check", "a"],
    ["qemu-img", "map", "--output=json", "a"],
    ["qemu-img", "snapshot", "-c", "s", "a"],
    ["qemu-img", "snapshot", "-a", "s", "a"],
    ["qemu-img", "resize", "a", "32M"],
    ["qemu-img", "resize", "--shrink", "a", "4M"],
    ["qemu-img", "snapshot", "-d", "s", "a"],
    [..."qemu-img create -q -f qcow2 -b a -F qcow2 overlay".split(" ")],
    ["qemu-io", "-c", "write -P 7 128k 64k", "overlay"],
    ["qemu-img", "map", "overlay"],
    ["qemu-img", "commit", "overlay"],
    ["qemu-img", "check", "a"],
    ["qemu-img", "convert", "-c", "-O", "qcow2", "a", "b"],
    ["qemu-img", "compare", "a", "b"],
    ["qemu-img", "resize", "a", "16M"],
    ["qemu-io", "-c", "write 0 9M", "a"],
    ["qemu-img", "rebase", "-b", "", "overlay"],
    ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "b", "b"],
  ],
  "VHD and QED": [
    ["qemu-img", "create", "-f", "vpc", "a", "5M"],
    ["qemu-io", "-c", "write -P 1 1M 300k", "-c", "write -P 2 3M 9k", "a"],
    ["qemu-io", "-c", "read -P 1 1M 300k", "-c", "read -P 2 3M 9k", "a"],
    ["qemu-img", "map", "a"],
    ["qemu-img", "convert", "-O", "raw", "a", "copy"],
    ["qemu-img", "create", "-f", "qed", "b", "2M"],
  ],
};

for (const sectorSize of [512, 4096]) {
  for (const [format, calls] of Object.entries(SCRIPTS)) {
    loopTest(
      `${format} on sectors of ${sectorSize} bytes works as with QEMU`,
      async (t) => {
        await using dir = new TempDir();
        using ours = new Side(dir.file("ours"), sectorSize);
        using theirs = new Side(dir.file("theirs"), sectorSize);
        for (const [program, ...args] of calls) {
          await t.step(`${program} ${args.join(" ")}`, async () => {
            const expected = await theirs.run([program, ...args]);
            const actual = await ours.run([...BDRV, program, ...args]);
            assertEquals(actual, expected);
          });
        }
        assertEquals(ours.sizes, [SIZE, SIZE]);
        for (const device of ["a", "b"]) {
          const mine = `${ours.path}/${device}`;
          if (format === "raw") {
            await runOk(["cmp", mine, `${theirs.path}/${device}`]);
          } else if (format === "qcow2") {
            await runOk(["qemu-img", "check", mine]);
          }
        }
      },
      ["qemu-img", "qemu-io"],
    );
  }
}

/** A folder with links to two devices of its own, and some files. */
class Side implements Disposable {
  readonly path: string;
  readonly #devices: LoopDevice[] = [];

  constructor(path: string, sectorSize: number) {
    this.path = path;
    Deno.mkdirSync(path);
    const text = new Uint8Array(SIZE);
    for (let at = 0; at < SIZE; at++) text[at] = 97 + (at >> 9) * 7 % 23;
    for (const name of ["a", "b"]) {
      Deno.writeFileSync(`${path}/${name}.disk`, text);
      const device = new LoopDevice(`${path}/${name}.disk`, sectorSize);
      this.#devices.push(device);
      Deno.symlinkSync(device.path, `${path}/${name}`);
      text.fill(0);
    }
    Deno.writeTextFileSync(`${path}/text`, "text\n".repeat(300_000));
    Deno.writeTextFileSync(`${path}/plain`, "plain");
    Deno.writeTextFileSync(`${path}/large`, "");
    Deno.truncateSync(`${path}/large`, SIZE + 512);
  }

  get sizes(): number[] {
    return this.#devices.map(({ size }) => size);
  }

  /** A call's output, without what may differ. */
  async run(command: string[]): Promise<unknown> {
    const { code, stdout, stderr } = await run(command, { cwd: this.path });
    // Clusters may be reused in another order.
    const comparable = stdout.replace(/ ops; .*/g, " ops")
      .replace(/Image end offset: .*/, "");
    return { code, stdout: comparable, stderr };
  }

  [Symbol.dispose](): void {
    for (const device of this.#devices) device[Symbol.dispose]();
  }
}
