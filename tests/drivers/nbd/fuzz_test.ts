/**
 * Some of the conversations of `fuzz.ts`.
 *
 * @module
 */
import { Fuzzer } from "./fuzz.ts";

const COUNT = 1000;

Deno.test("a server outlives all that clients say", async () => {
  const fuzzer = await Fuzzer.start(1);
  await fuzzer.run("server", COUNT);
});

Deno.test("a client outlives all that servers say", async () => {
  const fuzzer = await Fuzzer.start(2);
  await fuzzer.run("client", COUNT);
});
