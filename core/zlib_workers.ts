/**
 * Calls of `node:zlib` on all processors. Its own asynchronous calls run one
 * after the other, so a few workers take calls from slots in shared memory and
 * put the results there.
 *
 * `Atomics` wakes a thread faster than a message does (see bench/RESULTS.md).
 * Workers are started once there is enough work to repay it. This thread helps:
 * always while they start, later with calls beyond their capacity. They end
 * when nobody holds them any more, or after being idle, so they keep no program
 * running.
 *
 * @module
 */
import "./disposal.ts";
import { Pace } from "./abort.ts";
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

/** Most uncompressed bytes with the workers: bounds the slots' memory. */
const MAX_BYTES = 8 * 1024 * 1024;

interface Job {
  readonly call: ZlibCall;
  readonly input: Uint8Array;
  /** Uncompressed bytes, before or after the call. */
  readonly size: number;
  /** Where the result goes, if it has exactly this length. */
  readonly target?: Uint8Array;
  resolve(output: Uint8Array): void;
  reject(error: unknown): void;
}

const { states } = LAYOUT;

/**
 * How often to check that the workers make progress, in milliseconds, and how
 * many checks in a row may fail: one failure may mean that the whole program
 * was stopped. No call takes that long.
 */
const [LOOK, LOOKS] = [1000, 2];

/** The workers, and the calls waiting for them. */
class Workers {
  readonly #control = new Int32Array(
    new SharedArrayBuffer(
      4 * (LAYOUT.firstSlot + SLOTS * LAYOUT.slotWords),
    ),
  );
  /** The shared memory; pages never written to take up no RAM. */
  readonly memory: Uint8Array;
  readonly #jobs: (Job | undefined)[] = new Array(SLOTS).fill(undefined);
  readonly #waiting: Job[] = [];
  /** The slot used last. */
  #next = 0;
  #bytes = 0;
  #busy = 0;
  #collecting = false;
  /** Keeps the program running while there are calls: workers may be gone. */
  readonly #keepAlive = new KeepAlive();
  /**
   * Whether workers cannot be started or have died: all calls are then made
   * here, including those submitted.
   */
  broken = false;

  /** @param before Workers that have ended, whose memory is reused. */
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

  /** Submit calls. */
  submit(jobs: readonly Job[]): void {
    this.#waiting.push(...jobs);
    this.#fill();
    if (!this.#collecting) this.#collect();
  }

  /** Let the workers end once their calls are made. */
  quit(): void {
    Atomics.store(this.#control, LAYOUT.quit, 1);
    this.#wake();
    if (!this.#collecting) this.#keepAlive.end();
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
          // Wake this thread, which may be waiting for it.
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

  /** Put waiting calls into free slots; without workers, make them here. */
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
    // Do not touch the memory of slots that are not needed.
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

  /** Take results from the slots, and help, until no call is left. */
  async #collect(): Promise<void> {
    this.#collecting = true;
    this.#keepAlive.begin();
    const pace = new Pace();
    let looks = 0;
    while (this.#busy > 0) {
      const done = Atomics.load(this.#control, LAYOUT.done);
      if (this.#takeResults() || this.#help()) {
        looks = 0;
        this.#fill();
        // Let the callers that waited for these results run.
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
    this.#keepAlive.pause();
    if (Atomics.load(this.#control, LAYOUT.quit) !== 0) this.#keepAlive.end();
  }

  /**
   * Make a call here if more are ready than there are workers; whether it did.
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
      // The oldest first: slots are used in turn.
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
   * Make a call here that a worker has. If the worker is slow rather than dead,
   * its late write does no harm: the slot is not reused.
   */
  #replace(): boolean {
    const slot = this.#jobs.findIndex((job) => job !== undefined);
    if (slot < 0) return false;
    makeHere(this.#release(slot));
    return true;
  }

  /** Take the results from the slots; whether there were any. */
  #takeResults(): boolean {
    let any = false;
    for (let slot = 0; slot < SLOTS; slot++) {
      // A worker taken for dead may still have filled it.
      if (!this.#jobs[slot]) continue;
      const words = LAYOUT.firstSlot + slot * LAYOUT.slotWords;
      const state = Atomics.load(this.#control, words);
      if (state !== states.done && state !== states.failed) continue;
      any = true;
      const start = slot * LAYOUT.slotSize;
      const end = start + this.#control[words + 2];
      const job = this.#release(slot);
      const { target } = job;
      // Repeat a failed call here, to throw the proper error.
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
class KeepAlive {
  /** Server runtimes have these methods; browsers do not. */
  readonly #port?: MessagePort & { ref?(): void; unref?(): void };

  constructor() {
    if (typeof MessageChannel !== "function") return;
    // A timer would do as well, but the first one loads part of Node.js.
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

/** Uncompressed bytes below which a call is not worth passing on. */
const WORTH_PASSING = 16 * 1024;

/**
 * Milliseconds spent on calls after which workers are started. Starting them
 * takes longer than this, but on another processor, and work that has begun
 * tends to go on.
 */
const WORTH_STARTING = 30;

let holders = 0;
let workers: Workers | undefined;
/** Milliseconds spent here so far on calls that workers could have made. */
let spent = 0;
/** Calls of this turn: many go to the workers, a single one does not. */
let submitted: Job[] = [];

/**
 * Let workers make calls until the result is disposed of. The workers end with
 * the last holder.
 *
 * @param much Whether there is so much work that they should be started now.
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
 * Make a call here or in a worker; the runtime must have the function.
 *
 * @param size Uncompressed bytes, of the input or the result.
 * @param target Memory for a result of exactly its length, which is then
 * returned; saves a copy.
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

/** Start workers if it is time; whether there are any. */
function startWorkers(): boolean {
  if (holders === 0 || workerCount() === 0) return false;
  if (spent < WORTH_STARTING || workers?.broken) return false;
  if (workers?.isOver && workers.isIdle) workers = new Workers(workers);
  workers ??= new Workers();
  return true;
}

/** One for each other processor; none where memory cannot be shared. */
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
