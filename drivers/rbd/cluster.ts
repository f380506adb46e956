/**
 * The connection to a Ceph cluster.
 *
 * @module
 */
import { checkSignal, unlessAborted } from "../../core/abort.ts";
import { BlockError } from "../../core/errors.ts";
import {
  checked,
  cString,
  type Handle,
  type Librbd,
  librbd,
  rbdError,
  Result,
} from "./librbd.ts";
import type { ImageName } from "./names.ts";
import type { Place } from "./place.ts";

/** How to connect. */
export interface ConnectOptions {
  /** Whether to cache writes until they are flushed. */
  readonly cached: boolean;
  /** The bytes of the user's key. Default: as configured. */
  readonly key?: Uint8Array;
  /** Cancels the connecting. */
  readonly signal?: AbortSignal;
}

/**
 * Settings that limit how many seconds the cluster may take, Ceph's defaults
 * (five minutes to connect, no limit for requests), and their values while an
 * image is opened, unless the user has set others.
 */
const LIMITS = [
  ["client_mount_timeout", 300, 15],
  ["rados_mon_op_timeout", 0, 30],
  ["rados_osd_op_timeout", 0, 30],
] as const;

/** A cluster, and the pool that contains the image. */
export class Cluster {
  /** The library. */
  readonly library: Librbd;
  readonly #cluster: Handle;
  readonly #pools: Handle[] = [];
  readonly #impatient: string[] = [];

  private constructor(library: Librbd, cluster: Handle) {
    this.library = library;
    this.#cluster = cluster;
  }

  /**
   * Connect, and let `use` make the requests that must be answered soon. If
   * that fails, or `signal` has been aborted by then, the cluster is
   * disconnected; otherwise the caller closes it.
   *
   * @throws {BlockError} with QEMU's messages.
   */
  static async open<T>(
    place: Place,
    options: ConnectOptions,
    use: (cluster: Cluster, pool: Handle) => Promise<T>,
  ): Promise<T> {
    const library = librbd();
    const made = new Result();
    const user = place.user === undefined ? null : cString(place.user);
    checked(library.rados_create(made.bytes, user), "error initializing");
    const cluster = new Cluster(library, made.value);
    const work = cluster.#connect(place, options, use);
    // Calls that wait for the cluster cannot be cancelled, only abandoned.
    return await unlessAborted(work, options.signal);
  }

  async #connect<T>(
    place: Place,
    { signal, ...options }: ConnectOptions,
    use: (cluster: Cluster, pool: Handle) => Promise<T>,
  ): Promise<T> {
    try {
      this.#configure(place, options);
      const result = await this.library.rados_connect(this.#cluster);
      checked(result, "error connecting");
      checkSignal(signal);
      const used = await use(this, await this.openPool(place));
      this.#restoreLimits();
      return used;
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  #configure(place: Place, { cached, key }: ConnectOptions): void {
    const { library } = this;
    const { conf } = place;
    // Without a configuration, the defaults may do.
    const path = conf === undefined ? null : cString(conf);
    const read = library.rados_conf_read_file(this.#cluster, path);
    if (conf !== undefined) checked(read, `error reading conf file ${conf}`);
    // Errors are reported as such; the log is for the user's file.
    this.#set("err_to_stderr", "false");
    this.#set("log_to_stderr", "false");
    for (const [name, value] of place.settings) {
      checked(this.#set(name, value), `invalid conf option ${name}`);
    }
    const set = (name: string, value: string | undefined) => {
      if (value === undefined) return;
      checked(this.#set(name, value), `Could not set '${name}'`);
    };
    set("mon_host", place.monitors);
    set("key", key && base64(key));
    set("auth_client_required", place.auth);
    this.#set("rbd_cache", String(cached));
    for (const [name, usual, seconds] of LIMITS) {
      if (this.#numberOf(name) !== usual) continue;
      if (this.#set(name, String(seconds)) === 0) this.#impatient.push(name);
    }
  }

  /**
   * Requests to an open image wait for the cluster to come back, unless the
   * user has set limits.
   */
  #restoreLimits(): void {
    for (const [name, usual] of LIMITS) {
      if (this.#impatient.includes(name)) this.#set(name, String(usual));
    }
  }

  #set(name: string, value: string): number {
    return this.library.rados_conf_set(
      this.#cluster,
      cString(name),
      cString(value),
    );
  }

  #numberOf(name: string): number {
    const value = new Uint8Array(64);
    const result = this.library.rados_conf_get(
      this.#cluster,
      cString(name),
      value,
      value.length,
    );
    return result < 0 ? NaN : parseFloat(new TextDecoder().decode(value));
  }

  /**
   * Open a pool and its namespace; closing the cluster closes it.
   *
   * @throws {BlockError} ENOENT if there is none.
   */
  async openPool(
    { pool, namespace = "" }: Pick<ImageName, "pool" | "namespace">,
  ): Promise<Handle> {
    const { library } = this;
    const made = new Result();
    const name = cString(pool);
    checked(
      await library.rados_ioctx_create(this.#cluster, name, made.bytes),
      `error opening pool ${pool}`,
    );
    const handle = made.value;
    this.#pools.push(handle);
    if (namespace === "") return handle;
    const exists = new Result();
    const text = cString(namespace);
    checked(
      await library.rbd_namespace_exists(handle, text, exists.bytes),
      "error checking namespace",
    );
    if (exists.value === 0n) {
      throw new BlockError("ENOENT", `namespace '${namespace}' does not exist`);
    }
    library.rados_ioctx_set_namespace(handle, text);
    return handle;
  }

  /** Disconnect; all images must have been closed. */
  async close(): Promise<void> {
    for (const pool of this.#pools.splice(0)) {
      await this.library.rados_ioctx_destroy(pool);
    }
    await this.library.rados_shutdown(this.#cluster);
  }
}

function base64(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes));
}

/** An image opened in the library. */
export class OpenedImage {
  /** Its handle. */
  readonly handle: Handle;
  readonly #library: Librbd;

  private constructor(library: Librbd, handle: Handle) {
    this.#library = library;
    this.handle = handle;
  }

  /**
   * Open an image, or a snapshot of it.
   *
   * @throws {BlockError} with QEMU's messages.
   */
  static async open(
    { library }: Cluster,
    pool: Handle,
    { image, snapshot }: ImageName,
    readOnly: boolean,
  ): Promise<OpenedImage> {
    const made = new Result();
    const name = cString(image);
    const at = snapshot === undefined ? null : cString(snapshot);
    const open = readOnly ? library.rbd_open_read_only : library.rbd_open;
    const result = await open(pool, name, made.bytes, at);
    checked(result, `error reading header from ${image}`);
    return new OpenedImage(library, made.value);
  }

  /** The sizes of the image and its objects, in bytes. */
  async stat(): Promise<{ size: number; objectSize: number }> {
    // The first two fields of `rbd_image_info_t`.
    const info = new BigUint64Array(32);
    const bytes = new Uint8Array(info.buffer);
    const result = await this.#library.rbd_stat(
      this.handle,
      bytes,
      bytes.length,
    );
    if (result < 0) throw rbdError(result, "error getting image info");
    return { size: Number(info[0]), objectSize: Number(info[1]) };
  }

  /** Close the image. */
  async close(): Promise<void> {
    checked(await this.#library.rbd_close(this.handle));
  }
}
