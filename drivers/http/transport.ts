/**
 * Requests for one object, following redirects.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { fetchOnce, NoConnectionError } from "../../core/remote/fetch.ts";
import {
  discardBody,
  type RangeRequest,
} from "../../core/remote/ranged_object.ts";
import { shortened } from "../../core/values.ts";

/** Most redirects followed for one request. */
const MAX_REDIRECTS = 20;

const REDIRECTS = new Set([301, 302, 303, 307, 308]);

/** Statuses that may only mean that a redirect has expired. */
const EXPIRED = new Set([400, 401, 403, 404, 410]);

/** Sends requests for one object. */
export class Transport {
  readonly #url: URL;
  readonly #headers: Headers;
  readonly #checkRedirect: (url: string) => Promise<void>;
  /** The URL after all redirects. */
  #place: URL;
  /** Whether the server has ever answered. */
  #hasAnswered = false;

  /**
   * @param headers Sent to the origin of `url` only.
   * @param checkRedirect Throws if a redirect may not be followed.
   */
  constructor(
    url: URL,
    headers: Headers,
    checkRedirect: (url: string) => Promise<void>,
  ) {
    this.#url = this.#place = url;
    this.#headers = headers;
    this.#checkRedirect = checkRedirect;
  }

  /** Send a request; see `SendRequest`. */
  readonly send = async (request: RangeRequest): Promise<Response> => {
    if (this.#place !== this.#url) {
      const response = await this.#fetch(this.#place, request);
      const isGone = EXPIRED.has(response.status) ||
        REDIRECTS.has(response.status);
      if (!isGone) return response;
      discardBody(response);
      this.#place = this.#url;
    }
    let at = this.#url;
    for (let count = 0; count <= MAX_REDIRECTS; count++) {
      const response = await this.#fetch(at, request);
      if (response.type === "opaqueredirect") {
        return await this.#followBlindly(at, request);
      }
      if (!REDIRECTS.has(response.status)) {
        if (response.ok) this.#place = at;
        return response;
      }
      discardBody(response);
      at = await this.#follow(at, response);
    }
    throw new BlockError("ELOOP", "The server redirects in circles");
  };

  /** A browser reveals the target of a redirect only after following it. */
  async #followBlindly(from: URL, request: RangeRequest): Promise<Response> {
    if ([...this.#headers].length > 0) {
      throw new BlockError(
        "ENOTSUP",
        "The server redirects, and a browser does not tell where to, so that " +
          "passwords, cookies and headers could go anywhere: give the URL " +
          "that it leads to",
      );
    }
    const response = await this.#fetch(from, request, "follow");
    try {
      await this.#checkRedirect(response.url);
    } catch (error) {
      discardBody(response);
      throw error;
    }
    if (response.ok) this.#place = new URL(response.url);
    return response;
  }

  async #follow(from: URL, { headers }: Response): Promise<URL> {
    const location = headers.get("location");
    let to: URL;
    try {
      to = new URL(location ?? "", from);
    } catch {
      throw wrongRedirect(location ?? "");
    }
    if (location === null || !/^https?:$/.test(to.protocol)) {
      throw wrongRedirect(location ?? "");
    }
    if (from.protocol === "https:" && to.protocol === "http:") {
      throw new BlockError(
        "EACCES",
        `The server redirects to '${to.href}', which is not encrypted as the ` +
          "URL given is",
      );
    }
    to.username = to.password = to.hash = "";
    await this.#checkRedirect(to.href);
    return to;
  }

  async #fetch(
    url: URL,
    { method, headers, signal }: RangeRequest,
    redirect?: "follow",
  ): Promise<Response> {
    const isOurs = url.origin === this.#url.origin;
    try {
      const response = await fetchOnce(url, {
        headers: [...isOurs ? this.#headers : [], ...Object.entries(headers)],
        signal,
        ...(method && { method }),
        ...(redirect && { redirect }),
      });
      this.#hasAnswered = true;
      return response;
    } catch (error) {
      // A server that has answered before may come back.
      if (!(error instanceof NoConnectionError) || this.#hasAnswered) {
        throw error;
      }
      throw new BlockError(error.code, error.message);
    }
  }
}

function wrongRedirect(location: string): BlockError {
  return new BlockError(
    "EIO",
    `The server redirects to '${
      shortened(location)
    }', which cannot be followed`,
  );
}
