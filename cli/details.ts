/**
 * The format-specific details of an image, as a list for people.
 *
 * @module
 */
import { inKeyOrder, type Json } from "../core/json.ts";

/** The members of an object or list, a line each, nested ones indented. */
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
