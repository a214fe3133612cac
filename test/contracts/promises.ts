import { createRequire } from "node:module";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import type * as Hooks from "../../provider/doors/dynamic/hooks.ts";
import { openStack, type TestStack } from "../engine.ts";
import type { Declaration, Gateways } from "../gateways.ts";

const both: Declaration = { gateways: { gw1: { kind: "lxd" }, gw2: { kind: "lxd" } } };

/** What both doors promise to everybody; `open` gives two gateways of kind lxd. */
export function promises(open: () => Promise<Gateways>): void {
  let gateways: Gateways;
  beforeAll(async () => {
    gateways = await open();
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  it("secrets stay out of state, output, logs, process lists and the nodes' files", async () => {
    const { password, connection } = gateways.lab.hosts.gw1;
    const keyLine = connection.privateKey.split("\n")[2] ?? "";
    expect(keyLine.length).toBeGreaterThan(40);
    const gateway = { kind: "lxd" as const, connection: { user: "operator", password } };
    const declared: Declaration = { gateways: { gw1: gateway, gw2: { kind: "lxd" } }, at: "gw1" };
    const tokens = new Set<string>();
    const processes: string[] = [];
    let watching = true;
    const watch = (async () => {
      while (watching) {
        for (const name of ["gw1", "gw2"] as const) {
          const { stdout } = await gateways.lab.hosts[name].exec(
            "ps -eww -o args; cat /var/lib/cloudlet/moves/*/departure.json 2>/dev/null",
          );
          processes.push(stdout.replace(/\{"epoch".*/s, ""));
          const token = /"token":"([^"]+)"/.exec(stdout)?.[1];
          if (token !== undefined) tokens.add(token);
        }
      }
    })();
    const texts: string[] = [];
    try {
      for (const at of ["gw1", "gw2"] as const) {
        const outcome = await gateways.up({ ...declared, at });
        expect(outcome, outcome.text).toMatchObject({ ok: true });
        texts.push(outcome.text, outcome.status.join("\n"));
      }
    } finally {
      watching = false;
      await watch;
    }
    expect(tokens.size, "the watch saw the one-time token while the move ran").toBeGreaterThan(0);
    const state = await gateways.storedText();
    const logs = "/var/lib/cloudlet /var/log /run/cloudlet /etc/cloudlet /tmp";
    for (const secret of [password, keyLine, ...tokens]) {
      expect(state.includes(secret), "state").toBe(false);
      expect(texts.join("\n").includes(secret), "output").toBe(false);
      expect(processes.join("\n").includes(secret), "process lists").toBe(false);
      for (const name of ["gw1", "gw2"] as const) {
        const { stdout } = await gateways.lab.hosts[name].exec(["sh", "-c", `grep -rlF -e "$(cat)" ${logs} 2>/dev/null`], {
          stdin: secret,
        });
        expect(stdout, `files of ${name}`).toBe("");
      }
    }
  });

  it("a node that does not answer keeps its state, the rest goes on, and after healing all is as before", async () => {
    await gateways.up({ ...both, at: "gw1" });
    await gateways.lab.cut("gw2");
    try {
      const rest = await gateways.up({ ...both, at: "gw1", cloudlet: { ports: [{ port: 8080, hostPort: 8081 }] } });
      expect(rest, rest.text).toMatchObject({ ok: true });
      expect(await gateways.peek("gw1", 8081)).toBeDefined();
      const refreshed = await gateways.stack.refresh();
      expect(refreshed.ok).toBe(false);
      expect(await gateways.stack.state()).toHaveLength(6);
    } finally {
      await gateways.lab.heal("gw2");
    }
    const refreshed = await gateways.stack.refresh();
    expect(refreshed, refreshed.text).toMatchObject({ ok: true });
    const healed = await gateways.up({ ...both, at: "gw1" });
    expect(healed.steps.map(({ name }) => name)).toEqual(["counter"]);
  });

  it("a second stack on the same gateway neither takes nor removes what the first one made", async () => {
    const second: TestStack = await openStack({ project: "second", program: () => Promise.resolve({}) });
    try {
      const clash = await second.up(gateways.program({ ...both, at: "gw1" }));
      expect(clash.ok).toBe(false);
      expect(clash.text).toContain("belongs to test/dev");
      const beside = await second.up(
        gateways.program({ ...both, at: "gw1", cloudlet: { name: "beside", ports: [{ port: 8080, hostPort: 8090 }] } }),
      );
      expect(beside, beside.text).toMatchObject({ ok: true });
      expect(await gateways.running("gw1")).toBe(2);
      expect(await second.destroy()).toMatchObject({ ok: true });
      expect(await gateways.running("gw1")).toBe(1);
      expect(await gateways.peek("gw1")).toBeDefined();
      const refreshed = await gateways.stack.refresh();
      expect(refreshed, refreshed.text).toMatchObject({ ok: true });
      expect(await gateways.preview({ ...both, at: "gw1" })).toMatchObject({ ok: true, steps: [] });
    } finally {
      await second.close();
    }
  });

  it("the functions of the SDK run, log, snapshot, restore and restart a cloudlet", async () => {
    const { functions } = createRequire(join(gateways.stack.directory, "x"))("pulumi-cloudlet/hooks") as typeof Hooks;
    const { connection } = gateways.lab.hosts.gw1;
    const id = "visits/counter";
    expect(await functions.exec(connection, id, { command: ["sh", "-c", "echo out; echo err >&2; exit 3"], timeoutSeconds: 10 })).toEqual({
      stdout: "out\n",
      stderr: "err\n",
      exitCode: 3,
    });
    expect(await functions.logs(connection, id, 50)).toContain("counter ready");
    await functions.snapshot(connection, id, "before");
    const before = await gateways.peek("gw1");
    await gateways.visit("gw1");
    await functions.restart(connection, id);
    expect(await gateways.peek("gw1")).toBe((before ?? 0) + 1);
    await functions.restore(connection, id, "before");
    expect(await gateways.peek("gw1")).toBe(before);
  });

  it("a node that will never come back can be forgotten", async () => {
    const forget: Declaration = { gateways: { gw1: { kind: "lxd" }, gw2: { kind: "lxd", onUnreachable: "forget" } }, at: "gw1" };
    const told = await gateways.up(forget);
    expect(told, told.text).toMatchObject({ ok: true });
    await gateways.lab.cut("gw2");
    try {
      const forgotten = await gateways.up({ gateways: { gw1: { kind: "lxd" } }, at: "gw1" });
      expect(forgotten, forgotten.text).toMatchObject({ ok: true });
      expect(forgotten.text).toContain("forgotten without reaching");
      expect(await gateways.stack.state()).toHaveLength(4);
    } finally {
      await gateways.lab.heal("gw2");
    }
  });
}
