/** What `deno doc` shows. @module */
import { assertEquals } from "@std/assert";
import { runOk } from "./qemu.ts";

const ROOT = new URL("..", import.meta.url).pathname;

const CATEGORIES = [
  "Bitmaps",
  "Drivers",
  "Errors",
  "Images",
  "Jobs",
  "Network",
  "Options of new images",
  "Security",
  "Stacks",
];

/** The part of `deno doc --json` that is used. */
interface Documentation {
  readonly nodes: Readonly<
    Record<string, { readonly symbols: readonly Symbol[] }>
  >;
}

interface Symbol {
  readonly name: string;
  readonly declarations: readonly {
    readonly jsDoc?: {
      readonly tags?: readonly {
        readonly kind: string;
        readonly doc?: string;
      }[];
    };
  }[];
}

Deno.test("everything that the package exports is in one of its categories", async () => {
  const json = await runOk([Deno.execPath(), "doc", "--json", "mod.ts"], {
    cwd: ROOT,
  });
  const { nodes } = JSON.parse(json) as Documentation;
  const used = new Set<string>();
  const without: string[] = [];
  for (const { symbols } of Object.values(nodes)) {
    for (const { name, declarations } of symbols) {
      for (const { jsDoc } of declarations) {
        const tag = jsDoc?.tags?.find(({ kind }) => kind === "category");
        if (tag?.doc === undefined) without.push(name);
        else used.add(tag.doc.trim());
      }
    }
  }
  assertEquals(without, []);
  assertEquals([...used].sort(), CATEGORIES);
});
