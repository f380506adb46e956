/**
 * Benchmarks of remote images: through a slow network (see `slow_network.ts`),
 * side by side with qemu-img's curl driver where that is installed, and with
 * many overlays on one remote base in one process.
 *
 * Usage: `deno run -A bench/remote.ts [--size=256] [--overlays=1000] [--save]`;
 * `size` in MiB. `--save` updates this section of RESULTS.md.
 *
 * @module
 */
import { openImage } from "../mod.ts";
import { RATE, ROUND_TRIP } from "./slow_network.ts";

const HERE = new URL(".", import.meta.url).pathname;
const folder = await Deno.makeTempDir({ dir: "/dev/shm", prefix: "bdrv-net-" });
const MIB = 1024 * 1024;

function option(name: string, otherwise: number): number {
  const given = Deno.args.find((arg) => arg.startsWith(`--${name}=`));
  return given === undefined ? otherwise : Number(given.split("=")[1]);
}

async function run(program: string, ...args: string[]): Promise<void> {
  const command = new Deno.Command(program, { args, cwd: folder });
  const { success, stderr } = await command.output();
  if (success) return;
  throw new Error(`${program}: ${new TextDecoder().decode(stderr)}`);
}

const bdrv = (...args: string[]) =>
  run(Deno.execPath(), "run", "-A", `${HERE}../cli.ts`, ...args);

const lines: string[] = [];

function print(...more: string[]): void {
  for (const line of more) console.log(line);
  lines.push(...more);
}

interface Statistics {
  readonly requests: number;
  readonly bytes: number;
}

/**
 * A disk of one third random data, one third zeroes, and one third random data.
 */
async function makeInputs(size: number): Promise<void> {
  using file = await Deno.create(`${folder}/disk.raw`);
  const part = new Uint8Array(MIB);
  for (let at = 0; at < size; at += MIB) {
    if (at > size / 3 && at < size * 2 / 3) continue;
    for (let done = 0; done < MIB; done += 65_536) {
      crypto.getRandomValues(part.subarray(done, done + 65_536));
    }
    await file.seek(at, Deno.SeekMode.Start);
    await file.write(part);
  }
  await file.truncate(size);
  const qcow2 = ["convert", "-f", "raw", "-O", "qcow2"];
  await run("qemu-img", ...qcow2, "disk.raw", "disk.qcow2");
  const create = ["create", "-q", "-f", "qcow2"];
  await run("qemu-img", ...create, "empty.qcow2", "100G");
  const metadata = ["-o", "preallocation=metadata"];
  await run("qemu-img", ...create, ...metadata, "full.qcow2", "100G");
  await run("truncate", "-s", "100G", "disk100.raw");
}

async function measureConvert(proxy: string): Promise<void> {
  const { size } = await Deno.stat(`${folder}/disk.qcow2`);
  const ideal = size / RATE * 1000 + 4 * ROUND_TRIP;
  const args = ["convert", "-f", "qcow2", "-O", "raw"];
  const once = async (program: typeof bdrv) => {
    const start = performance.now();
    await program(...args, `${proxy}/disk.qcow2`, "out.raw");
    const time = performance.now() - start;
    await run("qemu-img", "compare", "disk.raw", "out.raw");
    await Deno.remove(`${folder}/out.raw`);
    return time;
  };
  const runs: { [name: string]: number[] } = { ours: [], theirs: [] };
  for (let count = 0; count < 3; count++) {
    runs.ours.push(await once(bdrv));
    const qemu = once((...args) => run("qemu-img", ...args));
    runs.theirs.push(await qemu.catch(() => NaN));
  }
  const cells = (times: number[]) => {
    const time = times.toSorted((a, b) => a - b)[1];
    return `${time.toFixed(0)} | ${(time / ideal).toFixed(2)}`;
  };
  print(
    "",
    `A cold \`convert\` of a qcow2 image of ${
      (size / MIB).toFixed(0)
    } MiB over http to raw, whole processes, medians of 3: ideal ` +
      `(bytes ÷ bandwidth + four round trips) ${
        ideal.toFixed(0)
      } ms; goal 1.3.`,
    "",
    "| program | ms | ÷ ideal |",
    "| --- | ---: | ---: |",
    `| bdrv | ${cells(runs.ours)} |`,
    `| qemu-img, curl | ${cells(runs.theirs)} |`,
  );
}

async function measureOpen(
  proxy: string,
  statistics: () => Promise<Statistics>,
): Promise<void> {
  print(
    "",
    "Opening 100 GiB, and reading 4 KiB from the middle; goal: less than " +
      "1,024 KiB.",
    "",
    "| image | requests | KiB | ms |",
    "| --- | ---: | ---: | ---: |",
  );
  for (const name of ["empty.qcow2", "full.qcow2", "disk100.raw"]) {
    await statistics();
    const start = performance.now();
    {
      await using image = await openImage(new URL(`${proxy}/${name}`));
      await image.read(50 * 1024 * MIB, 4096);
    }
    const time = performance.now() - start;
    const { requests, bytes } = await statistics();
    print(
      `| ${name} | ${requests} | ${(bytes / 1024).toFixed(0)} | ${
        time.toFixed(0)
      } |`,
    );
  }
}

/** What a guest reads while it boots, from the first part of the disk. */
function* workingSet(
  size: number,
): Generator<[offset: number, length: number]> {
  let random = 1;
  for (let count = 0; count < 200; count++) {
    random = Math.imul(random, 1103515245) + 12345 >>> 0;
    const offset = Math.floor(random / 2 ** 32 * size / 4096) * 4096;
    yield [offset, 4096 << count % 4];
  }
}

async function measureOverlays(
  server: string,
  count: number,
  statistics: () => Promise<Statistics>,
): Promise<void> {
  const base = `${server}/disk.qcow2`;
  const create = ["create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2"];
  await run("qemu-img", ...create, "overlay.qcow2").catch(() =>
    bdrv(...create, "overlay.qcow2")
  );
  const names: string[] = [];
  for (let at = 0; at < count; at++) {
    names.push(`${folder}/overlay-${at}.qcow2`);
    await Deno.copyFile(`${folder}/overlay.qcow2`, names[at]);
  }
  const use = async (name: string) => {
    const image = await openImage(name, { gate: "allow" });
    for (const [offset, length] of workingSet(24 * MIB)) {
      await image.read(offset, length);
    }
    await image.write(0, new Uint8Array(4096).fill(7));
    return image;
  };
  await statistics();
  await (await use(names[0])).close();
  const alone = await statistics();
  const memory = () => {
    (globalThis as { gc?: () => void }).gc?.();
    return Deno.memoryUsage().rss;
  };
  const before = memory();
  const images = [];
  const start = performance.now();
  for (const name of names) images.push(await use(name));
  const time = performance.now() - start;
  const after = memory();
  const together = await statistics();
  for (const image of images) await image.close();
  print(
    "",
    `${count} overlays open at once on one remote base, in one process: each ` +
      "reads the same 200 parts of 4 to 32 KiB of 24 MiB, and writes once.",
    "",
    "| | one alone | all together | each |",
    "| --- | ---: | ---: | ---: |",
    `| requests | ${alone.requests} | ${together.requests} | ${
      (together.requests / count).toFixed(2)
    } |`,
    `| KiB from the server | ${(alone.bytes / 1024).toFixed(0)} | ${
      (together.bytes / 1024).toFixed(0)
    } | ${(together.bytes / 1024 / count).toFixed(1)} |`,
    `| KiB of memory | | ${((after - before) / 1024).toFixed(0)} | ${
      ((after - before) / 1024 / count).toFixed(0)
    } |`,
    `| ms | | ${time.toFixed(0)} | ${(time / count).toFixed(1)} |`,
    "",
    `Requests saved by what they share: ${
      (100 - together.requests / (alone.requests * count) * 100).toFixed(1)
    } %. The request that each one makes asks whether the base is still the ` +
      "same.",
  );
}

const network = new Deno.Command(Deno.execPath(), {
  args: ["run", "-A", `${HERE}slow_network.ts`, folder],
  stdout: "piped",
}).spawn();
try {
  await makeInputs(option("size", 256) * MIB);
  const output = network.stdout.getReader();
  const { value } = await output.read();
  const [proxy, server] = new TextDecoder().decode(value).trim().split(" ");
  const statistics = async (): Promise<Statistics> =>
    await (await fetch(`${server}/statistics`)).json();
  const load = Deno.loadavg()[0].toFixed(1);
  print(
    `${new Date().toISOString().slice(0, 10)}, by \`deno run -A ` +
      `bench/remote.ts\`: through a proxy with ${ROUND_TRIP} ms round trips ` +
      `and ${RATE * 8 / 1e6} Mbit/s, load ${load}.`,
  );
  await measureConvert(proxy);
  await measureOpen(proxy, statistics);
  await measureOverlays(server, option("overlays", 1000), statistics);
} finally {
  network.kill();
  await network.status;
  await Deno.remove(folder, { recursive: true });
}
if (Deno.args.includes("--save")) {
  const file = `${HERE}RESULTS.md`;
  // bench.ts keeps every section from the one on costs onwards.
  const before = (await Deno.readTextFile(file))
    .replace(/\n## Remote images\n[^]*?(?=\n## |$)/, "");
  const section = `\n## Remote images\n\n${lines.join("\n")}\n`;
  await Deno.writeTextFile(file, before.trimEnd() + "\n" + section);
  const args = ["fmt", "--quiet", file];
  await new Deno.Command(Deno.execPath(), { args }).output();
}
