import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { graceMillis } from "../../../provider/agent/networkText.ts";
import { guestName } from "../../../provider/agent/protocol.ts";
import { openGateways, type Declaration, type GatewayName, type Gateways } from "../../gateways.ts";

const at = (gateway: GatewayName, change: Partial<Declaration> = {}): Declaration => ({
  gateways: { gw1: { kind: "kvm" }, gw2: { kind: "kvm" } },
  at: gateway,
  ...change,
});
/** The application is published by another port there. */
const elsewhere = { cloudlet: { ports: [{ port: 8080, hostPort: 9090 }] } };
const record = `/var/lib/cloudlet/instances/${guestName("visits/counter")}/record.json`;

describe("a subscriber who still asks where a cloudlet has been", () => {
  let gateways: Gateways;
  beforeAll(async () => {
    gateways = await openGateways("endgw");
    const made = await gateways.up(at("gw1"));
    expect(made, made.text).toMatchObject({ ok: true });
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  const isPassedOn = () =>
    gateways.eventually(async () => {
      const there = await gateways.visit("gw2", "/", 9090);
      expect(there).toBeGreaterThan(0);
      expect(await gateways.visit("gw1")).toBe((there ?? 0) + 1);
    }, 30_000);

  it("gets through to where it is, also after the old node's agent was killed, and after the node has booted again", async () => {
    const before = await gateways.visit("gw1");
    const moved = await gateways.up(at("gw2", elsewhere));
    expect(moved, moved.text).toMatchObject({ ok: true });
    expect(moved.outputs["endpoint"]).toMatch(/:9090$/);
    expect(await gateways.visit("gw1")).toBe((before ?? 0) + 1);
    await gateways.signalAgent("gw1", "KILL");
    await isPassedOn();
    await gateways.lab.hosts.gw1.restart();
    await isPassedOn();
    expect(await gateways.running("gw1")).toBe(0);
  });

  it("does so from the old node itself, too", async () => {
    const { address, exec } = { address: gateways.lab.hosts.gw1.address, exec: gateways.lab.hosts.gw1.exec.bind(gateways.lab.hosts.gw1) };
    expect((await exec(["curl", "-s", "-m", "5", `http://${address}:8080/peek`])).stdout).toContain("counter");
  });

  it("does not any more when the time is over", async () => {
    const { gw1 } = gateways.lab.hosts;
    const { since } = (JSON.parse(await gw1.run(`cat ${record}`)) as { forward: { since: number } }).forward;
    const earlier = Date.now() - graceMillis + 5_000;
    expect(earlier).toBeLessThan(since);
    await gw1.run(`sed -i 's/"since": ${since}/"since": ${earlier}/' ${record}`);
    // an agent that starts makes the rules anew, and nobody touches them after that
    await gw1.run("/etc/init.d/cloudlet-agent restart", { timeoutMillis: 60_000 });
    await gateways.eventually(async () => expect(await gateways.peek("gw1")).toBeUndefined(), 20_000);
    expect(await gateways.peek("gw2", 9090)).toBeGreaterThan(0);
    const { exitCode } = await gateways.lab.hosts.subscriber.exec(["curl", "-s", "-m", "5", `http://${gw1.address}:8080/`]);
    expect(exitCode, "refused, rather than without an answer").toBe(7);
  });

  it("meets the cloudlet itself once it is back, and the other node passes clients on", async () => {
    const moved = await gateways.up(at("gw1"));
    expect(moved, moved.text).toMatchObject({ ok: true });
    const count = (await gateways.visit("gw1")) ?? 0;
    expect(await gateways.visit("gw2", "/", 9090)).toBe(count + 1);
  });

  it("is refused once the cloudlet has been deleted, and meets another one that wants the port", async () => {
    const none = await gateways.up({ gateways: at("gw1").gateways });
    expect(none, none.text).toMatchObject({ ok: true });
    expect(await gateways.peek("gw2", 9090)).toBeUndefined();
    const other = await gateways.up(at("gw2", { cloudlet: { name: "other", ports: [{ port: 8080, hostPort: 9090 }] } }));
    expect(other, other.text).toMatchObject({ ok: true });
    expect(await gateways.visit("gw2", "/", 9090)).toBe(1);
    expect(await gateways.lab.hosts.gw2.run("nft list table inet cloudlet")).not.toContain("passed");
  });
});
