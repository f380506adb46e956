import { assertEquals, assertMatch } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import {
  attempt,
  deviceNumbers,
  hostError,
} from "../../../core/platform/system_calls.ts";

/** An error as a runtime throws it. */
function thrown(facts: object): Error {
  return Object.assign(new Error("it failed"), facts);
}

const ERRORS: readonly [facts: object, code: string][] = [
  [{ code: "ENOSPC" }, "ENOSPC"],
  // Node.js gives a name that we have no code for; its number has one.
  [{ code: "EDQUOT", errno: -122 }, "ENOSPC"],
  [{ message: "No space left on device (os error 28)" }, "ENOSPC"],
  // Windows has other numbers; there Deno's names tell them apart.
  [{ name: "NotFound", message: "no such path (os error 3)" }, "ENOENT"],
  [{ name: "PermissionDenied", message: "denied (os error 5)" }, "EACCES"],
  [{ message: "no such number (os error 4000)" }, "EIO"],
  [{}, "EIO"],
];

Deno.test("hostError() translates what runtimes throw", () => {
  for (const [facts, code] of ERRORS) {
    assertEquals(hostError(thrown(facts)).code, code, JSON.stringify(facts));
  }
  const error = new BlockError("EAGAIN");
  assertEquals(hostError(error), error);
});

Deno.test("hostError() keeps the name of the missing permission", () => {
  const message = 'Requires read access to "x", run again with the ' +
    "--allow-read flag";
  const error = hostError(thrown({ name: "NotCapable", message }));
  assertEquals(error.code, "EACCES");
  assertMatch(error.hint!, /--allow-read/);
});

Deno.test("attempt() retries a call that a signal interrupted", () => {
  let left = 3;
  const result = attempt(() => {
    if (left-- > 0) throw thrown({ code: "EINTR" });
    return "done";
  });
  assertEquals(result, "done");
});

Deno.test("deviceNumbers() splits Linux's device number", () => {
  assertEquals(deviceNumbers(0x803), [8, 3]);
  assertEquals(deviceNumbers(0x100_10ff), [0x10, 0x10ff]);
  assertEquals(deviceNumbers(0x1000_0000_0000 + 0x700), [0x1007, 0]);
});
