import { mustSkip } from "../qemu.ts";
import { assert, assertEquals } from "@std/assert";
import { allocate } from "../../core/bytes.ts";
import { compress, decompress } from "../../core/compression.ts";
import { setPortable } from "../platforms.ts";
import { LAYOUT } from "../../core/zlib_worker.ts";
import { holdWorkers } from "../../core/zlib_workers.ts";

const RealWorker = globalThis.Worker;

/** Have workers run another program. */
function substitute(program: string | (() => never)): Disposable {
  globalThis.Worker = class extends RealWorker {
    constructor(_url: string | URL, options?: WorkerOptions) {
      if (typeof program === "function") program();
      super(
        `data:text/javascript,${encodeURIComponent(`${program}`)}`,
        options,
      );
      // As Deno does, which also prints the error.
      this.onmessage = () => this.dispatchEvent(new ErrorEvent("error"));
    }
  };
  return { [Symbol.dispose]: () => void (globalThis.Worker = RealWorker) };
}

/** Enough calls for workers to be started, and used. */
async function compressMuch(): Promise<void> {
  const clusters = Array.from({ length: 40 }, (_, i) => {
    const bytes = allocate(65536).fill(i);
    crypto.getRandomValues(bytes.subarray(0, 1000));
    return bytes;
  });
  const stored = await Promise.all(
    clusters.map((bytes) => compress("zlib", bytes)),
  );
  const again = await Promise.all(stored.map(async (bytes) => {
    const target = new Uint8Array(65536);
    await decompress("zlib", bytes!, target);
    return target;
  }));
  for (const [i, bytes] of again.entries()) assertEquals(bytes, clusters[i]);
}

/** A worker that takes a call, and then comes to an end. */
function dying(last: string): string {
  const { ready, taken } = LAYOUT.states;
  return `onmessage = ({ data: { control } }) => {
    Atomics.add(control, ${LAYOUT.alive}, 1);
    Atomics.add(control, ${LAYOUT.started}, 1);
    for (;;) {
      for (let slot = 0; slot < ${LAYOUT.slots}; slot++) {
        const words = ${LAYOUT.firstSlot} + slot * ${LAYOUT.slotWords};
        if (Atomics.compareExchange(control, words, ${ready}, ${taken}) ===
          ${ready}) { ${last} }
      }
      if (Atomics.load(control, ${LAYOUT.quit}) !== 0) return close();
      Atomics.wait(control, ${LAYOUT.submitted},
        Atomics.load(control, ${LAYOUT.submitted}), 50);
    }
  };`;
}

const FAIL = "postMessage('failed'); return close();";

const ENDS: { [name: string]: string | (() => never) } = {
  "cannot be started": () => {
    throw new TypeError("No workers here");
  },
  "fail while they are loaded": `(() => { ${FAIL} })()`,
  "end without a word": "close()",
  "fail during a call": dying(FAIL),
  "end during a call": dying("return close();"),
};

for (const [name, program] of Object.entries(ENDS)) {
  Deno.test(`no call is lost with workers that ${name}`, async () => {
    using _ = substitute(program);
    // Through node:zlib, which exists on all systems.
    setPortable("libraries");
    try {
      using _hold = holdWorkers(true);
      await compressMuch();
      await compressMuch();
    } finally {
      setPortable(false);
    }
  });
}

Deno.test({
  name: "no call is lost with workers that are terminated",
  ignore: mustSkip({
    privileges: { "two processors": navigator.hardwareConcurrency > 1 },
  }),
  fn: terminateWorkers,
});

async function terminateWorkers(): Promise<void> {
  const made: Worker[] = [];
  globalThis.Worker = class extends RealWorker {
    constructor(url: string | URL, options?: WorkerOptions) {
      super(url, options);
      made.push(this);
    }
  };
  try {
    using _hold = holdWorkers(true);
    assert(made.length > 0);
    const work = [compressMuch(), compressMuch()];
    await new Promise((resolve) => setTimeout(resolve, 30));
    for (const worker of made) worker.terminate();
    await Promise.all(work);
    await compressMuch();
  } finally {
    globalThis.Worker = RealWorker;
  }
}
