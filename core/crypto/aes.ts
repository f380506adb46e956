/**
 * The AES block cipher in plain JavaScript, for runtimes without one of their
 * own and for batches too small to pay for a call to it. (FIPS 197; the four
 * steps of a round are combined in tables of 256 words.)
 *
 * Words are little-endian views of the bytes, as every engine of today has
 * them. Table look-ups take their time from the data: whoever can measure a
 * process's memory accesses from outside could learn about its key.
 *
 * @module
 */

/** Words in a block of 16 bytes. */
const BLOCK_WORDS = 4;

/** Look-up tables of one direction: four for the rounds, bytes for the last. */
interface Tables {
  readonly rounds: readonly [
    Uint32Array,
    Uint32Array,
    Uint32Array,
    Uint32Array,
  ];
  readonly box: Uint8Array;
}

let made: { encrypt: Tables; decrypt: Tables } | undefined;

function tables(): { encrypt: Tables; decrypt: Tables } {
  if (made) return made;
  const { box, inverse } = substitutionBoxes();
  const encrypt = roundTables(
    box,
    (s) => pack(double(s), s, s, double(s) ^ s),
  );
  const decrypt = roundTables(inverse, (s) => {
    const [two, four] = [double(s), double(double(s))];
    const eight = double(four);
    return pack(
      eight ^ four ^ two,
      eight ^ s,
      eight ^ four ^ s,
      eight ^ two ^ s,
    );
  });
  made = {
    encrypt: { rounds: encrypt, box },
    decrypt: { rounds: decrypt, box: inverse },
  };
  return made;
}

function roundTables(
  box: Uint8Array,
  mix: (s: number) => number,
): Tables["rounds"] {
  const first = Uint32Array.from(box, mix);
  const turned = (by: number) =>
    first.map((word) => (word << by) | (word >>> (32 - by)));
  return [first, turned(8), turned(16), turned(24)];
}

/** A word of four bytes, the first one lowest. */
function pack(a: number, b: number, c: number, d: number): number {
  return a | (b << 8) | (c << 16) | (d << 24);
}

/** Multiply by x in GF(2^8). */
function double(byte: number): number {
  return ((byte << 1) ^ ((byte >> 7) * 0x11b)) & 0xff;
}

/** The S-box of the standard and its inverse. */
function substitutionBoxes(): { box: Uint8Array; inverse: Uint8Array } {
  const box = new Uint8Array(256);
  const inverse = new Uint8Array(256);
  // 3 generates the field; its powers and those of its inverse run in step.
  let p = 1;
  let q = 1;
  do {
    p ^= double(p);
    q ^= q << 1;
    q ^= q << 2;
    q ^= q << 4;
    q &= 0xff;
    if (q & 0x80) q ^= 0x09;
    const turned = (by: number) => (q << by) | (q >> (8 - by));
    box[p] = q ^ turned(1) ^ turned(2) ^ turned(3) ^ turned(4) ^ 0x63;
  } while (p !== 1);
  box[0] = 0x63;
  box.forEach((value, index) => inverse[value] = index);
  return { box, inverse };
}

/** AES with one key of 16, 24 or 32 bytes, on many blocks at a time. */
export class Aes {
  readonly #encryptKeys: Uint32Array;
  readonly #decryptKeys: Uint32Array;

  /** Expand a key. */
  constructor(key: Uint8Array) {
    this.#encryptKeys = expandKey(key);
    this.#decryptKeys = inverseKeys(this.#encryptKeys);
  }

  /** Each block of `input` encrypted by itself (ECB). */
  encrypt(input: Uint32Array): Uint32Array<ArrayBuffer> {
    return crypt(input, this.#encryptKeys, tables().encrypt, 1);
  }

  /** Each block of `input` decrypted by itself (ECB). */
  decrypt(input: Uint32Array): Uint32Array<ArrayBuffer> {
    return crypt(input, this.#decryptKeys, tables().decrypt, 3);
  }
}

function expandKey(key: Uint8Array): Uint32Array {
  const { box } = tables().encrypt;
  const keyWords = key.length / 4;
  const words = new Uint32Array(BLOCK_WORDS * (keyWords + 7));
  const substitute = (word: number) =>
    pack(
      box[word & 0xff],
      box[(word >>> 8) & 0xff],
      box[(word >>> 16) & 0xff],
      box[word >>> 24],
    );
  let constant = 1;
  for (let i = 0; i < words.length; i++) {
    if (i < keyWords) {
      const at = i * 4;
      words[i] = pack(key[at], key[at + 1], key[at + 2], key[at + 3]);
      continue;
    }
    let word = words[i - 1];
    if (i % keyWords === 0) {
      word = substitute((word >>> 8) | (word << 24)) ^ constant;
      constant = double(constant);
    } else if (keyWords > 6 && i % keyWords === 4) {
      word = substitute(word);
    }
    words[i] = words[i - keyWords] ^ word;
  }
  return words;
}

/** Round keys of the equivalent inverse cipher: last first, columns unmixed. */
function inverseKeys(keys: Uint32Array): Uint32Array {
  const { box } = tables().encrypt;
  const [t0, t1, t2, t3] = tables().decrypt.rounds;
  const words = new Uint32Array(keys.length);
  const last = keys.length - BLOCK_WORDS;
  for (let i = 0; i < keys.length; i++) {
    const word = keys[last - i + 2 * (i % BLOCK_WORDS)];
    words[i] = i < BLOCK_WORDS || i >= last ? word : t0[box[word & 0xff]] ^
      t1[box[(word >>> 8) & 0xff]] ^
      t2[box[(word >>> 16) & 0xff]] ^
      t3[box[word >>> 24]];
  }
  return words;
}

/**
 * @param next Which column the second row is taken from, counted from the
 * column that is made: rows shift to the left when encrypting (1), to the right
 * when decrypting (3).
 */
function crypt(
  input: Uint32Array,
  keys: Uint32Array,
  { rounds: [t0, t1, t2, t3], box }: Tables,
  next: 1 | 3,
): Uint32Array<ArrayBuffer> {
  const output = new Uint32Array(input.length);
  const last = keys.length - BLOCK_WORDS;
  const previous = BLOCK_WORDS - next;
  const final = (w: number, x: number, y: number, z: number) =>
    box[w & 0xff] | (box[(x >>> 8) & 0xff] << 8) |
    (box[(y >>> 16) & 0xff] << 16) | (box[z >>> 24] << 24);
  for (let at = 0; at < input.length; at += BLOCK_WORDS) {
    let a = input[at] ^ keys[0];
    let b = input[at + next] ^ keys[next];
    let c = input[at + 2] ^ keys[2];
    let d = input[at + previous] ^ keys[previous];
    for (let k = BLOCK_WORDS; k < last; k += BLOCK_WORDS) {
      const e = t0[a & 0xff] ^ t1[(b >>> 8) & 0xff] ^
        t2[(c >>> 16) & 0xff] ^ t3[d >>> 24] ^ keys[k];
      const f = t0[b & 0xff] ^ t1[(c >>> 8) & 0xff] ^
        t2[(d >>> 16) & 0xff] ^ t3[a >>> 24] ^ keys[k + next];
      const g = t0[c & 0xff] ^ t1[(d >>> 8) & 0xff] ^
        t2[(a >>> 16) & 0xff] ^ t3[b >>> 24] ^ keys[k + 2];
      d = t0[d & 0xff] ^ t1[(a >>> 8) & 0xff] ^
        t2[(b >>> 16) & 0xff] ^ t3[c >>> 24] ^ keys[k + previous];
      a = e;
      b = f;
      c = g;
    }
    output[at] = final(a, b, c, d) ^ keys[last];
    output[at + next] = final(b, c, d, a) ^ keys[last + next];
    output[at + 2] = final(c, d, a, b) ^ keys[last + 2];
    output[at + previous] = final(d, a, b, c) ^ keys[last + previous];
  }
  return output;
}
