/**
 * Finding the end of a zstd frame without decompressing it (RFC 8878,
 * "Frames").
 *
 * @module
 */

const MAGIC = 0xfd2fb528;
/** Magic of frames without data; the lowest four bits may be anything. */
const SKIPPABLE_MAGIC = 0x184d2a50;

const SINGLE_SEGMENT = 0x20;
const CHECKSUM = 0x04;
const BLOCK_HEADER = 3;
const RLE = 1;
const RESERVED = 3;

/** Whether a frame holds no data. */
export function isSkippable(frame: Uint8Array): boolean {
  return frame.length >= 4 &&
    (littleEndian(frame, 0, 4) & ~15) >>> 0 === SKIPPABLE_MAGIC;
}

/**
 * Length of the frame at the start of `input`; `undefined` if it is incomplete.
 */
export function zstdFrameLength(input: Uint8Array): number | undefined {
  if (input.length < 8) return undefined;
  let at: number;
  if (isSkippable(input)) {
    at = 8 + littleEndian(input, 4, 4);
  } else {
    if (littleEndian(input, 0, 4) !== MAGIC) return undefined;
    const descriptor = input[4];
    at = 5 + headerRest(descriptor);
    for (let isLast = false; !isLast;) {
      if (at + BLOCK_HEADER > input.length) return undefined;
      const header = littleEndian(input, at, BLOCK_HEADER);
      const type = header >> 1 & 3;
      if (type === RESERVED) return undefined;
      at += BLOCK_HEADER + (type === RLE ? 1 : header >> 3);
      isLast = (header & 1) === 1;
    }
    if (descriptor & CHECKSUM) at += 4;
  }
  return at <= input.length ? at : undefined;
}

/**
 * The content size that a frame declares, if it does, and the window size that
 * decompressing it needs.
 */
export function zstdContent(
  frame: Uint8Array,
): { content?: number; window: number } {
  const descriptor = frame[4];
  const isSingle = (descriptor & SINGLE_SEGMENT) !== 0;
  const size = [isSingle ? 1 : 0, 2, 4, 8][descriptor >> 6];
  const end = 5 + headerRest(descriptor);
  // Two bytes count from 256 on.
  const content = size === 0
    ? undefined
    : littleEndian(frame, end - size, size) + (size === 2 ? 256 : 0);
  if (isSingle) return { content, window: content! };
  const base = 2 ** (10 + (frame[5] >> 3));
  return { content, window: base + base / 8 * (frame[5] & 7) };
}

/** Length of the frame header after its descriptor. */
function headerRest(descriptor: number): number {
  const isSingle = (descriptor & SINGLE_SEGMENT) !== 0;
  const contentSize = [isSingle ? 1 : 0, 2, 4, 8][descriptor >> 6];
  const dictionary = [0, 1, 2, 4][descriptor & 3];
  return (isSingle ? 0 : 1) + dictionary + contentSize;
}

function littleEndian(bytes: Uint8Array, at: number, count: number): number {
  let value = 0;
  for (let i = count - 1; i >= 0; i--) value = value * 256 + bytes[at + i];
  return value;
}
