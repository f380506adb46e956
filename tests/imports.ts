/**
 * Checks who imports whom: that no module leads back to itself, that each room
 * of the house keeps to the dependency rule, and that no module depends on a
 * runtime but those that are for it. Part of `deno task check`.
 *
 * Imports of types count as well, and those that are made only when a function
 * is called: two modules that need each other cannot be understood, or moved,
 * one at a time. The runtime itself tells what a module imports, so that no
 * way of writing an import is overlooked.
 *
 * @module
 */

/** How a module names another one. */
export type ImportKind = "static" | "type" | "dynamic";

/** What each module imports, by paths below the root, and how. */
export type ImportGraph = Map<string, Map<string, ImportKind>>;

/** Folders in which there are no modules of ours. */
const FOREIGN = new Set(["dist", "links", "node_modules"]);

/** As `deno info --json` writes it, where it concerns us. */
interface ModuleInfo {
  readonly specifier: string;
  readonly error?: string;
  readonly dependencies?: readonly {
    readonly code?: { readonly specifier?: string };
    readonly type?: { readonly specifier?: string };
    readonly isDynamic?: boolean;
  }[];
}

async function* modulesBelow(folder: string): AsyncGenerator<string> {
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    const path = `${folder}/${name}`;
    if (name.startsWith(".") || FOREIGN.has(name)) continue;
    if (isDirectory) yield* modulesBelow(path);
    else if (/\.[mc]?[jt]sx?$/.test(name)) yield path;
  }
}

/** All imports of the modules below a folder of other modules there. */
export async function readImports(root: string): Promise<ImportGraph> {
  const base = await Deno.realPath(root);
  const entry = await Deno.makeTempFile({ suffix: ".ts" });
  let modules: readonly ModuleInfo[];
  try {
    const paths = await Array.fromAsync(modulesBelow(base));
    const lines = paths.sort().map((path) =>
      `import ${JSON.stringify(new URL(`file://${path}`).href)};\n`
    );
    await Deno.writeTextFile(entry, lines.join(""));
    modules = await moduleInfo(base, entry);
  } finally {
    await Deno.remove(entry);
  }
  const prefix = new URL(`file://${base}/`).href;
  const isOurs = (url?: string): url is string =>
    url !== undefined && url.startsWith(prefix) &&
    !FOREIGN.has(url.slice(prefix.length).split("/")[0]);
  const graph: ImportGraph = new Map();
  for (const { specifier, error, dependencies = [] } of modules) {
    if (!isOurs(specifier)) continue;
    if (error) throw new Error(error);
    const imports = new Map<string, ImportKind>();
    for (const { code, type, isDynamic } of dependencies) {
      for (const target of new Set([code?.specifier, type?.specifier])) {
        if (!isOurs(target)) continue;
        const kind = isDynamic ? "dynamic" : code ? "static" : "type";
        imports.set(target.slice(prefix.length), kind);
      }
    }
    graph.set(specifier.slice(prefix.length), imports);
  }
  return graph;
}

async function moduleInfo(
  base: string,
  entry: string,
): Promise<readonly ModuleInfo[]> {
  const config = `${base}/deno.json`;
  const hasConfig = await Deno.stat(config).then(() => true, () => false);
  const which = hasConfig ? ["--config", config] : ["--no-config"];
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["info", "--json", "--quiet", ...which, entry],
    cwd: base,
  }).output();
  const decoder = new TextDecoder();
  if (!success) throw new Error(decoder.decode(stderr));
  return JSON.parse(decoder.decode(stdout)).modules;
}

/**
 * For each import that is part of a cycle, the shortest cycle that it is part
 * of, each once. A cycle begins and ends with the same module.
 */
export function findCycles(graph: ImportGraph): string[][] {
  const cycles = new Map<string, string[]>();
  for (const [from, imports] of graph) {
    for (const to of imports.keys()) {
      const way = shortestWay(graph, to, from);
      if (!way) continue;
      // It may have been found by way of another of its modules.
      const first = way.indexOf(way.toSorted()[0]);
      const cycle = [...way.slice(first), ...way.slice(0, first + 1)];
      cycles.set(cycle.join("\n"), cycle);
    }
  }
  return [...cycles].sort(([a], [b]) => a < b ? -1 : 1).map(([, it]) => it);
}

function shortestWay(
  graph: ImportGraph,
  start: string,
  end: string,
): string[] | undefined {
  const before = new Map<string, string | undefined>([[start, undefined]]);
  // The map grows meanwhile, and is gone through to its end.
  for (const module of before.keys()) {
    if (module === end) {
      const way: string[] = [];
      for (let at: string | undefined = end; at !== undefined;) {
        way.unshift(at);
        at = before.get(at);
      }
      return way;
    }
    for (const next of graph.get(module)?.keys() ?? []) {
      if (!before.has(next)) before.set(next, module);
    }
  }
}

/** A cycle as a chain of modules, with what is not a plain import marked. */
export function chainText(
  graph: ImportGraph,
  cycle: readonly string[],
): string {
  return cycle.map((module, at) => {
    if (at === 0) return module;
    const kind = graph.get(cycle[at - 1])!.get(module)!;
    return kind === "static" ? `-> ${module}` : `-> (${kind}) ${module}`;
  }).join(" ");
}

/** What modules may import apart from their own room; the first that fits. */
const RULES: readonly { room: RegExp; mayImport: RegExp; rule: string }[] = [
  { room: /^core\//, mayImport: /^$/, rule: "core imports only core" },
  {
    room: /^drivers\/(all|rare)\.ts$/,
    mayImport: /^(core|drivers)\//,
    rule: "what registers drivers imports core and drivers",
  },
  {
    room: /^drivers\//,
    mayImport: /^core\//,
    rule: "a driver imports core and its own folder",
  },
  {
    room: /^cli\//,
    // What registers the drivers is a part of what mod.ts stands for, and
    // starts faster on its own; the version stands in deno.json.
    mayImport: /^(core\/|mod\.ts$|drivers\/all\.ts$|deno\.json$)/,
    rule: "cli imports mod.ts and core",
  },
  {
    room: /^mod\.ts$/,
    mayImport: /^(core|drivers)\//,
    rule: "mod.ts exports what is in core and drivers",
  },
  {
    room: /^cli\.ts$/,
    mayImport: /^cli\//,
    rule: "cli.ts picks a program in cli",
  },
  {
    room: /^web\//,
    mayImport: /^(core\/|mod\.ts$)/,
    rule: "web imports mod.ts and core",
  },
];

/**
 * What belongs together: a folder, in drivers one folder, or one file, for each
 * driver.
 */
function roomOf(module: string): string {
  const [first, second] = module.split("/");
  return first === "drivers" ? `${first}/${second}` : first;
}

/** The imports that the dependency rule does not permit, a line each. */
export function findBreaches(graph: ImportGraph): string[] {
  const breaches: string[] = [];
  for (const [from, imports] of graph) {
    const rule = RULES.find(({ room }) => room.test(from));
    if (!rule) continue;
    for (const to of imports.keys()) {
      if (roomOf(from) === roomOf(to) || rule.mayImport.test(to)) continue;
      breaches.push(`${from} -> ${to} (${rule.rule})`);
    }
  }
  return breaches.sort();
}

/** Which modules may name what only some runtimes have. */
const RUNTIMES: readonly {
  what: string;
  /** Whether a module's text names it, in code or in a string. */
  isNamed(code: string, strings: readonly string[]): boolean;
  /** Which modules must not name it, and which of them may all the same. */
  in: RegExp;
  but: RegExp;
}[] = [
  {
    what: "Deno",
    // The name alone may be looked for; a string may be a program.
    isNamed: (code, strings) =>
      /\bDeno\b/.test(code) ||
      strings.some((text) => /^Deno$|\bDeno\??\.\w/.test(text)),
    in: /^(core|drivers|web)\/|^mod\.ts$/,
    but: /^core\/platform\/deno[^/]*$/,
  },
  {
    what: "node:",
    isNamed: (_, strings) => strings.some((text) => /\bnode:\w/.test(text)),
    in: /^(core|drivers|web|cli)\/|^(mod|cli)\.ts$/,
    but: /^core\/platform\/node[^/]*$/,
  },
];

/** Comments, strings, and templates, each whole. */
const NO_CODE =
  /\/\/.*|\/\*[^]*?\*\/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\[^]|[^`\\])*`/g;

/** What a module names that belongs to a runtime, and is not for it to name. */
export function findNamed(module: string, text: string): string[] {
  const strings: string[] = [];
  const code = text.replace(NO_CODE, (found) => {
    if (!found.startsWith("/")) strings.push(found.slice(1, -1));
    return found.startsWith("`") ? found.replace(/^`|`$/g, "") : " ";
  });
  return RUNTIMES.filter((runtime) =>
    runtime.in.test(module) && !runtime.but.test(module) &&
    runtime.isNamed(code, strings)
  ).map(({ what }) => what);
}

async function findAllNamed(
  root: string,
  modules: Iterable<string>,
): Promise<string[]> {
  const found: string[] = [];
  for (const module of modules) {
    if (!/\.[mc]?[jt]sx?$/.test(module)) continue;
    const text = await Deno.readTextFile(`${root}/${module}`);
    for (const what of findNamed(module, text)) {
      found.push(`${module} names ${what}`);
    }
  }
  return found;
}

if (import.meta.main) {
  const root = new URL("..", import.meta.url).pathname;
  const graph = await readImports(root);
  const faults = [
    ...findCycles(graph).map((it) => `Import cycle: ${chainText(graph, it)}`),
    ...findBreaches(graph).map((it) => `Import not permitted: ${it}`),
    ...(await findAllNamed(root, graph.keys()))
      .map((it) => `Not portable: ${it}`),
  ];
  for (const fault of faults) console.error(fault);
  if (faults.length > 0) Deno.exit(1);
}
