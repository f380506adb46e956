import { assertEquals } from "@std/assert";
import {
  asPath,
  isAbsolute,
  normalizePath,
  resolveName,
  schemeOf,
} from "../../core/names.ts";

Deno.test("schemeOf() knows a protocol from a path", () => {
  const cases: [string, string | undefined][] = [
    ["disk.img", undefined],
    ["nbd:localhost:10809", "nbd"],
    ["json:{}", "json"],
    ["./odd:name", undefined],
    ["/a/b:c", undefined],
    ["C:\\disk.img", undefined],
    ["C:/disk.img", undefined],
    [":x", ""],
    ["file:disk.img", "file"],
  ];
  for (const [name, scheme] of cases) {
    assertEquals(schemeOf(name), scheme, name);
  }
});

Deno.test("resolveName() takes a name from its image's folder", () => {
  const cases: [string, string, string][] = [
    ["top.qcow2", "base.qcow2", "base.qcow2"],
    ["dir/top.qcow2", "base.qcow2", "dir/base.qcow2"],
    ["dir/top.qcow2", "../base.qcow2", "dir/../base.qcow2"],
    ["/a/top.qcow2", "/b/base.qcow2", "/b/base.qcow2"],
    ["/a/top.qcow2", "nbd:host:1", "nbd:host:1"],
    ["/a/top.qcow2", "json:{}", "json:{}"],
    ["file:top.qcow2", "base.qcow2", "file:base.qcow2"],
    ["file:dir/top.qcow2", "base.qcow2", "file:dir/base.qcow2"],
    ["./image:top", "./image:base", "././image:base"],
    ["image:top", "./image:base", "image:./image:base"],
  ];
  for (const [base, name, resolved] of cases) {
    assertEquals(resolveName(base, name), resolved);
  }
});

Deno.test("isAbsolute() is about what needs no folder", () => {
  for (const name of ["/a", "nbd:x", "C:\\a"]) {
    assertEquals(isAbsolute(name), true);
  }
  for (const name of ["a", "../a", "./a:b"]) {
    assertEquals(isAbsolute(name), false);
  }
});

Deno.test("asPath() keeps a path from looking like a scheme", () => {
  assertEquals(asPath("image:top"), "./image:top");
  for (const path of ["top", "./image:top", "dir/image:top", "/image:top"]) {
    assertEquals(asPath(path), path);
  }
});

Deno.test("normalizePath() works out dots", () => {
  const cases: [string, string][] = [
    ["/a/./b//c", "/a/b/c"],
    ["/a/../b", "/b"],
    ["/../../a", "/a"],
    ["/", "/"],
    ["a/b/", "/work/a/b"],
    ["../a", "/a"],
  ];
  for (const [path, normal] of cases) {
    assertEquals(normalizePath(path, "/work"), normal, path);
  }
});
