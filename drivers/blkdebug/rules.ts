/**
 * The rules of `blkdebug`, and parsing them.
 *
 * @module
 */
import { asBlockError, BlockError, strerror } from "../../core/errors.ts";
import { openProtocol } from "../../core/open.ts";
import {
  notAmong,
  type OptionTable,
  type OptionValues,
  parseOptions,
} from "../../core/options.ts";
import { isPlainObject } from "../../core/values.ts";

/** The events, by QEMU's names. */
export const EVENTS: ReadonlySet<string> = new Set(
  ("l1_update l1_grow_alloc_table l1_grow_write_table " +
    "l1_grow_activate_table l2_load l2_update l2_update_compressed " +
    "l2_alloc_cow_read l2_alloc_write read_aio read_backing_aio " +
    "read_compressed write_aio write_compressed vmstate_load vmstate_save " +
    "cow_read cow_write reftable_load reftable_grow reftable_update " +
    "refblock_load refblock_update refblock_update_part refblock_alloc " +
    "refblock_alloc_hookup refblock_alloc_write refblock_alloc_write_blocks " +
    "refblock_alloc_write_table refblock_alloc_switch_table cluster_alloc " +
    "cluster_alloc_bytes cluster_free flush_to_os flush_to_disk " +
    "pwritev_rmw_head pwritev_rmw_after_head pwritev_rmw_tail " +
    "pwritev_rmw_after_tail pwritev pwritev_zero pwritev_done " +
    "empty_image_prepare l1_shrink_write_table l1_shrink_free_l2_clusters " +
    "cor_write cluster_alloc_space none").split(" "),
);

const IO_TYPES = [
  "read",
  "write",
  "write-zeroes",
  "discard",
  "flush",
  "block-status",
] as const;

/** A type of request that can be made to fail. */
export type IoType = typeof IO_TYPES[number];

const RULE_OPTIONS: { readonly [group: string]: OptionTable } = {
  "inject-error": {
    event: { type: "string", help: "The event that makes requests fail" },
    state: { type: "number", help: "Only in this state; 0 means any" },
    iotype: { type: "string", help: "Only requests of this type" },
    errno: { type: "number", help: "The number of the error" },
    sector: { type: "number", help: "Only requests that touch this sector" },
    once: { type: "boolean", help: "Only one request" },
    immediately: { type: "boolean", help: "Fail in the turn of the request" },
  },
  "set-state": {
    event: { type: "string", help: "The event that changes the state" },
    state: { type: "number", help: "Only in this state; 0 means any" },
    new_state: { type: "number", help: "The state from then on" },
  },
};

/** The reaction to an event. */
export interface Rule {
  readonly event: string;
  /** The state in which it applies; 0 means any. */
  readonly state: number;
  /** The next state. */
  readonly newState?: number;
  /** The error to inject from then on. */
  readonly injection?: Injection;
  /** The tag under which to suspend the request. */
  readonly tag?: string;
}

/** An injected error. */
export interface Injection {
  readonly errno: number;
  readonly ioType?: IoType;
  readonly offset?: number;
  readonly once: boolean;
  readonly immediately: boolean;
}

/** The options that hold rules. */
export const RULE_GROUPS: readonly string[] = Object.keys(RULE_OPTIONS);

/** Read the rules of the configuration file and of the options. */
export async function readRules(
  config: string | undefined,
  options: OptionValues,
): Promise<Rule[]> {
  const given = RULE_GROUPS.flatMap((group) =>
    givenRules(group, options[group])
  );
  return [...await readConfig(config), ...given].map(parseRule);
}

type GivenRule = [group: string, values: OptionValues];

/** Rules of the options: one, a list, or an object numbered from 0. */
function givenRules(group: string, given: unknown): GivenRule[] {
  if (given === undefined) return [];
  if (!Array.isArray(given) && !isPlainObject(given)) {
    throw new BlockError(
      "EINVAL",
      `Parameter '${group}' expects a rule or a list of rules`,
    );
  }
  const isList = Array.isArray(given) || Object.hasOwn(given, "0");
  const rules: unknown[] = isList ? Object.values(given) : [given];
  return rules.map((rule, index) => {
    if (typeof rule !== "object" || rule === null) {
      throw new BlockError(
        "EINVAL",
        `[${group}] section (index ${index}) does not consist of keys`,
      );
    }
    return [group, rule as OptionValues];
  });
}

/**
 * Rules of a file with sections (`[inject-error]`) and `name = "value"` lines.
 */
async function readConfig(filename?: string): Promise<GivenRule[]> {
  if (filename === undefined) return [];
  let text: string;
  try {
    const source = { driver: "file", filename };
    const file = await openProtocol(source, { readOnly: true });
    const bytes = new Uint8Array(file.size);
    try {
      await file.readv(0, [bytes]);
    } finally {
      await file.close();
    }
    text = new TextDecoder().decode(bytes);
  } catch (error) {
    const { code } = asBlockError(error);
    throw new BlockError(
      code,
      `Could not read blkdebug config file: ${strerror(code)}`,
      { cause: error },
    );
  }
  const rules: GivenRule[] = [];
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const section = /^\[\s*([^\]"\s]+)/.exec(line);
    if (section) {
      if (!Object.hasOwn(RULE_OPTIONS, section[1])) {
        throw new BlockError(
          "EINVAL",
          `There is no option group '${section[1]}'`,
        );
      }
      rules.push([section[1], {}]);
      continue;
    }
    const setting = /^\s*(\S+)\s*=\s*"([^"]*)"/.exec(line);
    if (!setting) throw new BlockError("EINVAL", "parse error");
    const rule = rules.at(-1);
    if (!rule) throw new BlockError("EINVAL", "no group defined");
    rule[1][setting[1]] = setting[2];
  }
  return rules;
}

function parseRule([group, values]: GivenRule): Rule {
  for (const name of Object.keys(values)) {
    if (!Object.hasOwn(RULE_OPTIONS[group], name)) {
      throw new BlockError("EINVAL", `Invalid parameter '${name}'`);
    }
  }
  const parsed = parseOptions(RULE_OPTIONS[group], values);
  const number = (name: string) => parsed[name] as number | undefined;
  const event = parsed.event as string | undefined;
  if (event === undefined) {
    throw new BlockError("EINVAL", "Missing event name for rule");
  }
  if (!EVENTS.has(event)) {
    throw new BlockError("EINVAL", `invalid parameter value: ${event}`, {
      words: [...EVENTS],
    });
  }
  const rule = { event, state: number("state") ?? 0 };
  if (group === "set-state") {
    return { ...rule, newState: number("new_state") ?? 0 };
  }
  const ioType = parsed.iotype as IoType | undefined;
  if (ioType !== undefined && !IO_TYPES.includes(ioType)) {
    throw notAmong(`invalid parameter value: ${ioType}`, IO_TYPES);
  }
  const sector = number("sector");
  const injection = {
    errno: number("errno") ?? 5,
    ioType,
    ...(sector !== undefined && { offset: sector * 512 }),
    once: parsed.once as boolean | undefined ?? false,
    immediately: parsed.immediately as boolean | undefined ?? false,
  };
  return { ...rule, injection };
}
