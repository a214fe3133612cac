import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { CloudletError, codeOf } from "../../core/errors.ts";
import { readJson, writeDurably } from "../durable.ts";
import type { JobContext } from "../jobs.ts";
import { digestSchema, moveTargetSchema, type MoveReport, type VerbArgs } from "../protocol.ts";
import { bringTo, guestOf, imagesOf, type Opened } from "../instances.ts";
import type { InstanceRecord } from "../records.ts";
import type { Services } from "../services.ts";
import { framesOf } from "./assembly.ts";
import { MoveChannel } from "./channel.ts";
import { compress } from "./compression.ts";
import { makeRecipe, sealOf, type Format, type Recipe } from "./recipe.ts";
import { arrivalSchema, missingSchema, type Arrival } from "./wire.ts";

const departureSchema = z.object({
  epoch: z.int(),
  self: z.string(),
  target: moveTargetSchema,
  route: z.enum(["direct", "operator"]),
  seal: digestSchema.optional(),
  mode: z.enum(["cold", "state"]),
  beganAt: z.number(),
  stoppedAt: z.number().optional(),
  bytesSent: z.int(),
  bytesTotal: z.int(),
});
type Departure = z.infer<typeof departureSchema>;

/** Whether a move of this cloudlet away from here has begun and not ended. */
export async function isDeparting(services: Services, id: string): Promise<boolean> {
  return (await readJson(departureFile(services, id), departureSchema)) !== undefined;
}

function departureFile(services: Services, id: string): string {
  return join(services.records.directoryOf(id), "departure.json");
}

const empty = z.object({});
const sealMillis = 15 * 60_000;
const sendAttempts = 4;
const pauses = [500, 1000, 2000, 4000];

interface FilePart {
  name: string;
  path: string;
  format: Format;
}

/** The sending half of a move. Until it has durably let go it is the owner and restarts the guest when anything fails; from then on it only goes forward. */
export class MoveSource {
  readonly #services: Services;

  constructor(services: Services) {
    this.#services = services;
  }

  async run(args: VerbArgs<"move.run">, context: JobContext): Promise<MoveReport> {
    const record = await this.#services.records.read(args.id);
    if (record === undefined) throw new CloudletError("NOT_FOUND", `${args.self} has no cloudlet ${args.id}`);
    const channel = new MoveChannel(args.target, args.id);
    try {
      const arrival = await channel.json(arrivalSchema, { method: "GET", path: "/v1/arrival" });
      context.step("connected");
      const departure = await this.#begin(record, args, arrival);
      if (record.ownership.role === "owner") await this.#handOver(record, departure, { channel, arrival, context });
      return await this.#finish(args.id, channel, context);
    } finally {
      channel.close();
    }
  }

  /** Goes on with moves that were cut off after this node had let go: forward is the only way. */
  async resume(context: JobContext): Promise<void> {
    for (const record of await this.#services.records.list()) {
      const departure = await this.#read(record.spec.id);
      if (record.ownership.role !== "released" || departure === undefined) continue;
      const channel = new MoveChannel(departure.target, record.spec.id);
      try {
        await this.#services.lock.run(`instance:${record.spec.id}`, () => this.#finish(record.spec.id, channel, context));
      } catch (error) {
        context.status(
          `the move of ${record.spec.id} to ${departure.target.node} waits: ${error instanceof Error ? error.message : String(error)}`,
        );
      } finally {
        channel.close();
      }
    }
  }

  async #begin(record: InstanceRecord, args: VerbArgs<"move.run">, arrival: Arrival): Promise<Departure> {
    const expected = record.ownership.role === "owner" ? args.epoch - 1 : args.epoch;
    if (record.ownership.role === "incoming" || record.ownership.epoch !== expected || arrival.epoch !== args.epoch) {
      throw new CloudletError(
        "CONFLICT",
        `${args.id} is ${record.ownership.role} at epoch ${record.ownership.epoch} here, and the move is for epoch ${args.epoch}`,
        { fix: "run `pulumi refresh`, then `pulumi up`" },
      );
    }
    const before = await this.#read(args.id);
    const fresh: Departure = {
      epoch: args.epoch,
      self: args.self,
      target: args.target,
      route: args.route,
      mode: arrival.kind === record.spec.kind ? "cold" : "state",
      beganAt: Date.now(),
      bytesSent: 0,
      bytesTotal: 0,
    };
    const departure =
      before?.epoch === args.epoch && record.ownership.role === "released" ? { ...before, target: args.target, route: args.route } : fresh;
    await this.#write(args.id, departure);
    return departure;
  }

  /** From "runs here" to "released": everything that may fail comes before the release. */
  async #handOver(
    record: InstanceRecord,
    departure: Departure,
    way: { channel: MoveChannel; arrival: Arrival; context: JobContext },
  ): Promise<void> {
    const { channel, arrival, context } = way;
    const opened = await this.#open(record);
    for (const digest of arrival.needs) {
      context.status(`sending ${digest === record.spec.base.digest ? "the base" : "the build"} to ${departure.target.node}`);
      await channel.stream(`/v1/blobs/${digest}`, createReadStream(await this.#services.store.path(digest)), context.signal);
    }
    context.step("supplied");
    const stoppedAt = Date.now();
    try {
      const parts = await this.#export(opened, departure.mode, context);
      const recipes: Recipe[] = [];
      for (const part of parts) recipes.push(await makeRecipe(part.name, part.path, part.format));
      await this.#send(departure, { parts, recipes, channel, context });
      context.step("sent");
      const seal = sealOf(recipes);
      context.status(`${departure.target.node} puts the cloudlet together`);
      await channel.json(empty, { method: "POST", path: "/v1/seal", body: { seal }, timeoutMillis: sealMillis, signal: context.signal });
      context.step("sealed");
      const bytesTotal = recipes.reduce((sum, { bytes }) => sum + bytes, 0);
      await this.#write(record.spec.id, { ...departure, seal, stoppedAt, bytesSent: channel.bytesSent, bytesTotal });
    } catch (error) {
      await this.#takeBack(opened, context);
      throw error;
    }
    // the point of no return: from here on only the target may run it
    await this.#services.records.write({ ...record, ownership: { epoch: departure.epoch, role: "released", peer: departure.target.node } });
    context.step("released");
  }

  async #open(record: InstanceRecord): Promise<Opened> {
    return {
      record,
      driver: await this.#services.hypervisors.driver(record.spec.kind),
      guest: await guestOf(this.#services, record, await imagesOf(this.#services, record)),
    };
  }

  async #export({ record, driver, guest }: Opened, mode: Departure["mode"], context: JobContext): Promise<FilePart[]> {
    const directory = join(guest.directory, "export");
    await mkdir(directory, { recursive: true });
    const parts: FilePart[] = [];
    if (mode === "state" && record.spec.stateFiles.length > 0) {
      context.status("copying the state files");
      const path = join(directory, "state.tar");
      await pipeline(await driver.exportState(guest, context), createWriteStream(path));
      parts.push({ name: "state.tar", path, format: "tar" });
    }
    context.status(`stopping ${record.spec.id}`);
    // a suspended guest travels as it is: its memory is a file
    if (record.spec.state !== "suspended" || mode === "state" || record.spec.kind === "lxd") await driver.stop(guest, context);
    context.step("stopped");
    if (mode === "cold") parts.push(...(await driver.exportParts(guest, context)));
    for (const [index, { id, hostPath }] of guest.volumes.entries()) {
      const sizeMib = (await this.#services.volumes.read(id))?.spec.sizeMib ?? 0;
      const raw = mode === "cold" && record.spec.kind === "kvm";
      const name = `volume-${index}.${sizeMib}.${raw ? "raw" : "tar"}`;
      const path = raw ? hostPath : join(directory, name);
      if (!raw) await pipeline(await driver.readVolume(hostPath, context), createWriteStream(path));
      parts.push({ name, path, format: raw ? "raw" : "tar" });
    }
    context.step("exported");
    return parts;
  }

  /** Sends what the target lacks; a short break of the link is waited out, since a restart here would cost more. */
  async #send(
    departure: Departure,
    work: { parts: FilePart[]; recipes: Recipe[]; channel: MoveChannel; context: JobContext },
  ): Promise<void> {
    const { parts, recipes, channel, context } = work;
    for (let attempt = 1; ; attempt++) {
      try {
        const { missing } = await channel.json(missingSchema, {
          method: "PUT",
          path: "/v1/recipes",
          body: { mode: departure.mode, parts: recipes },
          timeoutMillis: sealMillis,
          signal: context.signal,
        });
        if (missing.length === 0) return;
        const wanted = new Set(missing);
        const bytes = bytesOf(recipes, wanted);
        context.status(`sending ${(bytes / 1e6).toFixed(1)} MB to ${departure.target.node}`);
        await channel.stream("/v1/pieces", compress(allFrames(parts, wanted)), context.signal);
        return;
      } catch (error) {
        const pause = pauses[attempt - 1];
        if (codeOf(error) !== "UNREACHABLE" || attempt >= sendAttempts || pause === undefined) throw error;
        context.status(`the link to ${departure.target.node} broke; trying again`);
        await sleep(pause, undefined, { signal: context.signal });
      }
    }
  }

  /** Nothing was released, so this node is still the owner: the application goes on here. */
  async #takeBack(opened: Opened, context: JobContext): Promise<void> {
    const { record } = opened;
    await rm(join(this.#services.records.directoryOf(record.spec.id), "export"), { recursive: true, force: true });
    await rm(this.#file(record.spec.id), { force: true });
    if (record.spec.state !== "running") return;
    context.status("the move failed; starting the cloudlet here again");
    // the job's own signal may be the reason for the failure
    await bringTo(opened, { state: "running", restart: false }, { ...context, signal: AbortSignal.timeout(120_000) });
    context.step("takenBack");
  }

  /** From "released" to the end; safe to repeat from any point. */
  async #finish(id: string, channel: MoveChannel, context: JobContext): Promise<MoveReport> {
    const record = await this.#services.records.read(id);
    const departure = await this.#read(id);
    if (!record || !departure?.seal) throw new CloudletError("BUG", `${id} was released without a seal`);
    const { seal, epoch, target } = departure;
    context.status(`${target.node} starts ${id}`);
    await channel.json(empty, { method: "POST", path: "/v1/activate", body: { seal, epoch } });
    context.step("activated");
    await this.#watch(channel, record.spec.ready?.timeoutSeconds ?? 60);
    const now = Date.now();
    const report: MoveReport = {
      mode: departure.mode,
      from: departure.self,
      to: target.node,
      route: departure.route,
      bytesSent: departure.bytesSent,
      bytesAvoided: Math.max(0, departure.bytesTotal - departure.bytesSent),
      totalMillis: now - departure.beganAt,
      downtimeMillis: now - (departure.stoppedAt ?? now),
    };
    context.step("answered");
    await this.#discard(record, context);
    await channel.json(empty, { method: "POST", path: "/v1/complete", body: { report } });
    await rm(this.#file(id), { force: true });
    context.step("discarded");
    return report;
  }

  async #watch(channel: MoveChannel, timeoutSeconds: number): Promise<void> {
    const end = Date.now() + (timeoutSeconds + 60) * 1000;
    while (Date.now() < end) {
      const arrival = await channel.json(arrivalSchema, { method: "GET", path: "/v1/arrival" });
      if (arrival.phase === "ready") return;
      if (arrival.phase === "failed") {
        const error = arrival.error;
        throw new CloudletError("FAILED", `the cloudlet has moved and does not come up there: ${error?.message ?? "no reason given"}`, {
          fix: error?.fix ?? "run `pulumi up` again",
        });
      }
      await sleep(100);
    }
    throw new CloudletError("TIMEOUT", "the cloudlet has moved and did not answer there in time");
  }

  /** The copy goes; a note of where the cloudlet went stays. */
  async #discard(record: InstanceRecord, context: JobContext): Promise<void> {
    const { hypervisors, volumes, records, network } = this.#services;
    const driver = await hypervisors.driver(record.spec.kind);
    await driver.remove(await guestOf(this.#services, record), context);
    for (const { id } of record.spec.volumes) {
      const volume = await volumes.read(id);
      if (volume?.place !== "here") continue;
      await volumes.write({ ...volume, place: "gone", peer: record.ownership.peer });
      await rm(volumes.dataPath(id), { recursive: true, force: true });
    }
    await rm(join(this.#services.records.directoryOf(record.spec.id), "export"), { recursive: true, force: true });
    await network.publish(await records.list());
  }

  #file(id: string): string {
    return departureFile(this.#services, id);
  }

  #read(id: string): Promise<Departure | undefined> {
    return readJson(this.#file(id), departureSchema);
  }

  #write(id: string, departure: Departure): Promise<void> {
    return writeDurably(this.#file(id), JSON.stringify(departure), 0o600);
  }
}

async function* allFrames(parts: FilePart[], wanted: Set<string>): AsyncGenerator<Buffer> {
  for (const part of parts) yield* framesOf(part.path, part.format, wanted);
}

function bytesOf(recipes: Recipe[], wanted: ReadonlySet<string>): number {
  const sizes = new Map(recipes.flatMap(({ pieces }) => pieces));
  return [...wanted].reduce((sum, digest) => sum + (sizes.get(digest) ?? 0), 0);
}
