/**
 * The suite that every driver must pass, on images in a cluster; and random
 * concurrent requests.
 *
 * @module
 */
import { createImage, type Image, openImage } from "../../mod.ts";
import { openNode } from "../../core/open.ts";
import { conformance } from "../conformance.ts";
import {
  DiskModel,
  type Effect,
  type Finding,
  Random,
  seedsToRun,
} from "../model.ts";
import { makeImage, newName } from "./rbd.ts";
import { serviceTest } from "./service.ts";

const ignore = !Deno.env.has("CEPH_CONF");

conformance("rbd", {
  ignore,
  async open(size) {
    const filename = await makeImage(size);
    const open = () => openNode({ driver: "rbd", filename });
    return { node: await open(), reopen: open };
  },
});

conformance("rbd, without a cache or a map of objects", {
  ignore,
  async open(size) {
    const filename = await makeImage(
      size,
      "--image-feature=layering",
      "--object-size=4096",
    );
    const file = { driver: "rbd", filename, cache: { direct: true } };
    const open = () => openNode(file);
    return { node: await open(), reopen: open };
  },
});

for (const format of ["raw", "qcow2"]) {
  conformance(`${format} on rbd`, {
    ignore,
    async open(size) {
      const name = newName();
      await createImage(format, name, { size });
      const open = () => openNode({ driver: format, file: name });
      return { node: await open(), reopen: open };
    },
  });
}

const SIZE = 24 * 2 ** 20;

for (const seed of seedsToRun(4)) {
  const format = seed % 2 === 0 ? "raw" : "qcow2";
  serviceTest(`random requests on ${format} on rbd, seed ${seed}`, async () => {
    const random = new Random(seed);
    const name = newName();
    const cluster_size = random.pick([4096, 65536, 2 ** 20]);
    await createImage(format, name, { size: SIZE, cluster_size });
    const model = new DiskModel(SIZE);
    for (let opening = 0; opening < 3; opening++) {
      await using image = await openImage(name, { format });
      for (let round = 0; round < 25; round++) {
        const findings: Finding[] = [];
        const requests = Array.from({ length: random.below(24) }, async () => {
          const offset = random.below(SIZE - 1);
          const most = Math.min(SIZE - offset, random.pick([512, 9e4, 5e6]));
          const length = 1 + random.below(most);
          return await request(image, random, offset, length, findings);
        });
        await model.apply(
          (await Promise.all(requests)).filter((effect) => effect !== null),
          findings,
          (offset, length) => image.read(offset, length),
        );
      }
      model.check(0, await image.read(0, SIZE));
    }
  });
}

/** A random request; returns what it writes, or adds what it has read. */
async function request(
  image: Image,
  random: Random,
  offset: number,
  length: number,
  findings: Finding[],
): Promise<Effect | null> {
  switch (random.below(4)) {
    case 0: {
      const bytes = await image.read(offset, length);
      findings.push({ offset, bytes });
      return null;
    }
    case 1: {
      const unmap = random.oneIn(2);
      await image.writeZeroes(offset, length, { unmap });
      return { offset, bytes: new Uint8Array(length) };
    }
    default: {
      const bytes = random.bytes(length);
      const cut = random.below(length);
      const fua = random.oneIn(9);
      const iov = [bytes.subarray(0, cut), bytes.subarray(cut)];
      await image.writev(offset, iov, { fua });
      return { offset, bytes };
    }
  }
}
