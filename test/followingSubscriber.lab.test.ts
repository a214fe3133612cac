import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { lastMoveOf, openWalk, row, type GatewayOnTheWay, type Walk } from "./walk.ts";

const traces =
  "ls -A /var/lib/cloudlet /run/cloudlet 2>/dev/null; nft list tables; ip -br link show type bridge; getent passwd cloudlet; true";

describe("examples/following-subscriber", () => {
  let walk: Walk;
  const before: Partial<Record<GatewayOnTheWay, string>> = {};
  beforeAll(async () => {
    walk = await openWalk("follow");
    for (const gateway of row) before[gateway] = await walk.lab.hosts[gateway].run(traces);
    await walk.subscriberIsAt("gw1");
    const made = await walk.stack.up();
    expect(made, made.text).toMatchObject({ ok: true });
    await walk.setOut();
  });
  afterAll(async () => {
    await walk?.stack.destroy();
    await walk?.close();
  });

  const qemus = (gateway: GatewayOnTheWay) =>
    walk.lab.hosts[gateway].run("for p in /proc/[0-9]*; do readlink $p/exe 2>/dev/null | grep qemu; done; true");

  it.each([
    ["gw1", "gw2"],
    ["gw2", "gw3"],
  ] as const)("follows from %s to %s while it runs, as an update in place", async (from, to) => {
    await walk.subscriberIsAt(to);
    const shown = await walk.stack.preview();
    expect(shown, shown.text).toMatchObject({ ok: true });
    const changed = shown.steps.filter(({ op }) => op !== "same");
    expect(changed).toMatchObject([{ op: "update", name: "sessions" }]);
    expect(shown.diagnostics).toContain(`moves in place from ${from} to ${to} (live`);
    const moved = await walk.stack.up();
    expect(moved, moved.text).toMatchObject({ ok: true });
    console.log(JSON.stringify(lastMoveOf(moved)));
    expect(lastMoveOf(moved)).toMatchObject({ mode: "live", from, to });
    expect([await qemus(from), (await qemus(to)).trim().split("\n").length], "it runs there and only there").toEqual(["", 1]);
  });

  it("has kept the session, which is only in its memory, all along the way", async () => {
    const told = await walk.arrive();
    console.log(told.map((line) => JSON.stringify(line)).join("\n"));
    expect(new Set(told.map(({ session }) => session)).size).toBe(1);
    const at = row.map((gateway) => `http://${walk.lab.hosts[gateway].address}:8080`);
    // while it is away from both, a gateway farther back may answer once more, by passing on
    expect([...new Set(told.flatMap(({ gateway }) => gateway ?? []))]).toEqual(at);
  });

  it("has left notes of where it went, and what the builder of the overlay keeps", async () => {
    const left = async (gateway: GatewayOnTheWay) => {
      const found = await walk.lab.hosts[gateway].run("cd /var/lib/cloudlet; find instances moves -type f; ls layers 2>/dev/null; true");
      return found.split("\n").filter(Boolean);
    };
    const note = expect.stringMatching(/^instances\/walk-sessions-[0-9a-f]{8}\/record.json$/);
    expect(await left("gw1")).toEqual([note, expect.stringMatching(/^[0-9a-f]{64}$/)]);
    expect(await left("gw2")).toEqual([note]);
  });

  it("has left nothing behind after destroy", async () => {
    const gone = await walk.stack.destroy();
    expect(gone, gone.text).toMatchObject({ ok: true });
    for (const gateway of row) expect(await walk.lab.hosts[gateway].run(traces), gateway).toBe(before[gateway]);
  });
});
