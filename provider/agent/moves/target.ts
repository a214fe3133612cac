import { createReadStream } from "node:fs";
import { mkdir, open, rm } from "node:fs/promises";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import type { Driver } from "../../hypervisors/types.ts";
import { readJson, writeDurably } from "../durable.ts";
import { toJobError, type JobContext } from "../jobs.ts";
import { dataPort, digestSchema, jobErrorSchema, type InstanceSpec, type MoveReport, type VerbArgs, type VerbResult } from "../protocol.ts";
import { checkPorts } from "../instanceApply.ts";
import { bringTo, guestOf, imagesOf } from "../instances.ts";
import { allocateNetwork, type InstanceRecord } from "../records.ts";
import type { Services } from "../services.ts";
import { Assembly, type Source } from "./assembly.ts";
import { decompressFile, decompressTo } from "./compression.ts";
import { DataServer, newToken, tokenMatches, type Receiver } from "./dataServer.ts";
import { recipeSchema, sealOf, type Recipe } from "./recipe.ts";
import type { Arrival } from "./wire.ts";

const arrivalFileSchema = z.object({
  epoch: z.int(),
  from: z.string(),
  token: digestSchema.describe("SHA-256 of the one-time token."),
  phase: z.enum(["prepared", "sealed", "starting", "ready", "failed"]),
  mode: z.enum(["cold", "state"]).optional(),
  parts: z.array(recipeSchema).optional(),
  seal: digestSchema.optional(),
  error: jobErrorSchema.optional(),
});
type ArrivalFile = z.infer<typeof arrivalFileSchema>;

/** The receiving half of a move: it takes everything in, makes the stopped guest, and starts it only when it is told that the source has let go. */
export class MoveTarget implements Receiver {
  readonly #services: Services;
  readonly #server: DataServer;
  readonly #assemblies = new Map<string, Assembly>();

  constructor(services: Services) {
    this.#services = services;
    this.#server = new DataServer(services.root, this);
  }

  /** Reserves the place and opens the data port. Asked again for the same epoch it goes on where the transfer was. */
  async prepare({ spec, epoch, from }: VerbArgs<"move.prepare">, context: JobContext): Promise<VerbResult<"move.prepare">> {
    const { records, hypervisors } = this.#services;
    const record = await records.read(spec.id);
    const owned = record?.ownership.role === "owner";
    if (record && record.spec.owner !== spec.owner)
      throw new CloudletError("CONFLICT", `${spec.id} on this node belongs to ${record.spec.owner}`);
    if (record && owned && record.ownership.epoch !== epoch) {
      throw new CloudletError("CONFLICT", `this node already runs ${spec.id}, at epoch ${record.ownership.epoch}`, {
        fix: "run `pulumi refresh` to see where the cloudlet is",
      });
    }
    if (record && !owned && record.ownership.epoch > epoch)
      throw new CloudletError("CONFLICT", `${spec.id} was here at epoch ${record.ownership.epoch}, and ${epoch} is older`);
    await hypervisors.driver(spec.kind);
    if (!owned) {
      if (record?.ownership.epoch !== epoch) await rm(this.#incoming(spec.id), { recursive: true, force: true });
      await this.#reserve(spec, { epoch, role: "incoming", peer: from }, record);
    }
    const { token, digest } = newToken();
    const before = await this.#read(spec.id);
    const resumed: ArrivalFile =
      before?.epoch === epoch ? { ...before, token: digest } : { epoch, from, token: digest, phase: owned ? "ready" : "prepared" };
    await this.#write(spec.id, resumed);
    const certificate = await this.#server.open();
    context.step("prepared");
    return { addresses: ownAddresses(), port: dataPort, certificate, token };
  }

  /** Forgets a copy that was never activated. */
  async cancel(id: string, context: JobContext): Promise<void> {
    const record = await this.#services.records.read(id);
    if (record?.ownership.role !== "incoming") return;
    const driver = await this.#services.hypervisors.driver(record.spec.kind);
    await driver.remove(await guestOf(this.#services, record), context);
    await this.#services.records.remove(id);
    await this.#closeWhenIdle();
    context.step("cancelled");
  }

  /** After a restart of the agent: the port is open again for moves that are under way, and a start that was cut short is finished. */
  async resume(context: JobContext): Promise<void> {
    for (const record of await this.#services.records.list()) {
      const arrival = await this.#read(record.spec.id);
      if (arrival === undefined) continue;
      await this.#server.open();
      if (record.ownership.role === "owner" && arrival.phase !== "ready") this.#start(record, arrival, context);
    }
  }

  close(): void {
    this.#server.close();
  }

  async authorize(id: string, token: string): Promise<boolean> {
    const arrival = id === "" ? undefined : await this.#read(id).catch(() => undefined);
    return arrival !== undefined && tokenMatches(token, arrival.token);
  }

  async arrival(id: string): Promise<Arrival> {
    const { record, arrival } = await this.#both(id);
    const blobs = [record.spec.base.digest, ...(record.spec.build ? [record.spec.build.digest] : [])];
    const needs: string[] = [];
    for (const digest of blobs) if (!(await this.#services.store.has(digest))) needs.push(digest);
    return {
      phase: arrival.phase,
      epoch: arrival.epoch,
      kind: record.spec.kind,
      needs,
      ...(arrival.seal && { seal: arrival.seal }),
      ...(arrival.error && { error: arrival.error }),
    };
  }

  async supply(id: string, digest: string, body: Readable): Promise<void> {
    const { record } = await this.#both(id);
    if (digest !== record.spec.base.digest && digest !== record.spec.build?.digest)
      throw new CloudletError("REFUSED", `${id} does not need ${digest}`);
    await this.#services.store.put(digest, () => body);
  }

  async begin(id: string, mode: "cold" | "state", parts: Recipe[]): Promise<string[]> {
    const { record, arrival } = await this.#both(id);
    if (record.ownership.role !== "incoming")
      throw new CloudletError("CONFLICT", `${id} is ${record.ownership.role} on this node and takes nothing in`);
    if (arrival.phase === "sealed" && arrival.seal === sealOf(parts)) return [];
    const bytes = parts.reduce((sum, part) => sum + part.bytes, 0);
    await this.#services.store.requireSpace(bytes);
    await this.#write(id, { ...arrival, phase: "prepared", mode, parts, seal: undefined });
    const assembly = new Assembly(this.#incoming(id));
    this.#assemblies.set(id, assembly);
    return this.#withBase(record, (sources) => assembly.begin(parts, sources));
  }

  async receive(id: string, body: Readable): Promise<void> {
    const assembly = this.#assemblies.get(id);
    if (assembly === undefined) throw new CloudletError("UNREACHABLE", "the agent was restarted during the transfer");
    await decompressTo(body, (plain) => assembly.receive(plain));
  }

  async seal(id: string, seal: string): Promise<void> {
    await this.#services.lock.run(`arrival:${id}`, async () => {
      const { record, arrival } = await this.#both(id);
      if (arrival.phase === "sealed" && arrival.seal === seal) return;
      if (!arrival.parts || !arrival.mode || sealOf(arrival.parts) !== seal)
        throw new CloudletError("CONFLICT", `${id} is sealed for something that was not sent`);
      await new Assembly(this.#incoming(id)).seal(arrival.parts);
      await this.#make(record, arrival.mode, arrival.parts);
      await this.#write(id, { ...arrival, phase: "sealed", seal });
    });
  }

  async activate(id: string, seal: string, epoch: number): Promise<void> {
    const { record, arrival } = await this.#both(id);
    if (arrival.epoch !== epoch || arrival.seal !== seal)
      throw new CloudletError("CONFLICT", `${id} was sealed for another state than the one it should be started from`);
    if (arrival.phase === "starting" || arrival.phase === "ready") return;
    const owned: InstanceRecord = {
      ...record,
      ownership: { epoch, role: "owner", peer: arrival.from },
      complete: true,
      restartPending: false,
      builtFrom: record.spec.base.digest,
    };
    await this.#services.records.write(owned);
    this.#start(owned, arrival, { signal: new AbortController().signal, step: () => {}, status: () => {} });
  }

  async complete(id: string, report: MoveReport): Promise<void> {
    const { record } = await this.#both(id);
    await this.#services.records.write({ ...record, lastMove: report });
    await rm(this.#incoming(id), { recursive: true, force: true });
    await rm(this.#file(id), { force: true });
    this.#assemblies.delete(id);
    await this.#closeWhenIdle();
  }

  /** One step that no other claim of a port or an address can get between. */
  async #reserve(spec: InstanceSpec, ownership: InstanceRecord["ownership"], existing: InstanceRecord | undefined): Promise<void> {
    const { records, lock } = this.#services;
    await lock.run("hypervisor", async () => {
      const others = (await records.list()).filter((record) => record.spec.id !== spec.id);
      await checkPorts(this.#services, { spec, others, existing });
      const network = allocateNetwork(spec.id, new Set(others.map((other) => other.network.address)));
      await records.write({ network, spec, ownership, complete: false, restartPending: false });
    });
  }

  /** In the background: the source watches the arrival, and its operator through it. */
  #start(record: InstanceRecord, arrival: ArrivalFile, context: JobContext): void {
    const { id } = record.spec;
    const note = (change: Partial<ArrivalFile>) => this.#write(id, { ...arrival, ...change });
    const work = async (): Promise<void> => {
      await note({ phase: "starting", error: undefined });
      await this.#services.network.publish(await this.#services.records.list());
      const opened = {
        record,
        driver: await this.#services.hypervisors.driver(record.spec.kind),
        guest: await guestOf(this.#services, record, await imagesOf(this.#services, record)),
      };
      await bringTo(opened, { state: record.spec.state, restart: false }, context);
      await note({ phase: "ready" });
    };
    void this.#services.lock.run(`instance:${id}`, work).catch(async (error: unknown) => {
      await note({ phase: "failed", error: toJobError(error) }).catch(() => {});
    });
  }

  /** The stopped guest, from the assembled files. */
  async #make(record: InstanceRecord, mode: "cold" | "state", parts: Recipe[]): Promise<void> {
    const { volumes, hypervisors } = this.#services;
    const progress = { signal: AbortSignal.timeout(15 * 60_000), status: () => {} };
    const driver = await hypervisors.driver(record.spec.kind);
    const incoming = this.#incoming(record.spec.id);
    for (const [index, { id }] of record.spec.volumes.entries()) {
      const part = parts.find(({ name }) => name.startsWith(`volume-${index}.`));
      const known = await volumes.read(id);
      if (part === undefined) throw new CloudletError("INTEGRITY", `volume ${id} of ${record.spec.id} was not sent`);
      const sizeMib = Number(/^volume-\d+\.(\d+)\./.exec(part.name)?.[1] ?? 0);
      const spec = known?.spec ?? { id, owner: record.spec.owner, kind: record.spec.kind, sizeMib };
      await this.#placeVolume(
        driver,
        { path: join(incoming, part.name), raw: part.name.endsWith(".raw"), to: volumes.dataPath(id), sizeMib },
        progress,
      );
      await volumes.write({ spec: { ...spec, kind: record.spec.kind, sizeMib }, place: "here" });
    }
    const guest = await guestOf(this.#services, record, await imagesOf(this.#services, record));
    if (mode === "cold") {
      await driver.importParts(guest, incoming, progress);
      await driver.ensure(guest, progress);
    } else {
      await driver.remove(guest, progress);
      await mkdir(guest.directory, { recursive: true });
      await driver.ensure(guest, progress);
      const state = parts.find(({ name }) => name === "state.tar");
      if (state) await driver.importState(guest, createReadStream(join(incoming, state.name)), progress);
    }
  }

  async #placeVolume(
    driver: Driver,
    volume: { path: string; raw: boolean; to: string; sizeMib: number },
    progress: { signal: AbortSignal; status(text: string): void },
  ): Promise<void> {
    await mkdir(join(volume.to, ".."), { recursive: true, mode: 0o755 });
    if (!volume.raw) return driver.writeVolume(volume.to, volume.sizeMib, createReadStream(volume.path), progress);
    // made first for its owner and mode, then given the content
    await driver.createVolume(volume.to, volume.sizeMib, progress);
    await overwrite(volume.path, volume.to);
  }

  /** Files in which pieces of an archive may be: the base, unpacked from its compression for the time of the search. */
  async #withBase<T>(record: InstanceRecord, use: (sources: Source[]) => Promise<T>): Promise<T> {
    const digest = record.spec.base.digest;
    if (record.spec.kind !== "lxd" || !(await this.#services.store.has(digest))) return use([]);
    const plain = join(this.#incoming(record.spec.id), "base.plain");
    await mkdir(this.#incoming(record.spec.id), { recursive: true });
    try {
      await decompressFile(await this.#services.store.path(digest), plain);
      return await use([{ path: plain, format: "tar" }]);
    } finally {
      await rm(plain, { force: true });
    }
  }

  async #both(id: string): Promise<{ record: InstanceRecord; arrival: ArrivalFile }> {
    const [record, arrival] = await Promise.all([this.#services.records.read(id), this.#read(id)]);
    if (record === undefined || arrival === undefined) throw new CloudletError("NOT_FOUND", `no move of ${id} is expected on this node`);
    return { record, arrival };
  }

  async #closeWhenIdle(): Promise<void> {
    for (const record of await this.#services.records.list()) if (await this.#read(record.spec.id)) return;
    this.#server.close();
  }

  #incoming(id: string): string {
    return join(this.#services.records.directoryOf(id), "incoming");
  }

  #file(id: string): string {
    return join(this.#services.records.directoryOf(id), "arrival.json");
  }

  #read(id: string): Promise<ArrivalFile | undefined> {
    return readJson(this.#file(id), arrivalFileSchema);
  }

  #write(id: string, arrival: { [K in keyof ArrivalFile]: ArrivalFile[K] | undefined }): Promise<void> {
    return writeDurably(this.#file(id), JSON.stringify(arrival), 0o600);
  }
}

/** Addresses at which another node might reach this one; guests' bridges are not among them. */
function ownAddresses(): string[] {
  return Object.entries(networkInterfaces())
    .filter(([name]) => !/^(lo|cloudlet|lxd|virbr|docker|cl[0-9a-f]{8})/.test(name))
    .flatMap(([, addresses]) => addresses ?? [])
    .filter(({ internal, address }) => !internal && !address.startsWith("fe80:"))
    .map(({ address }) => address);
}

async function overwrite(from: string, to: string): Promise<void> {
  const target = await open(to, "r+");
  try {
    let position = 0;
    for await (const chunk of createReadStream(from, { highWaterMark: 1024 * 1024 })) {
      await target.write(chunk, 0, chunk.length, position);
      position += chunk.length;
    }
    await target.sync();
  } finally {
    await target.close();
  }
}
