import { createHash } from "node:crypto";
import { createReadStream, readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { guestName, paths, type InstanceSpec, type Kind } from "../../provider/agent/protocol.ts";
import type { RemoteHost } from "../../provider/transport/types.ts";
import { buildImages } from "../../tools/images/images.ts";
import { openCommissionBench, type CommissionBench } from "./commissionBench.ts";

const id = "visits/counter";
const owner = "p/s";
const unit = "/etc/systemd/system/cloudlet-agent.service";

describe.each<Kind>(["kvm", "lxd"])("on a bare host with systemd, for %s,", (kind) => {
  let bench: CommissionBench<"gw1">;
  let host: RemoteHost;
  let before: string[] = [];
  const run = (command: string) => bench.lab.hosts.gw1.run(command, { timeoutMillis: 120_000 });
  const state = async () => (await run("systemctl show -p ActiveState --value cloudlet-agent")).trim();

  beforeAll(async () => {
    bench = await openCommissionBench({
      name: `systemd${kind === "kvm" ? "k" : "l"}`,
      hosts: [{ name: "gw1", bare: true, systemd: true }],
    });
    host = await bench.host("gw1");
    before = await bench.inventory("gw1");
  });
  afterAll(() => bench.close());

  it("the agent is a unit that is enabled and runs", async () => {
    expect(await run("systemctl is-system-running")).toBe("running\n");
    await bench.commission.apply(host, { owner, install: "auto", kinds: [kind] }, bench.context);
    expect(await run("systemctl is-enabled cloudlet-agent; systemctl is-active cloudlet-agent")).toBe("enabled\nactive\n");
    expect(await run(`systemd-analyze verify ${unit} 2>&1`)).toBe("");
    expect((await bench.lab.hosts.gw1.exec("test -e /etc/init.d/cloudlet-agent")).exitCode).toBe(1);
    expect(await (await bench.connect("gw1")).facts()).toMatchObject({ systemd: true });
  });

  it("runs a cloudlet that answers", async () => {
    const agent = await bench.connect("gw1");
    const images = await buildImages();
    const image = kind === "kvm" ? images.vm : images.container;
    const digest = createHash("sha256").update(readFileSync(image)).digest("hex");
    await agent.run("hypervisor.apply", { kind, owner });
    await agent.putBlob({ digest, bytes: readFileSync(image).length, stream: () => createReadStream(image) });
    expect(await agent.run("instance.apply", { spec: specOf(kind, digest), fresh: true })).toMatchObject({
      status: "running",
      ready: true,
    });
    expect(await visit()).toBe(1);
  });

  it("an agent that is killed is started again by systemd, every time", async () => {
    const agent = await bench.connect("gw1");
    for (let kill = 1; kill <= 6; kill++) {
      const { startedAt } = await agent.info();
      await run("systemctl kill --kill-who=main -s KILL cloudlet-agent");
      await expect
        .poll(async () => (await agent.info().catch(() => undefined))?.startedAt ?? startedAt, { timeout: 20_000, interval: 50 })
        .not.toBe(startedAt);
    }
    expect(await run("systemctl show -p NRestarts --value cloudlet-agent")).toBe("6\n");
    expect(await visit()).toBe(2);
  });

  it("a restart of the agent leaves the guest alone", async () => {
    const guest = await guestProcess();
    await run("systemctl restart cloudlet-agent");
    await (await bench.connect("gw1")).info();
    expect(await guestProcess()).toBe(guest);
    expect(await visit()).toBe(3);
  });

  it("a stopped agent is noticed, its guest goes on, and the next contact starts it", async () => {
    const guest = await guestProcess();
    await run("systemctl stop cloudlet-agent");
    expect((await bench.commission.observe(host, bench.context))?.problems).toEqual(["the agent is stopped"]);
    expect(await guestProcess()).toBe(guest);
    expect(await visit()).toBe(4);
    await bench.connect("gw1");
    expect(await state()).toBe("active");
  });

  it("agent and cloudlet come back when the host has been shut down and started", async () => {
    const started = performance.now();
    await run("systemctl --no-block reboot");
    await expect.poll(() => bench.lab.hosts.gw1.pids.length, { timeout: 60_000, interval: 100 }).toBe(0);
    expect(performance.now() - started).toBeLessThan(30_000);
    await bench.lab.hosts.gw1.restart();
    await expect.poll(visit, { timeout: 90_000, interval: 200 }).toBe(5);
    expect(await run("systemctl is-active cloudlet-agent")).toBe("active\n");
    expect(await run("systemctl --failed --no-legend --plain")).toBe("");
  });

  it("nothing is left of it after decommissioning", async () => {
    host = await bench.host("gw1");
    const agent = await bench.connect("gw1");
    await agent.run("instance.remove", { id, owner });
    await agent.run("hypervisor.remove", { owner });
    await bench.commission.remove(host, owner, bench.context);
    expect(bench.warnings).toEqual([]);
    expect(await bench.inventory("gw1")).toEqual(before);
    expect(await run("systemctl list-units --all --no-legend --plain 'cloudlet*' 'lxd*'")).toBe("");
    expect(await run("systemctl list-unit-files --no-legend 'cloudlet*'; true")).toBe("");
    expect(await run("systemctl is-system-running")).toBe("running\n");
  });

  async function visit(): Promise<number | undefined> {
    const { stdout } = await bench.lab.hosts.gw1.exec("curl -s -m 2 http://127.0.0.1:8080/");
    const count = /"counter": *(\d+)/.exec(stdout)?.[1];
    return count === undefined ? undefined : Number(count);
  }

  /** Which process the guest is: another one after each start. */
  async function guestProcess(): Promise<string> {
    if (kind === "kvm") return run(`cat ${paths.root}/instances/*/qemu.pid`);
    return run(`curl -s --unix-socket /var/lib/lxd/unix.socket http://lxd/1.0/instances/${guestName(id)}/state | grep -o '"pid":[0-9]*'`);
  }
});

function specOf(kind: Kind, digest: string): InstanceSpec {
  return {
    id,
    owner,
    kind,
    state: "running",
    base: { digest },
    resources: { cores: 1, memoryMib: 192, diskMib: 512 },
    ports: [{ port: 8080, hostPort: 8080, protocol: "tcp" }],
    files: [],
    environment: {},
    volumes: [],
    stateFiles: [],
    ready: { http: { port: 8080, path: "/peek" }, timeoutSeconds: 60 },
  };
}
