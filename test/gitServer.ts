import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:https";
import type { IncomingMessage, ServerResponse } from "node:http";
import { join } from "node:path";
import { promisify } from "node:util";

const execute = promisify(execFile);
const name = "git.example.net";
const address = "127.0.43.1";
const systemTrusts = "/etc/ssl/certs/ca-certificates.crt";

export interface GitServer {
  /** Its repository; there is one tag, of this version. */
  url: string;
  /** A command that finds the server by its name, and trusts it. */
  reaching(command: string[]): { command: string[]; env: Record<string, string> };
  close(): void;
}

/** The work tree as it is, committed and tagged, on a git server such as Pulumi takes packages from: https, a dot in its name, no port. */
export async function serveRepository(folder: string, workTree: string, version: string): Promise<GitServer> {
  const path = "pulumi-cloudlet/pulumi-cloudlet.git";
  const git = (...args: string[]) =>
    execute("git", [`--git-dir=${join(folder, path)}`, `--work-tree=${workTree}`, ...args], { timeout: 60_000 });
  await execute("git", ["init", "-q", "--bare", "--initial-branch=main", join(folder, path)], { timeout: 60_000 });
  await git("add", "--all", ".");
  await git("-c", "user.name=test", "-c", "user.email=test@example.net", "commit", "-q", "-m", "As it is");
  await git("tag", `v${version}`);
  const { key, certificate } = await certify(folder);
  const tls = { key: await readFile(key), cert: await readFile(certificate) };
  const server = createServer(tls, (request, response) => answer(folder, request, response));
  await once(server.listen(443, address), "listening");
  const [hosts, trusted] = [join(folder, "hosts"), join(folder, "trusted.crt")];
  await writeFile(hosts, `127.0.0.1 localhost\n${address} ${name}\n${await readFile("/etc/hosts", "utf8")}`);
  await writeFile(
    trusted,
    `${await readFile(process.env["SSL_CERT_FILE"] ?? systemTrusts, "utf8")}\n${await readFile(certificate, "utf8")}`,
  );
  // in a mount namespace of its own, this machine keeps its names
  const finding = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts];
  return {
    url: `https://${name}/${path}`,
    reaching: (command) => ({ command: [...finding, ...command], env: { SSL_CERT_FILE: trusted } }),
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

async function certify(folder: string): Promise<{ key: string; certificate: string }> {
  const [key, certificate] = [join(folder, "server.key"), join(folder, "server.crt")];
  const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", `/CN=${name}`];
  const files = ["-addext", `subjectAltName=DNS:${name}`, "-keyout", key, "-out", certificate];
  await execute("openssl", ["req", "-x509", ...kind, ...files], { timeout: 30_000 });
  return { key, certificate };
}

/** One request by the rules of CGI. */
function answer(folder: string, request: IncomingMessage, response: ServerResponse): void {
  const { pathname, search } = new URL(request.url ?? "/", `https://${name}`);
  const child = spawn("git", ["http-backend"], {
    env: {
      PATH: process.env["PATH"],
      GIT_PROJECT_ROOT: folder,
      GIT_HTTP_EXPORT_ALL: "1",
      REQUEST_METHOD: request.method,
      PATH_INFO: decodeURIComponent(pathname),
      QUERY_STRING: search.slice(1),
      CONTENT_TYPE: request.headers["content-type"] ?? "",
      HTTP_CONTENT_ENCODING: request.headers["content-encoding"] ?? "",
      GIT_PROTOCOL: String(request.headers["git-protocol"] ?? ""),
    },
    stdio: ["pipe", "pipe", "inherit"],
    timeout: 60_000,
  });
  request.pipe(child.stdin);
  child.stdin.on("error", () => undefined);
  let head = Buffer.alloc(0);
  child.stdout.on("data", function read(chunk: Buffer) {
    head = Buffer.concat([head, chunk]);
    const end = head.indexOf("\r\n\r\n");
    if (end < 0) return;
    child.stdout.off("data", read);
    for (const line of head.subarray(0, end).toString().split("\r\n")) {
      const [name = "", value = ""] = line.split(/: (.*)/s);
      if (name === "Status") response.statusCode = Number.parseInt(value);
      else response.setHeader(name, value);
    }
    response.write(head.subarray(end + 4));
    child.stdout.pipe(response);
  });
  child.on("close", () => response.end());
}
