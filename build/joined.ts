/**
 * Joins modules of the npm package that are always loaded together into one
 * file: a page then loads fewer files, and they compress better than many.
 *
 * @module
 */
import * as esbuild from "esbuild";

/** A file that replaces several modules of the package. */
interface Group {
  /** The path of the file, in the package's folder. */
  readonly path: string;
  /**
   * Modules that belong to it, and with them whatever they import statically…
   */
  readonly roots: readonly string[];
  /** …as long as their paths begin with this. */
  readonly within: string;
}

/** Never joined: a bundler may substitute something else for these. */
const REPLACED = /^core\/platform\/(?!(mod|web)\.js)/;

/** A module that fits several groups goes to the first. */
const GROUPS: readonly Group[] = [
  {
    path: "core/joined.js",
    roots: ["core/image.js"],
    within: "core/",
  },
  {
    path: "drivers/qcow2/joined.js",
    roots: ["drivers/qcow2/driver.js", "drivers/qcow2/guest_data.js"],
    within: "drivers/qcow2/",
  },
  {
    path: "core/joined_probe.js",
    roots: ["core/probe.js"],
    within: "core/",
  },
  {
    path: "core/joined_access.js",
    roots: ["core/access.js"],
    within: "core/",
  },
];

/** A module's exports, and the modules that it imports statically. */
interface Facts {
  readonly exports: readonly string[];
  readonly imports: readonly string[];
}

/** Where an export is now. */
interface Place {
  readonly path: string;
  readonly name: string;
}

/** Where the exports of joined modules are, by the module's path and name. */
type Places = Map<string, Map<string, Place>>;

/**
 * Join modules in a folder. Others are made to import from the joined files; at
 * each module's own path a stub stays that exports the same names.
 *
 * @param files The paths of all modules.
 */
export async function joinModules(
  folder: string,
  files: readonly string[],
): Promise<void> {
  try {
    const facts = await factsOf(folder, files);
    const places: Places = new Map();
    for (const group of GROUPS) {
      const members = membersOf(group, facts, places);
      await join(folder, group.path, members, facts, places);
    }
    const all = [...files, ...GROUPS.map(({ path }) => path)];
    for (const path of all) await point(folder, path, places);
    for (const [path, exports] of places) {
      await Deno.writeTextFile(`${folder}/${path}`, stub(path, exports));
    }
  } finally {
    await esbuild.stop();
  }
}

async function factsOf(
  folder: string,
  files: readonly string[],
): Promise<Map<string, Facts>> {
  const common: esbuild.BuildOptions = {
    entryPoints: [...files],
    absWorkingDir: folder,
    outdir: folder,
    outbase: folder,
    write: false,
    metafile: true,
    format: "esm",
    logLevel: "warning",
  };
  // One build lists the exports; only the other, the paths of the imports.
  const single = await esbuild.build(common);
  const bundled = await esbuild.build({
    ...common,
    bundle: true,
    splitting: true,
    packages: "external",
    external: ["node:*"],
  });
  return new Map(files.map((path): [string, Facts] => {
    const imports = bundled.metafile!.inputs[path].imports
      .filter((it) => it.kind === "import-statement" && !it.external)
      .map((it) => it.path);
    return [path, { exports: single.metafile!.outputs[path].exports, imports }];
  }));
}

/** The modules of a group that no earlier group has taken. */
function membersOf(
  { roots, within }: Group,
  facts: ReadonlyMap<string, Facts>,
  taken: Places,
): string[] {
  const found = new Set<string>();
  const pending = [...roots];
  for (let path; (path = pending.pop()) !== undefined;) {
    const isMember = path.startsWith(within) && !REPLACED.test(path) &&
      !taken.has(path) && !found.has(path) && facts.has(path);
    if (!isMember) continue;
    found.add(path);
    pending.push(...facts.get(path)!.imports);
  }
  return [...found].sort();
}

/** Write the file of a group, and record where its exports are. */
async function join(
  folder: string,
  path: string,
  members: readonly string[],
  facts: ReadonlyMap<string, Facts>,
  places: Places,
): Promise<void> {
  const used = new Set<string>();
  const lines: string[] = [];
  for (const member of members) {
    const exports = new Map<string, Place>();
    for (const name of facts.get(member)!.exports) {
      let unique = name;
      while (used.has(unique)) unique += "_";
      used.add(unique);
      exports.set(name, { path, name: unique });
      lines.push(`export { ${name} as ${unique} } from "./${member}";`);
    }
    places.set(member, exports);
  }
  const { outputFiles: [{ text }] } = await esbuild.build({
    stdin: { contents: lines.join("\n"), resolveDir: folder },
    absWorkingDir: folder,
    outfile: `${folder}/${path}`,
    bundle: true,
    write: false,
    format: "esm",
    logLevel: "warning",
    plugins: [{
      name: "others",
      setup(build) {
        build.onResolve(
          { filter: /^/ },
          ({ path: named, resolveDir, kind }) => {
            if (!named.startsWith(".")) return { external: true };
            const { pathname } = new URL(named, `file://${resolveDir}/`);
            const target = pathname.slice(folder.length + 1);
            // A member that is imported dynamically from here, too, would be
            // wrapped in a function, and could not be left out in part.
            const isMember = kind !== "dynamic-import" &&
              members.includes(target);
            if (isMember) return { path: pathname };
            return { path: relative(path, target), external: true };
          },
        );
      },
    }],
  });
  await Deno.writeTextFile(`${folder}/${path}`, withClassNames(text));
}

/**
 * Undo esbuild's renaming of classes that name themselves to `_Name`, which
 * shows in errors.
 */
function withClassNames(text: string): string {
  for (const [, name] of text.matchAll(/^var (\w+) = class _\1\b/gm)) {
    text = text.replaceAll(new RegExp(`\\b_${name}\\b`, "g"), name);
  }
  return text;
}

/** Redirect a module's imports to where the exports are now. */
async function point(
  folder: string,
  path: string,
  places: Places,
): Promise<void> {
  const text = await Deno.readTextFile(`${folder}/${path}`);
  const pointed = text.replace(
    /\b(import|export) \{([^{}]*)\} from "(\.{1,2}\/[^"]+)";/g,
    (whole, verb: string, names: string, from: string) => {
      const target = new URL(from, `file:///${path}`).pathname.slice(1);
      const exports = places.get(target);
      if (!exports) return whole;
      const clauses = names.split(",").map((it) => it.trim()).filter(Boolean)
        .map((clause) => {
          const [name, local = name] = clause.split(" as ");
          const there = exports.get(name)!;
          return there.name === local ? local : `${there.name} as ${local}`;
        });
      const [{ path: file }] = exports.values();
      const place = relative(path, file);
      return `${verb} { ${clauses.join(", ")} } from "${place}";`;
    },
  );
  if (pointed !== text) await Deno.writeTextFile(`${folder}/${path}`, pointed);
}

/** A module that re-exports what has moved. */
function stub(path: string, exports: ReadonlyMap<string, Place>): string {
  return [...exports].map(([name, there]) =>
    `export { ${there.name} as ${name} } from "${
      relative(path, there.path)
    }";\n`
  ).join("");
}

/**
 * The specifier of one module in another; both are paths in the same folder.
 */
function relative(from: string, to: string): string {
  const up = from.split("/").slice(0, -1);
  const down = to.split("/");
  while (up.length > 0 && up[0] === down[0]) {
    up.shift();
    down.shift();
  }
  return (up.length === 0 ? "./" : "../".repeat(up.length)) + down.join("/");
}
