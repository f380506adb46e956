/**
 * A sample of what `breaks.ts` does: some bytes of each message.
 *
 * @module
 */
import { breakEverywhere, endingsOf, SETTINGS } from "./breaks.ts";

const STEP = 7;
/** With several connections there are many more messages. */
const LONG_STEP = 29;

for (const [name, setting] of Object.entries(SETTINGS)) {
  for (const ending of endingsOf(setting)) {
    Deno.test(`${name}: ${ending}`, async () => {
      const { connections = 1 } = setting;
      const step = connections > 1 ? LONG_STEP : STEP;
      await breakEverywhere(ending, setting, step);
    });
  }
}
