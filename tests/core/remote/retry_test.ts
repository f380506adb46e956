import { assert, assertEquals } from "@std/assert";
import { pauseOf } from "../../../core/remote/retry.ts";

Deno.test("pauseOf() takes seconds and dates, and nothing that has passed", () => {
  const pause = (text?: string) =>
    pauseOf(
      new Response(null, text ? { headers: { "retry-after": text } } : {}),
    );
  assertEquals(pause(), undefined);
  assertEquals(pause("2"), 2000);
  assertEquals(pause("0"), 0);
  for (
    const text of ["-5", "1e3", "0x10", "soon", "Thu, 01 Jan 1970 00:00:00 GMT"]
  ) {
    assertEquals(pause(text), undefined, text);
  }
  const inAMinute = pause(new Date(Date.now() + 60_000).toUTCString())!;
  assert(inAMinute > 50_000 && inAMinute <= 60_000, `${inAMinute}`);
});
