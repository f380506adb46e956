/**
 * The page's worker: opens, reads and computes everything. The code for a kind
 * of request is loaded with the first one.
 *
 * @module
 */
import { describe } from "./describing.ts";
import type {
  Call,
  Cancel,
  Description,
  Place,
  Reply,
  Requests,
  Work,
} from "./messages.ts";
import { countFetches, Meter } from "./meter.ts";
import { openPlace, type Passphrases } from "./opening.ts";
import { refuseIncomplete, Session } from "./session.ts";

type Handlers = {
  [Name in keyof Requests]: (
    ask: Requests[Name]["ask"],
    work: Work,
  ) => Promise<Requests[Name]["answer"]>;
};

let session: Session | undefined;
let meter = new Meter();

countFetches((bytes) => meter.fetched += bytes);

const handlers: Handlers = {
  open,
  unlock,
  edit,
  forget,
  draw: async (ask, work) =>
    (await import("./drawing.ts")).draw(current(), ask, work),
  lines: async (ask) => (await import("./drawing.ts")).lines(current(), ask),
  compare: async (ask, work) =>
    (await import("./drawing.ts")).compare(current(), ask, work),
  convert: async (ask, work) =>
    (await import("./saving.ts")).save(current().content, ask, work),
};

function current(): Session {
  if (session) return session;
  throw new Error("No image is open");
}

/** Images that were to be opened: only the last one is of interest. */
let openings = 0;

async function open(
  { place }: Requests["open"]["ask"],
  { signal }: Work,
): Promise<Description> {
  const turn = ++openings;
  if (turn === 1) await clear();
  const before = session;
  session = undefined;
  await before?.close();
  return await start(turn, place, new Map(), signal);
}

/** What is locked has no edits open, and stays open unless this succeeds. */
async function unlock(
  { passphrase }: Requests["unlock"]["ask"],
  { signal }: Work,
): Promise<Description> {
  const shown = current();
  const { locked } = shown.opened;
  if (locked === undefined) throw new Error("The image is not locked");
  const passphrases = new Map(shown.passphrases).set(locked, passphrase);
  try {
    return await start(++openings, shown.place, passphrases, signal);
  } catch (error) {
    if (session === shown) meter = shown.meter;
    throw error;
  }
}

/** Open an image, in place of one that may be open. */
async function start(
  turn: number,
  place: Place,
  passphrases: Passphrases,
  signal: AbortSignal,
): Promise<Description> {
  const counter = meter = new Meter();
  const found = await openPlace(place, counter, passphrases, signal);
  const { overlayName, reopenOverlay } = await import("./edits.ts");
  const file = await overlayName(place, found.image);
  const opened = new Session(place, passphrases, found, counter, file);
  try {
    if (found.locked === undefined) {
      const { overlayKey } = opened;
      opened.overlay = await reopenOverlay(file, found.image.node, overlayKey);
    }
  } catch (error) {
    await found.close();
    throw error;
  }
  if (turn !== openings) {
    await opened.close();
    throw new Error("Another image was opened");
  }
  const before = session;
  session = opened;
  await before?.close();
  return await describe(opened);
}

/** What an earlier page has left, if no other window is using it. */
async function clear(): Promise<void> {
  const { removeFile, UNFINISHED } = await import("./kept_files.ts");
  // The browser may have no storage at all.
  await removeFile(UNFINISHED).catch(() => {});
}

async function edit(ask: Requests["edit"]["ask"]): Promise<Description> {
  const { makeOverlay, parseBytes, parseOffset } = await import("./edits.ts");
  const shown = current();
  const { image } = shown.opened;
  // A cluster that is written in part is completed from the backing file.
  refuseIncomplete(shown.opened);
  const offset = parseOffset(ask.offset);
  const bytes = parseBytes(ask.bytes);
  if (offset + bytes.length > image.size) {
    throw new Error(`The disk ends at ${image.size}`);
  }
  const overlay = shown.overlay ??= await makeOverlay(
    shown.overlayFile,
    image.node,
    shown.overlayKey,
  );
  await overlay.image.write(offset, bytes);
  await overlay.image.flush();
  return await describe(shown);
}

async function forget(): Promise<Description> {
  const { removeOverlay } = await import("./edits.ts");
  const shown = current();
  await shown.overlay?.close();
  shown.overlay = undefined;
  await removeOverlay(shown.overlayFile);
  return await describe(shown);
}

const running = new Map<number, AbortController>();
/** Milliseconds between reports. */
const INTERVAL = 100;

function post(reply: Reply): void {
  postMessage(reply);
}

let reported = -1;

function reportTraffic(): void {
  const { fetched, total } = meter;
  if (fetched === reported) return;
  reported = fetched;
  post({ traffic: { fetched, total } });
}

async function answer({ id, name, ask }: Call): Promise<void> {
  const controller = new AbortController();
  running.set(id, controller);
  let last = 0;
  const work: Work = {
    signal: controller.signal,
    progress(done, total) {
      const now = performance.now();
      if (now - last < INTERVAL) return;
      last = now;
      post({ id, done, total });
      reportTraffic();
    },
  };
  try {
    const handle = handlers[name] as (
      ask: unknown,
      work: Work,
    ) => Promise<unknown>;
    // What cannot be interrupted goes on, unobserved.
    const cancelled = Promise.withResolvers<never>();
    controller.signal.onabort = () => cancelled.reject(new Error());
    const answer = await Promise.race([handle(ask, work), cancelled.promise]);
    post({ id, answer });
  } catch (error) {
    const isCancelled = controller.signal.aborted;
    const message = error instanceof Error ? error.message : String(error);
    post({ id, error: isCancelled ? "Cancelled" : message });
  } finally {
    running.delete(id);
    reportTraffic();
  }
}

addEventListener("message", ({ data }: MessageEvent<Call | Cancel>) => {
  if ("cancel" in data) running.get(data.cancel)?.abort();
  else answer(data);
});
