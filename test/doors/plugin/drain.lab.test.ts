import type { PulumiFn } from "@pulumi/pulumi/automation/index.js";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { MoveReport } from "../../../provider/agent/handoffProtocol.ts";
import { openGateways, type GatewayName, type Gateways } from "../../gateways.ts";

const ports = [8080, 8081, 8082];

let gateways: Gateways;
beforeAll(async () => {
  gateways = await openGateways("drain", { door: "plugin" });
});
afterAll(async () => {
  await gateways?.stack.destroy();
  await gateways?.close();
});

/** Three cloudlets on one gateway, which need not be the only one. */
function program(at: GatewayName, declared: readonly GatewayName[]): PulumiFn {
  const { EdgeCluster, Node, Hypervisor, Cloudlet } = gateways.sdk;
  return async () => {
    const kvm = new Map(
      declared.map((name) => {
        const node = new Node(name, { connection: gateways.lab.hosts[name].connection });
        return [name, new Hypervisor(`kvm-${name}`, { node, kind: "kvm" })] as const;
      }),
    );
    const hypervisor = kvm.get(at);
    if (hypervisor === undefined) throw new Error(`${at} is not declared`);
    const cluster = new EdgeCluster("visits", { application: "visit-counter" });
    const moves = ports.map((hostPort) => {
      const cloudlet = new Cloudlet(`counter-${hostPort}`, {
        cluster,
        hypervisor,
        base: { file: gateways.images.vm },
        resources: { memoryMib: 128 },
        ports: [{ port: 8080, hostPort }],
        stateFiles: ["/var/lib/counter"],
        ready: { http: { port: 8080, path: "/peek" }, timeoutSeconds: 120 },
      });
      return [`moved${hostPort}`, cloudlet.lastMove] as const;
    });
    return Object.fromEntries(moves);
  };
}

describe("a node that is drained", () => {
  it("gives all its cloudlets away while they run, and goes in the same update", async () => {
    const made = await gateways.stack.up(program("gw1", ["gw1", "gw2"]));
    expect(made, made.text).toMatchObject({ ok: true });
    for (const port of ports) for (let count = 1; count <= port - 8079; count++) expect(await gateways.visit("gw1", "/", port)).toBe(count);

    const drained = program("gw2", ["gw2"]);
    const shown = await gateways.stack.preview(drained);
    expect(
      shown.steps.filter(({ op }) => op !== "same").map(({ op, name }) => `${op} ${name}`),
      shown.text,
    ).toEqual(expect.arrayContaining([...ports.map((port) => `update counter-${port}`), "delete kvm-gw1", "delete gw1"]));
    const moved = await gateways.stack.up(drained);
    expect(moved, moved.text).toMatchObject({ ok: true });
    for (const port of ports) {
      expect(moved.outputs[`moved${port}`] as MoveReport).toMatchObject({ mode: "live", from: "gw1", to: "gw2" });
      expect(await gateways.visit("gw2", "/", port)).toBe(port - 8079 + 1);
    }
    expect([await gateways.running("gw1"), await gateways.running("gw2")]).toEqual([0, ports.length]);
    expect(await gateways.lab.hosts.gw1.run("ls -A /var/lib/cloudlet 2>/dev/null; true")).toBe("");
    const again = await gateways.stack.preview(drained);
    expect(
      again.steps.filter(({ op }) => op !== "same"),
      again.text,
    ).toEqual([]);
  });
});
