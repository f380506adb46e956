/**
 * Which kinds of metadata to protect from overlapping writes. The checks
 * themselves are in `overlap.ts`, which only writers load.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import type { OptionTable, OptionValues } from "../../core/options.ts";
import { valueText } from "../../core/values.ts";

/** The kinds of metadata, in the order in which they are checked. */
const KINDS = [
  "main-header",
  "active-l1",
  "refcount-table",
  "snapshot-table",
  "inactive-l1",
  "active-l2",
  "refcount-block",
  "inactive-l2",
  "bitmap-directory",
] as const;

/** A kind of metadata. */
export type MetadataKind = typeof KINDS[number];

/** Their names in messages. */
export const METADATA_NAMES: { readonly [kind in MetadataKind]: string } = {
  "main-header": "qcow2_header",
  "active-l1": "active L1 table",
  "refcount-table": "refcount table",
  "snapshot-table": "snapshot table",
  "inactive-l1": "inactive L1 table",
  "active-l2": "active L2 table",
  "refcount-block": "refcount block",
  "inactive-l2": "inactive L2 table",
  "bitmap-directory": "bitmap directory",
};

const CONSTANT: readonly MetadataKind[] = [
  "main-header",
  "active-l1",
  "refcount-table",
  "snapshot-table",
  "bitmap-directory",
];

/** The kinds protected by each value of `overlap-check`. */
const TEMPLATES: { readonly [name: string]: readonly MetadataKind[] } = {
  none: [],
  constant: CONSTANT,
  cached: [...CONSTANT, "active-l2", "refcount-block", "inactive-l1"],
  all: KINDS,
};

/** What is protected if the options say nothing. */
export const USUAL_KINDS: ReadonlySet<MetadataKind> = new Set(TEMPLATES.cached);

/** The options of `overlap-check`, as QEMU has them. */
export const OVERLAP_OPTIONS: OptionTable = {
  "overlap-check": {
    type: "string",
    help: "Selects which overlap checks to perform from a range of templates " +
      "(none, constant, cached, all)",
  },
  "overlap-check.template": {
    type: "string",
    help: "Selects which overlap checks to perform from a range of templates " +
      "(none, constant, cached, all)",
  },
  ...Object.fromEntries(
    KINDS.map((kind) => [`overlap-check.${kind}`, {
      type: "boolean",
      help: `Check for unintended writes into ${METADATA_NAMES[kind]}`,
    }]),
  ),
};

/** The kinds of metadata to protect, according to the options. */
export function protectedKinds(options: OptionValues): Set<MetadataKind> {
  const plain = options["overlap-check"] as string | undefined;
  const template = options["overlap-check.template"] as string | undefined;
  if (plain !== undefined && template !== undefined && plain !== template) {
    throw new BlockError(
      "EINVAL",
      `Conflicting values for qcow2 options 'overlap-check' ('${plain}') and ` +
        `'overlap-check.template' ('${template}')`,
    );
  }
  const name = plain ?? template ?? "cached";
  if (!Object.hasOwn(TEMPLATES, name)) {
    throw new BlockError(
      "EINVAL",
      `Unsupported value ${
        valueText(name)
      } for qcow2 option 'overlap-check'. ` +
        "Allowed are any of the following: none, constant, cached, all",
    );
  }
  const kinds = new Set(TEMPLATES[name]);
  for (const kind of KINDS) {
    const flag = options[`overlap-check.${kind}`];
    if (flag === true) kinds.add(kind);
    if (flag === false) kinds.delete(kind);
  }
  return kinds;
}
