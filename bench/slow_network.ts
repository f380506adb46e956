/**
 * A web server behind a slow network, as a process of its own: it serves the
 * files of a folder through a proxy with a round trip of 20 ms, and 400 Mbit/s
 * shared by all connections.
 *
 * Usage: `deno run -A bench/slow_network.ts FOLDER`; prints the URLs of the
 * proxy and of the server. `GET /statistics` returns the number of requests and
 * of bytes since it was last asked.
 *
 * @module
 */

/** One-way latency, in milliseconds. */
const DELAY = 10;
/** Bytes a second, shared by all connections. */
export const RATE = 400e6 / 8;
/** The round-trip time, in milliseconds. */
export const ROUND_TRIP = 2 * DELAY;

const counted = { requests: 0, bytes: 0 };

async function serveFile(folder: string, request: Request): Promise<Response> {
  const { pathname } = new URL(request.url);
  if (pathname === "/statistics") {
    const answer = Response.json(counted);
    counted.requests = counted.bytes = 0;
    return answer;
  }
  counted.requests++;
  const file = await Deno.open(folder + pathname);
  const { size, mtime } = await file.stat();
  const etag = `"${size}-${mtime?.getTime()}"`;
  const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(
    request.headers.get("range") ?? "",
  ) ?? [];
  if (request.headers.get("if-none-match") === etag) {
    file.close();
    return new Response(null, { status: 304, headers: { etag } });
  }
  const start = Number(from ?? 0);
  const end = Math.min(to ? Number(to) + 1 : size, size);
  await file.seek(start, Deno.SeekMode.Start);
  let rest = end - start;
  counted.bytes += rest;
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      const bytes = new Uint8Array(Math.min(rest, 256 * 1024));
      const count = rest > 0 ? await file.read(bytes) ?? 0 : 0;
      rest -= count;
      if (count > 0) controller.enqueue(bytes.subarray(0, count));
      if (rest > 0 && count > 0) return;
      controller.close();
      file.close();
    },
    cancel: () => file.close(),
  });
  const headers = {
    etag,
    "accept-ranges": "bytes",
    "content-length": `${end - start}`,
    ...(from && { "content-range": `bytes ${start}-${end - 1}/${size}` }),
  };
  return new Response(request.method === "HEAD" ? null : body, {
    status: from ? 206 : 200,
    headers,
  });
}

/** When the line is next idle, in milliseconds. */
let free = 0;

/** Forward bytes, as late as the network would deliver them. */
async function pump(
  from: Deno.Conn,
  to: Deno.Conn,
  isLimited: boolean,
): Promise<void> {
  const queue: { bytes: Uint8Array; due: number }[] = [];
  let wake = () => {};
  let isEnd = false;
  const sending = (async () => {
    for (;;) {
      const next = queue.shift();
      if (!next) {
        if (isEnd) return await to.closeWrite().catch(() => {});
        await new Promise<void>((resolve) => wake = resolve);
        continue;
      }
      const wait = next.due - performance.now();
      if (wait > 0) await new Promise((done) => setTimeout(done, wait));
      for (let done = 0; done < next.bytes.length;) {
        done += await to.write(next.bytes.subarray(done));
      }
    }
  })();
  try {
    const buffer = new Uint8Array(64 * 1024);
    for (;;) {
      const count = await from.read(buffer);
      if (count === null) break;
      const now = performance.now();
      if (isLimited) free = Math.max(free, now) + count / RATE * 1000;
      const due = (isLimited ? free : now) + DELAY;
      queue.push({ bytes: buffer.slice(0, count), due });
      wake();
      // The line is full: take no more from the sender until there is room.
      const ahead = free - now - DELAY;
      if (isLimited && ahead > 0) {
        await new Promise((done) => setTimeout(done, ahead));
      }
    }
  } catch {
    // The peer has closed its end.
  }
  isEnd = true;
  wake();
  await sending.catch(() => {});
}

async function proxy(listener: Deno.TcpListener, port: number): Promise<void> {
  for await (const client of listener) {
    const server = await Deno.connect({ port });
    client.setNoDelay();
    server.setNoDelay();
    Promise.all([pump(client, server, false), pump(server, client, true)])
      .finally(() => {
        for (const end of [client, server]) {
          try {
            end.close();
          } catch {
            // It is closed already.
          }
        }
      });
  }
}

if (import.meta.main) {
  const [folder] = Deno.args;
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    (request) =>
      serveFile(folder, request).catch(() =>
        new Response(null, { status: 404 })
      ),
  );
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const url = (port: number) => `http://127.0.0.1:${port}`;
  console.log(url(listener.addr.port), url(server.addr.port));
  await proxy(listener, server.addr.port);
}
