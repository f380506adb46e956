/**
 * Images of every kind that QEMU and we write, made by either side's tools.
 *
 * @module
 */
import { run, runOk, type Tools } from "../qemu.ts";

/** The size of each disk, in bytes. */
export const SIZE = 4 << 20;

/** The passphrase of all encrypted images. */
export const SECRET = ["--object", "secret,id=key,data=abc"];

/** A kind of image. */
export interface Kind {
  /** The name of its file. */
  readonly file: string;
  /** Its format. */
  readonly format: string;
  /** Creation options, if any. */
  readonly options?: string;
  /** The option that names its passphrase, if it has one. */
  readonly key?: string;
  /** Arguments of `bitmap` before the file name, for each bitmap to add. */
  readonly bitmaps?: readonly string[];
  /** Whether convert compresses its clusters. */
  readonly compressed?: boolean;
}

const LUKS = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";

/** All kinds. */
export const KINDS: readonly Kind[] = [
  { file: "plain.qcow2", format: "qcow2" },
  { file: "old.qcow2", format: "qcow2", options: "compat=0.10" },
  {
    file: "small.qcow2",
    format: "qcow2",
    options: "cluster_size=4k,refcount_bits=1,lazy_refcounts=on",
  },
  { file: "packed.qcow2", format: "qcow2", compressed: true },
  {
    file: "zstd.qcow2",
    format: "qcow2",
    options: "compression_type=zstd",
    compressed: true,
  },
  { file: "parts.qcow2", format: "qcow2", options: "extended_l2=on" },
  {
    file: "parts-zstd.qcow2",
    format: "qcow2",
    options: "extended_l2=on,cluster_size=128k,compression_type=zstd",
    compressed: true,
  },
  {
    file: "outside.qcow2",
    format: "qcow2",
    options: "data_file=outside.data",
  },
  {
    file: "outside-raw.qcow2",
    format: "qcow2",
    options: "data_file=outside-raw.data,data_file_raw=on",
  },
  {
    file: "bitmaps.qcow2",
    format: "qcow2",
    bitmaps: ["--add -g 64k", "--add --disable -g 4k"],
  },
  {
    file: "aes.qcow2",
    format: "qcow2",
    options: "encrypt.format=aes,encrypt.key-secret=key",
    key: "encrypt.key-secret",
  },
  {
    file: "luks.qcow2",
    format: "qcow2",
    options: LUKS,
    key: "encrypt.key-secret",
  },
  {
    file: "luks-parts.qcow2",
    format: "qcow2",
    options: `${LUKS},extended_l2=on,encrypt.cipher-alg=aes-128`,
    key: "encrypt.key-secret",
  },
  {
    file: "plain.luks",
    format: "luks",
    options: "key-secret=key,iter-time=10",
    key: "key-secret",
  },
  { file: "plain.vmdk", format: "vmdk" },
  {
    file: "flat.vmdk",
    format: "vmdk",
    options: "subformat=monolithicFlat",
  },
  { file: "plain.vdi", format: "vdi" },
  { file: "plain.vhdx", format: "vhdx" },
  { file: "plain.vpc", format: "vpc", options: "force_size=on" },
  { file: "plain.raw", format: "raw" },
];

/** How to refer to an image on a command line, with its passphrase. */
export function imageArguments(kind: Kind): string[] {
  return kind.key === undefined
    ? ["-f", kind.format, kind.file]
    : [...SECRET, "--image-opts", described(kind)];
}

function described({ format, key, file }: Kind): string {
  return `driver=${format},${key}=key,file.filename=${file}`;
}

/**
 * Convert `source`, a raw image, to an image of a kind, and write to it. All
 * kinds get the same requests.
 */
export async function makeKind(
  { img, io }: Pick<Tools, "img" | "io">,
  kind: Kind,
  source: string,
  cwd: string,
): Promise<void> {
  const { file, format, options, key, bitmaps = [], compressed } = kind;
  const made = [
    ...(key ? SECRET : []),
    ...(compressed ? ["-c"] : []),
    ...(options ? ["-o", options] : []),
  ];
  await runOk(
    [...img, "convert", "-f", "raw", "-O", format, ...made, source, file],
    { cwd },
  );
  for (const [index, words] of bitmaps.entries()) {
    const call = ["bitmap", ...words.split(" "), file, `bitmap${index}`];
    await runOk([...img, ...call], { cwd });
  }
  await runOk([...io, ...REQUESTS, ...imageArguments(kind)], { cwd });
}

const REQUESTS = [
  "write -P 17 100k 3k",
  "write -P 18 1536k 200k",
  "write -z 2M 64k",
  "write -P 19 3M 512",
].flatMap((request) => ["-c", request]);

/** Write the source of {@linkcode makeKind}, and the expected result. */
export function makeSource(cwd: string): void {
  const bytes = new Uint8Array(SIZE);
  for (let i = 0; i < 300_000; i++) bytes[i] = i * 31 >> 3;
  for (let i = 0; i < 9000; i++) bytes[(2 << 20) + 1000 + i] = i;
  bytes[SIZE - 1] = 1;
  Deno.writeFileSync(`${cwd}/source.raw`, bytes);
  bytes.fill(17, 100 << 10, 103 << 10);
  bytes.fill(18, 1536 << 10, 1736 << 10);
  bytes.fill(0, 2 << 20, (2 << 20) + (64 << 10));
  bytes.fill(19, 3 << 20, (3 << 20) + 512);
  Deno.writeFileSync(`${cwd}/expected.raw`, bytes);
}

/**
 * Whether a program finds an image sound, with the expected content; otherwise,
 * its output is returned.
 */
export async function examine(
  { img }: Pick<Tools, "img">,
  kind: Kind,
  cwd: string,
): Promise<string> {
  const check = await run(
    [...img, "check", ...imageArguments(kind)],
    { cwd },
  );
  // Formats without checks exit with 63.
  if (check.code !== 0 && check.code !== 63) {
    return `check: ${check.stdout}${check.stderr}`;
  }
  const other = "driver=raw,file.filename=expected.raw";
  const compare = await run(
    kind.key === undefined
      ? [...img, "compare", "-f", kind.format, "-F", "raw", kind.file].concat(
        "expected.raw",
      )
      : [...img, "compare", ...SECRET, "--image-opts", described(kind), other],
    { cwd },
  );
  return compare.code === 0
    ? ""
    : `compare: ${compare.stdout}${compare.stderr}`;
}
