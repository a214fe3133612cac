import { createHash, type Hash } from "node:crypto";
import { mkdir } from "node:fs/promises";
import type { Readable } from "node:stream";
import { CloudletError } from "../../core/errors.ts";
import type { Driver, Guest, Live, LiveArrival } from "../../hypervisors/types.ts";
import { guestOf, imagesOf } from "../instances.ts";
import type { InstanceRecord } from "../records.ts";
import type { Services } from "../services.ts";
import { decompressTo } from "./compression.ts";
import { hashed } from "./hashed.ts";
import { commonImages } from "./liveImages.ts";

const beginMillis = 120_000;
const loadMillis = 120_000;
/** A source that says nothing for this long has gone, and its guest goes on there. */
const silenceMillis = 120_000;

interface Session {
  arrival: LiveArrival;
  guest: Guest;
  driver: Driver;
  hash: Hash;
  rounds: number;
  timer: NodeJS.Timeout | undefined;
  busy: boolean;
}

/** Guests that arrive while they still run elsewhere. What is known of them ends with this agent, and so do they, but for those that are whole. */
export class LiveArrivals {
  readonly #services: Services;
  readonly #sessions = new Map<string, Session>();

  constructor(services: Services) {
    this.#services = services;
  }

  /** Returns what is here of it from before. */
  async begin(record: InstanceRecord, shape: string): Promise<Buffer> {
    const { id } = record.spec;
    await this.end(id);
    const { driver, live } = await this.#driver(record);
    const progress = { signal: AbortSignal.timeout(beginMillis), status: () => undefined };
    const guest = await guestOf(this.#services, record, await imagesOf(this.#services, record));
    await driver.remove(guest, progress);
    await mkdir(guest.directory, { recursive: true });
    // its device is put onto the bridge long before the cloudlet is this node's own
    await this.#services.network.prepare(await this.#services.records.list());
    const former = await this.#services.formerCopies.pathOf(id);
    const arrival = await live.receive(guest, { shape, images: commonImages(this.#services, record, guest), former }, progress);
    const session: Session = { arrival, guest, driver, hash: createHash("sha256"), rounds: 0, timer: undefined, busy: false };
    this.#sessions.set(id, session);
    this.#watch(id, session);
    return arrival.has;
  }

  /** Anything that goes wrong ends it: a stream has an order, and nothing of it comes twice. Returns how long it took after all had come. */
  async take(id: string, round: number, body: Readable): Promise<number> {
    const session = this.#sessions.get(id);
    if (session === undefined || session.busy || round !== session.rounds)
      throw new CloudletError("CONFLICT", `round ${String(round)} of ${id} is not what is expected here`, { fix: "run `pulumi up` again" });
    clearTimeout(session.timer);
    session.busy = true;
    let came = performance.now();
    body.once("end", () => (came = performance.now()));
    try {
      await decompressTo(body, (plain) => session.arrival.take(hashed(plain, session.hash)));
      session.rounds++;
    } catch (error) {
      await this.end(id);
      throw error;
    }
    session.busy = false;
    this.#watch(id, session);
    return performance.now() - came;
  }

  /** From now on it outlives this agent. Its seal is the digest of all that came. */
  async seal(id: string, seal: string): Promise<void> {
    const session = this.#sessions.get(id);
    if (session === undefined || session.busy)
      throw new CloudletError("CONFLICT", `${id} has not arrived here`, { fix: "run `pulumi up` again" });
    const digest = session.hash.copy().digest("hex");
    try {
      if (digest !== seal)
        throw new CloudletError("INTEGRITY", `what arrived of ${id} has digest ${digest.slice(0, 12)}, not ${seal.slice(0, 12)}`);
      await session.arrival.finish(AbortSignal.timeout(loadMillis));
    } catch (error) {
      await this.end(id);
      throw error;
    }
    clearTimeout(session.timer);
    await session.arrival.close();
    this.#sessions.delete(id);
  }

  /** Whether a guest that was sealed only waits to be told to run. */
  async isWaiting(record: InstanceRecord): Promise<boolean> {
    const { live } = await this.#driver(record);
    return live.isWaiting(await guestOf(this.#services, record));
  }

  /** Forgets one that is still arriving. */
  async end(id: string): Promise<void> {
    const session = this.#sessions.get(id);
    if (session === undefined) return;
    this.#sessions.delete(id);
    clearTimeout(session.timer);
    await session.arrival.close().catch(() => undefined);
    await session.driver.remove(session.guest, { signal: AbortSignal.timeout(beginMillis), status: () => undefined });
  }

  close(): void {
    for (const { timer } of this.#sessions.values()) clearTimeout(timer);
  }

  #watch(id: string, session: Session): void {
    clearTimeout(session.timer);
    session.timer = setTimeout(() => {
      if (this.#sessions.get(id) === session && !session.busy) void this.end(id).catch(() => undefined);
    }, silenceMillis);
    session.timer.unref();
  }

  async #driver(record: InstanceRecord): Promise<{ driver: Driver; live: Live }> {
    const driver = await this.#services.hypervisors.driver(record.spec.kind);
    if (driver.live === undefined) throw new CloudletError("UNSUPPORTED", `hypervisors of kind ${driver.kind} take in no running guests`);
    return { driver, live: driver.live };
  }
}
