import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { connectAgent } from "../../provider/agent/connect.ts";
import { createCommission } from "../../provider/agent/install.ts";
import { paths } from "../../provider/agent/protocol.ts";
import type { Commission, Context } from "../../provider/core/context.ts";
import { createHostPool } from "../../provider/transport/pool.ts";
import { restOverSsh } from "../../provider/transport/rest.ts";
import type { RemoteHost } from "../../provider/transport/types.ts";
import { createLab, type Lab } from "../lab/lab.ts";

/** What a decommissioned host must have as before. Caches and logs of dpkg and apt are not anybody's state. */
const inventory = `
find / -xdev \\( -path /proc -o -path /sys -o -path /tmp -o -path /run -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/lib/swcatalog -o -path /var/log \\) -prune -o -print | sort
dpkg-query -W -f='\${db:Status-Status} \${Package}\\n' | grep -Ev '^(config-files|not-installed)' | cut -d' ' -f2 | sort
getent passwd | sort
ip -o link | cut -d: -f2 | sort
command -v nft >/dev/null && nft list ruleset
cat /proc/sys/net/ipv4/ip_forward
ps -eo comm= | grep -Ev '^(ps|sh|grep|sort|cut|sshd|sftp-server)' | sort
`;

describe("commissioning a bare host", () => {
  let lab: Lab<"gw1">;
  let directory = "";
  let commission: Commission;
  let host: RemoteHost;
  let before = "";
  const pool = createHostPool();
  const warnings: string[] = [];
  const statuses: string[] = [];
  const refuse = (): never => {
    throw new Error("commissioning uses nothing else");
  };
  const context: Context = {
    signal: AbortSignal.timeout(500_000),
    status: (text) => void statuses.push(text),
    warn: (text) => void warnings.push(text),
    host: refuse,
    agent: refuse,
    lxd: refuse,
    commission: { apply: refuse, observe: refuse, remove: refuse },
    local: { open: refuse, openDirectory: refuse },
  };

  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), "cloudlet-commission-test-"));
    const bundle = join(directory, "agent.js");
    const entry = join(import.meta.dirname, "../../provider/agent/main.ts");
    await build({
      entryPoints: [entry],
      outfile: bundle,
      bundle: true,
      platform: "node",
      format: "cjs",
      target: "node18",
      define: { "import.meta.dirname": "__dirname" },
      logLevel: "error",
    });
    lab = await createLab({ name: "agentlab", hosts: [{ name: "gw1", bare: true }] });
    commission = createCommission({ bundle });
    host = await pool.host(lab.hosts.gw1.connection, context.signal);
    before = await lab.hosts.gw1.run(inventory);
  });
  afterAll(async () => {
    await pool.closeAll();
    await lab.close();
    rmSync(directory, { recursive: true, force: true });
  });

  const connect = () =>
    connectAgent(host, restOverSsh(host, paths.socket, "agent on gw1"), { ...context, bundle: join(directory, "agent.js") });

  it("finds nothing before, and says so", async () => {
    expect(await commission.observe(host, context)).toBeUndefined();
    await expect(connect()).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it("is refused where packages are missing and may not be installed", async () => {
    await expect(commission.apply(host, { owner: "p/s", install: "never", kinds: ["kvm"] }, context)).rejects.toMatchObject({
      code: "REFUSED",
      message: expect.stringContaining("nftables"),
    });
    expect(await lab.hosts.gw1.run(inventory)).toBe(before);
  });

  it("adds packages, user and agent, and records them", async () => {
    const record = await commission.apply(host, { owner: "p/s", install: "auto", kinds: ["kvm"] }, context);
    expect(record).toMatchObject({ owners: ["p/s"], user: true });
    expect(record.packages).toEqual(expect.arrayContaining(["nftables", "dnsmasq-base", "qemu-system-x86", "qemu-utils"]));
    expect(await commission.observe(host, context)).toEqual({ record, problems: [] });
  });

  it("changes nothing the second time", async () => {
    const agent = await connect();
    const { startedAt } = await agent.info();
    await commission.apply(host, { owner: "p/s", install: "auto", kinds: ["kvm"] }, context);
    expect((await agent.info()).startedAt).toBe(startedAt);
  });

  it("serves facts and a hypervisor through SSH", async () => {
    const agent = await connect();
    expect(await agent.facts()).toMatchObject({ hostname: "gw1", systemd: false });
    expect(await agent.run("hypervisor.apply", { kind: "kvm", owner: "p/s" })).toMatchObject({ kind: "kvm" });
    expect(await lab.hosts.gw1.run("nft list tables; ip -o link show cloudlet0")).toContain("table inet cloudlet");
  });

  it("notices a stopped agent, and starts it at the next contact", async () => {
    await lab.hosts.gw1.run("/etc/init.d/cloudlet-agent stop");
    expect((await commission.observe(host, context))?.problems).toEqual(["the agent is stopped"]);
    expect(await (await connect()).info()).toMatchObject({ protocol: 1 });
  });

  it("an agent that was killed comes back by itself", async () => {
    const agent = await connect();
    const { startedAt } = await agent.info();
    await lab.hosts.gw1.run(`kill -9 "$(cut -d' ' -f1 ${paths.root}/agent.lock)"`);
    await expect
      .poll(async () => (await agent.info().catch(() => undefined))?.startedAt ?? startedAt, { timeout: 20_000, interval: 200 })
      .not.toBe(startedAt);
  });

  it("is shared by stacks, and undone with the last", async () => {
    await commission.apply(host, { owner: "p/other", install: "auto", kinds: [] }, context);
    await commission.remove(host, "p/other", context);
    expect((await commission.observe(host, context))?.record.owners).toEqual(["p/s"]);
    await commission.remove(host, "p/s", context);
    expect(warnings).toEqual([]);
    expect((await lab.hosts.gw1.run(inventory)).split("\n")).toEqual(before.split("\n"));
    expect(await commission.observe(host, context)).toBeUndefined();
  });
});
