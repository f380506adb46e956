/**
 * Checks the imports: there are no cycles, each folder keeps to the dependency
 * rule, and only the modules meant for a runtime depend on it. Part of `deno
 * task check`.
 *
 * Type imports and dynamic imports count as well: two modules that need each
 * other can be neither understood nor moved one at a time. The imports come
 * from Deno itself, so that no syntax is overlooked.
 *
 * @module
 */

/** The kind of an import. */
export type ImportKind = "static" | "type" | "dynamic";

/** The imports of each module, by path below the root, and their kinds. */
export type ImportGraph = Map<string, Map<string, ImportKind>>;

/** Folders without our own modules. */
const FOREIGN = new Set(["dist", "links", "node_modules"]);

/** The part of `deno info --json` that is used. */
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

/** All imports between the modules below a folder. */
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
 * The shortest cycle through each import that is part of one, without
 * duplicates. A cycle begins and ends with the same module.
 */
export function findCycles(graph: ImportGraph): string[][] {
  const cycles = new Map<string, string[]>();
  for (const [from, imports] of graph) {
    for (const to of imports.keys()) {
      const way = shortestWay(graph, to, from);
      if (!way) continue;
      // Normalised: it may have been found from another of its modules.
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
  // The map grows during the iteration, which includes the new entries.
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

/**
 * A cycle as a chain of modules, in which type and dynamic imports are marked.
 */
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

/** What modules may import besides their own folder; the first match counts. */
const RULES: readonly { room: RegExp; mayImport: RegExp; rule: string }[] = [
  { room: /^core\//, mayImport: /^$/, rule: "core imports only core" },
  {
    room:
      /^drivers\/(all|creating|creating_raw|held|preload|reading|writing)\.ts$/,
    mayImport: /^(core|drivers)\//,
    rule: "what registers drivers imports core and drivers",
  },
  {
    room: /^drivers\//,
    mayImport: /^core\//,
    rule: "a driver imports core and its own folder",
  },
  {
    room: /^subpaths\//,
    mayImport: /^(core|drivers)\//,
    rule: "a subpath exports what is in core and drivers",
  },
  {
    room: /^cli\//,
    // drivers/all.ts is part of mod.ts, and starts faster by itself; others of
    // drivers only say what to load with a command. The version is in deno.json.
    mayImport:
      /^(core\/|mod\.ts$|drivers\/(all|creating|creating_raw|reading|writing)\.ts$|deno\.json$)/,
    rule: "cli imports mod.ts and core",
  },
  {
    room: /^mod\.ts$/,
    mayImport: /^(core|drivers|subpaths)\//,
    rule: "mod.ts exports what is in core and drivers",
  },
  {
    room: /^cli\.ts$/,
    mayImport: /^cli\//,
    rule: "cli.ts picks a program in cli",
  },
  {
    room: /^web\//,
    mayImport: /^(core\/|subpaths\/|mod\.ts$)/,
    rule: "web imports mod.ts, subpaths and core",
  },
];

/**
 * The unit of the rule: a folder; in drivers, the folder or file of a driver.
 */
function roomOf(module: string): string {
  const [first, second] = module.split("/");
  return first === "drivers" ? `${first}/${second}` : first;
}

/** The imports that break the dependency rule, a line each. */
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

/** Which modules may use globals that only some runtimes have. */
const RUNTIMES: readonly {
  what: string;
  /** Whether a module uses it, in code or in a string. */
  isNamed(code: string, strings: readonly string[]): boolean;
  /** The modules that must not use it, and the exceptions among them. */
  in: RegExp;
  but: RegExp;
}[] = [
  {
    what: "Deno",
    // Checking for the name is fine; a string may be a program.
    isNamed: (code, strings) =>
      /\bDeno\b/.test(code) ||
      strings.some((text) => /^Deno$|\bDeno\??\.\w/.test(text)),
    in: /^(core|drivers|subpaths|web|cli)\/|^mod\.ts$/,
    but: /^core\/platform\/deno[^/]*$/,
  },
  {
    what: "node:",
    isNamed: (_, strings) => strings.some((text) => /\bnode:\w/.test(text)),
    in: /^(core|drivers|subpaths|web|cli)\/|^(mod|cli)\.ts$/,
    but: /^core\/platform\/node[^/]*$/,
  },
];

/** Comments, strings, and templates. */
const NO_CODE =
  /\/\/.*|\/\*[^]*?\*\/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\[^]|[^`\\])*`/g;

/** The globals of a runtime that a module must not use, but does. */
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
