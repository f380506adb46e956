/**
 * `deno task test:services`: tests against services that are too large to start
 * for every run of the tests. It starts a Ceph cluster with its S3 gateway,
 * runs the tests in this folder, and stops the cluster. Arguments are passed to
 * `deno test`.
 *
 * A running cluster is used if the environment names it (`CEPH_CONF`,
 * `S3_ENDPOINT` and AWS keys). Without one, and without the program that starts
 * one, everything is skipped.
 *
 * @module
 */
const ROOT = new URL("../..", import.meta.url).pathname;
const CEPH = new URL("../../../shared/services/ceph", import.meta.url).pathname;

type Settings = Record<string, string>;

/** Call `use` with a running cluster; `null` if there is none. */
async function withCluster(
  use: (settings: Settings | null) => Promise<number>,
): Promise<number> {
  if (Deno.env.has("CEPH_CONF") && Deno.env.has("S3_ENDPOINT")) {
    return await use({});
  }
  if (!isFile(CEPH)) return await use(null);
  const parent = Deno.makeTempDirSync({ prefix: "bdrv-ceph-" });
  const folder = `${parent}/ceph`;
  try {
    console.log("Starting a Ceph cluster");
    return await use(await start(folder));
  } finally {
    await ceph("stop", folder);
    Deno.removeSync(parent, { recursive: true });
  }
}

function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** Start it; on a busy machine, not every attempt succeeds in time. */
async function start(folder: string): Promise<Settings> {
  let output: string;
  try {
    output = await ceph("start", folder);
  } catch {
    await ceph("stop", folder);
    output = await ceph("start", folder);
  }
  const settings = output.matchAll(/^([A-Z0-9_]+)=(.*)$/gm);
  return Object.fromEntries([...settings].map(([, name, value]) => [
    name,
    value,
  ]));
}

async function ceph(act: "start" | "stop", folder: string): Promise<string> {
  const { success, stdout } = await new Deno.Command(CEPH, {
    args: [act, folder],
    env: { CEPH_MON_PORT: freePort(), CEPH_S3_PORT: freePort() },
    stdin: "null",
    stderr: "inherit",
  }).output();
  if (!success) throw new Error(`${CEPH} ${act} failed`);
  return new TextDecoder().decode(stdout);
}

/** A port that nobody listens on, so that several clusters can run. */
function freePort(): string {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return String((listener.addr as Deno.NetAddr).port);
}

/** A signal ends the tests; the cluster is stopped afterwards. */
async function runTests(env: Settings): Promise<number> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["test", "--quiet", "-A", "--no-check", ...Deno.args]
      .concat("tests/services"),
    cwd: ROOT,
    env,
    stdin: "null",
  }).spawn();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, () => child.kill(signal));
  }
  const { code } = await child.status;
  return code;
}

Deno.exitCode = await withCluster(async (settings) => {
  if (settings) return await runTests(settings);
  console.log(`Skipped: the tests of services, which need ${CEPH}`);
  return 0;
});
