/**
 * Secrets in names and descriptions: passwords in URLs, queries that are signed
 * or hold a token, cookies, headers, keys. Messages leave them out, and they
 * are never written into images.
 *
 * @module
 */

/**
 * A URL in a text: what precedes its `@`, which may contain spaces and quotes
 * if the URL is malformed, and the rest.
 */
const URLS =
  /\b([a-z][a-z\d+.-]*:\/\/)((?:[^\s/?#"'\\<>]|[ '](?=\w))*@)?([^\s"'\\<>]*)/gi;

/**
 * Protocols whose queries may hold credentials, and whose user may be a token.
 */
const WEB = /^(?:https?|ftps?|s3):/i;

/** Driver options that are secrets: in JSON, and as a list. */
const SECRET_IN_JSON =
  /("(?:[\w.-]*\.)?(?:cookie|headers(?:\.[\w-]+)?)"\s*:\s*)(?:"(?:[^"\\]|\\.)*"|\{[^}]*\})/gi;
const SECRET_IN_LIST =
  /((?:^|[\s,'.])(?:cookie|headers\.[\w-]+)=)(?:[^,'\n]|,,)+/gi;

/** The key of a Ceph user, in the name of an image. */
const CEPH_KEY = /(\brbd:[^\s'"]*?:key=)[^:\s'",]+/g;

/** Names of parameters that hold credentials. */
const SECRET_NAME =
  /sig|token|key|secret|pass|pwd|auth|cred|hmac|hash|md5|jwt|session|ticket|policy|code/i;

/** Values that look random. */
const RANDOM_VALUE = /^(?=.*\d)(?=.*[a-z])[\w~+=%-]{20,}$/i;

/**
 * `text` with its secrets replaced by asterisks: those in URLs, and the values
 * of secret options.
 */
export function withoutSecrets(text: string): string {
  if (/cookie|headers/i.test(text)) {
    text = text.replace(SECRET_IN_JSON, '$1"***"')
      .replace(SECRET_IN_LIST, "$1***");
  }
  if (text.includes("rbd:")) text = text.replace(CEPH_KEY, "$1***");
  if (!text.includes("://")) return text;
  return text.replace(URLS, (_, scheme: string, user = "", rest: string) => {
    const isWeb = WEB.test(scheme);
    // In other protocols, and in prose, a user name without a password is no
    // secret.
    const isPlain = isWeb && !/[ ']/.test(user);
    const isSecret = user !== "" && (isPlain || user.includes(":"));
    const [, host, path, query, end] = partsOf(rest);
    return scheme + (isSecret ? "***@" : user) + host + path +
      (isWeb && isSecretQuery(query) ? queryWithoutValues(query) : query) + end;
  });
}

/** Whether a file name or the description of a stack contains such secrets. */
export function hasSecrets(name: string): boolean {
  return withoutSecrets(name) !== name;
}

function partsOf(rest: string): string[] {
  return /^([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?$/s.exec(rest)!
    .map((part) => part ?? "");
}

function parametersOf(query: string): string[] {
  return query.slice(1).split("&");
}

function isSecretQuery(query: string): boolean {
  return parametersOf(query).some((parameter) => {
    const equals = parameter.indexOf("=");
    const name = equals < 0 ? "" : parameter.slice(0, equals);
    const value = parameter.slice(equals + 1);
    if (value === "***" || value === "") return false;
    return SECRET_NAME.test(name) || RANDOM_VALUE.test(value);
  });
}

function queryWithoutValues(query: string): string {
  return "?" + parametersOf(query).map((parameter) => {
    const equals = parameter.indexOf("=");
    return equals < 0 ? "***" : parameter.slice(0, equals + 1) + "***";
  }).join("&");
}
