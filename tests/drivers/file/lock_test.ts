import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { openProtocol } from "../../../core/open.ts";
import { ACCESS, ALL_ACCESS } from "../../../core/permissions.ts";
import type { Libc } from "../../../core/platform/libc.ts";
import { openDescriptor } from "../../../core/platform/system_calls.ts";
import { platform } from "../../../core/platform/mod.ts";
import { FileLock } from "../../../drivers/file/lock.ts";
import {
  createImage,
  openImage,
  type OpenOptions,
  type Source,
} from "../../../mod.ts";
import { isLibcAvailable } from "../../platforms.ts";
import { BDRV, mustSkip, run, TempDir } from "../../qemu.ts";

const MIB = 1024 * 1024;
const needed = { others: { "libc": isLibcAvailable() } };

/** A folder with a raw disk, an image, and an overlay of that. */
async function images(): Promise<TempDir> {
  const dir = new TempDir();
  await createImage("raw", dir.file("disk.raw"), { size: MIB });
  await createImage("qcow2", dir.file("base.qcow2"), { size: MIB });
  await createImage("qcow2", dir.file("split.qcow2"), {
    size: MIB,
    data_file: dir.file("data.raw"),
  });
  await createImage("qcow2", dir.file("top.qcow2"), {
    size: MIB,
    backing_file: "base.qcow2",
    backing_fmt: "qcow2",
  });
  return dir;
}

/**
 * The bytes of a file that this process has locked. (The machine's list,
 * /proc/locks, is read in pieces: when others lock and unlock in between,
 * entries are missed.)
 */
function lockedBytes(path: string): number[] {
  const { dev, ino } = Deno.statSync(path);
  const bytes = new Set<number>();
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    const file = statOf(`/proc/self/fd/${name}`);
    if (file?.ino !== ino || file.dev !== dev) continue;
    const described = Deno.readTextFileSync(`/proc/self/fdinfo/${name}`);
    for (const line of described.split("\n")) {
      if (!line.startsWith("lock:")) continue;
      const [start, end] = line.split(/\s+/).slice(-2).map(Number);
      for (let byte = start; byte <= end; byte++) bytes.add(byte);
    }
  }
  return [...bytes].sort((a, b) => a - b);
}

/** What a descriptor refers to; undefined if it is no file, or was closed. */
function statOf(path: string): Deno.FileInfo | undefined {
  try {
    return Deno.statSync(path);
  } catch {
    return undefined;
  }
}

/** As strace shows QEMU 7.2's tools doing it. */
const LOCKS: [string, Source, OpenOptions, number[]][] = [
  ["a raw disk, read", { driver: "raw", file: "disk.raw" }, {
    readOnly: true,
  }, [100]],
  ["a raw disk, described", { driver: "raw", file: "disk.raw" }, {
    purpose: "info",
    readOnly: true,
  }, []],
  ["a raw disk, written", { driver: "raw", file: "disk.raw" }, {}, [100, 101]],
  ["a raw disk, found by probing", "disk.raw", {}, [100, 101]],
  ["a raw disk, resized", { driver: "raw", file: "disk.raw" }, {
    resize: true,
  }, [100, 101, 103]],
  ["a raw disk, converted", { driver: "raw", file: "disk.raw" }, {
    readOnly: true,
    share: false,
  }, [100, 201, 203]],
  ["part of a file", { driver: "raw", offset: 512, file: "disk.raw" }, {}, [
    100,
    101,
    203,
  ]],
  [
    "a raw disk, force-shared",
    {
      driver: "raw",
      file: "disk.raw",
      "force-share": true,
    },
    { readOnly: true, share: false },
    [100],
  ],
  ["an image, read", "base.qcow2", { readOnly: true }, [100, 201, 203]],
  ["an image, described", "base.qcow2", {
    readOnly: true,
    purpose: "info",
  }, [201, 203]],
  ["an image, written", "base.qcow2", {}, [100, 101, 103, 201, 203]],
  ["an image, force-shared", "base.qcow2", {
    readOnly: true,
    forceShare: true,
  }, [100]],
  [
    "a data file, written",
    { driver: "qcow2", "data-file": "data.raw", file: "split.qcow2" },
    {},
    [100, 101, 103, 203],
  ],
  [
    "a data file, read",
    { driver: "qcow2", "data-file": "data.raw", file: "split.qcow2" },
    { readOnly: true },
    [100, 203],
  ],
  ["an image with a data file, written", "split.qcow2", {}, [
    ...[100, 101, 103, 201, 203],
  ]],
  [
    "an image opened without locking",
    {
      driver: "qcow2",
      file: { driver: "file", filename: "base.qcow2", locking: "off" },
    },
    {},
    [],
  ],
  [
    "a filter below an image",
    {
      driver: "qcow2",
      file: { driver: "blkdebug", image: "base.qcow2" },
    },
    {},
    [100, 101, 103, 201, 203],
  ],
  [
    "a filter on an image",
    {
      driver: "copy-on-read",
      file: { driver: "qcow2", file: "base.qcow2" },
    },
    {},
    [100, 101, 102, 103, 201, 203],
  ],
  [
    "a file that grows in large steps",
    {
      driver: "raw",
      file: { driver: "preallocate", file: "disk.raw" },
    },
    { resize: true },
    [100, 101, 103, 201, 203],
  ],
];

/** The same source with its files in a folder. */
function within(dir: TempDir, source: unknown): unknown {
  if (typeof source === "string") {
    return /\.(raw|qcow2)$/.test(source) ? dir.file(source) : source;
  }
  if (typeof source !== "object" || source === null) return source;
  return Object.fromEntries(
    Object.entries(source).map(([name, value]) => [name, within(dir, value)]),
  );
}

Deno.test({
  name: "locks are on QEMU's bytes, for all uses of an image",
  ignore: mustSkip(needed),
  async fn(t) {
    await using dir = await images();
    for (const [name, source, options, expected] of LOCKS) {
      await t.step(name, async () => {
        const path = dir.file(
          JSON.stringify(source).match(/\w+\.(raw|qcow2)/)![0],
        );
        {
          await using _image = await openImage(
            within(dir, source) as Source,
            options,
          );
          assertEquals(lockedBytes(path), expected);
        }
        assertEquals(lockedBytes(path), []);
      });
    }
  },
});

/** The error of opening an image while it is in use. */
const IN_USE: [string, OpenOptions, OpenOptions, string | undefined][] = [
  ["read twice", { readOnly: true }, { readOnly: true }, undefined],
  ["read, then written", { readOnly: true }, {}, 'Failed to get "write" lock'],
  ["written twice", {}, {}, 'Failed to get "write" lock'],
  [
    "written, then read",
    {},
    { readOnly: true },
    'Failed to get shared "write" lock',
  ],
  [
    "written, then described",
    {},
    { readOnly: true, purpose: "info" },
    'Failed to get shared "write" lock',
  ],
  [
    "written, then read with force-share",
    {},
    { readOnly: true, forceShare: true },
    undefined,
  ],
];

Deno.test({
  name: "two parts of one process are kept off each other's images",
  ignore: mustSkip(needed),
  async fn(t) {
    await using dir = await images();
    const path = dir.file("base.qcow2");
    for (const [name, first, second, refusal] of IN_USE) {
      await t.step(name, async () => {
        await using _user = await openImage(path, first);
        if (refusal === undefined) {
          return await (await openImage(path, second)).close();
        }
        const error = await assertRejects(
          () => openImage(path, second),
          BlockError,
        );
        assertEquals(error.code, "EAGAIN");
        assertEquals(error.message, `Could not open '${path}': ${refusal}`);
        assertEquals(
          error.hint,
          `Is another process using the image [${path}]?`,
        );
        // The refused one has released its locks.
        const { readOnly } = first;
        assertEquals(lockedBytes(path).includes(101), !readOnly);
      });
    }
  },
});

Deno.test({
  name: "a chain locks all its images, and names one that is in use",
  ignore: mustSkip(needed),
  async fn() {
    await using dir = await images();
    const [base, top] = [dir.file("base.qcow2"), dir.file("top.qcow2")];
    {
      await using _user = await openImage(base);
      const error = await assertRejects(() => openImage(top), BlockError);
      assertEquals(
        error.message,
        `Could not open '${top}': Could not open backing file: ` +
          'Failed to get shared "write" lock',
      );
      const options = { readOnly: true, forceShare: true };
      await (await openImage(top, options)).close();
    }
    {
      await using _user = await openImage(top);
      assertEquals(lockedBytes(top), [100, 101, 103, 201, 203]);
      assertEquals(lockedBytes(base), [100, 201, 203]);
      await (await openImage(base, { readOnly: true })).close();
      await assertRejects(() => openImage(base), BlockError, '"write" lock');
    }
    // A writable backing file is locked for writing.
    const file = { driver: "qcow2", file: base, "read-only": "off" };
    await using image = await openImage({
      driver: "qcow2",
      file: top,
      backing: file,
    });
    assertEquals(image.node.children.backing?.readOnly, false);
    assertEquals(lockedBytes(base), [100, 101, 103, 201, 203]);
  },
});

Deno.test({
  name: "a resize locks what it needs, and nothing if it is refused",
  ignore: mustSkip(needed),
  async fn() {
    await using dir = await images();
    const path = dir.file("disk.raw");
    const source = { driver: "raw", file: path };
    await using image = await openImage(source);
    {
      await using _part = await openImage({ ...source, offset: 512 });
      await assertRejects(
        () => image.resize(2 * MIB),
        BlockError,
        'Failed to get "resize" lock',
      );
      assertEquals(lockedBytes(path), [100, 101, 203]);
    }
    await image.resize(2 * MIB);
    assertEquals(lockedBytes(path), [100, 101, 103]);
  },
});

Deno.test({
  name: "creating an image does not truncate a file that is in use",
  ignore: mustSkip(needed),
  async fn() {
    await using dir = await images();
    const path = dir.file("base.qcow2");
    const before = await Deno.readFile(path);
    {
      await using _user = await openImage(path, { readOnly: true });
      const error = await assertRejects(
        () => createImage("qcow2", path, { size: MIB }),
        BlockError,
        'Failed to get "write" lock',
      );
      assertEquals(
        error.hint,
        `Is another process using the image [${path}]?`,
      );
    }
    assertEquals(await Deno.readFile(path), before);
    await createImage("raw", path, { size: 5 * 512 });
    assertEquals(Deno.statSync(path).size, 5 * 512);
  },
});

Deno.test("force-share is for readers", async () => {
  await using dir = await images();
  const message = "force-share=on can only be used with read-only images";
  for (const file of ["base.qcow2", "disk.raw"]) {
    const path = dir.file(file);
    for (
      const open of [
        () => openImage(path, { forceShare: true }),
        () => openImage({ filename: path, "force-share": "on" }),
        () => openProtocol({ filename: path, "force-share": true }),
      ]
    ) await assertRejects(open, BlockError, message);
  }
  await assertRejects(
    () => openImage({ filename: dir.file("disk.raw"), "force-share": 5 }),
    BlockError,
    "Parameter 'force-share' expects 'on' or 'off'",
  );
  const file = { filename: dir.file("disk.raw"), locking: "maybe" };
  await assertRejects(
    () => openImage({ driver: "raw", file }),
    BlockError,
    "invalid parameter value: maybe",
  );
});

/** Linux's errors, by number. */
const [ENOENT, EINTR, EIO, EAGAIN, EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP] = //
  [2, 4, 5, 11, 22, 37, 38, 95];
const F_OFD_SETLK = 37;

/**
 * A library whose `fcntl` returns given errors: for locking, and for querying
 * locks.
 */
function lockingLibc(toLock: number[], toAsk: number[] = []): () => Libc {
  const next = (errors: number[]) =>
    -((errors.length > 1 ? errors.shift() : errors[0]) ?? 0);
  const fcntl = (_: number, command: number, flock: Uint8Array) => {
    const isUnlocking = flock[0] === 2;
    if (command === F_OFD_SETLK) return isUnlocking ? 0 : next(toLock);
    flock[0] = 2;
    return next(toAsk);
  };
  return () => ({ fcntl, close: () => 0 }) as unknown as Libc;
}

/** The result of locking with that library, and the warnings to the user. */
function tryLocking(load: () => Libc, locking: "on" | "auto" = "auto") {
  const reasons: string[] = [];
  const unlocked = (why: string) => reasons.push(why);
  const file = { filename: "disk.raw", descriptor: 3, locking, unlocked };
  const lock = new FileLock(file, load);
  const needs = { needs: ACCESS.WRITE, shares: ALL_ACCESS };
  try {
    const isLocked = lock.set(needs);
    assertEquals(lock.set({ ...needs, needs: ALL_ACCESS }), isLocked);
    return { isLocked, reasons };
  } catch (error) {
    assert(error instanceof BlockError, String(error));
    return { error: error.message, reasons };
  }
}

Deno.test("a file system without locks gives one warning", () => {
  for (const errno of [EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP]) {
    const library = () => lockingLibc([errno], [errno]);
    const { isLocked, reasons } = tryLocking(library());
    assertEquals([isLocked, reasons.length], [false, 1]);
    const { error } = tryLocking(library(), "on");
    assertEquals(error, `Failed to lock byte 101: ${reasons[0]}`);
  }
});

Deno.test("a lock that fails for any other reason is an error", () => {
  const cases: [toLock: number[], toAsk: number[]][] = [];
  for (const errno of [ENOENT, EIO, 999]) {
    cases.push([[errno], []], [[errno], [errno]]);
  }
  // Locks can be queried, so they exist; and the other way round.
  cases.push([[ENOLCK], []], [[EINVAL], [EIO]], [[EIO], [ENOLCK]]);
  cases.push([[0], [ENOLCK]], [[0], [EIO]]);
  for (const [toLock, toAsk] of cases) {
    for (const locking of ["auto", "on"] as const) {
      const outcome = tryLocking(lockingLibc([...toLock], toAsk), locking);
      assertMatch(outcome.error ?? "", /^Failed to lock byte \d+: ./);
      assertEquals(outcome.reasons, []);
    }
  }
});

Deno.test("a lock that others hold is not ignored", () => {
  const { error, reasons } = tryLocking(lockingLibc([EAGAIN], [ENOLCK]));
  assertEquals([error, reasons], ["Failed to lock byte 101", []]);
});

Deno.test("a signal does not keep a file from being locked", () => {
  const library = lockingLibc([EINTR, EINTR, 0], [EINTR, 0]);
  assertEquals(tryLocking(library), { isLocked: true, reasons: [] });
});

Deno.test({
  name: "releasing locks takes effect even if the file stays open",
  ignore: mustSkip(needed),
  async fn() {
    await using dir = await images();
    const filename = dir.file("disk.raw");
    const library = platform().libc()!;
    const descriptor = openDescriptor(library, filename, 0);
    const unlocked = () => {};
    const lock = new FileLock({
      filename,
      descriptor,
      locking: "on",
      unlocked,
    });
    lock.set({ needs: ALL_ACCESS, shares: 0 });
    assertEquals(
      lockedBytes(filename),
      [100, 101, 102, 103, 200, 201, 202, 203],
    );
    lock.close();
    assertEquals(lockedBytes(filename), []);
    library.close(descriptor);
  },
});

Deno.test("without FFI there is a warning, but not under QEMU's names", async () => {
  await using dir = await images();
  const bdrv = BDRV.map((word) =>
    word === "--allow-all" ? `--allow-read --allow-write=${dir.path}` : word
  ).join(" ").split(" ");
  const args = ["convert", "-O", "qcow2", dir.file("disk.raw")];
  const target = dir.file("new.qcow2");
  const ours = await run([...bdrv, ...args, target]);
  assertEquals(
    ours.stderr,
    `bdrv: warning: '${target}' cannot be locked: ` +
      "that needs Linux and --allow-ffi\n",
  );
  const standIn = await run([...bdrv, "qemu-img", ...args, target]);
  assertEquals([standIn.stderr, standIn.code, ours.code], ["", 0, 0]);
  // Explicitly requested locks always give a warning; reading alone does not.
  const locking = `driver=raw,file.filename=${dir.file("disk.raw")},` +
    "file.locking=";
  for (const [mode, isTold] of [["on", true], ["auto", false]] as const) {
    const { stderr } = await run([
      ...bdrv,
      "qemu-img",
      "map",
      "--image-opts",
      locking + mode,
    ]);
    assertEquals(stderr.includes("cannot be locked"), isTold);
  }
});
