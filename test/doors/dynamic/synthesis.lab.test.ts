import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { PulumiFn } from "@pulumi/pulumi/automation/index.js";
import type { Provision } from "../../../provider/agent/protocol.ts";
import type { Outcome } from "../../engine.ts";
import { openGateways, type GatewayName, type Gateways, type Kind } from "../../gateways.ts";

/** What the program declares besides two gateways that both have the base. */
interface Wanted {
  image?: boolean;
  overlay?: boolean;
  /** Gateways that have a cloudlet of the overlay. */
  at?: GatewayName[];
}

function program({ lab, images, sdk }: Gateways, kind: Kind, { image, overlay, at = [] }: Wanted): PulumiFn {
  return async () => {
    const hypervisorOn = (name: GatewayName) => {
      const { host, privateKey, hostKey, user } = lab.hosts[name].connection;
      return new sdk.Hypervisor(`${kind}-${name}`, { node: new sdk.Node(name, { connection: { host, privateKey, hostKey, user } }), kind });
    };
    const hypervisors = { gw1: hypervisorOn("gw1"), gw2: hypervisorOn("gw2") };
    if (!image) return {};
    const file = kind === "kvm" ? images.vm : images.container;
    const base = new sdk.BaseImage("counter-base", { file, nodes: [hypervisors.gw1, hypervisors.gw2] });
    const ready = { http: { port: 8080, path: "/peek" }, timeoutSeconds: 60 };
    if (!overlay) return { placements: base.placements, digest: base.digest };
    const application = new sdk.Overlay("counter", {
      base,
      builder: hypervisors.gw1,
      resources: { memoryMib: 192 },
      files: [{ path: "/etc/greeting", content: "hello\n" }],
      ready,
    });
    const cluster = new sdk.EdgeCluster("visits", { application: "visit-counter" });
    const cloudlets = at.map((name) => {
      const hypervisor = hypervisors[name];
      return new sdk.Cloudlet(`on-${name}`, { cluster, hypervisor, base, overlay: application, ports: [{ port: 8080 }], ready });
    });
    return {
      placements: base.placements,
      overlay: application.digest,
      overlayBytes: application.bytes,
      provisions: cloudlets.map(({ provision }) => provision),
    };
  };
}

describe.each(["kvm", "lxd"] as const)("a %s cloudlet by synthesis", (kind) => {
  let gateways: Gateways;
  beforeAll(async () => {
    gateways = await openGateways(`synth${kind}`, kind === "lxd" ? { lxd: ["gw1", "gw2"] } : {});
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  const up = (wanted: Wanted): Promise<Outcome> => gateways.stack.up(program(gateways, kind, wanted));
  const preview = (wanted: Wanted): Promise<Outcome> => gateways.stack.preview(program(gateways, kind, wanted));
  const steps = ({ steps }: Outcome): string[] => steps.filter(({ op }) => op !== "same").map(({ op, name }) => `${op} ${name}`);
  const provisions = ({ outputs }: Outcome): Provision[] => outputs["provisions"] as Provision[];

  /** The same program changes nothing, before and after a refresh. */
  async function settled(wanted: Wanted): Promise<void> {
    const again = await up(wanted);
    expect({ ok: again.ok, steps: steps(again) }, again.text).toEqual({ ok: true, steps: [] });
    const refreshed = await gateways.stack.refresh();
    expect(refreshed, refreshed.text).toMatchObject({ ok: true });
    const shown = await preview(wanted);
    expect({ ok: shown.ok, steps: steps(shown) }, shown.text).toEqual({ ok: true, steps: [] });
  }

  it("a base goes to the first gateway from the operator, and to the second from the first", async () => {
    const made = await up({ image: true });
    expect(made, made.text).toMatchObject({ ok: true });
    const placements = made.outputs["placements"] as { node: string; bytesTransferred: number; from: string }[];
    expect(placements.map(({ node, from }) => `${node} from ${from}`).sort()).toEqual(["gw1 from operator", "gw2 from gw1"]);
    expect(new Set(placements.map(({ bytesTransferred }) => bytesTransferred)).size).toBe(1);
    await settled({ image: true });
  });

  it("a base that vanished from a gateway shows in refresh, and up brings it back through the operator where the link is cut", async () => {
    await gateways.lab.hosts.gw2.run("rm -rf /var/lib/cloudlet/images /var/lib/cloudlet/store/*");
    await gateways.stack.refresh();
    const shown = await preview({ image: true });
    expect(steps(shown), shown.text).toEqual(["update counter-base"]);
    await gateways.lab.cutBetween("gw1", "gw2");
    try {
      const repaired = await up({ image: true });
      expect(repaired, repaired.text).toMatchObject({ ok: true });
      expect(repaired.outputs["placements"]).toContainEqual(expect.objectContaining({ node: "gw2", from: "gw1" }));
    } finally {
      await gateways.lab.healBetween("gw1", "gw2");
    }
  });

  it("an overlay is built once, and a cloudlet on its builder starts from what is there", async () => {
    const wanted: Wanted = { image: true, overlay: true, at: ["gw1"] };
    const made = await up(wanted);
    expect(made, made.text).toMatchObject({ ok: true });
    const [provision] = provisions(made);
    expect(provision, provision?.reason).toMatchObject({ rung: kind === "kvm" ? "resume" : "boot", bytesTransferred: 0, verified: true });
    expect(await gateways.visit("gw1")).toBeGreaterThan(0);
    await settled(wanted);
  });

  it("a second one on the other gateway answers while the overlay is still coming, and is whole when up returns", async () => {
    const wanted: Wanted = { image: true, overlay: true, at: ["gw1", "gw2"] };
    const made = await up(wanted);
    expect(made, made.text).toMatchObject({ ok: true });
    const [, provision] = provisions(made);
    expect(provision, provision?.reason).toMatchObject({ rung: kind === "kvm" ? "lazy" : "boot", verified: true });
    expect(provision?.bytesTransferred).toBeGreaterThan(0);
    expect(await gateways.visit("gw2")).toBeGreaterThan(0);
    expect(await gateways.visit("gw1")).toBeGreaterThan(0);
    console.table(provisions(made));
    await settled(wanted);
  });

  it("and goes on when the gateway that it came from is gone", async () => {
    const before = (await gateways.visit("gw2")) ?? -1;
    await gateways.lab.cut("gw1");
    try {
      expect(await gateways.visit("gw2")).toBe(before + 1);
    } finally {
      await gateways.lab.heal("gw1");
    }
  });

  it("delete leaves nothing", async () => {
    const removed = await up({ image: true });
    expect(removed, removed.text).toMatchObject({ ok: true });
    expect([await gateways.running("gw1"), await gateways.running("gw2")]).toEqual([0, 0]);
    const outcome = await gateways.stack.destroy();
    expect(outcome, outcome.text).toMatchObject({ ok: true });
    for (const gateway of ["gw1", "gw2"] as const) {
      const left = "ls -A /var/lib/cloudlet 2>/dev/null; ip netns list; nft list tables; ip -br link show type bridge; true";
      expect(await gateways.lab.hosts[gateway].run(left)).toBe("");
    }
  });
});
