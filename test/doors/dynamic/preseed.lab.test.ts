import { createRequire } from "node:module";
import { join } from "node:path";
import type { PulumiFn } from "@pulumi/pulumi/automation/index.js";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { moveReportSchema, type MoveReport } from "../../../provider/agent/handoffProtocol.ts";
import type * as Sdk from "../../../sdk/plugin/index.ts";
import { buildImages } from "../../../tools/images/images.ts";
import { openStack, type Outcome, type TestStack } from "../../engine.ts";
import type { Door, Kind } from "../../gateways.ts";
import { createLab, type Lab } from "../../lab/lab.ts";

const row = ["gw1", "gw2", "gw3"] as const;
type Gateway = (typeof row)[number];

interface Wanted {
  at: Gateway;
  preseed: Gateway[];
  hostPort?: number;
}

/** Three gateways in a row, none of which has the base before it needs it. */
class Row {
  readonly lab: Lab<Gateway>;
  readonly stack: TestStack;
  readonly #kind: Kind;
  readonly #base: string;
  readonly #door: Door;

  constructor(lab: Lab<Gateway>, stack: TestStack, made: { kind: Kind; base: string; door: Door }) {
    this.lab = lab;
    this.stack = stack;
    this.#kind = made.kind;
    this.#base = made.base;
    this.#door = made.door;
  }

  program({ at, preseed, hostPort = 8080 }: Wanted): PulumiFn {
    const sdk = createRequire(join(this.stack.directory, "x"))(
      this.#door === "dynamic" ? "pulumi-cloudlet/dynamic" : "pulumi-cloudlet",
    ) as typeof Sdk;
    return async () => {
      const hypervisorOn = (name: Gateway) => {
        const { host, privateKey, hostKey, user } = this.lab.hosts[name].connection;
        const connection = { host, privateKey, hostKey, user, perDialTimeout: 3, dialErrorLimit: 1 };
        const node = new sdk.Node(name, { connection });
        return new sdk.Hypervisor(`on-${name}`, { node, kind: this.#kind });
      };
      const hypervisors = { gw1: hypervisorOn("gw1"), gw2: hypervisorOn("gw2"), gw3: hypervisorOn("gw3") };
      const cloudlet = new sdk.Cloudlet("counter", {
        cluster: new sdk.EdgeCluster("visits", { application: "visit-counter" }),
        hypervisor: hypervisors[at],
        base: { file: this.#base },
        resources: { memoryMib: 192 },
        ports: [{ port: 8080, hostPort }],
        ready: { http: { port: 8080, path: "/peek" }, timeoutSeconds: 60 },
        handoff: { preseed: preseed.map((name) => hypervisors[name]) },
      });
      return { preseeded: cloudlet.preseeded, lastMove: cloudlet.lastMove };
    };
  }

  up(wanted: Wanted): Promise<Outcome> {
    return this.stack.up(this.program(wanted));
  }

  preview(wanted: Wanted): Promise<Outcome> {
    return this.stack.preview(this.program(wanted));
  }

  /** The same program changes nothing, before and after a refresh. */
  async settled(wanted: Wanted): Promise<void> {
    const again = await this.up(wanted);
    expect(steps(again), again.text).toEqual([]);
    const refreshed = await this.stack.refresh();
    expect(refreshed, refreshed.text).toMatchObject({ ok: true });
    const shown = await this.preview(wanted);
    expect(steps(shown), shown.text).toEqual([]);
  }

  /** What a gateway has in its store, in MB. */
  async stored(gateway: Gateway): Promise<number> {
    const sizes = await this.lab.hosts[gateway].run("find /var/lib/cloudlet/store -type f -size +10k -printf '%s\\n' 2>/dev/null; true");
    return sizes.split("\n").reduce((sum, size) => sum + Number(size), 0) / 1e6;
  }
}

const steps = ({ steps }: Outcome): string[] => steps.filter(({ op }) => op !== "same").map(({ op, name }) => `${op} ${name}`);
const preseeded = ({ outputs }: Outcome) => outputs["preseeded"] as { hypervisor: string; bytesTransferred: number; totalMillis: number }[];
const lastMove = ({ outputs }: Outcome): MoveReport => moveReportSchema.parse(outputs["lastMove"]);

describe.each([
  ["kvm", "dynamic", 12],
  ["lxd", "plugin", 0.5],
] as const)("a %s cloudlet whose next nodes are preseeded, by the %s door", (kind, door, baseMb) => {
  let of: Row;
  let without: MoveReport;
  beforeAll(async () => {
    const images = await buildImages();
    const lab = await createLab({ name: `pre${kind}`, hosts: row.map((name) => ({ name, lxd: kind === "lxd" })) });
    const stack = await openStack({ program: () => Promise.resolve({}) });
    of = new Row(lab, stack, { kind, door, base: kind === "kvm" ? images.vm : images.container });
    const made = await of.up({ at: "gw1", preseed: [] });
    expect(made, made.text).toMatchObject({ ok: true });
    const moved = await of.up({ at: "gw2", preseed: [] });
    expect(moved, moved.text).toMatchObject({ ok: true });
    without = lastMove(moved);
    expect(without.bytesSupplied).toBeGreaterThan(baseMb * 1e6);
  });
  afterAll(async () => {
    await of?.stack.destroy();
    await of?.stack.close();
    await of?.lab.close();
  });

  it("shows it in the preview, brings it from its own node, and changes nothing more", async () => {
    const shown = await of.preview({ at: "gw2", preseed: ["gw3"] });
    expect(steps(shown)).toEqual(["update counter"]);
    expect(shown.diagnostics).toContain("preseeds gw3 with its base, at low priority");
    expect(await of.stored("gw3")).toBeLessThan(baseMb);
    const done = await of.up({ at: "gw2", preseed: ["gw3"] });
    expect(done, done.text).toMatchObject({ ok: true });
    console.log(JSON.stringify(preseeded(done)));
    expect(preseeded(done)).toMatchObject([{ hypervisor: `gw3/${kind}` }]);
    expect(preseeded(done)[0]?.bytesTransferred).toBeGreaterThan(baseMb * 1e6);
    expect(await of.stored("gw3")).toBeGreaterThan(baseMb);
    await of.settled({ at: "gw2", preseed: ["gw3"] });
  });

  it.runIf(kind === "kvm")("shows after a refresh where a node has lost it, and the next up repairs that", async () => {
    await of.lab.hosts.gw3.run("rm -rf /var/lib/cloudlet/store/*");
    const refreshed = await of.stack.refresh();
    expect(refreshed, refreshed.text).toMatchObject({ ok: true });
    const shown = await of.preview({ at: "gw2", preseed: ["gw3"] });
    expect(steps(shown)).toEqual(["update counter"]);
    const repaired = await of.up({ at: "gw2", preseed: ["gw3"] });
    expect(repaired, repaired.text).toMatchObject({ ok: true });
    expect(await of.stored("gw3")).toBeGreaterThan(baseMb);
  });

  it.runIf(kind === "kvm")("is collected where the program does not name the node any more", async () => {
    const left = await of.up({ at: "gw2", preseed: [] });
    expect(left, left.text).toMatchObject({ ok: true });
    expect(preseeded(left)).toEqual([]);
    expect(await of.stored("gw3")).toBeLessThan(baseMb);
  });

  it.runIf(kind === "kvm")("is a warning where a node does not answer, and done by the next up", async () => {
    await of.lab.cut("gw1");
    const wanted: Wanted = { at: "gw2", preseed: ["gw1", "gw3"], hostPort: 8081 };
    try {
      const warned = await of.up(wanted);
      expect(warned, warned.text).toMatchObject({ ok: true });
      expect(warned.text).toMatch(/gw1 is not preseeded for cloudlet "visits\/counter", and the next `pulumi up` tries again/);
      expect(preseeded(warned)).toMatchObject([{ hypervisor: "gw3/kvm" }]);
      const shown = await of.preview(wanted);
      expect(steps(shown)).toEqual(["update counter"]);
    } finally {
      await of.lab.heal("gw1");
    }
    const done = await of.up(wanted);
    expect(done, done.text).toMatchObject({ ok: true });
    expect(preseeded(done)).toMatchObject([{ hypervisor: "gw1/kvm" }, { hypervisor: "gw3/kvm" }]);
  });

  it("moves with less to send, as the preview says", async () => {
    const wanted: Wanted = { at: "gw3", preseed: [...row] };
    const shown = await of.preview(wanted);
    expect(shown.diagnostics).toContain("its base is there already");
    if (kind === "kvm")
      expect(shown.diagnostics).toContain(
        `(live, at most ${String(Math.ceil((without.bytesSent - (without.bytesSupplied ?? 0)) / 1e6))} MB)`,
      );
    const moved = await of.up(wanted);
    expect(moved, moved.text).toMatchObject({ ok: true });
    const { bytesSent, bytesSupplied } = lastMove(moved);
    console.log(`${kind}: ${String(without.bytesSent)} bytes sent without, ${String(bytesSent)} with`);
    expect(bytesSent).toBeLessThan(without.bytesSent - baseMb * 1e6);
    expect(bytesSupplied).toBe(0);
    // also what it had of its own is there, but for what has changed since
    if (kind === "kvm") expect(bytesSent).toBeLessThan((without.bytesSent - baseMb * 1e6) / 2);
    expect(preseeded(moved).map(({ hypervisor }) => hypervisor)).toEqual([`gw1/${kind}`, `gw2/${kind}`]);
    await of.settled(wanted);
  });

  it("leaves nothing behind when it is destroyed", async () => {
    const gone = await of.stack.destroy();
    expect(gone, gone.text).toMatchObject({ ok: true });
    for (const gateway of row) expect(await of.lab.hosts[gateway].run("ls -A /var/lib/cloudlet 2>/dev/null; true")).toBe("");
  });
});
