/**
 * Encoding a header with its extensions and the backing file name.
 *
 * @module
 */
import { allocate, roundUp, viewOf } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { MAGIC, writeUint64 } from "./format.ts";
import {
  type FeatureBits,
  type Header,
  V2_LENGTH,
  V3_LENGTH,
} from "./header.ts";
import { Extension, type HeaderExtension, text } from "./header_extensions.ts";

const FEATURE_NAMES: readonly [type: number, bit: number, name: string][] = [
  [0, 0, "dirty bit"],
  [0, 1, "corrupt bit"],
  [0, 2, "external data file"],
  [0, 3, "compression type"],
  [0, 4, "extended L2 entries"],
  [1, 0, "lazy refcounts"],
  [2, 0, "bitmaps"],
  [2, 1, "raw external data"],
];

/**
 * Encode a header with all its extensions and the backing file name.
 *
 * @throws {BlockError} ENOSPC if they do not fit into the first cluster.
 */
export function encodeHeader(header: Header): Uint8Array {
  const clusterSize = 2 ** header.clusterBits;
  const buffer = allocate(clusterSize + 65536);
  const view = viewOf(buffer);
  const known = header.version === 2 ? V2_LENGTH : V3_LENGTH;
  let at = known;
  const append = (bytes: Uint8Array) => {
    if (at + bytes.length > clusterSize) throw new BlockError("ENOSPC");
    buffer.set(bytes, at);
    at += bytes.length;
  };
  if (header.version === 3) append(header.unknownFields);
  const headerLength = at;
  for (const { type, data } of headerExtensions(header)) {
    const padded = new Uint8Array(8 + roundUp(data.length, 8));
    viewOf(padded).setUint32(0, type);
    viewOf(padded).setUint32(4, data.length);
    padded.set(data, 8);
    append(padded);
  }
  const name = backingName(header);
  if (header.backingFile !== undefined) {
    if (name.length > 1023) throw new BlockError("EINVAL");
    writeUint64(view, 8, at);
    view.setUint32(16, name.length);
    append(name);
  }
  view.setUint32(0, MAGIC);
  view.setUint32(4, header.version);
  view.setUint32(20, header.clusterBits);
  writeUint64(view, 24, header.size);
  view.setUint32(32, header.cryptMethod);
  view.setUint32(36, header.l1Size);
  writeUint64(view, 40, header.l1TableOffset);
  writeUint64(view, 48, header.refcountTableOffset);
  view.setUint32(56, header.refcountTableClusters);
  view.setUint32(60, header.snapshotCount);
  writeUint64(view, 64, header.snapshotsOffset);
  if (header.version === 3) {
    writeBits(view, 72, header.incompatible);
    writeBits(view, 80, header.compatible);
    writeBits(view, 88, header.autoclear);
    view.setUint32(96, header.refcountOrder);
    view.setUint32(100, headerLength);
    view.setUint8(104, header.compressionType === "zstd" ? 1 : 0);
  }
  return buffer.subarray(0, at);
}

function writeBits(view: DataView, at: number, bits: FeatureBits): void {
  view.setUint32(at, bits.high);
  view.setUint32(at + 4, bits.low);
}

function headerExtensions(header: Header): HeaderExtension[] {
  const list: HeaderExtension[] = [];
  const encode = (text: string) => new TextEncoder().encode(text);
  if (header.backingFormat !== undefined) {
    const data = encode(header.backingFormat);
    list.push({ type: Extension.BACKING_FORMAT, data });
  }
  if (header.dataFile !== undefined) {
    list.push({ type: Extension.DATA_FILE, data: encode(header.dataFile) });
  }
  if (header.encryptionHeader) {
    const { offset, length } = header.encryptionHeader;
    list.push({ type: Extension.ENCRYPTION, data: uint64s(offset, length) });
  }
  if (header.version === 3 && header.clusterBits > 12) {
    list.push({ type: Extension.FEATURE_NAMES, data: featureNameTable() });
  }
  if (header.bitmaps) {
    const { count, directorySize, directoryOffset } = header.bitmaps;
    const data = uint64s(0, directorySize, directoryOffset);
    viewOf(data).setUint32(0, count);
    list.push({ type: Extension.BITMAPS, data });
  }
  // There may be more of them than a call can take arguments.
  return list.concat(
    header.unknownExtensions,
    { type: Extension.END, data: new Uint8Array() },
  );
}

function uint64s(...values: number[]): Uint8Array {
  const data = new Uint8Array(values.length * 8);
  values.forEach((value, i) => writeUint64(viewOf(data), i * 8, value));
  return data;
}

function featureNameTable(): Uint8Array {
  const data = new Uint8Array(FEATURE_NAMES.length * 48);
  FEATURE_NAMES.forEach(([type, bit, name], i) => {
    data[i * 48] = type;
    data[i * 48 + 1] = bit;
    data.set(new TextEncoder().encode(name), i * 48 + 2);
  });
  return data;
}

/** A name that has not changed is written with its original bytes. */
function backingName({ backingFile = "", rawBackingFile }: Header): Uint8Array {
  return rawBackingFile && text(rawBackingFile) === backingFile
    ? rawBackingFile
    : new TextEncoder().encode(backingFile);
}
