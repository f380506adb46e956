/**
 * What builds for other runtimes have to know about the imports in `deno.json`.
 *
 * @module
 */
const ROOT = new URL("..", import.meta.url).pathname;

/** Packages that only the builds and tests of this repository need. */
export const TOOLS = ["esbuild", "playwright-core"];

/** What `deno info --json` prints about a module graph. */
interface Graph {
  readonly modules: readonly {
    readonly specifier: string;
    readonly local?: string;
    readonly dependencies?: readonly {
      readonly specifier: string;
      readonly code?: { readonly specifier?: string };
    }[];
  }[];
}

/**
 * The path of the module of an `@std` package that `importer` imports as
 * `specifier`: in `links/`, or in Deno's cache of JSR.
 */
export async function stdModule(
  specifier: string,
  importer: string,
): Promise<string> {
  const { code, stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["info", "--json", importer],
    cwd: ROOT,
    stderr: "null",
  }).output();
  if (code !== 0) throw new Error(`deno info ${importer} failed`);
  const { modules }: Graph = JSON.parse(new TextDecoder().decode(stdout));
  const found = modules.flatMap(({ dependencies = [] }) => dependencies)
    .find((dependency) => dependency.specifier === specifier)
    ?.code?.specifier;
  const local = modules.find((module) => module.specifier === found)?.local;
  if (local === undefined) throw new Error(`Cannot find ${specifier}`);
  return local;
}
