import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { MoveReport } from "../../../provider/agent/handoffProtocol.ts";
import { guestName } from "../../../provider/agent/protocol.ts";
import { openGateways, watchSubscriber, type Declaration, type Gateways } from "../../gateways.ts";

const at = (gateway: "gw1" | "gw2"): Declaration => ({
  gateways: { gw1: { kind: "kvm" }, gw2: { kind: "kvm" } },
  at: gateway,
  volume: { sizeMib: 16 },
});
/** Counts in memory alone; a file system of memory holds the number. */
const counting =
  "(i=0; while true; do i=$((i+1)); echo $i >/dev/shm/new; mv /dev/shm/new /dev/shm/count; sleep 0.05; done) >/dev/null 2>&1 &";

/** Says what announces itself on the guests' bridge. */
const hearing = `
  $| = 1; socket(my $all, 17, 3, 0x0300) or die $!;
  open my $file, "/sys/class/net/cloudlet0/ifindex"; my $bridge = <$file>;
  while (defined(my $from = recv($all, my $frame, 2000, 0))) {
    my (undef, $protocol, $index) = unpack("S n l", $from);
    next if $index != $bridge;
    print "RARP\n" if $protocol == 0x8035;
    print "gratuitous ARP\n" if $protocol == 0x0806 && substr($frame, 28, 4) eq substr($frame, 38, 4);
  }`;

describe("a virtual machine that is moved while it runs", () => {
  let gateways: Gateways;
  beforeAll(async () => {
    gateways = await openGateways("livemove");
    const made = await gateways.up(at("gw1"));
    expect(made, made.text).toMatchObject({ ok: true });
    await gateways.exec(["sh", "-c", `echo travels >/data/note && sync; ${counting}`]);
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });
  const count = async (gateway: "gw1" | "gw2") => Number(await gateways.exec(["cat", "/dev/shm/count"], gateway));

  /** So many milliseconds the guest's clock is behind its node's, as its agent says. */
  const behind = async (gateway: "gw1" | "gw2") => {
    const program = `
      const socket = require("net").connect("/var/lib/cloudlet/instances/${guestName("visits/counter")}/guest-agent.sock");
      let text = ""; const asked = Date.now(); setTimeout(() => process.exit(1), 5000);
      socket.on("data", (data) => { text += data; const time = /"return": *(\\d{15,})/.exec(text); if (time) { console.log((asked + Date.now()) / 2 - Number(time[1]) / 1e6); process.exit(); } });
      socket.write('{"execute":"guest-get-time"}\\n');`;
    return Math.round(Number(await gateways.lab.hosts[gateway].run("cat >/tmp/clock.js; node /tmp/clock.js", { stdin: program })));
  };

  it("is refused where the target's disk has no room, before anything is sent, and runs on", async () => {
    const { gw1, gw2 } = gateways.lab.hosts;
    const store = "/var/lib/cloudlet/store";
    const before = await count("gw1");
    await gw2.run(`mount -t tmpfs -o size=260m none ${store}`);
    try {
      const sent = await gateways.lab.bytesSent("gw1");
      const refused = await gateways.up(at("gw2"));
      expect(refused.ok).toBe(false);
      expect(refused.text).toMatch(/visits\/counter was not moved: gw2: \d+ MiB do not fit: \d+ MiB are free/);
      console.log(/.*do not fit.*/.exec(refused.text)?.[0]);
      expect((await gateways.lab.bytesSent("gw1")) - sent).toBeLessThan(1_000_000);
    } finally {
      await gw2.run(`umount ${store}`);
    }
    expect([await gateways.running("gw1"), await gateways.running("gw2")]).toEqual([1, 0]);
    expect(await count("gw1")).toBeGreaterThan(before);
    for (const host of [gw1, gw2]) expect(await host.run("ls /var/lib/cloudlet/moves 2>/dev/null; true")).toBe("");
    expect(await gw2.run("ls /var/lib/cloudlet/instances; busybox netstat -ltn | grep :7443; true")).toBe("");
  });

  it("goes on with what is only in its memory, and its subscriber waits no longer than for the pause", async () => {
    await gateways.lab.shape("gw1", { mbit: 25 });
    const before = await count("gw1");
    await gateways.exec(["sh", "-c", "date -s @$(($(date +%s) - 30))"]);
    expect(await behind("gw1")).toBeGreaterThan(25_000);
    const connection = await gateways.halfAsked("gw1");
    const { gw2 } = gateways.lab.hosts;
    await gw2.run("cat >/tmp/hear.pl; setsid perl /tmp/hear.pl >/tmp/heard 2>&1 </dev/null &", { stdin: hearing });
    const watcher = watchSubscriber(gateways);
    const moved = await gateways.up(at("gw2"));
    const seen = await watcher.stop();
    expect(moved, moved.text).toMatchObject({ ok: true });
    const report = moved.outputs["lastMove"] as MoveReport;
    console.log(
      moved.text
        .split("\n")
        .filter((line) => line.includes("round"))
        .join("\n"),
    );
    console.log(JSON.stringify(report), `longest silence ${seen.longestGapMillis} ms of ${seen.answers} answers`);
    expect(report.mode).toBe("live");
    expect(seen.wentBack).toEqual([]);
    const next = (await gateways.visit("gw2")) ?? 0;
    expect(next).toBeGreaterThan(seen.last);
    expect(next).toBeLessThanOrEqual(seen.last + seen.unanswered + 1);
    const old = await connection.ask();
    console.log(`a connection that was open at the old address: ${old.outcome} after ${old.afterMillis} ms`);
    expect(old.outcome).toBe("ECONNRESET");
    expect(await gateways.peek("gw1"), "clients of the old address are passed on").toBe(next);
    expect(await count("gw2")).toBeGreaterThan(before);
    expect(await gateways.exec(["cat", "/data/note"], "gw2")).toBe("travels\n");
    expect([await gateways.running("gw1"), await gateways.running("gw2")]).toEqual([0, 1]);
    await gateways.eventually(async () => expect(Math.abs(await behind("gw2"))).toBeLessThan(2_000), 20_000);
    console.log(`its clock is behind by ${await behind("gw2")} ms after the move`);
    const heard = (await gw2.run("cat /tmp/heard")).trim().split("\n");
    expect(new Set(heard), "QEMU and the guest announce themselves").toEqual(new Set(["RARP", "gratuitous ARP"]));
    const again = await gateways.preview(at("gw2"));
    expect(again, again.text).toMatchObject({ ok: true, steps: [] });
  });
});
