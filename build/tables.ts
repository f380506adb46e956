/**
 * `deno task tables`: generates from the drivers' option tables the page
 * `docs/drivers.md`, and the types of `createImage`'s options.
 *
 * @module
 */
import "../drivers/all.ts";
import "../drivers/held.ts";
import type { BlockDriver } from "../core/driver.ts";
import { NODE_OPTIONS } from "../core/node_options.ts";
import type { OptionSpec, OptionTable } from "../core/options.ts";
import { listDrivers, loadDriver } from "../core/registry.ts";
import type { DriverRole } from "../core/traits.ts";
import { OPEN_OPTIONS as HTTP_OPTIONS } from "../drivers/http/settings.ts";
import { OPEN_OPTIONS as NBD_OPTIONS } from "../drivers/nbd/options.ts";
import { ABOUT } from "./about_drivers.ts";

const ROOT = new URL("..", import.meta.url);

/** Text about the options that a driver is opened with. */
function openTable({ name, openOptions }: BlockDriver): OptionTable {
  if (name === "nbd") return NBD_OPTIONS;
  if (name === "http" || name === "https") return HTTP_OPTIONS;
  return openOptions ?? {};
}

/** A table's supported options. */
function entriesOf(table: OptionTable = {}): [string, OptionSpec][] {
  return Object.entries(table).filter(([, spec]) => spec.unsupported !== true);
}

/** An enumeration's supported values. */
function valuesOf({ values = [], unsupported }: OptionSpec): readonly string[] {
  return Array.isArray(unsupported)
    ? values.filter((value) => !unsupported.includes(value))
    : values;
}

const ROLES: readonly [DriverRole, string][] = [
  ["format", "Formats"],
  ["protocol", "Protocols"],
  ["filter", "Filters"],
];

/** The page on the drivers. */
function page(drivers: readonly BlockDriver[]): string {
  const parts = ROLES.map(([role, title]) => {
    const sections = drivers.filter((driver) => driver.role === role)
      .map(section);
    return `## ${title}\n\n${sections.join("\n")}`;
  });
  return `# The drivers and their options

<!-- Made by \`deno task tables\` from the drivers' tables and
build/about_drivers.ts: do not edit. -->

Options of *opening* are given with the driver, in a description
(\`{ driver: "qcow2", file: "a.qcow2", "cache-size": "4M" }\`), after \`json:\`, or
with \`--image-opts driver=qcow2,file.filename=a.qcow2,cache-size=4M\`. Options of
*creating* are those of \`createImage\` and of \`-o NAME=VALUE,…\`; a new image also
takes those of the protocol that its file is made by. Sizes are in bytes, or
have a suffix: \`k\`, \`M\`, \`G\`, \`T\`, \`P\`, \`E\` (powers of 1024). Children are
descriptions, file names, or open nodes.

## Options of every driver
${optionList("Opening", NODE_OPTIONS)}
${parts.join("\n")}`;
}

function section(driver: BlockDriver): string {
  const about = ABOUT[driver.name];
  if (!about) throw new Error(`build/about_drivers.ts lacks '${driver.name}'`);
  return `### \`${driver.name}\`

${about}
${optionList("Opening", openTable(driver))}${
    optionList("Creating", driver.createOptions)
  }`;
}

function optionList(title: string, table: OptionTable | undefined): string {
  const rows = entriesOf(table).map(([name, spec]) => [
    `\`${name}\``,
    kindText(spec),
    spec.default === undefined ? "" : `\`${defaultText(spec)}\``,
    cell(spec.help),
  ]);
  if (rows.length === 0) return "";
  const lines = [[title, "Value", "Default", "Purpose"], ...rows];
  const [head, ...body] = lines.map((row) => `| ${row.join(" | ")} |\n`);
  return `\n${head}| --- | --- | --- | --- |\n${body.join("")}`;
}

function kindText(spec: OptionSpec): string {
  if (spec.type === "boolean") return "`on`, `off`";
  if (spec.range) return spec.range.join(" to ");
  if (spec.type === "integer") return "number";
  if (spec.type !== "enum") return spec.type;
  return valuesOf(spec).map((value) => `\`${value}\``).join(", ");
}

function defaultText({ type, default: value }: OptionSpec): string {
  if (typeof value === "boolean") return value ? "on" : "off";
  if (type !== "size" || typeof value !== "number") return String(value);
  let unit = 0;
  let size = value;
  for (; size > 0 && size % 1024 === 0 && unit < 6; unit++) size /= 1024;
  return `${size}${["", "k", "M", "G", "T", "P", "E"][unit]}`;
}

/** Text for a cell of a Markdown table. */
function cell(text: string): string {
  return text.trim().replaceAll("|", "\\|").replaceAll("*", "\\*");
}

/** Options of the file, for formats that have none of that name. */
const PREALLOCATION: OptionSpec = {
  type: "enum",
  values: ["off", "falloc", "full"],
  help: "Preallocation of the file, where its protocol can",
};

/** The module with the types of new images' options. */
function types(drivers: readonly BlockDriver[]): string {
  const creating = drivers.filter(({ createOptions }) => createOptions);
  const protocols = creating.filter(({ role }) => role === "protocol");
  const ofFiles = Object.assign(
    {},
    ...protocols.map(({ createOptions }) => createOptions),
  ) as OptionTable;
  // These differ between protocols, and formats have their own.
  const { size: _, preallocation: __, ...others } = ofFiles;
  const interfaces = creating.map(({ name, role, createOptions = {} }) => {
    const table = role === "format" && !createOptions.preallocation
      ? { ...createOptions, preallocation: PREALLOCATION }
      : createOptions;
    const base = role === "format" ? " extends ProtocolCreateOptions" : "";
    return `/**
 * Options of a new \`${name}\` image.
 *
 * @category Options of new images
 */
export interface ${typeName(name)}${base} {
${members(table)}}
`;
  });
  const names = creating.map(({ name }) =>
    `/** As {@linkcode ${typeName(name)}}. */\n` +
    `${JSON.stringify(name)}: ${typeName(name)};\n`
  );
  return `/**
 * The options of new images, as types: made by \`deno task tables\` from the
 * drivers' tables; do not edit.
 *
 * @module
 */
import type { OptionValues } from "./options.ts";

/**
 * What the protocols take by which an image's file is made.
 *
 * @category Options of new images
 */
export interface ProtocolCreateOptions {
${members(others)}}

${interfaces.join("\n")}
/**
 * The options of new images, by format.
 *
 * @category Options of new images
 */
export interface CreateOptionsByFormat {
${names.join("")}}

/**
 * The options of a new image of a format. Of one that is not known when the
 * program is compiled, they are any options.
 *
 * @category Options of new images
 */
export type CreateOptionsOf<Format extends string> = Format extends
  keyof CreateOptionsByFormat ? CreateOptionsByFormat[Format] : OptionValues;
`;
}

function typeName(driver: string): string {
  const words = driver.split(/[-_]/);
  const name = words.map((word) => word[0].toUpperCase() + word.slice(1));
  return `${name.join("")}CreateOptions`;
}

function members(table: OptionTable): string {
  return entriesOf(table).map(([name, spec]) => {
    const help = spec.help.trim().replace(/(?<![.}])$/, ".");
    const by = spec.default === undefined
      ? ""
      : ` Default: \`${defaultText(spec)}\`.`;
    const key = /^\w+$/.test(name) ? name : JSON.stringify(name);
    return `${comment(help + by)}${key}?: ${typeOf(spec)};\n`;
  }).join("");
}

/** A comment, wrapped. */
function comment(text: string): string {
  const lines: string[] = [];
  for (const word of text.split(/ +/)) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + word.length < 72) {
      lines[lines.length - 1] = `${last} ${word}`;
    } else lines.push(word);
  }
  return lines.length === 1
    ? `/** ${lines[0]} */\n`
    : `/**\n${lines.map((line) => ` * ${line}\n`).join("")} */\n`;
}

function typeOf(spec: OptionSpec): string {
  switch (spec.type) {
    case "boolean":
      return 'boolean | "on" | "off"';
    case "size":
    case "number":
    case "integer":
      return "number | string";
    case "string":
      return "string";
    case "enum":
      return valuesOf(spec).map((value) => JSON.stringify(value)).join(" | ");
  }
}

/** Text as `deno fmt` formats it. */
async function formatted(text: string, extension: string): Promise<string> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["fmt", "--quiet", "--ext", extension, "-"],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(text));
  await writer.close();
  const { code, stdout } = await child.output();
  if (code !== 0) throw new Error("deno fmt failed");
  return new TextDecoder().decode(stdout);
}

/** The generated files, and their content. */
export async function tables(): Promise<Map<string, string>> {
  const drivers = await Promise.all(listDrivers().map(loadDriver));
  return new Map([
    ["docs/drivers.md", await formatted(page(drivers), "md")],
    ["core/create_options.ts", await formatted(types(drivers), "ts")],
  ]);
}

if (import.meta.main) {
  for (const [path, text] of await tables()) {
    await Deno.writeTextFile(new URL(path, ROOT), text);
    console.log(path);
  }
}
