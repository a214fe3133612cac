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
  /** The base keeps its memory too, and the second gateway has a cloudlet that starts from that alone. */
  memory?: boolean;
}

function program({ lab, images, sdk }: Gateways, kind: Kind, { image, overlay, at = [], memory }: Wanted): PulumiFn {
  return async () => {
    const hypervisorOn = (name: GatewayName) => {
      const { host, privateKey, hostKey, user } = lab.hosts[name].connection;
      return new sdk.Hypervisor(`${kind}-${name}`, { node: new sdk.Node(name, { connection: { host, privateKey, hostKey, user } }), kind });
    };
    const hypervisors = { gw1: hypervisorOn("gw1"), gw2: hypervisorOn("gw2") };
    if (!image) return {};
    const file = kind === "kvm" ? images.vm : images.container;
    const ready = { http: { port: 8080, path: "/peek" }, timeoutSeconds: 60 };
    const base = new sdk.BaseImage("counter-base", {
      file,
      nodes: [hypervisors.gw1, hypervisors.gw2],
      ...(memory && { memory: { sizeMib: 192, ready } }),
    });
    if (!overlay) return { placements: base.placements, digest: base.digest };
    const application = new sdk.Overlay("counter", {
      base,
      builder: hypervisors.gw1,
      ...(!memory && { resources: { memoryMib: 192 } }),
      files: [{ path: "/etc/greeting", content: "hello\n" }],
      ready,
    });
    const cluster = new sdk.EdgeCluster("visits", { application: "visit-counter" });
    const cloudlets = at.map((name) => {
      const hypervisor = hypervisors[name];
      return new sdk.Cloudlet(`on-${name}`, { cluster, hypervisor, base, overlay: application, ports: [{ port: 8080 }], ready });
    });
    const plain = memory && new sdk.Cloudlet("plain", { cluster, hypervisor: hypervisors.gw2, base, ports: [{ port: 8080 }], ready });
    return {
      plain: plain && plain.provision,
      placements: base.placements,
      overlay: application.digest,
      overlayBytes: application.bytes,
      provisions: cloudlets.map(({ provision }) => provision),
    };
  };
}

/** A stack over two gateways of one kind. */
class Synthesis {
  readonly #kind: Kind;
  readonly gateways: Gateways;

  constructor(kind: Kind, gateways: Gateways) {
    this.#kind = kind;
    this.gateways = gateways;
  }

  up(wanted: Wanted): Promise<Outcome> {
    return this.gateways.stack.up(program(this.gateways, this.#kind, wanted));
  }

  preview(wanted: Wanted): Promise<Outcome> {
    return this.gateways.stack.preview(program(this.gateways, this.#kind, wanted));
  }

  /** The same program changes nothing, before and after a refresh. */
  async settled(wanted: Wanted): Promise<void> {
    const again = await this.up(wanted);
    expect({ ok: again.ok, steps: steps(again) }, again.text).toEqual({ ok: true, steps: [] });
    const refreshed = await this.gateways.stack.refresh();
    expect(refreshed, refreshed.text).toMatchObject({ ok: true });
    const shown = await this.preview(wanted);
    expect({ ok: shown.ok, steps: steps(shown) }, shown.text).toEqual({ ok: true, steps: [] });
  }

  /** Everything goes, and nothing is left on the gateways. */
  async leavesNothing(): Promise<void> {
    const outcome = await this.gateways.stack.destroy();
    expect(outcome, outcome.text).toMatchObject({ ok: true });
    for (const gateway of ["gw1", "gw2"] as const) {
      const left = "ls -A /var/lib/cloudlet 2>/dev/null; ip netns list; nft list tables; ip -br link show type bridge; true";
      expect(await this.gateways.lab.hosts[gateway].run(left)).toBe("");
    }
  }
}

const steps = ({ steps }: Outcome): string[] => steps.filter(({ op }) => op !== "same").map(({ op, name }) => `${op} ${name}`);
const provisions = ({ outputs }: Outcome): Provision[] => outputs["provisions"] as Provision[];

describe.each(["kvm", "lxd"] as const)("a %s cloudlet by synthesis", (kind) => {
  let gateways: Gateways;
  let of: Synthesis;
  beforeAll(async () => {
    gateways = await openGateways(`synth${kind}`, kind === "lxd" ? { lxd: ["gw1", "gw2"] } : {});
    of = new Synthesis(kind, gateways);
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  it("a base goes to the first gateway from the operator, and to the second from the first", async () => {
    const made = await of.up({ image: true });
    expect(made, made.text).toMatchObject({ ok: true });
    const placements = made.outputs["placements"] as { node: string; bytesTransferred: number; from: string }[];
    expect(placements.map(({ node, from }) => `${node} from ${from}`).sort()).toEqual(["gw1 from operator", "gw2 from gw1"]);
    expect(new Set(placements.map(({ bytesTransferred }) => bytesTransferred)).size).toBe(1);
    await of.settled({ image: true });
  });

  it("a base that vanished from a gateway shows in refresh, and up brings it back through the operator where the link is cut", async () => {
    await gateways.lab.hosts.gw2.run("rm -rf /var/lib/cloudlet/images /var/lib/cloudlet/store/*");
    await gateways.stack.refresh();
    const shown = await of.preview({ image: true });
    expect(steps(shown), shown.text).toEqual(["update counter-base"]);
    await gateways.lab.cutBetween("gw1", "gw2");
    try {
      const repaired = await of.up({ image: true });
      expect(repaired, repaired.text).toMatchObject({ ok: true });
      expect(repaired.outputs["placements"]).toContainEqual(expect.objectContaining({ node: "gw2", from: "gw1" }));
    } finally {
      await gateways.lab.healBetween("gw1", "gw2");
    }
  });

  it("an overlay is built once, and a cloudlet on its builder starts from what is there", async () => {
    const wanted: Wanted = { image: true, overlay: true, at: ["gw1"] };
    const made = await of.up(wanted);
    expect(made, made.text).toMatchObject({ ok: true });
    const [provision] = provisions(made);
    expect(provision, provision?.reason).toMatchObject({ rung: kind === "kvm" ? "resume" : "boot", bytesTransferred: 0, verified: true });
    expect(await gateways.visit("gw1")).toBeGreaterThan(0);
    await of.settled(wanted);
  });

  it("a second one on the other gateway answers while the overlay is still coming, and is whole when up returns", async () => {
    const wanted: Wanted = { image: true, overlay: true, at: ["gw1", "gw2"] };
    const shown = await of.preview(wanted);
    expect(steps(shown), shown.text).toEqual(["create on-gw2"]);
    expect(shown.diagnostics).toMatch(
      kind === "kvm" ? /starts from its overlay: it resumes/ : /starts by boot: a container has no saved memory/,
    );
    const made = await of.up(wanted);
    expect(made, made.text).toMatchObject({ ok: true });
    const [, provision] = provisions(made);
    expect(provision, provision?.reason).toMatchObject({ rung: kind === "kvm" ? "lazy" : "boot", verified: true });
    expect(provision?.bytesTransferred).toBeGreaterThan(0);
    expect(await gateways.visit("gw2")).toBeGreaterThan(0);
    expect(await gateways.visit("gw1")).toBeGreaterThan(0);
    console.table(provisions(made));
    await of.settled(wanted);
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
    const removed = await of.up({ image: true });
    expect(removed, removed.text).toMatchObject({ ok: true });
    expect([await gateways.running("gw1"), await gateways.running("gw2")]).toEqual([0, 0]);
    await of.leavesNothing();
  });
});

describe("a base with memory", () => {
  let gateways: Gateways;
  let of: Synthesis;
  beforeAll(async () => {
    gateways = await openGateways("synthmem");
    of = new Synthesis("kvm", gateways);
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  it("is booted once; an overlay over it and a cloudlet without an application both resume", async () => {
    const wanted: Wanted = { image: true, memory: true, overlay: true, at: ["gw1"] };
    const made = await of.up(wanted);
    expect(made, made.text).toMatchObject({ ok: true });
    const [provision] = provisions(made);
    expect(provision, provision?.reason).toMatchObject({ rung: "resume", bytesTransferred: 0 });
    expect(made.outputs["plain"]).toMatchObject({ rung: "resume", bytesTransferred: 0 });
    expect(await gateways.visit("gw1")).toBeGreaterThan(0);
    expect(await gateways.visit("gw2")).toBeGreaterThan(0);
    console.table([...provisions(made), made.outputs["plain"]]);
    await of.settled(wanted);
  });

  it("delete leaves nothing", () => of.leavesNothing());
});
