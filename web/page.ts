/// <reference lib="dom" />
/**
 * The page. The worker does all the work, so that the page stays responsive.
 *
 * @module
 */
import { bytesText } from "../core/picture/sheet.ts";
import { Client, type Pending } from "./client.ts";
import type { Order } from "./curve.ts";
import { byId, element } from "./elements.ts";
import { figureOf } from "./figure.ts";
import type {
  Description,
  Drawing,
  DrawnSpace,
  Place,
  Requests,
} from "./messages.ts";

let client: Client | undefined;
let running: Pending<unknown> | undefined;
let description: Description | undefined;
let drawing: Drawing | undefined;

/** The worker is started when there is something to do. */
function theClient(): Client {
  if (client) return client;
  client = new Client();
  client.onTraffic = ({ fetched, total }) => {
    byId("traffic").textContent = `${bytesText(fetched)} of ${
      bytesText(total)
    } read`;
  };
  return client;
}

/**
 * Send the worker a request that may take a while: its progress is shown, and it
 * can be cancelled. It cancels the request before it.
 */
async function work<Name extends keyof Requests>(
  what: string,
  name: Name,
  ask: Requests[Name]["ask"],
): Promise<Requests[Name]["answer"] | undefined> {
  running?.cancel();
  const progress = byId<HTMLProgressElement>("progress");
  progress.hidden = byId("cancel").hidden = false;
  progress.removeAttribute("value");
  byId("error").hidden = true;
  byId("status").textContent = `${what} …`;
  const pending = theClient().ask(name, ask, (done, total) => {
    if (running !== pending) return;
    progress.max = total;
    progress.value = done;
  });
  running = pending;
  try {
    const answer = await pending.answer;
    if (running !== pending) return undefined; // Something else was asked for.
    byId("status").textContent = `${what}: done`;
    return answer;
  } catch (error) {
    if (running === pending) fail(error);
    return undefined;
  } finally {
    if (running === pending) {
      running = undefined;
      progress.hidden = byId("cancel").hidden = true;
    }
  }
}

function fail(error: unknown): void {
  const { message } = error as Error;
  byId("status").textContent = "";
  byId("error").textContent = message;
  byId("error").hidden = false;
}

async function open(place: Place): Promise<void> {
  // A reload opens the same URL again; a file must be dropped again.
  const address = place.url ? `#${encodeURIComponent(place.url)}` : "";
  history.replaceState(null, "", location.pathname + address);
  byId("result").hidden = byId("unlock").hidden = true;
  byId("difference").replaceChildren();
  byId("difference-verdict").textContent = "";
  byId("ranges").hidden = true;
  const found = await work("Opening", "open", { place });
  if (found) await show(found);
}

async function show(found: Description): Promise<void> {
  description = found;
  drawing = undefined;
  showLock(found);
  byId("forget").hidden = !found.chain[0].isEdits;
  showFacts(found);
  showTree(found, {});
  const bitmap = byId<HTMLSelectElement>("bitmap");
  bitmap.replaceChildren(
    new Option("no bitmap", ""),
    ...found.bitmaps.map((name) => new Option(name)),
  );
  byId("bitmap-label").hidden = found.bitmaps.length === 0;
  const format = byId<HTMLSelectElement>("format");
  format.replaceChildren(
    ...found.targets.map(({ text }, index) => new Option(text, `${index}`)),
  );
  byId("result").hidden = false;
  await draw();
}

/** Ask for the passphrase that is missing, if one is. */
function showLock({ locked }: Description): void {
  const form = byId("unlock");
  const input = byId<HTMLInputElement>("passphrase");
  form.hidden = locked === undefined;
  input.value = "";
  if (locked === undefined) return;
  form.querySelector("label")!.textContent =
    `“${locked}” is encrypted. Its passphrase:`;
  input.focus();
}

async function unlock(): Promise<void> {
  const input = byId<HTMLInputElement>("passphrase");
  const passphrase = input.value;
  const found = await work("Unlocking", "unlock", { passphrase });
  if (found) await show(found);
  else input.select();
}

async function draw(): Promise<void> {
  const cells = Number(byId<HTMLSelectElement>("cells").value);
  const bitmap = byId<HTMLSelectElement>("bitmap").value || undefined;
  const found = await work("Drawing", "draw", { cells, bitmap });
  if (!found || !description) return;
  drawing = found;
  showTree(description, found.frees);
  byId("verdict").textContent = found.verdict ? `Check: ${found.verdict}.` : "";
  showFindings(found.findings);
  showSpaces();
}

function showFacts({ facts, findings }: Description): void {
  byId("inspection").replaceChildren(
    ...findings.map((line) => {
      const item = element("li", line);
      [item.className] = line.split(":", 1);
      return item;
    }),
  );
  byId("facts").replaceChildren(
    ...facts.flatMap(([name, value]) => [
      element("dt", name),
      element("dd", value),
    ]),
  );
}

function showFindings(findings: readonly string[]): void {
  const details = byId("findings");
  details.hidden = findings.length === 0;
  details.querySelector("summary")!.textContent = `${findings.length} findings`;
  details.querySelector("ul")!.replaceChildren(
    ...findings.map((line) => element("li", line)),
  );
}

/** The image, its snapshots, and below it what it builds upon. */
function showTree(
  { chain, snapshots }: Description,
  frees: Drawing["frees"],
): void {
  let below: HTMLLIElement | undefined;
  chain.toReversed().forEach((layer, index) => {
    const { name, format, size, missing } = layer;
    const item = element(
      "li",
      missing === undefined
        ? `${name} (${format}, ${bytesText(size!)})`
        : `${name}: not at hand: ${missing}`,
    );
    const list = element("ul");
    // The image lies below the edits, if there are any.
    if (index === chain.length - (chain[0].isEdits ? 2 : 1)) {
      for (const snapshot of snapshots) {
        const freed = frees[snapshot.id];
        const date = new Date(snapshot.date).toISOString().slice(0, 19)
          .replace("T", " ");
        const amount = freed === undefined
          ? ""
          : `; deleting it would free ${bytesText(freed)}`;
        const text =
          `snapshot ${snapshot.id} “${snapshot.name}”, ${date} UTC, ` +
          `${bytesText(snapshot.size)}${amount}`;
        list.append(element("li", text));
      }
    }
    if (below) list.append(below);
    if (list.children.length > 0) item.append(list);
    below = item;
  });
  byId("tree").replaceChildren(below!);
}

function showSpaces(): void {
  if (!drawing) return;
  const order = byId<HTMLSelectElement>("order").value as Order;
  const { guest, host } = drawing;
  byId("spaces").replaceChildren(
    ...[guest, host].filter((space) => space !== undefined)
      .map((space) => figureOf(space, order, showCell)),
  );
}

/** Only the last cell that was pointed at is of interest. */
let wanted: { space: DrawnSpace; cell: number } | undefined;
let isAsking = false;

async function showCell(space: DrawnSpace, cell: number): Promise<void> {
  wanted = { space, cell };
  if (isAsking) return;
  isAsking = true;
  try {
    while (wanted) {
      const { space, cell }: NonNullable<typeof wanted> = wanted;
      wanted = undefined;
      const offset = cell * space.cellSize;
      const length = Math.min(space.cellSize, space.size - offset);
      const name = space === drawing?.host ? "host" : "guest";
      const pending = theClient().ask("lines", { space: name, offset, length });
      const lines = await pending.answer;
      const range = `0x${offset.toString(16)}, ${bytesText(length)}`;
      byId("cell").textContent = [`${space.title} ${range}`, ...lines].join(
        "\n",
      );
    }
  } catch (error) {
    byId("cell").textContent = (error as Error).message;
  } finally {
    isAsking = false;
  }
}

async function edit(): Promise<void> {
  const offset = byId<HTMLInputElement>("offset").value;
  const bytes = byId<HTMLInputElement>("bytes").value;
  const found = await work("Writing", "edit", { offset, bytes });
  if (found) await show(found);
}

async function forget(): Promise<void> {
  if (!confirm("Forget all edits of this image?")) return;
  const found = await work("Forgetting", "forget", {});
  if (found) await show(found);
}

/** A picker of browsers that can write to files. */
declare const showSaveFilePicker:
  | undefined
  | ((options: { suggestedName: string }) => Promise<FileSystemFileHandle>);

async function convert(): Promise<void> {
  if (!description) return;
  const index = Number(byId<HTMLSelectElement>("format").value);
  const { format, compression } = description.targets[index];
  const base = description.name.replace(/^.*\//, "").replace(/\.\w+$/, "");
  const suggestedName = `${base || "disk"}-copy.${format}`;
  let target: FileSystemFileHandle | undefined;
  if (typeof showSaveFilePicker === "function") {
    try {
      target = await showSaveFilePicker({ suggestedName });
    } catch (error) {
      if ((error as Error).name === "AbortError") return;
      throw error;
    }
  }
  const done = await work("Converting", "convert", {
    format,
    compression,
    target,
  });
  if (!done) return;
  const { bytes, blob } = done;
  if (blob) download(blob, suggestedName);
  byId("status").textContent = `Saved: ${bytesText(bytes)}`;
}

function download(blob: Blob, name: string): void {
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // The browser may still be reading it.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function compare(place: Place): Promise<void> {
  const cells = Number(byId<HTMLSelectElement>("cells").value);
  const own = byId<HTMLInputElement>("other-passphrase").value;
  const passphrase = own === "" ? undefined : own;
  const found = await work("Comparing", "compare", {
    place,
    cells,
    passphrase,
  });
  if (!found) return;
  const order = byId<HTMLSelectElement>("order").value as Order;
  byId("difference-verdict").textContent = found.verdict;
  byId("difference").replaceChildren(figureOf(found.space, order, showCell));
  byId("ranges").hidden = found.ranges.length === 0;
  byId("ranges").querySelector("pre")!.textContent = found.ranges.join("\n");
}

function filesOf(list: FileList | null): Place | undefined {
  const files = Array.from(list ?? [], (blob) => ({ name: blob.name, blob }));
  return files.length > 0 ? { files } : undefined;
}

/** An address; a page next to the images may use a short one. */
function addressOf(id: string): Place | undefined {
  const text = byId<HTMLInputElement>(id).value.trim();
  return text ? { url: new URL(text, document.baseURI).href } : undefined;
}

function listen(): void {
  const files = byId<HTMLInputElement>("files");
  files.addEventListener("change", () => {
    const place = filesOf(files.files);
    if (place) open(place);
  });
  // Allows choosing the same file again.
  files.addEventListener("click", () => files.value = "");
  byId("address").addEventListener("submit", (event) => {
    event.preventDefault();
    const place = addressOf("url");
    if (place) open(place);
  });
  const drop = byId("drop");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  addEventListener("dragleave", () => drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const place = filesOf(event.dataTransfer?.files ?? null);
    if (place) open(place);
  });
  byId("unlock").addEventListener("submit", (event) => {
    event.preventDefault();
    unlock();
  });
  byId("cancel").addEventListener("click", () => running?.cancel());
  byId("cells").addEventListener("change", draw);
  byId("bitmap").addEventListener("change", draw);
  byId("order").addEventListener("change", showSpaces);
  byId("save-svg").addEventListener("click", () => {
    if (!drawing) return;
    const type = "image/svg+xml";
    download(new Blob([drawing.svg], { type }), "disk.svg");
  });
  byId("convert").addEventListener("submit", (event) => {
    event.preventDefault();
    convert().catch(fail);
  });
  byId("edit").addEventListener("submit", (event) => {
    event.preventDefault();
    edit();
  });
  byId("forget").addEventListener("click", forget);
  byId("compare").addEventListener("submit", (event) => {
    event.preventDefault();
    const place = filesOf(byId<HTMLInputElement>("other-files").files) ??
      addressOf("other-url");
    if (place) compare(place);
  });
}

/** Open what the page's own address says: what was open before a reload. */
function openAddressed(): void {
  const url = decodeURIComponent(location.hash.slice(1));
  if (!URL.canParse(url)) return;
  byId<HTMLInputElement>("url").value = url;
  open({ url });
}

listen();
openAddressed();
