/**
 * Calls of `node:zlib` on all processors. It has no parallel calls of its own:
 * its asynchronous ones run one after the other. So a few workers take calls
 * from slots in shared memory, and put their results there.
 *
 * Waking a worker, or being woken by one, costs some 20 µs each; a message
 * would cost 100. Workers start when enough work has been seen to repay that.
 * This thread helps: always while they start, then with what is more than they
 * can begin with. They end when nobody holds them any more, and after some
 * idleness, so that no program is kept running.
 *
 * @module
 */
import "./disposal.ts";
import { Pace } from "./jobs/pace.ts";
import { compressWrapped, compressZstd } from "./codecs.ts";
import { platform } from "./platform/mod.ts";
import type { Zlib } from "./platform/platform.ts";
import { LAYOUT, serve, SLOTS, type ZlibCall } from "./zlib_worker.ts";
import { zlibCompressorOf } from "./zlib_compressor.ts";
import { compressorOf } from "./zstd_compressor.ts";

export type { ZlibCall } from "./zlib_worker.ts";

/** The runtime's `node:zlib`, if it has one. */
export function nativeZlib(): Zlib | null {
  return platform().zlib();
}

/** Bytes of plain data with the workers: bounds the memory that slots take up. */
const MAX_BYTES = 8 * 1024 * 1024;

interface Job {
  readonly call: ZlibCall;
  readonly input: Uint8Array;
  /** Bytes of what is or becomes plain. */
  readonly size: number;
  /** Where the result goes, if that is of this length; else where it wants. */
  readonly target?: Uint8Array;
  resolve(output: Uint8Array): void;
  reject(error: unknown): void;
}

const { states } = LAYOUT;

/**
 * Milliseconds after which it is asked whether the workers do anything, and how
 * often in a row they may not have: once would be too strict with a program that
 * was stopped in between. No call takes as long.
 */
const [LOOK, LOOKS] = [1000, 2];

/** Workers, and the calls that wait for them. */
class Workers {
  readonly #control = new Int32Array(
    new SharedArrayBuffer(
      4 * (LAYOUT.firstSlot + SLOTS * LAYOUT.slotWords),
    ),
  );
  /** Memory that was never written to takes up none. */
  readonly memory: Uint8Array;
  readonly #jobs: (Job | undefined)[] = new Array(SLOTS).fill(undefined);
  readonly #waiting: Job[] = [];
  /** The slot used last. */
  #next = 0;
  #bytes = 0;
  #busy = 0;
  #collecting = false;
  /** Keeps the program running while there are calls: workers may be gone. */
  readonly #vigil = new Vigil();
  /**
   * Whether workers cannot be had after all, or do no more: all calls are made
   * here then, also those that are with them.
   */
  broken = false;

  /** @param before Workers that have ended, whose memory these go on with. */
  constructor(before?: Workers) {
    this.memory = before?.memory ??
      new Uint8Array(new SharedArrayBuffer(SLOTS * LAYOUT.slotSize));
    this.#start();
  }

  /** Whether no call is under way. */
  get isIdle(): boolean {
    return this.#busy === 0 && this.#waiting.length === 0;
  }

  /** Whether all workers have ended. */
  get isOver(): boolean {
    return this.#alive === 0 &&
      Atomics.load(this.#control, LAYOUT.started) > 0;
  }

  /** Have the calls made. */
  submit(jobs: readonly Job[]): void {
    this.#waiting.push(...jobs);
    this.#fill();
    if (!this.#collecting) this.#collect();
  }

  /** Let the workers end when the calls that they have are made. */
  quit(): void {
    Atomics.store(this.#control, LAYOUT.quit, 1);
    this.#wake();
    if (!this.#collecting) this.#vigil.end();
  }

  get #alive(): number {
    return Atomics.load(this.#control, LAYOUT.alive);
  }

  #start(): void {
    const layout = JSON.stringify(LAYOUT);
    const { zlib, libraries } = platform();
    const program = `(${serve})(${layout}, ${compressorOf}, ` +
      `${zlibCompressorOf}, ${zlib}, ` +
      `${libraries?.open})`;
    const message = { control: this.#control, memory: this.memory };
    for (let count = workerCount(); count > 0 && !this.broken; count--) {
      try {
        const worker = platform().startWorker(program);
        worker.onFailure = () => {
          this.broken = true;
          // For us, who may be waiting for it.
          Atomics.add(this.#control, LAYOUT.done, 1);
          Atomics.notify(this.#control, LAYOUT.done);
        };
        worker.post(message);
      } catch {
        this.broken = true;
      }
    }
  }

  #wake(): void {
    Atomics.add(this.#control, LAYOUT.submitted, 1);
    if (Atomics.load(this.#control, LAYOUT.asleep) === 0) return;
    Atomics.notify(this.#control, LAYOUT.submitted);
  }

  /** Put calls that wait into free slots; without workers, they are made. */
  #fill(): void {
    if (this.broken) return this.#waiting.splice(0).forEach(makeHere);
    let filled = 0;
    while (this.#waiting.length > 0 && this.#busy < SLOTS) {
      const { size } = this.#waiting[0];
      if (this.#busy > 0 && this.#bytes + size > MAX_BYTES) break;
      this.#place(this.#waiting.shift()!);
      filled++;
    }
    if (filled > 0) this.#wake();
  }

  #place(job: Job): void {
    // Memory of slots that are not needed is not touched.
    if (this.#next >= Math.floor(MAX_BYTES / job.size)) this.#next = 0;
    while (this.#jobs[this.#next]) this.#next = (this.#next + 1) % SLOTS;
    const slot = this.#next;
    this.#jobs[slot] = job;
    this.#busy++;
    this.#bytes += job.size;
    const call = new TextEncoder().encode(JSON.stringify(job.call));
    const start = slot * LAYOUT.slotSize;
    this.memory.set(call, start);
    this.memory.set(job.input, start + call.length);
    const words = LAYOUT.firstSlot + slot * LAYOUT.slotWords;
    this.#control[words + 1] = call.length;
    this.#control[words + 2] = job.input.length;
    Atomics.store(this.#control, words, states.ready);
  }

  /** Take results out of slots, and help, until no call is left. */
  async #collect(): Promise<void> {
    this.#collecting = true;
    this.#vigil.begin();
    const pace = new Pace();
    let looks = 0;
    while (this.#busy > 0) {
      const done = Atomics.load(this.#control, LAYOUT.done);
      if (this.#takeResults() || this.#help()) {
        looks = 0;
        this.#fill();
        // What was waiting for these results goes on.
        if (pace.isDue) await pace.rest();
        else await null;
        continue;
      }
      Atomics.store(this.#control, LAYOUT.waiting, 1);
      const change = Atomics.waitAsync(this.#control, LAYOUT.done, done, LOOK);
      const outcome = change.async ? await change.value : change.value;
      Atomics.store(this.#control, LAYOUT.waiting, 0);
      if (outcome === "timed-out" && ++looks === LOOKS) this.broken = true;
    }
    this.#collecting = false;
    this.#vigil.pause();
    if (Atomics.load(this.#control, LAYOUT.quit) !== 0) this.#vigil.end();
  }

  /**
   * Make a call here, if more are ready than there are workers to take the
   * next ones. It answers whether it did.
   */
  #help(): boolean {
    if (this.broken) return this.#replace();
    const { ready, taken } = states;
    let count = 0;
    for (let i = 0; i < SLOTS; i++) {
      const words = LAYOUT.firstSlot + i * LAYOUT.slotWords;
      if (Atomics.load(this.#control, words) === ready) count++;
    }
    if (count <= this.#alive) return false;
    for (let i = 1; i <= SLOTS; i++) {
      // The oldest comes first: slots are used in turn.
      const slot = (this.#next + i) % SLOTS;
      const words = LAYOUT.firstSlot + slot * LAYOUT.slotWords;
      if (
        Atomics.compareExchange(this.#control, words, ready, taken) === ready
      ) {
        makeHere(this.#release(slot));
        return true;
      }
    }
    return false;
  }

  /**
   * Make a call here that is with a worker. If that is not dead but slow, what
   * it writes does no harm: no other call is put there.
   */
  #replace(): boolean {
    const slot = this.#jobs.findIndex((job) => job !== undefined);
    if (slot < 0) return false;
    makeHere(this.#release(slot));
    return true;
  }

  /** Whether there were results. */
  #takeResults(): boolean {
    let any = false;
    for (let slot = 0; slot < SLOTS; slot++) {
      // A worker that was given up may still have filled it.
      if (!this.#jobs[slot]) continue;
      const words = LAYOUT.firstSlot + slot * LAYOUT.slotWords;
      const state = Atomics.load(this.#control, words);
      if (state !== states.done && state !== states.failed) continue;
      any = true;
      const start = slot * LAYOUT.slotSize;
      const end = start + this.#control[words + 2];
      const job = this.#release(slot);
      const { target } = job;
      // What failed there fails here with the error that is expected.
      if (state === states.failed) makeHere(job);
      else if (target?.length === end - start) {
        target.set(this.memory.subarray(start, end));
        job.resolve(target);
      } else job.resolve(this.memory.slice(start, end));
    }
    return any;
  }

  #release(slot: number): Job {
    const job = this.#jobs[slot]!;
    this.#jobs[slot] = undefined;
    this.#busy--;
    this.#bytes -= job.size;
    const words = LAYOUT.firstSlot + slot * LAYOUT.slotWords;
    Atomics.store(this.#control, words, states.free);
    return job;
  }
}

/** Keeps the program running, as a promise alone does not. */
class Vigil {
  /** Where there are programs, ports have these; not in browsers. */
  readonly #port?: MessagePort & { ref?(): void; unref?(): void };

  constructor() {
    if (typeof MessageChannel !== "function") return;
    // A timer would do as well, but the first one loads a part of Node.js.
    this.#port = new MessageChannel().port1;
    this.#port.onmessage = () => {};
    this.pause();
  }

  begin(): void {
    this.#port?.ref?.();
  }

  pause(): void {
    this.#port?.unref?.();
  }

  end(): void {
    this.#port?.close();
  }
}

/** Bytes of plain data below which a call is sooner made than passed on. */
const WORTH_PASSING = 16 * 1024;

/**
 * Milliseconds of calls after which workers are started. That takes three times
 * as long, but on another processor, and who has begun goes on as a rule.
 */
const WORTH_STARTING = 30;

let holders = 0;
let workers: Workers | undefined;
/** Milliseconds spent here on calls that workers could have made. */
let spent = 0;
/** Calls of this turn: many at once are for the workers, one alone is not. */
let submitted: Job[] = [];

/**
 * Let calls be made by workers, until what is returned is disposed of. With
 * the last holder the workers end.
 *
 * @param much Whether there is so much to do that they had better start now.
 */
export function holdWorkers(much = false): Disposable {
  let held = true;
  holders++;
  if (much) {
    spent = Math.max(spent, WORTH_STARTING);
    startWorkers();
  }
  return {
    [Symbol.dispose]() {
      if (!held) return;
      held = false;
      holders--;
      if (holders > 0) return;
      workers?.quit();
      workers = undefined;
    },
  };
}

/**
 * Make a call, here or in a worker; the runtime must have the function.
 *
 * @param size Bytes of the plain data, which are read or which result.
 * @param target Memory that a result of its length may be put into: then that
 * is what is answered, which saves a copy.
 */
export function callZlib(
  call: ZlibCall,
  input: Uint8Array,
  size: number,
  target?: Uint8Array,
): Promise<Uint8Array> {
  const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
  submitted.push({ call, input, size, resolve, reject, target });
  if (submitted.length === 1) queueMicrotask(dispatch);
  return promise;
}

function dispatch(): void {
  const jobs = submitted;
  submitted = [];
  if (jobs.length === 1 && (workers?.isIdle ?? true)) return makeHere(jobs[0]);
  const large = jobs.filter(isWorthPassing);
  const small = jobs.filter((job) => !isWorthPassing(job));
  if (large.length > 0 && startWorkers()) workers!.submit(large);
  else {
    const start = performance.now();
    large.forEach(makeHere);
    spent += performance.now() - start;
  }
  small.forEach(makeHere);
}

function isWorthPassing({ input, size }: Job): boolean {
  const room = LAYOUT.slotSize - 1024;
  return size >= WORTH_PASSING && size <= room && input.length <= room;
}

/** Whether there are workers, or it is time that there are. */
function startWorkers(): boolean {
  if (holders === 0 || workerCount() === 0) return false;
  if (spent < WORTH_STARTING || workers?.broken) return false;
  if (workers?.isOver && workers.isIdle) workers = new Workers(workers);
  workers ??= new Workers();
  return true;
}

/** One for each processor but ours; none where memory cannot be shared. */
function workerCount(): number {
  const { hardwareConcurrency = 1 } = globalThis.navigator ?? {};
  const possible = typeof SharedArrayBuffer === "function" &&
    typeof Atomics.waitAsync === "function";
  return possible ? Math.min(hardwareConcurrency, 8) - 1 : 0;
}

function makeHere({ call, input, resolve, reject }: Job): void {
  try {
    resolve(
      call.zstd
        ? compressZstd(call.zstd, input).slice()
        : call.deflate
        ? compressWrapped(call.deflate, input).slice()
        : nativeZlib()![call.method]!(input, call.options),
    );
  } catch (error) {
    reject(error);
  }
}
