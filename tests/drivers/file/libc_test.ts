import { assert, assertEquals, assertThrows } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import type { Libc } from "../../../core/platform/libc.ts";
import { platform } from "../../../core/platform/mod.ts";
import { LibcFile } from "../../../drivers/file/libc_file.ts";
import { isLibcAvailable } from "../../platforms.ts";

const ignore = !isLibcAvailable();
const [EINTR, EIO, ENXIO, EBADF, ENOSPC, EINVAL] = [4, 5, 6, 9, 28, 22];
const [SEEK_DATA, SEEK_HOLE] = [3, 4];

Deno.test({
  name: "libc() returns an error's number, whatever the runtime does",
  ignore,
  fn() {
    const library = platform().libc()!;
    const bytes = new Uint8Array(64);
    let garbage: unknown[] = [];
    for (let i = 0; i < 50_000; i++) {
      assertEquals(library.fdatasync(-1), -EBADF);
      assertEquals(library.pread(-1, bytes, 64n, BigInt(i)), -EBADF);
      garbage.push(new Uint8Array(i % 5000), { i });
      if (garbage.length > 1000) garbage = [];
    }
    assertEquals(library.lseek(0, -1n, 99), -EINVAL);
  },
});

Deno.test({
  name: "addressOf() is where a view begins, even of shared memory",
  ignore,
  fn() {
    const { addressOf } = platform().libc()!;
    for (
      const buffer of [
        new ArrayBuffer(100),
        new SharedArrayBuffer(100),
        new Uint8Array(8).buffer,
      ]
    ) {
      const whole = addressOf(new Uint8Array(buffer));
      assert(whole > 0n);
      assertEquals(addressOf(new Uint8Array(buffer, 7)), whole + 7n);
    }
  },
});

/** A library whose functions return the values of a list, one by one. */
function answering(answers: { [name: string]: number[] }): Libc {
  return new Proxy({}, {
    get: (_, name: string) => () => {
      if (name === "addressOf") return 0n;
      const left = answers[name];
      return left.length > 1 ? left.shift() : left[0];
    },
  }) as Libc;
}

Deno.test({
  name: "a signal does not make a request fail",
  ignore,
  fn() {
    const once = (result: number) => [-EINTR, -EINTR, result];
    const file = new LibcFile(
      answering({
        pread: once(100),
        pwrite: once(100),
        preadv: once(100),
        pwritev: once(100),
        copy_file_range: once(100),
        lseek: once(100),
        ftruncate: once(0),
        fdatasync: once(0),
        fallocate: once(0),
        // close() has closed it; the descriptor may be another file's by now.
        close: [-EINTR],
      }),
      3,
    );
    const halves = [new Uint8Array(60), new Uint8Array(40)];
    file.preadv(0, [new Uint8Array(100)]);
    file.pwritev(0, [new Uint8Array(100)]);
    file.preadv(0, halves);
    file.pwritev(0, halves);
    file.copyFrom(0, file, 0, 100);
    assertEquals(file.size(), 100);
    file.truncate(5);
    file.sync();
    file.punchHole(0, 5);
    file.close();
  },
});

Deno.test("failures are errors in the system's words", () => {
  const file = new LibcFile(
    answering({
      pwrite: [50, -ENOSPC],
      fdatasync: [-EIO],
      ftruncate: [-4095],
      close: [-ENOSPC],
    }),
    3,
  );
  const codeOf = (call: () => void) => assertThrows(call, BlockError).code;
  assertEquals(codeOf(() => file.pwritev(0, [new Uint8Array(99)])), "ENOSPC");
  assertEquals(codeOf(() => file.sync()), "EIO");
  assertEquals(codeOf(() => file.truncate(0)), "EIO");
  assertEquals(codeOf(() => file.close()), "ENOSPC");
});

/** A library whose seeks return prescribed values, one by one. */
function seeking(data: number[], hole: number): Libc {
  const next = [...data];
  return {
    lseek(_: number, _offset: bigint, whence: number) {
      if (whence === SEEK_HOLE) return hole;
      assertEquals(whence, SEEK_DATA);
      return next.length > 1 ? next.shift() : next[0];
    },
  } as unknown as Libc;
}

Deno.test("an error's number alone does not prove that no data follows", () => {
  const at = 4096;
  const find = (data: number[], hole: number) =>
    new LibcFile(seeking(data, hole), 3).seekData(at);
  assertEquals(find([-ENXIO], at), undefined);
  // The file ends before the offset.
  assertEquals(find([-ENXIO], -ENXIO), undefined);
  // The number belonged to another call; the second time it is right.
  assertEquals(find([-ENXIO, at], at), at);
  assertEquals(find([-EIO, -ENXIO, -ENXIO], at), undefined);
  for (
    const [data, hole, code] of [
      [[-ENXIO], at + 512, "ENXIO"],
      [[-ENXIO], -EIO, "ENXIO"],
      [[-EIO], at, "EIO"],
      [[-ENXIO, -EIO, -EIO], at, "EIO"],
    ] as const
  ) {
    const error = assertThrows(() => find([...data], hole), BlockError);
    assertEquals(error.code, code);
  }
});
