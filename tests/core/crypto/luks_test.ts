import { assert, assertEquals, assertRejects } from "@std/assert";
import { mergeKey, splitKey } from "../../../core/crypto/anti_forensic.ts";
import { deriveKey, type HashName } from "../../../core/crypto/hashes.ts";
import { iterationsFor } from "../../../core/crypto/key_time.ts";
import {
  encodeHeader,
  HEADER_LENGTH,
  parseHeader,
} from "../../../core/crypto/luks_header.ts";
import { algorithmsOf } from "../../../core/crypto/luks_options.ts";
import {
  type HeaderStore,
  LuksVolume,
} from "../../../core/crypto/luks_volume.ts";
import { BlockError } from "../../../core/errors.ts";
import type { OptionValues } from "../../../core/options.ts";
import { setPortable } from "../../platforms.ts";

const text = (passphrase: string) => new TextEncoder().encode(passphrase);

/** A header's area in memory, which records what is written. */
class MemoryArea implements HeaderStore {
  bytes = new Uint8Array(3 << 20);
  readonly writes: number[] = [];

  get length() {
    return this.bytes.length;
  }

  read(offset: number, target: Uint8Array): Promise<void> {
    target.set(this.bytes.subarray(offset, offset + target.length));
    return Promise.resolve();
  }

  write(offset: number, bytes: Uint8Array): Promise<void> {
    this.writes.push(offset);
    this.bytes.set(bytes, offset);
    return Promise.resolve();
  }
}

async function make(options: OptionValues = {}) {
  const area = new MemoryArea();
  const algorithms = algorithmsOf(options);
  const passphrase = text("first");
  const made = await LuksVolume.make(area, algorithms, passphrase, {
    iterationTime: 0,
  });
  return { area, ...made };
}

Deno.test("LuksVolume opens by the passphrase of any slot, and by no other", async () => {
  const { area, volume, key } = await make();
  await volume.activate(5, key, text("second"), 0);
  await volume.activate(7, key, text(""), 0);
  const again = await LuksVolume.read(area);
  for (const passphrase of ["first", "second", ""]) {
    assertEquals(await again.unlock(text(passphrase)), key);
  }
  const error = await assertRejects(
    () => again.unlock(text("third")),
    BlockError,
  );
  assertEquals(
    error.message,
    "Invalid password, cannot unlock any keyslot",
  );
});

Deno.test("LuksVolume writes key material before the header that relies on it, and erases after", async () => {
  const { area, volume, key } = await make();
  const { offset } = volume.header.slots[3];
  area.writes.length = 0;
  await volume.activate(3, key, text("second"), 0);
  assertEquals(area.writes, [offset, 0]);
  const material = area.bytes.slice(offset, offset + 64 * 4000);
  area.writes.length = 0;
  await volume.erase(3);
  assertEquals(area.writes.slice(0, 2), [0, offset]);
  assert(area.writes.slice(2).every((at) => at === offset));
  const left = area.bytes.slice(offset, offset + 64 * 4000);
  const same = left.filter((byte, i) => byte === material[i]).length;
  assert(same < left.length / 100, `${same} bytes are still there`);
  await assertRejects(() => volume.unlock(text("second")), BlockError);
  assertEquals(await volume.unlock(text("first")), key);
});

Deno.test("LuksVolume keeps in memory what is in the file if a header cannot be written", async () => {
  const { area, volume, key } = await make();
  area.write = () => Promise.reject(new BlockError("EIO"));
  await assertRejects(() => volume.activate(1, key, text("x"), 0), BlockError);
  await assertRejects(() => volume.erase(0), BlockError);
  const active = volume.header.slots.map(({ isActive }) => isActive);
  assertEquals(active.indexOf(true), 0);
  assertEquals(active.lastIndexOf(true), 0);
});

for (
  const hash of ["md5", "sha1", "sha224", "sha384", "sha512", "ripemd160"]
) {
  Deno.test(`LuksVolume derives keys with ${hash}`, async () => {
    const { area, key } = await make({
      "hash-alg": hash,
      "cipher-alg": "aes-128",
    });
    const again = await LuksVolume.read(area);
    assertEquals(await again.unlock(text("first")), key);
  });
}

Deno.test("splitKey() and mergeKey() are inverses, for any key length", async () => {
  for (const length of [16, 24, 32, 48, 64]) {
    const key = crypto.getRandomValues(new Uint8Array(length));
    const material = await splitKey(key, 10, "sha256");
    assertEquals(material.length, length * 10);
    assertEquals(await mergeKey(material, length, 10, "sha256"), key);
    material[0] ^= 1;
    const other = await mergeKey(material, length, 10, "sha256");
    assert(other.some((byte, i) => byte !== key[i]));
  }
});

Deno.test("deriveKey() and splitting work without Node.js for the hashes of browsers", async () => {
  const derivation = {
    hash: "sha256" as HashName,
    salt: new Uint8Array(32),
    iterations: 2,
    length: 32,
  };
  const expected = await deriveKey(text("x"), derivation);
  setPortable(true);
  try {
    assertEquals(await deriveKey(text("x"), derivation), expected);
    const material = await splitKey(expected, 5, "sha1");
    assertEquals(await mergeKey(material, 32, 5, "sha1"), expected);
    const error = await assertRejects(
      () => deriveKey(text("x"), { ...derivation, hash: "ripemd160" }),
      BlockError,
    );
    assertEquals(error.code, "ENOTSUP");
  } finally {
    setPortable(false);
  }
});

Deno.test("iterationsFor() never returns too few, nor more than a header can hold", async () => {
  assertEquals(await iterationsFor(0, "sha256", 20), 1000);
  for (
    const [time, what] of [[1e9, "larger than 4294967295"], [
      1e14,
      "too large to scale",
    ]] as const
  ) {
    const error = await assertRejects(
      () => iterationsFor(time, "sha256", 20),
      BlockError,
    );
    assert(error.message.startsWith("PBKDF iterations "));
    assert(error.message.includes(what), error.message);
    assertEquals(error.code, "ERANGE");
  }
});

/** The offsets of a slot's fields. */
const slot = (index: number, field: number) => 208 + index * 48 + field;

type Patch = (view: DataView, bytes: Uint8Array) => void;
const put = (at: number, value: number): Patch => (view) =>
  view.setUint32(at, value);
const name = (at: number, value: string): Patch => (_, bytes) =>
  bytes.set(text(`${value}\0`).subarray(0, 32), at);

/** Faults of a header, in the order in which they are checked. */
const HOSTILE: readonly [message: string, ...patches: Patch[]][] = [
  ["Volume is not in LUKS format", put(0, 0)],
  ["LUKS version 2 is not supported", (view) => view.setUint16(6, 2)],
  ["LUKS header cipher name is not NUL terminated", name(8, "x".repeat(32))],
  ["LUKS header cipher mode is not NUL terminated", name(40, "x".repeat(32))],
  ["LUKS header hash spec is not NUL terminated", name(72, "x".repeat(32))],
  ["LUKS payload is overlapping with the header", put(104, 7)],
  ["LUKS key iteration count is zero", put(164, 0)],
  ["Keyslot 3 is corrupted (stripes 3999 != 4000)", put(slot(3, 44), 3999)],
  [
    "Keyslot 3 is corrupted (stripes -1 != 4000)",
    put(slot(3, 44), 2 ** 32 - 1),
  ],
  ["Keyslot 7 state (active/disable) is corrupted", put(slot(7, 0), 1)],
  ["Keyslot 0 iteration count is zero", put(slot(0, 4), 0)],
  ["Keyslot 0 is overlapping with the LUKS header", put(slot(0, 40), 7)],
  [
    "Keyslot 7 is overlapping with the encrypted payload",
    put(slot(7, 40), 4039),
  ],
  // The sum does not fit into 32 bits.
  [
    "Keyslot 7 is overlapping with the encrypted payload",
    put(slot(7, 40), 0xffffff00),
  ],
  [
    "Keyslot 0 is overlapping with the encrypted payload",
    put(108, 2 ** 32 - 1),
  ],
  ["Keyslots 2 and 5 are overlapping in the header", put(slot(5, 40), 1016)],
  ["Unexpected cipher mode string format 'xts'", name(40, "xts")],
  ["Hash algorithm 'foo' not supported", name(40, "xts-plain64:foo")],
  ["Cipher mode 'gcm' not supported", name(40, "gcm-plain64")],
  ["Algorithm 'foo' with key size 32 bytes not supported", name(8, "foo")],
  ["Algorithm 'aes' with key size 20 bytes not supported", put(108, 40)],
  ["Algorithm 'aes' with key size 0 bytes not supported", put(108, 0)],
  ["XTS cipher key length should be a multiple of 2", put(108, 33)],
  [
    "Algorithm 'toString' with key size 32 bytes not supported",
    name(8, "toString"),
  ],
  ["Hash algorithm 'toString' not supported", name(72, "toString")],
  ["Hash algorithm '' not supported", name(72, "")],
  ["IV generator 'random' not supported", name(40, "xts-random")],
  ["Missing IV generator hash specification", name(40, "xts-essiv")],
  ["No AES cipher with key size 20 available", name(40, "xts-essiv:sha1")],
];

for (const [message, ...patches] of HOSTILE) {
  Deno.test(`parseHeader() refuses: ${message}`, async () => {
    const { volume } = await make();
    const bytes = encodeHeader(volume.header).slice();
    const view = new DataView(bytes.buffer);
    for (const patch of patches) patch(view, bytes);
    const area = new MemoryArea();
    area.bytes.set(bytes);
    const error = await assertRejects(() => LuksVolume.read(area), BlockError);
    assertEquals(error.message, message);
  });
}

Deno.test("encodeHeader() gives what parseHeader() was given", async () => {
  for (
    const options of [{}, {
      "cipher-mode": "cbc",
      "ivgen-alg": "essiv",
      "hash-alg": "sha1",
    }, { "ivgen-hash-alg": "md5" }]
  ) {
    const { area } = await make(options);
    const bytes = area.bytes.slice(0, HEADER_LENGTH);
    // Names and numbers of unused slots are kept, too.
    bytes[168] = 0xff;
    bytes[slot(4, 8)] = 0x77;
    assertEquals(encodeHeader(parseHeader(bytes)).slice(), bytes);
  }
});

Deno.test("LuksVolume bounds the time that untrusted iteration counts can cost", async (t) => {
  const { area, volume, key } = await make();
  await volume.activate(1, key, text("second"), 0);
  const slow = area.bytes.slice(0, HEADER_LENGTH);
  const view = new DataView(slow.buffer);
  await t.step("a slot that would take too long is skipped", async () => {
    view.setUint32(slot(0, 4), 2 ** 32 - 1);
    area.bytes.set(slow);
    const hostile = await LuksVolume.read(area);
    assertEquals(await hostile.unlock(text("second")), key);
    const error = await assertRejects(
      () => hostile.unlock(text("first")),
      BlockError,
    );
    assertEquals(error.code, "ETIMEDOUT");
    assert(error.message.startsWith("Keyslot 0 would take some "));
  });
  await t.step("the digest counts as well", async () => {
    view.setUint32(slot(0, 4), 1000);
    view.setUint32(164, 2 ** 32 - 1);
    area.bytes.set(slow);
    const hostile = await LuksVolume.read(area);
    const error = await assertRejects(
      () => hostile.unlock(text("first")),
      BlockError,
    );
    assertEquals(error.code, "ETIMEDOUT");
  });
  await t.step("a short limit is respected", async () => {
    view.setUint32(164, 1000);
    view.setUint32(slot(0, 4), 3_900_000);
    area.bytes.set(slow);
    const hostile = await LuksVolume.read(area);
    const error = await assertRejects(
      () => hostile.unlock(text("first"), { time: 10 }),
      BlockError,
    );
    assertEquals(error.code, "ETIMEDOUT");
  });
  await t.step("a slot without key material is not tried", async () => {
    const { volume, area } = await make();
    area.bytes = area.bytes.slice(0, 100_000);
    const error = await assertRejects(
      () => volume.unlock(text("first")),
      BlockError,
    );
    assertEquals(error.message, "Invalid password, cannot unlock any keyslot");
  });
});

Deno.test("LuksVolume stops deriving keys when aborted", async () => {
  const { area } = await make();
  const bytes = area.bytes.slice(0, HEADER_LENGTH);
  // Some seconds' worth, below the ceiling.
  new DataView(bytes.buffer).setUint32(slot(0, 4), 3_900_000);
  area.bytes.set(bytes);
  const volume = await LuksVolume.read(area);
  const abort = new AbortController();
  const unlocking = volume.unlock(text("first"), { signal: abort.signal });
  setTimeout(() => abort.abort(), 20);
  const error = await assertRejects(() => unlocking, BlockError);
  assertEquals(error.code, "ECANCELED");
  const again = await assertRejects(
    () => volume.unlock(text("first"), { signal: abort.signal }),
    BlockError,
  );
  assertEquals(again.code, "ECANCELED");
});

const REFUSED: readonly [message: string, options: OptionValues][] = [
  ["Algorithm 'serpent-256' not supported", { "cipher-alg": "serpent-256" }],
  ["Algorithm 'twofish-128' not supported", { "cipher-alg": "twofish-128" }],
  ["Algorithm 'cast5-128' not supported", { "cipher-alg": "cast5-128" }],
  ["Algorithm '3des' not supported", { "cipher-alg": "3des" }],
  ["Algorithm 'aes-192' not supported", {
    "cipher-alg": "aes-192",
    "cipher-mode": "cbc",
  }],
  ["No AES cipher with key size 64 available", {
    "ivgen-alg": "essiv",
    "ivgen-hash-alg": "sha512",
  }],
];

for (const [message, options] of REFUSED) {
  Deno.test(`algorithmsOf() refuses: ${message}`, async () => {
    // deno-lint-ignore require-await -- to have it reject
    const refused = async () => algorithmsOf(options);
    const error = await assertRejects(refused, BlockError);
    assertEquals(error.message, message);
  });
}
