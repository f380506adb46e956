/**
 * `--object authz-simple` and `authz-list`: which clients a server accepts.
 *
 * @module
 */
import { invalid } from "../core/errors.ts";

/** What `--object TYPE,help` prints. */
export const AUTHZ_HELP = {
  "authz-list":
    "authz-list options:\n  policy=<QAuthZListPolicy>\n  rules=<QAuthZListRule>\n",
  "authz-simple": "authz-simple options:\n  identity=<string>\n",
};

/** Whether a client with this name is accepted. */
export type Authorization = (name: string) => boolean;

/** The rules of an `authz-list`, by their properties. */
interface Rule {
  match?: string;
  policy?: string;
  format?: string;
}

/** The authorization that properties describe. */
export function authorizationOf(
  type: keyof typeof AUTHZ_HELP,
  properties: ReadonlyMap<string, string>,
): Authorization {
  return type === "authz-simple" ? simple(properties) : list(properties);
}

function simple(properties: ReadonlyMap<string, string>): Authorization {
  let identity: string | undefined;
  for (const [name, value] of properties) {
    if (name === "identity") identity = value;
    else checkCommon(name);
  }
  if (identity === undefined) throw missing("identity");
  return (name) => name === identity;
}

function list(properties: ReadonlyMap<string, string>): Authorization {
  let policy = "deny";
  const rules: Rule[] = [];
  for (const [name, value] of properties) {
    const part = /^rules\.(\d{1,4})\.(match|policy|format)$/.exec(name);
    if (part) {
      const rule = rules[Number(part[1])] ??= {};
      rule[part[2] as keyof Rule] = value;
    } else if (name === "policy") policy = value;
    else checkCommon(name);
  }
  const checks = Array.from(rules, (rule, i) => checkOf(rule ?? {}, i));
  const otherwise = isAllowed(policy);
  return (name) => {
    // The first matching rule decides.
    for (const [fits, allows] of checks) if (fits(name)) return allows;
    return otherwise;
  };
}

function checkOf(
  { match, policy, format = "exact" }: Rule,
  index: number,
): [fits: Authorization, allows: boolean] {
  if (match === undefined) throw missing(`rules.${index}.match`);
  if (policy === undefined) throw missing(`rules.${index}.policy`);
  if (format !== "exact" && format !== "glob") throw notOne("format", format);
  const pattern = format === "glob" ? globPattern(match) : undefined;
  const fits: Authorization = pattern
    ? (name) => pattern.test(name)
    : (name) => name === match;
  return [fits, isAllowed(policy)];
}

/** `*` stands for any text, `?` for one character. */
function globPattern(glob: string): RegExp {
  if (/[[\\]/.test(glob)) {
    throw invalid(`Brackets and backslashes are not supported: '${glob}'`);
  }
  const parts = glob.split(/([*?])/).map((part) =>
    part === "*"
      ? ".*"
      : part === "?"
      ? "."
      : part.replace(/[$^.+(){}|\/]/g, "\\$&")
  );
  return new RegExp(`^${parts.join("")}$`, "su");
}

function isAllowed(policy: string): boolean {
  if (policy !== "allow" && policy !== "deny") throw notOne("policy", policy);
  return policy === "allow";
}

function checkCommon(name: string): void {
  if (name === "id" || name === "qom-type") return;
  throw invalid(`Parameter '${name}' is unexpected`);
}

function missing(name: string) {
  return invalid(`Parameter '${name}' is missing`);
}

function notOne(name: string, value: string) {
  return invalid(`Parameter '${name}' does not accept value '${value}'`);
}
