/** LUKS, tested against QEMU's tools and cryptsetup. @module */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { BDRV, type Outcome, qemuTest, run, runOk, TempDir } from "../qemu.ts";

const QEMU = ["qemu-img"];
const OURS = [...BDRV, "qemu-img"];
const SECRETS = [
  ...["--object", "secret,id=s0,data=first"],
  ...["--object", "secret,id=s1,data=second"],
];

/** Run a subcommand of `qemu-img`, with secrets. */
function image(
  tool: readonly string[],
  [command, ...args]: readonly string[],
  cwd: string,
): Promise<Outcome> {
  return run([...tool, command, ...SECRETS, ...args], { cwd });
}

/** Retry: key derivation is at times too fast for QEMU to measure. */
async function untilMeasured(attempt: () => Promise<Outcome>): Promise<void> {
  for (let left = 40;; left--) {
    const { code, stderr } = await attempt();
    if (code === 0) return;
    if (left > 0 && stderr.includes("accurate CPU usage")) continue;
    throw new Error(stderr);
  }
}

/** How to open an image, in the form of `--image-opts`. */
function opened(driver: "luks" | "qcow2", name: string, secret = "s0") {
  const prefix = driver === "qcow2" ? "encrypt." : "";
  return [
    "--image-opts",
    `driver=${driver},${prefix}key-secret=${secret},file.filename=${name}`,
  ];
}

async function sourceIn(dir: TempDir): Promise<void> {
  const bytes = new Uint8Array(300_032);
  for (let i = 0; i < bytes.length; i++) bytes[i] = (i * 31 + (i >> 9)) & 0xff;
  bytes.fill(0, 70_000, 150_000);
  await Deno.writeFile(dir.file("source"), bytes);
}

const same = async (tool: readonly string[], how: string[], cwd: string) => {
  const [first, description] = how;
  const pair = [first, description, "driver=raw,file.filename=source"];
  const { code, stderr } = await image(tool, ["compare", ...pair], cwd);
  assertEquals([code, stderr], [0, ""], `${tool.at(-1)} ${description}`);
};

const ALGORITHMS = [
  "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256",
  "cipher-alg=aes-192,cipher-mode=xts,ivgen-alg=plain,hash-alg=sha1",
  "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,hash-alg=sha512",
  "cipher-alg=aes-256,cipher-mode=ctr,ivgen-alg=plain64,hash-alg=ripemd160",
];

for (const driver of ["luks", "qcow2"] as const) {
  // LUKS has the same ciphers in both drivers.
  const some = driver === "luks" ? ALGORITHMS : ALGORITHMS.slice(0, 1);
  for (const algorithms of some) {
    qemuTest(
      `${driver}: QEMU and we read each other's images, ${algorithms}`,
      async () => {
        await using dir = new TempDir();
        const cwd = dir.path;
        await sourceIn(dir);
        const plain = `${algorithms},key-secret=s0,iter-time=10`;
        const options = driver === "luks"
          ? plain
          : `encrypt.format=luks,encrypt.${plain.replaceAll(",", ",encrypt.")}`;
        const to = ["convert", "-f", "raw", "-O", driver, "-o", options];
        await untilMeasured(() =>
          image(QEMU, [...to, "source", "theirs"], cwd)
        );
        await untilMeasured(() => image(OURS, [...to, "source", "ours"], cwd));
        await same(OURS, opened(driver, "theirs"), cwd);
        await same(QEMU, opened(driver, "ours"), cwd);
        for (const format of ["human", "json"]) {
          const info = ["info", "-f", driver, `--output=${format}`, "theirs"];
          assertEquals(
            await image(OURS, info, cwd),
            await image(QEMU, info, cwd),
          );
        }
        if (driver === "luks") return;
        for (const tool of [QEMU, OURS]) {
          const check = ["check", ...opened(driver, "ours")];
          const { code, stdout } = await image(tool, check, cwd);
          assertStringIncludes(stdout, "No errors were found");
          assertEquals(code, 0);
        }
      },
    );
  }

  qemuTest(
    `${driver}: QEMU and we change each other's passphrases`,
    async () => {
      await using dir = new TempDir();
      const cwd = dir.path;
      const prefix = driver === "luks" ? "" : "encrypt.";
      const make = (driver === "luks" ? "" : "encrypt.format=luks,") +
        `${prefix}key-secret=s0,${prefix}iter-time=10`;
      const amend = (
        tool: readonly string[],
        secret: string,
        options: readonly string[],
        force: string[] = [],
      ) =>
        image(tool, [
          "amend",
          ...force,
          "-o",
          options.map((option) => prefix + option).join(","),
          ...opened(driver, "x", secret),
        ], cwd);
      const opens = async (tool: readonly string[], secret: string) => {
        const map = ["map", "--output=json", ...opened(driver, "x", secret)];
        return (await image(tool, map, cwd)).code === 0;
      };
      const create = ["create", "-q", "-f", driver, "-o", make, "x", "1M"];
      await untilMeasured(() => image(QEMU, create, cwd));
      const add = ["state=active", "new-secret=s1", "iter-time=10"];
      await untilMeasured(() => amend(OURS, "s0", add));
      assertEquals(await opens(QEMU, "s1"), true);
      await untilMeasured(() => amend(QEMU, "s1", [...add, "keyslot=5"]));
      // Both passphrases.
      await untilMeasured(() =>
        amend(OURS, "s0", ["state=inactive", "old-secret=s1"])
      );
      assertEquals(await opens(QEMU, "s1"), false);
      assertEquals(await opens(QEMU, "s0"), true);
      const refused = [
        ["keyslot=3"],
        ["state=foo"],
        ["state=active"],
        ["state=active", "new-secret=s1", "keyslot=8"],
        ["state=active", "new-secret=s1", "keyslot=-1"],
        ["state=active", "new-secret=s1", "keyslot=010"],
        // Our message has the option's whole name.
        ...(driver === "luks"
          ? [["state=active", "new-secret=s1", `keyslot=${2n ** 63n}`]]
          : []),
        ["state=active", "new-secret=s1", `keyslot=${2n ** 64n}`],
        ["state=active", "new-secret=s1", "keyslot=0"],
        ["state=active", "new-secret=zz"],
        ["state=inactive"],
        ["state=inactive", "keyslot=0"],
        ["state=inactive", "keyslot=0", "old-secret=s1"],
        ["state=inactive", "keyslot=2"],
        ["state=inactive", "old-secret=s0"],
        ["state=inactive", "old-secret=s1"],
        ["state=inactive", "iter-time=5"],
      ];
      for (const options of refused) {
        const ours = await amend(OURS, "s0", options);
        assertEquals(ours, await amend(QEMU, "s0", options), options.join());
      }
      const last = ["state=inactive", "keyslot=0"];
      assertEquals((await amend(OURS, "s0", last, ["--force"])).code, 0);
      assertEquals(await opens(QEMU, "s0"), false);
    },
  );
}

qemuTest(
  "luks: create and measure refuse the same as QEMU",
  async () => {
    await using dir = new TempDir();
    const cwd = dir.path;
    const commands = [
      "create -f luks x 1M",
      "create -f luks -o key-secret=zz x 1M",
      "create -f luks -o key-secret=s0,cipher-alg=3des x 1M",
      "create -f luks -o key-secret=s0,cipher-alg=foo x 1M",
      "create -f luks -o key-secret=s0,hash-alg=foo x 1M",
      "create -f luks -o key-secret=s0,ivgen-alg=essiv,ivgen-hash-alg=sha1 x 1M",
      "create -f luks -o key-secret=s0,iter-time=x x 1M",
      "create -f luks -o key-secret=s0,foo=1 x 1M",
      "create -f luks -o key-secret=s0 x",
      "create -f qcow2 -o encrypt.format=luks x 1M",
      "create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=zz x 1M",
      "create -f qcow2 -o encrypt.format=foo,encrypt.key-secret=s0 x 1M",
      "create -f qcow2 -o encrypt.iter-time=10 x 1M",
      "create -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s0,encrypt.cipher-alg=aes-128 x 1M",
      "measure -O luks --size 1M",
      "measure -O luks -o key-secret=zz --size 1M",
      "measure -O luks -o key-secret=s0,cipher-alg=foo --size 1M",
      "measure -O qcow2 -o encrypt.format=luks --size 1M",
    ];
    for (const command of commands) {
      const args = command.split(" ");
      assertEquals(
        await image(OURS, args, cwd),
        await image(QEMU, args, cwd),
        command,
      );
    }
  },
);

qemuTest("luks: cryptsetup and we open each other's images", async () => {
  await using dir = new TempDir();
  const cwd = dir.path;
  const options = "key-secret=s0,iter-time=10";
  const create = ["create", "-q", "-f", "luks", "-o", options, "ours", "1M"];
  assertEquals((await image(OURS, create, cwd)).code, 0);
  const dump = await runOk(["cryptsetup", "luksDump", "ours"], { cwd });
  assertStringIncludes(dump, "xts-plain64");
  assertStringIncludes(dump, "Key Slot 0: ENABLED");
  assertStringIncludes(dump, "Key Slot 1: DISABLED");
  const tried = (stdin: string) => {
    const test = ["cryptsetup", "open", "--test-passphrase", "-d", "-", "ours"];
    return run(test, { cwd, stdin });
  };
  assertEquals((await tried("first")).code, 0);
  assertEquals((await tried("second")).code, 2);
  // Each sees what the other does to the slots.
  const addKey = ["cryptsetup", "luksAddKey", "-q", "-d", "first.txt"];
  await Deno.writeTextFile(dir.file("first.txt"), "first");
  await Deno.writeTextFile(dir.file("second.txt"), "second");
  const quickly = ["--pbkdf-force-iterations", "1000"];
  await runOk([...addKey, ...quickly, "ours", "second.txt"], { cwd });
  const opens = async (secret: string) => {
    const map = ["map", "--output=json", ...opened("luks", "ours", secret)];
    return (await image(OURS, map, cwd)).code === 0;
  };
  assertEquals(await opens("s1"), true);
  const amend = (options: string) =>
    image(
      OURS,
      ["amend", "-o", options, ...opened("luks", "ours", "s1")],
      cwd,
    );
  assertEquals((await amend("state=inactive,old-secret=s0")).code, 0);
  assertEquals((await tried("first")).code, 2);
  assertEquals((await tried("second")).code, 0);
  const again = "state=active,new-secret=s0,keyslot=6,iter-time=10";
  assertEquals((await amend(again)).code, 0);
  const after = await runOk(["cryptsetup", "luksDump", "ours"], { cwd });
  const enabled = after.match(/Key Slot \d: ENABLED/g);
  assertEquals(enabled, ["Key Slot 1: ENABLED", "Key Slot 6: ENABLED"]);
  const { stdout } = await image(OURS, ["info", "ours"], cwd);
  const field = (text: string, name: RegExp) => name.exec(text)?.[1];
  assertEquals(
    field(after, /UUID:\s+(\S+)/),
    field(stdout, /uuid: (\S+)/),
  );
  assertEquals(
    Number(field(after, /Payload offset:\s*(\d+)/)) * 512,
    Number(field(stdout, /payload offset: (\d+)/)),
  );
  assertEquals(
    field(after, /MK iterations:\s+(\d+)/),
    field(stdout, /master key iters: (\d+)/),
  );
  await runOk(["cryptsetup", "luksKillSlot", "-q", "ours", "1"], { cwd });
  assertEquals(await opens("s1"), false);
  assertEquals(await opens("s0"), true);
  // QEMU cannot open the second one: its key area is not a whole number of
  // sectors.
  for (
    const [cipher, bits] of [["xts-plain64", 512], ["cbc-essiv:sha256", 192]]
  ) {
    await Deno.writeFile(dir.file("theirs"), new Uint8Array(4 << 20));
    const format = ["luksFormat", "--type", "luks1", "-q", "-d", "-"];
    const how = ["--pbkdf-force-iterations", "1000", "--cipher"];
    const key = [`aes-${cipher}`, "-s", String(bits)];
    await run(["cryptsetup", ...format, ...how, ...key, "theirs"], {
      cwd,
      stdin: "first",
    });
    const { code, stderr } = await image(
      OURS,
      ["map", "--output=json", ...opened("luks", "theirs")],
      cwd,
    );
    assertEquals([code, stderr], [0, ""], cipher as string);
  }
}, ["cryptsetup"]);
