import { readFile } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { guestName } from "../../../provider/agent/protocol.ts";
import type { CloudletArgs } from "../../../sdk/plugin/index.ts";
import type { Outcome } from "../../engine.ts";
import { FaultBench } from "../../faults/bench.ts";
import { openGateways, type GatewayName, type Gateways } from "../../gateways.ts";

const steps = ({ steps: all }: Outcome) => all.filter(({ op }) => op !== "same").map(({ op, name, changed }) => [op, name, ...changed]);

describe("a container that was made with lxc", () => {
  let gateways: Gateways;
  beforeAll(async () => {
    gateways = await openGateways("lxcfor", { lxd: ["gw1", "gw2"], door: "plugin" });
    const { user, privateKey } = gateways.lab.hosts.gw1.connection;
    await gateways.stack.setConfig("cloudlet:connection", JSON.stringify({ user, privateKey }), true);
    await gateways.stack.setConfig("cloudlet:knownHostsFile", gateways.lab.knownHostsPath);
    const made = await gateways.stack.up(program({}));
    expect(made, made.text).toMatchObject({ ok: true });
    await gw1("base64 -d >/tmp/plain.tar.gz", await readFile(gateways.images.container, "base64"));
    await gw1("lxc image import /tmp/plain.tar.gz --alias plain && ip link add plain0 type bridge && ip link set plain0 up");
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  const gw1 = (command: string, stdin?: string) =>
    gateways.lab.hosts.gw1.run(command, { timeoutMillis: 60_000, ...(stdin !== undefined && { stdin }) });
  const containers = (gateway: GatewayName) => gateways.lab.hosts[gateway].run("lxc list -f csv -c ns | sort");
  const idOf = (name: string) => `visits/${name}@gw1/lxd@${gateways.lab.hosts.gw1.address}`;
  const imported = (name: string) => gateways.stack.import([{ type: "cloudlet:index:Cloudlet", name, id: idOf(name) }]);

  /** Both gateways, and these cloudlets. */
  const program = (cloudlets: Record<string, Partial<CloudletArgs> & { at?: GatewayName }>) => () => {
    const { Node, Hypervisor, EdgeCluster, Cloudlet } = gateways.sdk;
    const hypervisors = Object.fromEntries(
      (["gw1", "gw2"] as const).map((name) => {
        const node = new Node(name, { connection: { host: gateways.lab.hosts[name].address } });
        return [name, new Hypervisor(`lxd-${name}`, { node, kind: "lxd" })] as const;
      }),
    );
    const cluster = new EdgeCluster("visits", { application: "visit-counter" });
    for (const [name, { at = "gw1", ...args }] of Object.entries(cloudlets)) {
      const hypervisor = hypervisors[at];
      if (!hypervisor) throw new Error("there are two");
      new Cloudlet(name, { cluster, hypervisor, base: { file: gateways.images.container }, ...args });
    }
    return Promise.resolve({});
  };
  const same = async (wanted: ReturnType<typeof program>) => {
    const shown = await gateways.stack.preview(wanted);
    expect([shown.ok, steps(shown)], shown.text).toEqual([true, []]);
  };

  it(
    "is imported with nothing to update, and keeps its files through its first update, a move and its end",
    { timeout: 300_000 },
    async () => {
      await gw1(
        `lxc launch plain counter -c limits.cpu=1 -c limits.memory=192MiB -c environment.MODE=edge -d root,size=1GiB </dev/null
       lxc config device add counter eth0 nic nictype=bridged parent=plain0 name=eth0
       lxc config device add counter web proxy listen=tcp:0.0.0.0:8080 connect=tcp:127.0.0.1:8080
       lxc exec counter -- sh -c 'echo kept >/root/note'`,
      );
      const before = await gw1("lxc config show counter");
      const args = { resources: { memoryMib: 192, diskMib: 1024 }, environment: { MODE: "edge" }, ports: [{ port: 8080 }] };
      const is = program({ counter: args });

      const first = await imported("counter");
      expect(first, first.text).toMatchObject({ ok: true });
      await same(is);
      const up = await gateways.stack.up(is);
      expect([up.ok, steps(up)], up.text).toEqual([true, []]);
      const refreshed = await gateways.stack.refresh();
      expect(refreshed, refreshed.text).toMatchObject({ ok: true });
      await same(is);
      // whoever only looks changes nothing
      expect(await gw1("lxc config show counter")).toBe(before);
      expect(await gateways.visit("gw1")).toBeGreaterThan(0);

      const instanceId = () => gw1("lxc config get $(lxc list -f csv -c n) volatile.cloud-init.instance-id");
      const firstBoot = await instanceId();
      const changed = program({ counter: { ...args, ports: [{ port: 8080, hostPort: 8081 }] } });
      const preview = await gateways.stack.preview(changed);
      expect(preview.diagnostics).toContain('takes over the container "counter" with all that is in it: it restarts once');
      const updated = await gateways.stack.up(changed);
      expect([updated.ok, steps(updated)], updated.text).toEqual([true, [["update", "counter", "ports[0].hostPort"]]]);
      expect(await gateways.exec(["cat", "/root/note"])).toBe("kept\n");
      expect(await gateways.visit("gw1", "/", 8081)).toBeGreaterThan(0);
      expect(await containers("gw1")).toBe("counter,RUNNING\n");
      // cloud-init takes it for the same instance
      expect(await instanceId()).toBe(firstBoot);
      await same(changed);
      expect(await gateways.stack.refresh()).toMatchObject({ ok: true });
      await same(changed);

      const moved = await gateways.stack.up(program({ counter: { ...args, ports: [{ port: 8080, hostPort: 8081 }], at: "gw2" } }));
      expect([moved.ok, steps(moved)], moved.text).toEqual([true, [["update", "counter", "connection.host", "hypervisor", "nodeAddress"]]]);
      expect(await gateways.exec(["cat", "/root/note"], "gw2")).toBe("kept\n");
      expect([await containers("gw1"), await containers("gw2")]).toEqual(["", `${guestName("visits/counter")},RUNNING\n`]);
      const back = await gateways.stack.up(changed);
      expect(back, back.text).toMatchObject({ ok: true });
      expect(await gateways.exec(["cat", "/root/note"])).toBe("kept\n");
      expect(await containers("gw1")).toBe(`${guestName("visits/counter")},RUNNING\n`);
      expect(await instanceId()).toBe(firstBoot);

      const ended = await gateways.stack.up(program({}));
      expect(ended, ended.text).toMatchObject({ ok: true });
      expect([await containers("gw1"), await containers("gw2")]).toEqual(["", ""]);
      expect(await gw1("lxc image list -f csv -c l")).toBe("plain\n");
    },
  );

  it("moves at once where that is its first update, also where its image has two parts", { timeout: 300_000 }, async () => {
    await gw1(
      `cd $(mktemp -d) && tar xzf /tmp/plain.tar.gz && tar -cJf meta.tar.xz metadata.yaml && mksquashfs rootfs root.squashfs -quiet >/dev/null
       lxc image import meta.tar.xz root.squashfs --alias split
       lxc init split counter </dev/null && lxc config device add counter eth0 nic nictype=bridged parent=plain0 name=eth0
       lxc start counter && lxc exec counter -- sh -c 'echo kept >/root/note'`,
    );
    const digest = (await gw1("lxc image info split | sed -n 's/Fingerprint: //p'")).trim();
    const first = await imported("counter");
    expect(first, first.text).toMatchObject({ ok: true });
    const [found] = (await gateways.stack.state()).filter(({ type }) => type === "cloudlet:index:Cloudlet");
    // without limits it may use all that the node has
    const { cores, memoryMib, diskMib } = found?.inputs?.["resources"] as Record<"cores" | "memoryMib" | "diskMib", number>;
    const args = { base: { digest }, resources: { cores, memoryMib, diskMib } };
    await same(program({ counter: args }));
    const moved = await gateways.stack.up(program({ counter: { ...args, at: "gw2" } }));
    expect([moved.ok, steps(moved)], moved.text).toEqual([true, [["update", "counter", "connection.host", "hypervisor", "nodeAddress"]]]);
    expect(await gateways.exec(["cat", "/root/note"], "gw2")).toBe("kept\n");
    const ended = await gateways.stack.up(program({}));
    expect(ended, ended.text).toMatchObject({ ok: true });
    expect([await containers("gw1"), await containers("gw2")]).toEqual(["", ""]);
  });

  it("is deleted without ever having been updated, and only it", async () => {
    const args = { resources: { memoryMib: 64, diskMib: 64 } };
    for (const name of ["mine", "other"]) {
      await gw1(`lxc launch plain ${name} -c limits.cpu=1 -c limits.memory=64MiB -d root,size=64MiB </dev/null`);
      const first = await imported(name);
      expect(first, first.text).toMatchObject({ ok: true });
    }
    await same(program({ mine: args, other: args }));
    await gw1("lxc delete -f other && lxc init plain other </dev/null");
    const ended = await gateways.stack.up(program({}));
    expect([ended.ok, steps(ended)], ended.text).toEqual([
      true,
      expect.arrayContaining([
        ["delete", "mine"],
        ["delete", "other"],
      ]),
    ]);
    expect(await containers("gw1")).toBe("other,STOPPED\n");
    await gw1("lxc delete other");
  });

  it("is taken over once and whole, at whichever step of that the agent is killed", { timeout: 300_000 }, async () => {
    const args = { resources: { memoryMib: 64, diskMib: 64 } };
    const faults = new FaultBench(gateways, "lxd");
    for (const crashAt of ["record", "taken", "started"]) {
      await gw1(
        `lxc launch plain counter -c limits.cpu=1 -c limits.memory=64MiB -d root,size=64MiB </dev/null
         lxc exec counter -- sh -c 'echo kept >/root/note'`,
      );
      const first = await imported("counter");
      expect(first, first.text).toMatchObject({ ok: true });
      await faults.arm("gw1", { crashAt });
      const starts = await faults.starts("gw1");
      const changed = program({ counter: { ...args, ports: [{ port: 8080 }] } });
      const up = await gateways.stack.up(changed);
      const again = up.ok ? up : await gateways.stack.up(changed);
      expect(again, again.text).toMatchObject({ ok: true });
      expect(await faults.starts("gw1")).toBe(starts + 1);
      expect(await gateways.exec(["cat", "/root/note"])).toBe("kept\n");
      expect(await gateways.visit("gw1")).toBeGreaterThan(0);
      expect(await containers("gw1")).toBe("counter,RUNNING\n");
      await same(changed);
      const ended = await gateways.stack.up(program({}));
      expect(ended, ended.text).toMatchObject({ ok: true });
      expect(await containers("gw1")).toBe("");
    }
  });

  it("is refused with what to do where it cannot be a cloudlet as it is", async () => {
    await gw1("lxc image copy plain local: --alias gone 2>/dev/null; lxc init plain held </dev/null");
    const tried = async (name: string) => (await imported(name)).text.replaceAll(/\s+/g, " ");
    expect(await tried("nowhere")).toContain("does not exist");
    await gw1("mkdir -p /srv/held && lxc config device add held data disk source=/srv/held path=/data");
    expect(await tried("held")).toMatch(/"held" has the device "data" .*`lxc config device remove held data`/);
    await gw1("lxc config device remove held data && lxc config set held user.cloudlet.id=faces/held user.cloudlet.owner=second/dev");
    expect(await tried("held")).toContain('belongs to cloudlet "faces/held" of second/dev; import it as "faces/held" in that stack');
    await gw1("lxc config unset held user.cloudlet.id && lxc image delete plain");
    expect(await tried("held")).toMatch(
      /no longer the image 4.*`lxc publish held --force`.*`lxc config set held volatile.base_image FINGERPRINT`/,
    );
    // what it says helps
    await gw1(
      "lxc publish held --force && lxc config set held volatile.base_image $(lxc image list -f csv -c F | grep -v $(lxc image info split | sed -n 's/Fingerprint: //p'))",
    );
    const first = await imported("held");
    expect(first, first.text).toMatchObject({ ok: true });
    expect(await gateways.stack.up(program({}))).toMatchObject({ ok: true });
    expect(await containers("gw1")).toBe("");
  });

  it("is not overwritten by a cloudlet that is to be made under its name", async () => {
    const name = guestName("visits/counter");
    await gw1(`lxc init split ${name} </dev/null`);
    const refused = await gateways.stack.up(program({ counter: {} }));
    expect(refused.ok).toBe(false);
    expect(refused.text.replaceAll(/\s+/g, " ")).toContain(
      "import it (`pulumi import cloudlet:index:Cloudlet NAME visits/counter@NODE/lxd`)",
    );
    expect(await containers("gw1")).toBe(`${name},STOPPED\n`);
    expect(await gw1(`lxc config show ${name}`)).not.toContain("user.cloudlet");
    const up = await gateways.stack.up(program({}));
    expect(up, up.text).toMatchObject({ ok: true });
    expect(await containers("gw1")).toBe(`${name},STOPPED\n`);
    await gw1(`lxc delete ${name}`);
  });
});
