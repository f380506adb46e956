/**
 * A web server that makes mistakes on demand.
 *
 * @module
 */

/** A request, as it arrived. */
export interface Asked {
  readonly method: string;
  readonly path: string;
  readonly headers: Headers;
  /** The requested range; `end` is exclusive. */
  readonly range?: { readonly start: number; readonly end: number };
  /** How many requests came before. */
  readonly number: number;
}

/** The response, sent verbatim. */
export interface Answer {
  status: number;
  headers: Record<string, string>;
  body: Uint8Array;
  /** Bytes of the body to send before the connection is cut. */
  cutAt?: number;
  /** A delay before anything is sent, in milliseconds. */
  delay?: number;
  /** Whether nothing is ever sent. */
  isSilent?: boolean;
}

/** How to respond; `right` is what a correct server would send. */
export type Respond = (
  asked: Asked,
  right: Answer,
) => Answer | Promise<Answer>;

/** A server that has the same object at every path. */
export class FaultyServer implements AsyncDisposable {
  /** The requests so far. */
  readonly asked: Asked[] = [];
  /** Bytes of bodies sent so far. */
  sent = 0;
  content: Uint8Array;
  etag: string | undefined = '"one"';
  respond: Respond;
  readonly #listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  readonly #connections = new Set<Deno.Conn>();
  readonly #serving: Promise<void>;

  constructor(content: Uint8Array, respond: Respond = (_, right) => right) {
    this.content = content;
    this.respond = respond;
    this.#serving = this.#serve();
  }

  /** Its URL, without a trailing slash. */
  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  get port(): number {
    return (this.#listener.addr as Deno.NetAddr).port;
  }

  async #serve(): Promise<void> {
    const all: Promise<void>[] = [];
    try {
      for await (const connection of this.#listener) {
        this.#connections.add(connection);
        all.push(
          this.#talk(connection).catch(() => {}).finally(() => {
            this.#connections.delete(connection);
            try {
              connection.close();
            } catch {
              // It is closed already.
            }
          }),
        );
      }
    } catch {
      // The connection has been closed.
    }
    await Promise.all(all);
  }

  async #talk(connection: Deno.Conn): Promise<void> {
    let text = "";
    const buffer = new Uint8Array(4096);
    for (;;) {
      const end = text.indexOf("\r\n\r\n");
      if (end < 0) {
        const count = await connection.read(buffer);
        if (count === null) return;
        text += new TextDecoder("latin1").decode(buffer.subarray(0, count));
        continue;
      }
      const asked = this.#parse(text.slice(0, end));
      text = text.slice(end + 4);
      this.asked.push(asked);
      const answer = await this.respond(asked, this.rightAnswer(asked));
      if (answer.isSilent) {
        await connection.read(buffer);
        return;
      }
      if (answer.delay) {
        await new Promise((done) => setTimeout(done, answer.delay));
      }
      if (!await this.#send(connection, asked, answer)) return;
    }
  }

  #parse(text: string): Asked {
    const [first, ...lines] = text.split("\r\n");
    const [method, path] = first.split(" ");
    const headers = new Headers(
      lines.map((line) => line.split(/:\s*(.*)/s, 2) as [string, string]),
    );
    const range = /^bytes=(\d+)-(\d+)$/.exec(headers.get("range") ?? "");
    const number = this.asked.length;
    return {
      method,
      path,
      headers,
      number,
      ...(range && {
        range: { start: Number(range[1]), end: Number(range[2]) + 1 },
      }),
    };
  }

  /** A correct server's response. */
  rightAnswer({ headers: asked, range }: Asked): Answer {
    const { content, etag } = this;
    const headers: Record<string, string> = {
      ...(etag !== undefined && { ETag: etag }),
      "Content-Type": "application/octet-stream",
    };
    const match = asked.get("if-match");
    if (match !== null && match !== etag) {
      return { status: 412, headers, body: new Uint8Array() };
    }
    if (etag !== undefined && asked.get("if-none-match") === etag) {
      return { status: 304, headers, body: new Uint8Array() };
    }
    if (!range) return { status: 200, headers, body: content };
    const { start } = range;
    const end = Math.min(range.end, content.length);
    if (start >= content.length) {
      headers["Content-Range"] = `bytes */${content.length}`;
      return { status: 416, headers, body: new Uint8Array() };
    }
    headers["Content-Range"] = `bytes ${start}-${end - 1}/${content.length}`;
    return { status: 206, headers, body: content.subarray(start, end) };
  }

  /** Whether the connection can be reused. */
  async #send(
    connection: Deno.Conn,
    { method }: Asked,
    { status, headers, body, cutAt }: Answer,
  ): Promise<boolean> {
    const isChunked = headers["Transfer-Encoding"] === "chunked";
    const lines = [
      `HTTP/1.1 ${status} Whatever`,
      ...Object.entries({
        ...(!isChunked && status !== 304 &&
          { "Content-Length": `${body.length}` }),
        ...headers,
      }).filter(([, value]) => value !== "").map(([name, value]) =>
        `${name}: ${value}`
      ),
    ];
    await write(connection, encoder.encode(`${lines.join("\r\n")}\r\n\r\n`));
    if (method === "HEAD") return true;
    const part = body.subarray(0, cutAt);
    this.sent += part.length;
    if (isChunked) {
      for (let at = 0; at < part.length; at += 10_000) {
        const chunk = part.subarray(at, at + 10_000);
        const size = encoder.encode(`${chunk.length.toString(16)}\r\n`);
        const end = encoder.encode("\r\n");
        await write(connection, new Uint8Array([...size, ...chunk, ...end]));
      }
      if (cutAt === undefined) {
        await write(connection, encoder.encode("0\r\n\r\n"));
      }
    } else {
      await write(connection, part);
    }
    return cutAt === undefined && headers["Content-Length"] === undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close();
    for (const connection of this.#connections) {
      try {
        connection.close();
      } catch {
        // It is closed already.
      }
    }
    await this.#serving;
  }
}

const encoder = new TextEncoder();

async function write(connection: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += await connection.write(bytes.subarray(done));
  }
}

/** Bytes in which no two aligned words are equal. */
export function numbered(length: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(Math.ceil(length / 4)).map((_, at) =>
    Math.imul(at + 1, 2654435761)
  );
  return new Uint8Array(words.buffer, 0, length);
}
