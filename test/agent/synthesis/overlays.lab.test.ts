import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { paths } from "../../../provider/agent/protocol.ts";
import type { OverlayStatus } from "../../../provider/agent/protocol.ts";
import { manifestSchema } from "../../../provider/synthesis/manifest.ts";
import { openOverlayBench, owner } from "./bench.ts";
import type { OverlayBench } from "./bench.ts";

const script = "mkdir -p /opt/app && dd if=/dev/urandom of=/opt/app/data bs=1M count=8 2>/dev/null && cat /opt/app/data >/dev/null";

describe("cloudlets that start from an overlay, on two gateways", () => {
  let bench: OverlayBench;
  let overlay: OverlayStatus;

  beforeAll(async () => {
    bench = await openOverlayBench("synth");
    await bench.putBase("gw1");
    await bench.putBase("gw2");
    overlay = await bench.client("gw1").run("overlay.build", { name: "app", owner, makings: bench.makings(script) });
    console.log(`built in ${String(overlay.buildMillis)} ms: ${JSON.stringify({ ...overlay, machine: undefined })}`);
  });
  afterAll(async () => {
    await bench?.gateways.close();
  });
  afterEach(async () => {
    await bench.gateways.lab.heal("gw1");
    await bench.gateways.lab.shape("gw1", {});
    for (const gateway of ["gw1", "gw2"] as const)
      for (const { spec, ownership } of await bench.client(gateway).instances())
        if (ownership.role === "owner") await bench.remove(gateway, spec.id.split("/")[1] ?? "");
  });

  async function expectClean(gateway: "gw1" | "gw2", layers: string[]): Promise<void> {
    expect(await bench.programs(gateway)).toEqual([]);
    expect(bench.list(gateway, "layers")).toEqual(layers);
    expect(bench.list(gateway, "builds")).toEqual([]);
    // of one that moved away there is a note
    expect((await bench.client(gateway).instances()).filter(({ ownership }) => ownership.role !== "released")).toEqual([]);
  }

  it("is not built again from the same makings, and nothing of the build is left", async () => {
    const again = await bench.client("gw1").run("overlay.build", { name: "other", owner, makings: bench.makings(script) });
    expect(again.digest).toBe(overlay.digest);
    await bench.client("gw1").run("overlay.release", { name: "other", owner });
    await expectClean("gw1", [overlay.digest]);
    expect(await bench.client("gw1").run("overlay.verify", { digest: overlay.digest })).toEqual({ bytes: (512 + 192) * 1024 * 1024 });
  });

  it("resume from what is local, two at once, and leave nothing", async () => {
    const starts = await Promise.all([
      bench.apply("gw1", bench.spec("a", overlay.digest)),
      bench.apply("gw1", bench.spec("b", overlay.digest)),
    ]);
    for (const { provision } of starts) {
      console.log(JSON.stringify(provision));
      expect(provision).toMatchObject({ rung: "resume", bytesTransferred: 0, verified: true });
    }
    expect(await bench.ask("gw1", "a")).toContain("counter");
    expect(await bench.ask("gw1", "b")).toContain("counter");
    await bench.remove("gw1", "a");
    await bench.remove("gw1", "b");
    await expectClean("gw1", [overlay.digest]);
  });

  it("boot where the memory does not fit", async () => {
    const spec = bench.spec("a", overlay.digest, { resources: { cores: 1, memoryMib: 256, diskMib: 512 } });
    const { provision } = await bench.apply("gw1", spec);
    console.log(JSON.stringify(provision));
    expect(provision).toMatchObject({ rung: "boot", reason: expect.stringContaining("256 MiB") });
  });

  it("answer before the overlay has come from the other gateway, and need it no more afterwards", async () => {
    await bench.gateways.lab.shape("gw1", { mbit: 25 });
    const offer = await bench.offer("gw1", overlay.digest);
    const { provision } = await bench.apply("gw2", bench.spec("a", overlay.digest), [offer]);
    console.log(JSON.stringify(provision));
    expect(provision).toMatchObject({ rung: "lazy", verified: true });
    expect(provision?.firstReplyMillis).toBeLessThan(provision?.totalMillis ?? 0);
    await bench.gateways.lab.cut("gw1");
    expect(await bench.ask("gw2", "a")).toContain("counter");
    expect(await bench.client("gw2").exec("visits/a", { command: ["sha256sum", "/opt/app/data"], timeoutSeconds: 60 })).toMatchObject({
      exitCode: 0,
    });
    expect((await bench.programs("gw2")).filter((line) => line.includes("hydrate"))).toEqual([]);
    await bench.remove("gw2", "a");
    await expectClean("gw2", []);
  });

  it("are held while the link is cut, and go on when it heals, though the agent was killed meanwhile", async () => {
    for (const blob of await blobs()) await bench.gateways.lab.hosts.gw2.run(`rm -f ${paths.root}/store/${blob.slice(0, 2)}/${blob}*`);
    await bench.gateways.lab.shape("gw1", { mbit: 10 });
    const offer = await bench.offer("gw1", overlay.digest);
    const starting = bench.apply("gw2", bench.spec("a", overlay.digest), [offer]);
    starting.catch(() => undefined);
    const state = async () =>
      (
        await bench
          .client("gw2")
          .instance("visits/a")
          .catch(() => undefined)
      )?.hydration;
    await bench.gateways.eventually(async () => expect((await state())?.present).toBeGreaterThan(0), 60_000);
    await bench.gateways.lab.cut("gw1");
    await bench.gateways.eventually(async () => expect((await state())?.state).toBe("waiting"), 60_000);
    await bench.gateways.signalAgent("gw2", "KILL");
    await sleep(2_000);
    await bench.gateways.lab.heal("gw1");
    const { provision, status } = await starting;
    expect({ status, rung: provision?.rung }).toEqual({ status: "running", rung: "lazy" });
    expect(await bench.ask("gw2", "a")).toContain("counter");
  });

  it("move with what they have written, onto the overlay that is sent along", async () => {
    for (const blob of await blobs()) await bench.gateways.lab.hosts.gw2.run(`rm -f ${paths.root}/store/${blob.slice(0, 2)}/${blob}*`);
    const spec = bench.spec("a", overlay.digest);
    const here = await bench.apply("gw1", spec);
    const epoch = here.ownership.epoch + 1;
    await bench.client("gw1").exec("visits/a", { command: ["sh", "-c", "echo kept >/opt/app/mark; sync"], timeoutSeconds: 60 });
    const target = await bench.client("gw2").run("move.prepare", { spec, epoch, from: "gw1" });
    const run = { id: spec.id, epoch, self: "gw1", target: { node: "gw2", ...target }, route: "direct" as const };
    const report = await bench.client("gw1").run("move.run", run);
    console.log(JSON.stringify(report));
    expect(await bench.ask("gw2", "a")).toContain("counter");
    expect(await bench.client("gw2").exec("visits/a", { command: ["cat", "/opt/app/mark"], timeoutSeconds: 60 })).toMatchObject({
      stdout: "kept\n",
    });
    expect(await bench.programs("gw1")).toEqual([]);
    const status = await bench.apply("gw2", spec);
    expect(status).toMatchObject({ status: "running", ownership: { epoch, role: "owner" } });
  });

  it("over the base's memory hold what is nearly the same as the difference, and are recombined while they arrive", async () => {
    const [gw1, gw2] = [bench.client("gw1"), bench.client("gw2")];
    const memory = await gw1.run("overlay.build", { name: "memory", owner, makings: { ...bench.makings(script), script: undefined } });
    const makings = { ...bench.makings(script), parent: memory.digest };
    const over = await gw1.run("overlay.build", { name: "over", owner, makings });
    const { format, files, pack } = manifestSchema.parse(await bench.manifest("gw1", over.digest));
    expect({ format, state: files.find(({ name }) => name === "state")?.difference }).toEqual({
      format: "cloudlet-overlay/2",
      state: true,
    });
    const whole = manifestSchema.parse(await bench.manifest("gw1", overlay.digest)).pack.bytes;
    expect(pack.bytes).toBeLessThan(whole);
    await gw2.run("blobs.fetch", { digests: [memory.digest], offers: [await bench.offer("gw1", memory.digest)] });
    await bench.gateways.lab.shape("gw1", { mbit: 25 });
    const { provision } = await bench.apply("gw2", bench.spec("a", over.digest), [await bench.offer("gw1", over.digest)]);
    expect(provision).toMatchObject({ rung: "lazy", verified: true });
    expect(await bench.ask("gw2", "a")).toContain("counter");
    expect(await gw2.run("overlay.verify", { digest: over.digest })).toEqual({ bytes: (512 + 192) * 1024 * 1024 });
    await bench.remove("gw2", "a");
    for (const name of ["over", "memory"]) await gw1.run("overlay.release", { name, owner });
    await expectClean("gw1", [overlay.digest]);
  });

  it.each(["manifest", "index", "pack", "base image"])("fail where the %s is damaged, name it, and leave nothing", async (part) => {
    const { client } = { client: bench.client("gw2") };
    await bench.putBase("gw2");
    await client.run("blobs.fetch", { digests: [overlay.digest], offers: [await bench.offer("gw1", overlay.digest)] });
    const [manifest = "", index = "", pack = ""] = await blobs();
    const digest = { manifest, index, pack, "base image": bench.base.digest }[part] ?? "";
    bench.flip("gw2", digest);
    await expect(bench.apply("gw2", bench.spec("a", overlay.digest))).rejects.toMatchObject({
      code: "INTEGRITY",
      message: expect.stringContaining(part),
    });
    await expectClean("gw2", []);
  });

  async function blobs(): Promise<string[]> {
    const { index, pack } = await bench.manifest("gw1", overlay.digest);
    return [overlay.digest, index.digest, pack.digest];
  }
});
