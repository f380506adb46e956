/**
 * The part of JSON Schema that our own schema uses.
 *
 * @module
 */

/** A schema; keywords that are not listed here are refused. */
export interface Schema {
  readonly $schema?: string;
  readonly title?: string;
  readonly description?: string;
  readonly type?: "object" | "array" | "string" | "integer" | "boolean";
  readonly enum?: readonly unknown[];
  readonly pattern?: string;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly items?: Schema;
  readonly required?: readonly string[];
  readonly properties?: { readonly [name: string]: Schema };
  readonly additionalProperties?: false;
}

const KEYWORDS = [
  ...["$schema", "title", "description", "type", "enum", "pattern"],
  ...["minimum", "maximum", "items", "required", "properties"],
  "additionalProperties",
];

/** The violations of a schema, one a line, with their paths. */
export function faultsOf(schema: Schema, value: unknown, path = "$"): string[] {
  const unknown = Object.keys(schema).find((key) => !KEYWORDS.includes(key));
  if (unknown) throw new Error(`The keyword '${unknown}' is not known`);
  const { type, minimum = -Infinity, maximum = Infinity } = schema;
  const faults: string[] = [];
  const actual = Array.isArray(value)
    ? "array"
    : Number.isInteger(value)
    ? "integer"
    : typeof value;
  if (type && type !== actual) return [`${path} is no ${type}`];
  if (schema.enum && !schema.enum.includes(value)) {
    faults.push(`${path} is ${value}`);
  }
  if (schema.pattern && !new RegExp(schema.pattern).test(String(value))) {
    faults.push(`${path} is ${value}`);
  }
  if (actual === "integer") {
    const number = Number(value);
    if (number < minimum || number > maximum) {
      faults.push(`${path} is ${value}`);
    }
  }
  if (Array.isArray(value) && schema.items) {
    for (const [index, item] of value.entries()) {
      faults.push(...faultsOf(schema.items, item, `${path}[${index}]`));
    }
  }
  if (actual !== "object") return faults;
  for (const name of schema.required ?? []) {
    if (!Object.hasOwn(value as object, name)) {
      faults.push(`${path} lacks ${name}`);
    }
  }
  for (const [name, item] of Object.entries(value as object)) {
    const inner = schema.properties?.[name];
    if (inner) faults.push(...faultsOf(inner, item, `${path}.${name}`));
    else if (schema.additionalProperties === false) {
      faults.push(`${path} has ${name}`);
    }
  }
  return faults;
}
