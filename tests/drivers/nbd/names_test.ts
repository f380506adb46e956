import { assertEquals, assertThrows } from "@std/assert";
import { parseNbdFilename } from "../../../drivers/nbd/names.ts";
import { takePlace } from "../../../drivers/nbd/address.ts";
import { BlockError } from "../../../mod.ts";

Deno.test("parseNbdFilename() takes what follows the first slash for the export's name", () => {
  const exportOf = (name: string) => parseNbdFilename(name).export;
  for (const uri of ["nbd://h", "nbd://h/", "nbd+unix:///?socket=/s"]) {
    assertEquals(exportOf(uri), undefined, uri);
  }
  assertEquals(exportOf("nbd://h/a/b"), "a/b");
  assertEquals(exportOf("nbd://h//a"), "/a");
  assertEquals(exportOf("nbd://h/%2Fa%20b"), "/a b");
  assertEquals(exportOf("nbd+unix:////a?socket=/s"), "/a");
});

Deno.test("parseNbdFilename() refuses ports that do not exist; port 0 is the default one", () => {
  for (const port of ["65536", "99999", "4294967297", "x", "-1"]) {
    const parse = () => parseNbdFilename(`nbd://h:${port}/e`);
    assertThrows(parse, BlockError, "No valid URL specified");
  }
  for (const [port, found] of [["", "10809"], ["0", "10809"], ["99", "99"]]) {
    assertEquals(parseNbdFilename(`nbd://h:${port}`).server, {
      type: "inet",
      host: "h",
      port: found,
    });
  }
});

Deno.test("takePlace() refuses addresses that say too much, in QEMU's order", () => {
  const cases: [options: { [name: string]: unknown }, message: string][] = [
    [{ port: "1" }, "NBD server address missing"],
    [{ path: "/s", port: "1" }, "port may not be used without host"],
    [{ path: "/s", host: "h" }, "path and host may not be used"],
    [{ path: "/s", host: "h", "server.type": "unix" }, "Cannot use 'server'"],
    [{ port: "1", "server.type": "unix" }, "Cannot use 'server' and path"],
  ];
  for (const [options, message] of cases) {
    assertThrows(() => takePlace(options), BlockError, message);
  }
});
