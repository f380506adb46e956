/**
 * Applying the rules of `blkdebug` to events and requests.
 *
 * @module
 */
import { BlockError, codeOfErrno } from "../../core/errors.ts";
import type { Breakpoints, DebugOperations } from "../../core/node.ts";
import { EVENTS, type Injection, type IoType, type Rule } from "./rules.ts";

/** A request suspended at a breakpoint. */
interface Suspended {
  readonly tag: string;
  go(): void;
}

/** The state of a `blkdebug` node. */
export class Debugger implements DebugOperations, Breakpoints {
  readonly breakpoints: Breakpoints = this;
  report?: (line: string) => void;
  /** Rules by event, the newest first. */
  readonly #rules = new Map<string, Rule[]>();
  /** The error rules in force, the oldest first. */
  #active: Rule[] = [];
  #state = 1;
  /** Suspended requests, the newest first. */
  readonly #suspended: Suspended[] = [];
  readonly #watchers: Suspended[] = [];

  constructor(rules: readonly Rule[]) {
    for (const rule of rules) this.#add(rule);
  }

  /**
   * Handle an event. Its rules that inject errors replace those in force; the
   * others act at once.
   */
  event(name: string): Promise<void> | void {
    const rules = this.#rules.get(name);
    if (!rules) return;
    let next = this.#state;
    const injecting: Rule[] = [];
    const waits: Promise<void>[] = [];
    for (const rule of [...rules]) {
      if (rule.state !== 0 && rule.state !== this.#state) continue;
      if (rule.injection) injecting.unshift(rule);
      if (rule.newState !== undefined) next = rule.newState;
      if (rule.tag !== undefined) waits.push(this.#suspend(rule, rule.tag));
    }
    if (injecting.length > 0) this.#active = injecting;
    this.#state = next;
    if (waits.length > 0) return Promise.all(waits).then(() => {});
  }

  /** Check a request, which fails if a rule in force says so. */
  async check(type: IoType, offset = 0, length = 0): Promise<void> {
    const rule = this.#active.find(({ injection }) =>
      applies(injection!, type, offset, length)
    );
    if (!rule?.injection?.errno) return;
    const { errno, once, immediately } = rule.injection;
    if (once) {
      this.#active.splice(this.#active.indexOf(rule), 1);
      this.#remove(rule);
    }
    if (!immediately) await Promise.resolve();
    throw new BlockError(codeOfErrno(errno));
  }

  breakpoint(event: string, tag: string): void {
    if (!EVENTS.has(event)) throw new BlockError("ENOENT");
    this.#add({ event, state: 0, tag });
  }

  resume(tag: string): void {
    const index = this.#suspended.findIndex((request) => request.tag === tag);
    if (index < 0) throw new BlockError("ENOENT");
    const [request] = this.#suspended.splice(index, 1);
    this.report?.(`blkdebug: Resuming request '${tag}'`);
    request.go();
  }

  removeBreakpoint(tag: string): void {
    const rules = [...this.#rules.values()].flat();
    const named = rules.filter((rule) => rule.tag === tag);
    for (const rule of named) this.#remove(rule);
    while (this.isSuspended(tag)) this.resume(tag);
    // As QEMU does, whether or not there were suspended requests.
    if (named.length === 0) throw new BlockError("ENOENT");
  }

  isSuspended(tag: string): boolean {
    return this.#suspended.some((request) => request.tag === tag);
  }

  waitSuspended(tag: string): Promise<void> {
    if (this.isSuspended(tag)) return Promise.resolve();
    return new Promise((go) => this.#watchers.push({ tag, go }));
  }

  #suspend(rule: Rule, tag: string): Promise<void> {
    this.#remove(rule);
    this.report?.(`blkdebug: Suspended request '${tag}'`);
    return new Promise((go) => {
      this.#suspended.unshift({ tag, go });
      for (const watcher of this.#watchers.splice(0)) {
        if (watcher.tag === tag) watcher.go();
        else this.#watchers.push(watcher);
      }
    });
  }

  #add(rule: Rule): void {
    const rules = this.#rules.get(rule.event);
    if (rules) rules.unshift(rule);
    else this.#rules.set(rule.event, [rule]);
  }

  #remove(rule: Rule): void {
    const rules = this.#rules.get(rule.event)!;
    const index = rules.indexOf(rule);
    if (index >= 0) rules.splice(index, 1);
  }
}

function applies(
  injection: Injection,
  type: IoType,
  offset: number,
  length: number,
): boolean {
  const at = injection.offset;
  if (at !== undefined && !(at >= offset && at < offset + length)) return false;
  // Status queries fail only if a rule names them.
  return injection.ioType === undefined
    ? type !== "block-status"
    : injection.ioType === type;
}
