import type { Readable } from "node:stream";
import { CloudletError } from "../../core/errors.ts";
import { guestOf } from "../instances.ts";
import type { JobContext } from "../jobs.ts";
import type { InstanceSpec, VerbResult } from "../protocol.ts";
import type { InstanceRecord } from "../records.ts";
import type { Services } from "../services.ts";
import { Assembly } from "./assembly.ts";
import { decompressTo } from "./compression.ts";
import { forgetArrived } from "./copies.ts";
import { newToken, tokenMatches } from "../tokens.ts";
import { DataServer, type Receiver } from "./dataServer.ts";
import { MoveFiles, type ArrivalFile } from "./files.ts";
import { LiveArrivals } from "./liveArrivals.ts";
import { makeArrived, takeSizes, takeVolumes, withBase } from "./making.ts";
import { sealOf, type Recipe } from "./recipe.ts";
import { blobsOfSpec, checkPrepare, makeRoom, ownAddresses, requireRoomFor } from "./reservation.ts";
import { startArrived } from "./starting.ts";
import type { Activated, Activation, Arrival, Completion, LiveStart, Taken } from "./wire.ts";

/** What a target gets done, in this order. */
export const arrivalSteps = ["supplied", "begun", "received", "made", "sealed", "owned", "activated", "up", "ready", "completed"] as const;
/** Of a guest that runs meanwhile: its QEMU waits; or what was sealed is lost. */
export type ArrivalStep = (typeof arrivalSteps)[number] | "waiting" | "givenUp";

export interface TargetOptions {
  port: number;
  /** Called when a step is durable. */
  onStep(step: ArrivalStep): void;
}

const layerMillis = 15 * 60_000;
const discardMillis = 60_000;

/** A run that was asked for again must not cut off the one that is under way. */
const keptTokens = 4;

/** The receiving half of a move: it takes everything in, makes the stopped guest, and starts it only when it is told that the source has let go. */
export class MoveTarget implements Receiver {
  readonly #services: Services;
  readonly #options: TargetOptions;
  readonly #files: MoveFiles;
  readonly #server: DataServer;
  readonly #assemblies = new Map<string, Assembly>();
  readonly #live: LiveArrivals;

  constructor(services: Services, options: TargetOptions) {
    this.#services = services;
    this.#options = options;
    this.#files = new MoveFiles(services.root);
    this.#live = new LiveArrivals(services);
    this.#server = new DataServer(services.root, options.port, {
      receiver: this,
      supplier: {
        offered: async (token, digest) => {
          await services.offers.check(token, digest);
          return services.store.path(digest);
        },
      },
    });
  }

  /** Reserves the place and opens the data port. Asked again for the same epoch it goes on where the transfer was. */
  async prepare(
    { spec, epoch, from }: { spec: InstanceSpec; epoch: number; from: string },
    context: JobContext,
  ): Promise<VerbResult<"move.prepare">> {
    return this.#inTurn(spec.id, async () => {
      const record = await this.#services.records.read(spec.id);
      const owned = record?.ownership.role === "owner";
      checkPrepare({ spec, epoch }, record);
      await this.#services.hypervisors.driver(spec.kind);
      if (!owned) await makeRoom(this.#services, this.#files, { spec, epoch, from, record, context });
      const { token, digest } = newToken();
      const before = await this.#files.arrival(spec.id);
      const fresh: ArrivalFile = { epoch, from, tokens: [], phase: owned ? "ready" : "prepared" };
      const arrival = before?.epoch === epoch ? before : fresh;
      await this.#files.writeArrival(spec.id, { ...arrival, tokens: [digest, ...arrival.tokens].slice(0, keptTokens) });
      const reached = await this.open();
      context.step("prepared");
      return { ...reached, token };
    });
  }

  /** Opens the data port; how other nodes reach it. */
  async open(): Promise<{ addresses: string[]; port: number; certificate: string }> {
    return { addresses: ownAddresses(), port: this.#options.port, certificate: await this.#server.open() };
  }

  /** Closes the data port unless a move is expected or something is offered. */
  async closeWhenIdle(): Promise<void> {
    if (!(await this.#expectsAny())) this.#server.close();
  }

  /** Forgets a copy that was never activated. */
  async cancel(id: string, context: JobContext): Promise<void> {
    await this.#inTurn(id, async () => {
      const record = await this.#services.records.read(id);
      if (record?.ownership.role !== "incoming") return;
      await this.#forget(record, context);
      context.step("cancelled");
    });
  }

  /** After a restart of the agent: the port is open again for moves that are under way, and a start that was cut short is finished. */
  async resume(context: JobContext): Promise<void> {
    if ((await this.#services.offers.active()).length > 0) await this.#server.open();
    for (const record of await this.#services.records.list()) {
      const { id } = record.spec;
      try {
        const arrival = await this.#files.arrival(id);
        if (arrival === undefined) continue;
        await this.#server.open();
        if (record.ownership.role === "owner" && arrival.phase !== "ready") this.#start(id, context);
      } catch (error) {
        context.status(`the arrival of ${id} waits: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
  }

  /** A port that another program had when the agent came back may be free by now. */
  async reopen(context: JobContext): Promise<void> {
    if (!this.#server.isOpen && (await this.#expectsAny())) await this.resume(context);
  }

  close(): void {
    this.#server.close();
    this.#live.close();
  }

  async authorize(id: string, token: string): Promise<boolean> {
    const arrival = id === "" ? undefined : await this.#files.arrival(id).catch(() => undefined);
    return arrival?.tokens.some((digest) => tokenMatches(token, digest)) === true;
  }

  async arrival(id: string): Promise<Arrival> {
    const { record, arrival } = await this.#both(id);
    const needs: string[] = [];
    for (const digest of await blobsOfSpec(this.#services, record.spec)) if (!(await this.#services.store.has(digest))) needs.push(digest);
    const { phase, epoch, seal, error } = arrival;
    const { kind } = record.spec;
    return { phase, epoch, kind, needs, takesAhead: true, ...(seal !== undefined && { seal }), ...(error !== undefined && { error }) };
  }

  async supply(id: string, digest: string, body: Readable): Promise<void> {
    const { record } = await this.#both(id);
    if (!(await blobsOfSpec(this.#services, record.spec)).includes(digest)) {
      throw new CloudletError("REFUSED", `${id} does not need ${digest}`);
    }
    await this.#services.store.put(digest, () => body);
    this.#options.onStep("supplied");
  }

  /** While the guest still runs on the source: what its disk will stand on here. */
  async prepareLayer(id: string): Promise<void> {
    const { overlay } = (await this.#both(id)).record.spec;
    if (overlay !== undefined)
      await this.#services.layers.make(overlay.digest, { signal: AbortSignal.timeout(layerMillis), status: () => undefined });
  }

  /** Asked before anything is sent. Of a move that does not fit nothing stays here. */
  async requireRoom(id: string, bytes: number): Promise<void> {
    await this.#inTurn(id, async () => {
      const { record } = await this.#both(id);
      try {
        await this.#services.store.requireSpace(bytes);
      } catch (error) {
        if (record.ownership.role === "incoming") await this.#forget(record, { signal: AbortSignal.timeout(discardMillis) });
        throw error;
      }
    });
  }

  async begin(id: string, mode: "cold" | "state", parts: Recipe[]): Promise<string[]> {
    return this.#inTurn(id, async () => {
      const { record, arrival } = await this.#both(id);
      if (record.ownership.role !== "incoming") {
        throw new CloudletError("CONFLICT", `${id} is ${record.ownership.role} on this node and takes nothing in`);
      }
      if (arrival.phase === "sealed" && arrival.seal === sealOf(parts)) return [];
      await this.#live.end(id);
      this.#endAssembly(id);
      const directory = this.#files.incoming(id);
      await requireRoomFor(this.#services, parts, directory);
      const { seal: _, volumes: __, ...rest } = arrival;
      await this.#files.writeArrival(id, { ...rest, phase: "prepared", mode, parts });
      const assembly = new Assembly(directory);
      const missing = await withBase(this.#services, { ...record.spec, directory }, (sources) => assembly.begin(parts, sources));
      this.#assemblies.set(id, assembly);
      this.#options.onStep("begun");
      return missing;
    });
  }

  async receive(id: string, body: Readable): Promise<void> {
    const assembly = this.#assemblies.get(id);
    if (assembly === undefined) throw new CloudletError("UNREACHABLE", "the agent was restarted during the transfer");
    await decompressTo(body, (plain) => assembly.receive(plain));
    this.#options.onStep("received");
  }

  async seal(id: string, seal: string): Promise<void> {
    await this.#inTurn(id, async () => {
      const { record, arrival } = await this.#both(id);
      if (arrival.seal === seal && arrival.phase !== "prepared") return;
      if (arrival.mode === "live") {
        await this.#live.seal(id, seal);
        await this.#files.writeArrival(id, { ...arrival, phase: "sealed", seal });
        return this.#options.onStep("sealed");
      }
      const { mode, parts } = arrival;
      if (parts === undefined || mode === undefined || sealOf(parts) !== seal) {
        throw new CloudletError("CONFLICT", `${id} is sealed for something that was not sent`, { fix: "run `pulumi up` again" });
      }
      this.#endAssembly(id);
      const directory = this.#files.incoming(id);
      await new Assembly(directory).seal(parts);
      await makeArrived(this.#services, record, { directory, mode, parts });
      this.#options.onStep("made");
      await this.#files.writeArrival(id, { ...arrival, phase: "sealed", seal });
      this.#options.onStep("sealed");
    });
  }

  /** A guest that runs elsewhere, and of which round after round will come. */
  async beginLive(id: string, { shape, volumes }: LiveStart): Promise<{ has: string }> {
    return this.#inTurn(id, async () => {
      const { record, arrival } = await this.#both(id);
      if (record.ownership.role !== "incoming") {
        throw new CloudletError("CONFLICT", `${id} is ${record.ownership.role} on this node and takes nothing in`);
      }
      const { seal: _, parts: __, ...rest } = arrival;
      // what was sealed before is over: its source has come back to life
      await this.#files.writeArrival(id, { ...rest, phase: "prepared", mode: "live", volumes });
      this.#endAssembly(id);
      const has = await this.#live.begin(record, shape);
      this.#options.onStep("waiting");
      return { has: has.toString("base64") };
    });
  }

  async takeRound(id: string, round: number, body: Readable): Promise<Taken> {
    const busyMillis = await this.#live.take(id, round, body);
    this.#options.onStep("received");
    return { busyMillis };
  }

  /** The source has taken its guest back, or has heard that this node has given it up. */
  async endLive(id: string): Promise<void> {
    await this.#inTurn(id, async () => {
      await this.#live.end(id);
      const { record, arrival } = await this.#both(id);
      if (record.ownership.role === "incoming" && arrival.mode === "live") {
        const { seal: _, ...rest } = arrival;
        await this.#files.writeArrival(id, { ...rest, phase: "prepared" });
        await this.#discard(record);
      }
      if (record.ownership.role !== "released") return;
      await this.#files.forgetArrival(id);
      await this.closeWhenIdle();
    });
  }

  async activate(id: string, { seal, epoch, live }: Activation): Promise<Activated> {
    const givenUp = await this.#inTurn(id, async () => {
      const { record, arrival } = await this.#both(id);
      if (arrival.epoch !== epoch) throw new CloudletError("CONFLICT", `${id} arrives here at epoch ${arrival.epoch}, not at ${epoch}`);
      if (record.ownership.role === "released") return true;
      if (arrival.phase === "starting" || arrival.phase === "ready") return false;
      if (
        live &&
        record.ownership.role === "incoming" &&
        (arrival.phase === "prepared" || arrival.seal !== seal || !(await this.#live.isWaiting(record)))
      ) {
        await this.#giveUp(record);
        return true;
      }
      if (arrival.phase === "prepared" || arrival.seal !== seal) {
        throw new CloudletError("CONFLICT", `${id} was sealed here for another state than the one it should be started from`, {
          fix: "run `pulumi up` again",
        });
      }
      if (record.ownership.role !== "owner") await this.#own(record, arrival);
      this.#options.onStep("owned");
      const { error: _, ...rest } = arrival;
      await this.#files.writeArrival(id, { ...rest, phase: "starting" });
      this.#options.onStep("activated");
      return false;
    });
    if (!givenUp) this.#start(id, { signal: new AbortController().signal, step: () => undefined, status: () => undefined });
    return { givenUp, ports: (await this.#both(id)).record.spec.ports };
  }

  async complete(id: string, { report, history }: Completion): Promise<void> {
    // the record is also what an operation on the cloudlet writes
    await this.#services.lock.run(`instance:${id}`, () =>
      this.#inTurn(id, async () => {
        const { record } = await this.#both(id);
        await this.#services.records.write({ ...record, lastMove: report });
        await this.#services.handoffs.adopt(id, history);
        await this.#services.formerCopies.remove(id);
        await this.#files.forgetArrival(id);
        await this.closeWhenIdle();
        this.#options.onStep("completed");
      }),
    );
  }

  async #forget(record: InstanceRecord, { signal }: Pick<JobContext, "signal">): Promise<void> {
    this.#endAssembly(record.spec.id);
    await this.#live.end(record.spec.id);
    await forgetArrived(this.#services, this.#files, { record, progress: { signal, status: () => undefined } });
    await this.closeWhenIdle();
  }

  /** Memory that is lost makes what was sealed worthless: from now on this node can never start it at that epoch, and says so. */
  async #giveUp(record: InstanceRecord): Promise<void> {
    await this.#services.records.write({ ...record, ownership: { ...record.ownership, role: "released" } });
    this.#options.onStep("givenUp");
    await this.#live.end(record.spec.id);
    await this.#discard(record);
  }

  /** What has arrived of a running guest is of no use. */
  async #discard(record: InstanceRecord): Promise<void> {
    const driver = await this.#services.hypervisors.driver(record.spec.kind);
    const progress = { signal: AbortSignal.timeout(discardMillis), status: () => undefined };
    await driver.remove(await guestOf(this.#services, record), progress);
  }

  async #own(record: InstanceRecord, { epoch, from, parts = [], volumes }: ArrivalFile): Promise<void> {
    if (volumes === undefined) await takeVolumes(this.#services, record, parts);
    else await takeSizes(this.#services, record, volumes);
    const { forward: _, ...mine } = record;
    await this.#services.records.write({
      ...mine,
      ownership: { epoch, role: "owner", peer: from },
      complete: true,
      restartPending: false,
      builtFrom: record.spec.base.digest,
      ...(record.spec.overlay && { builtOver: record.spec.overlay.digest }),
    });
  }

  #start(id: string, context: JobContext): void {
    const onStep = (step: ArrivalStep): void => this.#options.onStep(step);
    startArrived(id, { services: this.#services, files: this.#files, note: (change) => this.#note(id, change), context, onStep });
  }

  async #note(id: string, change: Pick<ArrivalFile, "phase" | "error">): Promise<void> {
    await this.#inTurn(id, async () => {
      const arrival = await this.#files.arrival(id);
      if (arrival !== undefined) await this.#files.writeArrival(id, { ...arrival, ...change });
    });
  }

  #inTurn<T>(id: string, work: () => Promise<T>): Promise<T> {
    return this.#services.lock.run(`arrival:${id}`, work);
  }

  #endAssembly(id: string): void {
    this.#assemblies.get(id)?.end();
    this.#assemblies.delete(id);
  }

  async #both(id: string): Promise<{ record: InstanceRecord; arrival: ArrivalFile }> {
    const [record, arrival] = await Promise.all([this.#services.records.read(id), this.#files.arrival(id)]);
    if (record === undefined || arrival === undefined) throw new CloudletError("NOT_FOUND", `no move of ${id} is expected on this node`);
    return { record, arrival };
  }

  async #expectsAny(): Promise<boolean> {
    if ((await this.#services.offers.active()).length > 0) return true;
    for (const { spec } of await this.#services.records.list()) if (await this.#files.arrival(spec.id)) return true;
    return false;
  }
}
