import type { PulumiFn } from "@pulumi/pulumi/automation/index.js";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Outcome } from "../../engine.ts";
import { openGateways, watchSubscriber, type Declaration, type GatewayName, type Gateways } from "../../gateways.ts";

const empty: Declaration = { gateways: { gw1: { kind: "kvm" }, gw2: { kind: "kvm" } } };
const at = (gateway: GatewayName): Declaration => ({ ...empty, at: gateway });

describe("a run that is interrupted", () => {
  let gateways: Gateways;
  beforeAll(async () => {
    gateways = await openGateways("plugstop", { door: "plugin" });
    const made = await gateways.up(empty);
    expect(made, made.text).toMatchObject({ ok: true });
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  /** Ctrl-C as soon as this holds, and how long the run went on after it. */
  const interrupted = async (program: PulumiFn, begun: () => Promise<void>): Promise<Outcome & { afterMillis: number }> => {
    const interrupt = new AbortController();
    const watching = gateways.eventually(begun, 60_000).then(() => {
      interrupt.abort();
      return performance.now();
    });
    const [cut, at] = await Promise.all([gateways.stack.up(program, interrupt.signal), watching]);
    return { ...cut, afterMillis: Math.round(performance.now() - at) };
  };
  /** Beside the gateways, an overlay that is built on the first one. */
  const building = async () => {
    await gateways.program(empty)();
    const { connection, address } = gateways.lab.hosts.gw1;
    const { host, privateKey, hostKey, user } = connection;
    const ready = { http: { port: 8080, path: "/peek" }, timeoutSeconds: 60 };
    const how = { builder: "gw1/kvm", connection: { host, privateKey, hostKey, user }, nodeAddress: address, ready };
    return {
      digest: new gateways.sdk.Overlay("app", { base: { file: gateways.images.vm }, resources: { memoryMib: 192 }, ...how }).digest,
    };
  };
  const running = async () => [await gateways.running("gw1"), await gateways.running("gw2")];
  const kept = async () => (await gateways.stack.state()).find(({ type }) => type === "cloudlet:index:Cloudlet");

  it("while an image is on its way: the id is kept, and nothing is made", async () => {
    await gateways.lab.shape("gw1", { mbit: 8 });
    const before = await gateways.lab.bytesReceived("gw1");
    const cut = await interrupted(gateways.program(at("gw1")), async () =>
      expect((await gateways.lab.bytesReceived("gw1")) - before).toBeGreaterThan(3e6),
    );
    expect(cut.ok).toBe(false);
    expect(cut.afterMillis).toBeLessThan(15_000);
    expect(cut.diagnostics).toMatch(/run the same command again|run `pulumi up` again/);
    expect(await kept()).toMatchObject({ id: "visits/counter" });
    expect(await running()).toEqual([0, 0]);
    await gateways.lab.shape("gw1", {});
  });

  it("while it waits for the application: it is kept, and up goes on with it", async () => {
    const cut = await interrupted(gateways.program(at("gw1")), async () => expect(await gateways.running("gw1")).toBe(1));
    expect(cut.ok).toBe(false);
    expect(cut.afterMillis).toBeLessThan(15_000);
    expect((await kept())?.initErrors).toHaveLength(1);
    const resumed = await gateways.up(at("gw1"));
    expect(resumed, resumed.text).toMatchObject({ ok: true });
    expect(await running()).toEqual([1, 0]);
    expect(await gateways.visit("gw1")).toBeDefined();
    expect(await gateways.preview(at("gw1"))).toMatchObject({ ok: true, steps: [] });
  });

  it("by its customTimeouts, while it is made: the same, and the message says so", async () => {
    const gone = await gateways.up(empty);
    expect(gone, gone.text).toMatchObject({ ok: true });
    const declared: Declaration = { ...at("gw1"), cloudlet: { ready: { tcp: 9999 } }, timeouts: { create: "3s" } };
    const late = await gateways.up(declared);
    expect(late.ok).toBe(false);
    expect(late.diagnostics).toContain(
      'creating "counter" took longer than the 3 s that its customTimeouts allow; run the same command again',
    );
    expect(await kept()).toMatchObject({ id: "visits/counter" });
    const resumed = await gateways.up(at("gw1"));
    expect(resumed, resumed.text).toMatchObject({ ok: true });
    expect(await running()).toEqual([1, 0]);
  });

  it("while it moves: it runs on where it was, and up moves it", async () => {
    await gateways.lab.shape("gw1", { mbit: 10 });
    const before = await gateways.lab.bytesSent("gw1");
    const watcher = watchSubscriber(gateways);
    const cut = await interrupted(gateways.program(at("gw2")), async () =>
      expect((await gateways.lab.bytesSent("gw1")) - before).toBeGreaterThan(2e6),
    );
    expect(cut.ok).toBe(false);
    expect(cut.afterMillis).toBeLessThan(15_000);
    await gateways.eventually(async () => expect(await running()).toEqual([1, 0]), 20_000);
    expect(await gateways.peek("gw1")).toBeDefined();
    await gateways.lab.shape("gw1", {});
    const moved = await gateways.up(at("gw2"));
    expect(moved, moved.text).toMatchObject({ ok: true });
    expect((await watcher.stop()).wentBack).toEqual([]);
    expect(await running()).toEqual([0, 1]);
    expect(await gateways.preview(at("gw2"))).toMatchObject({ ok: true, steps: [] });
  });

  it("by its customTimeouts, while it moves: the same, and the message says so", async () => {
    // gw1 has kept what the cloudlet was when it left
    await gateways.exec(["sh", "-c", "dd if=/dev/urandom of=/dev/shm/new bs=1M count=16 2>/dev/null"], "gw2");
    await gateways.lab.shape("gw2", { mbit: 10 });
    const late = await gateways.up({ ...at("gw1"), timeouts: { update: "4s" } });
    expect(late.ok).toBe(false);
    expect(late.diagnostics).toContain("longer than the 4 s that its customTimeouts allow");
    await gateways.eventually(async () => expect(await running()).toEqual([0, 1]), 20_000);
    await gateways.lab.shape("gw2", {});
    const moved = await gateways.up(at("gw1"));
    expect(moved, moved.text).toMatchObject({ ok: true });
    expect(await running()).toEqual([1, 0]);
  });

  it("while an overlay is built: its guest is gone, and up builds it", async () => {
    const gone = await gateways.up(empty);
    expect(gone, gone.text).toMatchObject({ ok: true });
    const cut = await interrupted(building, async () => expect(await gateways.running("gw1")).toBe(1));
    expect(cut.ok).toBe(false);
    expect(cut.afterMillis).toBeLessThan(15_000);
    expect(cut.diagnostics).toContain("run the same command again to continue");
    expect((await gateways.stack.state()).find(({ type }) => type === "cloudlet:index:Overlay")).toMatchObject({ id: "app" });
    const built = await gateways.stack.up(building);
    expect(built, built.text).toMatchObject({ ok: true, counts: { update: 1 } });
    expect(built.outputs["digest"]).toMatch(/^[0-9a-f]{64}$/);
    expect(await running()).toEqual([0, 0]);
  });
});
