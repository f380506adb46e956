/**
 * The page's worker: all that opens, reads and computes.
 *
 * @module
 */
import { chainExtents, isStored } from "../core/extents.ts";
import { nameOf } from "../core/node_names.ts";
import { bytesText } from "../core/picture/sheet.ts";
import {
  type BlockNode,
  type CheckResult,
  drawDifference,
  drawPicture,
  type NodeInfo,
  type Picture,
  pictureToSvg,
  streamImage,
} from "../mod.ts";
import { drawn } from "./drawn.ts";
import {
  makeOverlay,
  type Overlay,
  overlayName,
  parseBytes,
  parseOffset,
  removeOverlay,
  reopenOverlay,
} from "./edits.ts";
import type {
  Call,
  Cancel,
  Description,
  DifferenceDrawing,
  Drawing,
  Reply,
  Requests,
} from "./messages.ts";
import { type Opened, openPlace } from "./opening.ts";
import { Meter } from "./sources.ts";

/** What a request is done with. */
interface Work {
  readonly signal: AbortSignal;
  progress(done: number, total: number): void;
}

type Handlers = {
  [Name in keyof Requests]: (
    ask: Requests[Name]["ask"],
    work: Work,
  ) => Promise<Requests[Name]["answer"]>;
};

let opened: Opened | undefined;
/** What the user has changed of it, on top of it. */
let overlay: Overlay | undefined;
let overlayFile = "";
let picture: Picture | undefined;
let meter = new Meter();

const handlers: Handlers = {
  open,
  draw,
  lines,
  compare,
  convert,
  edit,
  forget,
};

/** Images that were to be opened: only the last one is of interest. */
let openings = 0;

async function open({ place }: Requests["open"]["ask"]): Promise<Description> {
  const turn = ++openings;
  const before = { overlay, opened };
  opened = overlay = picture = undefined;
  await before.overlay?.close();
  await before.opened?.image.close();
  meter = new Meter();
  const found = await openPlace(place, meter);
  const file = await overlayName(place, found.image);
  const edits = await reopenOverlay(file, found.image.node);
  if (turn !== openings) {
    await edits?.close();
    await found.image.close();
    throw new Error("Another image was opened");
  }
  [opened, overlay, overlayFile] = [found, edits, file];
  return await describe();
}

async function describe(): Promise<Description> {
  const { image, chain, inspection } = current();
  const info = await image.node.info?.() ?? {};
  const snapshots = await image.node.snapshots?.list() ?? [];
  const edits = {
    name: "your edits, kept in this browser",
    format: "qcow2",
    size: image.size,
    isEdits: true,
  };
  return {
    name: chain[0].name,
    facts: factsOf(current(), info),
    findings: inspection.findings.map(({ severity, message }) =>
      `${severity}: ${message}`
    ),
    chain: overlay ? [edits, ...chain] : chain,
    snapshots: snapshots.map(({ id, name, dateSeconds, diskSize }) => ({
      id,
      name,
      date: dateSeconds * 1000,
      size: diskSize,
    })),
    bitmaps: overlay ? [] : info.bitmaps?.map(({ name }) => name) ?? [],
    targets: ["qcow2", "raw"],
  };
}

async function edit(ask: Requests["edit"]["ask"]): Promise<Description> {
  const { image } = current();
  // A cluster that is changed in part is completed from below.
  refuseIncomplete(current());
  const offset = parseOffset(ask.offset);
  const bytes = parseBytes(ask.bytes);
  if (offset + bytes.length > image.size) {
    throw new Error(`The disk ends at ${image.size}`);
  }
  overlay ??= await makeOverlay(overlayFile, image.node);
  await overlay.image.write(offset, bytes);
  await overlay.image.flush();
  return await describe();
}

async function forget(): Promise<Description> {
  await overlay?.close();
  overlay = undefined;
  await removeOverlay(overlayFile);
  return await describe();
}

function factsOf(
  { image, chain, inspection }: Opened,
  info: NodeInfo,
): (readonly [string, string])[] {
  const file = image.node.children.file;
  const facts: [string, string | undefined][] = [
    ["Image", chain[0].name],
    ["Format", image.format],
    ["Verdict of inspect", inspection.verdict],
    ["Disk", bytesText(image.size)],
    ["Partition table", inspection.partitionTable?.type],
    ["File system", inspection.fileSystem],
    ["File", file && bytesText(file.size)],
    ["Cluster", info.clusterSize && bytesText(info.clusterSize) || undefined],
    ["Encrypted", info.encrypted ? "yes" : undefined],
    [
      "Closed properly",
      info.dirty === undefined ? undefined : yes(!info.dirty),
    ],
    ["Backing file", info.backingFile],
    ["Bitmaps", info.bitmaps?.map(({ name }) => name).join(", ") || undefined],
  ];
  for (const [name, value] of Object.entries(info.specific?.data ?? {})) {
    if (typeof value === "object") continue;
    const text = typeof value === "boolean" ? yes(value) : String(value);
    facts.push([name.replaceAll("-", " "), text]);
  }
  return facts.filter((fact): fact is [string, string] =>
    fact[1] !== undefined
  );
}

function yes(value: boolean): string {
  return value ? "yes" : "no";
}

/** The disk that is shown. */
function disk(): BlockNode {
  return (overlay ?? current()).image.node;
}

/** Its data, which is not all there without its whole backing chain. */
function content(): BlockNode {
  refuseIncomplete(current());
  return disk();
}

function refuseIncomplete({ chain }: Opened): void {
  const missing = chain.find((layer) => layer.missing !== undefined);
  if (!missing) return;
  throw new Error(
    `Part of the data is in '${missing.name}', which is not at hand: ` +
      missing.missing,
  );
}

function current(): Opened {
  if (opened) return opened;
  throw new Error("No image is open");
}

async function draw(
  { cells, bitmap }: Requests["draw"]["ask"],
  { signal, progress }: Work,
): Promise<Drawing> {
  picture = await drawPicture(disk(), { cells, bitmap, signal, progress });
  const { guest, host, layout, notes } = picture;
  // Snapshots are in the image, not in the overlay.
  const whole = overlay
    ? await current().image.node.image?.layout?.({ signal }).catch(() =>
      undefined
    )
    : layout;
  return {
    guest: drawn(guest),
    host: host && drawn(host),
    verdict: layout && verdictOf(layout.check),
    findings: [...notes, ...layout?.findings ?? []],
    frees: Object.fromEntries(
      whole?.snapshots.map(({ id, frees }) => [id, frees]) ?? [],
    ),
    svg: pictureToSvg(picture),
  };
}

function verdictOf({ corruptions, leaks }: CheckResult): string {
  const parts = [
    ...corruptions > 0 ? [`${corruptions} errors: data may be damaged`] : [],
    ...leaks > 0 ? [`${leaks} leaked clusters: space is wasted`] : [],
  ];
  return parts.join("; ") || "No errors were found";
}

/** Lines that are shown of a cell. */
const MAX_LINES = 12;

async function lines(
  { space, offset, length }: Requests["lines"]["ask"],
): Promise<readonly string[]> {
  const found: string[] = [];
  const add = (from: number, bytes: number, what: string) => {
    if (found.length < MAX_LINES) {
      found.push([hex(from), hex(bytes), what].join("  "));
      return true;
    }
    found.push("…");
    return false;
  };
  if (space === "guest") {
    for await (const extent of chainExtents(disk(), offset, length)) {
      const { allocated, compressed, file, hostOffset, depth } = extent;
      const layer = depth > 0 ? `, ${depth} below the image` : "";
      const what = !isStored(extent)
        ? allocated ? "zeroes" : "not allocated"
        : compressed
        ? `compressed data${layer}`
        : hostOffset === undefined || !file
        ? `data${layer}`
        : `${hex(hostOffset)}  ${nameOf(file)}`;
      if (!add(extent.offset, extent.length, what)) break;
    }
    return found;
  }
  const layout = picture?.layout;
  const end = Math.min(offset + length, layout?.size ?? 0);
  for (let at = offset; at < end && layout;) {
    const run = layout.runAt(at, end - at);
    const marks = (["shared", "leaked", "corrupt"] as const)
      .filter((mark) => run[mark]);
    const what = [run.use.replaceAll("-", " "), ...marks].join(", ");
    if (!add(at, run.length, what)) break;
    at += run.length;
  }
  return found;
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

async function compare(
  { place, cells }: Requests["compare"]["ask"],
  { signal, progress }: Work,
): Promise<DifferenceDrawing> {
  const { image } = current();
  const other = await openPlace(place, meter);
  try {
    refuseIncomplete(other);
    const { space, bytes, ranges } = await drawDifference(
      content(),
      other.image.node,
      { cells, signal, progress },
    );
    const sizes = image.size === other.image.size
      ? ""
      : `; the disks have ${image.size} and ${other.image.size} bytes`;
    const verdict = bytes === 0
      ? `The content is the same${sizes}`
      : `${bytesText(bytes)} differ${sizes}`;
    return {
      space: drawn(space),
      verdict,
      ranges: ranges.map(({ offset, length }) =>
        `${hex(offset)}  ${hex(length)}`
      ),
    };
  } finally {
    await other.image.close();
  }
}

async function convert(
  { format, target }: Requests["convert"]["ask"],
  { signal, progress }: Work,
): Promise<Requests["convert"]["answer"]> {
  let bytes = 0;
  const stream = streamImage(format, content(), { signal, progress })
    .pipeThrough(
      new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
        transform(chunk, controller) {
          bytes += chunk.length;
          controller.enqueue(chunk);
        },
      }),
    );
  if (!target) {
    const blob = await new Response(stream).blob();
    return { bytes, blob };
  }
  // Nothing takes the file's place until all has been written.
  await stream.pipeTo(await target.createWritable());
  return { bytes };
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
    // What cannot be interrupted goes on, and nobody waits for it.
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
