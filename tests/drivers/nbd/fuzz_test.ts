/**
 * A sample of the conversations of `fuzz.ts`.
 *
 * @module
 */
import { Fuzzer } from "./fuzz.ts";

const COUNT = 1000;

Deno.test("a server survives anything a client sends", async () => {
  const fuzzer = await Fuzzer.start(1);
  await fuzzer.run("server", COUNT);
});

Deno.test("a client survives anything a server sends", async () => {
  const fuzzer = await Fuzzer.start(2);
  await fuzzer.run("client", COUNT);
});
