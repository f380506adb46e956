/**
 * The protocol `rbd`: an image in a Ceph cluster, through Ceph's own library.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import type { BlockDriver } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import { Cluster, OpenedImage } from "./cluster.ts";
import { RbdNode } from "./node.ts";
import { RBD_TRAITS } from "./options.ts";
import { parsePlace } from "./place.ts";

/**
 * An image in a Ceph cluster, by the options and file names of QEMU's driver:
 * `rbd:POOL/IMAGE`, or `{driver: "rbd", pool, image, conf, user, …}`.
 */
export const rbdDriver: BlockDriver = {
  ...RBD_TRAITS,

  async open(options, context) {
    const place = parsePlace(options);
    const { readOnly, signal, noFlush } = context;
    if (place.snapshot !== undefined && !readOnly) {
      throw new BlockError("EACCES", "rbd snapshots are read-only");
    }
    const key = place.keySecret === undefined
      ? undefined
      : await context.secret(place.keySecret);
    const connection = { key, cached: !context.direct, signal };
    return await Cluster.open(place, connection, async (cluster, pool) => {
      const image = await OpenedImage.open(cluster, pool, place, readOnly);
      try {
        const facts = await image.stat();
        // Otherwise nobody would close it.
        checkSignal(signal);
        return new RbdNode({
          cluster,
          image,
          place,
          ...facts,
          readOnly,
          noFlush,
        });
      } catch (error) {
        await image.close();
        throw error;
      }
    });
  },

  async create(options, context) {
    const { createRbd } = await import("./create.ts");
    await createRbd(options, context);
  },
};
