/**
 * JSON on several lines, as QEMU's programs print it.
 *
 * @module
 */
import { inKeyOrder, type Json, quoteJson, scalarJson } from "../core/json.ts";

export type { Json } from "../core/json.ts";

/** A value on several lines, indented by four spaces per level. */
export function prettyJson(value: Json, indent = ""): string {
  const inner = indent + "    ";
  if (Array.isArray(value)) {
    return enclose("[", value.map((item) => prettyJson(item, inner)), "]");
  }
  if (typeof value === "object" && value !== null) {
    const members = inKeyOrder(value as { readonly [name: string]: Json })
      .map(([name, item]) => `${quoteJson(name)}: ${prettyJson(item, inner)}`);
    return enclose("{", members, "}");
  }
  return scalarJson(value as string | number | bigint | boolean | null);

  function enclose(open: string, items: string[], close: string): string {
    const body = items.map((item) => `\n${inner}${item}`).join(",");
    return `${open}${body}\n${indent}${close}`;
  }
}

/** The members of an object or list, one per line, nested ones indented. */
export function detailLines(value: Json, indent: string): string[] {
  const members: [string, Json][] = Array.isArray(value)
    ? value.map((item, index) => [`[${index}]`, item])
    : inKeyOrder(value as { readonly [name: string]: Json })
      .map(([name, item]) => [name.replaceAll("-", " "), item]);
  return members.flatMap(([name, item]) =>
    typeof item === "object" && item !== null
      ? [`${indent}${name}:`, ...detailLines(item, `${indent}    `)]
      : [`${indent}${name}: ${item}`]
  );
}
