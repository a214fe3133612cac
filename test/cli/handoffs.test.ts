import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { defaultBudget, handoffSchema, type Handoff } from "../../provider/agent/handoffProtocol.ts";
import { handoffPage } from "../../provider/cli/handoffPage.ts";
import { runCommand } from "../../provider/cli/program.ts";
import { simulate } from "../agent/moves/simulatedMove.ts";
import { FakeOverlayNode } from "../fakes/overlayNode.ts";

const begin = Date.UTC(2026, 4, 3, 10, 0, 0);

/** As the controller would have it over 10 Mbit/s. */
function live(): Handoff {
  const world = { bytes: 72e6, sizeRatio: 0.9, compressBytesPerSecond: 2e8, idleProcessors: 1, pauseMillis: 400 };
  const outcome = simulate(
    { ...world, linkBytesPerSecond: 1_250_000, writtenBytesPerSecond: 2e6, workingSetBytes: 3e6 },
    { ...defaultBudget, onExceeded: "throttle" },
  );
  const rounds = outcome.rounds.map(({ dirtyBytes: _, compressMillis: __, linkMillis: ___, ...round }) => ({
    ...round,
    ...{ rawBytes: Math.round(round.rawBytes), bytes: Math.round(round.bytes), millis: Math.round(round.millis) },
  }));
  const report = {
    ...({ mode: "live", from: "gw1", to: "gw2", route: "direct", bytesAvoided: 990_000_000, rounds } as const),
    bytesSent: rounds.reduce((sum, { bytes }) => sum + bytes, 0),
    totalMillis: Math.round(outcome.totalMillis),
    downtimeMillis: Math.round(outcome.downtimeMillis),
    predicted: { totalMillis: Math.round(outcome.totalMillis) + 90, downtimeMillis: Math.round(outcome.downtimeMillis) - 40 },
  };
  const events: Handoff["events"] = [
    { type: "began", at: begin, epoch: 2, from: "gw1", to: "gw2", route: "direct", mode: "live", budget: defaultBudget },
  ];
  let at = begin;
  rounds.forEach((round, index) => {
    const decision = outcome.decisions[index];
    if (decision) events.push({ type: "decided", at, decision });
    if (index === rounds.length - 1) events.push({ type: "paused", at });
    at += round.millis;
    events.push({ type: "round", at, round });
  });
  events.push({ type: "sealed", at: at + 60 }, { type: "released", at: at + 70 }, { type: "activated", at: at + 90 });
  events.push({ type: "ended", at: at + 400, report });
  return { from: "gw1", to: "gw2", mode: "live", route: "direct", outcome: "moved", beganAt: begin, endedAt: at + 400, report, events };
}

const cold: Handoff = {
  ...{ from: "gw2", to: "gw3", mode: "cold", route: "operator", outcome: "moved", beganAt: begin + 3_600_000, endedAt: begin + 3_612_000 },
  report: {
    ...({ mode: "cold", from: "gw2", to: "gw3", route: "operator" } as const),
    ...{ bytesSent: 12_345_678, bytesSupplied: 4_000_000, bytesAvoided: 5_000_000, totalMillis: 12_000, downtimeMillis: 9_500 },
  },
  events: [
    { type: "began", at: begin + 3_600_000, epoch: 3, from: "gw2", to: "gw3", route: "operator", mode: "cold" },
    { type: "paused", at: begin + 3_602_500 },
    { type: "sealed", at: begin + 3_609_000 },
    { type: "released", at: begin + 3_609_020 },
    { type: "activated", at: begin + 3_609_100 },
  ],
};
const failed: Handoff = {
  ...{ from: "gw3", to: "gw1", mode: "live", route: "direct", outcome: "failed", beganAt: begin + 7_200_000, endedAt: begin + 7_204_000 },
  message: "gw1 has 3 MiB left & <needs> 900",
  events: [
    { type: "began", at: begin + 7_200_000, epoch: 4, from: "gw3", to: "gw1", route: "direct", mode: "live" },
    { type: "paused", at: begin + 7_203_000 },
    { type: "failed", at: begin + 7_204_000, code: "REFUSED", message: "gw1 has 3 MiB left & <needs> 900", resumed: true },
  ],
};

describe("cloudlet handoffs", () => {
  const gw3 = new FakeOverlayNode("gw3");
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "cloudlet-handoffs-"));
    gw3.moved.set("shop/counter", [failed, cold, live()]);
  });
  afterEach(() => rm(folder, { recursive: true }));

  async function cloudlet(...args: string[]): Promise<{ code: number; out: string; err: string }> {
    let [out, err] = ["", ""];
    const around = {
      signal: AbortSignal.timeout(30_000),
      status: () => undefined,
      print: (line: string) => void (out += `${line}\n`),
      agent: () => Promise.resolve(gw3),
    };
    const code = await runCommand(args, around, { out: (text) => void (out += text), err: (text) => void (err += text) });
    return { code, out, err };
  }

  it("shows a line for each, the newest first, and why one failed", async () => {
    const { code, out } = await cloudlet("handoffs", "shop/counter", "--node", "root@gw3");
    expect(code).toBe(0);
    expect(out.split("\n")).toEqual([
      expect.stringMatching(/^BEGAN +FROM +TO +MODE +OUTCOME +TOTAL +AWAY +SENT +IMAGES +ROUNDS$/),
      expect.stringMatching(/^2026-05-03T12:00:00Z +gw3 +gw1 +live +failed$/),
      expect.stringMatching(/^2026-05-03T11:00:00Z +gw2 +gw3 +cold +moved +12\.0 s +9\.50 s +11\.8 MiB +3\.8 MiB$/),
      expect.stringMatching(/^2026-05-03T10:00:00Z +gw1 +gw2 +live +moved +5\d\.\d s +0\.\d\d s +\d+\.\d MiB +[45]$/),
      "2026-05-03T12:00:00Z failed: gw1 has 3 MiB left & <needs> 900",
      "",
    ]);
  });

  it("says where nothing is known", async () => {
    expect((await cloudlet("handoffs", "shop/other", "--node", "gw3")).out).toBe("gw3 knows of no handoff of shop/other\n");
  });

  it("prints everything as JSON", async () => {
    const { out } = await cloudlet("handoffs", "shop/counter", "--node", "gw3", "--json");
    expect(handoffSchema.array().parse(JSON.parse(out))).toEqual(gw3.moved.get("shop/counter"));
  });

  it("writes a page", async () => {
    const file = join(folder, "counter.html");
    const { out } = await cloudlet("handoffs", "shop/counter", "--node", "gw3", "--html", file);
    expect(out).toBe(`3 handoffs of shop/counter are in ${file}\n`);
    expect(await readFile(file, "utf8")).toContain("<h1>Handoffs of shop/counter</h1>");
  });

  it("refuses what names no cloudlet", async () => {
    expect(await cloudlet("handoffs", "../etc", "--node", "gw3")).toMatchObject({
      code: 1,
      err: expect.stringContaining("names no cloudlet"),
    });
  });
});

describe("the page", () => {
  const page = handoffPage("shop/counter", [failed, cold, live()]);

  it("is whole in itself, and runs nothing", () => {
    expect(page).not.toMatch(/<script|src=|href=|url\(|https?:/);
  });

  it("shows what nodes say as text", () => {
    expect(page).toContain("gw1 has 3 MiB left &#38; &#60;needs&#62; 900");
    expect(page).not.toContain("<needs>");
  });

  it("draws a handoff, and a short pause a second time", () => {
    expect(page.match(/<svg /g)).toHaveLength(4);
    expect(page).toContain("round 1: 61.8 MiB for 68.7 MiB");
    expect(page).toContain("the application was away for");
    expect(page).toContain("let go");
    expect(page).toContain("goes on at gw3");
  });

  it("tells what was sent of a container while it still ran from what was sent while it was away", () => {
    if (cold.report === undefined) throw new Error("it has a report");
    const ahead = handoffPage("a/b", [{ ...cold, report: { ...cold.report, bytesAhead: 8_000_000 } }]);
    expect(ahead).toContain("7.6 MiB while it still ran");
    expect(ahead).toContain(">11.4 MiB copied<");
    expect(ahead).toContain(">337.6 KiB copied<");
  });

  it("says why it did what it did", () => {
    expect(page).toContain("another round makes the pause");
    expect(page).toContain("1000 ms are allowed");
  });

  it("has no number that is none", () => {
    expect(page).not.toMatch(/NaN|Infinity|undefined/);
  });

  it("draws one that has just begun", () => {
    const [first] = live().events;
    if (first === undefined) throw new Error("it has a begin");
    const { from, to, mode, route, beganAt } = live();
    expect(handoffPage("a/b", [{ from, to, mode, route, beganAt, outcome: "underWay", events: [first] }])).not.toMatch(/NaN|Infinity/);
    expect(handoffPage("a/b", [])).toContain("No handoff is known");
  });
});
