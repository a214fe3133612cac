import { existsSync, readFileSync, readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { PulumiFn } from "@pulumi/pulumi/automation/index.js";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { guestName, paths } from "../../provider/agent/protocol.ts";
import type { Provision } from "../../provider/agent/protocol.ts";
import type { Outcome } from "../engine.ts";
import { openGateways } from "../gateways.ts";
import type { GatewayName, Gateways } from "../gateways.ts";
import { FaultBench, killProgram } from "./bench.ts";

const shaped = { mbit: 20 };

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

  it("stands still where it is when the program is killed: the cloudlet is held, and the next run brings the rest", async () => {
    await gateways.lab.shape("gw2", shaped);
    const arriving = inside("gw2", `layers/${overlay}/hydrate.status.json`);
    const present = () => (existsSync(arriving) ? (JSON.parse(readFileSync(arriving, "utf8")) as { present: number }).present : 0);
    const launched = inside("gw2", `instances/${guestName("visits/counter")}/launch.json`);
    const ran = () => existsSync(launched) && readFileSync(launched, "utf8").includes('"ran":true');
    await upKilledWhen(["gw2"], () => ran() && present() > 4e6);
    const ask = `curl -s -m 5 --unix-socket ${paths.socket} http://agent/v1/instances`;
    const told = async () => JSON.parse(await gateways.lab.hosts.gw2.run(ask)) as unknown;
    await gateways.eventually(async () => expect(await told()).toMatchObject([{ ready: false, hydration: { state: "waiting" } }]), 30_000);
    expect(await gateways.running("gw2")).toBe(1);
    expect(await gateways.peek("gw2")).toBeUndefined();
    console.log(`held with ${(present() / 1e6).toFixed(1)} MB here`);

    expect(await mustUp(["gw2"])).toMatchObject({ rung: "lazy", verified: true });
    expect(await gateways.visit("gw2")).toBeGreaterThan(0);
    await gateways.lab.shape("gw2", {});
    await mustUp([]);
    expect(list("gw2", "layers")).toEqual([]);
  });
});
