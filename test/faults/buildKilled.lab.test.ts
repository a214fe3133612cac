import { existsSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { parseStat } from "../../provider/agent/detached.ts";
import { paths } from "../../provider/agent/protocol.ts";
import { openOverlayBench, owner } from "../agent/synthesis/bench.ts";
import type { OverlayBench } from "../agent/synthesis/bench.ts";
import { endOf } from "./arrivalBench.ts";
import type { Program } from "./arrivalBench.ts";

/** Which of a build's two guests runs: the one that is furnished, or the one that tries what came of it. */
type Stage = "furnished" | "tried";

describe("while an overlay is built", () => {
  let bench: OverlayBench;

  beforeAll(async () => {
    bench = await openOverlayBench("buildkill");
    await bench.putBase("gw1");
  });
  afterAll(() => bench?.gateways.close());
  afterEach(async () => {
    await bench.client("gw1").run("overlay.release", { name: "app", owner });
    expect(await left()).toEqual({ programs: [], layers: [], builds: [] });
  });

  const left = async () => ({
    programs: await bench.programs("gw1"),
    layers: bench.list("gw1", "layers"),
    builds: bench.list("gw1", "builds"),
  });
  const build = (script: string, signal?: AbortSignal) =>
    bench.client("gw1").run("overlay.build", { name: "app", owner, makings: bench.makings(script) }, signal && { signal });
  const inside = (path: string): string => `/proc/${String(bench.gateways.lab.hosts.gw1.pids[0])}/root${path}`;

  function pidOf(program: Program, stage: Stage): number | undefined {
    const [directory, prefix] = program === "hydrate" ? ["layers", ""] : ["builds", stage === "tried" ? "trial-" : "build-"];
    for (const name of bench.list("gw1", directory).filter((it) => it.startsWith(prefix))) {
      const file = inside(`${paths.root}/${directory}/${name}/${program}.pid`);
      const stat = existsSync(file) ? parseStat(readFileSync(file, "utf8").split("\n")[0] ?? "") : undefined;
      if (stat !== undefined && existsSync(inside(`/proc/${String(stat.pid)}/exe`))) return stat.pid;
    }
    return undefined;
  }

  /** The process, as soon as it is there in that stage. */
  async function find(program: Program, stage: Stage, building: Promise<unknown>): Promise<number> {
    const ended = endOf(building).then((text) => `the build ended first: ${text}`);
    for (;;) {
      const pid = pidOf("qemu", stage) === undefined ? undefined : pidOf(program, stage);
      if (pid !== undefined) return pid;
      const text = await Promise.race([ended, sleep(10)]);
      if (text !== undefined) throw new Error(text);
    }
  }

  it.each([
    ["qemu", "furnished"],
    ["qemu", "tried"],
    ["view", "tried"],
    ["hydrate", "tried"],
  ] as const)("%s of the guest that is %s is killed: the build fails at once, and says so", async (program, stage) => {
    const building = build("sleep 1");
    const pid = await find(program, stage, building);
    await bench.gateways.lab.hosts.gw1.run(`kill -KILL ${String(pid)}`);
    const killed = Date.now();
    const end = await endOf(building);
    console.log(`${program} ${stage}: ${String(Date.now() - killed)} ms later: ${end}`);
    expect(end).toMatch(/FAILED|UNREACHABLE/);
    expect(Date.now() - killed).toBeLessThan(20_000);
  });

  it("the agent is killed while the guest is tried: it is built anew", async () => {
    const building = build("sleep 1");
    await find("qemu", "tried", building);
    await bench.gateways.signalAgent("gw1", "KILL");
    const { digest } = await building;
    expect(await left()).toEqual({ programs: [], layers: [digest], builds: [] });
  });

  it.each(["furnished", "tried"] as const)("it is cancelled while the guest is %s: nothing is left", async (stage) => {
    const ending = new AbortController();
    const building = build("sleep 1", ending.signal);
    await find("qemu", stage, building);
    ending.abort();
    expect(await endOf(building)).toMatch(/ABORTED/);
    await bench.gateways.eventually(async () => expect(await left()).toEqual({ programs: [], layers: [], builds: [] }), 20_000);
  });
});
