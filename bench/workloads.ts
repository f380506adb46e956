/**
 * The benchmarks. A workload is a command that both programs understand. The
 * inputs it names (see `inputs.ts`) are made beforehand; `OUT` and `OUT.base`
 * are the side's own output files, absent at the start. `SIZE` is that of the
 * main input in bytes; `SIZE*N` and `SIZE/N` are multiples and fractions of it.
 *
 * @module
 */

/** One row of the table. */
export interface Workload {
  /** Its name in the table. */
  readonly name: string;
  /** The arguments of qemu-img and bdrv. */
  readonly command: string;
  /** The ratio to aim for, bdrv ÷ qemu-img. */
  readonly goal: number;
  /** Arguments of qemu-img to run for each side before each run. */
  readonly before?: readonly string[];
  /** Arguments of qemu-img that must succeed after a run of bdrv. */
  readonly verify?: readonly string[];
}

/** The passphrase of encrypted images, and how QEMU opens one with it. */
const KEY = "--object secret,id=key,data=bench";
const LUKS = "driver=luks,key-secret=key,file.filename=";
const LUKS_QCOW2 = "driver=qcow2,encrypt.key-secret=key,file.filename=";
/**
 * Fills an existing image: formatting one takes QEMU long, and is not timed.
 */
const FILL = `convert -n ${KEY} --target-image-opts -f raw mixed.raw `;
const SAME_AS_MIXED_OPTS =
  `compare ${KEY} --image-opts driver=raw,file.filename=mixed.raw `;

const SAME_AS_MIXED = "compare -f raw mixed.raw OUT";
const SCATTER = 269 * 4096;
/** About 100,000 at the default size. */
const READS = "SIZE/10737";

/** Conversions to and from a format, of disks four times the main input. */
function other(format: string): Workload[] {
  const size = format === "vpc" ? " -o force_size=on" : "";
  return [
    {
      name: `convert raw → ${format}, large`,
      command: `convert -f raw -O ${format}${size} large.raw OUT`,
      goal: 1,
      verify: [`compare -f raw -F ${format} large.raw OUT`],
    },
    {
      name: `convert ${format} → raw, large`,
      command: `convert -f ${format} -O raw large.${format} OUT`,
      goal: 1,
      verify: ["compare -f raw -F raw large.raw OUT"],
    },
  ];
}

/** The rows of the table, in order. */
export const workloads: readonly Workload[] = [
  {
    name: "convert raw → qcow2",
    command: "convert -f raw -O qcow2 mixed.raw OUT",
    goal: 0.9,
    verify: [SAME_AS_MIXED, "check OUT"],
  },
  {
    name: "convert qcow2 → raw",
    command: "convert -f qcow2 -O raw mixed.qcow2 OUT",
    goal: 0.9,
    verify: ["compare -f raw -F raw mixed.raw OUT"],
  },
  {
    name: "convert overlay of two → raw",
    command: "convert -f qcow2 -O raw overlay.qcow2 OUT",
    goal: 0.9,
    verify: ["compare -f qcow2 -F raw overlay.qcow2 OUT"],
  },
  ...["vmdk", "vdi", "vhdx", "vpc"].flatMap((format) => other(format)),
  {
    name: "raw → streamOptimized",
    command:
      "convert -f raw -O vmdk -o subformat=streamOptimized quarter.raw OUT",
    goal: 0.5,
    verify: ["compare -f raw quarter.raw OUT", "check OUT"],
  },
  {
    name: "streamOptimized → raw",
    command: "convert -f vmdk -O raw stream.vmdk OUT",
    goal: 0.5,
    verify: ["compare -f raw -F raw mixed.raw OUT"],
  },
  {
    name: "convert luks → raw",
    command: `convert ${KEY} --image-opts -O raw ${LUKS}mixed.luks OUT`,
    goal: 1.5,
    verify: ["compare -f raw -F raw mixed.raw OUT"],
  },
  {
    name: "convert raw → luks",
    command: `${FILL}${LUKS}OUT`,
    goal: 1.5,
    before: ["convert -f raw -O raw empty.luks OUT"],
    verify: [`${SAME_AS_MIXED_OPTS}${LUKS}OUT`],
  },
  {
    name: "convert qcow2 with LUKS → raw",
    command:
      `convert ${KEY} --image-opts -O raw ${LUKS_QCOW2}mixed-luks.qcow2 OUT`,
    goal: 1.5,
    verify: ["compare -f raw -F raw mixed.raw OUT"],
  },
  {
    name: "convert raw → qcow2 with LUKS",
    command: `${FILL}${LUKS_QCOW2}OUT`,
    goal: 1.5,
    before: ["convert -f raw -O raw empty-luks.qcow2 OUT"],
    verify: [
      `${SAME_AS_MIXED_OPTS}${LUKS_QCOW2}OUT`,
      `check ${KEY} --image-opts ${LUKS_QCOW2}OUT`,
    ],
  },
  {
    name: "4 KiB reads of luks, by dd",
    command: `dd ${KEY} --image-opts -O raw bs=4096 count=SIZE/32768 ` +
      `if=${LUKS}mixed.luks of=OUT`,
    goal: 1.5,
    verify: [
      `compare ${KEY} --image-opts driver=raw,file.filename=THEIRS ` +
      "driver=raw,file.filename=OUT",
    ],
  },
  {
    name: "convert -c, zlib",
    command: "convert -c -f raw -O qcow2 quarter.raw OUT",
    goal: 0.5,
    verify: ["compare -f raw quarter.raw OUT", "check OUT"],
  },
  {
    name: "convert -c, zstd",
    command:
      "convert -c -o compression_type=zstd -f raw -O qcow2 quarter.raw OUT",
    goal: 0.7,
    verify: ["compare -f raw quarter.raw OUT", "check OUT"],
  },
  {
    name: "convert -c, zstd, clusters of 512 bytes",
    command:
      "convert -c -o compression_type=zstd,cluster_size=512 -f raw -O qcow2 " +
      "quarter.raw OUT",
    goal: 0.9,
    verify: ["compare -f raw quarter.raw OUT", "check OUT"],
  },
  {
    name: "compressed → raw, zlib",
    command: "convert -f qcow2 -O raw zlib.qcow2 OUT",
    goal: 0.8,
    verify: ["compare -f raw -F raw quarter.raw OUT"],
  },
  {
    name: "compressed → raw, zstd",
    command: "convert -f qcow2 -O raw zstd.qcow2 OUT",
    goal: 0.9,
    verify: ["compare -f raw -F raw quarter.raw OUT"],
  },
  {
    name: "compare raw with qcow2",
    command: "compare -f raw -F qcow2 mixed.raw mixed.qcow2",
    goal: 0.9,
  },
  {
    name: "check, 256 GiB preallocated",
    command: "check -f qcow2 preallocated.qcow2",
    goal: 0.9,
  },
  {
    name: "map, 256 GiB preallocated",
    command: "map -f qcow2 --output=json preallocated.qcow2",
    goal: 0.8,
  },
  {
    name: "snapshot -c, 256 GiB preallocated",
    command: "snapshot -c s OUT",
    goal: 0.5,
    before: ["create -q -f qcow2 -o preallocation=metadata OUT SIZE*256"],
    verify: ["check OUT"],
  },
  {
    name: "commit of 128 MiB",
    command: "commit -q -f qcow2 OUT",
    goal: 0.9,
    before: [
      "create -q -f qcow2 OUT.base SIZE/8",
      "create -q -f qcow2 -b OUT.base -F qcow2 OUT",
      "convert -n -f raw -O qcow2 full.raw OUT",
    ],
    verify: ["compare -f raw -F qcow2 full.raw OUT.base", "check OUT"],
  },
  {
    name: "500 GiB sparse raw → qcow2",
    command: "convert -f raw -O qcow2 sparse.raw OUT",
    goal: 8,
    verify: ["compare -f raw -F qcow2 sparse.raw OUT", "check OUT"],
  },
  {
    name: "4 KiB scattered reads, depth 1",
    command:
      `bench -f qcow2 -c ${READS} -d 1 -s 4096 -S ${SCATTER} mixed.qcow2`,
    goal: 0.4,
  },
  {
    name: "4 KiB scattered reads, depth 64",
    command:
      `bench -f qcow2 -c ${READS} -d 64 -s 4096 -S ${SCATTER} mixed.qcow2`,
    goal: 1.0,
  },
  {
    name: "4 KiB allocating writes, depth 1",
    command: "bench -f qcow2 -w -c SIZE/65536 -d 1 -s 4096 -S 65536 OUT",
    goal: 0.4,
    before: ["create -q -f qcow2 OUT SIZE"],
    verify: ["compare -f qcow2 -F qcow2 OUT THEIRS", "check OUT"],
  },
  {
    name: "4 KiB allocating writes, extended L2, depth 1",
    command: "bench -f qcow2 -w -c SIZE/65536 -d 1 -s 4096 -S 65536 OUT",
    goal: 0.4,
    before: ["create -q -f qcow2 -o extended_l2=on OUT SIZE"],
    verify: ["compare -f qcow2 -F qcow2 OUT THEIRS", "check OUT"],
  },
  ...["", ", extended L2"].map((more) => ({
    name: `4 KiB writes over a backing file${more}, depth 1`,
    command: "bench -f qcow2 -w -c SIZE/65536 -d 1 -s 4096 -S 65536 OUT",
    goal: 1,
    before: [
      `create -q -f qcow2 -b random.raw -F raw${
        more && " -o extended_l2=on"
      } OUT`,
    ],
    verify: ["compare -f qcow2 -F qcow2 OUT THEIRS", "check OUT"],
  })),
  {
    name: "64 KiB allocating writes, depth 64",
    command: "bench -f qcow2 -w -c SIZE/65536 -d 64 -s 65536 OUT",
    goal: 0.9,
    before: ["create -q -f qcow2 OUT SIZE"],
    verify: ["compare -f qcow2 -F qcow2 OUT THEIRS", "check OUT"],
  },
  {
    name: "4 KiB allocating writes with a bitmap, depth 1",
    command: "bench -f qcow2 -w -c SIZE/65536 -d 1 -s 4096 -S 65536 OUT",
    goal: 0.4,
    before: ["create -q -f qcow2 OUT SIZE", "bitmap --add OUT changes"],
    verify: ["compare -f qcow2 -F qcow2 OUT THEIRS", "check OUT"],
  },
  {
    name: "64 KiB allocating writes with a bitmap, depth 64",
    command: "bench -f qcow2 -w -c SIZE/65536 -d 64 -s 65536 OUT",
    goal: 0.9,
    before: ["create -q -f qcow2 OUT SIZE", "bitmap --add OUT changes"],
    verify: ["compare -f qcow2 -F qcow2 OUT THEIRS", "check OUT"],
  },
  {
    name: "map, empty disk of 64 TiB",
    command: "map -f qcow2 --output=json huge.qcow2",
    goal: 8,
  },
  {
    name: "info, whole process",
    command: "info mixed.qcow2",
    goal: 5,
  },
];
