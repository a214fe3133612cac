import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { describeError } from "../../provider/core/errors.ts";
import { fingerprintOf } from "../../provider/transport/hostKey.ts";
import { createHostPool, type HostPool } from "../../provider/transport/pool.ts";
import type { ConnectionSettings } from "../../provider/transport/types.ts";
import { blobOf, newKey, startServer, type SshServerFixture, type SshServerOptions } from "./sshServer.ts";

const clientKey = newKey();
let directory: string;
let pool: HostPool;
let servers: SshServerFixture[];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "cloudlet-pool-"));
  pool = createHostPool({
    operator: () => ({ home: directory, agentSocketPath: undefined, knownHostsPaths: [join(directory, "known_hosts")] }),
  });
  servers = [];
});

afterEach(async () => {
  await pool.closeAll();
  await Promise.all(servers.map((server) => server.stop()));
  await rm(directory, { recursive: true, force: true });
});

async function server(options: SshServerOptions = {}): Promise<SshServerFixture> {
  const started = await startServer(options);
  servers.push(started);
  return started;
}

const to = ({ port, hostKey }: SshServerFixture, more: Partial<ConnectionSettings> = {}): ConnectionSettings => ({
  host: "127.0.0.1",
  port,
  hostKey,
  privateKey: clientKey.privateKey,
  ...more,
});

async function failure(work: Promise<unknown>): Promise<{ code: string; text: string }> {
  const error: unknown = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  return { code: error instanceof Error && "code" in error ? String(error.code) : "none", text: describeError(error) };
}

describe("logging in", () => {
  it("works with an encrypted key and its passphrase", async () => {
    const key = newKey("ed25519", "open sesame");
    const there = await server({ authorize: (context) => context.method === "publickey" });
    expect(await (await pool.host(to(there, { privateKey: key.privateKey, privateKeyPassword: "open sesame" }))).run("echo in")).toBe(
      "in\n",
    );
  });

  it.each([
    ["no passphrase", {}, /encrypted/],
    ["a wrong passphrase", { privateKeyPassword: "wrong-passphrase" }, /cannot be decrypted/],
  ])("says so where an encrypted key comes with %s", async (_name, more, expected) => {
    const key = newKey("ed25519", "open sesame");
    const { code, text } = await failure(pool.host(to(await server(), { privateKey: key.privateKey, ...more })));
    expect(code).toBe("UNAUTHORIZED");
    expect(text).toMatch(expected);
    expect(text).not.toContain("wrong-passphrase");
  });

  it("works with a password, and with one asked for by keyboard-interactive", async () => {
    for (const method of ["password", "keyboard-interactive"]) {
      const there = await server({
        authorize: (context) => {
          if (context.method !== method) return false;
          if (context.method === "password") return context.password === "canary-secret";
          return true;
        },
      });
      expect(await (await pool.host(to(there, { privateKey: undefined, password: "canary-secret" }))).run("echo in")).toBe("in\n");
    }
  });

  it("refuses a wrong password at once, and no secret is in the error", async () => {
    const there = await server({ authorize: () => false });
    const started = performance.now();
    const { code, text } = await failure(pool.host(to(there, { password: "canary-secret" })));
    expect(code).toBe("UNAUTHORIZED");
    expect(performance.now() - started).toBeLessThan(5000);
    expect(text).toContain(`root@127.0.0.1:${String(there.port)}`);
    expect(text).not.toContain("canary-secret");
    expect(text).not.toContain(clientKey.privateKey.split("\n")[2]);
  });

  it("quotes nothing of a key that cannot be read", async () => {
    const { code, text } = await failure(pool.host(to(await server(), { privateKey: "canary-secret" })));
    expect(code).toBe("UNAUTHORIZED");
    expect(text).not.toContain("canary-secret");
  });

  it("names every way to give a credential where there is none", async () => {
    const { port, hostKey } = await server();
    const { code, text } = await failure(pool.host({ host: "127.0.0.1", port, hostKey }));
    expect(code).toBe("UNAUTHORIZED");
    expect(text).toMatch(/no SSH agent and no identity file.*ssh\/config.*connection\.privateKey/s);
  });
});

describe("the host key", () => {
  it("is taken from known_hosts", async () => {
    const there = await server();
    await writeFile(join(directory, "known_hosts"), `[127.0.0.1]:${String(there.port)} ${there.hostKey}\n`);
    const host = await pool.host(to(there, { hostKey: undefined }));
    expect(host.hostKeyFingerprint).toBe(fingerprintOf(there.hostKeyBlob));
  });

  it("is an error with its fingerprint where it is unknown, before any credential is sent", async () => {
    let asked = false;
    const there = await server({ authorize: () => (asked = true) });
    const { code, text } = await failure(pool.host(to(there, { hostKey: undefined })));
    expect(code).toBe("HOST_KEY");
    expect(text).toContain(fingerprintOf(there.hostKeyBlob));
    expect(asked).toBe(false);
  });

  it("is an error with both fingerprints where it has changed", async () => {
    const there = await server();
    const pinned = blobOf(newKey().privateKey);
    const { code, text } = await failure(pool.host(to(there, { hostKey: pinned.toString("base64") })));
    expect(code).toBe("HOST_KEY");
    expect(text).toContain(fingerprintOf(there.hostKeyBlob));
    expect(text).toContain(fingerprintOf(pinned));
  });

  it("is the pinned one of several that a node has, also by fingerprint alone", async () => {
    const keys = [newKey("ed25519"), newKey("ecdsa"), newKey("rsa")].map((key) => key.privateKey);
    const there = await server({ hostPrivateKeys: keys });
    for (const key of keys) {
      const fingerprint = fingerprintOf(blobOf(key));
      expect((await pool.host(to(there, { hostKey: fingerprint }))).hostKeyFingerprint).toBe(fingerprint);
      expect((await pool.host(to(there, { hostKey: blobOf(key).toString("base64") }))).hostKeyFingerprint).toBe(fingerprint);
    }
  });
});

describe("commands", () => {
  it("keep stdout, stderr and exit code apart, and take standard input", async () => {
    const host = await pool.host(to(await server()));
    expect(await host.exec("cat; echo oops >&2; exit 7", { stdin: "from the program" })).toEqual({
      stdout: "from the program",
      stderr: "oops\n",
      exitCode: 7,
    });
    expect((await host.exec("kill -9 $$")).exitCode).toBe(137);
    expect((await failure(host.run("echo why >&2; exit 3"))).text).toMatch(/exit code 3: why/);
  });

  it.each([
    ["a deadline", "TIMEOUT", {}],
    ["a cancellation", "ABORTED", { signal: true }],
  ])("are killed with their children by %s", async (_name, expected, { signal }: { signal?: boolean }) => {
    const host = await pool.host(to(await server()));
    const file = join(directory, "pids");
    const controller = new AbortController();
    const running = host.exec(`sleep 100 & echo $$ $! > ${file}; echo started; wait`, {
      timeoutMillis: signal ? 30_000 : 1500,
      signal: controller.signal,
      onOutput: () => (signal ? controller.abort() : undefined),
    });
    expect((await failure(running)).code).toBe(expected);
    for (const pid of (await readFile(file, "utf8")).trim().split(" ")) expect(await runs(pid)).toBe(false);
  });

  it("go on after the connection was lost, on a new one", async () => {
    const there = await server();
    const host = await pool.host(to(there));
    const cut = failure(host.exec("echo started; sleep 100", { onOutput: () => there.drop() }));
    expect((await cut).code).toBe("UNREACHABLE");
    expect(await host.run("echo again")).toBe("again\n");
    expect(there.logins).toBe(2);
  });
});

/** A killed process whose parent has not noticed yet does not run. */
async function runs(pid: string): Promise<boolean> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  return text !== "" && !/\) [ZX] /.test(text);
}

describe("the pool", () => {
  it("dials once for twenty who ask at the same time", async () => {
    const there = await server();
    const hosts = await Promise.all(Array.from({ length: 20 }, () => pool.host(to(there))));
    expect(await Promise.all(hosts.map((host, index) => host.run(`echo ${String(index)}`)))).toHaveLength(20);
    expect(there.logins).toBe(1);
  });

  it("closes a connection that nobody uses", async () => {
    const there = await server();
    const quick = createHostPool({
      idleMillis: 20,
      operator: () => ({ home: directory, agentSocketPath: undefined, knownHostsPaths: ["/nowhere"] }),
    });
    const host = await quick.host(to(there));
    await expect.poll(() => there.open(), { timeout: 5000 }).toBe(0);
    expect(await host.run("echo back")).toBe("back\n");
    await quick.closeAll();
  });

  it("says UNREACHABLE with label and attempts where nobody listens", async () => {
    const { code, text } = await failure(pool.host({ host: "127.0.0.1", port: 1, password: "canary-secret", dialErrorLimit: 2 }));
    expect(code).toBe("UNREACHABLE");
    expect(text).toContain("root@127.0.0.1:1 cannot be reached: connection refused (2 attempts)");
    expect(text).not.toContain("canary-secret");
  });

  it("gives up on a silent server after perDialTimeout, and when it is cancelled", async () => {
    const silent = createServer().listen(0, "127.0.0.1");
    await new Promise((resolve) => silent.once("listening", resolve));
    const { port } = silent.address() as AddressInfo;
    const settings = { host: "127.0.0.1", port, password: "x", perDialTimeout: 1, dialErrorLimit: 1 };
    expect((await failure(pool.host(settings))).code).toBe("UNREACHABLE");
    const cancelled = failure(pool.host({ ...settings, perDialTimeout: 60 }, AbortSignal.timeout(50)));
    expect((await cancelled).code).toBe("ABORTED");
    silent.close();
  });
});

describe("upload", () => {
  it("replaces a file with mode and content as told", async () => {
    const host = await pool.host(to(await server()));
    const path = join(directory, "it's here");
    const content = Buffer.alloc(3_000_000, "x");
    await host.upload({ content }, { path, mode: 0o640 });
    expect((await readFile(path)).equals(content)).toBe(true);
    expect((await stat(path)).mode & 0o777).toBe(0o640);
  });

  it("leaves the old file and no temporary where the digest differs", async () => {
    const host = await pool.host(to(await server()));
    const path = join(directory, "file");
    await writeFile(path, "old");
    const digest = createHash("sha256").update("what was meant").digest("hex");
    expect((await failure(host.upload({ content: Buffer.from("something else") }, { path, mode: 0o600, digest }))).code).toBe("INTEGRITY");
    expect(await readFile(path, "utf8")).toBe("old");
    expect(await readdir(directory)).toEqual(["file"]);
  });
});
