/**
 * Creating images: which options go to the format, and which to the file below.
 *
 * @module
 */
import { assertEquals, assertRejects } from "@std/assert";
import {
  type BlockDriver,
  BlockError,
  createImage,
  getDriver,
  loadDriver,
  MemoryStore,
  openImage,
  type OptionValues,
  registerDriver,
} from "../../mod.ts";

const given: OptionValues[] = [];

/** Memory with creation options of its own. */
const shelf: BlockDriver = {
  name: "shelf",
  role: "protocol",
  createOptions: {
    size: { type: "size", help: "" },
    preallocation: { type: "string", help: "" },
    cluster_size: { type: "size", help: "" },
    colour: { type: "string", help: "" },
  },
  open: (options, context) => getDriver("memory").open(options, context),
  async create({ cluster_size, colour, ...options }, context) {
    given.push({ cluster_size, colour, key: await context.secret("k") });
    const memory = await loadDriver(getDriver("memory"));
    await memory.create!(options, context);
  },
};
registerDriver(shelf);

const SECRETS = { secrets: { k: "key" } };
const key = new TextEncoder().encode("key");

Deno.test("options that a format lacks go to the protocol", async () => {
  const target = { driver: "shelf", store: new MemoryStore() };
  const options = { size: 2 ** 20, cluster_size: 4096, colour: "red" };
  await createImage("raw", target, options, SECRETS);
  assertEquals(given.pop(), { cluster_size: 4096, colour: "red", key });
  // An option that both have is the format's.
  await createImage("qcow2", target, options, SECRETS);
  assertEquals(given.pop(), { cluster_size: undefined, colour: "red", key });
  await using image = await openImage({ driver: "qcow2", file: target });
  assertEquals((await image.info()).clusterSize, 4096);
  // As the image's own driver, the protocol gets only its own options.
  await createImage("shelf", target, options, SECRETS);
  assertEquals(given.pop(), { cluster_size: 4096, colour: "red", key });
});

Deno.test("unknown options are refused before anything is lost", async () => {
  const store = new MemoryStore(512);
  for (const format of ["raw", "qcow2", "shelf"]) {
    const target = { driver: "shelf", store };
    const create = () =>
      createImage(format, target, { size: 2 ** 20, shade: "dark" });
    const { message } = await assertRejects(create, BlockError);
    assertEquals(message, "Invalid parameter 'shade'");
  }
  const plain = { driver: "memory", store };
  // @ts-expect-error: the compiler says so first.
  const create = () => createImage("raw", plain, { size: 1024, colour: "red" });
  await assertRejects(create, BlockError, "Invalid parameter 'colour'");
  assertEquals([store.size, given.length], [512, 0]);
});
