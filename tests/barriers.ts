/**
 * Removes each write barrier in turn, and then writes in each of some wrong
 * orders; lists those that no test notices: either a test is missing, or the
 * order does not matter. This takes an hour, so it is run by hand: `deno run -A
 * tests/barriers.ts [words of the line …]`; `order:` is one of them.
 *
 * @module
 */
import { WRONG_ORDERS } from "./write_orders.ts";

const ROOT = new URL("..", import.meta.url).pathname;

/**
 * Files and folders with barriers, and the tests that must notice a missing
 * one.
 */
interface Group {
  readonly sources: readonly string[];
  readonly tests: readonly string[];
  /** Seeds of the tests; default: those of each test. */
  readonly seeds?: string;
}

/** A driver and its own tests. */
const driver = (name: string, ...sources: string[]): Group => ({
  sources: [`drivers/${name}`, ...sources],
  tests: [
    "tests/drivers/durable_test.ts",
    "tests/drivers/flush_beside_writes_test.ts",
    `tests/drivers/${name}`,
  ],
});

const GROUPS: readonly Group[] = [
  {
    sources: ["drivers/qcow2", "core/jobs/commit.ts", "core/jobs/rebase.ts"],
    tests: [
      "tests/drivers/qcow2/write_order_test.ts",
      "tests/core/jobs/power_cut_test.ts",
      "tests/drivers/qcow2/lazy_test.ts",
      "tests/drivers/qcow2/power_cut_test.ts",
      "tests/property_test.ts",
      "tests/drivers/qcow2",
      "tests/drivers/flush_beside_writes_test.ts",
      "tests/core/picture",
    ],
    seeds: "1-60",
  },
  driver(
    "luks",
    "core/crypto/header_store.ts",
    "core/crypto/luks_options.ts",
    "core/crypto/luks_volume.ts",
  ),
  driver("parallels", "core/block_table.ts"),
  driver("qcow", "core/two_level_map.ts", "core/table_pages.ts"),
  driver("qed", "core/two_level_map.ts", "core/table_pages.ts"),
  driver("vdi", "core/block_table.ts", "core/mapped_node.ts"),
  driver("vhdx", "core/block_table.ts", "core/mapped_node.ts"),
  driver("vmdk", "core/table_pages.ts"),
  driver("vpc", "core/block_table.ts", "core/mapped_node.ts"),
];

/** The group whose tests a driver has. */
const groupOf = (driver: string) =>
  GROUPS.find(({ sources }) => sources[0] === `drivers/${driver}`)!;

/** A one-line statement that makes something durable, or orders writes. */
const BARRIER =
  /^\s*(if \(.*\) )?(return )?(await )?[\w.#!?]*\b(flush\?\.\(\)|flush\(\)|flushCaches\(.*\)|dependOn\(.*\)|dependOnFlush\(\)|settleDependency\(\)|orderL2AfterData\(.*\)|setDirty\(\)|markDirty\(\))(\.catch\(.*\))?;$/;

/** Statements that look the same, but only write back to bound memory. */
const BOUNDS_MEMORY = /\bisFull\b/;

/** Barriers inside other statements, and their replacements. */
const OTHERS: readonly [file: string, from: string, to: string][] = [
  [
    "drivers/qcow2/refcounts.ts",
    "if (start < end && start + count > freed) {",
    "if (false) {",
  ],
  [
    "drivers/qcow2/refcounts.ts",
    "if (start < freed.end && start + count > freed.start) return undefined;",
    "",
  ],
  [
    "drivers/qcow2/refcounts.ts",
    "await this.#noteDiscard(start, end);",
    "await this.#passDiscard(start, end);",
  ],
  [
    "drivers/qcow2/data_clusters.ts",
    "return l2Cache.dependOn(refcountCache);",
    "return;",
  ],
  [
    "drivers/qcow2/data_clusters.ts",
    "return state.markDirty().then(() => l2Cache.dependOnFlush());",
    "return state.markDirty();",
  ],
  [
    "drivers/qcow2/data_clusters.ts",
    "return state.markDirty().then(() => l2Cache.dependOnFlush());",
    "return l2Cache.dependOnFlush();",
  ],
];

interface Mutant {
  readonly group: Group;
  readonly file: string;
  readonly line: number;
  readonly text: string;
  readonly content: string;
}

function* sourceFiles(
  sources: readonly string[],
): Generator<string> {
  for (const source of sources) {
    if (source.endsWith(".ts")) yield source;
    else {
      for (const { name } of Deno.readDirSync(ROOT + source)) {
        if (name.endsWith(".ts")) yield `${source}/${name}`;
      }
    }
  }
}

function* mutantsOf(
  file: string,
  group: Group,
): Generator<Mutant> {
  const lines = Deno.readTextFileSync(ROOT + file).split("\n");
  for (const [index, text] of lines.entries()) {
    const replacements = OTHERS.filter(([name, from]) =>
      name === file && text.includes(from)
    ).map(([, from, to]) => text.replace(from, to));
    // What remains must be a statement: it may be the body of an `if` above.
    if (BARRIER.test(text) && !BOUNDS_MEMORY.test(text)) {
      const leaves = /^\s*(if \(.*\) )?return /.exec(text);
      replacements.push(leaves ? `${leaves[0]};` : ";");
    }
    for (const replacement of replacements) {
      const content = lines.with(index, replacement).join("\n");
      yield { group, file, line: index + 1, text: text.trim(), content };
    }
  }
}

function* wrongOrders(): Generator<Mutant> {
  for (const { what, file, changes, driver } of WRONG_ORDERS) {
    let content = Deno.readTextFileSync(ROOT + file);
    for (const [from, to] of changes) {
      if (content.split(from).length !== 2) {
        throw new Error(`'${what}': '${from}' is not once in ${file}`);
      }
      content = content.replace(from, () => to);
    }
    const group = groupOf(driver ?? file.split("/")[1]);
    const text = `order: ${what} (${group.sources[0]})`;
    yield { group, file, line: 1, text, content };
  }
}

/**
 * Whether any test fails in a tree. One that times out on a busy machine has
 * noticed nothing.
 */
async function isNoticed(
  tree: string,
  { tests, seeds }: Group,
): Promise<boolean> {
  const seed = Deno.env.get("BDRV_SEED") ?? seeds;
  const { code } = await new Deno.Command("timeout", {
    args: ["-k", "5", "600", Deno.execPath(), "test", "--no-check"].concat(
      ["--quiet", "-A", "--fail-fast", ...tests],
    ),
    cwd: tree,
    env: seed === undefined ? {} : { BDRV_SEED: seed },
    stdout: "null",
    stderr: "null",
  }).output();
  const isTooLong = code === 124 || code === 137;
  if (isTooLong) console.log(`Took too long: ${tests.join(" ")}`);
  return code !== 0 && !isTooLong;
}

async function copyTree(): Promise<string> {
  const tree = await Deno.makeTempDir({ prefix: "bdrv-barriers-" });
  const names = [
    "core",
    "drivers",
    "tests",
    "links",
    "subpaths",
    "cli",
    "mod.ts",
    "cli.ts",
  ];
  const args = ["-r", ...[...names, "deno.json", "deno.lock"], tree];
  await new Deno.Command("cp", { args, cwd: ROOT }).output();
  return tree;
}

for (const [file, from] of OTHERS) {
  if (!Deno.readTextFileSync(ROOT + file).includes(from)) {
    throw new Error(`${file} has no '${from}' any more`);
  }
}
const wanted = Deno.args.join(" ");
const mutants = [
  ...GROUPS.flatMap((group) =>
    [...sourceFiles(group.sources)]
      .flatMap((file) => [...mutantsOf(file, group)])
  ),
  ...wrongOrders(),
].filter(({ file, text }) => `${file} ${text}`.includes(wanted));
const tree = await copyTree();
for (const group of new Set(mutants.map(({ group }) => group))) {
  if (!await isNoticed(tree, group)) continue;
  throw new Error(`Tests fail with all barriers: ${group.tests.join(" ")}`);
}
let survivors = 0;
for (const { group, file, line, text, content } of mutants) {
  const original = await Deno.readTextFile(ROOT + file);
  await Deno.writeTextFile(`${tree}/${file}`, content);
  const noticed = await isNoticed(tree, group);
  await Deno.writeTextFile(`${tree}/${file}`, original);
  if (!noticed) survivors++;
  console.log(`${noticed ? "noticed " : "SURVIVES"} ${file}:${line} ${text}`);
}
await Deno.remove(tree, { recursive: true });
console.log(`${mutants.length} barriers, ${survivors} survive`);
Deno.exit(survivors > 0 ? 1 : 0);
