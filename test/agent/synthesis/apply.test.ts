import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { applyInstance, removeInstance } from "../../../provider/agent/instanceApply.ts";
import { instanceStatus } from "../../../provider/agent/instances.ts";
import type { JobContext } from "../../../provider/agent/jobs.ts";
import { guestName, type InstanceSpec, type Offer } from "../../../provider/agent/protocol.ts";
import { recover } from "../../../provider/agent/recover.ts";
import { manifestText } from "../../fakes/manifest.ts";
import { SynthesisDriver } from "../../fakes/synthesisDriver.ts";
import { FakeWorks } from "../../fakes/works.ts";
import { context, digestText, spec, testAgent, type TestAgent } from "../fixture.ts";

const id = "shop/counter";
const guest = guestName(id);
const resources = { cores: 1, memoryMib: 128, diskMib: 64 };
/** Nobody is asked for anything in these tests: what it offers is put into the store beforehand. */
const offer: Offer = { node: "gw2", addresses: [], port: 1, certificate: "0".repeat(64), token: "t" };

let agent: TestAgent;
let driver: SynthesisDriver;
let works: FakeWorks;
let base: string;

beforeEach(async () => {
  driver = new SynthesisDriver();
  works = new FakeWorks();
  agent = await testAgent({ driver, works });
  base = await agent.store("base");
});
afterEach(() => {
  agent.remove();
});

/** An overlay in the store; without its pack it must come from elsewhere. */
async function overlay({ pack = "pack", here = true, memory = true } = {}): Promise<string> {
  const index = await agent.store("index");
  const digest = here ? await agent.store(pack) : digestText(pack);
  const network = { mac: "02:00:00:00:00:01", address: "10.87.9.9" };
  const machine = memory && { machine: driver.machineOf(resources), network };
  return agent.store(manifestText({ base, index, pack: { digest, bytes: pack.length }, memory: machine }));
}

const wanted = (digest: string, change: Partial<InstanceSpec> = {}): InstanceSpec => spec(base, { overlay: { digest }, ...change });
const layer = (digest: string): string => agent.services.layers.directoryOf(digest);

async function apply(it: InstanceSpec, options: { context?: JobContext; offers?: Offer[] } = {}) {
  return applyInstance(agent.services, { spec: it, fresh: true, offers: options.offers ?? [] }, options.context ?? context());
}

async function until(check: () => boolean | Promise<boolean>): Promise<void> {
  const end = Date.now() + 10_000;
  while (!(await check())) {
    if (Date.now() > end) throw new Error("it did not come to pass");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const record = () => agent.services.records.read(id);
const answered = async (): Promise<boolean> => (await record())?.synthesis?.firstReplyMillis !== undefined;

async function expectNothingLeft(): Promise<void> {
  expect(await record()).toBeUndefined();
  expect(driver.guests.size).toBe(0);
  expect(works.hydrators.size).toBe(0);
  expect(await readdir(`${agent.root}/layers`)).toEqual([]);
  expect(agent.published()).toEqual([]);
}

describe("a cloudlet of an overlay that is here", () => {
  it("is resumed, and says what it took", async () => {
    const status = await apply(wanted(await overlay()));
    expect(status).toMatchObject({
      status: "running",
      provision: { rung: "resume", bytesTransferred: 0, bytesAvoided: expect.any(Number), verified: true },
    });
    expect(driver.reads.get(guest)).toBe("files");
    expect(status.hydration).toBeUndefined();
  });

  it("stays as it is the second time", async () => {
    const it = wanted(await overlay());
    await apply(it);
    driver.calls.length = 0;
    await apply(it);
    expect(driver.calls).toEqual(["ensure"]);
  });

  it("boots where its memory does not fit, and says why", async () => {
    const status = await apply(wanted(await overlay(), { resources: { ...resources, memoryMib: 256 } }));
    expect(status.provision).toMatchObject({ rung: "boot", reason: expect.stringContaining("256 MiB") });
    expect(driver.reads.get(guest)).toBe("disk");
  });

  it("is suspended after it has answered, where it is declared so", async () => {
    expect(await apply(wanted(await overlay(), { state: "suspended" }))).toMatchObject({
      status: "suspended",
      provision: { rung: "resume" },
    });
  });

  it("is refused over another base, before anything is written down", async () => {
    const digest = await overlay();
    const other = await agent.store("other base");
    await expect(apply(spec(other, { overlay: { digest } }))).rejects.toMatchObject({
      code: "REFUSED",
      message: expect.stringContaining("over base"),
    });
    await expectNothingLeft();
  });

  it("fails where the pack is damaged, names it, and leaves nothing", async () => {
    await expect(apply(wanted(await overlay({ pack: "poison" })))).rejects.toMatchObject({
      code: "INTEGRITY",
      message: expect.stringContaining("pack"),
    });
    await expectNothingLeft();
  });

  it("leaves nothing when it is removed, and shares its layer with another until then", async () => {
    const digest = await overlay();
    await apply(wanted(digest));
    await apply(wanted(digest, { id: "shop/other" }));
    expect(works.calls.filter((call) => call === "materialise")).toHaveLength(1);
    await removeInstance(agent.services, { id, owner: "p/s" }, context());
    expect(existsSync(layer(digest))).toBe(true);
    await removeInstance(agent.services, { id: "shop/other", owner: "p/s" }, context());
    await expectNothingLeft();
  });

  it("takes another overlay only with its state files, and boots then", async () => {
    const first = await overlay();
    await apply(wanted(first));
    const second = await overlay({ pack: "newer" });
    await expect(apply(wanted(second))).rejects.toMatchObject({ code: "REFUSED", message: expect.stringContaining("overlay of cloudlet") });
    const status = await apply(wanted(second, { stateFiles: ["/var/lib/counter"] }));
    expect(status.provision).toMatchObject({ rung: "boot" });
    expect(existsSync(layer(first))).toBe(false);
    expect(driver.calls).toContain("importState");
  });

  it.each(["record", "network", "planned", "layer", "synthesised", "created", "ready", "complete"])(
    "continues after the agent died at %s",
    async (step) => {
      const it = wanted(await overlay());
      await expect(apply(it, { context: context(step) })).rejects.toThrow(`killed at ${step}`);
      agent = await testAgent({ root: agent.root, driver, works });
      await recover(agent.services, context());
      expect(await apply(it)).toMatchObject({ status: "running", provision: { rung: "resume" } });
      expect(driver.reads.get(guest)).toBe("files");
    },
  );

  it("is resumed anew where QEMU died before anybody heard from it, and boots where somebody did", async () => {
    const it = wanted(await overlay());
    await expect(apply(it, { context: context("synthesised") })).rejects.toThrow();
    driver.kill(guest);
    await apply(it);
    expect(driver.reads.get(guest)).toBe("files");
    driver.kill(guest);
    await apply(it);
    expect(driver.reads.get(guest)).toBe("disk");
  });
});

describe("a cloudlet of an overlay that is still coming", () => {
  const start = (digest: string, change: Partial<InstanceSpec> = {}, options: { context?: JobContext } = {}) =>
    apply(wanted(digest, change), { offers: [offer], ...options });

  it("answers before it has arrived, and reads local files alone afterwards", async () => {
    const digest = await overlay({ here: false });
    const starting = start(digest);
    await until(answered);
    expect(driver.reads.get(guest)).toBe("nbd");
    expect(await instanceStatus(agent.services, id)).toMatchObject({ status: "running", hydration: { state: "coming", total: 100 } });
    await works.arrive(layer(digest), "pack");
    const status = await starting;
    expect(status.provision).toMatchObject({ rung: "lazy", bytesTransferred: 100, verified: true });
    expect(status.hydration).toBeUndefined();
    expect(driver.reads.get(guest)).toBe("files");
    expect(works.hydrators.size).toBe(0);
    // so that others can have it from here
    expect(await agent.services.store.has(digestText("pack"))).toBe(true);
  });

  it("shares its hydrator with another of the same overlay, which ends after the last", async () => {
    const digest = await overlay({ here: false });
    const starts = [start(digest), start(digest, { id: "shop/other" })];
    await until(() => driver.guests.size === 2);
    expect(works.hydrators.size).toBe(1);
    await works.arrive(layer(digest), "pack");
    await Promise.all(starts);
    expect([...driver.reads.values()]).toEqual(["files", "files"]);
    expect(works.hydrators.size).toBe(0);
  });

  it("is held still while its source is silent, and goes on when it is back", async () => {
    const digest = await overlay({ here: false });
    const starting = start(digest);
    await until(answered);
    works.say(layer(digest), { state: "waiting", reason: "gw2 does not answer" });
    await until(() => driver.held.has(guest));
    expect(await instanceStatus(agent.services, id)).toMatchObject({ hydration: { state: "waiting", reason: "gw2 does not answer" } });
    works.say(layer(digest), { state: "coming" });
    await until(() => !driver.held.has(guest));
    await works.arrive(layer(digest), "pack");
    await starting;
  });

  it("fails in time where its source stays silent, stays held, and the next run goes on", async () => {
    const digest = await overlay({ here: false });
    const hydrate = { timeoutSeconds: 1, onTimeout: "wait" as const };
    const starting = start(digest, { hydrate });
    await until(answered);
    works.say(layer(digest), { state: "waiting", reason: "gw2 does not answer" });
    await expect(starting).rejects.toMatchObject({
      code: "UNREACHABLE",
      message: expect.stringMatching(/silent for 1 s.*gw2 does not answer.*held/),
    });
    expect(driver.held.has(guest)).toBe(true);
    const again = start(digest, { hydrate: { ...hydrate, timeoutSeconds: 60 } });
    await expect(Promise.race([again, new Promise((resolve) => setTimeout(resolve, 1_000, "waits"))])).resolves.toBe("waits");
    works.say(layer(digest), { state: "coming" });
    await works.arrive(layer(digest), "pack");
    expect(await again).toMatchObject({ status: "running", provision: { rung: "lazy" } });
    // what has changed since shows without a restart, which would cost what is in its memory
    expect([driver.held.has(guest), driver.calls.includes("stop")]).toEqual([false, false]);
  });

  it("fails in time where the application stays silent, with the last lines of its console", async () => {
    const digest = await overlay({ here: false });
    driver.console = "kernel: all is well\napplication: no database\n";
    const began = Date.now();
    await expect(start(digest, { ready: { log: "a line that never comes", timeoutSeconds: 1 } })).rejects.toMatchObject({
      code: "TIMEOUT",
      message: expect.stringMatching(/not ready within 1 s.*application: no database$/s),
      fix: expect.stringContaining("`ready`"),
    });
    expect(Date.now() - began).toBeGreaterThan(1_000);
  });

  it("boots from its disk where the policy says so, once that is here", async () => {
    const digest = await overlay({ here: false });
    const starting = start(digest, { hydrate: { timeoutSeconds: 1, onTimeout: "boot" } });
    await until(answered);
    works.say(layer(digest), { state: "waiting", reason: "gw2 does not answer" });
    await until(() => driver.guests.get(guest)?.state === "stopped");
    works.say(layer(digest), { state: "coming" });
    await works.arrive(layer(digest), "pack");
    expect(await starting).toMatchObject({
      status: "running",
      provision: { rung: "boot", reason: expect.stringContaining("silent for 1 s") },
    });
    expect(driver.reads.get(guest)).toBe("disk");
  });

  it("fails where no source has what is undamaged, and leaves nothing", async () => {
    const digest = await overlay({ here: false });
    const starting = start(digest, { ready: { log: "a line that never comes", timeoutSeconds: 30 } });
    await until(() => works.hydrators.size === 1 && driver.guests.size === 1);
    works.say(layer(digest), { state: "failed", reason: "chunk 3 is damaged" });
    await expect(starting).rejects.toMatchObject({ code: "INTEGRITY", message: expect.stringContaining("chunk 3") });
    await expectNothingLeft();
  });

  it.each(["planned", "layer", "synthesised", "created"])("goes on after the agent died at %s", async (step) => {
    const digest = await overlay({ here: false });
    await expect(start(digest, {}, { context: context(step) })).rejects.toThrow(`killed at ${step}`);
    agent.services.hydrations.close();
    agent = await testAgent({ root: agent.root, driver, works });
    await recover(agent.services, context());
    const starting = start(digest);
    await until(answered);
    await works.arrive(layer(digest), "pack");
    expect(await starting).toMatchObject({ status: "running", provision: { rung: "lazy" } });
    expect(driver.reads.get(guest)).toBe("files");
  });

  it("is settled by an agent that came back, without anybody asking", async () => {
    const digest = await overlay({ here: false });
    const giveUp = new AbortController();
    const starting = start(digest, {}, { context: { ...context(), signal: giveUp.signal } });
    await until(answered);
    giveUp.abort(new Error("the agent ends"));
    await expect(starting).rejects.toThrow();
    agent.services.hydrations.close();
    agent = await testAgent({ root: agent.root, driver, works });
    await recover(agent.services, context());
    await works.arrive(layer(digest), "pack");
    await until(async () => (await record())?.provision !== undefined);
    expect(driver.reads.get(guest)).toBe("files");
  });

  it("whose hydrator was killed has another one, with the same offers", async () => {
    const digest = await overlay({ here: false });
    const starting = start(digest);
    await until(answered);
    works.hydrators.clear();
    await until(() => works.hydrators.size === 1);
    await works.arrive(layer(digest), "pack");
    await starting;
  });

  it("whose QEMU was killed is started again once its overlay is here, and never from what is missing", async () => {
    const digest = await overlay({ here: false });
    const starting = start(digest);
    await until(answered);
    driver.kill(guest);
    await works.arrive(layer(digest), "pack");
    expect(await starting).toMatchObject({ status: "running" });
    expect(driver.reads.get(guest)).toBe("disk");
  });

  it("whose QEMU was killed before anybody heard from it is resumed once, by one alone", async () => {
    const digest = await overlay({ here: false });
    const { resume } = driver.synthesis;
    let resumed = 0;
    driver.synthesis.resume = async (...args) => {
      // the second time it takes long enough for somebody else to start it, too
      if (resumed++ > 0) await new Promise((resolve) => setTimeout(resolve, 600));
      return resume(...args);
    };
    driver.console = "";
    const starting = start(digest, { ready: { log: "serving", timeoutSeconds: 20 } });
    await until(() => driver.guests.get(guest)?.state === "running");
    driver.kill(guest);
    driver.console = "serving";
    await works.arrive(layer(digest), "pack");
    expect(await starting).toMatchObject({ status: "running", provision: { rung: "lazy" } });
    expect({ resumed, started: driver.calls.filter((call) => call === "start") }).toEqual({ resumed: 2, started: [] });
    expect(driver.reads.get(guest)).toBe("files");
  });

  it("comes from who offers it now when it is asked for again, as the first way may be gone", async () => {
    const digest = await overlay({ here: false });
    const giveUp = new AbortController();
    const starting = start(digest, {}, { context: { ...context(), signal: giveUp.signal } });
    await until(answered);
    giveUp.abort(new Error("the operator is gone"));
    await expect(starting).rejects.toThrow();
    const other = { ...offer, token: "another", relayPort: 4711 };
    const again = apply(wanted(digest), { offers: [other] });
    await until(() => works.hydrators.get(layer(digest))?.task.offers[0]?.token === "another");
    await works.arrive(layer(digest), "pack");
    await again;
  });

  it("held by an agent that was killed is let go by the next one, when its source is back by then", async () => {
    const digest = await overlay({ here: false });
    start(digest).catch(() => undefined);
    await until(answered);
    works.say(layer(digest), { state: "waiting" });
    await until(() => driver.held.has(guest));
    agent.services.hydrations.close();
    works.say(layer(digest), { state: "coming" });
    agent = await testAgent({ root: agent.root, driver, works });
    await recover(agent.services, context());
    await until(() => !driver.held.has(guest));
  });

  it("is resumed though its hydrator ends meanwhile, and looked after though that fails once", async () => {
    const digest = await overlay({ here: false });
    driver.whileResumed = () => works.lose();
    const starting = start(digest);
    await until(answered);
    driver.failNext = "settle";
    await works.arrive(layer(digest), "pack");
    expect(await starting).toMatchObject({ status: "running", provision: { rung: "lazy" } });
    expect(driver.reads.get(guest)).toBe("files");
  });

  it("whose source falls silent before anything of it has come fails in time, and comes up when it is back, asked for or not", async () => {
    const digest = await overlay({ here: false });
    works.startable = false;
    const starting = start(digest, { hydrate: { timeoutSeconds: 1, onTimeout: "wait" } });
    starting.catch(() => undefined);
    await until(() => works.hydrators.size === 1);
    works.say(layer(digest), { state: "waiting", reason: "gw2 does not answer" });
    await expect(starting).rejects.toMatchObject({
      code: "UNREACHABLE",
      message: expect.stringMatching(/silent for 1 s.*gw2 does not answer; the cloudlet starts once its first part is here/),
    });
    expect(driver.guests.size).toBe(0);
    works.say(layer(digest), { startable: true, state: "coming" });
    await works.arrive(layer(digest), "pack");
    await until(() => driver.guests.get(guest)?.state === "running");
    expect(driver.reads.get(guest)).toBe("files");
  });

  it("is removed with its hydrator and its layer", async () => {
    const digest = await overlay({ here: false });
    const giveUp = new AbortController();
    const starting = start(digest, {}, { context: { ...context(), signal: giveUp.signal } });
    await until(answered);
    giveUp.abort(new Error("enough"));
    await expect(starting).rejects.toThrow();
    await removeInstance(agent.services, { id, owner: "p/s" }, context());
    await expectNothingLeft();
  });
});
