/**
 * The runtimes' sockets: Deno's own, and those of `node:net`.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { denoPlatform } from "../../../core/platform/deno.ts";
import { localSockets, usePlatform } from "../../../core/platform/mod.ts";
import { nodePlatform } from "../../../core/platform/node.ts";
import { isEqual } from "../../../core/runtime.ts";
import { BlockError, openImage, serveNbd } from "../../../mod.ts";
import { TempDir } from "../../qemu.ts";
import { memoryImage } from "./peers.ts";

const PLATFORMS = { "Deno": denoPlatform, "node:net": nodePlatform };

for (const [name, platform] of Object.entries(PLATFORMS)) {
  const test = (what: string, run: () => Promise<void>) =>
    Deno.test(`${name}: ${what}`, async () => {
      usePlatform(platform()!);
      try {
        await run();
      } finally {
        usePlatform();
      }
    });

  test("a disk goes over TCP and Unix sockets", async () => {
    await using dir = new TempDir();
    await using image = await memoryImage(8 << 20);
    const data = new Uint8Array(6 << 20).map((_, i) => i * 13 >> 4);
    const addresses = [
      { host: "127.0.0.1", port: 0 },
      { path: dir.file("a socket") },
    ];
    for (const address of addresses) {
      await using server = await serveNbd(image, address, { writable: true });
      const file = server.uri!;
      await using disk = await openImage(file, { format: "raw" });
      await Promise.all(Array.from({ length: 96 }, (_, i) => {
        const [start, end] = [i << 16, (i + 1) << 16];
        return disk.write(start + 1, data.subarray(start, end));
      }));
      assert(isEqual(await disk.read(1, data.length), data));
      assertEquals(server.clients, 1);
    }
    await assertRejects(() => Deno.stat(dir.file("a socket")));
  });

  test("unreachable servers are reported", async () => {
    await using dir = new TempDir();
    const path = dir.file("nothing");
    const failed = async (name: string) => {
      const open = () => openImage(name, { format: "raw" });
      return (await assertRejects(open, BlockError)).message.split("': ")
        .slice(1).join("': ");
    };
    assertEquals(
      await failed(`nbd:unix:${path}`),
      `Failed to connect to '${path}': No such file or directory`,
    );
    assertEquals(
      await failed("nbd://localhost:1/"),
      "Failed to connect to 'localhost:1': Connection refused",
    );
    assertEquals(
      await failed("nbd://nowhere.invalid:2/"),
      "address resolution failed for nowhere.invalid:2: Name or service not known",
    );
  });

  test("a closed socket accepts no more clients, and can be created again", async () => {
    const sockets = await localSockets();
    const listener = await sockets.listen({ host: "127.0.0.1", port: 0 });
    const { address } = listener;
    const taken = await assertRejects(
      () => sockets.listen(address),
      BlockError,
    );
    assertEquals(taken.code, "EADDRINUSE");
    const next = listener.accept();
    listener.close();
    assertEquals(await next, null);
    const again = await sockets.listen(address);
    assert("port" in again.address);
    again.close();
  });
}
