/**
 * Random concurrent requests on random stacks, compared with a model; and every
 * now and then QEMU's opinion of the image.
 *
 * `BDRV_SEED` (`7` or `1-500`) chooses the seeds, `BDRV_STEPS` sets how many
 * rounds of requests each seed gets.
 *
 * @module
 */
import { BlockError } from "../core/errors.ts";
import type { Image } from "../core/image.ts";
import type { BlockNode } from "../core/node.ts";
import { openProtocol } from "../core/open.ts";
import { isEqual } from "../core/runtime.ts";
import {
  createImage,
  MemoryStore,
  openImage,
  type OpenOptions,
  type OptionValues,
  type StackObject,
} from "../mod.ts";
import { BitmapModel } from "./bitmap_model.ts";
import { DelayNode, Scheduler } from "./delay.ts";
import {
  DiskModel,
  type Effect,
  environmentNumber,
  type Finding,
  Random,
  seedsToRun,
} from "./model.ts";
import { isInstalled, run, runOk, TempDir } from "./qemu.ts";

const SEEDS = 22;
const STEPS = environmentNumber("BDRV_STEPS") ?? 150;
const FULL_CHECK_EVERY = 50;
/** Formats other than qcow2, and the size of their blocks. */
const SIMPLE_FORMATS = {
  raw: 0,
  luks: 0,
  qcow: 4096,
  qed: 4096,
  parallels: 65536,
  vdi: 2 ** 20,
  vmdk: 2 ** 16,
  vpc: 2 ** 21,
  vhdx: 2 ** 20,
};
type SimpleFormat = keyof typeof SIMPLE_FORMATS;
/** The ones that can have a backing file. */
const OVERLAY_FORMATS: readonly SimpleFormat[] = ["qcow", "qed"];
/** The options that some of them need. */
const SIMPLE_OPTIONS: { readonly [format: string]: Record<string, unknown> } = {
  luks: { "key-secret": "key", "iter-time": 0, "cipher-alg": "aes-128" },
  vpc: { force_size: true },
  vhdx: { block_size: 2 ** 20 },
  qed: { cluster_size: 4096 },
  parallels: { cluster_size: 65536 },
};
const CLUSTER_SIZES = [
  512,
  512,
  1024,
  4096,
  4096,
  16384,
  65536,
  65536,
  2 ** 21,
];

/** One image of a chain. */
interface Layer {
  format: SimpleFormat | "qcow2";
  /** The protocol node's description. */
  file: StackObject & { store?: MemoryStore; filename?: string };
  clusterSize: number;
  version: 2 | 3;
  openOptions: Record<string, unknown>;
  /** Whether L2 entries are extended. */
  isExtended: boolean;
  /** The name of the external data file, if there is one. */
  dataFile?: string;
  /** Whether the data file alone holds the disk's content. */
  isRaw: boolean;
  /** How its data is encrypted, with the key in `SECRETS`. */
  encryption?: "aes" | "luks";
}

const SECRETS = { key: "a secret" };
const KEY_OPTION = { "encrypt.key-secret": "key" };
/** Creation options of each kind of encryption. */
const ENCRYPTION = {
  aes: { "encrypt.format": "aes", ...KEY_OPTION },
  luks: {
    "encrypt.format": "luks",
    "encrypt.iter-time": 0,
    "encrypt.cipher-alg": "aes-128",
    ...KEY_OPTION,
  },
};

/** A stack under test, and its expected content. */
class Subject {
  readonly #random: Random;
  readonly #folder: TempDir;
  readonly #delayed: boolean;
  readonly #scheduler: Scheduler;
  readonly #layers: Layer[] = [];
  #image!: Image;
  /** The nodes that the image is opened on. */
  #nodes: BlockNode[] = [];
  #model = new DiskModel(0);
  /** The expected content of the top image's snapshots, by id. */
  #snapshots = new Map<string, Uint8Array>();
  /** The top image's bitmaps. */
  #bitmaps: BitmapModel[] = [];
  #isLazy = false;
  #refcountBits = 16;
  #step = 0;

  constructor(seed: number, folder: TempDir) {
    this.#random = new Random(seed);
    this.#folder = folder;
    this.#delayed = this.#random.below(3) > 0;
    this.#scheduler = new Scheduler(this.#random);
  }

  /** A description of the stack, for messages. */
  describe(): string {
    const layers = this.#layers.map((
      {
        format,
        clusterSize,
        version,
        isExtended,
        openOptions,
        file,
        dataFile,
        isRaw,
        encryption,
      },
    ) =>
      format !== "qcow2"
        ? `${format} on ${file.driver}`
        : `qcow2 v${version}${isExtended ? " extended" : ""} ` +
          `${encryption ?? ""} of ` +
          `${clusterSize} on ${file.driver} ` +
          (dataFile ? isRaw ? "with raw data " : "with a data file " : "") +
          JSON.stringify(openOptions)
    );
    const timing = this.#delayed ? "delayed" : "undelayed";
    return `step ${this.#step}, ${timing}: ${layers.join(" <- ")}`;
  }

  async run(steps: number): Promise<void> {
    const depth = 1 + this.#random.below(3);
    for (let level = 0; level < depth; level++) {
      const isTop = level === depth - 1;
      await this.#addLayer();
      await this.#rounds(isTop ? steps : Math.ceil(steps / 10));
      await this.#fullCheck();
      if (!isTop) await this.#close();
    }
    await this.#close();
  }

  async #rounds(count: number): Promise<void> {
    for (let i = 1; i <= count; i++) {
      this.#step++;
      await this.#round();
      if (i % FULL_CHECK_EVERY === 0) await this.#fullCheck();
    }
  }

  async #addLayer(): Promise<void> {
    const random = this.#random;
    const level = this.#layers.length;
    // A format that cannot have a backing file is the lowest.
    const others = level === 0
      ? Object.keys(SIMPLE_FORMATS) as SimpleFormat[]
      : OVERLAY_FORMATS;
    const format = random.oneIn(level === 0 ? 3 : 6)
      ? random.pick(others)
      : "qcow2";
    const filename = this.#folder.file(`layer${level}`);
    const file = random.oneIn(3)
      ? { driver: "file", filename }
      : { driver: "memory", store: new MemoryStore() };
    const version = random.oneIn(4) ? 2 : 3;
    const blockSize = format === "qcow2" ? 0 : SIMPLE_FORMATS[format];
    const clusterSize = blockSize || random.pick(CLUSTER_SIZES);
    const layer = {
      format,
      file,
      clusterSize,
      version,
      openOptions: {},
      isExtended: format === "qcow2" && version === 3 && clusterSize >= 16384 &&
        random.below(3) > 0,
      encryption: format === "qcow2" && random.oneIn(3)
        ? random.pick(["aes", "luks"])
        : undefined,
      dataFile: format === "qcow2" && version === 3 && random.oneIn(3)
        ? this.#folder.file(`data${level}`)
        : undefined,
      isRaw: level === 0 && random.oneIn(2),
    } as Layer;
    if (format === "qcow2" && random.below(3) > 0) {
      layer.openOptions = {
        "l2-cache-size": random.pick([0, 4096, 65536]),
        "l2-cache-entry-size": random.pick([512, Math.min(4096, clusterSize)]),
        "refcount-cache-size": 0,
      };
    }
    if (layer.encryption) Object.assign(layer.openOptions, KEY_OPTION);
    if (format === "luks") layer.openOptions = { "key-secret": "key" };
    const size = this.#newSize(clusterSize);
    this.#refcountBits = version === 2
      ? 16
      : random.pick([1, 2, 4, 8, 16, 32, 64]);
    this.#isLazy = version === 3 && random.oneIn(5);
    const options: OptionValues = format !== "qcow2"
      ? { size, ...SIMPLE_OPTIONS[format] }
      : {
        size,
        cluster_size: clusterSize,
        compat: version === 2 ? "v2" : "v3",
        refcount_bits: this.#refcountBits,
        compression_type: version === 3 && random.oneIn(2) ? "zstd" : "zlib",
        lazy_refcounts: this.#isLazy,
        extended_l2: layer.isExtended,
        ...(layer.dataFile !== undefined && {
          data_file: layer.dataFile,
          data_file_raw: layer.isRaw,
        }),
        ...(layer.encryption && ENCRYPTION[layer.encryption]),
        ...((level === 0 || layer.isExtended) && random.oneIn(4) &&
          { preallocation: "metadata" }),
      };
    await createImage(format, file, options, { secrets: SECRETS });
    this.#layers.push(layer);
    this.#snapshots.clear();
    this.#model.resize(size);
    this.#bitmaps = [];
    await this.#open();
    // A new luks disk holds whatever the file's zeroes decrypt to.
    if (format === "luks") await this.#image.writeZeroes(0, size);
    if (format === "qcow2" && version === 3 && random.oneIn(3)) {
      await this.#addBitmap("first");
      if (random.oneIn(2)) await this.#addBitmap("second");
    }
  }

  async #addBitmap(name: string): Promise<void> {
    const granularity = 2 ** (9 + this.#random.below(12));
    await this.#image.bitmaps.add(name, { granularity });
    const model = new BitmapModel(name, granularity, this.#model.size);
    this.#bitmaps.push(model);
  }

  /** From a few to a few thousand clusters, plus a bit. */
  #newSize(clusterSize: number): number {
    const most = Math.min(clusterSize * 3000, 6 * 2 ** 20);
    const size = 512 * (1 + this.#random.below(most / 512));
    return this.#random.oneIn(3)
      ? Math.ceil(size / clusterSize) * clusterSize
      : size;
  }

  async #open(): Promise<void> {
    this.#nodes = [];
    const stack = await this.#stack(this.#layers.length - 1, this.#nodes);
    this.#image = await openImage(stack, { secrets: SECRETS });
    this.#model.resize(this.#image.size);
  }

  async #close(): Promise<void> {
    await this.#image.close();
    for (const node of this.#nodes) await node.close();
  }

  /** How to open a layer; the caller closes `nodes`. */
  async #stack(
    level: number,
    nodes: BlockNode[],
    how?: OpenOptions,
  ): Promise<StackObject> {
    const { format, file, dataFile, openOptions } = this.#layers[level];
    const backing = canHaveBacking(format)
      ? { backing: level > 0 ? await this.#stack(level - 1, nodes, how) : null }
      : {};
    const open = async (file: StackObject) => {
      const opened = await openProtocol(file, how);
      const node: BlockNode = this.#delayed
        ? new DelayNode(opened, this.#scheduler, this.#random)
        : opened;
      nodes.push(node);
      return node;
    };
    const data = dataFile !== undefined && {
      "data-file": await open({ driver: "file", filename: dataFile }),
    };
    const node = await open(file);
    return { driver: format, file: node, ...data, ...openOptions, ...backing };
  }

  /** Some concurrent requests, and a check of their effects. */
  async #round(): Promise<void> {
    const random = this.#random;
    if (random.oneIn(25)) return await this.#resize();
    if (random.oneIn(20)) return await this.#snapshot();
    if (random.oneIn(30)) return await this.#maintain();
    if (random.oneIn(20)) return await this.#changeBitmaps();
    if (random.oneIn(40)) {
      await this.#close();
      return await this.#open();
    }
    const findings: Finding[] = [];
    const requests: Promise<Effect | undefined>[] = [];
    const place = this.#somewhere();
    for (let count = random.pick([1, 1, 2, 4, 8, 16]); count > 0; count--) {
      // Half of them are close to each other.
      const { offset, length } = random.oneIn(2)
        ? this.#near(place)
        : this.#somewhere();
      requests.push(this.#request(offset, length, findings));
    }
    const effects = await Promise.all(requests);
    await this.#model.apply(
      effects.filter((effect) => effect !== undefined),
      findings,
      (offset, length) => this.#image.read(offset, length),
    );
    if (random.oneIn(8)) await this.#verify();
  }

  #somewhere(): { offset: number; length: number } {
    const random = this.#random;
    const { size } = this.#model;
    const { clusterSize } = this.#layers[this.#layers.length - 1];
    let offset = random.below(size);
    let length = 1 + random.below(random.pick([
      10,
      clusterSize,
      3 * clusterSize,
      200_000,
    ]));
    offset -= offset % random.pick([1, 1, 512, clusterSize]);
    if (random.oneIn(3)) length = Math.ceil(length / clusterSize) * clusterSize;
    if (random.oneIn(10)) length = size;
    return { offset, length: Math.min(length, size - offset) };
  }

  #near(
    place: { offset: number; length: number },
  ): { offset: number; length: number } {
    const { size } = this.#model;
    const { length } = this.#somewhere();
    const jitter = this.#random.below(2 * place.length) - place.length;
    const offset = Math.min(size - 1, Math.max(0, place.offset + jitter));
    return { offset, length: Math.min(length, size - offset) };
  }

  /** Send one request; returns its effect on the disk, if it has one. */
  async #request(
    offset: number,
    length: number,
    findings: Finding[],
  ): Promise<Effect | undefined> {
    const random = this.#random;
    const image = this.#image;
    const kind = random.below(20);
    // Whether it succeeds or not.
    const writes = kind < 8 || kind >= 12 && kind < 15;
    if (writes) this.#noteWrite(offset, length);
    if (kind < 8) {
      const bytes = random.bytes(length);
      const iov = random.oneIn(3) ? this.#cut(bytes) : [bytes];
      await image.writev(offset, iov, { fua: random.oneIn(20) });
      return { offset, bytes };
    }
    if (kind < 12) {
      const bytes = new Uint8Array(length).fill(0xa5);
      await image.readv(offset, random.oneIn(3) ? this.#cut(bytes) : [bytes]);
      findings.push({ offset, bytes });
      return undefined;
    }
    if (kind < 15) {
      await image.writeZeroes(offset, length, { unmap: random.oneIn(2) });
      return { offset, bytes: new Uint8Array(length) };
    }
    if (kind < 17) return await this.#discard(offset, length);
    if (kind < 18) {
      await image.flush();
      return undefined;
    }
    return await this.#compressed(offset);
  }

  #cut(bytes: Uint8Array): Uint8Array[] {
    const parts: Uint8Array[] = [];
    for (let at = 0; at < bytes.length;) {
      const end = at + 1 + this.#random.below(bytes.length);
      parts.push(bytes.subarray(at, end));
      at = end;
    }
    return parts;
  }

  /** Whole clusters must read as zeroes afterwards; nothing else changes. */
  async #discard(offset: number, length: number): Promise<Effect | undefined> {
    const { format, clusterSize, version } =
      this.#layers[this.#layers.length - 1];
    const { encryption } = this.#layers[this.#layers.length - 1];
    // Sectors are encrypted whole: those covered in part are left out.
    const first = encryption ? Math.ceil(offset / 512) * 512 : offset;
    let end = offset + length;
    const last = encryption ? end - end % 512 : end;
    this.#noteWrite(first, Math.max(0, last - first));
    await this.#image.discard(offset, length);
    if (format === "qcow2") {
      if (version === 2 && this.#layers.length > 1) return undefined;
      offset = Math.ceil(offset / clusterSize) * clusterSize;
      if (end < this.#model.size) end -= end % clusterSize;
      if (offset >= end) return undefined;
    } else {
      // The result is the driver's choice, so fix it by writing zeroes.
      await this.#image.writeZeroes(offset, length);
    }
    return { offset, bytes: new Uint8Array(end - offset) };
  }

  /** A whole cluster; refused where data cannot be overwritten. */
  async #compressed(offset: number): Promise<Effect | undefined> {
    const { format, clusterSize, encryption, dataFile } =
      this.#layers[this.#layers.length - 1];
    const isRefused = !["qcow2", "qcow"].includes(format) || encryption ||
      dataFile;
    if (isRefused) return undefined;
    const random = this.#random;
    offset -= offset % clusterSize;
    const length = Math.min(clusterSize, this.#model.size - offset);
    const bytes = random.oneIn(4)
      ? random.bytes(length)
      : random.dullBytes(length);
    this.#noteWrite(offset, length);
    try {
      await this.#image.node.writeCompressed!(offset, [bytes]);
    } catch (error) {
      if (isError(error, "EIO")) return undefined;
      throw error;
    }
    return { offset, bytes };
  }

  async #resize(): Promise<void> {
    const { clusterSize, version } = this.#layers[this.#layers.length - 1];
    const random = this.#random;
    const size = random.oneIn(4)
      ? Math.min(this.#model.size + 512 * random.below(64), 8 * 2 ** 20)
      : this.#newSize(clusterSize);
    const preallocation = size > this.#model.size && random.oneIn(4)
      ? "metadata"
      : "off";
    try {
      await this.#image.resize(size, { preallocation });
    } catch (error) {
      if (this.#image.format === "raw" && preallocation !== "off") return;
      if (!this.#image.node.truncate && isError(error, "ENOTSUP")) return;
      // QED only grows, and not below the end of a longer backing file.
      if (this.#image.format === "qed" && isError(error, "ENOTSUP")) return;
      // Version 2 can neither hide a longer backing file's data, nor store the
      // sizes of its snapshots.
      const mayFail = version === 2 &&
        (this.#layers.length > 1 || this.#snapshots.size > 0);
      if (mayFail && isError(error, "ENOTSUP")) return;
      throw error;
    }
    this.#model.resize(size);
    for (const bitmap of this.#bitmaps) bitmap.resize(size);
  }

  #noteWrite(offset: number, length: number): void {
    for (const bitmap of this.#bitmaps) bitmap.write(offset, length);
  }

  /** Do something to a bitmap that its user can do. */
  async #changeBitmaps(): Promise<void> {
    const random = this.#random;
    const { bitmaps } = this.#image;
    if (this.#bitmaps.length === 0) return;
    const bitmap = random.pick(this.#bitmaps);
    const { name } = bitmap;
    switch (random.below(5)) {
      case 0:
        bitmap.clear();
        return await bitmaps.clear(name);
      case 1:
        bitmap.isEnabled = false;
        return await bitmaps.disable(name);
      case 2:
        bitmap.isEnabled = true;
        return await bitmaps.enable(name);
      case 3: {
        const other = random.pick(this.#bitmaps);
        for (const { offset, length } of other.extents()) {
          bitmap.mark(offset, length);
        }
        return await bitmaps.merge(name, other.name);
      }
      case 4:
        this.#bitmaps.splice(this.#bitmaps.indexOf(bitmap), 1);
        await bitmaps.remove(name);
        return await this.#addBitmap(name);
    }
  }

  /** Check the image, or reload its tables: this must change nothing. */
  async #maintain(): Promise<void> {
    const { format, openOptions } = this.#layers[this.#layers.length - 1];
    if (format !== "qcow2") return;
    const { node } = this.#image;
    const way = this.#random.below(3);
    if (way === 0) return await node.invalidate!();
    if (way === 1) return await node.reopen!(openOptions);
    const { leaks, leaksFixed, corruptions, corruptionsFixed } = await this
      .#image.check({ repair: { leaks: true, corruptions: true } });
    const found = [leaks, leaksFixed, corruptions, corruptionsFixed];
    if (found.some((count) => count > 0)) {
      throw new Error(`check() found and repaired ${found}`);
    }
  }

  /** Create a snapshot, delete one, or apply one. */
  async #snapshot(): Promise<void> {
    const { snapshots } = this.#image.node;
    const { dataFile } = this.#layers[this.#layers.length - 1];
    if (!snapshots || dataFile !== undefined) return;
    const random = this.#random;
    const id = random.pick([...this.#snapshots.keys(), undefined]);
    if (id === undefined) {
      try {
        const { id } = await snapshots.create({ name: "a snapshot" });
        this.#snapshots.set(id, this.#model.bytes.slice());
      } catch (error) {
        if (!this.#isOverflow(error)) throw error;
        // This leaks the copy of the L1 table, as in QEMU (its test 112).
        await this.#image.check({
          repair: { leaks: true, corruptions: false },
        });
      }
    } else if (random.oneIn(2)) {
      await snapshots.delete(id);
      this.#snapshots.delete(id);
    } else {
      const bytes = this.#snapshots.get(id)!;
      try {
        await snapshots.apply(id);
      } catch (error) {
        // As for any other change of the size.
        const { version } = this.#layers[this.#layers.length - 1];
        if (
          version === 2 && bytes.length !== this.#model.size &&
          isError(error, "ENOTSUP")
        ) return;
        if (this.#isOverflow(error)) return;
        if (this.#bitmaps.length > 0 && isError(error, "EBUSY")) return;
        throw error;
      }
      this.#model.bytes = bytes.slice();
    }
  }

  /** One-bit refcounts cannot count a second user, narrow ones not many. */
  #isOverflow(error: unknown): boolean {
    return this.#refcountBits <= 4 && isError(error, "EINVAL");
  }

  async #checkSnapshots(): Promise<void> {
    // The image remains open for writing.
    const how = { readOnly: true, forceShare: true };
    const nodes: BlockNode[] = [];
    const stack = await this.#stack(this.#layers.length - 1, nodes, how);
    {
      await using image = await openImage(stack, { ...how, secrets: SECRETS });
      for (const [id, bytes] of this.#snapshots) {
        await image.node.snapshots!.loadTemporary(id);
        const found = await image.read(0, image.size);
        if (!isEqual(found, bytes)) {
          throw new Error(`snapshot ${id} has changed`);
        }
      }
    }
    for (const node of nodes) await node.close();
  }

  async #verify(): Promise<void> {
    const { size } = this.#model;
    this.#model.check(0, await this.#image.read(0, size), "of the whole disk");
    for (const bitmap of this.#bitmaps) await bitmap.check(this.#image);
  }

  async #fullCheck(): Promise<void> {
    await this.#verify();
    await this.#checkStatus();
    await this.#image.flush();
    await this.#verify();
    if (this.#isLazy) {
      // Lazy refcounts are not correct before the image is closed.
      await this.#close();
      await this.#open();
    }
    if (this.#snapshots.size > 0) await this.#checkSnapshots();
    this.#checkRaw();
    if (!isInstalled("qemu-img")) return;
    const files = this.#layers.map((_, level) => this.#export(level));
    const top = files.length - 1;
    const stack = `json:${JSON.stringify(this.#qemuStack(files, top))}`;
    const object = ["--object", `secret,id=key,data=${SECRETS.key}`];
    // While it is open, a Parallels image is marked as not closed.
    const isOpen = this.#image.format === "parallels";
    if (this.#image.node.image?.check && !isOpen) {
      const { code, stdout, stderr } = await run(
        ["qemu-img", "check", ...object, "-U", stack],
      );
      if (code !== 0) throw new Error(`qemu-img check: ${stdout}${stderr}`);
    }
    const model = this.#folder.file("model");
    Deno.writeFileSync(model, this.#model.bytes);
    await runOk([
      "qemu-img",
      "compare",
      ...object,
      "-U",
      stack,
      `json:{"driver":"raw","file":{"driver":"file","filename":"${model}"}}`,
    ]);
  }

  /** A raw data file must equal the disk. */
  #checkRaw(): void {
    const { dataFile, isRaw, encryption } =
      this.#layers[this.#layers.length - 1];
    if (dataFile === undefined || !isRaw || encryption) return;
    const bytes = Deno.readFileSync(dataFile);
    this.#model.check(0, bytes.subarray(0, this.#model.size), "of the data");
  }

  /** The file of a layer, written out if it is in memory. */
  #export(level: number): string {
    const { file } = this.#layers[level];
    if (file.filename !== undefined) return file.filename;
    const name = this.#folder.file(`exported${level}`);
    const bytes = new Uint8Array(file.store!.size);
    file.store!.read(0, bytes);
    Deno.writeFileSync(name, bytes);
    return name;
  }

  #qemuStack(files: readonly string[], level: number): unknown {
    const { format, encryption, dataFile } = this.#layers[level];
    const data = dataFile !== undefined &&
      { "data-file": { driver: "file", filename: dataFile } };
    const file = { driver: "file", filename: files[level] };
    if (format === "luks") return { driver: format, "key-secret": "key", file };
    if (!canHaveBacking(format)) return { driver: format, file };
    const backing = level > 0 ? this.#qemuStack(files, level - 1) : null;
    const key = encryption ? KEY_OPTION : {};
    return { driver: format, file, ...data, ...key, backing };
  }

  /** Extents reported as zero must read as zeroes. */
  async #checkStatus(): Promise<void> {
    let next = 0;
    for await (const { zero, offset, length } of this.#image.extents()) {
      if (offset !== next) throw new Error(`a gap in the map at ${next}`);
      next += length;
      if (!zero) continue;
      this.#model.check(offset, new Uint8Array(length), "by the map");
    }
    if (next !== this.#model.size) throw new Error(`the map ends at ${next}`);
  }
}

function canHaveBacking(format: Layer["format"]): boolean {
  return format === "qcow2" || OVERLAY_FORMATS.includes(format);
}

function isError(error: unknown, code: string): boolean {
  return error instanceof BlockError && error.code === code;
}

async function runSeed(seed: number): Promise<void> {
  await using folder = new TempDir();
  const subject = new Subject(seed, folder);
  try {
    await subject.run(STEPS);
  } catch (error) {
    throw new Error(`BDRV_SEED=${seed}, ${subject.describe()}: ${error}`, {
      cause: error,
    });
  }
}

Deno.test("random requests on random stacks do what the model does", async () => {
  for (const seed of seedsToRun(SEEDS)) await runSeed(seed);
});
