/**
 * What builds for other runtimes have to know of the imports in `deno.json`.
 *
 * @module
 */
const ROOT = new URL("..", import.meta.url).pathname;

/** Packages that only this repository needs, to build and to test. */
export const TOOLS = ["esbuild", "playwright-core"];

/** What `deno info --json` tells of a graph. */
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
 * The path of the module that `importer` imports as `specifier`, for one of an
 * `@std` package: in `links/`, or where Deno keeps what it has of JSR.
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
