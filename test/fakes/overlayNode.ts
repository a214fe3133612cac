import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import { verbs, type Verb, type VerbArgs, type VerbResult } from "../../provider/agent/protocol.ts";
import type { KeptOverlayStatus } from "../../provider/agent/clientTypes.ts";
import type { Handoff } from "../../provider/agent/handoffProtocol.ts";
import type { OverlayNode } from "../../provider/cli/node.ts";
import { CloudletError } from "../../provider/core/errors.ts";
import { parseManifest } from "../../provider/synthesis/manifestCheck.ts";

/** A node's store and what it keeps, in memory; it looks into no overlay. */
export class FakeOverlayNode implements OverlayNode {
  readonly label: string;
  readonly blobs = new Map<string, Buffer>();
  readonly kept: KeptOverlayStatus[] = [];
  /** By cloudlet. */
  readonly moved = new Map<string, Handoff[]>();
  kind: "kvm" | "lxd" | undefined = "lxd";
  /** Digests of blobs that arrived, in their order. */
  readonly arrived: string[] = [];
  /** The verbs that were asked for. */
  readonly asked: string[] = [];
  /** What the recombined images turn out to be. */
  verdict: CloudletError | undefined;

  constructor(label: string) {
    this.label = label;
  }

  /** As if it had been built here. */
  hold(contents: Buffer[], owner = "faces/dev"): void {
    for (const content of contents) this.blobs.set(createHash("sha256").update(content).digest("hex"), content);
    const [manifest] = contents;
    if (manifest) this.#keep({ name: "server", owner, digest: createHash("sha256").update(manifest).digest("hex") });
  }

  handoffs(id: string): Promise<Handoff[]> {
    return Promise.resolve(this.moved.get(id) ?? []);
  }

  overlays(): Promise<KeptOverlayStatus[]> {
    return Promise.resolve([...this.kept]);
  }

  hypervisor(): ReturnType<OverlayNode["hypervisor"]> {
    if (this.kind === undefined) return Promise.resolve(undefined);
    return Promise.resolve({
      kind: this.kind,
      owners: [],
      version: "1",
      accelerator: "none",
      machineTypes: [],
      abilities: [],
      cloudlets: [],
    });
  }

  hasBlob(digest: string): Promise<boolean> {
    return Promise.resolve(this.blobs.has(digest));
  }

  getBlob(digest: string): Promise<{ bytes: number; stream: Readable } | undefined> {
    const content = this.blobs.get(digest);
    return Promise.resolve(content && { bytes: content.length, stream: Readable.from([content]) });
  }

  async putBlob({ digest, stream }: Parameters<OverlayNode["putBlob"]>[0]): Promise<void> {
    const content = Buffer.concat((await stream().toArray()) as Buffer[]);
    if (createHash("sha256").update(content).digest("hex") !== digest) throw new CloudletError("INTEGRITY", `wrong data for ${digest}`);
    this.blobs.set(digest, content);
    this.arrived.push(digest);
  }

  run<V extends Verb>(verb: V, args: VerbArgs<V>): Promise<VerbResult<V>> {
    this.asked.push(verb);
    const given = verbs["overlay.keep"].args.partial().parse(args);
    if (verb === "overlay.verify" && this.verdict) return Promise.reject(this.verdict);
    const { name = "", owner = "", digest = "" } = given;
    if (verb === "overlay.keep") this.#keep({ name, owner, digest });
    if (verb === "overlay.release") this.kept.splice(0, Infinity, ...this.kept.filter((it) => it.name !== name || it.owner !== owner));
    const results: Partial<Record<Verb, unknown>> = {
      "overlay.keep": this.kept.at(-1),
      "overlay.verify": { bytes: 1 },
      "overlay.release": {},
    };
    // the schema of this very verb has just accepted it
    return Promise.resolve(verbs[verb].result.parse(results[verb]) as VerbResult<V>);
  }

  #keep({ name, owner, digest }: { name: string; owner: string; digest: string }): void {
    const { kind, base, diskMib, pack } = parseManifest(this.blobs.get(digest)?.toString() ?? "");
    const resources = { cores: 1, memoryMib: 1, diskMib };
    this.kept.push({ name, owner, digest, kind, base, resources, bytes: pack.bytes, diskBytes: 0, memoryBytes: 0 });
  }
}
