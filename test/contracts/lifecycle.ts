import { afterAll, beforeAll, expect, it } from "vitest";
import type { Outcome } from "../engine.ts";
import type { Declaration, GatewayName, Gateways, Kind } from "../gateways.ts";

/** What a row may use: the hosts, the stack, and the declaration that is true so far. */
interface Life {
  gateways: Gateways;
  kind: Kind;
  now: Declaration;
  /** Declares a change on top of what is true, and brings it about. */
  change(change: Partial<Declaration>): Promise<Outcome>;
  /** The same change, only looked at. */
  look(change: Partial<Declaration>): Promise<Outcome>;
}

interface Row {
  title: string;
  run(life: Life): Promise<void>;
}

/** What every door must do with every kind: the rows, one after the other, on hosts of their own. */
export function lifecycleContract(kind: Kind, open: () => Promise<Gateways>): void {
  let gateways: Gateways;
  let life: Life;
  let broken = false;

  beforeAll(async () => {
    gateways = await open();
    life = {
      gateways,
      kind,
      now: { gateways: { gw1: { kind }, gw2: { kind } }, at: "gw1" },
      change: async (change) => {
        life.now = { ...life.now, ...change };
        return gateways.up(life.now);
      },
      look: (change) => gateways.preview({ ...life.now, ...change }),
    };
  });
  afterAll(() => gateways?.close());

  it.each(lifecycle)("$title", async ({ run }) => {
    // each row begins where the one before ended, so after a failure the rest says nothing
    if (broken) throw new Error("an earlier row failed");
    broken = true;
    await run(life);
    broken = false;
  });
}

const updated = (outcome: Outcome, name = "counter") =>
  outcome.steps.filter((step) => step.name === name && step.op === "update").flatMap(({ changed }) => changed);

async function unchanged({ gateways, now }: Life): Promise<void> {
  const previewed = await gateways.preview(now);
  expect(previewed, previewed.text).toMatchObject({ ok: true, steps: [] });
}

/** The life of everything that is declared, in order; every door and every kind goes through the same rows. */
const lifecycle: Row[] = [
  {
    title: "create: both gateways are commissioned and the application answers",
    async run({ gateways, change }) {
      const outcome = await change({});
      expect(outcome, outcome.text).toMatchObject({ ok: true });
      expect(outcome.steps.map(({ op }) => op)).toEqual(Array(6).fill("create"));
      expect(outcome.outputs["endpoint"]).toBe(`${gateways.lab.hosts.gw1.address}:8080`);
      expect(await gateways.visit("gw1")).toBe(1);
    },
  },
  {
    title: "no-op: up twice changes nothing",
    async run({ change }) {
      expect(await change({})).toMatchObject({ ok: true, steps: [] });
    },
  },
  {
    title: "refresh, then preview: nothing moved, nothing shows",
    async run(life) {
      const refreshed = await life.gateways.stack.refresh();
      expect(refreshed, refreshed.text).toMatchObject({ ok: true });
      await unchanged(life);
    },
  },
  {
    title: "a cloudlet reaches its own published port by its gateway's address, like any other machine",
    async run({ gateways }) {
      const before = (await gateways.peek("gw1")) ?? -1;
      const { address } = gateways.lab.hosts.gw1;
      const ask = `printf "GET / HTTP/1.0\\r\\n\\r\\n" | nc -w 2 ${address} 8080`;
      await gateways.eventually(async () => {
        expect(await gateways.exec(["sh", "-c", ask])).toContain(`"counter": ${before + 1}`);
      }, 10_000);
    },
  },
  {
    title: "update: a published port, without a restart",
    async run({ gateways, change }) {
      const before = (await gateways.peek("gw1")) ?? -1;
      const outcome = await change({ cloudlet: { ports: [{ port: 8080, hostPort: 9090 }] } });
      expect(outcome, outcome.text).toMatchObject({ ok: true });
      expect(updated(outcome).join()).toContain("ports");
      expect(await gateways.visit("gw1", "/", 9090)).toBe(before + 1);
      expect(await gateways.peek("gw1", 8080)).toBeUndefined();
      await change({ cloudlet: {} });
    },
  },
  {
    title: "update: memory, files and environment arrive in the cloudlet, and its state stays",
    async run({ gateways, change }) {
      const before = await gateways.visit("gw1");
      const outcome = await change({
        cloudlet: {
          resources: { memoryMib: 224 },
          files: [{ path: "/etc/greeting", content: "hello\n" }],
          environment: { GREETING: "hello" },
        },
      });
      expect(outcome, outcome.text).toMatchObject({ ok: true });
      expect(updated(outcome).length).toBeGreaterThan(0);
      expect(await gateways.peek("gw1")).toBe(before);
      expect(await gateways.exec(["cat", "/etc/greeting"])).toBe("hello\n");
    },
  },
  {
    title: "update: stopped, suspended and running again, and its state stays",
    async run({ gateways, now, change }) {
      const before = await gateways.visit("gw1");
      expect(await change({ cloudlet: { ...now.cloudlet, state: "stopped" } })).toMatchObject({ ok: true });
      expect(await gateways.peek("gw1")).toBeUndefined();
      expect(await gateways.running("gw1")).toBe(0);
      expect(await change({ cloudlet: { ...now.cloudlet, state: "running" } })).toMatchObject({ ok: true });
      expect(await gateways.peek("gw1")).toBe(before);
      const suspended = await change({ cloudlet: { ...now.cloudlet, state: "suspended" } });
      expect(suspended, suspended.text).toMatchObject({ ok: true });
      expect(await gateways.peek("gw1")).toBeUndefined();
      expect(await change({ cloudlet: {} })).toMatchObject({ ok: true });
      expect(await gateways.peek("gw1")).toBe(before);
    },
  },
  {
    title: "update: a volume is made, attached, detached, attached again with its data, and removed",
    async run({ gateways, change, look }) {
      const made = await change({ volume: { sizeMib: 16 } });
      expect(made, made.text).toMatchObject({ ok: true });
      await gateways.exec(["sh", "-c", "echo kept >/data/note && sync"]);
      expect(await change({ volume: { sizeMib: 16, detached: true } })).toMatchObject({ ok: true });
      const again = await change({ volume: { sizeMib: 16 } });
      expect(again, again.text).toMatchObject({ ok: true });
      expect(await gateways.exec(["cat", "/data/note"])).toBe("kept\n");
      const refreshed = await gateways.stack.refresh();
      expect(refreshed, refreshed.text).toMatchObject({ ok: true });
      const previewed = await look({});
      expect(previewed, previewed.text).toMatchObject({ ok: true, steps: [] });
      const removed = await change({ volume: undefined });
      expect(removed, removed.text).toMatchObject({ ok: true });
    },
  },
  {
    title: "update: changed credentials are an update of the connection, never a replacement",
    async run({ gateways, kind, change }) {
      const connection = { user: "operator", password: gateways.lab.hosts.gw1.password };
      const outcome = await change({ gateways: { gw1: { kind, connection }, gw2: { kind } } });
      expect(outcome, outcome.text).toMatchObject({ ok: true });
      expect(outcome.steps.map(({ op }) => op)).toEqual(Array(3).fill("update"));
      const back = await change({ gateways: { gw1: { kind }, gw2: { kind } } });
      expect(back, back.text).toMatchObject({ ok: true });
    },
  },
  {
    title: "replace: a cluster for another application; its cloudlet stays as it is",
    async run({ change }) {
      const outcome = await change({ application: "other-counter" });
      expect(outcome, outcome.text).toMatchObject({ ok: true });
      expect(outcome.steps.filter(({ op }) => op === "replace").map(({ name }) => name)).toEqual(["visits"]);
      expect(outcome.steps.filter(({ name }) => name === "counter")).toEqual([]);
    },
  },
  {
    title: "drift: a guest that was stopped by hand shows in refresh, and up starts it again",
    async run(life) {
      const before = await life.gateways.peek("gw1");
      await life.gateways.stopGuests("gw1");
      expect(await life.gateways.peek("gw1")).toBeUndefined();
      expect(await life.gateways.stack.refresh()).toMatchObject({ ok: true });
      const shown = await life.look({});
      expect(updated(shown).join()).toContain("state");
      const repaired = await life.change({});
      expect(repaired, repaired.text).toMatchObject({ ok: true });
      expect(await life.gateways.peek("gw1")).toBe(before);
      await unchanged(life);
    },
  },
  {
    title: "drift: a stopped agent shows in refresh, and up starts it again, while the application goes on",
    async run(life) {
      await life.gateways.stopAgent("gw1");
      expect(await life.gateways.peek("gw1")).toBeDefined();
      await life.gateways.stack.refresh();
      const shown = await life.look({});
      expect(updated(shown, "gw1").join()).toContain("status");
      const repaired = await life.change({});
      expect(repaired, repaired.text).toMatchObject({ ok: true });
      await unchanged(life);
    },
  },
  {
    title: "unreachable: preview works, refresh fails and keeps the state, and after healing nothing has changed",
    async run(life) {
      const { gateways } = life;
      const connected = await life.look({ at: "gw2" });
      expect(connected.steps, connected.text).toHaveLength(1);
      await gateways.lab.cut("gw1");
      await gateways.lab.cut("gw2");
      const previewed = await life.look({ at: "gw2" }).finally(() => gateways.lab.heal("gw2"));
      try {
        expect(previewed, previewed.text).toMatchObject({ ok: true, steps: connected.steps });
        const before = (await gateways.stack.state()).length;
        const refreshed = await gateways.stack.refresh();
        expect(refreshed.ok).toBe(false);
        expect(refreshed.text).toContain("UNREACHABLE");
        expect(await gateways.stack.state()).toHaveLength(before);
      } finally {
        await gateways.lab.heal("gw1");
      }
      const refreshed = await gateways.stack.refresh();
      expect(refreshed, refreshed.text).toMatchObject({ ok: true });
      expect(await life.look({})).toMatchObject({ ok: true, steps: [] });
    },
  },
  {
    title: "partial failure: an application that never answers keeps its id, the error carries the console, and the next up resumes",
    async run(life) {
      const failed = await life.change({ cloudlet: { ready: { tcp: 9, timeoutSeconds: 3 } } });
      expect(failed.ok).toBe(false);
      expect(failed.text).toMatch(/counter ready|console ends with/);
      const stored = (await life.gateways.stack.state()).find(({ type }) => type.endsWith(":Cloudlet"));
      expect(stored?.id).toBe("visits/counter");
      // without it the dynamic door could neither read nor delete later
      expect("__provider" in (stored?.outputs ?? {})).toBe(life.gateways.door === "dynamic");
      const resumed = await life.change({ cloudlet: {} });
      expect(resumed, resumed.text).toMatchObject({ ok: true });
      await unchanged(life);
    },
  },
  {
    title: "restart of the host: the cloudlet comes back by itself",
    async run(life) {
      const before = (await life.gateways.visit("gw1")) ?? -1;
      await life.gateways.lab.hosts.gw1.restart();
      await life.gateways.eventually(async () => expect(await life.gateways.peek("gw1")).toBe(before), 90_000);
      const refreshed = await life.gateways.stack.refresh();
      expect(refreshed, refreshed.text).toMatchObject({ ok: true });
      await unchanged(life);
    },
  },
  {
    title: "move: an in-place update that the preview shows, and back, with the counter intact",
    async run(life) {
      for (const [from, to] of [
        ["gw1", "gw2"],
        ["gw2", "gw1"],
      ] satisfies [GatewayName, GatewayName][]) {
        const before = (await life.gateways.visit(from)) ?? -1;
        const shown = await life.look({ at: to });
        expect(shown.steps.map(({ op, name }) => `${op} ${name}`)).toEqual(["update counter"]);
        expect(shown.text).toContain(`${from}/${life.kind}`);
        const mode = life.kind === "kvm" ? "live" : "cold";
        expect(shown.diagnostics).toContain(`moves in place from ${from} to ${to} (${mode}`);
        const moved = await life.change({ at: to });
        expect(moved, moved.text).toMatchObject({ ok: true });
        expect(await life.gateways.visit(to)).toBe(before + 1);
        expect(await life.gateways.peek(from), "the node that it has left passes its clients on").toBe(before + 1);
        expect(await life.gateways.running(from)).toBe(0);
        expect(moved.outputs["lastMove"]).toMatchObject({ mode, from, to, route: "direct" });
        await unchanged(life);
      }
    },
  },
  {
    title: "delete: nothing is left on the gateways",
    async run({ gateways }) {
      const outcome = await gateways.stack.destroy();
      expect(outcome, outcome.text).toMatchObject({ ok: true });
      for (const gateway of ["gw1", "gw2"] as const) {
        expect(await gateways.running(gateway)).toBe(0);
        expect(
          await gateways.lab.hosts[gateway].run(
            "ls -A /var/lib/cloudlet 2>/dev/null; ls /etc/init.d/cloudlet-agent 2>/dev/null; nft list tables; ip -br link show type bridge; true",
          ),
        ).toBe("");
      }
      expect(await gateways.stack.state()).toHaveLength(0);
    },
  },
];
