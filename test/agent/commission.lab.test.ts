import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { paths } from "../../provider/agent/protocol.ts";
import type { Commission, Context } from "../../provider/core/context.ts";
import type { RemoteHost } from "../../provider/transport/types.ts";
import { openCommissionBench, type CommissionBench } from "./commissionBench.ts";

interface Os {
  id: string;
  version: string;
  name: string;
}

describe("commissioning a bare host", () => {
  let bench: CommissionBench<"gw1">;
  let commission: Commission;
  let context: Context;
  let host: RemoteHost;
  let before: string[] = [];
  const run = (command: string) => bench.lab.hosts.gw1.run(command);
  const connect = () => bench.connect("gw1");
  const callItself = ({ id, version, name }: Os) =>
    run(`printf '%s\\n' ID=${id} VERSION_ID=${version} 'PRETTY_NAME="${name}"' >/etc/os-release`);
  const callItselfDebian = () => run("cp /etc/os-release.before /etc/os-release");

  beforeAll(async () => {
    bench = await openCommissionBench({ name: "agentlab", hosts: [{ name: "gw1", bare: true }] });
    ({ commission, context } = bench);
    host = await bench.host("gw1");
    await run("cp /etc/os-release /etc/os-release.before");
    before = await bench.inventory("gw1");
  });
  afterAll(() => bench.close());

  it("finds nothing before, and says so", async () => {
    expect(await commission.observe(host, context)).toBeUndefined();
    await expect(connect()).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it("is refused on other systems, and nothing is touched", async () => {
    const others = [
      { name: "Ubuntu 23.10", id: "ubuntu", version: "23.10", reason: "not an LTS release" },
      { name: "Ubuntu 20.04", id: "ubuntu", version: "20.04", reason: "older than Ubuntu 22.04" },
      { name: "Debian 11", id: "debian", version: "11", reason: "older than Debian 12" },
      { name: "Fedora 41", id: "fedora", version: "41", reason: "neither Debian nor Ubuntu" },
    ];
    for (const { reason, ...os } of others) {
      await callItself(os);
      const commissioning = commission.apply(host, { owner: "p/s", install: "auto", kinds: ["kvm"] }, context);
      await expect(commissioning).rejects.toMatchObject({ code: "UNSUPPORTED", message: expect.stringContaining(reason) });
    }
    await callItselfDebian();
    expect(await bench.inventory("gw1")).toEqual(before);
  });

  it("is refused where packages are missing and may not be installed", async () => {
    await expect(commission.apply(host, { owner: "p/s", install: "never", kinds: ["kvm"] }, context)).rejects.toMatchObject({
      code: "REFUSED",
      message: expect.stringContaining("nftables"),
    });
    expect(await bench.inventory("gw1")).toEqual(before);
  });

  it("adds packages, user and agent, and records them", async () => {
    const record = await commission.apply(host, { owner: "p/s", install: "auto", kinds: ["kvm"] }, context);
    expect(record).toMatchObject({ owners: ["p/s"], user: true });
    expect(record.packages).toEqual(expect.arrayContaining(["nodejs", "nftables", "dnsmasq-base", "qemu-system-x86", "qemu-utils"]));
    expect(await commission.observe(host, context)).toEqual({ record, problems: [] });
  });

  it("changes nothing the second time", async () => {
    const agent = await connect();
    const { startedAt } = await agent.info();
    await commission.apply(host, { owner: "p/s", install: "auto", kinds: ["kvm"] }, context);
    expect((await agent.info()).startedAt).toBe(startedAt);
  });

  it("the agent runs on the distribution's own Node", async () => {
    const offered = /^v?(\d+)/.exec(await run("dpkg-query -W -f '${Version}' nodejs"))?.[1];
    const running = await run(`/proc/$(cut -d' ' -f1 ${paths.root}/agent.lock)/exe --version`);
    console.log(`Node ${running.trim()}`);
    expect(running).toMatch(new RegExp(`^v${offered}\\.`));
  });

  it("serves facts and a hypervisor through SSH", async () => {
    const agent = await connect();
    expect(await agent.facts()).toMatchObject({ hostname: "gw1", systemd: false });
    expect(await agent.run("hypervisor.apply", { kind: "kvm", owner: "p/s" })).toMatchObject({ kind: "kvm" });
    expect(await run("nft list tables; ip -o link show cloudlet0")).toContain("table inet cloudlet");
  });

  it("notices a stopped agent, and starts it at the next contact", async () => {
    await run("/etc/init.d/cloudlet-agent stop");
    expect((await commission.observe(host, context))?.problems).toEqual(["the agent is stopped"]);
    expect(await (await connect()).info()).toMatchObject({ protocol: 1 });
  });

  it("notices a package that was removed, and installs it again", async () => {
    await run("dpkg --force-depends --purge genisoimage");
    expect((await commission.observe(host, context))?.problems).toEqual(["package genisoimage is not installed"]);
    await commission.apply(host, { owner: "p/s", install: "auto", kinds: [] }, context);
    expect((await commission.observe(host, context))?.problems).toEqual([]);
  });

  it("an agent that was killed comes back by itself", async () => {
    const agent = await connect();
    const { startedAt } = await agent.info();
    await run(`kill -9 "$(cut -d' ' -f1 ${paths.root}/agent.lock)"`);
    await expect
      .poll(async () => (await agent.info().catch(() => undefined))?.startedAt ?? startedAt, { timeout: 20_000, interval: 200 })
      .not.toBe(startedAt);
  });

  it("installs an LXD that answers at once", async () => {
    await commission.apply(host, { owner: "p/s", install: "auto", kinds: ["lxd"] }, context);
    expect(await run("curl -s --unix-socket /var/lib/lxd/unix.socket http://lxd/1.0")).toContain('"status":"Success"');
  });

  it("is shared by stacks, and undone with the last", async () => {
    await commission.apply(host, { owner: "p/other", install: "auto", kinds: [] }, context);
    await commission.remove(host, "p/other", context);
    expect((await commission.observe(host, context))?.record.owners).toEqual(["p/s"]);
    await commission.remove(host, "p/s", context);
    expect(bench.warnings).toEqual([]);
    expect(await bench.inventory("gw1")).toEqual(before);
    expect(await commission.observe(host, context)).toBeUndefined();
  });

  it("takes an Ubuntu LTS as it takes Debian, as far as its name goes", async () => {
    await callItself({ id: "ubuntu", version: "24.04", name: "Ubuntu 24.04 LTS" });
    await commission.apply(host, { owner: "p/s", install: "auto", kinds: [] }, context);
    expect((await commission.observe(host, context))?.problems).toEqual([]);
    expect((await (await connect()).facts()).os.name).toBe("Ubuntu 24.04 LTS");
    await commission.remove(host, "p/s", context);
    await callItselfDebian();
    expect(await bench.inventory("gw1")).toEqual(before);
  });
});
