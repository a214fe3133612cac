import { execFile, spawn } from "node:child_process";
import { createServer } from "node:http";
import { createServer as createTcpServer, connect } from "node:net";
import type { AddressInfo } from "node:net";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createHostPool } from "../../provider/transport/pool.ts";
import { restOverSsh } from "../../provider/transport/rest.ts";
import type { ConnectionSettings, RemoteHost } from "../../provider/transport/types.ts";
import { execute, sshdMissing, startSshd, type RealSshd } from "./realSshd.ts";

const bridgeProgram = `const [, , , path] = process.argv;
const socket = require("node:net").connect(path);
socket.on("error", (error) => { console.error(error.message); process.exit(1); });
process.stdin.pipe(socket).pipe(process.stdout);`;

const sudoUser = `useradd -M -p '*' -s /bin/bash cloudlet-lab
useradd -M -p '*' -s /bin/bash cloudlet-bare
mkdir -p /etc/sudoers.d /var/lib/cloudlet
echo 'cloudlet-lab ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/cloudlet-lab
cat >/var/lib/cloudlet/agent.js <<'END'
${bridgeProgram}
END`;

const reason = sshdMissing();
if (reason !== undefined) console.log(`skipped: ${reason}`);

describe.skipIf(reason !== undefined)("a real sshd", () => {
  let sshd: RealSshd;
  let bastion: RealSshd;
  const pool = createHostPool({ operator: () => sshd.operator });
  const settings = (more: Partial<ConnectionSettings> = {}): ConnectionSettings => ({
    host: "127.0.0.1",
    port: sshd.port,
    hostKey: sshd.hostKey,
    privateKey: sshd.privateKey,
    ...more,
  });

  beforeAll(async () => {
    sshd = await startSshd({ setup: sudoUser });
    bastion = await startSshd();
  });

  afterAll(async () => {
    await pool.closeAll();
    await Promise.all([sshd, bastion].map((server) => server.stop()));
  });

  const users = [
    ["root", {}],
    ["a user with sudo", { user: "cloudlet-lab" }],
  ] as const;

  it.each(users)("runs commands as root for %s", async (_name, more) => {
    const host = await pool.host(settings(more));
    expect(await host.exec("id -u; echo oops >&2; cat; exit 4", { stdin: "in" })).toEqual({
      stdout: "0\nin",
      stderr: "oops\n",
      exitCode: 4,
    });
  });

  it.each(users)("leaves nothing running after a deadline for %s", async (_name, more) => {
    const host = await pool.host(settings(more));
    let output = "";
    const running = host.exec("trap '' TERM; sleep 100 & echo $$ $!; wait; sleep 100", {
      timeoutMillis: 3000,
      onOutput: (chunk) => (output += chunk),
    });
    await expect(running).rejects.toMatchObject({ code: "TIMEOUT" });
    const pids = output.trim().split(" ");
    expect(pids).toHaveLength(2);
    for (const pid of pids) expect(await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "gone Z ")).toMatch(/ Z |gone/);
  });

  it.each(users)("speaks HTTP through a unix socket of root's for %s, requests side by side", async (_name, more) => {
    const path = join(sshd.directory, `web-${String(Math.random()).slice(2)}.sock`);
    const server = createServer((request, response) =>
      request.url === "/slow" ? response.write("first\n") : response.end(`${request.method ?? ""} ${request.url ?? ""}`),
    );
    await new Promise<void>((resolve) => server.listen(path, resolve));
    await execute("chmod", ["600", path]);
    const rest = restOverSsh(await pool.host(settings(more)), path, "web on lab");
    const slow = await rest.request({ method: "GET", path: "/slow" });
    expect(slow.status).toBe(200);
    const answers = await Promise.all(
      ["/a", "/b", "/c"].map(async (url) => text((await rest.request({ method: "POST", path: url, body: { x: 1 } })).body)),
    );
    expect(answers).toEqual(["POST /a", "POST /b", "POST /c"]);
    await rest.close();
    server.closeAllConnections();
    server.close();
    await expect(text(slow.body)).rejects.toMatchObject({ code: "UNREACHABLE" });
  });

  it.each(users)("says that nothing answers at a socket that is not there for %s", async (_name, more) => {
    const rest = restOverSsh(await pool.host(settings(more)), "/nowhere.sock", "agent on lab");
    await expect(rest.request({ method: "GET", path: "/" })).rejects.toMatchObject({
      code: "UNREACHABLE",
      message: expect.stringContaining("/nowhere.sock") as string,
    });
    await rest.close();
  });

  it("says how to allow sudo where a user may not use it", async () => {
    await expect(pool.host(settings({ user: "cloudlet-bare" }))).rejects.toMatchObject({
      code: "UNAUTHORIZED",
      fix: expect.stringContaining("NOPASSWD") as string,
    });
  });

  it("goes through a bastion, and comes back after both connections were lost", async () => {
    const host = await pool.host(
      settings({ proxy: { host: "127.0.0.1", port: bastion.port, hostKey: bastion.hostKey, privateKey: bastion.privateKey } }),
    );
    expect(await host.run("echo through")).toBe("through\n");
    await bastion.drop();
    expect(await host.run("echo again")).toBe("again\n");
  });

  it("verifies the bastion's host key too", async () => {
    const proxy = { host: "127.0.0.1", port: bastion.port, hostKey: sshd.hostKey, privateKey: bastion.privateKey };
    await expect(pool.host(settings({ proxy }))).rejects.toMatchObject({
      code: "HOST_KEY",
      message: expect.stringContaining(`root@127.0.0.1:${String(bastion.port)}`) as string,
    });
  });

  it("uses the operator's ssh configuration, identity file, jump host and known_hosts where no credential is given", async () => {
    await execute("mkdir", ["-p", join(sshd.directory, ".ssh")]);
    const jumpKey = bastion.keyPath;
    await writeFile(
      join(sshd.directory, ".ssh", "config"),
      `Host gw1\n  HostName 127.0.0.1\n  Port ${String(sshd.port)}\n  IdentityFile ${sshd.keyPath}\n  ProxyJump edge\nHost edge\n  HostName localhost\n  Port ${String(bastion.port)}\n  IdentityFile ${jumpKey}\n`,
    );
    await writeFile(
      sshd.operator.knownHostsPaths[0],
      `[127.0.0.1]:${String(sshd.port)} ${sshd.hostKey}\n[localhost]:${String(bastion.port)} ${bastion.hostKey}\n`,
    );
    await execute("ssh-keygen", ["-q", "-H", "-f", sshd.operator.knownHostsPaths[0]]);
    const host = await pool.host({ host: "gw1" });
    expect(host.label).toBe(`root@127.0.0.1:${String(sshd.port)}`);
    expect(await host.run("echo in")).toBe("in\n");
  });

  it("logs in with the keys of an SSH agent", async () => {
    const socket = join(sshd.directory, "agent.sock");
    const agent = spawn("ssh-agent", ["-D", "-a", socket], { stdio: "ignore" });
    await expect.poll(() => readdir(sshd.directory), { timeout: 5000 }).toContain("agent.sock");
    await new Promise<void>((resolve, reject) => {
      execFile("ssh-add", ["-q", sshd.keyPath], { env: { ...process.env, SSH_AUTH_SOCK: socket } }, (error) =>
        error === null ? resolve() : reject(error),
      );
    });
    const host = await pool.host(settings({ privateKey: undefined, agentSocketPath: socket }));
    expect(await host.run("echo in")).toBe("in\n");
    agent.kill();
  });

  it("runs more commands at once than sshd allows sessions", async () => {
    const host = await pool.host(settings());
    expect(await Promise.all(Array.from({ length: 25 }, (_, index) => host.run(`sleep 0.1; echo ${String(index)}`)))).toHaveLength(25);
  });

  it("opens TCP as seen from the node, and listens there", async () => {
    const host: RemoteHost = await pool.host(settings());
    const echo = createTcpServer((socket) => socket.pipe(socket));
    await new Promise<void>((resolve) => echo.listen(0, "127.0.0.1", resolve));
    const stream = await host.openTcp("127.0.0.1", (echo.address() as AddressInfo).port);
    stream.end("there and back");
    expect(await text(stream)).toBe("there and back");
    echo.close();
    const listening = await host.listenTcp((accepted) => accepted.pipe(accepted));
    const client = connect(listening.port, "127.0.0.1");
    client.end("in and out");
    expect(await text(client)).toBe("in and out");
    await listening.close();
  });
});
