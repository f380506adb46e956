/**
 * A picture as PNG. (Source: the PNG specification, third edition; palette,
 * one byte a pixel.)
 *
 * @module
 */
import { type LookName, LOOKS } from "./looks.ts";
import type { Picture } from "./picture.ts";
import {
  barsOf,
  COLUMNS,
  headingOf,
  legendOf,
  opacityOf,
  SHADES,
  spacesOf,
} from "./sheet.ts";
import type { Space } from "./space.ts";

/** Pixels. */
const [CELL, GAP, LINE] = [8, 24, 16];
const WIDTH = COLUMNS * CELL;
/** Size of a letter in dots, and of a dot in pixels. */
const [LETTER_WIDTH, LETTER_HEIGHT, DOT] = [3, 5, 2];
const ADVANCE = (LETTER_WIDTH + 1) * DOT;

/** The colours: paper, ink, then the shades of each look. */
const [PAPER, INK, FIRST_LOOK] = [0, 1, 2];
const NAMES = Object.keys(LOOKS) as LookName[];

/**
 * A picture as the bytes of a PNG file.
 *
 * @category Jobs
 */
export async function pictureToPng(
  picture: Picture,
): Promise<Uint8Array<ArrayBuffer>> {
  const spaces = spacesOf(picture);
  const rows = Math.max(...spaces.map((space) => rowsOf(space)));
  const lines = Math.max(...spaces.map((space) => legendOf(space).length));
  const top = 4 * LINE;
  const width = spaces.length * (WIDTH + GAP) + GAP;
  const height = top + rows * CELL + (lines + 2) * LINE;
  const canvas = new Canvas(width, height);
  canvas.text(GAP, LINE, `${picture.name} (${picture.format})`);
  spaces.forEach((space, index) =>
    drawSpace(canvas, space, GAP + index * (WIDTH + GAP), top)
  );
  return await encode(canvas);
}

function rowsOf(space: Space): number {
  return Math.ceil(space.cells / COLUMNS);
}

function drawSpace(
  canvas: Canvas,
  space: Space,
  left: number,
  top: number,
): void {
  canvas.text(left, top - LINE, headingOf(space));
  for (const { cell, count, name, shade } of barsOf(space)) {
    const x = left + (cell % COLUMNS) * CELL;
    const y = top + Math.floor(cell / COLUMNS) * CELL;
    canvas.fill(x, y, count * CELL, CELL, colourOf(name, shade));
  }
  let y = top + rowsOf(space) * CELL + LINE;
  for (const { name, shade, text } of legendOf(space)) {
    canvas.fill(left, y, 12, 12, colourOf(name, shade));
    canvas.text(left + 20, y + 1, text);
    y += LINE;
  }
}

/** The colour of a look, as an index into the palette. */
function colourOf(name: LookName, shade: number): number {
  return FIRST_LOOK + NAMES.indexOf(name) * SHADES + shade - 1;
}

function palette(): number[] {
  const colours = [255, 255, 255, 27, 31, 36];
  for (const name of NAMES) {
    for (let shade = 1; shade <= SHADES; shade++) {
      const opacity = opacityOf(shade);
      for (const part of LOOKS[name].colour) {
        colours.push(Math.round(255 - (255 - part) * opacity));
      }
    }
  }
  return colours;
}

/** Pixels, as indices into the palette. */
class Canvas {
  readonly pixels: Uint8Array;

  constructor(readonly width: number, readonly height: number) {
    this.pixels = new Uint8Array(width * height).fill(PAPER);
  }

  /** Fill a rectangle, clipped to the canvas. */
  fill(x: number, y: number, width: number, height: number, colour: number) {
    const right = Math.min(x + width, this.width);
    const bottom = Math.min(y + height, this.height);
    for (let row = y; row < bottom; row++) {
      const start = row * this.width;
      if (x < right) this.pixels.fill(colour, start + x, start + right);
    }
  }

  /** Draw a line of text in capitals. */
  text(x: number, y: number, words: string): void {
    for (const letter of words.toUpperCase()) {
      if (letter !== " ") this.#letter(x, y, FONT.get(letter) ?? UNKNOWN);
      x += ADVANCE;
    }
  }

  #letter(x: number, y: number, rows: string): void {
    for (let row = 0; row < LETTER_HEIGHT; row++) {
      for (let column = 0; column < LETTER_WIDTH; column++) {
        if (!(Number(rows[row]) & (4 >> column))) continue;
        this.fill(x + column * DOT, y + row * DOT, DOT, DOT, INK);
      }
    }
  }
}

/** Letters, each with its rows of three dots as octal digits. */
const FONT = new Map(
  ("A25755 B65656 C34443 D65556 E74647 F74644 G34553 H55755 I72227 J11152 " +
    "K55655 L44447 M57755 N65555 O25552 P65644 Q25563 R65655 S34216 T72222 " +
    "U55557 V55552 W55775 X55255 Y55222 Z71247 075557 126227 261247 361216 " +
    "455711 574616 634757 771222 875757 975716 :02020 .00002 ,00024 -00700 " +
    "(24442 )21112 /11244 _00007 ")
    .trim().split(" ").map((glyph) => [glyph[0], glyph.slice(1)] as const),
);
/** The shape of a letter that the font lacks. */
const UNKNOWN = "75557";

async function encode(canvas: Canvas): Promise<Uint8Array<ArrayBuffer>> {
  const { width, height, pixels } = canvas;
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 3], 8); // 8 bits, palette.
  // Each row begins with its filter type: none.
  const rows = new Uint8Array((width + 1) * height);
  for (let row = 0; row < height; row++) {
    const from = row * width;
    rows.set(pixels.subarray(from, from + width), row * (width + 1) + 1);
  }
  const stream = new Blob([rows]).stream()
    .pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(stream).arrayBuffer());
  const file = new Blob([
    Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a),
    chunk("IHDR", header),
    chunk("PLTE", Uint8Array.from(palette())),
    chunk("IDAT", data),
    chunk("IEND", new Uint8Array()),
  ]);
  return new Uint8Array(await file.arrayBuffer());
}

/** A chunk: its length, type, content and checksum. */
function chunk(type: string, content: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(content, 8);
  const end = content.length + 8;
  view.setUint32(end, crc32(bytes.subarray(4, end)));
  return bytes;
}

/** The checksum of PNG's Annex D. */
function crc32(bytes: Uint8Array): number {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) {
      crc = crc >>> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
  }
  return ~crc >>> 0;
}
