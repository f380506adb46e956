// Copyright 2025 the bdrv authors. MIT license.
// A stand-in for the parts of https://jsr.io/@std/assert that bdrv's tests use,
// for machines that cannot reach JSR; deno.json's "links" puts it in place.
// Signatures and behaviour are those of the real module.

/** Thrown by every assertion that does not hold. */
export class AssertionError extends Error {
  override name = "AssertionError";
}

// deno-lint-ignore no-explicit-any -- as in the real module, any class will do
type ErrorClass<E extends Error> = abstract new (...args: any[]) => E;

function failure(what: string, msg?: string): AssertionError {
  return new AssertionError(msg ? `${what}: ${msg}` : `${what}.`);
}

function show(value: unknown): string {
  const text = Deno.inspect(value, {
    depth: 8,
    sorted: true,
    trailingComma: true,
    compact: false,
    iterableLimit: 100,
    strAbbreviateSize: 2000,
  });
  return text.length > 4000 ? `${text.slice(0, 4000)}…` : text;
}

/** Assert that `expr` is truthy. */
export function assert(expr: unknown, msg = ""): asserts expr {
  if (!expr) throw new AssertionError(msg);
}

/** Structural equality, as `assertEquals` sees it. */
export function equal(a: unknown, b: unknown): boolean {
  return compare(a, b, new Map());
}

function compare(a: unknown, b: unknown, seen: Map<unknown, unknown>): boolean {
  if (Object.is(a, b)) return true;
  if (
    typeof a !== "object" || typeof b !== "object" || a === null || b === null
  ) return a === 0 && b === 0;
  if (Object.getPrototypeOf(a) !== Object.getPrototypeOf(b)) {
    const plain = (o: object) =>
      [null, Object.prototype].includes(Object.getPrototypeOf(o));
    if (!plain(a) || !plain(b)) return false;
  }
  if (seen.get(a) === b) return true;
  seen.set(a, b);
  if (a instanceof Date) return Object.is(+a, +(b as Date));
  if (a instanceof RegExp || a instanceof URL) return String(a) === String(b);
  if (a instanceof WeakMap || a instanceof WeakSet) return false;
  if (ArrayBuffer.isView(a) && !(a instanceof DataView)) {
    return compareBytes(a as Uint8Array, b as Uint8Array);
  }
  if (a instanceof Set) {
    const others = b as Set<unknown>;
    return a.size === others.size &&
      [...a].every((x) =>
        others.has(x) || [...others].some((y) => compare(x, y, seen))
      );
  }
  if (a instanceof Map) {
    const others = b as Map<unknown, unknown>;
    return a.size === others.size &&
      [...a].every(([key, value]) =>
        [...others].some(([k, v]) =>
          compare(key, k, seen) && compare(value, v, seen)
        )
      );
  }
  if (Array.isArray(a) && a.length !== (b as unknown[]).length) return false;
  const keys = [...Reflect.ownKeys(a)].filter((key) => isEnumerable(a, key));
  const count = Reflect.ownKeys(b).filter((key) => isEnumerable(b, key)).length;
  return keys.length === count && keys.every((key) =>
    Object.hasOwn(b, key) &&
    compare(Reflect.get(a, key), Reflect.get(b, key), seen)
  ) && (!(a instanceof Error) || a.message === (b as Error).message);
}

function isEnumerable(object: object, key: PropertyKey): boolean {
  return Object.prototype.propertyIsEnumerable.call(object, key);
}

function compareBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (!Object.is(a[i], b[i])) return false;
  return true;
}

/** Assert that two values are structurally equal. */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  if (equal(actual, expected)) return;
  throw new AssertionError(
    `Values are not equal${msg ? `: ${msg}` : "."}\n\n` +
      `    [Diff] Actual / Expected\n\n-   ${show(actual)}\n` +
      `+   ${show(expected)}\n`,
  );
}

/** Assert that two values are not structurally equal. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  if (!equal(actual, expected)) return;
  throw failure(
    `Expected actual: ${show(actual)} not to be: ${show(expected)}`,
    msg,
  );
}

/** Assert that `actual` contains `expected`. */
export function assertStringIncludes(
  actual: string,
  expected: string,
  msg?: string,
): void {
  if (actual.includes(expected)) return;
  throw failure(`Expected actual: "${actual}" to contain: "${expected}"`, msg);
}

/** Assert that `actual` matches `expected`. */
export function assertMatch(
  actual: string,
  expected: RegExp,
  msg?: string,
): void {
  if (expected.test(actual)) return;
  throw failure(`Expected actual: "${actual}" to match: "${expected}"`, msg);
}

function checkError<E extends Error>(
  error: unknown,
  errorClass?: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): asserts error is E {
  if (errorClass && !(error instanceof errorClass)) {
    const got = error instanceof Error
      ? `${error.constructor.name}: ${error.message}`
      : show(error);
    throw failure(
      `Expected error to be instance of "${errorClass.name}", but was "${got}"`,
      msg,
    );
  }
  if (!(error instanceof Error)) {
    throw failure("A non-Error object was thrown or rejected", msg);
  }
  if (msgIncludes && !error.message.includes(msgIncludes)) {
    throw failure(
      `Expected error message to include "${msgIncludes}", but got ` +
        `"${error.message}"`,
      msg,
    );
  }
}

/** Assert that `fn` throws; returns what was thrown. */
export function assertThrows(fn: () => unknown, msg?: string): unknown;
/**
 * Assert that `fn` throws an error of a class, whose message includes a text.
 */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  errorClass: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): E;
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  classOrMsg?: ErrorClass<E> | string,
  msgIncludes?: string,
  msg?: string,
): unknown {
  const plain = typeof classOrMsg !== "function";
  if (plain) msg = classOrMsg;
  let thrown: unknown;
  try {
    fn();
  } catch (error) {
    if (plain) return error;
    thrown = error;
    checkError(error, classOrMsg, msgIncludes, msg);
    return thrown;
  }
  throw failure("Expected function to throw", msg);
}

/** Assert that `fn` rejects; returns the reason. */
export function assertRejects(
  fn: () => PromiseLike<unknown>,
  msg?: string,
): Promise<unknown>;
/**
 * Assert that `fn` rejects with an error of a class, whose message includes a
 * text.
 */
export function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  errorClass: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): Promise<E>;
export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  classOrMsg?: ErrorClass<E> | string,
  msgIncludes?: string,
  msg?: string,
): Promise<unknown> {
  const plain = typeof classOrMsg !== "function";
  if (plain) msg = classOrMsg;
  let promise: PromiseLike<unknown>;
  try {
    promise = fn();
  } catch (error) {
    throw failure(
      `Function throws when expected to reject (${error})`,
      msg,
    );
  }
  try {
    await promise;
  } catch (error) {
    if (!plain) checkError(error, classOrMsg, msgIncludes, msg);
    return error;
  }
  throw failure("Expected function to reject", msg);
}
