import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { MoveReport } from "../../../provider/agent/handoffProtocol.ts";
import type { Outcome } from "../../engine.ts";
import { FaultBench } from "../../faults/bench.ts";
import { openGateways, watchSubscriber, type Declaration, type GatewayName, type Gateways } from "../../gateways.ts";

const mega = 1_000_000;
/** Files of the container's own and of its volume, that nothing else has and nothing compresses: 72 MB. */
const fill =
  "mkdir -p /own && for i in $(seq 10); do head -c 6000000 /dev/urandom >/own/$i; done; head -c 12000000 /dev/urandom >/data/own; sync";
/** Files that grow, shrink, come and go as fast as the processor lets them. */
const churn =
  "while [ ! -e /own/stop ]; do echo line >>/own/log; head -c 30000 /dev/urandom >/own/new; mv /own/new /own/replaced; : >/own/shrinks; rm -f /own/gone; head -c 3000000 /dev/zero >/own/shrinks; cp /own/replaced /own/gone; done";

describe("a container that is copied while it runs, over a link of 25 Mbit/s", () => {
  let gateways: Gateways;
  const at = (gateway: GatewayName): Declaration => ({
    gateways: { gw1: { kind: "lxd" }, gw2: { kind: "lxd" } },
    at: gateway,
    volume: { sizeMib: 32 },
  });
  const figures: Record<string, unknown>[] = [];

  /** Runs a command in the container past the agent, which is busy with the move. */
  const within = (gateway: GatewayName, command: string): Promise<string> =>
    gateways.lab.hosts[gateway].run(
      `export LXD_DIR=/var/lib/lxd; lxc exec "$(lxc list -f csv -c n status=running)" -- sh -c '${command}'`,
      { timeoutMillis: 60_000 },
    );

  /** Moves it, with something that happens once that much has left its node. */
  async function move(to: GatewayName, strike?: { afterBytes: number; run(): Promise<void> }) {
    const from = to === "gw1" ? "gw2" : "gw1";
    const watcher = watchSubscriber(gateways);
    const before = await gateways.lab.bytesSent(from);
    const moving = gateways.up(at(to));
    if (strike) {
      await gateways.eventually(
        async () => expect((await gateways.lab.bytesSent(from)) - before).toBeGreaterThan(strike.afterBytes),
        60_000,
      );
      await strike.run();
    }
    const outcome = await moving;
    const seen = await watcher.stop();
    expect(seen.wentBack).toEqual([]);
    return { outcome, seen };
  }

  const reportOf = (outcome: Outcome): MoveReport => {
    expect(outcome, outcome.text).toMatchObject({ ok: true });
    return outcome.outputs["lastMove"] as MoveReport;
  };
  const sentAway = ({ bytesSent, bytesSupplied = 0, bytesAhead = 0 }: MoveReport): number => bytesSent - bytesSupplied - bytesAhead;
  const note = (move: string, outcome: Outcome, seen: { longestGapMillis: number }): void => {
    const report = reportOf(outcome);
    const [away, ahead] = [sentAway(report), report.bytesAhead];
    figures.push({
      move,
      "sent ahead": ahead,
      "sent while away": away,
      "away ms": report.downtimeMillis,
      "gap seen ms": seen.longestGapMillis,
      "total ms": report.totalMillis,
    });
  };
  const digest = (gateway: GatewayName, file: string): Promise<string> => within(gateway, `sha256sum ${file}`);

  beforeAll(async () => {
    gateways = await openGateways("preahead", { lxd: ["gw1", "gw2"] });
    reportOf(await gateways.up(at("gw1")));
    await gateways.exec(["sh", "-c", fill]);
    for (const gateway of ["gw1", "gw2"] as const) await gateways.lab.shape(gateway, { mbit: 25 });
  });
  afterAll(async () => {
    console.table(figures);
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  it("is away only while what has changed is sent, and a file that was rewritten meanwhile arrives as it was last", async () => {
    let rewritten = "";
    const { outcome, seen } = await move("gw2", {
      afterBytes: 15 * mega,
      run: async () => {
        await within("gw1", "head -c 6000000 /dev/urandom >/own/3; sync");
        rewritten = await digest("gw1", "/own/3 /own/4 /data/own");
      },
    });
    note("one of 72 MB rewritten", outcome, seen);
    const report = reportOf(outcome);
    expect(await digest("gw2", "/own/3 /own/4 /data/own")).toBe(rewritten);
    expect(report.bytesAhead).toBeGreaterThan(72 * mega);
    expect(sentAway(report)).toBeLessThan(8 * mega);
    expect(await gateways.visit("gw2")).toBeGreaterThan(seen.last);
  });

  it("moves while its files grow, shrink, come and go", async () => {
    const churning = within("gw2", churn).catch(() => undefined);
    const { outcome, seen } = await move("gw1");
    note("files that change all the time", outcome, seen);
    await churning;
    expect(await within("gw1", "ls /own/log")).toBe("/own/log\n");
  });

  it("stays where it is, running, when the link is cut while it is copied, and the next attempt sends only the rest", async () => {
    const { outcome } = await move("gw2", {
      afterBytes: 30 * mega,
      run: async () => {
        await gateways.lab.cut("gw2");
        await gateways.eventually(async () => expect(await gateways.visit("gw1")).toBeGreaterThan(0), 5_000);
      },
    });
    expect(outcome.ok).toBe(false);
    expect(outcome.text).toContain("UNREACHABLE");
    expect([await gateways.running("gw1"), await gateways.running("gw2")]).toEqual([1, 0]);
    expect(await gateways.handoffs("gw1")).toMatchObject([{ outcome: "failed" }, {}, {}]);
    await gateways.lab.heal("gw2");
    const again = await move("gw2");
    note("after a cut", again.outcome, again.seen);
    expect(reportOf(again.outcome).bytesSent).toBeLessThan(50 * mega);
  });

  it("is copied only once it stands still where it cannot be before, and says so", async () => {
    const bench = new FaultBench(gateways, "lxd");
    const host = gateways.lab.hosts.gw2;
    await bench.arm("gw2", { pauseAt: "stopped" });
    // where the copy goes
    const place = (await host.run("ls -d /var/lib/cloudlet/instances/*")).trim();
    await host.run(`mkdir -p ${place}/export && mount -t tmpfs -o size=1m none ${place}/export`);
    const since = new Date();
    const moving = move("gw1");
    await gateways.eventually(async () => expect(bench.steps("gw2", "move.run", since)).toContain("stopped"), 60_000);
    await host.run(`umount ${place}/export`);
    const { outcome, seen } = await moving;
    note("not copied while it ran", outcome, seen);
    expect(outcome.text).toContain("visits/counter is only copied once it stands still");
    expect(reportOf(outcome).bytesAhead).toBeUndefined();
  });

  it("leaves nothing of the copies on either node", async () => {
    for (const gateway of ["gw1", "gw2"] as const) {
      const places = "/var/lib/cloudlet/moves /var/lib/cloudlet/instances";
      const left = `find ${places} -name '*.tar*' -o -name incoming -o -name outgoing; find /var/lib/lxd/backups -type f`;
      expect(await gateways.lab.hosts[gateway].run(left)).toBe("");
    }
  });
});
