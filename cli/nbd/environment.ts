/**
 * Variables of the environment, as far as they may be looked at.
 *
 * @module
 */

/** The value of a variable. Nobody is asked for a permission. */
export function variable(name: string): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable: name });
  return state === "granted" ? Deno.env.get(name) : undefined;
}
