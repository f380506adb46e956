/**
 * Connections that break after a number of bytes, in either direction, with
 * servers that live on or die with them: what was flushed, or written with FUA,
 * must be there in the end, and no write may overtake another.
 *
 * `deno run -A tests/drivers/nbd/breaks.ts [STEP]` tries all numbers of bytes,
 * STEP (1) apart, with all that may happen to a server.
 *
 * @module
 */
import { assert } from "@std/assert";
import { openNode } from "../../../core/open.ts";
import type { ByteStream } from "../../../core/platform/sockets.ts";
import {
  BlockError,
  type BlockNode,
  type OptionValues,
  serveNbd,
  type TlsCredentials,
} from "../../../mod.ts";
import { streamPair } from "./streams.ts";
import { Promises, VolatileDisk } from "./volatile_disk.ts";

/** Bytes of a unit, whose bytes are all equal. */
export const UNIT = 16;
/** Units that several requests at once are for. */
export const FEW = 2;
/** Enough of them for several connections. */
export const MANY = 18;
/** The first of those units. */
const FIRST = 6;
/** How many servers may be broken at the same time. */
const AT_ONCE = 200;

/** What happens to the server, and to what it has not flushed. */
type Fate =
  /** Only the connection breaks. */
  | "lives"
  /** It dies, and what was not flushed is lost. */
  | "loses"
  /** It dies, and what was not flushed happens to be durable. */
  | "keeps";

/** Where connections break: after a number of bytes of all in one direction. */
interface Break {
  readonly direction: "there" | "back";
  readonly after: number;
  readonly fate: Fate;
}

/** A kind of server and of connection. */
export interface Setting {
  /** Options that the server does not know. */
  readonly refused?: readonly number[];
  readonly tls?: { client: TlsCredentials; server: TlsCredentials };
  readonly connections?: number;
}

interface BrittleOptions extends Setting {
  /** Whether it does not come back after the last break. */
  readonly diesAtLast?: boolean;
}

/** A server that breaks at the given places, and comes back. */
class BrittleServer {
  readonly disk = new VolatileDisk(UNIT * (FIRST + MANY));
  /** Bytes sent since the last break. */
  readonly sent = { there: 0, back: 0 };
  readonly #breaks: Break[];
  readonly #refused: readonly number[];
  readonly #tls?: TlsCredentials;
  readonly #diesAtLast: boolean;
  #open: { close(): void; ended: Promise<void> }[] = [];
  #restarted: Promise<unknown> = Promise.resolve();
  /** Whether it has gone for good. */
  #isGone = false;

  constructor(
    breaks: readonly Break[],
    { refused = [], tls, diesAtLast = false }: BrittleOptions = {},
  ) {
    this.#breaks = [...breaks];
    this.#refused = refused;
    this.#tls = tls?.server;
    this.#diesAtLast = diesAtLast;
  }

  readonly connect = async (): Promise<ByteStream> => {
    await this.#restarted;
    if (this.#isGone) throw new BlockError("ECONNREFUSED");
    const [ours, theirs] = streamPair();
    const close = () => {
      ours.close();
      theirs.close();
    };
    const image = await this.disk.image();
    const server = await serveNbd(
      image,
      ignorant(this.#breaking(theirs, "back", close), this.#refused),
      { writable: true, ...(this.#tls && { tls: this.#tls }) },
    );
    this.#open.push({ close, ended: server.ended });
    return this.#breaking(ours, "there", close);
  };

  /** Let go of everything. */
  async end(): Promise<void> {
    this.#isGone = true;
    await this.#restarted;
    for (const { close, ended } of this.#open) {
      close();
      await ended;
    }
  }

  #breaking(
    stream: ByteStream,
    direction: "there" | "back",
    close: () => void,
  ): ByteStream {
    return {
      read: (into) => stream.read(into),
      close: () => stream.close(),
      write: async (bytes) => {
        const [next] = this.#breaks;
        const isNext = next?.direction === direction;
        const left = isNext ? next.after - this.sent[direction] : Infinity;
        const part = bytes.subarray(0, Math.max(0, left));
        this.sent[direction] += part.length;
        if (part.length > 0) await stream.write(part);
        if (part.length >= left) {
          // Another connection may have broken meanwhile.
          if (this.#breaks[0] === next) this.#break(close);
          else close();
        }
        return bytes.length;
      },
    };
  }

  #break(close: () => void): void {
    const [{ fate }] = this.#breaks.splice(0, 1);
    Object.assign(this.sent, { there: 0, back: 0 });
    this.#isGone = this.#diesAtLast && this.#breaks.length === 0;
    if (fate === "lives") return close();
    const dead = this.#open.splice(0);
    for (const { close } of dead) close();
    this.#restarted = Promise.all(dead.map(({ ended }) => ended)).then(() => {
      if (fate === "loses") this.disk.lose();
      else this.disk.writeBack();
    });
  }
}

/** A server's end of a connection, on which it does not know some options. */
function ignorant(
  stream: ByteStream,
  options: readonly number[],
): ByteStream {
  const [ASKED, ANSWERED] = ["IHAVEOPT", "\x00\x03\xe8\x89\x04\x55\x65\xa9"];
  const change = (
    bytes: Uint8Array,
    count: number,
    magic: string,
    from: (option: number) => number,
  ) => {
    const text = String.fromCharCode(...bytes.subarray(0, count));
    for (let at = -1; (at = text.indexOf(magic, at + 1)) >= 0;) {
      bytes[at + 11] = from(bytes[at + 11]);
    }
  };
  return {
    close: () => stream.close(),
    async read(into) {
      const count = await stream.read(into);
      change(
        into,
        count ?? 0,
        ASKED,
        (option) => options.includes(option) ? option + 100 : option,
      );
      return count;
    },
    write(bytes) {
      change(
        bytes,
        bytes.length,
        ANSWERED,
        (option) => option > 100 ? option - 100 : option,
      );
      return stream.write(bytes);
    },
  };
}

/** Requests of all kinds that record what they are promised. */
export class Work {
  readonly promises = new Promises();
  readonly #node: BlockNode;
  #value = 0;
  #failures = 0;

  constructor(node: BlockNode) {
    this.#node = node;
  }

  /** Number of failed requests. */
  get failures(): number {
    return this.#failures;
  }

  async all(count: number): Promise<void> {
    const units = Array.from({ length: count }, (_, i) => FIRST + i);
    await this.write(0);
    await this.write(1, true);
    await this.write(1);
    await this.write(1, true);
    await Promise.all([this.write(2), this.write(3), this.write(4, true)]);
    await this.flush();
    await this.write(0);
    // A retried older write must not overwrite this durable one.
    await this.write(0, true);
    await Promise.all(units.map((unit) => this.write(unit)));
    await this.zero(3);
    await this.zero(2, true);
    await this.write(5);
    await this.read(5);
    await Promise.all(units.map((unit) => this.write(unit, unit % 3 === 0)));
    await Promise.all([this.flush(), this.write(4)]);
    await this.write(4, true);
    await this.flush();
  }

  async write(unit: number, fua = false): Promise<void> {
    const value = this.#value = this.#value % 255 + 1;
    const acknowledged = this.promises.begin(unit, value);
    const bytes = new Uint8Array(UNIT).fill(value);
    await this.#try(async () => {
      await this.#node.writev!(unit * UNIT, [bytes], { fua });
      acknowledged(fua);
    });
  }

  async zero(unit: number, fua = false): Promise<void> {
    const acknowledged = this.promises.begin(unit, 0);
    await this.#try(async () => {
      await this.#node.writeZeroes!(unit * UNIT, UNIT, { fua });
      acknowledged(fua);
    });
  }

  async flush(): Promise<void> {
    const over = this.promises.flush();
    await this.#try(() => this.#node.flush!()).then((ok) => over(ok));
  }

  async read(unit: number): Promise<void> {
    const bytes = new Uint8Array(UNIT);
    await this.#try(() => this.#node.readv(unit * UNIT, [bytes]));
  }

  /** Whether it succeeds. */
  async #try(act: () => Promise<void>): Promise<boolean> {
    try {
      await act();
      return true;
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.#failures++;
      return false;
    }
  }
}

/** Those that need nothing of the system. */
export const SETTINGS: { readonly [name: string]: Setting } = {
  "extended headers": {},
  "structured replies": { refused: [11] },
  "simple replies": { refused: [11, 8] },
  "several connections": { connections: 3 },
};

/** What becomes of a node, in each of which it is tried. */
export const ENDINGS: {
  readonly [name: string]: (
    breaks: readonly Break[],
    setting: Setting,
  ) => Promise<void>;
} = {
  "with a reconnect delay, all goes on as if the connection had never broken":
    goesOn,
  "without a reconnect delay, nothing promised is lost": keepsPromises,
  "a client that dies while it reconnects has lost nothing promised": diesAgain,
};

const FATES: readonly Fate[] = ["loses", "lives", "keeps"];

function optionsOf({ tls, connections = 1 }: Setting): OptionValues {
  return {
    driver: "nbd",
    "multi-conn": connections,
    ...(tls && { "tls-creds": tls.client, "tls-hostname": "localhost" }),
  };
}

function countOf({ connections = 1 }: Setting): number {
  return connections > 1 ? MANY : FEW;
}

/** The endings that can be had in a setting. */
export function endingsOf({ tls }: Setting): string[] {
  const names = Object.keys(ENDINGS);
  // Where changes are repeated cannot be told from encrypted bytes.
  return tls ? names.slice(0, 2) : names;
}

/** Bytes sent in each direction if nothing breaks. */
async function traffic(setting: Setting): Promise<BrittleServer["sent"]> {
  const server = new BrittleServer([], setting);
  const { connect } = server;
  const node = await openNode({ ...optionsOf(setting), connect });
  await new Work(node).all(countOf(setting));
  await node.close();
  await server.end();
  return server.sent;
}

/**
 * All places to break at, `step` bytes apart: with everything that may happen
 * to the server, or with one after the other.
 */
async function places(
  setting: Setting,
  step: number,
  all: boolean,
): Promise<Break[]> {
  const sent = await traffic(setting);
  const found: Break[] = [];
  for (const direction of ["there", "back"] as const) {
    for (let after = 0; after <= sent[direction]; after += step) {
      const fates = all ? FATES : [FATES[found.length % FATES.length]];
      for (const fate of fates) found.push({ direction, after, fate });
    }
  }
  assert(found.length > 100);
  return found;
}

/**
 * Break connections at all places that are `step` bytes apart; returns their
 * number.
 */
export async function breakEverywhere(
  ending: string,
  setting: Setting,
  step: number,
  all = false,
): Promise<number> {
  const found = await places(setting, step, all);
  for (let at = 0; at < found.length; at += AT_ONCE) {
    const some = found.slice(at, at + AT_ONCE);
    await Promise.all(some.map((one) => ENDINGS[ending]([one], setting)));
  }
  return found.length;
}

/** With a reconnect delay, nobody notices a break. */
async function goesOn(
  breaks: readonly Break[],
  setting: Setting,
): Promise<void> {
  const server = new BrittleServer(breaks, setting);
  const node = await openNode({
    ...optionsOf(setting),
    connect: server.connect,
    "reconnect-delay": 60,
    "open-timeout": 60,
  });
  const work = new Work(node);
  await work.all(countOf(setting));
  const what = JSON.stringify(breaks);
  assert(work.failures === 0, `${what}: ${work.failures} failures`);
  work.promises.checkLast(server.disk.durable, UNIT, what);
  await node.close();
  await server.end();
}

/** Without one, requests may fail, but what was promised is kept. */
async function keepsPromises(
  breaks: readonly Break[],
  setting: Setting & Pick<BrittleOptions, "diesAtLast">,
  options: OptionValues = {},
): Promise<void> {
  const server = new BrittleServer(breaks, setting);
  const { connect } = server;
  let node: BlockNode;
  try {
    node = await openNode({ ...optionsOf(setting), ...options, connect });
  } catch {
    return await server.end(); // The connection broke during the open.
  }
  const work = new Work(node);
  await work.all(countOf(setting));
  await node.close().catch(() => {});
  await server.end();
  server.disk.lose();
  work.promises.check(server.disk.durable, UNIT, JSON.stringify(breaks));
}

/**
 * Bytes of a handshake and of some repeated changes, of which each takes 48.
 */
const AGAIN = [110, 150, 200, 250];

/** The server dies again while changes are repeated, for good. */
async function diesAgain(
  [first]: readonly Break[],
  setting: Setting,
): Promise<void> {
  const after = AGAIN[first.after % AGAIN.length];
  const breaks: Break[] = [first, { direction: "there", after, fate: "keeps" }];
  const dying = { ...setting, diesAtLast: true };
  await keepsPromises(breaks, dying, { "reconnect-delay": 1 });
}

if (import.meta.main) {
  const [step = 1] = Deno.args.map(Number);
  for (const [name, setting] of Object.entries(SETTINGS)) {
    for (const ending of endingsOf(setting)) {
      const count = await breakEverywhere(ending, setting, step, true);
      console.log(`${name}, ${ending}: ${count} places`);
    }
  }
}
