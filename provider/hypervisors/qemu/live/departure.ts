import { once } from "node:events";
import { chown, rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { CloudletError } from "../../../core/errors.ts";
import type { Guest, LiveRound, Progress } from "../../types.ts";
import { guestFiles } from "../guestFiles.ts";
import type { Surroundings } from "../launch.ts";
import { connectQmp, type Qmp } from "../qmp.ts";
import { DiskRounds } from "./diskRounds.ts";
import type { Images } from "./images.ts";
import { makePlace } from "./place.ts";
import { guestMemory, hashOf, markOf, PageTable, zeroHash } from "./pageTable.ts";
import { addGuard, guardedMigration, letSwitchOver, queryMigration, serveDisks, setPace, type Migration } from "./qmpLive.ts";
import { pageBytes, RamStream } from "./ramStream.ts";
import { RecordWriter, type Place } from "./records.ts";
import { SocketReader } from "./socketReader.ts";
import { UnitFile } from "./unitFile.ts";

const connectMillis = 10_000;
const lookMillis = 5;
/** For the last changes to get over the link. */
const switchMillis = 10 * 60_000;

interface DepartureParts {
  guest: Guest;
  qmp: Qmp;
  place: string;
  socket: Socket;
  images: Images;
  /** Ends when the guest has given back what it has freed on its disks, or nobody waits for that any more. */
  trimmed: Promise<void>;
  /** What stays here of the guest. */
  kept: UnitFile;
}

/** A running guest on its way: QEMU's own migration stream, read round by round, and its disks by dirty bitmaps. */
export class Departure {
  readonly #parts: DepartureParts;
  readonly #reader: SocketReader;
  readonly #stream: RamStream;
  readonly #records = new RecordWriter();
  #table: PageTable | undefined;
  #begun: DiskRounds | undefined;
  /** The number of the guest's own memory among QEMU's blocks. */
  #memory = -1;
  #round = 0;
  #stats = { pages: 0, blocks: 0, known: 0 };
  #left = false;
  #idling: Promise<void> = Promise.resolve();
  #idle = false;

  private constructor(parts: DepartureParts) {
    this.#parts = parts;
    this.#reader = new SocketReader(parts.socket);
    this.#stream = new RamStream({
      blocks: (section, blocks) => {
        this.#table = new PageTable(blocks);
        this.#memory = blocks.findIndex(({ name }) => name === guestMemory);
        this.#records.map({ section, names: blocks.map(({ name }) => name) });
      },
      page: (block, unit, data) => this.#page(block, unit, data),
      verbatim: (bytes) => this.#records.verbatim(bytes),
    });
  }

  static async open(
    guest: Guest,
    { images, former, trimmed }: { images: Images; former: string; trimmed: Promise<void> },
    { around, progress }: { around: Surroundings; progress: Progress },
  ): Promise<Departure> {
    const place = await makePlace(guest, around.confinement);
    const { user } = around.confinement;
    const kept = await UnitFile.fresh(former);
    const qmp = await connectQmp(guestFiles(guest).qmp, { guest: guest.name, deadlines: { "migrate-continue": switchMillis } });
    const server = createServer();
    try {
      const path = join(place, "ram.sock");
      await new Promise<void>((resolve, reject) => server.once("error", reject).listen(path, resolve));
      if (user !== undefined) await chown(path, user.uid, user.gid);
      await serveDisks(qmp, join(place, "nbd.sock"));
      await addGuard(qmp);
      const connected = firstConnection(server, progress.signal);
      await guardedMigration(qmp, path);
      return new Departure({ guest, qmp, place, socket: await connected, images, trimmed, kept });
    } catch (error) {
      qmp.close();
      await images.close();
      await kept.close();
      await rm(place, { recursive: true, force: true });
      throw error;
    } finally {
      server.close();
    }
  }

  /** Everything that has changed since the last round began, as records; the guest runs on. */
  round(signal: AbortSignal): LiveRound {
    return this.#counted(this.#oneRound(signal));
  }

  /** Bytes that have changed since the last round began; QEMU looks for changed pages now. */
  async remaining(signal: AbortSignal): Promise<{ memoryBytes: number; diskBytes: number }> {
    const { qmp } = this.#parts;
    const { looks } = await this.#migration();
    await setPace(qmp, "round");
    for (;;) {
      const now = await this.#migration();
      if (now.looks === looks) {
        await delay(lookMillis, undefined, { signal });
        continue;
      }
      await setPace(qmp, "idle");
      return { memoryBytes: now.remaining, diskBytes: await (await this.#disks()).changed() };
    }
  }

  /** The last changes, and the devices; the guest stands still from `onPaused` on. */
  last(signal: AbortSignal, onPaused: () => void): LiveRound {
    return this.#counted(this.#lastRound(signal, onPaused));
  }

  /** Keeps what was read so far as if the guest had left. */
  async keep(): Promise<void> {
    await this.#parts.kept.keep();
  }

  /** Closes what is this side's. What is QEMU's own is taken away by `stay`. */
  async close(): Promise<void> {
    this.#idle = false;
    const { qmp, socket, images, place, kept } = this.#parts;
    socket.destroy();
    await this.#idling;
    qmp.close();
    if (this.#left) await kept.keep();
    else await kept.close();
    await images.close();
    await rm(place, { recursive: true, force: true });
  }

  async *#oneRound(signal: AbortSignal): AsyncGenerator<Buffer> {
    const { qmp } = this.#parts;
    await this.#stopIdling();
    // QEMU notices within a tenth of a second
    await setPace(qmp, "flow");
    const isFirst = this.#begun === undefined;
    if (!isFirst) yield* this.#changedBlocks((await this.#disks()).round(signal));
    yield* this.#pass(signal);
    await setPace(qmp, "idle");
    if (isFirst) yield* this.#changedBlocks((await this.#disks()).round(signal));
    yield* this.#ends();
    this.#startIdling();
  }

  async *#lastRound(signal: AbortSignal, onPaused: () => void): AsyncGenerator<Buffer> {
    const { qmp } = this.#parts;
    const disks = await this.#disks();
    await this.#stopIdling();
    await setPace(qmp, "end");
    // what was written until now need not wait for the pause
    yield* this.#until(async () => (await this.#migration()).status === "pre-switchover", signal);
    onPaused();
    yield* this.#changedBlocks(disks.last(signal));
    // QEMU answers only once it has sent all, so it must be read meanwhile
    const switching = letSwitchOver(qmp);
    switching.catch(() => undefined);
    while (!this.#reader.isOver) {
      await this.#reader.ready();
      signal.throwIfAborted();
      yield* this.#come();
    }
    await switching;
    await this.#completed(signal);
    this.#left = true;
    yield* this.#ends();
  }

  /** Reads the stream until QEMU has sent all that it knows to have changed. */
  async *#pass(signal: AbortSignal): AsyncGenerator<Buffer> {
    let wanted = Infinity;
    const sent = async (): Promise<boolean> => {
      const { looks, remaining, pages } = await this.#migration();
      // the first look is QEMU's own, at the very beginning
      if (looks > 0 && remaining === 0 && wanted === Infinity) wanted = pages;
      return this.#stream.pages >= wanted;
    };
    yield* this.#until(sent, signal);
  }

  /** Reads the stream, and asks again and again whether it is enough. */
  async *#until(enough: () => Promise<boolean>, signal: AbortSignal): AsyncGenerator<Buffer> {
    const state: { done: boolean; failure?: unknown } = { done: false };
    const ask = async (): Promise<void> => {
      try {
        while (!state.done && !(await enough())) await delay(lookMillis, undefined, { signal });
      } catch (error) {
        state.failure = error;
      }
      state.done = true;
      this.#reader.wake();
    };
    const asking = ask();
    try {
      while (!state.done) {
        await this.#reader.ready();
        if (this.#reader.isOver) throw await this.#broken();
        yield* this.#come();
        await this.#parts.kept.flush();
      }
    } finally {
      // also where nobody reads on
      state.done = true;
      await asking;
    }
    if (state.failure !== undefined) throw state.failure;
  }

  *#come(): Generator<Buffer> {
    const chunk = this.#reader.now();
    if (chunk === undefined) return;
    this.#stream.push(chunk);
    yield* this.#records.take(false);
  }

  /** What is freed meanwhile must not count as changed: the first look at the disks waits for that, and memory is read before. */
  async #disks(): Promise<DiskRounds> {
    if (this.#begun !== undefined) return this.#begun;
    const { guest, qmp, place, trimmed } = this.#parts;
    await trimmed;
    const nodes = ["disk", ...guest.volumes.map((_, index) => `volume${String(index)}`)];
    return (this.#begun = await DiskRounds.begin(qmp, join(place, "nbd.sock"), nodes));
  }

  async *#changedBlocks(rounds: ReturnType<DiskRounds["round"]>): AsyncGenerator<Buffer> {
    for await (const { disk, unit, data } of rounds) {
      this.#block(disk, unit, data);
      yield* this.#records.take(false);
      await this.#parts.kept.flush();
    }
  }

  async *#ends(): AsyncGenerator<Buffer> {
    this.#records.end(this.#round++);
    yield* this.#records.take(true);
  }

  /** Between rounds QEMU says now and then that there is nothing; if nobody read that, it would stand still. */
  #startIdling(): void {
    this.#idle = true;
    this.#idling = (async () => {
      while (this.#idle && !this.#reader.isOver) {
        await this.#reader.ready();
        const chunk = this.#idle ? this.#reader.now() : undefined;
        if (chunk !== undefined) this.#stream.push(chunk);
      }
    })().catch(() => undefined);
  }

  async #stopIdling(): Promise<void> {
    this.#idle = false;
    this.#reader.wake();
    await this.#idling;
  }

  async #migration(): Promise<Migration> {
    const migration = await queryMigration(this.#parts.qmp);
    if (migration.status === "failed" || migration.status === "cancelled") throw this.#failed(migration);
    return migration;
  }

  async #completed(signal: AbortSignal): Promise<void> {
    for (;;) {
      const { status } = await this.#migration();
      if (status === "completed") return;
      await delay(lookMillis, undefined, { signal });
    }
  }

  async #broken(): Promise<CloudletError> {
    const migration = await queryMigration(this.#parts.qmp).catch(() => undefined);
    return this.#failed(migration);
  }

  #failed(migration: Migration | undefined): CloudletError {
    const why = migration === undefined ? "QEMU has ended" : (migration.error ?? `its migration is ${migration.status}`);
    return new CloudletError("FAILED", `the memory of guest ${this.#parts.guest.name} cannot be read any more: ${why}`);
  }

  #page(block: number, unit: number, data: Buffer | undefined): void {
    const saved = data !== undefined && block === this.#memory ? this.#parts.images.asSaved(unit, data) : undefined;
    if (saved !== undefined) return this.#savedPage(block, unit, saved);
    const hash = data === undefined ? zeroHash : hashOf(data);
    if (this.#table?.change(block, unit, hash) !== true) return;
    if (hash.equals(zeroHash)) return this.#records.zeroPage(block, unit);
    const place = this.#known(hash, data);
    if (place !== undefined) return this.#records.referredPage(block, unit, place);
    if (data === undefined) return;
    this.#stats.pages++;
    this.#records.page(block, unit, data);
  }

  #savedPage(block: number, unit: number, place: Place): void {
    if (this.#table?.change(block, unit, markOf(place)) !== true) return;
    this.#stats.known++;
    this.#records.referredPage(block, unit, place);
  }

  /** Neighbouring units of one kind go as one record. */
  #block(disk: number, unit: number, data: Buffer | number): void {
    if (typeof data === "number") return this.#records.diskZeros(disk, unit, data);
    let begun = 0;
    const units = data.length / pageBytes;
    for (let at = 0; at < units; at++) {
      const one = data.subarray(at * pageBytes, (at + 1) * pageBytes);
      const place = this.#known(hashOf(one), one);
      if (place === undefined) continue;
      this.#plain(disk, unit + begun, data.subarray(begun * pageBytes, at * pageBytes));
      this.#records.diskCopy(disk, unit + at, place);
      begun = at + 1;
    }
    this.#plain(disk, unit + begun, data.subarray(begun * pageBytes));
  }

  /** Where the target has it; what it has not as part of an image stays here as well. */
  #known(hash: Buffer, data: Buffer | undefined): Place | undefined {
    const { images, kept } = this.#parts;
    const place = images.find(hash);
    const isCommon = place !== undefined && place.image !== images.former;
    if (!isCommon && data !== undefined) kept.add(data, hash);
    if (place !== undefined) this.#stats.known++;
    return place;
  }

  #plain(disk: number, unit: number, data: Buffer): void {
    if (data.length === 0) return;
    this.#stats.blocks += data.length / pageBytes;
    this.#records.disk(disk, unit, data);
  }

  #counted(records: AsyncIterable<Buffer>): LiveRound {
    const counts = (this.#stats = { pages: 0, blocks: 0, known: 0 });
    const stats: LiveRound["stats"] = () => {
      const { pages, blocks, known } = counts;
      return { pages, blocks, rawBytes: (pages + blocks) * pageBytes, knownBytes: known * pageBytes };
    };
    return { records, stats };
  }
}

async function firstConnection(server: Server, signal: AbortSignal): Promise<Socket> {
  const waiting = AbortSignal.timeout(connectMillis);
  const either = new AbortController();
  for (const one of [waiting, signal]) one.addEventListener("abort", () => either.abort(), { once: true });
  const [socket] = (await once(server, "connection", { signal: either.signal })) as [Socket];
  return socket;
}
