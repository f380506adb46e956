/**
 * The options of new images, as types: made by `deno task tables` from the
 * drivers' tables; do not edit.
 *
 * @module
 */
import type { OptionValues } from "./options.ts";

/**
 * What the protocols take by which an image's file is made.
 *
 * @category Options of new images
 */
export interface ProtocolCreateOptions {
  /** Turn off copy-on-write (valid only on btrfs). */
  nocow?: boolean | "on" | "off";
  /** Extent size hint for the image file, 0 to disable. */
  extent_size_hint?: number | string;
  /** RBD object size. */
  cluster_size?: number | string;
  /** The same, in Ceph's words. */
  object_size?: number | string;
  /** Protected snapshot to be a clone of: POOL/NAMESPACE/IMAGE@SNAPSHOT. */
  clone_from?: string;
  /** Store numbered blocks of this size, which can be written to. */
  "object-size"?: number | string;
}

/**
 * Options of a new `file` image.
 *
 * @category Options of new images
 */
export interface FileCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** Turn off copy-on-write (valid only on btrfs). */
  nocow?: boolean | "on" | "off";
  /** Preallocation mode (allowed values: off, falloc, full). */
  preallocation?: string;
  /** Extent size hint for the image file, 0 to disable. */
  extent_size_hint?: number | string;
}

/**
 * Options of a new `handle` image.
 *
 * @category Options of new images
 */
export interface HandleCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** Preallocation mode (allowed values: off). Default: `off`. */
  preallocation?: "off";
}

/**
 * Options of a new `host_cdrom` image.
 *
 * @category Options of new images
 */
export interface HostCdromCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** Preallocation mode (allowed values: off). */
  preallocation?: string;
}

/**
 * Options of a new `host_device` image.
 *
 * @category Options of new images
 */
export interface HostDeviceCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** Preallocation mode (allowed values: off). */
  preallocation?: string;
}

/**
 * Options of a new `luks` image.
 *
 * @category Options of new images
 */
export interface LuksCreateOptions extends ProtocolCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** ID of the secret that provides the keyslot passphrase. */
  "key-secret"?: string;
  /** Name of encryption cipher algorithm. */
  "cipher-alg"?: "aes-128" | "aes-192" | "aes-256";
  /** Name of encryption cipher mode. */
  "cipher-mode"?: "ecb" | "cbc" | "xts" | "ctr";
  /** Name of IV generator algorithm. */
  "ivgen-alg"?: "plain" | "plain64" | "essiv";
  /** Name of IV generator hash algorithm. */
  "ivgen-hash-alg"?:
    | "md5"
    | "sha1"
    | "sha224"
    | "sha256"
    | "sha384"
    | "sha512"
    | "ripemd160";
  /** Name of encryption hash algorithm. */
  "hash-alg"?:
    | "md5"
    | "sha1"
    | "sha224"
    | "sha256"
    | "sha384"
    | "sha512"
    | "ripemd160";
  /** Time to spend in PBKDF in milliseconds. */
  "iter-time"?: number | string;
  /** Create a detached LUKS header. */
  "detached-header"?: boolean | "on" | "off";
  /** Preallocation of the file, where its protocol can. */
  preallocation?: "off" | "falloc" | "full";
}

/**
 * Options of a new `memory` image.
 *
 * @category Options of new images
 */
export interface MemoryCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /**
   * Accepted for compatibility with files; memory is allocated when written.
   * Default: `off`.
   */
  preallocation?: "off" | "falloc" | "full";
}

/**
 * Options of a new `nbd` image.
 *
 * @category Options of new images
 */
export interface NbdCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** Preallocation mode (allowed values: off). */
  preallocation?: "off";
}

/**
 * Options of a new `opfs` image.
 *
 * @category Options of new images
 */
export interface OpfsCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** Preallocation mode (allowed values: off). Default: `off`. */
  preallocation?: "off";
}

/**
 * Options of a new `ova` image.
 *
 * @category Options of new images
 */
export interface OvaCreateOptions extends ProtocolCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /**
   * Name of the virtual machine, and of the files in the archive. Default:
   * `appliance`.
   */
  name?: string;
  /** Controller that the disk is attached to. Default: `lsilogic`. */
  adapter_type?: "lsilogic" | "buslogic" | "ide";
  /** VMware's version of the virtual hardware. Default: `13`. */
  hwversion?: number | string;
  /** Virtual processors. Default: `1`. */
  cpus?: number | string;
  /** Memory of the virtual machine, a multiple of 1 MiB. Default: `1G`. */
  memory?: number | string;
  /** Preallocation of the file, where its protocol can. */
  preallocation?: "off" | "falloc" | "full";
}

/**
 * Options of a new `parallels` image.
 *
 * @category Options of new images
 */
export interface ParallelsCreateOptions extends ProtocolCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** Parallels image cluster size. Default: `1M`. */
  cluster_size?: number | string;
  /** Preallocation of the file, where its protocol can. */
  preallocation?: "off" | "falloc" | "full";
}

/**
 * Options of a new `qcow` image.
 *
 * @category Options of new images
 */
export interface QcowCreateOptions extends ProtocolCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** File name of a base image. */
  backing_file?: string;
  /** Format of the backing image. */
  backing_fmt?: string;
  /**
   * Encrypt the image with format 'aes'. (Deprecated in favor of
   * encrypt.format=aes).
   */
  encryption?: boolean | "on" | "off";
  /** Encrypt the image, format choices: 'aes'. */
  "encrypt.format"?: string;
  /** ID of the secret that provides the AES encryption key. */
  "encrypt.key-secret"?: string;
  /** Preallocation of the file, where its protocol can. */
  preallocation?: "off" | "falloc" | "full";
}

/**
 * Options of a new `qcow2` image.
 *
 * @category Options of new images
 */
export interface Qcow2CreateOptions extends ProtocolCreateOptions {
  /**
   * Encrypt the image with format 'aes'. (Deprecated in favor of
   * encrypt.format=aes).
   */
  encryption?: boolean | "on" | "off";
  /** Encrypt the image, format choices: 'aes', 'luks'. */
  "encrypt.format"?: "aes" | "luks";
  /** ID of secret providing qcow AES key or LUKS passphrase. */
  "encrypt.key-secret"?: string;
  /** Name of encryption cipher algorithm. */
  "encrypt.cipher-alg"?: "aes-128" | "aes-192" | "aes-256";
  /** Name of encryption cipher mode. */
  "encrypt.cipher-mode"?: "ecb" | "cbc" | "xts" | "ctr";
  /** Name of IV generator algorithm. */
  "encrypt.ivgen-alg"?: "plain" | "plain64" | "essiv";
  /** Name of IV generator hash algorithm. */
  "encrypt.ivgen-hash-alg"?:
    | "md5"
    | "sha1"
    | "sha224"
    | "sha256"
    | "sha384"
    | "sha512"
    | "ripemd160";
  /** Name of encryption hash algorithm. */
  "encrypt.hash-alg"?:
    | "md5"
    | "sha1"
    | "sha224"
    | "sha256"
    | "sha384"
    | "sha512"
    | "ripemd160";
  /** Time to spend in PBKDF in milliseconds. */
  "encrypt.iter-time"?: number | string;
  /** qcow2 cluster size. Default: `64k`. */
  cluster_size?: number | string;
  /** Extended L2 tables. Default: `off`. */
  extended_l2?: boolean | "on" | "off";
  /** Preallocation mode (allowed values: off, metadata, falloc, full). */
  preallocation?: "off" | "metadata" | "falloc" | "full";
  /** Compression method used for image cluster compression. Default: `zlib`. */
  compression_type?: "zlib" | "zstd";
  /** Assume the external data file already exists and do not overwrite it. */
  keep_data_file?: boolean | "on" | "off";
  /** Virtual disk size. */
  size?: number | string;
  /** Compatibility level (v2 [0.10] or v3 [1.1]). */
  compat?: string;
  /** File name of a base image. */
  backing_file?: string;
  /** Image format of the base image. */
  backing_fmt?: string;
  /** File name of an external data file. */
  data_file?: string;
  /** The external data file must stay valid as a raw image. */
  data_file_raw?: boolean | "on" | "off";
  /** Postpone refcount updates. Default: `off`. */
  lazy_refcounts?: boolean | "on" | "off";
  /** Width of a reference count entry in bits. Default: `16`. */
  refcount_bits?: number | string;
}

/**
 * Options of a new `qed` image.
 *
 * @category Options of new images
 */
export interface QedCreateOptions extends ProtocolCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** File name of a base image. */
  backing_file?: string;
  /** Image format of the base image. */
  backing_fmt?: string;
  /** Cluster size (in bytes). Default: `64k`. */
  cluster_size?: number | string;
  /** L1/L2 table size (in clusters). */
  table_size?: number | string;
  /** Preallocation of the file, where its protocol can. */
  preallocation?: "off" | "falloc" | "full";
}

/**
 * Options of a new `raw` image.
 *
 * @category Options of new images
 */
export interface RawCreateOptions extends ProtocolCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** Preallocation of the file, where its protocol can. */
  preallocation?: "off" | "falloc" | "full";
}

/**
 * Options of a new `rbd` image.
 *
 * @category Options of new images
 */
export interface RbdCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** RBD object size. */
  cluster_size?: number | string;
  /** The same, in Ceph's words. */
  object_size?: number | string;
  /** Protected snapshot to be a clone of: POOL/NAMESPACE/IMAGE@SNAPSHOT. */
  clone_from?: string;
}

/**
 * Options of a new `s3` image.
 *
 * @category Options of new images
 */
export interface S3CreateOptions {
  /** Size of the new disk. */
  size?: number | string;
  /** Store numbered blocks of this size, which can be written to. */
  "object-size"?: number | string;
}

/**
 * Options of a new `vdi` image.
 *
 * @category Options of new images
 */
export interface VdiCreateOptions extends ProtocolCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /** VDI static (pre-allocated) image. Default: `off`. */
  static?: boolean | "on" | "off";
  /** Preallocation of the file, where its protocol can. */
  preallocation?: "off" | "falloc" | "full";
}

/**
 * Options of a new `vhdx` image.
 *
 * @category Options of new images
 */
export interface VhdxCreateOptions extends ProtocolCreateOptions {
  /** Virtual disk size; max of 64TB. */
  size?: number | string;
  /** Log size; min 1MB. Default: `1M`. */
  log_size?: number | string;
  /**
   * Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image
   * size. Default: `0`.
   */
  block_size?: number | string;
  /**
   * VHDX format type, can be either 'dynamic' or 'fixed'. Default is
   * 'dynamic'.
   */
  subformat?: "dynamic" | "fixed";
  /**
   * Force use of payload blocks of type 'ZERO'. Non-standard, but default.
   * Do not set to 'off' when using 'qemu-img convert' with
   * subformat=dynamic.
   */
  block_state_zero?: boolean | "on" | "off";
  /** Preallocation of the file, where its protocol can. */
  preallocation?: "off" | "falloc" | "full";
}

/**
 * Options of a new `vmdk` image.
 *
 * @category Options of new images
 */
export interface VmdkCreateOptions extends ProtocolCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /**
   * Virtual adapter type, can be one of ide (default), lsilogic, buslogic or
   * legacyESX.
   */
  adapter_type?: string;
  /** File name of a base image. */
  backing_file?: string;
  /** Must be 'vmdk' if present. */
  backing_fmt?: string;
  /** VMDK version 6 image. Default: `off`. */
  compat6?: boolean | "on" | "off";
  /** VMDK hardware version. Default: `undefined`. */
  hwversion?: string;
  /** VMware guest tools version. */
  toolsversion?: string;
  /**
   * VMDK flat extent format, can be one of {monolithicSparse (default) |
   * monolithicFlat | twoGbMaxExtentSparse | twoGbMaxExtentFlat |
   * streamOptimized}
   */
  subformat?: string;
  /** Enable efficient zero writes using the zeroed-grain GTE feature. */
  zeroed_grain?: boolean | "on" | "off";
  /** Preallocation of the file, where its protocol can. */
  preallocation?: "off" | "falloc" | "full";
}

/**
 * Options of a new `vpc` image.
 *
 * @category Options of new images
 */
export interface VpcCreateOptions extends ProtocolCreateOptions {
  /** Virtual disk size. */
  size?: number | string;
  /**
   * Type of virtual hard disk format. Supported formats are {dynamic
   * (default) | fixed}
   */
  subformat?: "dynamic" | "fixed";
  /**
   * Force disk size calculation to use the actual size specified, rather
   * than using the nearest CHS-based calculation.
   */
  force_size?: boolean | "on" | "off";
  /** Preallocation of the file, where its protocol can. */
  preallocation?: "off" | "falloc" | "full";
}

/**
 * The options of new images, by format.
 *
 * @category Options of new images
 */
export interface CreateOptionsByFormat {
  /** As {@linkcode FileCreateOptions}. */
  "file": FileCreateOptions;
  /** As {@linkcode HandleCreateOptions}. */
  "handle": HandleCreateOptions;
  /** As {@linkcode HostCdromCreateOptions}. */
  "host_cdrom": HostCdromCreateOptions;
  /** As {@linkcode HostDeviceCreateOptions}. */
  "host_device": HostDeviceCreateOptions;
  /** As {@linkcode LuksCreateOptions}. */
  "luks": LuksCreateOptions;
  /** As {@linkcode MemoryCreateOptions}. */
  "memory": MemoryCreateOptions;
  /** As {@linkcode NbdCreateOptions}. */
  "nbd": NbdCreateOptions;
  /** As {@linkcode OpfsCreateOptions}. */
  "opfs": OpfsCreateOptions;
  /** As {@linkcode OvaCreateOptions}. */
  "ova": OvaCreateOptions;
  /** As {@linkcode ParallelsCreateOptions}. */
  "parallels": ParallelsCreateOptions;
  /** As {@linkcode QcowCreateOptions}. */
  "qcow": QcowCreateOptions;
  /** As {@linkcode Qcow2CreateOptions}. */
  "qcow2": Qcow2CreateOptions;
  /** As {@linkcode QedCreateOptions}. */
  "qed": QedCreateOptions;
  /** As {@linkcode RawCreateOptions}. */
  "raw": RawCreateOptions;
  /** As {@linkcode RbdCreateOptions}. */
  "rbd": RbdCreateOptions;
  /** As {@linkcode S3CreateOptions}. */
  "s3": S3CreateOptions;
  /** As {@linkcode VdiCreateOptions}. */
  "vdi": VdiCreateOptions;
  /** As {@linkcode VhdxCreateOptions}. */
  "vhdx": VhdxCreateOptions;
  /** As {@linkcode VmdkCreateOptions}. */
  "vmdk": VmdkCreateOptions;
  /** As {@linkcode VpcCreateOptions}. */
  "vpc": VpcCreateOptions;
}

/**
 * The options of a new image of a format. Of one that is not known when the
 * program is compiled, they are any options.
 *
 * @category Options of new images
 */
export type CreateOptionsOf<Format extends string> = Format extends
  keyof CreateOptionsByFormat ? CreateOptionsByFormat[Format] : OptionValues;
