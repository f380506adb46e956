/**
 * Creating images: new ones, and clones of snapshots.
 *
 * @module
 */
import { isPowerOfTwo, roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import type { CreateContext } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import { type OptionValues, parseOptions } from "../../core/options.ts";
import { Cluster, OpenedImage } from "./cluster.ts";
import { checked, cString, type Handle, Result } from "./librbd.ts";
import { RBD_CREATE_OPTIONS } from "./options.ts";
import { parseParent, parsePlace, type Place } from "./place.ts";

/** `RBD_IMAGE_OPTION_…`. */
const OPTION = { ORDER: 2, STRIPE_UNIT: 3, STRIPE_COUNT: 4 };

const PREALLOCATION = {
  preallocation: { type: "string", help: "" },
} as const;

/**
 * Create an image, which must not exist.
 *
 * @throws {BlockError} with QEMU's messages.
 */
export async function createRbd(
  options: OptionValues,
  context: CreateContext,
): Promise<void> {
  const given = Object.entries(options);
  const isOurs = ([name]: [string, unknown]) =>
    Object.hasOwn(RBD_CREATE_OPTIONS, name) || name === "preallocation";
  const values = parseOptions(
    { ...RBD_CREATE_OPTIONS, ...PREALLOCATION },
    Object.fromEntries(given.filter(isOurs)),
  );
  const place = parsePlace(
    Object.fromEntries(given.filter((option) => !isOurs(option))),
  );
  refuseSecrets(values);
  const { preallocation = "off", clone_from: parent } = values;
  if (preallocation !== "off") {
    throw new BlockError(
      "ENOTSUP",
      `Unsupported preallocation mode '${preallocation}'`,
    );
  }
  if (place.snapshot !== undefined) {
    throw invalid(
      "Snapshots cannot be created like this: name the image alone",
    );
  }
  const order = orderOf(values);
  const size = roundUp(values.size as number ?? 0, SECTOR_SIZE);
  const key = place.keySecret === undefined
    ? undefined
    : await context.secret(place.keySecret);
  const connection = { key, cached: true };
  const used = await Cluster.open(place, connection, async (cluster, pool) => {
    if (parent === undefined) {
      await make(cluster, pool, place, size, order);
    } else {
      await clone(cluster, pool, place, parent as string, size, order);
    }
    return cluster;
  });
  await used.close();
}

/** Refuse options that are known but not supported. */
function refuseSecrets(values: OptionValues): void {
  const encrypted = Object.keys(values).find((name) =>
    name.startsWith("encrypt.")
  );
  if (encrypted !== undefined) {
    throw new BlockError(
      "ENOTSUP",
      `Ceph's own encryption ('${encrypted}') is not supported: use the ` +
        "format 'luks' on the image",
    );
  }
  // The image is opened after it is created, which needs the key as well.
  if (values["password-secret"] !== undefined) {
    throw new BlockError(
      "ENOTSUP",
      "'password-secret' is not supported: describe the image with its " +
        "'key-secret', as in json:{…}",
    );
  }
}

/** The binary logarithm of the size of objects; 0 for Ceph's default. */
function orderOf({ cluster_size, object_size }: OptionValues): number {
  if (
    cluster_size !== undefined && object_size !== undefined &&
    cluster_size !== object_size
  ) {
    throw invalid("'cluster_size' and 'object_size' are the same, but differ");
  }
  const bytes = (cluster_size ?? object_size ?? 0) as number;
  if (bytes === 0) return 0;
  if (!isPowerOfTwo(bytes)) throw invalid("obj size needs to be power of 2");
  if (bytes < 4096) throw invalid("obj size too small");
  return Math.log2(bytes);
}

async function make(
  { library }: Cluster,
  pool: Handle,
  { image }: Place,
  size: number,
  order: number,
): Promise<void> {
  const name = cString(image);
  const bytes = new Uint8Array(new Int32Array([order]).buffer);
  const result = await library.rbd_create(pool, name, size, bytes);
  checked(result, "error rbd create");
}

/**
 * Clone a snapshot; the clone has the snapshot's size, unless another is given.
 */
async function clone(
  cluster: Cluster,
  pool: Handle,
  place: Place,
  parent: string,
  size: number,
  order: number,
): Promise<void> {
  const { library } = cluster;
  const from = parseParent(parent);
  const options = new Result();
  library.rbd_image_options_create(options.bytes);
  try {
    if (order > 0) {
      // The parent's stripe unit is inherited, and may not fit into an object.
      const set = (option: number, value: number) =>
        library.rbd_image_options_set_uint64(options.value, option, value);
      set(OPTION.ORDER, order);
      set(OPTION.STRIPE_UNIT, 2 ** order);
      set(OPTION.STRIPE_COUNT, 1);
    }
    const result = await library.rbd_clone3(
      await cluster.openPool(from),
      cString(from.image),
      cString(from.snapshot),
      pool,
      cString(place.image),
      options.value,
    );
    checked(result, `error rbd clone of ${parent}`);
  } finally {
    library.rbd_image_options_destroy(options.value);
  }
  if (size === 0) return;
  try {
    await resize(cluster, pool, place, size);
  } catch (error) {
    await library.rbd_remove(pool, cString(place.image));
    throw error;
  }
}

async function resize(
  cluster: Cluster,
  pool: Handle,
  place: Place,
  size: number,
): Promise<void> {
  const image = await OpenedImage.open(cluster, pool, place, false);
  try {
    const result = await cluster.library.rbd_resize(image.handle, size);
    checked(result, "Failed to resize file");
  } finally {
    await image.close();
  }
}
