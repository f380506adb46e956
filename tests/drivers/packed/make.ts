/** Archives and compressed files for tests. @module */
import {
  constants,
  deflateRawSync,
  gzipSync,
  zstdCompressSync,
} from "node:zlib";
import { crc32 } from "../../../drivers/packed/crc32.ts";
import { getDriver, loadDriver } from "../../../mod.ts";
import { openNode } from "../../../core/open.ts";
import { Random } from "../../model.ts";
import { storeOf } from "../qcow2/bytes.ts";

/** A disk of 200 KiB, part of which does not compress. */
export const disk: Uint8Array = (() => {
  const bytes = new Uint8Array(200 * 1024);
  bytes.set(new Random(3).bytes(20_000), 1000);
  bytes.fill(7, 150_000, 180_000);
  return bytes;
})();

/** Concatenate parts. */
export function joined(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(
    parts.reduce((sum, { length }) => sum + length, 0),
  );
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** How to make a tar archive. */
export interface TarOptions {
  /** Changes each header. */
  change?(header: Uint8Array): void;
  /** Whether checksums are updated afterwards. Default: true. */
  sums?: boolean;
  /** Whether to leave out the end marker. Default: false. */
  isOpen?: boolean;
}

/** A tar archive. */
export function tar(
  members: readonly (readonly [name: string, content: Uint8Array])[],
  { change = () => {}, sums = true, isOpen = false }: TarOptions = {},
): Uint8Array {
  const parts: Uint8Array[] = [];
  for (const [name, content] of members) {
    const header = new Uint8Array(512);
    const put = (at: number, text: string) =>
      header.set(new TextEncoder().encode(text), at);
    put(0, name);
    put(100, "0000644");
    put(124, content.length.toString(8).padStart(11, "0"));
    put(156, "0");
    put(257, "ustar\x0000");
    const sum = () => {
      put(148, " ".repeat(8));
      const total = header.reduce((sum, byte) => sum + byte, 0);
      put(148, `${total.toString(8).padStart(6, "0")}\0`);
    };
    sum();
    change(header);
    if (sums) sum();
    const padding = new Uint8Array((512 - content.length % 512) % 512);
    parts.push(header, content, padding);
  }
  if (!isOpen) parts.push(new Uint8Array(1024));
  return joined(parts);
}

/** A gzip file. */
export function gzip(content: Uint8Array): Uint8Array {
  return new Uint8Array(gzipSync(content));
}

/** A gzip file of small members that state their own lengths. */
export function bgzf(content: Uint8Array): Uint8Array {
  const parts: Uint8Array[] = [];
  for (let at = 0; at < content.length; at += 60_000) {
    const part = content.subarray(at, at + 60_000);
    const data = deflateRawSync(part);
    const header = new Uint8Array(18);
    header.set([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 6, 0, 0x42, 0x43, 2, 0]);
    const view = new DataView(header.buffer);
    view.setUint16(16, 18 + data.length + 8 - 1, true);
    const trailer = new DataView(new ArrayBuffer(8));
    trailer.setUint32(0, crc32(part), true);
    trailer.setUint32(4, part.length, true);
    parts.push(header, data, new Uint8Array(trailer.buffer));
  }
  return joined(parts);
}

/** An xz file, made by the xz program. */
export async function xz(
  content: Uint8Array,
  ...args: string[]
): Promise<Uint8Array> {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeFile(path, content);
    const { stdout } = await new Deno.Command("xz", {
      args: ["-c", ...args, path],
    }).output();
    return stdout;
  } finally {
    await Deno.remove(path);
  }
}

const CHECKED = {
  params: { [constants.ZSTD_c_checksumFlag]: 1 },
};

/** A zstd file with checksums. */
export function zstd(content: Uint8Array): Uint8Array {
  return new Uint8Array(zstdCompressSync(content, CHECKED));
}

/** A zstd file of several frames, with a seek table. */
export function seekableZstd(content: Uint8Array): Uint8Array {
  const parts: Uint8Array[] = [];
  const sizes: number[] = [];
  for (let at = 0; at < content.length; at += 50_000) {
    const part = content.subarray(at, at + 50_000);
    parts.push(zstd(part));
    sizes.push(parts.at(-1)!.length, part.length);
  }
  const table = new DataView(new ArrayBuffer(8 + sizes.length * 4 + 9));
  table.setUint32(0, 0x184d2a5e, true);
  table.setUint32(4, sizes.length * 4 + 9, true);
  for (const [i, size] of sizes.entries()) {
    table.setUint32(8 + i * 4, size, true);
  }
  const footer = 8 + sizes.length * 4;
  table.setUint32(footer, sizes.length / 2, true);
  table.setUint32(footer + 5, 0x8f92eab1, true);
  return joined([...parts, new Uint8Array(table.buffer)]);
}

/** A zip archive with one member. */
export function zip(
  name: string,
  content: Uint8Array,
  method: 0 | 8,
): Uint8Array {
  const data = method === 0 ? content : new Uint8Array(deflateRawSync(content));
  const called = new TextEncoder().encode(name);
  const common = (view: DataView, at: number) => {
    view.setUint16(at, method, true);
    view.setUint32(at + 6, crc32(content), true);
    view.setUint32(at + 10, data.length, true);
    view.setUint32(at + 14, content.length, true);
    view.setUint16(at + 18, called.length, true);
  };
  const local = new DataView(new ArrayBuffer(30));
  local.setUint32(0, 0x04034b50, true);
  common(local, 8);
  const central = new DataView(new ArrayBuffer(46));
  central.setUint32(0, 0x02014b50, true);
  common(central, 10);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(10, 1, true);
  end.setUint32(12, 46 + called.length, true);
  end.setUint32(16, 30 + called.length + data.length, true);
  const [head, entry, last] = [local, central, end]
    .map(({ buffer }) => new Uint8Array(buffer as ArrayBuffer));
  return joined([head, called, data, entry, called, last]);
}

/** The whole unpacked content of a file. */
export async function unpackAll(
  name: string,
  bytes: Uint8Array,
): Promise<Uint8Array> {
  const driver = await loadDriver(getDriver(name));
  const file = await openNode({ driver: "memory", store: storeOf(bytes) });
  try {
    const parts: Uint8Array[] = [];
    let length = 0;
    for await (const part of driver.unpack!({}, file)) {
      parts.push(part.slice());
      length += part.length;
      if (length > 16 * disk.length) break;
    }
    return joined(parts);
  } finally {
    await file.close();
  }
}
