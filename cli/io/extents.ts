/**
 * `length`, `alloc`, `map` and `info`: size, allocation and description.
 *
 * @module
 */
import { SECTOR_SIZE } from "../../core/bytes.ts";
import { isInherited, skipFilters } from "../../core/extents.ts";
import type { BlockNode } from "../../core/node.ts";
import { detailLines, type Json } from "../json.ts";
import { knownDetails } from "../qemu_releases.ts";
import { integerText } from "../numbers.ts";
import { type IoCommand, Refusal } from "./command.ts";
import { byteCount, sizeText } from "./numbers.ts";

/** `length`. */
export const length: IoCommand = {
  name: "length",
  alias: "l",
  summary: "gets the length of the current file",
  run: ({ session }) =>
    session.program.print(`${sizeText(session.image.size)}\n`),
};

/** `alloc`. */
export const alloc: IoCommand = {
  name: "alloc",
  alias: "a",
  usage: "offset [count]",
  summary: "checks if offset is allocated in the file",
  min: 1,
  max: 2,

  async run({ session, words }) {
    const offset = byteCount(words[0]);
    let count = words.length > 1 ? byteCount(words[1]) : SECTOR_SIZE;
    const { image, program } = session;
    count = Math.min(count, Math.max(0, image.size - offset));
    let allocated = 0;
    for await (const run of runsOf(image.node, offset, count)) {
      if (run.isAllocated) allocated += run.length;
    }
    program.print(
      `${integerText(allocated)}/${integerText(count)} bytes allocated ` +
        `at offset ${sizeText(offset)}\n`,
    );
  },
};

/** `map`. */
export const map: IoCommand = {
  name: "map",
  usage: "",
  summary: "prints the allocated areas of a file",

  async run({ session }) {
    const { image, program } = session;
    for await (const run of runsOf(image.node, 0, image.size)) {
      const state = run.isAllocated ? "    allocated" : "not allocated";
      program.print(
        `${withHex(run.length)} bytes ${state} at offset ` +
          `${withHex(run.offset)}\n`,
      );
    }
  },
};

function withHex(value: number): string {
  return `${sizeText(value)} (0x${value.toString(16)})`;
}

/** A range of the file that is, or is not, allocated. */
interface Run {
  offset: number;
  length: number;
  isAllocated: boolean;
}

/** The runs of a range, each as long as possible. */
async function* runsOf(
  node: BlockNode,
  offset: number,
  length: number,
): AsyncGenerator<Run> {
  let run: Run | undefined;
  for (const end = offset + length; offset < end;) {
    const extent = await node.status(offset, end - offset);
    const isAllocated = !isInherited(extent);
    if (run?.isAllocated === isAllocated) {
      run.length += extent.length;
    } else {
      if (run) yield run;
      run = { offset, length: extent.length, isAllocated };
    }
    offset += extent.length;
  }
  if (run) yield run;
}

/** Formats of whose images QEMU's drivers tell nothing here. */
const TELL_NOTHING: readonly string[] = ["bochs", "cloop", "dmg", "parallels"];

/** `info`. */
export const info: IoCommand = {
  name: "info",
  alias: "i",
  summary: "prints information about the current file",

  async run({ session }) {
    const { image, opening, program } = session;
    // Ignore the copy-on-read filter of -C.
    const node = opening.copyOnRead ? skipFilters(image.node) : image.node;
    const format = node.driver.name;
    program.print(`format name: ${format}\n`);
    if (node.driver.role === "protocol") {
      // QEMU prints the name twice, and more only for files.
      program.print(`format name: ${format}\n`);
      if (!["file", "host_device"].includes(format)) throw new Refusal();
    }
    if (!node.info || TELL_NOTHING.includes(format)) throw new Refusal();
    const info = await image.info();
    const lines = [
      `cluster size: ${sizeText(info.clusterSize ?? 0)}`,
      `vm state offset: ${sizeText(info.vmStateOffset ?? 0)}`,
    ];
    if (info.specific) {
      lines.push("Format specific information:");
      lines.push(
        ...detailLines(knownDetails(info.specific.data as Json), "    "),
      );
    }
    program.print(lines.map((line) => `${line}\n`).join(""));
  },
};
