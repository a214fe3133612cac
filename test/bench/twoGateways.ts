import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import type { AgentClient } from "../../provider/agent/clientTypes.ts";
import type { OverlayStatus } from "../../provider/agent/protocol.ts";
import { buildImages } from "../../tools/images/images.ts";
import { openCommissionBench, type CommissionBench } from "../agent/commissionBench.ts";
import { guestResources, workload } from "./workload.ts";

export type Hosts = "gw1" | "gw2" | "subscriber";

/** Two gateways with the same base image, and a subscriber. */
export class TwoGateways {
  readonly bench: CommissionBench<Hosts>;
  readonly agents: Readonly<Record<"gw1" | "gw2", AgentClient>>;
  /** Digest of the base image. */
  readonly base: string;
  readonly owner: string;

  private constructor({ bench, agents, base, owner }: Pick<TwoGateways, "bench" | "agents" | "base" | "owner">) {
    this.bench = bench;
    this.agents = agents;
    this.base = base;
    this.owner = owner;
  }

  static async open(name: string, owner: string): Promise<TwoGateways> {
    const images = await buildImages();
    const bench = await openCommissionBench({ name, hosts: [{ name: "gw1" }, { name: "gw2" }, { name: "subscriber" }] });
    try {
      const commissioned = async (host: "gw1" | "gw2"): Promise<AgentClient> => {
        await bench.commission.apply(await bench.host(host), { owner, install: "auto", kinds: ["kvm"] }, bench.context);
        const agent = await bench.connect(host);
        await agent.run("hypervisor.apply", { kind: "kvm", owner });
        return agent;
      };
      const [gw1, gw2] = await Promise.all([commissioned("gw1"), commissioned("gw2")]);
      const base = await sendFile(gw1, images.vm);
      const opened = new TwoGateways({ bench, agents: { gw1, gw2 }, base, owner });
      await gw1.run("image.keep", { name: "base", owner, digest: base });
      await opened.#copy(base);
      await gw2.run("image.keep", { name: "base", owner, digest: base });
      return opened;
    } catch (error) {
      await bench.close();
      throw error;
    }
  }

  /** The memory of the base after its boot, kept on both gateways. */
  async baseMemory(memoryMib = guestResources.memoryMib): Promise<OverlayStatus> {
    const { owner } = this;
    const name = `memory-${memoryMib}`;
    const resources = { ...guestResources, memoryMib };
    const makings = { ...workload("idle", { base: this.base, parent: undefined }), resources, script: undefined };
    const memory = await this.agents.gw1.run("overlay.build", { name, owner, makings }, { timeoutMillis: 1_800_000 });
    await this.#copy(memory.digest);
    await this.agents.gw2.run("overlay.keep", { name, owner, digest: memory.digest });
    return memory;
  }

  close(): Promise<void> {
    return this.bench.close();
  }

  async #copy(digest: string): Promise<void> {
    const { gw1, gw2 } = this.agents;
    const offer = { node: "gw1", ...(await gw1.run("blobs.offer", { digests: [digest], seconds: 600 })) };
    await gw2.run("blobs.fetch", { digests: [digest], offers: [offer] }, { timeoutMillis: 600_000 });
  }
}

/** The operator's file in an agent's store. */
async function sendFile(agent: AgentClient, file: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(file) as AsyncIterable<Buffer>) hash.update(chunk);
  const digest = hash.digest("hex");
  await agent.putBlob({ digest, bytes: (await stat(file)).size, stream: () => createReadStream(file) });
  return digest;
}
