/**
 * LUKS combined with everything else that an image may have, made and changed
 * by QEMU and by us in turn. Each must see what the other did.
 *
 * @module
 */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { BDRV, qemuTest, run, TempDir } from "../qemu.ts";

/** How to run each side's programs. */
const QEMU = (tool: string) => [tool];
const OURS = (tool: string) => [...BDRV, tool];
type Side = typeof QEMU;

const SECRETS = [
  ...["--object", "secret,id=s0,data=first"],
  ...["--object", "secret,id=s1,data=second"],
];
const LUKS = "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10";

/** An image in a folder, and a model of its disk as a raw file. */
class Subject {
  readonly #dir: TempDir;

  constructor(dir: TempDir) {
    this.#dir = dir;
  }

  #opened(secret: string): string[] {
    const file = "file.filename=image";
    return [
      "--image-opts",
      `driver=qcow2,encrypt.key-secret=${secret},${file}`,
    ];
  }

  /** Make both; key derivation is at times too fast for QEMU to measure. */
  async create(side: Side, options: string, size: string): Promise<void> {
    const cwd = this.#dir.path;
    const how = ["-f", "qcow2", "-o", `${LUKS}${options}`, "image", size];
    const create = [...side("qemu-img"), "create", "-q", ...SECRETS, ...how];
    for (let left = 40;; left--) {
      const { code, stderr } = await run(create, { cwd });
      if (code === 0) break;
      if (left === 0 || !stderr.includes("accurate CPU usage")) {
        throw new Error(stderr);
      }
    }
    const model = ["qemu-img", "create", "-q", "-f", "raw", "model", size];
    assertEquals((await run(model, { cwd })).code, 0);
  }

  /** Run commands of qemu-io on the image, and on the model. */
  async io(side: Side, ...commands: string[]): Promise<void> {
    const cwd = this.#dir.path;
    const args = commands.flatMap((command) => ["-c", command]);
    const image = [...SECRETS, ...args, ...this.#opened("s0")];
    const ours = await run([...side("qemu-io"), ...image], { cwd });
    assertEquals([ours.code, ours.stderr], [0, ""]);
    await run(["qemu-io", "-f", "raw", ...args, "model"], { cwd });
  }

  /** Run a subcommand of qemu-img on the image. */
  async img(
    side: Side,
    [command, ...options]: readonly string[],
    operands: readonly string[] = [],
    secret = "s0",
  ) {
    const image = [...this.#opened(secret), ...operands];
    return await run(
      [...side("qemu-img"), command, ...SECRETS, ...options, ...image],
      { cwd: this.#dir.path },
    );
  }

  /** Assert that one side sees the content of the model. */
  async compare(side: Side): Promise<void> {
    const model = ["driver=raw,file.filename=model"];
    const { code, stderr } = await this.img(side, ["compare"], model);
    assertEquals([code, stderr], [0, ""]);
  }

  /**
   * Assert that both see a sound image with the content of the model, and the
   * same map.
   */
  async verify(): Promise<void> {
    for (const side of [QEMU, OURS]) {
      await this.compare(side);
      const { code, stdout } = await this.img(side, ["check"]);
      assertStringIncludes(stdout, "No errors were found");
      assertEquals(code, 0);
    }
    for (const command of ["map", "info"]) {
      const json = [command, "--output=json"];
      assertEquals(await this.img(OURS, json), await this.img(QEMU, json));
    }
  }
}

const RAW = ",data_file_raw=on";

const ORDERS: readonly (readonly [string, Side, Side])[] = [
  ["QEMU", QEMU, OURS],
  ["us", OURS, QEMU],
];

for (const [name, first, second] of ORDERS) {
  for (const raw of name === "us" ? ["", RAW] : [""]) {
    qemuTest(
      `LUKS, a data file${
        raw && ", raw"
      }, subclusters and bitmaps, made by ${name}`,
      async () => {
        await using dir = new TempDir();
        const subject = new Subject(dir);
        const options = `,data_file=data${raw},extended_l2=on,cluster_size=16k`;
        await subject.create(first, options, "1M");
        if (raw) await subject.io(first, "write -z 0 1M");
        const add = ["bitmap", "--add", "-g", "4096"];
        assertEquals((await subject.img(first, add, ["one"])).code, 0);
        await subject.io(second, "write -P 1 1000 30000", "write -P 2 500k 3k");
        await subject.compare(first);
        assertEquals((await subject.img(second, add, ["two"])).code, 0);
        await subject.io(
          first,
          "write -z 16k 8k",
          "write -P 3 20k 600",
          "write -z -u 500k 12k",
        );
        await subject.compare(second);
        await subject.io(second, "write -P 4 1020k 4k", "write -z 0 512");
        const merge = ["bitmap", "--merge", "two"];
        assertEquals((await subject.img(second, merge, ["one"])).code, 0);
        await subject.verify();
      },
    );
  }

  qemuTest(
    `LUKS, snapshots, subclusters and bitmaps, made by ${name}`,
    async () => {
      await using dir = new TempDir();
      const subject = new Subject(dir);
      await subject.create(first, ",extended_l2=on,cluster_size=16k", "1M");
      await subject.io(first, "write -P 1 1000 30000");
      const snapshot = async (side: Side, option: string, tag: string) => {
        const { code, stderr } = await subject.img(
          side,
          ["snapshot", option, tag],
        );
        assertEquals([code, stderr], [0, ""], `${option} ${tag}`);
      };
      await snapshot(first, "-c", "one");
      const before = await Deno.readFile(dir.file("model"));
      await subject.io(second, "write -P 2 5k 40k", "write -z 8k 3k");
      await subject.compare(first);
      await snapshot(second, "-c", "two");
      await subject.io(first, "write -P 3 900k 3k", "write -P 4 6k 512");
      await subject.compare(second);
      await snapshot(second, "-a", "one");
      await Deno.writeFile(dir.file("model"), before);
      await subject.compare(first);
      // An added passphrase opens the content of snapshots as well.
      const amend = ["amend", "-o"];
      const options = "encrypt.state=active,encrypt.new-secret=s1";
      for (let left = 40; left > 0; left--) {
        const { code } = await subject.img(
          second,
          [...amend, `${options},encrypt.iter-time=10`],
        );
        if (code === 0) break;
      }
      await snapshot(first, "-d", "two");
      await subject.io(second, "write -P 5 12k 8k");
      await snapshot(first, "-a", "one");
      await snapshot(second, "-d", "one");
      await Deno.writeFile(dir.file("model"), before);
      const add = ["bitmap", "--add", "-g", "512"];
      assertEquals((await subject.img(first, add, ["late"])).code, 0);
      await subject.io(second, "write -P 6 30k 9k");
      await subject.verify();
      const other = await subject.img(first, ["map"], [], "s1");
      assertEquals(other.code, 1);
      assertStringIncludes(other.stderr, "external, encrypted or compressed");
    },
  );
}
