import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { Image } from "../../core/image.ts";
import type { BlockNode } from "../../core/node.ts";
import { openNode } from "../../core/open.ts";
import { breakpointsOf } from "../../core/requests.ts";
import type { StackObject } from "../../core/spec.ts";
import { BlockError, createImage, MemoryStore, openImage } from "../../mod.ts";
import { conformance } from "../conformance.ts";
import { TempDir } from "../qemu.ts";
import { kindOf } from "../extents.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

function memory(store = new MemoryStore(MIB)) {
  return { driver: "memory", store };
}

function blkdebug(options: StackObject = {}): StackObject {
  return { driver: "blkdebug", image: memory(), ...options };
}

async function qcow2Over(options: StackObject): Promise<Image> {
  const image = memory(new MemoryStore());
  await createImage("qcow2", image, { size: MIB });
  const file = blkdebug({ image, ...options });
  return await openImage({ driver: "qcow2", file });
}

const LIMITS: { readonly [what: string]: StackObject } = {
  "without limits": {},
  "with an alignment": { align: 4096 },
  "with small transfers": { align: 512, "max-transfer": 1536 },
  "with all limits": {
    align: 512,
    "max-transfer": 64 * KIB,
    "opt-write-zero": 15 * KIB,
    "max-write-zero": 30 * KIB,
    "opt-discard": 15 * KIB,
    "max-discard": 45 * KIB,
  },
};

for (const [what, limits] of Object.entries(LIMITS)) {
  conformance(`blkdebug, ${what}`, {
    async open(size) {
      const image = memory(new MemoryStore(size));
      const open = () => openNode(blkdebug({ image, ...limits }));
      return { node: await open(), reopen: open };
    },
  });
}

conformance("qcow2 over blkdebug with limits", {
  async open(size) {
    const image = memory(new MemoryStore());
    await createImage("qcow2", image, { size });
    const file = blkdebug({ image, align: 4096, "max-transfer": 8192 });
    const open = () => openNode({ driver: "qcow2", file });
    return { node: await open(), reopen: open };
  },
});

async function fails(
  request: () => Promise<unknown>,
  code = "EIO",
): Promise<void> {
  const error = await assertRejects(request, BlockError);
  assertEquals(error.code, code);
}

const one = new Uint8Array([1]);

Deno.test("blkdebug fails requests from an event on", async () => {
  const disk = await qcow2Over({
    "inject-error": { event: "write_aio", errno: 28 },
  });
  await disk.read(0, 512);
  await fails(() => disk.write(0, one), "ENOSPC");
  await fails(() => disk.write(0, one), "ENOSPC");
  await fails(() => disk.flush(), "ENOSPC");
  await fails(() => disk.close(), "ENOSPC");
});

Deno.test("blkdebug fails a request once", async () => {
  for (const immediately of [true, false]) {
    await using disk = await qcow2Over({
      "inject-error": [{ event: "write_aio", once: "on", immediately }],
    });
    await fails(() => disk.write(0, one));
    await disk.write(0, one);
  }
});

Deno.test("blkdebug with the event none fails from the start", async () => {
  const node = await openNode(blkdebug({
    "inject-error": { event: "none", iotype: "flush" },
  }));
  await node.readv(0, [new Uint8Array(10)]);
  await node.writev!(0, [one]);
  await fails(() => node.flush!());
  await node.close();
});

Deno.test("blkdebug fails requests by their type", async () => {
  const requests: { [type: string]: (node: BlockNode) => Promise<unknown> } = {
    read: (node) => node.readv(0, [new Uint8Array(10)]),
    write: (node) => node.writev!(0, [one]),
    "write-zeroes": (node) => node.writeZeroes!(0, 10),
    discard: (node) => node.discard!(0, 10),
    flush: (node) => node.flush!(),
    "block-status": (node) => node.status(0, 10),
  };
  for (const iotype of [...Object.keys(requests), undefined]) {
    const rule = { event: "none", ...(iotype && { iotype }) };
    const node = await openNode(blkdebug({ "inject-error": [rule] }));
    for (const [type, request] of Object.entries(requests)) {
      const isHit = iotype ? type === iotype : type !== "block-status";
      if (isHit) await fails(() => request(node));
      else await request(node);
    }
    await node.close();
  }
});

Deno.test("blkdebug fails requests that touch a sector", async () => {
  const node = await openNode(blkdebug({
    "inject-error.0.event": "none",
    "inject-error.0.sector": "3",
  }));
  await node.readv(0, [new Uint8Array(1536)]);
  await fails(() => node.readv(0, [new Uint8Array(1537)]));
  await fails(() => node.writev!(1536, [one]));
  await node.writev!(2048, [one]);
  await node.flush!();
  await node.close();
});

Deno.test("blkdebug moves from state to state", async () => {
  await using disk = new Image(
    await openNode({
      driver: "raw",
      file: blkdebug({
        "inject-error": [{ event: "read_aio", state: 42 }],
        "set-state": [
          { event: "write_aio", state: 1, new_state: 2 },
          { event: "write_aio", state: 2, new_state: 42 },
        ],
      }),
    }),
  );
  for (let i = 0; i < 2; i++) {
    await disk.read(0, 512);
    await disk.write(0, one);
  }
  await fails(() => disk.read(0, 512));
});

Deno.test("blkdebug replaces the rules in force at a new event", async () => {
  const node = await openNode(blkdebug({
    "inject-error": [
      { event: "cluster_alloc", errno: 28 },
      { event: "cluster_free", errno: 5 },
      { event: "flush_to_os", errno: 0 },
    ],
  }));
  await node.debug!.event("cluster_alloc");
  await fails(() => node.writev!(0, [one]), "ENOSPC");
  await node.debug!.event("cluster_free");
  await fails(() => node.writev!(0, [one]), "EIO");
  await node.debug!.event("flush_to_os");
  await node.writev!(0, [one]);
  await node.close();
});

Deno.test("blkdebug stops requests at breakpoints", async () => {
  await using disk = await qcow2Over({});
  const breakpoints = breakpointsOf(disk.node)!;
  const lines: string[] = [];
  breakpoints.report = (line) => lines.push(line);
  breakpoints.breakpoint("write_aio", "A");
  breakpoints.breakpoint("write_aio", "B");
  assertEquals(breakpoints.isSuspended("A"), false);
  let done = 0;
  const writes = [0, 300 * KIB].map(async (offset) => {
    await disk.write(offset, one);
    done++;
  });
  await breakpoints.waitSuspended("A");
  await breakpoints.waitSuspended("B");
  await writes[1];
  assertEquals([done, breakpoints.isSuspended("A")], [1, true]);
  breakpoints.resume("A");
  assertEquals(breakpoints.isSuspended("A"), false);
  breakpoints.resume("B");
  await Promise.all(writes);
  assertEquals(lines, [
    "blkdebug: Suspended request 'B'",
    "blkdebug: Suspended request 'A'",
    "blkdebug: Resuming request 'A'",
    "blkdebug: Resuming request 'B'",
  ]);
  assertEquals(
    assertThrows(() => breakpoints.resume("A"), BlockError).code,
    "ENOENT",
  );
});

Deno.test("blkdebug removes breakpoints, and resumes what they stopped", async () => {
  await using disk = await qcow2Over({});
  const breakpoints = breakpointsOf(disk.node)!;
  const unknown = assertThrows(
    () => breakpoints.breakpoint("no_such_event", "A"),
    BlockError,
  );
  assertEquals(unknown.code, "ENOENT");
  assertThrows(() => breakpoints.removeBreakpoint("A"), BlockError);
  breakpoints.breakpoint("write_aio", "A");
  breakpoints.breakpoint("read_aio", "A");
  const write = disk.write(0, one);
  await breakpoints.waitSuspended("A");
  breakpoints.removeBreakpoint("A");
  await write;
  assertEquals(await disk.read(0, 1), one);
  // A breakpoint that was reached is gone, but its request still resumes.
  breakpoints.breakpoint("write_aio", "A");
  const another = disk.write(0, one);
  await breakpoints.waitSuspended("A");
  assertThrows(() => breakpoints.removeBreakpoint("A"), BlockError);
  await another;
});

/** The events that a request to units of 512 bytes passes, in order. */
async function eventsOf(
  request: (node: BlockNode) => Promise<void>,
  limits: StackObject = {},
): Promise<string> {
  const node = await openNode(blkdebug({ align: 512, ...limits }));
  const breakpoints = node.debug!.breakpoints!;
  const steps = ["head", "after_head", "tail", "after_tail"];
  const names = [
    ...steps.map((step) => `pwritev_rmw_${step}`),
    ...["pwritev", "pwritev_zero", "pwritev_done"],
  ];
  for (const name of names) breakpoints.breakpoint(name, name);
  const passed: string[] = [];
  breakpoints.report = (line) => {
    const tag = line.match(/Suspended request '(?:pwritev_)?(.*)'/)?.[1];
    if (tag) passed.push(tag);
  };
  let isDone = false;
  const done = request(node).then(() => isDone = true);
  while (!isDone) {
    for (const name of names) {
      if (breakpoints.isSuspended(name)) breakpoints.resume(name);
    }
    await new Promise((resolve) => setTimeout(resolve));
  }
  await done;
  await node.close();
  return passed.join(" ");
}

const HEAD = "rmw_head rmw_after_head";
const TAIL = "rmw_tail rmw_after_tail";
const BOTH = "rmw_head rmw_tail rmw_after_head rmw_after_tail";

const WRITES: readonly [offset: number, length: number, read: string][] = [
  [0, 512, ""],
  [0, 100, TAIL],
  [412, 100, HEAD],
  [100, 100, BOTH],
  [412, 200, BOTH],
  [100, 924, HEAD],
  [0, 600, TAIL],
  [100, 1024, `${HEAD} ${TAIL}`],
];

for (const [offset, length, read] of WRITES) {
  const what = `${length} bytes at ${offset}`;
  Deno.test(`blkdebug stops at each step of writing ${what}`, async () => {
    assertEquals(
      await eventsOf((node) => node.writev!(offset, [new Uint8Array(length)])),
      `${read} pwritev done`.trim(),
    );
  });
}

Deno.test("blkdebug stops at each step of writing zeroes, but not at each piece", async () => {
  const zero = (offset: number, length: number) => (node: BlockNode) =>
    node.writeZeroes!(offset, length);
  assertEquals(await eventsOf(zero(0, 512)), "zero done");
  assertEquals(await eventsOf(zero(0, 100)), `${TAIL} pwritev done`);
  assertEquals(
    await eventsOf(zero(100, 1500)),
    `${HEAD} ${TAIL} pwritev done zero`,
  );
  const limits = { "max-write-zero": 1024, "opt-write-zero": 1024 };
  assertEquals(await eventsOf(zero(512, 8192), limits), "zero done");
  const write = (node: BlockNode) => node.writev!(0, [new Uint8Array(4096)]);
  assertEquals(await eventsOf(write, { "max-transfer": 512 }), "pwritev done");
});

Deno.test("blkdebug stops a write even behind one that waits for a stopped one", async () => {
  const node = await openNode(blkdebug({ align: 4096 }));
  const breakpoints = node.debug!.breakpoints!;
  const write = (offset: number, length: number, value: number) =>
    node.writev!(offset, [new Uint8Array(length).fill(value)]);
  breakpoints.breakpoint("pwritev_rmw_after_tail", "A");
  const writes = [write(0, 512, 10)];
  await breakpoints.waitSuspended("A");
  writes.push(write(2048, 4096, 11));
  breakpoints.breakpoint("pwritev_rmw_after_head", "B");
  writes.push(write(7680, 512, 12));
  await breakpoints.waitSuspended("B");
  breakpoints.resume("A");
  breakpoints.resume("B");
  await Promise.all(writes);
  const disk = new Uint8Array(8192);
  await node.readv(0, [disk]);
  const expected = new Uint8Array(8192).fill(10, 0, 512).fill(11, 2048, 6144);
  assertEquals(disk, expected.fill(12, 7680, 8192));
  await node.close();
});

Deno.test("blkdebug reads its rules from a file, and parses its file name", async () => {
  await using dir = new TempDir();
  const config = dir.file("blkdebug.conf");
  const image = dir.file("a.qcow2");
  await createImage("qcow2", image, { size: MIB });
  await Deno.writeTextFile(
    config,
    '# fail once\n[inject-error]\nevent = "write_aio"\nerrno="28"\nonce ="on"\n\n' +
      '[set-state]\nevent = "cluster_alloc"\nnew_state = "5"\n',
  );
  const sources = [
    `blkdebug:${config}:${image}`,
    { filename: image, file: { driver: "blkdebug", config } },
    { driver: "qcow2", file: `blkdebug:${config}:${image}` },
    { driver: "qcow2", file: { driver: "blkdebug", config, image } },
  ];
  for (const source of sources) {
    await using disk = await openImage(source);
    assertEquals(disk.format, "qcow2");
    await fails(() => disk.write(0, one), "ENOSPC");
    await disk.write(0, one);
  }
  const readOnly = true;
  await using plain = await openImage(`blkdebug::${image}`, { readOnly });
  assertEquals(await plain.read(0, 1), one);
  await using forced = await openImage(`blkdebug::${image}`, {
    format: "raw",
    readOnly,
  });
  assertEquals(await forced.read(0, 3), new TextEncoder().encode("QFI"));
});

Deno.test("blkdebug can be inserted above a format", async () => {
  await using dir = new TempDir();
  const image = dir.file("a.qcow2");
  await createImage("qcow2", image, { size: MIB });
  const options = { driver: "blkdebug", image: { driver: "qcow2" } };
  await using disk = await openImage({
    ...options,
    align: "4k",
    "max-transfer": "64k",
    filename: `blkdebug::${image}`,
  });
  assertEquals([disk.format, disk.size], ["blkdebug", MIB]);
  await disk.write(1000, new Uint8Array(128 * KIB).fill(33));
  const [first] = await Array.fromAsync(disk.extents());
  assertEquals([first.offset, kindOf(first)], [0, "data"]);
  assertEquals(first.file?.filename, image);
});

Deno.test("blkdebug refuses what makes no sense, in QEMU's words", async () => {
  const cases: [StackObject, string][] = [
    [{ align: 1000 }, "Cannot meet constraints with align 1000"],
    [
      { align: 4096, "max-transfer": 512 },
      "Cannot meet constraints with max-transfer 512",
    ],
    [
      { "opt-write-zero": 4096, "max-write-zero": 6144 },
      "Cannot meet constraints with max-write-zero 6144",
    ],
    [
      { "opt-discard": 4096, "max-discard": 6144 },
      "Cannot meet constraints with max-discard 6144",
    ],
    [{ "inject-error": {} }, "Missing event name for rule"],
    [{ "set-state": [{ event: "x" }] }, "invalid parameter value: x"],
    [
      { "inject-error": { event: "none", iotype: "x" } },
      "invalid parameter value: x",
    ],
    [
      { "inject-error": { event: "none", errno: "x" } },
      "Parameter 'errno' expects a number",
    ],
    [{ "inject-error": { event: "none", bad: 1 } }, "Invalid parameter 'bad'"],
    [
      { "inject-error": [5] },
      "[inject-error] section (index 0) does not consist of keys",
    ],
    [
      { bad: 1 },
      "Block protocol 'blkdebug' doesn't support the option 'bad'",
    ],
    [
      { config: "/does/not/exist" },
      "Could not read blkdebug config file: No such file or directory",
    ],
  ];
  for (const [options, message] of cases) {
    const error = await assertRejects(
      () => openNode(blkdebug(options)),
      BlockError,
    );
    const { detail = "" } = error;
    const said = error.message.replace(/Could not open '.*': /, "");
    assertEquals(said.replace(detail, ""), message);
  }
  const error = await assertRejects(() => openNode("blkdebug:x"), BlockError);
  assertEquals(
    error.message,
    "blkdebug requires both config file and image path",
  );
});

Deno.test("blkdebug splits requests to fit its limits", async () => {
  const log: string[] = [];
  const below = await openNode({ driver: "raw", file: memory() });
  const { readv, writev, writeZeroes, discard } = below;
  below.readv = (offset, iov) => {
    log.push(
      `read ${offset} ${iov.reduce((sum, part) => sum + part.length, 0)}`,
    );
    return readv.call(below, offset, iov);
  };
  below.writev = (offset, iov) => {
    log.push(
      `write ${offset} ${iov.reduce((sum, part) => sum + part.length, 0)}`,
    );
    return writev!.call(below, offset, iov);
  };
  below.writeZeroes = (offset, length, flags) => {
    log.push(`zero ${offset} ${length}`);
    return writeZeroes!.call(below, offset, length, flags);
  };
  below.discard = (offset, length) => {
    log.push(`discard ${offset} ${length}`);
    return discard!.call(below, offset, length);
  };
  const node = await openNode({
    driver: "blkdebug",
    image: below,
    align: 512,
    "max-transfer": 1024,
    "opt-write-zero": 1536,
    "max-write-zero": 3072,
    "opt-discard": 1536,
    "max-discard": 3072,
  });
  const logged = async (request: Promise<void>) => {
    await request;
    return log.splice(0);
  };
  assertEquals(await logged(node.readv(100, [new Uint8Array(2000)])), [
    "read 0 1024",
    "read 1024 1024",
    "read 2048 512",
  ]);
  assertEquals(await logged(node.writev!(100, [new Uint8Array(600)])), [
    "read 0 1024",
    "write 0 1024",
  ]);
  assertEquals(await logged(node.writeZeroes!(1024, 8192)), [
    "write 1024 512",
    "zero 1536 3072",
    "zero 4608 3072",
    "zero 7680 1536",
  ]);
  assertEquals(await logged(node.discard!(1000, 8292)), [
    "discard 1024 512",
    "discard 1536 3072",
    "discard 4608 3072",
    "discard 7680 1536",
  ]);
  await node.close();
});

Deno.test("blkdebug does not interfere when files are described", async () => {
  await using disk = await qcow2Over({});
  await disk.write(0, one);
  const [first] = await Array.fromAsync(disk.extents(0, 10));
  assertEquals(first.file?.driver.name, "blkdebug");
  assert(first.hostOffset! > 0);
});
