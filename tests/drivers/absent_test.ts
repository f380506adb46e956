import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { BlockError, createImage, openImage } from "../../mod.ts";
import { listDrivers } from "../../core/registry.ts";

const NAMES = [
  "ssh",
  "iscsi",
  "gluster",
  "nfs",
  "nvme",
  "ftp",
  "ftps",
  "sheepdog",
  "vxhs",
];

Deno.test("protocols without a driver are refused by name, with an alternative", async () => {
  await using server = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = server.addr;
  for (const name of NAMES) {
    const host = `127.0.0.1:${port}`;
    const sources = [
      `${name}://${host}/disk`,
      `json:{"driver":"${name}","host":"127.0.0.1","port":"${port}"}`,
      { driver: "raw", file: { driver: name, host: "127.0.0.1", port } },
    ];
    for (const source of sources) {
      const { code, message } = await assertRejects(
        () => openImage(source),
        BlockError,
      );
      assertEquals(code, "ENOTSUP", message);
      assertStringIncludes(message, `There is no driver for '${name}'; `);
    }
    const create = () =>
      createImage("raw", `${name}://${host}/disk`, { size: 512 });
    await assertRejects(create, BlockError, `no driver for '${name}'`);
    const { message } = await assertRejects(
      () => openImage({ driver: "qcow2", file: `${name}://${host}/disk` }),
      BlockError,
    );
    assertStringIncludes(message, `no driver for '${name}'`);
    assertEquals(listDrivers().some((it) => it.name === name), false);
  }
  await assertRejects(
    () => openImage("gluster+tcp://h/v/i"),
    BlockError,
    "mount",
  );
});

Deno.test("a URL is refused without a word to its server", async () => {
  for (const name of NAMES) {
    // Nobody listens there.
    for (const host of ["127.0.0.1:0", "host.invalid", ""]) {
      const error = await assertRejects(
        () => openImage(`${name}://${host}/disk`),
        BlockError,
      );
      assertEquals(error.code, "ENOTSUP", error.message);
      assertStringIncludes(error.message, `There is no driver for '${name}'; `);
    }
  }
});

Deno.test("ssh: an unreachable server is reported first", async () => {
  const described = { driver: "ssh", host: "127.0.0.1", path: "/foo" };
  const refused = (port: unknown) =>
    assertRejects(() => openImage({ ...described, port }), BlockError);
  assertStringIncludes(
    (await refused("0")).message,
    "Failed to connect to '127.0.0.1:0': Connection refused",
  );
  assertStringIncludes(
    (await refused(0.42)).message,
    "Parameter 'port' expects a number",
  );
});
