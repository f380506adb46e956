/** Names that no file can have, or that would mean another file. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError, createImage, openImage } from "../../mod.ts";
import { BDRV, mustSkip, run, TempDir } from "../qemu.ts";
import { besideQemu } from "./beside.ts";

const MIB = 1024 * 1024;

Deno.test("names that are not UTF-8 are refused, and touch no other file", async () => {
  await using dir = new TempDir();
  for (
    const [name, why] of [
      ["a\ufffdb", "The name of the file is not UTF-8"],
      ["a\ud800b", "The name of the file is not UTF-8"],
      ["a\0b", "No such file or directory"],
    ]
  ) {
    const path = dir.file(name);
    for (
      const use of [
        () => createImage("raw", path, { size: MIB }),
        () => createImage("qcow2", path, { size: MIB }),
        () => openImage({ driver: "raw", file: path }),
        () => openImage(path, { readOnly: true }),
      ]
    ) {
      const error = await assertRejects(use, BlockError);
      assert(error.message.endsWith(`': ${why}`), error.message);
    }
  }
  assertEquals([...Deno.readDirSync(dir.path)], []);
});

Deno.test({
  name: "arguments that are not UTF-8 are refused",
  ignore: mustSkip({
    tools: ["bash"],
    others: { "a system like Unix": Deno.build.os !== "windows" },
  }),
  async fn() {
    await using dir = new TempDir();
    await createImage("qcow2", dir.file("disk"), { size: MIB });
    const before = Deno.readFileSync(dir.file("disk"));
    const bdrv = BDRV.map((word) => `'${word}'`).join(" ");
    for (
      const args of [
        "create -f raw BAD 1M",
        "create -f qcow2 -b BAD -F raw new 1M",
        "convert disk BAD",
        "convert -O qcow2 disk BAD",
        "dd if=disk of=BAD",
        "snapshot -c BAD disk",
        "rebase -u -b BAD disk",
        "info BAD",
        "qemu-img create -f raw BAD 1M",
      ]
    ) {
      const line = `${bdrv} ${args.replace("BAD", () => "$'b\\xffd'")}`;
      const { code, stdout, stderr } = await run(["bash", "-c", line], {
        cwd: dir.path,
      });
      assertEquals([code, stdout], [1, ""]);
      const program = args.startsWith("qemu-img") ? "qemu-img" : "bdrv";
      assert(stderr.startsWith(`${program}: The argument '`), stderr);
      assert(stderr.endsWith("b\ufffdd' is not UTF-8\n"), stderr);
    }
    const names = [...Deno.readDirSync(dir.path)].map(({ name }) => name);
    assertEquals(names, ["disk"]);
    assertEquals(Deno.readFileSync(dir.file("disk")), before);
  },
});

Deno.test("a backing file's name that is not UTF-8 is kept as it is", async () => {
  await using dir = new TempDir();
  const path = dir.file("disk");
  const options = { size: MIB, backing_file: "a?b", backing_fmt: "raw" };
  for (const odd of [[0x61, 0xff, 0x62], [0xef, 0xbb, 0xbf]]) {
    await createImage("qcow2", path, options);
    const image = Deno.readFileSync(path);
    const at = new TextDecoder("latin1").decode(image).indexOf("a?b");
    image.set(odd, at);
    Deno.writeFileSync(path, image);
    if (odd[1] === 0xff) {
      await assertRejects(
        () => openImage(path),
        BlockError,
        "The name of the file is not UTF-8",
      );
    }
    {
      await using overlay = await openImage({
        driver: "qcow2",
        file: path,
        backing: null,
      });
      // The header is rewritten.
      await overlay.node.image!.amend!({ compat: "0.10" });
    }
    const written = Deno.readFileSync(path);
    const place = new DataView(written.buffer).getUint32(12);
    assertEquals([...written.subarray(place, place + 3)], odd);
  }
});

besideQemu("an empty name is no file", {
  prepare: async (cwd) => {
    await createImage("qcow2", `${cwd}/disk`, { size: MIB });
  },
  calls: [
    "info ",
    "check ",
    "map ",
    "compare disk ",
    "convert  target",
    "convert disk ",
    "create -f raw  1M",
    "create -f qcow2  1M",
    "resize  1M",
    "rebase -b disk -F qcow2 ",
    "info file:",
    "info --image-opts driver=raw,file.filename=",
    "dd if= of=target",
    "dd if=disk of=",
  ],
});

Deno.test("a name with a line break makes an error of one line", async () => {
  await using dir = new TempDir();
  await createImage("qcow2", dir.file("disk"), { size: MIB });
  for (
    const [args, text] of [
      [["info", "a\nb"], "Could not open 'a\\nb': No such file or directory"],
      [
        ["create", "-q", "-f", "raw", "no/a\nb", "1M"],
        "Could not create 'no/a\\nb': No such file or directory",
      ],
      [
        ["convert", "-O", "qcow2", "-B", "a\nb", "-F", "raw", "disk", "new"],
        "Could not open 'new': Could not open backing file: " +
        "Could not open 'a\\nb': No such file or directory",
      ],
    ] as const
  ) {
    const { code, stderr } = await run([...BDRV, ...args], { cwd: dir.path });
    assertEquals([code, stderr], [1, `bdrv: ${text}\n`]);
  }
  // QEMU prints it verbatim.
  const command = [...BDRV, "qemu-img", "info", "a\nb"];
  const { stderr } = await run(command, { cwd: dir.path });
  const name = "Could not open 'a\nb': ";
  assertEquals(stderr, `qemu-img: ${name}${name}No such file or directory\n`);
});
