/**
 * Ceph's library for block devices, with the names of its C functions.
 *
 * Handles and addresses are 64-bit numbers, so that permission for this one
 * library is enough. Calls that may wait for the cluster run in another thread;
 * their buffers must be kept alive, and must not move, until the calls end.
 *
 * @module
 */
import {
  BlockError,
  codeOfErrno,
  errno as numberOf,
  strerror,
} from "../../core/errors.ts";
import { platform } from "../../core/platform/mod.ts";

const FILE = "librbd.so.1";

/** A handle or an address. */
export type Handle = bigint;

type Bytes = Uint8Array;
type Later = Promise<number>;

/** The functions used, including those of librados and the C library. */
export interface Librbd {
  rados_create(cluster: Bytes, id: Bytes | null): number;
  rados_conf_read_file(cluster: Handle, path: Bytes | null): number;
  rados_conf_set(cluster: Handle, name: Bytes, value: Bytes): number;
  rados_conf_get(
    cluster: Handle,
    name: Bytes,
    value: Bytes,
    length: number,
  ): number;
  rados_connect(cluster: Handle): Later;
  rados_shutdown(cluster: Handle): Promise<void>;
  rados_ioctx_create(cluster: Handle, pool: Bytes, io: Bytes): Later;
  rados_ioctx_set_namespace(io: Handle, namespace: Bytes): void;
  rados_ioctx_destroy(io: Handle): Promise<void>;
  rbd_version(major: Bytes, minor: Bytes, extra: Bytes): void;
  rbd_namespace_exists(io: Handle, namespace: Bytes, exists: Bytes): Later;
  rbd_create(io: Handle, name: Bytes, size: number, order: Bytes): Later;
  rbd_clone3(
    parent: Handle,
    parentName: Bytes,
    snapshot: Bytes,
    io: Handle,
    name: Bytes,
    options: Handle,
  ): Later;
  rbd_remove(io: Handle, name: Bytes): Later;
  rbd_image_options_create(options: Bytes): void;
  rbd_image_options_set_uint64(
    options: Handle,
    name: number,
    value: number,
  ): number;
  rbd_image_options_destroy(options: Handle): void;
  rbd_open(
    io: Handle,
    name: Bytes,
    image: Bytes,
    snapshot: Bytes | null,
  ): Later;
  rbd_open_read_only: Librbd["rbd_open"];
  rbd_close(image: Handle): Later;
  rbd_stat(image: Handle, info: Bytes, length: number): Later;
  rbd_get_features(image: Handle, features: Bytes): Later;
  rbd_get_flags(image: Handle, flags: Bytes): Later;
  rbd_get_overlap(image: Handle, overlap: Bytes): Later;
  rbd_read: Transfer;
  rbd_write: Transfer;
  rbd_write_zeroes(
    image: Handle,
    offset: number,
    length: number,
    zeroFlags: number,
    flags: number,
  ): Later;
  rbd_discard(image: Handle, offset: number, length: number): Later;
  rbd_flush(image: Handle): Later;
  rbd_resize(image: Handle, size: number): Later;
  rbd_diff_iterate2(
    image: Handle,
    fromSnapshot: Bytes | null,
    offset: number,
    length: number,
    includeParent: number,
    wholeObjects: number,
    call: unknown,
    argument: Handle,
  ): Later;
  rbd_snap_list(image: Handle, list: Bytes, most: Bytes): Later;
  rbd_snap_list_end(list: Bytes): void;
  rbd_snap_create(image: Handle, name: Bytes): Later;
  rbd_snap_remove(image: Handle, name: Bytes): Later;
  rbd_snap_rollback(image: Handle, name: Bytes): Later;
  rbd_snap_set(image: Handle, name: Bytes): Later;
  memcpy(to: Bytes, from: Handle, length: number): void;
  strlen(text: Handle): bigint;
}

type Transfer = (
  image: Handle,
  offset: number,
  length: number,
  bytes: Bytes,
) => Later;

const H = "usize";
const B = "buffer";

/**
 * Parameters and results. Lengths of transfers stay below 2^31 and are declared
 * `i32`: a 64-bit result would cost a bigint each.
 */
const AT_ONCE: { readonly [name: string]: readonly [string[], string] } = {
  rados_create: [[B, B], "i32"],
  rados_conf_read_file: [[H, B], "i32"],
  rados_conf_set: [[H, B, B], "i32"],
  rados_conf_get: [[H, B, B, "usize"], "i32"],
  rados_ioctx_set_namespace: [[H, B], "void"],
  rbd_version: [[B, B, B], "void"],
  rbd_image_options_create: [[B], "void"],
  rbd_image_options_set_uint64: [[H, "i32", "u64"], "i32"],
  rbd_image_options_destroy: [[H], "void"],
  rbd_snap_list_end: [[B], "void"],
  memcpy: [[B, H, "usize"], "void"],
  strlen: [[H], "u64"],
};

const LATER: { readonly [name: string]: readonly string[] } = {
  rados_connect: [H],
  rados_ioctx_create: [H, B, B],
  rbd_namespace_exists: [H, B, B],
  rbd_create: [H, B, "u64", B],
  rbd_clone3: [H, B, B, H, B, H],
  rbd_remove: [H, B],
  rbd_open: [H, B, B, B],
  rbd_open_read_only: [H, B, B, B],
  rbd_close: [H],
  rbd_stat: [H, B, "usize"],
  rbd_get_features: [H, B],
  rbd_get_flags: [H, B],
  rbd_get_overlap: [H, B],
  rbd_read: [H, "u64", "usize", B],
  rbd_write: [H, "u64", "usize", B],
  rbd_write_zeroes: [H, "u64", "usize", "i32", "i32"],
  rbd_discard: [H, "u64", "u64"],
  rbd_flush: [H],
  rbd_resize: [H, "u64"],
  rbd_diff_iterate2: [H, B, "u64", "u64", "u8", "u8", "function", H],
  rbd_snap_list: [H, B, B],
  rbd_snap_create: [H, B],
  rbd_snap_remove: [H, B],
  rbd_snap_rollback: [H, B],
  rbd_snap_set: [H, B],
};

const LATER_WITHOUT_RESULT = ["rados_shutdown", "rados_ioctx_destroy"];

let loaded: Librbd | undefined;

/**
 * Load the library.
 *
 * @throws {BlockError} ENOTSUP, naming what is missing.
 */
export function librbd(): Librbd {
  return loaded ??= load();
}

function load(): Librbd {
  const { libraries } = platform();
  const without = (why: string) =>
    new BlockError("ENOTSUP", `Driver 'rbd' needs Ceph's ${FILE}, ${why}`);
  if (!libraries) {
    throw without("which this runtime cannot call: Deno on Linux can");
  }
  if (!libraries.isPermitted(FILE)) {
    throw without("and the permission to call it: --allow-ffi");
  }
  const path = libraries.find(FILE);
  if (path === null) {
    throw without("which is not installed (package librbd1)");
  }
  const functions = Object.fromEntries([
    ...Object.entries(AT_ONCE).map(([name, [parameters, result]]) =>
      [name, { parameters, result }] as const
    ),
    ...Object.entries(LATER).map(([name, parameters]) =>
      [name, { parameters, result: "i32", nonblocking: true }] as const
    ),
    ...LATER_WITHOUT_RESULT.map((name) =>
      [name, { parameters: [H], result: "void", nonblocking: true }] as const
    ),
  ]);
  try {
    return libraries.open(path, functions).symbols as Librbd;
  } catch (error) {
    throw without(`a newer one: ${(error as Error).message}`);
  }
}

/** A zero-terminated string. */
export function cString(text: string): Bytes {
  return new TextEncoder().encode(`${text}\0`);
}

/** An output parameter of up to 64 bits. */
export class Result {
  readonly #value = new BigUint64Array(1);
  /** The memory for the library. */
  readonly bytes: Bytes = new Uint8Array(this.#value.buffer);

  /** The result, as 64 bits. */
  get value(): bigint {
    return this.#value[0];
  }

  /** The result, as 32 bits. */
  get int(): number {
    return new Int32Array(this.#value.buffer)[0];
  }
}

/** Read a zero-terminated string. */
export function textAt(address: Handle): string {
  const { strlen, memcpy } = librbd();
  const bytes = new Uint8Array(Number(strlen(address)));
  memcpy(bytes, address, bytes.length);
  return new TextDecoder().decode(bytes);
}

/** Texts of error numbers without a code here. */
const TEXTS: { readonly [number: number]: string } = {
  7: "Argument list too long",
  8: "Exec format error",
  33: "Numerical argument out of domain",
  39: "Directory not empty",
  61: "No data available",
};

/**
 * The error of a failed call. `what` has failed; without it, the message is the
 * system's text.
 */
export function rbdError(result: number, what?: string): BlockError {
  const number = -result;
  const code = codeOfErrno(number);
  const isKnown = numberOf(code) === number || !(number in TEXTS);
  const text = isKnown ? strerror(code) : TEXTS[number];
  return new BlockError(code, what === undefined ? text : `${what}: ${text}`);
}

/** Throw the error of a failed call, or return its result. */
export function checked(result: number, what?: string): number {
  if (result < 0) throw rbdError(result, what);
  return result;
}
