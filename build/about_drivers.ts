/**
 * What each driver is for, and its children, which no option table lists; the
 * text goes into `docs/drivers.md`.
 *
 * @module
 */

const ON_A_FILE = "Its child is `file`.";
const WITH_BACKING = "Its children are `file` and, for an overlay, `backing` " +
  "(`null`: none).";
const LIKE_FILE = "Options are those of `file`. A plain file name that leads " +
  "to such a device selects it.";

/** By the name of the driver. */
export const ABOUT: { readonly [driver: string]: string } = {
  asif: "Apple's sparse images, read-only. See [its page](formats/asif.md).",
  blob: "Bytes that a program holds. `blob` is a `Blob`, an `ArrayBuffer` or " +
    "a view of one.",
  blkdebug: "Injects errors, as QEMU's driver of that name does. Its child " +
    "is `image`. The lists `inject-error` and `set-state` are QEMU's.",
  bochs: "Growing images of Bochs, read-only. See " +
    "[its page](formats/bochs.md).",
  cloop: "Compressed loop images, read-only. See [its page](formats/cloop.md).",
  compress: "Stores what is written compressed. " + ON_A_FILE,
  "copy-on-read": "Copies what is read from backing files into the image. " +
    ON_A_FILE + " `bottom` is the node name of the lowest image that is " +
    "copied from.",
  dmg: "Apple's disk images, read-only. See [its page](formats/dmg.md).",
  file: "A local file. As a file name by itself, anything without a scheme.",
  gzip: "A compressed file. See [its page](formats/compressed.md).",
  handle:
    "A file that a program has opened. `handle` is a `Deno.FsFile` or a " +
    "`FileHandle` of Node.js.",
  host_cdrom: "A drive of optical discs. " + LIKE_FILE,
  host_device: "A block or character device. " + LIKE_FILE,
  http: "An object on a web server, read in ranges. See " +
    "[Over the network](network.md).",
  https: "As [`http`](#http), encrypted.",
  luks: "An encrypted disk. Its children are `file` and, where the header is " +
    "apart, `header`.",
  memory: "Bytes in memory, sparse. `store` is a `MemoryStore`, which keeps " +
    "them beyond the node; without one, `size` makes a new store.",
  nbd:
    "A disk that an NBD server offers: `server` (`type` `inet` with `host` " +
    "and `port`, or `unix` with `path`) or `host`, `port`, `path`; `export`; " +
    "`tls-creds`. `connect` is a function that makes the connection. See " +
    "[Over the network](network.md).",
  "null-aio": "As [`null-co`](#null-co).",
  "null-co": "A disk that loses what is written to it.",
  opfs: "A file of a browser's. `handle` is a `FileSystemFileHandle`, or its " +
    "sync access handle.",
  ova: "A disk in an appliance. See [its page](formats/ova.md).",
  parallels: "Parallels' disks. " + WITH_BACKING +
    " See [its page](formats/parallels.md).",
  preallocate: "Lets files grow in larger steps. " + ON_A_FILE,
  qcow: "QEMU's first copy-on-write format. " + WITH_BACKING +
    " See [its page](formats/qcow.md).",
  qcow2:
    "QEMU's copy-on-write format. Its children are `file`, `backing` for " +
    "an overlay (`null`: none), and `data-file`.",
  qed: "QEMU's enhanced disk. " + WITH_BACKING +
    " See [its page](formats/qed.md).",
  quorum: "Several disks that should be the same. `children` is the list of " +
    "them.",
  raw: "Its file, byte for byte, or a part of it. " + ON_A_FILE,
  rbd: "A disk in a Ceph cluster: `pool`, `namespace`, `image`, `snapshot`, " +
    "`conf`, `user`, `server`. See [Disks in Ceph](ceph.md).",
  s3: "An object in S3, or a disk in numbered blocks. See " +
    "[its page](s3.md).",
  tar: "A member of an archive. See [its page](formats/tar.md).",
  throttle: "Limits the rate of requests. " + ON_A_FILE +
    " `throttle-group` is a `ThrottleGroup`, or the id of an object of the " +
    "command line.",
  vdi: "VirtualBox's disks. " + ON_A_FILE + " See [its page](formats/vdi.md).",
  vhdx: "Hyper-V's disks. " + WITH_BACKING +
    " See [its page](formats/vhdx.md).",
  vmdk: "VMware's disks. Its children are `file`, `extents.N` for the files " +
    "that it names, and `backing`. See [its page](formats/vmdk.md).",
  vpc: "Virtual PC's disks (VHD). " + WITH_BACKING +
    " See [its page](formats/vpc.md).",
  xz: "As [`gzip`](#gzip); entered where its blocks begin.",
  zip: "As [`tar`](#tar).",
  zstd: "As [`gzip`](#gzip); entered where its frames begin, if they have a " +
    "table.",
};
