import { readdir } from "node:fs/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { recover } from "../../../provider/agent/recover.ts";
import { buildOverlay } from "../../../provider/agent/synthesis/build.ts";
import { releaseOverlay } from "../../../provider/agent/synthesis/overlays.ts";
import type { Makings } from "../../../provider/agent/protocol.ts";
import { SynthesisDriver } from "../../fakes/synthesisDriver.ts";
import { FakeWorks } from "../../fakes/works.ts";
import { context, testAgent } from "../fixture.ts";
import type { TestAgent } from "../fixture.ts";

let agent: TestAgent;
let driver: SynthesisDriver;
let works: FakeWorks;
let makings: Makings;

beforeEach(async () => {
  driver = new SynthesisDriver();
  works = new FakeWorks();
  agent = await testAgent({ driver, works });
  makings = {
    kind: "kvm",
    base: await agent.store("base"),
    resources: { cores: 1, memoryMib: 128, diskMib: 64 },
    files: [{ path: "/etc/app", content: "", mode: 0o644 }],
    environment: {},
    script: "true",
    ready: { log: "serving", timeoutSeconds: 5 },
  };
});
afterEach(() => {
  agent.remove();
});

const build = (name: string, change: Partial<Makings> = {}, crashAt?: string) =>
  buildOverlay(agent.services, { name, owner: "p/s", makings: { ...makings, ...change } }, context(crashAt));

async function expectNoBuild(): Promise<void> {
  expect(driver.guests.size).toBe(0);
  expect(works.hydrators.size).toBe(0);
  expect(await readdir(`${agent.root}/builds`)).toEqual([]);
}

describe("building an overlay", () => {
  it("freezes a furnished guest, tries what came of it, and packs it in the order of first reads", async () => {
    works.touches = [{ image: "memory", block: 3 }];
    const status = await build("app");
    expect(status).toMatchObject({ kind: "kvm", base: makings.base, resources: makings.resources, buildMillis: expect.any(Number) });
    const did = driver.calls.filter((call) => call !== "exec");
    expect(did).toEqual(["ensure", "startForFreeze", "freeze", "resume", "remove", "remove", "remove"]);
    expect(works.calls.filter((call) => /^(seal|reorder)/.test(call))).toEqual(["seal", "reorder"]);
    expect(await readdir(`${agent.root}/layers`)).toEqual([status.digest]);
    await expectNoBuild();
  });

  it("furnishes through the guest agent where that answers, and types nothing on the console", async () => {
    let typed = false;
    driver.synthesis.openConsole = () => Promise.reject(new Error(`typed ${String((typed = true))}`));
    const holder = { name: "app", owner: "p/s" };
    const ran: string[] = [];
    driver.exec = (_guest, command) => Promise.resolve({ stdout: "", stderr: "", exitCode: ran.push(command.join(" ")) * 0 });
    await buildOverlay(agent.services, { ...holder, makings, login: { console: { user: "root" } } }, context());
    expect({ typed, ran }).toEqual({ typed: false, ran: ["test -e /run/cloudlet.seeded", "sh -c true"] });
  });

  it("is not done again for the same makings, also by somebody else, and at the same time", async () => {
    const [first, second] = await Promise.all([build("app"), build("other")]);
    expect(second.digest).toBe(first.digest);
    expect(driver.calls.filter((call) => call === "freeze")).toHaveLength(1);
    await releaseOverlay(agent.services, { name: "app", owner: "p/s" }, context());
    expect(await readdir(`${agent.root}/layers`)).toEqual([first.digest]);
    await releaseOverlay(agent.services, { name: "other", owner: "p/s" }, context());
    expect(await readdir(`${agent.root}/layers`)).toEqual([]);
    // the base is not its own
    expect(await agent.services.store.list()).toEqual([makings.base]);
  });

  it.each(["made", "started", "furnished", "ready", "frozen", "sealed", "tried", "packed"])(
    "leaves no guest where it fails at %s, and comes to its end when it is asked for again",
    async (step) => {
      await expect(build("app", {}, step)).rejects.toThrow(`killed at ${step}`);
      await expectNoBuild();
      // packed, it is an overlay that nobody keeps yet
      if (step !== "packed") expect(await readdir(`${agent.root}/layers`)).toEqual([]);
      expect((await build("app")).digest).toMatch(/^[0-9a-f]{64}$/);
    },
  );

  it("that was cut off by the agent's death leaves no guest after the agent has started again", async () => {
    driver.remove = () => Promise.reject(new Error("the agent is dead"));
    await expect(build("app", {}, "started")).rejects.toThrow();
    expect(driver.guests.size).toBe(1);
    driver.remove = SynthesisDriver.prototype.remove.bind(driver);
    agent = await testAgent({ root: agent.root, driver, works });
    await recover(agent.services, context());
    await expectNoBuild();
  });

  it("begun anew while the agent still ends what was cut off is not ended with it", async () => {
    driver.remove = () => Promise.reject(new Error("the agent is dead"));
    await expect(build("app", {}, "started")).rejects.toThrow();
    driver.remove = SynthesisDriver.prototype.remove.bind(driver);
    agent = await testAgent({ root: agent.root, driver, works });
    driver.calls.length = 0;
    const [status] = await Promise.all([build("app"), recover(agent.services, context())]);
    expect(status.digest).toMatch(/^[0-9a-f]{64}$/);
    // what was there is no guest of this build
    expect(driver.calls.filter((call) => call !== "exec").slice(0, 2)).toEqual(["remove", "ensure"]);
    await expectNoBuild();
  });

  it("fails at once where its guest ends by itself, whatever it is waited for", async () => {
    const starting = build("app", { script: undefined, ready: { log: "never printed", timeoutSeconds: 60 } });
    starting.catch(() => undefined);
    await expect.poll(() => [...driver.guests.values()].some(({ state }) => state === "running"), { timeout: 5_000 }).toBe(true);
    for (const name of driver.guests.keys()) driver.kill(name);
    await expect(starting).rejects.toMatchObject({ code: "FAILED", message: expect.stringContaining("has ended by itself") });
    await expectNoBuild();
  });

  it("fails with the script's words", async () => {
    driver.exec = (_guest, command) =>
      Promise.resolve(
        command[0] === "sh" ? { stdout: "", stderr: "no such package", exitCode: 3 } : { stdout: "", stderr: "", exitCode: 0 },
      );
    await expect(build("app")).rejects.toMatchObject({ code: "FAILED", message: expect.stringMatching(/exit code 3[^]*no such package/) });
    await expectNoBuild();
  });

  it("fails where the application never answers", async () => {
    await expect(build("app", { ready: { log: "never printed", timeoutSeconds: 0 } })).rejects.toMatchObject({ code: "TIMEOUT" });
    await expectNoBuild();
  });
});
