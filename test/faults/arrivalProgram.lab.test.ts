import { existsSync, readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { PulumiFn } from "@pulumi/pulumi/automation/index.js";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { paths } from "../../provider/agent/protocol.ts";
import type { Provision } from "../../provider/agent/protocol.ts";
import type { Outcome } from "../engine.ts";
import { openGateways } from "../gateways.ts";
import type { GatewayName, Gateways } from "../gateways.ts";
import { FaultBench, killProgram } from "./bench.ts";

const shaped = { mbit: 40 };

/** The real engine; the gateways reach each other through the operator alone. */
describe("an overlay that comes through the operator", () => {
  let gateways: Gateways;
  let faults: FaultBench;
  let overlay = "";

  beforeAll(async () => {
    gateways = await openGateways("arrprog");
    faults = new FaultBench(gateways, "kvm");
    await gateways.lab.cutBetween("gw1", "gw2");
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  const program =
    (at: GatewayName[]): PulumiFn =>
    async () => {
      const { BaseImage, Cloudlet, EdgeCluster, Hypervisor, Node, Overlay } = gateways.sdk;
      const hypervisorOn = (name: GatewayName) => {
        const { host, privateKey, hostKey, user } = gateways.lab.hosts[name].connection;
        const node = new Node(name, { connection: { host, privateKey, hostKey, user } });
        return new Hypervisor(`kvm-${name}`, { node, kind: "kvm" });
      };
      const [gw1, gw2] = [hypervisorOn("gw1"), hypervisorOn("gw2")];
      const ready = { http: { port: 8080, path: "/peek" }, timeoutSeconds: 60 };
      const base = new BaseImage("counter-base", { file: gateways.images.vm, nodes: [gw1, gw2] });
      const made = new Overlay("counter", { base, builder: gw1, resources: { memoryMib: 192 }, ready });
      const cluster = new EdgeCluster("visits", { application: "visit-counter" });
      const cloudlets = at.map(
        () => new Cloudlet("counter", { cluster, hypervisor: gw2, base, overlay: made, ports: [{ port: 8080 }], ready }),
      );
      return { overlay: made.digest, provisions: cloudlets.map(({ provision }) => provision) };
    };
  const up = (at: GatewayName[]): Promise<Outcome> => gateways.stack.up(program(at));
  const inside = (gateway: GatewayName, path: string): string =>
    `/proc/${String(gateways.lab.hosts[gateway].pids[0])}/root${paths.root}/${path}`;
  const list = (gateway: GatewayName, path: string): string[] => readdirSync(inside(gateway, path));

  async function mustUp(at: GatewayName[]): Promise<Provision | undefined> {
    const outcome = await up(at);
    expect(outcome, outcome.text).toMatchObject({ ok: true });
    overlay = outcome.outputs["overlay"] as string;
    return (outcome.outputs["provisions"] as Provision[])[0];
  }

  /** Kills the engine, and all that it started, as soon as something is so on a gateway. */
  async function upKilledWhen(at: GatewayName[], so: () => boolean): Promise<void> {
    const ending = up(at);
    let outcome: Outcome | undefined;
    void ending.then((it) => (outcome = it));
    for (; !so(); await sleep(10)) if (outcome !== undefined) throw new Error(`it ended before it was killed: ${outcome.text}`);
    expect(killProgram()).toBeGreaterThan(1);
    expect((await ending).ok).toBe(false);
    faults.unlock();
  }

  it("is built to its end though the program was killed, and the next run has it", async () => {
    await upKilledWhen([], () => existsSync(inside("gw1", "builds")) && list("gw1", "builds").some((name) => name.startsWith("build-")));
    await mustUp([]);
    expect(list("gw1", "builds")).toEqual([]);
    expect(list("gw1", "layers")).toEqual([overlay]);
  });

  it("lets the cloudlet answer before it has come, and is needed no more afterwards", async () => {
    await gateways.lab.shape("gw2", shaped);
    expect(await mustUp(["gw2"])).toMatchObject({ rung: "lazy", verified: true });
    expect(await gateways.visit("gw2")).toBeGreaterThan(0);
    await gateways.lab.shape("gw2", {});
    await mustUp([]);
    expect(list("gw2", "layers")).toEqual([]);
  });
});
