/**
 * Damaged tables, one entry at a time: all uses of the image must print the
 * same as QEMU's tools, exit with the same code, and leave the same state.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
/** Offsets of entries. */
const OFFSET = 0x00fffffffffffe00n;

/** What an image's header and first tables say about the others. */
interface Places {
  bytes: Uint8Array;
  l1: number;
  l2: number;
  table: number;
  block: number;
}

function placesOf(bytes: Uint8Array): Places {
  const view = new DataView(bytes.buffer);
  const at = (offset: number) => Number(view.getBigUint64(offset) & OFFSET);
  const [l1, table] = [at(40), at(48)];
  return { bytes, l1, table, l2: at(l1), block: at(table) };
}

/** A change of one 64-bit entry. */
interface Damage {
  at: number;
  entry: bigint;
}

/** Damage by name. The disk's clusters 0, 1 and 5 to 7 are data. */
const DAMAGES: {
  readonly [name: string]: (places: Places) => Damage;
} = {
  "data over the L1 table": ({ l1, l2 }) => ({
    at: l2,
    entry: COPIED | BigInt(l1),
  }),
  "data over a refcount block": ({ l2, block }) => ({
    at: l2,
    entry: COPIED | BigInt(block),
  }),
  "data that is not aligned": ({ l2 }) => ({
    at: l2,
    entry: COPIED | 0x80200n,
  }),
  "shared data that is not aligned": ({ l2 }) => ({ at: l2, entry: 0x80200n }),
  "a preallocated zero cluster that is not aligned": ({ l2 }) => ({
    at: l2,
    entry: COPIED | 0x80201n,
  }),
  "data past the end of the file": ({ l2 }) => ({
    at: l2,
    entry: COPIED | 0x10000000n,
  }),
  "data whose COPIED flag is missing": ({ bytes, l2 }) => ({
    at: l2,
    entry: new DataView(bytes.buffer).getBigUint64(l2) & ~COPIED,
  }),
  "an L2 table that is not aligned": ({ l1, l2 }) => ({
    at: l1,
    entry: COPIED | BigInt(l2 + 512),
  }),
  "an L2 table past the end of the file": ({ l1 }) => ({
    at: l1,
    entry: COPIED | 0x10000000n,
  }),
  "an L2 table over the refcount table": ({ l1, table }) => ({
    at: l1,
    entry: COPIED | BigInt(table),
  }),
  "no refcount block": ({ table }) => ({ at: table, entry: 0n }),
  "refcounts of zero for the first clusters": ({ block }) => ({
    at: block,
    entry: 0n,
  }),
  "a compressed cluster that claims more sectors": ({ bytes, l2 }) => ({
    at: l2 + 24,
    entry: new DataView(bytes.buffer).getBigUint64(l2 + 24) | (255n << 54n),
  }),
  "a compressed cluster over the L2 table": ({ l2 }) => ({
    at: l2 + 24,
    entry: COMPRESSED | BigInt(l2),
  }),
};

/** Commands of `qemu-io`, after each `;`, or arguments of `qemu-img`. */
const CALLS = [
  "io; write -P 17 0 64k; read 0 64k; read 192k 64k",
  "io; write -P 17 3k 2k; write -P 17 193k 2k; read 0 1M",
  "io; write -z 0 64k; write -P 17 700k 64k",
  "io; write -z 1k 1k; read 0 64k",
  "io; discard 0 64k; discard 192k 64k; flush",
  "io; write -c 0 64k; write -c 704k 64k",
  "img snapshot -c new",
  "img resize -q 2M",
  "img amend -o compat=0.10",
  "img amend -o refcount_bits=64",
];

/**
 * Cases in which QEMU does further damage, with the calls that are not
 * compared.
 */
const LEFT_OUT: { readonly [call: string]: readonly string[] } = {
  // Freeing a refcount block loses the refcounts in it.
  "io; discard 0 64k; discard 192k 64k; flush": [
    "data over a refcount block",
    "an L2 table over the refcount table",
    "a compressed cluster over the L2 table", // QEMU fails an assertion.
  ],
  // Clusters with a refcount of zero may be overwritten, although the snapshot
  // shares them.
  "img snapshot -c new": [
    "data past the end of the file",
    "an L2 table past the end of the file",
  ],
  // Where zero clusters are removed, COPIED flags are mended as well.
  "img amend -o compat=0.10": ["data whose COPIED flag is missing"],
  "img amend -o refcount_bits=64": [
    "no refcount block", // QEMU crashes.
    "refcounts of zero for the first clusters", // QEMU reports it twice.
  ],
};

function command(call: string): string[] {
  const [first, ...rest] = call.split("; ");
  const [tool, ...args] = first.split(" ");
  const commands = rest.flatMap((line) => ["-c", line]);
  return [`qemu-${tool}`, ...args, ...commands, "image"];
}

/** Drop timings. */
function comparable(text: string): string {
  return text.replaceAll(/^.* ops; .*$/gm, "…");
}

function readHead(path: string): Uint8Array {
  using file = Deno.openSync(path);
  const head = new Uint8Array(104);
  file.readSync(head);
  return head;
}

async function outcome(program: readonly string[], cwd: string) {
  const { code, stdout, stderr } = await run(program, { cwd });
  // Incompatible features: dirty, corrupt.
  const marks = readHead(`${cwd}/image`)[79];
  const after = await run(["qemu-img", "check", "image"], { cwd });
  return {
    code,
    stdout: comparable(stdout),
    stderr: comparable(stderr),
    marks,
    after,
  };
}

async function makeImage(folder: string): Promise<Uint8Array<ArrayBuffer>> {
  const cwd = folder;
  await runOk(["qemu-img", "create", "-q", "-f", "qcow2", "image", "1M"], {
    cwd,
  });
  const commands = [
    "write -P 1 0 64k",
    "write -P 2 64k 64k",
    "write -z 128k 64k",
    "write -c -P 3 192k 64k",
    "write -P 5 320k 192k",
  ];
  for (const line of commands) {
    await runOk(["qemu-io", "-c", line, "image"], { cwd });
  }
  return await Deno.readFile(`${cwd}/image`);
}

qemuTest("damaged entries are handled as by QEMU", async (t) => {
  await using dir = new TempDir();
  const bytes = await makeImage(dir.path);
  const places = placesOf(bytes);
  for (const [name, damageOf] of Object.entries(DAMAGES)) {
    const { at, entry } = damageOf(places);
    const damaged = bytes.slice();
    new DataView(damaged.buffer).setBigUint64(at, entry);
    await t.step(name, async () => {
      // In parallel: starting our command line takes longest.
      const compareOne = async (call: string, i: number) => {
        const [ours, theirs] = [dir.file(`ours${i}`), dir.file(`theirs${i}`)];
        for (const folder of [ours, theirs]) {
          await Deno.mkdir(folder, { recursive: true });
          await Deno.writeFile(`${folder}/image`, damaged);
        }
        const words = command(call);
        const expected = await outcome(words, theirs);
        const actual = await outcome([...BDRV, ...words], ours);
        assertEquals({ call, ...actual }, { call, ...expected });
      };
      const calls = CALLS.filter((call) => !LEFT_OUT[call]?.includes(name));
      const results = await Promise.allSettled(calls.map(compareOne));
      for (const result of results) {
        if (result.status === "rejected") throw result.reason;
      }
    });
  }
}, ["qemu-img", "qemu-io"]);
