/**
 * What the tests against services share.
 *
 * @module
 */
import { mustSkip, type Requirements } from "../qemu.ts";

/**
 * A test against the cluster of `deno task test:services`, which the
 * environment describes. Without it, the test is ignored.
 *
 * @param needs The variables that it reads. Default: `CEPH_CONF`.
 */
export function serviceTest(
  name: string,
  fn: (t: Deno.TestContext) => Promise<void>,
  needs: readonly string[] = ["CEPH_CONF"],
  requirements: Requirements = {},
): void {
  const isThere = needs.every((variable) => Deno.env.has(variable));
  const ignore = !isThere || mustSkip(requirements);
  Deno.test({ name, ignore, fn });
}
