import { assertEquals } from "@std/assert";
import {
  asPath,
  isAbsolute,
  normalizePath,
  pathOfUrl,
  resolveName,
  schemeOf,
} from "../../core/names.ts";
import { usePlatform } from "../../core/platform/mod.ts";
import { webPlatform } from "../../core/platform/web.ts";

Deno.test("schemeOf() tells a protocol from a path", () => {
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

Deno.test("resolveName() resolves a name against its image's folder", () => {
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

Deno.test("isAbsolute() holds for names that need no folder", () => {
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

Deno.test("normalizePath() resolves dots", () => {
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

/** Run a test with Windows paths. */
function onWindows(run: () => void): void {
  usePlatform({ ...webPlatform(), isWindows: true });
  try {
    run();
  } finally {
    usePlatform();
  }
}

Deno.test("Windows paths have drives and two separators", () => {
  onWindows(() => {
    assertEquals(schemeOf("C:disk.img"), undefined);
    assertEquals(schemeOf("dir\\odd:name"), undefined);
    assertEquals(schemeOf("nbd:host"), "nbd");
    const bases: [string, string][] = [
      ["C:\\images\\top.qcow2", "C:\\images\\base"],
      ["C:/images/top.qcow2", "C:/images/base"],
      ["images\\top.qcow2", "images\\base"],
      ["images\\of/top.qcow2", "images\\of/base"],
      ["\\\\server\\share\\top.qcow2", "\\\\server\\share\\base"],
      ["file:images\\top.qcow2", "file:images\\base"],
      ["top.qcow2", "base"],
    ];
    for (const [base, resolved] of bases) {
      assertEquals(resolveName(base, "base"), resolved);
    }
    for (const name of ["D:\\b", "\\b", "/b", "\\\\server\\b"]) {
      assertEquals(isAbsolute(name), true, name);
      assertEquals(resolveName("C:\\images\\top.qcow2", name), name);
    }
    const paths: [string, string][] = [
      ["c:\\a\\.\\b\\..\\c", "C:/a/c"],
      ["C:/a\\c", "C:/a/c"],
      ["C:\\..\\..", "C:/"],
      ["\\\\server\\share\\x", "//server/share/x"],
      ["a\\b", "C:/work/a/b"],
    ];
    for (const [path, normal] of paths) {
      assertEquals(normalizePath(path, "C:\\work"), normal);
    }
  });
});

Deno.test("pathOfUrl() knows Windows drives and host names", () => {
  const drive = new URL("file:///C:/of%20mine/disk");
  assertEquals(pathOfUrl(drive), "/C:/of mine/disk");
  onWindows(() => {
    assertEquals(pathOfUrl(drive), "C:/of mine/disk");
    assertEquals(pathOfUrl(new URL("file://host/x/y")), "//host/x/y");
  });
});

Deno.test("elsewhere, a name may contain backslashes", () => {
  assertEquals(resolveName("dir/odd\\top", "base"), "dir/base");
  assertEquals(resolveName("odd\\top", "base"), "base");
  assertEquals(normalizePath("/a\\..\\b"), "/a\\..\\b");
  assertEquals(isAbsolute("\\a"), false);
  // Except where a drive comes first.
  assertEquals(resolveName("C:\\images\\top", "base"), "C:\\images\\base");
});
