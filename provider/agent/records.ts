import { createHash } from "node:crypto";
import { mkdir, readdir, rm } from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import { readJson, syncDirectory, writeDurably } from "./durable.ts";
import { moveReportSchema } from "./handoffProtocol.ts";
import {
  digestSchema,
  foreignSchema,
  guestName,
  instanceSpecSchema,
  ownershipSchema,
  portSchema,
  provisionSchema,
  rungSchema,
} from "./protocol.ts";

export const synthesisSchema = z.object({
  /** Digest of the overlay that the guest stands on. */
  overlay: digestSchema,
  rung: rungSchema,
  reason: z.string(),
  beganAt: z.number().describe("Milliseconds since 1970."),
  bytesTransferred: z.int(),
  bytesAvoided: z.int(),
  /** It has answered, so what it has written since counts. */
  firstReplyMillis: z.int().optional(),
  /** Until nothing was missing on the node any more. */
  wholeMillis: z.int().optional(),
  /** Its overlay is still coming; until it is whole, only a guest that reads from the hydrator may run. */
  hydrating: z.boolean(),
});
export type SynthesisRecord = z.infer<typeof synthesisSchema>;

const forwardSchema = z.object({
  address: z.ipv4().describe("Of the node where the cloudlet is now."),
  ports: z.array(z.object({ protocol: portSchema.shape.protocol, hostPort: z.int(), targetPort: z.int() })),
  since: z.number().describe("Milliseconds since 1970."),
});
export type Forward = z.infer<typeof forwardSchema>;

export const recordSchema = z.object({
  spec: instanceSpecSchema,
  ownership: ownershipSchema,
  network: z.object({ mac: z.string(), address: z.string() }),
  /** Whether the last apply reached its end. */
  complete: z.boolean(),
  /** Whether a running guest may still run with what an earlier spec said. */
  restartPending: z.boolean(),
  /** Digest of the base that the guest was made from; absent until it was made. */
  builtFrom: digestSchema.optional(),
  /** Digest of the overlay between the guest and that base, if any. */
  builtOver: digestSchema.optional(),
  /** The hypervisor's name of a guest that was made without us; absent where it has the usual one. */
  called: z.string().optional(),
  /** That guest, until it is taken over. */
  foreign: foreignSchema.optional(),
  /** The guest is being made anew from another base; its state is aside. It must not start before that has ended. */
  rebuilding: z.boolean().optional(),
  /** Given away, and the copy here is kept until the other node has answered. */
  leaving: z.boolean().optional(),
  /** Of one that was given away: where clients who still come to this node are passed on to. */
  forward: forwardSchema.optional(),
  lastMove: moveReportSchema.optional(),
  /** How the guest was made from its overlay, or is being made. */
  synthesis: synthesisSchema.optional(),
  provision: provisionSchema.optional(),
});
export type InstanceRecord = z.infer<typeof recordSchema>;

/** Of a cloudlet that is made here. Later than whatever this node remembers of a former one of its id, and, by the clock, than what others do. */
export function freshOwnership(gone: InstanceRecord | undefined): InstanceRecord["ownership"] {
  return { epoch: Math.max(Date.now(), (gone?.ownership.epoch ?? 0) + 1), role: "owner" };
}

/** What this node knows about cloudlets: one directory each, named for the guest; the record is the truth, the rest belongs to the driver. */
export class Records {
  readonly #directory: string;
  readonly #turns = new Map<string, Promise<void>>();

  constructor(directory: string) {
    this.#directory = directory;
  }

  directoryOf(id: string): string {
    return path.join(this.#directory, guestName(id));
  }

  read(id: string): Promise<InstanceRecord | undefined> {
    return readJson(path.join(this.directoryOf(id), "record.json"), recordSchema);
  }

  async write(record: InstanceRecord): Promise<void> {
    await this.#inTurn(record.spec.id, () => this.#write(record));
  }

  /** Changes what is written down now; nothing happens where nothing is. Returns the record as it is then. */
  async update(id: string, change: (record: InstanceRecord) => InstanceRecord): Promise<InstanceRecord | undefined> {
    return this.#inTurn(id, async () => {
      const record = await this.read(id);
      if (record === undefined) return undefined;
      const changed = change(record);
      await this.#write(changed);
      return changed;
    });
  }

  async #inTurn<T>(id: string, work: () => Promise<T>): Promise<T> {
    const mine = (this.#turns.get(id) ?? Promise.resolve()).then(work);
    const settled = mine.then(
      () => undefined,
      () => undefined,
    );
    this.#turns.set(id, settled);
    void settled.then(() => {
      if (this.#turns.get(id) === settled) this.#turns.delete(id);
    });
    return mine;
  }

  async #write(record: InstanceRecord): Promise<void> {
    const directory = this.directoryOf(record.spec.id);
    // hypervisor processes of another user pass through, records stay unreadable to them
    if ((await mkdir(directory, { recursive: true, mode: 0o755 })) !== undefined) await syncDirectory(this.#directory);
    await writeDurably(path.join(directory, "record.json"), `${JSON.stringify(record, null, 2)}\n`, 0o600);
  }

  async list(): Promise<InstanceRecord[]> {
    const found: InstanceRecord[] = [];
    for (const name of (await readdir(this.#directory).catch(() => [])).sort()) {
      const record = await readJson(path.join(this.#directory, name, "record.json"), recordSchema);
      if (record !== undefined) found.push(record);
    }
    return found;
  }

  /** Forgets a cloudlet and everything in its directory. */
  async remove(id: string): Promise<void> {
    const directory = this.directoryOf(id);
    // the record goes first: what is left of a directory without one is nobody's
    await rm(path.join(directory, "record.json"), { force: true });
    await rm(directory, { recursive: true, force: true });
    await syncDirectory(this.#directory).catch(() => undefined);
  }
}

export const subnet = {
  bridge: "cloudlet0",
  gateway: "10.87.0.1",
  gatewayMac: "02:00:0a:57:00:01",
  prefix: 16,
  cidr: "10.87.0.0/16",
} as const;

const firstHost = 256;
const hosts = 65_536 - 2 * firstHost;

/** The same id has the same address on every node, unless another cloudlet there has it already: then the next free one. */
export function allocateNetwork(id: string, taken: ReadonlySet<string>): InstanceRecord["network"] {
  const wanted = createHash("sha256").update(id).digest().readUInt32BE(0) % hosts;
  for (let offset = 0; offset < hosts; offset++) {
    const host = firstHost + ((wanted + offset) % hosts);
    const [high, low] = [host >> 8, host & 255];
    if (low === 0 || low === 255) continue;
    const address = `10.87.${String(high)}.${String(low)}`;
    if (!taken.has(address)) return { address, mac: macOf(address) };
  }
  throw new Error("the guest network has no free address");
}

function macOf(address: string): string {
  const bytes = address.split(".").map((part) => Number(part).toString(16).padStart(2, "0"));
  // 02 = locally administered
  return ["02", "00", ...bytes].join(":");
}
