/** Images on standard input and standard output. @module */
import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import {
  BDRV,
  FFI,
  type Outcome,
  qemuTest,
  run,
  runOk,
  TempDir,
} from "../qemu.ts";

const MiB = 1024 * 1024;

/** Run a line in the shell, where `$bdrv` is our program. */
function shell(line: string, dir: TempDir): Promise<Outcome> {
  const bdrv = BDRV.map((word) => `'${word}'`).join(" ");
  return run(["bash", "-c", line.replaceAll("$bdrv", bdrv)], { cwd: dir.path });
}

async function shellOk(line: string, dir: TempDir): Promise<Outcome> {
  const outcome = await shell(line, dir);
  if (outcome.code !== 0) throw new Error(`${line}\n${outcome.stderr}`);
  return outcome;
}

/** Data, holes, and zeroes stored as data; it ends within a cluster. */
function makeDisk(path: string, size = 20 * MiB + 1536): void {
  const data = new Uint8Array(3 * MiB + 700);
  for (let at = 0; at < data.length; at += 65536) {
    crypto.getRandomValues(data.subarray(at, at + 65536));
  }
  using file = Deno.openSync(path, { create: true, write: true });
  const write = (bytes: Uint8Array, offset: number) => {
    file.seekSync(offset, Deno.SeekMode.Start);
    file.writeSync(bytes.subarray(0, size - offset));
  };
  file.truncateSync(size);
  write(data, 5000);
  write(new Uint8Array(MiB), 1024 * Math.floor(size / 3072));
  write(data, 1024 * Math.floor(size / 2048));
  write(data, size - 1000);
}

Deno.test("a pipe with another format in it is refused before anything is written", async () => {
  await using dir = new TempDir();
  const write = (at: number, magic: string) => {
    const bytes = new Uint8Array(MiB);
    bytes.set(new TextEncoder().encode(magic), at);
    Deno.writeFileSync(dir.file("image"), bytes);
  };
  const convert = (options = "") =>
    shell(`cat image | $bdrv convert ${options} -O raw - out`, dir);
  const cases = [[0, "QED\0", "qed"], [MiB - 512, "koly", "dmg"]] as const;
  for (const [at, magic, format] of cases) {
    write(at, magic);
    const { code, stderr } = await convert();
    assertEquals(code, 1);
    assertStringIncludes(stderr, `'${format}'`);
    await assertRejects(() => Deno.stat(dir.file("out")), Deno.errors.NotFound);
    assertEquals((await convert("-f raw")).code, 0);
    await Deno.remove(dir.file("out"));
  }
  write(MiB - 512, "conectix");
  const { code, stderr } = await convert();
  assertEquals(code, 0);
  assertStringIncludes(stderr, "VHD");
});

/** QEMU's verdict on an image that must equal a raw one. */
async function examine(image: string, raw: string, dir: TempDir) {
  const cwd = { cwd: dir.path };
  assertStringIncludes(
    await runOk(["qemu-img", "check", image], cwd),
    "No errors were found on the image.",
  );
  const formats = ["-f", "raw", "-F", "qcow2"];
  await runOk(["qemu-img", "compare", ...formats, raw, image], cwd);
}

for (
  const options of [
    "",
    "-o cluster_size=512",
    "-o cluster_size=2M,refcount_bits=1",
    "-o compat=0.10",
    "-o refcount_bits=64,lazy_refcounts=on,compression_type=zstd",
    "-S 0",
    "-r 100M --salvage -m 3 -W",
  ]
) {
  qemuTest(
    `convert to standard output makes a good qcow2 image ${options}`,
    async () => {
      await using dir = await new TempDir();
      makeDisk(dir.file("disk"));
      const convert = `$bdrv convert -f raw -O qcow2 ${options} disk -`;
      const { stderr } = await shellOk(`${convert} | cat > image`, dir);
      assertEquals(stderr, "");
      await examine("image", "disk", dir);
    },
  );
}

qemuTest(
  "convert to standard output stores only what differs from the backing file",
  async () => {
    for (const compat of ["0.10", "1.1"]) {
      await using dir = await new TempDir();
      makeDisk(dir.file("disk"));
      await shellOk(
        "qemu-img convert -f raw -O qcow2 disk base && " +
          "qemu-img create -q -f qcow2 -b base -F qcow2 -o cluster_size=4k top " +
          "&& qemu-io -c 'write -P 7 30000 1000' -c 'write -z 9M 1M' " +
          "-c 'write -P 8 12M 1M' -c 'write -z 128k 4k' top",
        dir,
      );
      const options = `-B base -F qcow2 -o compat=${compat}`;
      await shellOk(
        `$bdrv convert -O qcow2 ${options} top - | cat > image`,
        dir,
      );
      const compare = await shell(
        "qemu-img check image && qemu-img compare top image",
        dir,
      );
      assertStringIncludes(compare.stdout, "No errors were found");
      assertStringIncludes(compare.stdout, "Images are identical.");
      const { size } = await Deno.stat(dir.file("image"));
      assert(size < (compat === "1.1" ? 2 : 3) * MiB);
    }
  },
);

qemuTest(
  "convert to standard output concatenates several images",
  async () => {
    await using dir = await new TempDir();
    makeDisk(dir.file("a"));
    makeDisk(dir.file("b"), 3 * MiB);
    await shellOk("cat a b > both", dir);
    await shellOk("$bdrv convert -f raw -O qcow2 a b - | cat > image", dir);
    await examine("image", "both", dir);
  },
);

qemuTest("convert to standard output takes empty disks", async () => {
  await using dir = await new TempDir();
  await shellOk("> empty; truncate -s 1T holes", dir);
  for (const source of ["empty", "holes"]) {
    await shellOk(
      `$bdrv convert -f raw -O qcow2 ${source} - | cat > image`,
      dir,
    );
    await examine("image", source, dir);
  }
}, { tools: ["qemu-img"], privileges: FFI });

qemuTest("a large image goes through a pipe in little memory", async () => {
  await using dir = await new TempDir();
  await shellOk("head -c 200M /dev/urandom > disk; truncate -s 1G disk", dir);
  const { stderr } = await shellOk(
    "/usr/bin/time -f %M $bdrv convert -f raw -O qcow2 disk - | cat > image",
    dir,
  );
  assert(Number(stderr) < 100 * 1024, `${stderr} KiB`);
  await examine("image", "disk", dir);
}, ["qemu-img", "/usr/bin/time"]);

Deno.test("convert to standard output writes raw data", async () => {
  await using dir = await new TempDir();
  makeDisk(dir.file("disk"));
  await shellOk("$bdrv convert -f raw -O qcow2 disk image", dir);
  await shellOk("$bdrv convert -p image - 2>said | cmp - disk", dir);
  assertStringIncludes(
    await Deno.readTextFile(dir.file("said")),
    "(100.00/100%)\r\n",
  );
});

for (
  const options of [
    "",
    "-O qcow2",
    "-O qcow2 -o cluster_size=512",
    "-O qcow2 -o cluster_size=2M",
    "-O qcow2 -c",
    "-O qcow2 -S 0",
    "-O qcow2 -r 100M",
    "-O qcow2 -B base -F qcow2",
  ]
) {
  qemuTest(`convert from a pipe stores what arrives ${options}`, async () => {
    await using dir = await new TempDir();
    makeDisk(dir.file("disk"));
    await shellOk("qemu-img create -q -f qcow2 base 64M", dir);
    await shellOk("qemu-io -c 'write -P 9 0 64M' base", dir);
    await shellOk(`cat disk | $bdrv convert ${options} - image`, dir);
    if (options.includes("qcow2")) await examine("image", "disk", dir);
    else await shellOk("cmp image disk", dir);
    const { blocks } = await Deno.stat(dir.file("image"));
    const isSmall = blocks! * 512 < 12 * MiB;
    assertEquals(isSmall, !/-S 0|2M/.test(options), `${blocks} blocks`);
  });
}

qemuTest("convert from a pipe into an existing image", async () => {
  await using dir = await new TempDir();
  makeDisk(dir.file("disk"));
  await shellOk(
    "qemu-img create -q -f qcow2 image 21M; qemu-io -c 'write -P 9 0 21M' image",
    dir,
  );
  await shellOk("cat disk | $bdrv convert -n -O qcow2 - image", dir);
  await shellOk(
    "$bdrv convert image whole; cmp -n $(stat -c %s disk) disk whole",
    dir,
  );
  await shellOk("qemu-img create -q -f qcow2 image 1M", dir);
  const { code, stderr } = await shell(
    "cat disk | $bdrv convert -n -O qcow2 - image",
    dir,
  );
  assertEquals(code, 1);
  assertStringIncludes(
    stderr,
    "bdrv: output file is smaller than input file\n",
  );
});

Deno.test("convert from a pipe rounds up to whole sectors", async () => {
  await using dir = await new TempDir();
  for (const [text, size] of [["", 0], ["abc", 512]] as const) {
    await shellOk(`printf '${text}' | $bdrv convert -O qcow2 - image`, dir);
    const info = await shellOk("$bdrv info --output=json image", dir);
    assertEquals(JSON.parse(info.stdout)["virtual-size"], size);
  }
});

Deno.test("convert reads a file on standard input like any other", async () => {
  await using dir = await new TempDir();
  makeDisk(dir.file("disk"));
  await shellOk("$bdrv convert -f raw -O qcow2 disk image", dir);
  await shellOk("$bdrv convert - copy < image && cmp copy disk", dir);
  await shellOk("$bdrv convert -O qcow2 - - < image | cat > again", dir);
  await shellOk("$bdrv convert again copy && cmp copy disk", dir);
  // If part of it has been read already, the image begins there.
  await shellOk(
    "{ head -c 512 > /dev/null; $bdrv convert -f raw - rest; } < disk",
    dir,
  );
  await shellOk("tail -c +513 disk | cmp - rest", dir);
});

const REFUSED: readonly [line: string, message: string][] = [
  [
    "cat image | $bdrv convert - out",
    "Cannot read an image of format 'qcow2' from a pipe, only raw data\nUse -f raw to copy its bytes as they are.",
  ],
  [
    "cat image | $bdrv convert -f qcow2 - out",
    "Cannot read an image of format 'qcow2' from a pipe, only raw data\nUse -f raw to copy its bytes as they are.",
  ],
  [
    "cat disk | $bdrv convert -O qcow2 - -",
    "Cannot convert a pipe to standard output: the source has to be read twice, first to determine its content",
  ],
  [
    "cat disk | $bdrv convert disk - out",
    "Images cannot be concatenated with standard input",
  ],
  [
    "cat disk | $bdrv convert -l x - out",
    "-l cannot be used with standard input",
  ],
  [
    "cat disk | $bdrv convert --salvage - out",
    "--salvage cannot be used with standard input",
  ],
  [
    "cat disk | $bdrv convert -O qcow2 -o preallocation=full - out",
    "Preallocation needs a size that is known before",
  ],
  [
    "$bdrv convert -c -O qcow2 disk -",
    "-c cannot be used with standard output",
  ],
  [
    "$bdrv convert -n -O qcow2 disk -",
    "-n cannot be used with standard output",
  ],
  [
    "$bdrv convert -O qcow2 -o preallocation=metadata disk -",
    "Preallocation is not possible in a stream",
  ],
  [
    "$bdrv convert -O qcow2 -o cluster_size=3k disk -",
    "Cluster size must be a power of two between 512 and 2048k",
  ],
  [
    "$bdrv convert -O qcow2 disk - > /dev/full",
    "Cannot write to standard output: No space left on device",
  ],
  [
    "$bdrv convert -O qcow2 disk - | head -c 1; exit ${PIPESTATUS[0]}",
    "Cannot write to standard output: Broken pipe",
  ],
  [
    "$bdrv convert - out < .",
    "Cannot read from standard input: Is a directory",
  ],
];

Deno.test("convert says what pipes cannot do", async (t) => {
  await using dir = await new TempDir();
  makeDisk(dir.file("disk"));
  await shellOk("$bdrv convert -f raw -O qcow2 disk image", dir);
  for (const [line, message] of REFUSED) {
    await t.step(line, async () => {
      const { code, stderr } = await shell(line, dir);
      assertEquals(code, 1);
      assertEquals(stderr, `bdrv: ${message}\n`);
      const out = await Deno.stat(dir.file("out")).catch(() => undefined);
      assertEquals(out, undefined, "nothing is left");
    });
  }
});

Deno.test("a file named - is reached by another spelling", async () => {
  await using dir = await new TempDir();
  makeDisk(dir.file("disk"), MiB);
  await shellOk("$bdrv convert -f raw disk ./- && cmp disk ./-", dir);
  await shellOk("$bdrv convert -f raw ./- copy && cmp disk copy", dir);
});
