// Copyright 2025 the bdrv authors. MIT license.
// A stand-in for https://jsr.io/@std/cli (module "./prompt-secret"), for
// machines that cannot reach JSR; deno.json's "links" puts it in place.
// Signature and behaviour are those of the real module.

/** Options for {@linkcode promptSecret}. */
export interface PromptSecretOptions {
  /** A character to print for each one typed; "" prints none. Default: "*". */
  mask?: string;
  /** Remove the prompt from the terminal once answered. Default: false. */
  clear?: boolean;
}

const LF = 10;
const CR = 13;
const BS = 8;
const DEL = 127;
const CTRL_C = 3;
const CTRL_D = 4;

/**
 * Ask for a secret on the terminal without showing it.
 *
 * @returns what was typed, or `null` where there is no terminal.
 */
export function promptSecret(
  message = "Secret",
  { mask = "*", clear = false }: PromptSecretOptions = {},
): string | null {
  const input = Deno.stdin;
  const output = Deno.stdout;
  if (!input.isTerminal() || !output.isTerminal()) return null;
  const print = (text: string) =>
    output.writeSync(new TextEncoder().encode(text));
  const show = (count: number) =>
    print(`\r\x1b[K${message} ${mask.repeat(count)}`);

  let typed: number[] = [];
  const count = () => new TextDecoder().decode(new Uint8Array(typed)).length;
  const byte = new Uint8Array(1);
  show(0);
  input.setRaw(true);
  try {
    for (;;) {
      const read = input.readSync(byte);
      if (read === null || read === 0) break;
      const [code] = byte;
      if (code === LF || code === CR) break;
      if (code === CTRL_C) Deno.kill(Deno.pid, "SIGINT");
      if (code === CTRL_C || code === CTRL_D) break;
      if (code === BS || code === DEL) {
        // A character may be several bytes of UTF-8.
        while (typed.length > 0 && (typed.at(-1)! & 0xc0) === 0x80) typed.pop();
        typed = typed.slice(0, -1);
      } else {
        typed.push(code);
      }
      if (mask !== "") show(count());
    }
  } finally {
    input.setRaw(false);
    print(clear ? "\r\x1b[K" : "\n");
  }
  return new TextDecoder().decode(new Uint8Array(typed));
}
