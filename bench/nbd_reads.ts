/**
 * Reads 4 KiB blocks at random offsets of an NBD export, and prints how many
 * milliseconds that took: `nbd_reads.ts SOCKET DEPTH COUNT`.
 *
 * `DEPTH` reads are in flight at once, on one connection. The client is as
 * simple as can be, so that the server's time is what is measured: replies all
 * have the same length, and are merely counted as they arrive.
 *
 * @module
 */
const [socket] = Deno.args;
const [depth, total] = Deno.args.slice(1).map(Number);
const UNIT = 4096;
const REQUEST = 28;
const REPLY = 16 + UNIT;

const connection = await Deno.connect({ transport: "unix", path: socket });

async function receive(length: number): Promise<DataView> {
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length;) {
    const count = await connection.read(bytes.subarray(done));
    if (count === null) throw new Error("the server closed the connection");
    done += count;
  }
  return new DataView(bytes.buffer);
}

async function send(bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += await connection.write(bytes.subarray(done));
  }
}

/** Enter the default export by the oldest handshake; returns its size. */
async function enter(): Promise<number> {
  await receive(18);
  const hello = new DataView(new ArrayBuffer(20));
  hello.setUint32(0, 3); // fixed newstyle, no zeroes
  hello.setBigUint64(4, 0x49484156454f5054n);
  hello.setUint32(12, 1); // EXPORT_NAME, with an empty name
  await send(new Uint8Array(hello.buffer));
  return Number((await receive(10)).getBigUint64(0));
}

const units = Math.floor(await enter() / UNIT);
const requests = new DataView(new ArrayBuffer(depth * REQUEST));
for (let i = 0; i < depth; i++) requests.setUint32(i * REQUEST, 0x25609513);

/** `count` requests for units in a pseudo-random order. */
let state = 1;
function next(count: number): Uint8Array {
  for (let at = 0; at < count * REQUEST; at += REQUEST) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    const offset = Math.floor((state >>> 0) / 2 ** 32 * units) * UNIT;
    requests.setUint32(at + 16, Math.floor(offset / 2 ** 32));
    requests.setUint32(at + 20, offset >>> 0);
    requests.setUint32(at + 24, UNIT);
  }
  return new Uint8Array(requests.buffer, 0, count * REQUEST);
}

const into = new Uint8Array(REPLY * 64);
/** Reads sent so far, and reads answered. */
let asked = depth;
let answered = 0;
/** Bytes received of a reply that is not complete yet. */
let rest = 0;
const start = performance.now();
await send(next(depth));
while (answered < total) {
  const count = await connection.read(into);
  if (count === null) throw new Error("the server closed the connection");
  rest += count;
  const done = Math.floor(rest / REPLY);
  rest -= done * REPLY;
  answered += done;
  const more = Math.min(done, total - asked);
  asked += more;
  if (more > 0) await send(next(more));
}
console.log(performance.now() - start);
connection.close();
