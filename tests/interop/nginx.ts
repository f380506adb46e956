/**
 * nginx as a real web server.
 *
 * @module
 */
import { TempDir } from "../qemu.ts";

/** A running nginx, which serves a folder of its own. */
export class Nginx implements AsyncDisposable {
  /** Its URL, without a trailing slash. */
  readonly url: string;
  readonly #folder: TempDir;
  readonly #process: Deno.ChildProcess;

  private constructor(folder: TempDir, port: number) {
    this.#folder = folder;
    this.url = `http://127.0.0.1:${port}`;
    this.#process = new Deno.Command("nginx", {
      args: ["-p", folder.path, "-c", folder.file("nginx.conf")],
      stderr: "null",
    }).spawn();
  }

  /**
   * Start it: `/` supports ranges; `/whole/` does not; `/auth/` asks for `user`
   * and `pass word`; `/gzip/` compresses unless asked not to.
   */
  static async start(): Promise<Nginx> {
    const folder = new TempDir();
    const free = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const { port } = free.addr;
    free.close();
    await Deno.mkdir(folder.file("www"));
    await Deno.chmod(folder.path, 0o755);
    await Deno.writeTextFile(
      folder.file("users"),
      "user:{PLAIN}pass word\n",
    );
    const alias = `alias ${folder.file("www")}/;`;
    await Deno.writeTextFile(
      folder.file("nginx.conf"),
      `
daemon off;
pid ${folder.file("pid")};
error_log ${folder.file("errors")};
events {}
http {
  access_log off;
  client_body_temp_path ${folder.file("temp")};
  proxy_temp_path ${folder.file("temp")};
  fastcgi_temp_path ${folder.file("temp")};
  uwsgi_temp_path ${folder.file("temp")};
  scgi_temp_path ${folder.file("temp")};
  server {
    listen 127.0.0.1:${port};
    root ${folder.file("www")};
    location /whole/ { ${alias} max_ranges 0; }
    location /auth/ {
      ${alias}
      auth_basic "x";
      auth_basic_user_file ${folder.file("users")};
    }
    location /gzip/ { ${alias} gzip on; gzip_types *; }
    location /moved/ { rewrite ^/moved/(.*)$ /$1 redirect; }
  }
}
`,
    );
    const nginx = new Nginx(folder, port);
    for (let tries = 0; tries < 100; tries++) {
      try {
        await (await fetch(`${nginx.url}/none`)).body?.cancel();
        return nginx;
      } catch {
        await new Promise((done) => setTimeout(done, 50));
      }
    }
    await nginx[Symbol.asyncDispose]();
    throw new Error("nginx does not start");
  }

  /** The path of a file to serve. */
  file(name: string): string {
    return this.#folder.file(`www/${name}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGTERM");
    await this.#process.status;
    await this.#folder[Symbol.asyncDispose]();
  }
}
