/**
 * Ceph's snapshots of an image, which have names but no ids.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import type {
  Snapshot,
  SnapshotOperations,
  SnapshotRequest,
} from "../../core/node.ts";
import {
  checked,
  cString,
  type Handle,
  type Librbd,
  textAt,
} from "./librbd.ts";

/** Bytes of `rbd_snap_info_t`: id, size, and address of the name. */
const INFO_SIZE = 24;
/** Longest name in bytes, with its terminating zero, as in QEMU. */
const MAX_NAME = 128;
const ERANGE = -34;

/** Called when the image has changed. */
export interface Changes {
  /** The content was replaced, and the size may differ. */
  changed(): Promise<void>;
}

/** The snapshots of an image that is open. */
export class RbdSnapshots implements SnapshotOperations {
  readonly #library: Librbd;
  readonly #image: Handle;
  readonly #changes: Changes;

  /** For the image with this handle. */
  constructor(library: Librbd, image: Handle, changes: Changes) {
    this.#library = library;
    this.#image = image;
    this.#changes = changes;
  }

  async list(): Promise<Snapshot[]> {
    let most = 4;
    for (;;) {
      const list = new Uint8Array(most * INFO_SIZE);
      const room = new Int32Array([most]);
      const found = await this.#library.rbd_snap_list(
        this.#image,
        list,
        new Uint8Array(room.buffer),
      );
      if (found === ERANGE && room[0] > most) {
        most = room[0];
        continue;
      }
      checked(found, "Failed to list the snapshots");
      try {
        return Array.from({ length: found }, (_, i) => snapshotAt(list, i));
      } finally {
        if (found > 0) this.#library.rbd_snap_list_end(list);
      }
    }
  }

  async create({ name }: SnapshotRequest): Promise<Snapshot> {
    if (name === "") throw new BlockError("EINVAL");
    if (cString(name).length > MAX_NAME) throw new BlockError("ERANGE");
    checked(await this.#library.rbd_snap_create(this.#image, nameOf(name)));
    const found = (await this.list()).find((one) => one.name === name);
    if (!found) throw new BlockError("ENOENT");
    return found;
  }

  async apply(idOrName: string): Promise<void> {
    const name = nameOf(idOrName);
    checked(await this.#library.rbd_snap_rollback(this.#image, name));
    await this.#changes.changed();
  }

  async delete(idOrName: string): Promise<void> {
    const name = nameOf(idOrName);
    checked(
      await this.#library.rbd_snap_remove(this.#image, name),
      "Failed to remove the snapshot",
    );
  }

  async loadTemporary(idOrName: string): Promise<void> {
    checked(await this.#library.rbd_snap_set(this.#image, nameOf(idOrName)));
    await this.#changes.changed();
  }
}

function nameOf(name: string): Uint8Array {
  if (name === "" || name.includes("\0")) throw new BlockError("ENOENT");
  return cString(name);
}

function snapshotAt(list: Uint8Array, index: number): Snapshot {
  const info = new BigUint64Array(list.buffer, index * INFO_SIZE, 3);
  const size = Number(info[1]);
  const name = textAt(info[2]);
  return {
    // As in QEMU: the name serves as the id, without a date.
    id: name,
    name,
    dateSeconds: 0,
    dateNanoseconds: 0,
    vmClockNanoseconds: 0n,
    vmStateSize: size,
    diskSize: size,
    icount: 0n,
  };
}
