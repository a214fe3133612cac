import { createReadStream } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { CloudletError, codeOf, describeError } from "../../core/errors.ts";
import { bringTo, guestOf, imagesOf, type Opened } from "../instances.ts";
import type { JobContext } from "../jobs.ts";
import { defaultBudget, type MoveReport } from "../handoffProtocol.ts";
import type { VerbArgs } from "../protocol.ts";
import type { InstanceRecord } from "../records.ts";
import type { Services } from "../services.ts";
import { collectLayers } from "../synthesis/references.ts";
import { MoveChannel } from "./channel.ts";
import { discardCopy, removeExport } from "./copies.ts";
import { exportStopped } from "./exporting.ts";
import { MoveFiles, type Departure } from "./files.ts";
import { passClientsOn } from "./forwarding.ts";
import type { Handoffs } from "./handoffs.ts";
import { moveLive } from "./liveMove.ts";
import { sealOf } from "./recipe.ts";
import { endOf, reportOf } from "./reports.ts";
import { requireRoom } from "./room.ts";
import { recipesOf, send, sendAhead } from "./sending.ts";
import { activatedSchema, arrivalSchema, type Activated, type Arrival } from "./wire.ts";

const empty = z.object({});
const takeBackMillis = 120_000;
/** How long a short break of the link is waited out, since a restart of the application would cost more. */
const linkPauses = [500, 1000, 2000, 4000];
const firstWaitMillis = 5_000;
const longestWaitMillis = 60_000;
/** How long the target is told about an end that it has brought about itself. */
const reportMillis = 10 * 60_000;

type Sent = Pick<Departure, "seal" | "bytesSent" | "bytesTotal">;

interface Way {
  channel: MoveChannel;
  arrival: Arrival;
  context: JobContext;
}

/** The sending half of a move. Until it has durably let go it is the owner and restarts the guest when anything fails; from then on it only goes forward. */
export class MoveSource {
  readonly #services: Services;
  readonly #files: MoveFiles;
  readonly #handoffs: Handoffs;
  readonly #pauses: readonly number[];
  /** Moves that wait for their target, and when they are tried again. */
  readonly #waits = new Map<string, { until: number; millis: number }>();

  constructor(services: Services, pauses: readonly number[] = linkPauses) {
    this.#services = services;
    this.#pauses = pauses;
    this.#files = new MoveFiles(services.root);
    this.#handoffs = services.handoffs;
  }

  async run(args: VerbArgs<"move.run">, context: JobContext): Promise<MoveReport> {
    const record = await this.#services.records.read(args.id);
    if (record === undefined) throw new CloudletError("NOT_FOUND", `${args.self} has no cloudlet ${args.id}`);
    const channel = new MoveChannel(args.target, args.id, args.relayPort);
    try {
      const ended = endOf(record, args);
      if (ended !== undefined) {
        // by another run, or by this agent alone; the target may still wait to hear of it
        await this.#tell(args.id, ended, channel).catch(() => undefined);
        return ended;
      }
      const arrival = await channel.json(arrivalSchema, { method: "GET", path: "/v1/arrival" });
      context.step("connected");
      // what is still coming could not be copied
      await this.#services.hydrations.follow(args.id, context);
      const departure = await this.#begin({ record, arrival }, args);
      const way = { channel, arrival, context };
      if (record.ownership.role === "owner") await this.#letGo(record, departure, way);
      // the target has lost what it was given before it could run; the copy here is still what it should get
      else if (departure.mode !== "live" && (arrival.phase === "prepared" || arrival.phase === "sealed"))
        await this.#sendAgain(record, departure, way);
      return await this.#finish(args.id, channel, context);
    } finally {
      channel.close();
    }
  }

  /** Goes on with moves that were cut off: after this node has let go, forward is the only way. */
  async resume(context: JobContext): Promise<void> {
    for (const { spec } of await this.#services.records.list()) {
      const wait = this.#waits.get(spec.id);
      if (wait !== undefined && Date.now() < wait.until) continue;
      try {
        if ((await this.#files.departure(spec.id)) === undefined) continue;
        await this.#services.lock.run(`instance:${spec.id}`, () => this.#goOn(spec.id, context));
        this.#waits.delete(spec.id);
      } catch (error) {
        const millis = Math.min(longestWaitMillis, (wait?.millis ?? firstWaitMillis / 2) * 2);
        this.#waits.set(spec.id, { until: Date.now() + millis, millis });
        context.status(`the move of ${spec.id} waits: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
  }

  async #goOn(id: string, context: JobContext): Promise<void> {
    const [record, departure] = [await this.#services.records.read(id), await this.#files.departure(id)];
    if (record === undefined || departure === undefined) return;
    if (record.ownership.role !== "released" || record.ownership.epoch !== departure.epoch) {
      // cut off before anything was given away
      await removeExport(this.#services, id);
      const { driver, guest } = await this.#open(record);
      await driver.live?.stay(guest);
      await this.#handoffs.noteFailure(id, new Error("the node's agent ended in the middle"), true);
      return this.#files.forgetDeparture(id);
    }
    const channel = new MoveChannel(departure.target, id);
    try {
      if (record.leaving === true) await this.#finish(id, channel, context);
      else if (record.lastMove !== undefined) await this.#tell(id, record.lastMove, channel);
    } finally {
      channel.close();
    }
  }

  async #begin({ record, arrival }: { record: InstanceRecord; arrival: Arrival }, args: VerbArgs<"move.run">): Promise<Departure> {
    const { role, epoch, peer } = record.ownership;
    if (role === "released" && peer !== args.target.node) {
      // it may run there already, whatever this node has heard
      throw new CloudletError(
        "CONFLICT",
        `${args.id} was given to ${peer ?? "another node"}, and cannot go to ${args.target.node} from here`,
        {
          fix: `set hypervisor to the one on ${peer ?? "that node"} and run \`pulumi up\`, then move it from there`,
        },
      );
    }
    const expected = role === "owner" ? args.epoch - 1 : args.epoch;
    if (role === "incoming" || epoch !== expected || arrival.epoch !== args.epoch) {
      throw new CloudletError("CONFLICT", `${args.id} is ${role} at epoch ${epoch} here, and the move is for epoch ${args.epoch}`, {
        fix: "run `pulumi refresh`, then `pulumi up`",
      });
    }
    // how it came here is history now
    await this.#files.forgetArrival(args.id);
    const before = role === "released" ? await this.#files.departure(args.id) : undefined;
    const fresh: Departure = {
      epoch: args.epoch,
      self: args.self,
      target: args.target,
      route: args.route,
      mode: await this.#mode(record, arrival),
      beganAt: Date.now(),
      bytesSent: 0,
      bytesTotal: 0,
      ...(args.budget && { budget: args.budget }),
    };
    // a relay ends with its operator, so what is written down is always the direct way
    const departure: Departure = { ...fresh, ...before, target: args.target, route: args.route };
    await this.#files.writeDeparture(args.id, departure);
    const { self: from, target, route, mode } = departure;
    if (before === undefined) await this.#handoffs.note(args.id, { type: "began", epoch: args.epoch, from, to: target.node, route, mode });
    return departure;
  }

  /** As it is begun: what runs may turn out to be movable only while it is stopped. */
  async #mode({ spec }: InstanceRecord, arrival: Arrival): Promise<Departure["mode"]> {
    if (arrival.kind !== spec.kind) return "state";
    const { live } = await this.#services.hypervisors.driver(spec.kind);
    return live !== undefined && spec.state === "running" ? "live" : "cold";
  }

  /** From "runs here" to "released": everything that may fail comes before the release. */
  async #letGo(record: InstanceRecord, departure: Departure, way: Way): Promise<void> {
    const { id } = record.spec;
    const opened = await this.#open(record);
    try {
      if (departure.mode === "live") await requireRoom(this.#services, opened, way);
      departure = { ...departure, bytesSupplied: await this.#supply(record, way) };
    } catch (error) {
      await this.#files.forgetDeparture(id);
      await this.#handoffs.noteFailure(id, error, true);
      throw error;
    }
    try {
      const sent = await this.#hand(opened, departure, way);
      await this.#files.writeDeparture(id, { ...departure, ...sent });
      // the point of no return: from here on only the target may run it
      await this.#services.records.write({
        ...record,
        ownership: { epoch: departure.epoch, role: "released", peer: departure.target.node },
        leaving: true,
      });
    } catch (error) {
      throw await this.#takeBack(opened, error, way.context);
    }
    await this.#handoffs.note(id, { type: "released" });
    way.context.step("released");
  }

  /** The guest is still here and does not run any more, and the target has sealed its copy. */
  async #hand(opened: Opened, departure: Departure, way: Way): Promise<Partial<Departure>> {
    if (departure.mode === "live") {
      const sent = await moveLive(this.#services, opened, {
        ...way,
        budget: departure.budget ?? defaultBudget,
        beganAt: departure.beganAt,
        node: departure.target.node,
      });
      if (!("notLive" in sent)) return sent;
      way.context.status(`${opened.record.spec.id} is moved while it is stopped: ${sent.notLive}`);
    }
    const mode = departure.mode === "state" ? "state" : "cold";
    const { node } = departure.target;
    const there = { ...way, node, persist: (attempt: () => Promise<void>) => this.#persist(node, way.context, attempt) };
    const bytesAhead = mode === "cold" ? await sendAhead(this.#services, opened, there) : 0;
    const stoppedAt = Date.now();
    return { ...(await this.#transfer(opened, mode, there)), mode, stoppedAt, ...(bytesAhead > 0 && { bytesAhead }) };
  }

  /** Ownership has passed already, so a failure leaves everything as it is for the next attempt. */
  async #sendAgain(record: InstanceRecord, departure: Departure, way: Way): Promise<void> {
    if (way.arrival.phase === "sealed" && way.arrival.seal === departure.seal) return;
    const bytesSupplied = await this.#supply(record, way);
    const mode = departure.mode === "state" ? "state" : "cold";
    const sent = await this.#transfer(await this.#open(record), mode, { ...way, node: departure.target.node });
    await this.#files.writeDeparture(record.spec.id, { ...departure, ...sent, bytesSupplied });
  }

  /** What the target's store lacks, while the guest still runs. Returns its bytes. */
  async #supply(record: InstanceRecord, { channel, arrival, context }: Way): Promise<number> {
    const before = channel.bytesSent;
    const { id, base, overlay } = record.spec;
    const sent = new Set<string>();
    for (let { needs } = arrival; needs.some((digest) => !sent.has(digest));) {
      for (const digest of needs) {
        context.status(`sending the ${digest === base.digest ? "base" : overlay === undefined ? "build" : "overlay"} of ${id}`);
        await channel.stream(`/v1/blobs/${digest}`, createReadStream(await this.#services.store.path(digest)), { signal: context.signal });
        sent.add(digest);
      }
      // what else belongs to an overlay shows once its manifest is there
      ({ needs } = await channel.json(arrivalSchema, { method: "GET", path: "/v1/arrival" }));
    }
    if (overlay !== undefined) await channel.patiently(empty, { method: "POST", path: "/v1/layer", signal: context.signal });
    context.step("supplied");
    return sent.size === 0 ? 0 : channel.bytesSent - before;
  }

  /** The guest is stopped, and the target has sealed exactly what it left. */
  async #transfer(opened: Opened, mode: "cold" | "state", way: Way & { node: string }): Promise<Sent> {
    const parts = await exportStopped(this.#services, opened, { mode, context: way.context });
    const recipes = await recipesOf(parts);
    const seal = sealOf(recipes);
    await this.#persist(way.node, way.context, async () => {
      await send(mode, { parts, recipes }, way);
      way.context.step("sent");
      way.context.status(`${way.node} puts ${opened.record.spec.id} together`);
      await way.channel.patiently(empty, { method: "POST", path: "/v1/seal", body: { seal }, signal: way.context.signal });
    });
    await this.#handoffs.note(opened.record.spec.id, { type: "sealed" });
    way.context.step("sealed");
    return { seal, bytesSent: way.channel.bytesSent, bytesTotal: recipes.reduce((sum, { bytes }) => sum + bytes, 0) };
  }

  async #open(record: InstanceRecord): Promise<Opened> {
    const guest = await guestOf(this.#services, record, await imagesOf(this.#services, record));
    return { record, driver: await this.#services.hypervisors.driver(record.spec.kind), guest };
  }

  async #persist(node: string, context: JobContext, attempt: () => Promise<void>): Promise<void> {
    for (let count = 0; ; count++) {
      try {
        return await attempt();
      } catch (error) {
        const pause = this.#pauses[count];
        if (codeOf(error) !== "UNREACHABLE" || pause === undefined) throw error;
        context.status(`the link to ${node} broke; trying again`);
        await sleep(pause, undefined, { signal: context.signal });
      }
    }
  }

  /** Nothing was released, so this node is still the owner: the application goes on here. Returns what the caller should throw. */
  async #takeBack(opened: Opened, error: unknown, context: JobContext): Promise<unknown> {
    const { id, state } = opened.record.spec;
    const record = await this.#services.records.read(id);
    // the release itself failed half-way: it may or may not last, so only the way forward is safe
    if (record?.ownership.role !== "owner") return error;
    try {
      await removeExport(this.#services, id);
      await opened.driver.live?.stay(opened.guest);
      await this.#files.forgetDeparture(id);
      context.status(`the move of ${id} failed; it goes on here`);
      // the job's own signal may be the reason for the failure
      await bringTo(opened, { state, restart: false }, { ...context, signal: AbortSignal.timeout(takeBackMillis) });
      await this.#handoffs.noteFailure(id, error, true);
      context.step("takenBack");
      return error;
    } catch (second) {
      await this.#handoffs.noteFailure(id, error, false);
      const [first, then] = [error, second].map((it) => (it instanceof Error ? it.message : String(it)));
      return new CloudletError(codeOf(second), `the move of ${id} failed (${first}), and it could not be started here again: ${then}`);
    }
  }

  /** From "released" to the end; safe to repeat from any point. */
  async #finish(id: string, channel: MoveChannel, context: JobContext): Promise<MoveReport> {
    const [record, departure] = [await this.#services.records.read(id), await this.#files.departure(id)];
    if (record === undefined || departure?.seal === undefined) throw new CloudletError("BUG", `${id} was released without a seal`);
    const { seal, epoch, target } = departure;
    context.status(`${target.node} starts ${id}`);
    let activated: Activated = { givenUp: false, ports: [] };
    await this.#persist(target.node, context, async () => {
      const body = { seal, epoch, live: departure.mode === "live" };
      activated = await channel.json(activatedSchema, { method: "POST", path: "/v1/activate", body });
    });
    if (activated.givenUp) throw await this.#regain(record, departure, { channel, context });
    await this.#handoffs.note(id, { type: "activated" });
    context.step("activated");
    const there = { address: channel.reachedAt, ports: activated.ports };
    const passing = passClientsOn(this.#services, record, { there, context });
    await this.#persist(target.node, context, () => this.#watch(channel, record, context.signal)).finally(() => passing);
    const report = reportOf(departure);
    context.step("answered");
    await discardCopy(this.#services, record, context);
    await this.#services.records.update(id, ({ leaving: _, ...note }) => ({ ...note, lastMove: report }));
    // what stays is collected when the agent starts
    await collectLayers(this.#services).catch((error: unknown) => context.status(describeError(error)));
    context.step("discarded");
    await this.#handoffs.note(id, { type: "ended", report });
    await this.#files.writeDeparture(id, { ...departure, endedAt: Date.now() });
    // the move is over; a target that was not told hears of it later
    await this.#tell(id, report, channel).catch(() => undefined);
    return report;
  }

  /** The target can never start what it was given, so the guest, paused since then, goes on here, with the next epoch. */
  async #regain(record: InstanceRecord, { epoch, target }: Departure, { channel, context }: Omit<Way, "arrival">): Promise<unknown> {
    const { leaving: _, ...rest } = record;
    const regained: InstanceRecord = { ...rest, ownership: { epoch: epoch + 1, role: "owner", peer: target.node } };
    await this.#services.records.write(regained);
    context.step("regained");
    await channel.json(empty, { method: "DELETE", path: "/v1/live" }).catch(() => undefined);
    const lost = new CloudletError("FAILED", `${target.node} has lost the memory of ${record.spec.id} before it could run there`, {
      fix: "run `pulumi up` again",
    });
    return this.#takeBack(await this.#open(regained), lost, context);
  }

  /** Tells the target how it went, after which nothing of the move is left on either node but the report. */
  async #tell(id: string, report: MoveReport, channel: MoveChannel): Promise<void> {
    try {
      await channel.json(empty, {
        method: "POST",
        path: "/v1/complete",
        body: { report, history: await this.#handoffs.events(id) },
      });
    } catch (error) {
      const endedAt = (await this.#files.departure(id))?.endedAt ?? 0;
      // it has heard already, and only its answer was lost
      const heard = codeOf(error) === "UNAUTHORIZED" || codeOf(error) === "NOT_FOUND";
      if (!heard && Date.now() - endedAt < reportMillis) throw error;
    }
    // from now on the other node keeps it
    await this.#handoffs.forget(id);
    await this.#files.forgetDeparture(id);
  }

  async #watch(channel: MoveChannel, { spec }: InstanceRecord, signal: AbortSignal): Promise<void> {
    const end = Date.now() + ((spec.ready?.timeoutSeconds ?? 60) + 60) * 1000;
    while (Date.now() < end) {
      const arrival = await channel.json(arrivalSchema, { method: "GET", path: "/v1/arrival", signal });
      if (arrival.phase === "ready") return;
      if (arrival.phase === "failed") {
        throw new CloudletError(
          "FAILED",
          `the cloudlet has moved and does not come up there: ${arrival.error?.message ?? "no reason given"}`,
          {
            fix: arrival.error?.fix ?? "run `pulumi up` again",
          },
        );
      }
      await sleep(100, undefined, { signal });
    }
    throw new CloudletError("TIMEOUT", "the cloudlet has moved and did not answer there in time");
  }
}
