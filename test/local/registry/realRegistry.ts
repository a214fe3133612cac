import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort } from "../../freePort.ts";
import { answering } from "../../transport/realSshd.ts";

/** Debian's docker-registry on loopback, with a directory of its own. */
export interface RealRegistry {
  /** `127.0.0.1:PORT` */
  address: string;
  /** Where it keeps its data. */
  directory: string;
  stop(): Promise<void>;
}

/** With `password` it wants the user `pusher` and the password `secret`; `auth` is that section of its configuration. */
export async function startRegistry({
  password = false,
  auth,
}: { password?: boolean; auth?: Record<string, unknown> } = {}): Promise<RealRegistry> {
  const directory = await mkdtemp(join(tmpdir(), "cloudlet-registry-"));
  const port = await freePort();
  // the password `secret`, as bcrypt
  await writeFile(join(directory, "htpasswd"), "pusher:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n");
  const config = {
    version: "0.1",
    log: { level: "error", accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: join(directory, "data") }, delete: { enabled: true } },
    http: { addr: `127.0.0.1:${String(port)}`, relativeurls: true },
    ...(auth && { auth }),
    ...(password && { auth: { htpasswd: { realm: "test", path: join(directory, "htpasswd") } } }),
  };
  // YAML takes JSON as it is
  await writeFile(join(directory, "config.yml"), JSON.stringify(config));
  const server = spawn("docker-registry", ["serve", join(directory, "config.yml")], { stdio: "ignore" });
  await answering(port, "docker-registry");
  return {
    address: `127.0.0.1:${String(port)}`,
    directory: join(directory, "data"),
    async stop() {
      const ended = once(server, "exit");
      server.kill();
      await ended;
      await rm(directory, { recursive: true, force: true });
    },
  };
}
