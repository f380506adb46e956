/**
 * New appliances: a tar archive of an OVF descriptor, a manifest with digests,
 * and the disk as a stream-optimized VMDK (DMTF DSP0243 version 1.1, section
 * 5.3: the descriptor comes first; the manifest is second or last).
 *
 * The archive begins with the size of the disk's file, which is known only
 * after compression. If the target can seek, the beginning is rewritten at the
 * end. Otherwise the disk is compressed twice, first only to learn its size;
 * the manifest, which needs the bytes as written, then comes last.
 *
 * @module
 */
import { allocate, padded, roundUp, viewOf } from "../../core/bytes.ts";
import { runningHash } from "../../core/crypto/hashes.ts";
import type {
  BlockDriver,
  StreamSource,
  StreamTarget,
} from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { OptionTable, OptionValues } from "../../core/options.ts";
import { loadFormat } from "../../core/registry.ts";
import { nameText } from "../../core/values.ts";
import { descriptorOf, type Plan } from "./ovf_text.ts";
import { BLOCK } from "./tar_members.ts";

/** The options of a new appliance. */
export const OVA_CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  name: {
    type: "string",
    default: "appliance",
    help: "Name of the virtual machine, and of the files in the archive",
  },
  adapter_type: {
    type: "enum",
    values: ["lsilogic", "buslogic", "ide"],
    default: "lsilogic",
    help: "Controller that the disk is attached to",
  },
  hwversion: {
    type: "number",
    default: 13,
    help: "VMware's version of the virtual hardware",
  },
  cpus: { type: "number", default: 1, help: "Virtual processors" },
  memory: {
    type: "size",
    default: 1024 ** 3,
    help: "Memory of the virtual machine, a multiple of 1 MiB",
  },
};

/** Archives end in zeroes, up to a multiple of this. */
const RECORD = 20 * BLOCK;

/** An archive with the disk `source`. */
export async function* streamAppliance(
  options: OptionValues,
  source: StreamSource,
  target?: StreamTarget,
): AsyncGenerator<Uint8Array> {
  const plan = planAppliance(options, source.size);
  const { name, diskName } = plan;
  const vmdk = await loadFormat("vmdk");
  const size = target ? 0 : await lengthOf(diskOf(vmdk, plan, source));
  let descriptor = descriptorOf(plan, size);
  let written = 0;
  const count = (bytes: Uint8Array) => {
    written += bytes.length;
    return bytes;
  };
  for (const part of member(`${name}.ovf`, descriptor)) yield count(part);
  const manifestAt = written;
  const emptyManifest = manifestOf(plan, [NO_DIGEST, NO_DIGEST]);
  if (target) {
    for (const part of member(`${name}.mf`, emptyManifest)) yield count(part);
  }
  const headerAt = written;
  yield count(tarHeader(diskName, size));
  const hash = runningHash("sha256");
  const start = written;
  for await (const part of diskOf(vmdk, plan, source)) {
    hash.update(part);
    yield count(part);
  }
  const length = written - start;
  if (!target && length !== size) {
    throw new BlockError("EIO", "The disk has changed while it was read");
  }
  yield count(allocate(roundUp(length, BLOCK) - length));
  if (target) descriptor = descriptorOf(plan, length);
  const descriptorHash = runningHash("sha256").update(descriptor).digest();
  const manifest = manifestOf(plan, [descriptorHash, hash.digest()]);
  if (target) {
    target.replace(BLOCK, descriptor);
    target.replace(manifestAt + BLOCK, manifest);
    target.replace(headerAt, tarHeader(diskName, length));
  } else {
    for (const part of member(`${name}.mf`, manifest)) yield count(part);
  }
  yield allocate(roundUp(written + 2 * BLOCK, RECORD) - written);
}

async function lengthOf(parts: AsyncIterable<Uint8Array>): Promise<number> {
  let length = 0;
  for await (const part of parts) length += part.length;
  return length;
}

function diskOf(
  vmdk: BlockDriver,
  { adapterType, hwVersion, diskName }: Plan,
  source: StreamSource,
): AsyncIterable<Uint8Array> {
  const options = {
    size: source.size,
    subformat: "streamOptimized",
    adapter_type: adapterType,
    hwversion: `${hwVersion}`,
  };
  return vmdk.stream!(options, source, undefined, diskName);
}

const MIB = 1024 * 1024;

/** Bytes of a name that leave room for a suffix in a tar header. */
const MAX_NAME = 80;

function planAppliance(options: OptionValues, capacity: number): Plan {
  const { name, adapter_type, hwversion, cpus, memory } = options;
  const bytes = new TextEncoder().encode(`${name}`).length;
  // deno-lint-ignore no-control-regex -- they are what is refused
  if (bytes < 1 || bytes > MAX_NAME || /[/\\\0-\x1f\x7f]/.test(`${name}`)) {
    throw invalid(
      `An appliance cannot be called '${
        nameText(`${name}`)
      }': its name has 1 ` +
        `to ${MAX_NAME} bytes, without slashes and control characters`,
    );
  }
  const inRange = (what: string, value: number, most: number) => {
    if (value >= 1 && value <= most) return value;
    throw invalid(`'${what}' must be 1 to ${most}`);
  };
  if (Number(memory) % MIB !== 0) {
    throw invalid("'memory' must be a multiple of 1 MiB");
  }
  return {
    name: `${name}`,
    diskName: `${name}-disk1.vmdk`,
    capacity,
    adapterType: `${adapter_type}`,
    hwVersion: inRange("hwversion", Number(hwversion), 99),
    cpus: inRange("cpus", Number(cpus), 1024),
    memory: inRange("memory", Number(memory) / MIB, 2 ** 30),
  };
}

const NO_DIGEST = allocate(32);

/** A line per file, as in DSP0243, except for the manifest itself. */
function manifestOf(
  { name, diskName }: Plan,
  [ofDescriptor, ofDisk]: readonly Uint8Array[],
): Uint8Array {
  return new TextEncoder().encode(
    `SHA256(${name}.ovf)= ${hex(ofDescriptor)}\n` +
      `SHA256(${diskName})= ${hex(ofDisk)}\n`,
  );
}

function hex(bytes: Uint8Array): string {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function member(name: string, content: Uint8Array): Uint8Array[] {
  return [tarHeader(name, content.length), ...padded(content, BLOCK)];
}

/** The largest size that a header can hold in octal. */
const MAX_OCTAL = 8 ** 11 - 1;

/**
 * A ustar header; GNU's format for sizes that ustar cannot hold.
 *
 * @param size Bytes.
 */
function tarHeader(name: string, size: number): Uint8Array {
  const header = allocate(BLOCK);
  const put = (at: number, text: string) => {
    header.set(new TextEncoder().encode(text), at);
  };
  const octal = (value: number, length: number) =>
    value.toString(8).padStart(length, "0");
  put(0, name);
  put(100, octal(0o644, 7));
  put(108, octal(0, 7));
  put(116, octal(0, 7));
  if (size <= MAX_OCTAL) {
    put(124, octal(size, 11));
    put(257, "ustar\x0000");
  } else {
    const view = viewOf(header);
    view.setUint8(124, 0x80);
    view.setUint32(128, Math.floor(size / 2 ** 32));
    view.setUint32(132, size % 2 ** 32);
    put(257, "ustar  ");
  }
  put(136, octal(Math.floor(Date.now() / 1000), 11));
  put(148, " ".repeat(8));
  put(156, "0");
  put(148, `${octal(header.reduce((sum, byte) => sum + byte, 0), 6)}\0`);
  return header;
}
