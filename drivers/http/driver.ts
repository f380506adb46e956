/**
 * The protocols `http` and `https`: objects on web servers, read in ranges.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import {
  fillVector,
  type IoVector,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import { asBlockError, BlockError } from "../../core/errors.ts";
import type {
  BlockNode,
  Extent,
  ReadFlags,
  RequestFlags,
} from "../../core/node.ts";
import { withoutSecrets } from "../../core/redaction.ts";
import {
  isPinned,
  type Opened,
  openRanged,
  RangedObject,
  type Version,
} from "../../core/remote/ranged_object.ts";
import { RemoteReader } from "../../core/remote/remote_reader.ts";
import type { DriverTraits } from "../../core/traits.ts";
import { download, type Downloaded } from "./download.ts";
import { httpTraits } from "./options.ts";
import { type Settings, settingsOf } from "./settings.ts";
import { Transport } from "./transport.ts";

/** The driver of URLs that begin with `http:`. */
export const httpDriver: BlockDriver = driverOf("http");

/** The driver of URLs that begin with `https:`. */
export const httpsDriver: BlockDriver = driverOf("https");

/** Bytes fetched on opening: five clusters, the metadata of most images. */
const HEAD = 320 * 1024;

function driverOf(scheme: "http" | "https"): BlockDriver {
  const facts = httpTraits(scheme);
  return {
    ...facts,
    async open(options, context) {
      const settings = await settingsOf(scheme, options, context);
      if (!context.readOnly) {
        throw new BlockError("EACCES", "curl driver does not support writes");
      }
      try {
        return new HttpNode(
          facts,
          settings.url,
          await contentOf(settings, context),
        );
      } catch (error) {
        throw asBlockError(error).prefixed("CURL: Error opening file: ");
      }
    },
  };
}

/** The source of a node's bytes. */
interface Content {
  readonly size: number;
  readv(
    offset: number,
    iov: IoVector,
    signal?: AbortSignal,
  ): Promise<void> | void;
  close(): Promise<void> | void;
}

/** An object that several nodes of this process may share. */
interface Shared {
  readonly version: Version;
  readonly reader: RemoteReader;
  users: number;
}

/** Objects being read, keyed by everything that distinguishes them. */
const objects = new Map<string, Shared>();

async function contentOf(
  settings: Settings,
  context: OpenContext,
): Promise<Content> {
  const { url, headers, patience, readAhead, connections } = settings;
  const { signal } = context;
  const transport = new Transport(url, headers, context.checkRedirect);
  const { send } = transport;
  const ask = (signal?: AbortSignal, known?: Version) =>
    openRanged(send, HEAD, patience, signal, known);
  const key = JSON.stringify([
    url,
    [...headers],
    patience,
    readAhead,
    connections,
  ]);
  const opened = await ask(signal, objects.get(key)?.version);
  if ("whole" in opened) {
    return await wholeContent(opened, ask, settings, signal);
  }
  const { version, head } = opened;
  if (!isPinned(version)) {
    context.warn(
      `'${
        withoutSecrets(url.href)
      }' has neither an ETag nor a Last-Modified: ` +
        "if it changes while it is read, that is noticed by its size only",
    );
  }
  const known = objects.get(key);
  const shared = known && isSame(known.version, version) ? known : {
    version,
    reader: new RemoteReader(
      reading(new RangedObject(send, version, patience)),
      head,
      { readAhead, connections },
    ),
    users: 0,
  };
  shared.users++;
  objects.set(key, shared);
  return {
    size: version.size,
    readv: (offset, iov, signal) => shared.reader.readv(offset, iov, signal),
    async close() {
      if (--shared.users > 0) return;
      if (objects.get(key) === shared) objects.delete(key);
      await shared.reader.close();
    },
  };
}

function reading(object: RangedObject) {
  return { size: object.version.size, read: object.read.bind(object) };
}

/** Whether two versions are certain to be the same. */
function isSame(one: Version, other: Version): boolean {
  return one.etag !== undefined && !one.etag.startsWith("W/") &&
    one.etag === other.etag && one.size === other.size;
}

async function wholeContent(
  opened: Extract<Opened, { whole: unknown }>,
  again: (signal: AbortSignal) => Promise<Opened>,
  { download: target, downloadLimit, patience }: Settings,
  signal: AbortSignal | undefined,
): Promise<Downloaded> {
  if (target === undefined) {
    await opened.whole.cancel().catch(() => {});
    throw new BlockError(
      "ENOTSUP",
      "Server does not support 'range' (byte ranges).",
      {
        hint:
          "All of it can be fetched once: give the option download=memory " +
          "or download=NEW-FILE.",
      },
    );
  }
  return await download(opened, again, target, downloadLimit, patience, signal);
}

/** An opened object. */
class HttpNode implements BlockNode {
  readonly driver: DriverTraits;
  readonly filename: string;
  readonly size: number;
  readonly readOnly = true;
  readonly children = {};
  readonly #content: Content;

  constructor(driver: DriverTraits, url: URL, content: Content) {
    this.driver = driver;
    this.filename = withoutSecrets(url.href);
    this.size = content.size;
    this.#content = content;
  }

  async readv(offset: number, iov: IoVector, flags?: ReadFlags): Promise<void> {
    checkSignal(flags?.signal);
    const length = vectorLength(iov);
    const inside = Math.max(0, Math.min(length, this.size - offset));
    if (inside > 0) {
      const part = sliceVector(iov, 0, inside);
      await this.#content.readv(offset, part, flags?.signal);
    }
    if (inside < length) fillVector(iov, inside, length - inside);
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    checkSignal(flags?.signal);
    const place = { hostOffset: offset, file: this };
    const inside = Math.min(length, this.size - offset);
    return Promise.resolve(
      inside > 0
        ? { length: inside, allocated: true, zero: false, ...place }
        : { length, allocated: true, zero: true, ...place },
    );
  }

  /** The space it takes up on the server is unknown. */
  info(): Promise<Record<string, never>> {
    return Promise.resolve({});
  }

  async close(): Promise<void> {
    await this.#content.close();
  }
}
