/**
 * Whose turn it is while writes are under way: what else there is to do goes
 * first, and then this thread waits for the oldest of them.
 *
 * @module
 */
import type { PendingWrite } from "./host.ts";

/** Turns of others, at 0.1 µs, after which they are taken to wait as well. */
const PATIENCE = 100;

/** Turns after which to look whether a write is done: looking costs as many. */
const INTERVAL = 16;

/** Reads and writes of all files so far: as they grow, somebody is at work. */
let transfers = 0;

/** Those that somebody waits for, oldest first. */
const pending = new Set<PendingWrite>();

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
  pending.add(write);
  let seen = transfers;
  for (let turn = 1; turn < PATIENCE || !isOldest(write); turn++) {
    await undefined;
    if (turn % INTERVAL === 0 && write.isDone) break;
    if (transfers === seen) continue;
    seen = transfers;
    turn = 0;
  }
  pending.delete(write);
  // Whoever waited for this one has its turn now, before there is more waiting.
  noteTransfer();
  write.finish();
}

function isOldest(write: PendingWrite): boolean {
  const [oldest] = pending;
  return oldest === write;
}
