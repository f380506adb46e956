import { assert, assertEquals, assertRejects } from "@std/assert";
import { createImage } from "../../core/create.ts";
import { BlockError } from "../../core/errors.ts";
import { openImage } from "../../core/image.ts";
import type { BlockNode } from "../../core/node.ts";
import { openProtocol } from "../../core/open.ts";
import { usePlatform } from "../../core/platform/mod.ts";
import { nodePlatform } from "../../core/platform/node.ts";
import { registerDriver } from "../../core/registry.ts";
import { writeZeroes } from "../../core/requests.ts";
import { hostDeviceDriver } from "../../drivers/file/devices.ts";
import { fileDriver } from "../../drivers/file/driver.ts";
import { isLibcAvailable } from "../platforms.ts";
import { rawDriver } from "../../drivers/raw.ts";
import { conformance } from "../conformance.ts";
import { mustSkip } from "../qemu.ts";
import { kindOf } from "../extents.ts";

registerDriver(fileDriver);
registerDriver(hostDeviceDriver);
registerDriver(rawDriver);

const WAYS = isLibcAvailable() ? ["libc", "deno"] : ["deno"];

/** Run a test in a folder of its own, once for each way of doing I/O. */
function eachWay(
  name: string,
  run: (io: string, folder: string) => Promise<void>,
): void {
  for (const io of WAYS) {
    Deno.test(`file, io=${io}: ${name}`, async () => {
      const folder = await Deno.makeTempDir();
      try {
        await run(io, folder);
      } finally {
        await Deno.remove(folder, { recursive: true });
      }
    });
  }
}

const KINDS: { [option: string]: string | boolean }[] = [
  {},
  { aio: "threads" },
  { "cache.direct": true },
];

for (
  const [io, kind] of WAYS.flatMap((io) =>
    KINDS.map((kind) => [io, kind] as const)
  )
) {
  if (io === "deno" && "cache.direct" in kind) continue;
  conformance(`file, io=${io} ${Object.keys(kind)}`, {
    async open(size) {
      const filename = await Deno.makeTempFile();
      await Deno.truncate(filename, size);
      const open = () =>
        openProtocol({ driver: "file", filename, io, ...kind });
      return {
        node: await open(),
        reopen: open,
        dispose: () => Deno.remove(filename),
      };
    },
  });
}

/** Open a file through `node:fs`, as other runtimes do. */
async function openByNode(filename: string): Promise<BlockNode> {
  usePlatform(nodePlatform()!);
  try {
    return await openProtocol({ driver: "file", filename });
  } finally {
    usePlatform();
  }
}

conformance("file by node:fs", {
  async open(size) {
    const filename = await Deno.makeTempFile();
    await Deno.truncate(filename, size);
    const open = () => openByNode(filename);
    return {
      node: await open(),
      reopen: open,
      dispose: () => Deno.remove(filename),
    };
  },
});

async function withNode(
  source: { driver?: string; filename: string; io: string },
  run: (node: BlockNode) => Promise<void>,
): Promise<void> {
  const node = await openProtocol({ driver: "file", ...source });
  try {
    await run(node);
  } finally {
    await node.close();
  }
}

eachWay("says why a file cannot be opened", async (io, folder) => {
  await Deno.writeTextFile(`${folder}/file`, "x");
  await Deno.symlink("loop", `${folder}/loop`);
  const cases: [string, string, string][] = [
    ["missing", "ENOENT", "No such file or directory"],
    ["file/below", "ENOTDIR", "Not a directory"],
    ["loop", "ELOOP", "Too many levels of symbolic links"],
    ["x".repeat(300), "ENAMETOOLONG", "File name too long"],
  ];
  for (const [name, code, text] of cases) {
    const filename = `${folder}/${name}`;
    const error = await assertRejects(
      () =>
        openImage({ driver: "raw", file: { driver: "file", filename, io } }),
      BlockError,
    );
    assertEquals(error.message, `Could not open '${filename}': ${text}`);
    assertEquals(error.code, code);
  }
});

eachWay("refuses a folder", async (io, folder) => {
  for (
    const [readOnly, message] of [
      [true, `'file' driver requires '${folder}' to be a regular file`],
      [false, `Could not open '${folder}': Is a directory`],
    ] as const
  ) {
    const error = await assertRejects(
      () =>
        openProtocol({ driver: "file", filename: folder, io }, { readOnly }),
      BlockError,
      message,
    );
    assertEquals(error.code, "EISDIR");
  }
});

eachWay("does not block on a pipe", async (io, folder) => {
  const filename = `${folder}/pipe`;
  await new Deno.Command("mkfifo", { args: [filename] }).output();
  const error = await assertRejects(
    () => openProtocol({ driver: "file", filename, io }, { readOnly: true }),
    BlockError,
  );
  assertEquals(
    error.message,
    `'file' driver requires '${filename}' to be a regular file`,
  );
});

eachWay("reports a full device", async (io) => {
  const source = { driver: "host_device", filename: "/dev/full", io };
  await withNode(source, async (node) => {
    const error = await assertRejects(
      () => node.writev!(0, [new Uint8Array(512)]),
      BlockError,
    );
    assertEquals(error.code, "ENOSPC");
    assertEquals(error.message, "No space left on device");
    // Requests like these may take another path.
    const writes = [1, 2, 3].map((length) =>
      node.writev!(0, [new Uint8Array(length << 20)], { background: true })
    );
    for (const { status } of await Promise.allSettled(writes)) {
      assertEquals(status, "rejected");
    }
  });
});

eachWay(
  "writes in the background, amid reads",
  async (io, folder) => {
    const filename = `${folder}/large`;
    const piece = 300_001;
    const pieces = Array.from(
      { length: 20 },
      (_, i) => new Uint8Array(piece).fill(i + 1),
    );
    await Deno.writeFile(filename, new Uint8Array(1000).fill(0xff));
    await withNode({ filename, io }, async (node) => {
      const writes = pieces.map((bytes, i) =>
        node.writev!(1000 + i * piece, [bytes], { background: true })
      );
      const head = new Uint8Array(1000);
      await node.readv(0, [head]);
      assert(head.every((byte) => byte === 0xff));
      await Promise.all(writes);
      assertEquals(node.size, 1000 + 20 * piece);
      // The data can be read at once.
      const last = new Uint8Array(piece);
      await node.readv(1000 + 19 * piece, [last]);
      assertEquals(last, pieces[19]);
    });
    const bytes = await Deno.readFile(filename);
    for (const [i, expected] of pieces.entries()) {
      const start = 1000 + i * piece;
      assertEquals(bytes.subarray(start, start + piece), expected);
    }
  },
);

eachWay(
  "can read what is being written in the background past its end",
  async (io, folder) => {
    for (const change of ["writeZeroes", "truncate"] as const) {
      const filename = `${folder}/${change}`;
      await Deno.writeFile(filename, new Uint8Array());
      await withNode({ filename, io }, async (node) => {
        const bytes = new Uint8Array(2 << 20).fill(7);
        const write = node.writev!(4 << 20, [bytes], { background: true });
        // The write makes progress, but has not reported it yet.
        for (const end = performance.now() + 5; performance.now() < end;);
        if (change === "writeZeroes") await writeZeroes(node, 0, 1 << 20);
        else await node.truncate!(8 << 20);
        await write;
        const found = new Uint8Array(2 << 20);
        await node.readv(4 << 20, [found]);
        assertEquals(found, bytes);
        assertEquals(node.size, change === "truncate" ? 8 << 20 : 6 << 20);
      });
    }
  },
);

eachWay("closes once background writes are done", async (io, folder) => {
  const filename = `${folder}/closed`;
  await Deno.writeFile(filename, new Uint8Array());
  const node = await openProtocol({ driver: "file", filename, io });
  const bytes = new Uint8Array(4 << 20).fill(7);
  const write = node.writev!(0, [bytes], { background: true });
  await node.close();
  assertEquals(await Deno.readFile(filename), bytes);
  await write;
});

eachWay(
  "creates files of the right size, and truncates old ones",
  async (io, folder) => {
    const filename = `${folder}/new.raw`;
    const target = { driver: "file", filename, io };
    for (const preallocation of ["off", "falloc", "full"] as const) {
      await Deno.writeFile(filename, new Uint8Array(100_000).fill(1));
      await createImage("raw", target, { size: 70_001, preallocation });
      const bytes = await Deno.readFile(filename);
      assertEquals(bytes.length, 70_144);
      assert(bytes.every((byte) => byte === 0));
      const { blocks } = await Deno.stat(filename);
      const reserved = io === "libc" || preallocation === "full";
      if (preallocation !== "off" && reserved) assert(blocks! * 512 >= 70_144);
    }
  },
);

eachWay("reserves the space that it grows by", async (io, folder) => {
  const filename = `${folder}/disk`;
  await Deno.writeFile(filename, new Uint8Array(5000).fill(1));
  await withNode({ filename, io }, async (node) => {
    await node.truncate!(200_000, { preallocation: "falloc" });
    await node.truncate!(400_000, { preallocation: "full" });
    assertEquals(node.size, 400_000);
    assert((await node.info!()).actualSize! >= 395_000);
    const shrink = await assertRejects(
      () => node.truncate!(10, { preallocation: "full" }),
      BlockError,
      "Cannot use preallocation for shrinking files",
    );
    assertEquals(shrink.code, "ENOTSUP");
    await assertRejects(
      () => node.truncate!(500_000, { preallocation: "metadata" }),
      BlockError,
      "Unsupported preallocation mode: metadata",
    );
  });
  const bytes = await Deno.readFile(filename);
  assert(bytes.every((byte, i) => byte === (i < 5000 ? 1 : 0)));
});

eachWay("works with every cache mode", async (io, folder) => {
  const filename = `${folder}/disk`;
  const file = { driver: "file", filename, io };
  await createImage("raw", file, { size: 65536 });
  const modes = [
    "writeback",
    "writethrough",
    "none",
    "directsync",
    "unsafe",
  ] as const;
  for (const cache of modes) {
    const opening = openImage({ driver: "raw", file }, { cache });
    if (io === "deno" && (cache === "none" || cache === "directsync")) {
      await assertRejects(() => opening, BlockError, "support O_DIRECT");
      continue;
    }
    await using image = await opening;
    await image.write(100, new TextEncoder().encode(cache), { fua: true });
    await image.flush();
    const back = await image.read(100, cache.length);
    assertEquals(new TextDecoder().decode(back), cache);
  }
});

eachWay("does not write through a read-only node", async (io, folder) => {
  const filename = `${folder}/disk`;
  await Deno.writeFile(filename, new Uint8Array(512), { mode: 0o444 });
  await using image = await openImage(
    { driver: "raw", file: { driver: "file", filename, io } },
    { readOnly: true },
  );
  const error = await assertRejects(
    () => image.write(0, new Uint8Array(1)),
    BlockError,
  );
  assertEquals(error.code, "EACCES");
  await assertRejects(
    () => image.node.children.file!.writev!(0, [new Uint8Array(1)]),
    BlockError,
  );
});

eachWay("refuses a name with a zero byte", async (io, folder) => {
  await Deno.writeTextFile(`${folder}/a`, "x");
  await assertRejects(
    () => openProtocol({ driver: "file", filename: `${folder}/a\0b`, io }),
    BlockError,
  );
});

eachWay("takes shared memory", async (io, folder) => {
  const filename = `${folder}/disk`;
  await Deno.writeFile(filename, new Uint8Array(1000).fill(5));
  const shared = new Uint8Array(new SharedArrayBuffer(1000));
  await withNode({ filename, io }, async (node) => {
    await node.readv(0, [shared.subarray(10, 20), shared.subarray(30, 40)]);
    assertEquals(shared.reduce((sum, byte) => sum + byte), 100);
    await node.writev!(0, [shared]);
  });
  assertEquals((await Deno.readFile(filename))[9], 0);
});

Deno.test({
  name: "file, io=libc: finds holes and punches them",
  ignore: mustSkip({ others: { libc: WAYS.includes("libc") } }),
  fn: async () => {
    const filename = await Deno.makeTempFile();
    await withNode({ filename, io: "libc" }, async (node) => {
      await node.writev!(1 << 20, [new Uint8Array(1 << 20).fill(1)]);
      await node.truncate!(4 << 20);
      const kinds = async () => {
        const found: string[] = [];
        for (let at = 0; at < node.size;) {
          const extent = await node.status(at, node.size - at);
          found.push(`${kindOf(extent)} ${extent.length / 1024}`);
          at += extent.length;
        }
        return found.join(", ");
      };
      assertEquals(await kinds(), "zero 1024, data 1024, zero 2048");
      await node.discard!((1 << 20) + 65536, 65536);
      assertEquals(
        await kinds(),
        "zero 1024, data 64, zero 64, data 896, zero 2048",
      );
      await node.writev!((1 << 20) + 65536, [new Uint8Array(65536)]);
      assertEquals(await kinds(), "zero 1024, data 1024, zero 2048");
      await node.writeZeroes!(1 << 20, 1 << 20, { unmap: true });
      assertEquals(await kinds(), "zero 4096");
      assertEquals((await node.info!()).actualSize, 0);
    });
    await Deno.remove(filename);
  },
});

Deno.test("file resolves links to a canonical name", async () => {
  const folder = await Deno.realPath(await Deno.makeTempDir());
  const name = (path: string) => fileDriver.canonicalName!(path);
  await Deno.mkdir(`${folder}/real/sub`, { recursive: true });
  await Deno.writeTextFile(`${folder}/real/file`, "");
  await Deno.symlink("real/sub", `${folder}/link`);
  await Deno.symlink("../outside", `${folder}/real/dangling`);
  await Deno.symlink("circle", `${folder}/circle`);
  const cases: [string, string][] = [
    ["real/file", "real/file"],
    ["./real//sub/../file", "real/file"],
    // `..` applies after the link was followed, as in the system.
    ["link/../file", "real/file"],
    ["link/new", "real/sub/new"],
    ["link/no/such/../folder", "real/sub/no/folder"],
    ["real/dangling", "outside"],
    ["real/dangling/x", "outside/x"],
    ["circle", "circle"],
    ["real/", "real"],
  ];
  for (const [path, expected] of cases) {
    assertEquals(name(`${folder}/${path}`), `${folder}/${expected}`, path);
  }
  assertEquals(name("nowhere"), `${await Deno.realPath(".")}/nowhere`);
  await Deno.remove(folder, { recursive: true });
});

/** Open a file in a process with only these permissions. */
async function openWith(
  permissions: string[],
  filename: string,
  options: { io: string; readOnly?: boolean },
): Promise<string> {
  const module = (path: string) => new URL(`../../${path}`, import.meta.url);
  const script = await Deno.makeTempFile({ suffix: ".ts" });
  await Deno.writeTextFile(
    script,
    `import { registerDriver } from "${module("core/registry.ts")}";
import { openProtocol } from "${module("core/open.ts")}";
import { fileDriver } from "${module("drivers/file/driver.ts")}";
registerDriver(fileDriver);
const { io, readOnly } = ${JSON.stringify(options)};
try {
  const filename = ${JSON.stringify(filename)};
  const node = await openProtocol({ driver: "file", filename, io }, { readOnly });
  const bytes = new Uint8Array(2);
  await node.readv(0, [bytes]);
  console.log("read", bytes.join());
  await node.close();
} catch (error) {
  console.log(error.code, error.message, "|", error.hint);
}
`,
  );
  const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--no-prompt",
      "--quiet",
      "--no-check",
      ...permissions,
      script,
    ],
  }).output();
  await Deno.remove(script);
  return new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
}

const LIBC = `/lib/${Deno.build.arch}-linux-gnu/libc.so.6`;

Deno.test("file respects Deno's permissions, through libc as well", async () => {
  const folder = await Deno.makeTempDir();
  const filename = `${folder}/disk`;
  await Deno.writeFile(filename, new Uint8Array([7, 8]));
  const denied = `EACCES Could not open '${filename}': Permission denied | ` +
    `Requires`;
  for (const io of WAYS) {
    const base = io === "libc" ? [`--allow-ffi=${LIBC}`] : [];
    const readable = [...base, `--allow-read=${folder}`];
    const answers = [
      await openWith(base, filename, { io, readOnly: true }),
      await openWith(readable, filename, { io }),
      await openWith(readable, filename, { io, readOnly: true }),
      await openWith(
        [...readable, `--allow-write=${folder}`],
        filename,
        { io },
      ),
    ];
    assert(answers[0].startsWith(`${denied} read access`), answers[0]);
    assert(answers[1].startsWith(`${denied} write access`), answers[1]);
    assertEquals(answers[2], "read 7,8\n");
    assertEquals(answers[3], "read 7,8\n");
  }
  await Deno.remove(folder, { recursive: true });
});

Deno.test("file does without libc where it may not be called", async () => {
  const filename = await Deno.makeTempFile();
  await Deno.writeFile(filename, new Uint8Array([7, 8]));
  const auto = await openWith(["--allow-read", "--allow-write"], filename, {
    io: "auto",
  });
  assertEquals(auto, "read 7,8\n");
  const libc = await openWith(["--allow-read", "--allow-write"], filename, {
    io: "libc",
  });
  assert(libc.includes("needs Linux and --allow-ffi"), libc);
  await Deno.remove(filename);
});

eachWay("reads zeroes past its end, however far", async (io, folder) => {
  const filename = `${folder}/short`;
  await Deno.writeTextFile(filename, "short");
  const stack = { driver: "file", filename, io };
  await using file = await openImage(stack, { readOnly: true });
  const buffer = new Uint8Array(8).fill(1);
  // No file system allows a file that large.
  await file.node.readv(2 ** 53 - 512, [buffer]);
  assertEquals(buffer, new Uint8Array(8));
});
