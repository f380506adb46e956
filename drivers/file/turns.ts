/**
 * Whose turn it is while writes are under way: what else there is to do goes
 * first, and then this thread waits for the oldest of them.
 *
 * @module
 */
import type { PendingWrite } from "../../core/platform/files.ts";

/** Turns of others, at 0.1 µs, after which they are taken to wait as well. */
const PATIENCE = 200;

/** Turns after which to look whether a write is done: looking costs as many. */
const INTERVAL = 16;

/** Reads and writes of all files so far: as they grow, somebody is at work. */
let transfers = 0;

/** Those that are waited for, oldest first, and how to tell that it is done. */
const pending: [write: PendingWrite, tell: () => void][] = [];

/** A file is about to be read from or written to. */
export function noteTransfer(): void {
  transfers++;
}

/**
 * Let others work while a write is under way.
 *
 * @throws {BlockError} if not all could be written.
 */
export async function settle(write: PendingWrite): Promise<void> {
  await new Promise<void>((tell) => {
    pending.push([write, tell]);
    if (pending.length === 1) watch();
  });
  write.finish();
}

/** Tell of all that are pending, one after the other. */
async function watch(): Promise<void> {
  while (pending.length > 0) {
    const [write, tell] = pending[0];
    await othersTurn(write);
    write.wait();
    pending.shift();
    tell();
    // Whoever waited for it has its turn before there is more waiting.
    noteTransfer();
  }
}

/** Until a write is done, or there is nothing else to do. */
async function othersTurn(write: PendingWrite): Promise<void> {
  let seen = transfers;
  let idle = 0;
  for (let turn = 0; idle < PATIENCE; turn++) {
    // However busy they are, it is looked at.
    if (turn % INTERVAL === 0 && write.isDone) return;
    await undefined;
    idle = transfers === seen ? idle + 1 : 0;
    seen = transfers;
  }
}
