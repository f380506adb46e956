/**
 * Secrets in URLs: passwords, and queries that are signed or hold a token. They
 * are left out of messages and never written into images.
 *
 * @module
 */

/** A URL of a protocol that may have such secrets, wherever it is in a text. */
const URLS = /\b((?:https?|ftps?|s3):\/\/)([^\s"'\\<>]*)/gi;

/** Names of parameters that authorise whoever has them. */
const SECRET_NAME =
  /sig|token|key|secret|pass|pwd|auth|cred|hmac|hash|md5|jwt|session|ticket|policy|code/i;

/** Values that look as if a machine had made them up. */
const RANDOM_VALUE = /^(?=.*\d)(?=.*[a-z])[\w~+=%-]{20,}$/i;

/** `text` with the secrets of all URLs in it replaced by asterisks. */
export function withoutSecrets(text: string): string {
  if (!text.includes("://")) return text;
  return text.replace(URLS, (_, scheme: string, rest: string) => {
    const [, authority, path, query, end] = partsOf(rest);
    const at = authority.lastIndexOf("@");
    const user = at < 0 ? "" : "***@";
    return scheme + user + authority.slice(at + 1) + path +
      (isSecretQuery(query) ? queryWithoutValues(query) : query) + end;
  });
}

/** Whether a file name, or the description of a stack, has such secrets. */
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
