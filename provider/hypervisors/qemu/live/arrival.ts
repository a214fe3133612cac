import { rm } from "node:fs/promises";
import { createConnection, type Socket } from "node:net";
import { once } from "node:events";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { CloudletError } from "../../../core/errors.ts";
import type { Guest } from "../../types.ts";
import { guestFiles } from "../guestFiles.ts";
import type { Surroundings } from "../launch.ts";
import { connectQmp, type Qmp } from "../qmp.ts";
import { loadFrom, migrationEnded } from "../qmpCommands.ts";
import { Images } from "./images.ts";
import { makePlace } from "./place.ts";
import { NbdClient } from "./nbdClient.ts";
import { addGuard, offerDisk, removeGuard, serveDisks, stopServing, withdrawDisk } from "./qmpLive.ts";
import { pageBytes } from "./ramStream.ts";
import { RamWriter } from "./ramWriter.ts";
import { RecordReader, type LiveRecord, type Place } from "./records.ts";
import { UnitFile } from "./unitFile.ts";

const connectMillis = 10_000;
const loadMillis = 120_000;
/** Read from an image at once. */
const mostUnits = 256;
/** Given to QEMU at once. */
const sectionBytes = 1024 * 1024;
/** Under way to the disks at once. */
const writingBytes = 4 * 1024 * 1024;

/** What this node has already of a guest that arrives. */
export interface Here {
  images: Images;
  /** What is here of the guest from before, as hashes. */
  has: Buffer;
  /** Gets what has arrived, should the link break before the end. */
  kept: UnitFile;
}

export async function openHere(paths: readonly string[], former: string, signal: AbortSignal): Promise<Here> {
  // makes the file where there is none, so that it can be opened
  const kept = await UnitFile.more(former);
  const images = await Images.open(paths, former).catch(async (error: unknown) => {
    await kept.close();
    throw error;
  });
  try {
    return { images, has: await images.formerHashes(signal), kept };
  } catch (error) {
    await closeHere({ images, kept });
    throw error;
  }
}

export async function closeHere({ images, kept }: Pick<Here, "images" | "kept">): Promise<void> {
  await kept.close();
  await images.close();
}

interface ArrivalParts extends Here {
  guest: Guest;
  qmp: Qmp;
  place: string;
  socket: Socket;
  disks: NbdClient[];
  names: string[];
}

/** A guest that is arriving while it still runs elsewhere: its QEMU waits here, and takes in memory and disks. */
export class Arrival {
  readonly #parts: ArrivalParts;
  readonly #reader = new RecordReader();
  #writer: RamWriter | undefined;
  /** For pages from images, which go straight on. */
  readonly #pages = Buffer.allocUnsafe(mostUnits * pageBytes);
  #rounds = 0;
  /** What was given to QEMU last. */
  #passing: Promise<void> = Promise.resolve();
  /** What the disks have been told to write, and its bytes. */
  #writing: Promise<void>[] = [];
  #writingBytes = 0;

  private constructor(parts: ArrivalParts) {
    this.#parts = parts;
  }

  /** Of a guest whose QEMU waits for what comes (`-incoming defer`); what is here of it is closed with this. */
  static async open(guest: Guest, here: Promise<Here>, { around }: { around: Surroundings }): Promise<Arrival> {
    const place = await makePlace(guest, around.confinement);
    const [ram, nbd] = [join(place, "ram.sock"), join(place, "nbd.sock")];
    const qmp = await connectQmp(guestFiles(guest).qmp, { guest: guest.name });
    try {
      await addGuard(qmp);
      await serveDisks(qmp, nbd);
      const names = ["disk", ...guest.volumes.map((_, index) => `volume${String(index)}`)];
      const disks: NbdClient[] = [];
      for (const node of names) {
        await offerDisk(qmp, { node, name: node, writable: true });
        disks.push(await NbdClient.connect(nbd, node));
      }
      await loadFrom(qmp, `unix:${ram}`);
      const socket = await connected(ram);
      return new Arrival({ guest, qmp, place, socket, disks, names, ...(await here) });
    } catch (error) {
      qmp.close();
      await rm(place, { recursive: true, force: true });
      throw error;
    }
  }

  /** What is here of the guest from before, as hashes. */
  get has(): Buffer {
    return this.#parts.has;
  }

  /** Takes in one round; returns once all of it is with QEMU. */
  async take(records: AsyncIterable<Buffer>): Promise<void> {
    let ended = false;
    for await (const chunk of records) {
      for (const record of this.#reader.push(chunk)) {
        if (ended) throw this.#damaged("goes on after its end");
        ended = await this.#apply(record);
      }
      await this.#flushPages();
      await this.#written();
      await this.#parts.kept.flush();
    }
    await this.#passing;
    if (!ended || !this.#reader.isEmpty) throw this.#damaged("was cut off");
  }

  /** After the last round: QEMU has loaded all of it, and the disks are on disk. */
  async finish(signal: AbortSignal): Promise<void> {
    const { guest, qmp, socket, disks, names } = this.#parts;
    socket.end();
    const what = `loading guest ${guest.name} as it ran elsewhere`;
    await Promise.all([migrationEnded(qmp, what, { signal, timeoutMillis: loadMillis }), ...disks.map((disk) => disk.flush())]);
    for (const disk of disks) disk.close();
    for (const name of names) await withdrawDisk(qmp, name);
    await stopServing(qmp);
    await removeGuard(qmp);
    // others may want to speak to it now
    await this.close();
  }

  async close(): Promise<void> {
    const { qmp, socket, disks, images, kept, place } = this.#parts;
    socket.destroy();
    for (const disk of disks) disk.close();
    qmp.close();
    await closeHere({ images, kept });
    await rm(place, { recursive: true, force: true });
  }

  /** Returns whether that was the round's end. */
  async #apply(record: LiveRecord): Promise<boolean> {
    switch (record.letter) {
      case "B":
        this.#writer = new RamWriter(record.map.section, record.map.names);
        return false;
      case "V":
        await this.#flushPages();
        await this.#pass(record.bytes);
        return false;
      case "P":
        this.#ram.page(record.block, record.unit, record.bytes);
        this.#parts.kept.add(record.bytes);
        return false;
      case "Z":
        for (let at = 0; at < record.count; at++) this.#ram.page(record.block, record.unit + at, undefined);
        return false;
      case "R":
        return this.#referred(record);
      case "D":
        await this.#write(record, record.bytes);
        this.#parts.kept.add(record.bytes);
        return false;
      case "H":
        this.#begun(this.#disk(record.disk).zeros(record.unit * pageBytes, record.count * pageBytes));
        return false;
      case "C":
        for (const { data, at } of this.#fromImage(record)) await this.#write({ disk: record.disk, unit: record.unit + at }, data);
        return false;
      case "E":
        if (record.round !== this.#rounds++) throw this.#damaged(`ends as round ${String(record.round)}`);
        return true;
    }
  }

  async #referred(record: LiveRecord & { letter: "R" }): Promise<false> {
    for (const { data, at } of this.#fromImage(record, this.#pages)) {
      for (let offset = 0; offset < data.length; offset += pageBytes)
        this.#ram.page(record.block, record.unit + at + offset / pageBytes, data.subarray(offset, offset + pageBytes));
      if (this.#ram.bytes >= sectionBytes) await this.#flushPages();
    }
    return false;
  }

  /** Piece by piece: each in a buffer of its own, or all in the one that is given. */
  *#fromImage({ count, place }: { count: number; place: Place }, buffer?: Buffer): Generator<{ data: Buffer; at: number }> {
    for (let at = 0; at < count; at += mostUnits) {
      yield { data: this.#parts.images.read({ ...place, unit: place.unit + at }, Math.min(mostUnits, count - at), buffer), at };
    }
  }

  /** Within a round no unit of a disk comes twice, so writes need not wait for each other. */
  async #write({ disk, unit }: { disk: number; unit: number }, data: Buffer): Promise<void> {
    this.#begun(this.#disk(disk).write(unit * pageBytes, data));
    this.#writingBytes += data.length;
    if (this.#writingBytes >= writingBytes) await this.#written();
  }

  #begun(writing: Promise<void>): void {
    // it may fail before anybody waits for it
    writing.catch(() => undefined);
    this.#writing.push(writing);
  }

  async #written(): Promise<void> {
    const writing = this.#writing;
    [this.#writing, this.#writingBytes] = [[], 0];
    await Promise.all(writing);
  }

  async #flushPages(): Promise<void> {
    const section = this.#writer?.take();
    if (section !== undefined) await this.#pass(section);
  }

  /** To QEMU, and no faster than it takes it: the next bytes are made ready meanwhile. */
  async #pass(bytes: Buffer): Promise<void> {
    await this.#passing;
    const { socket, guest } = this.#parts;
    this.#passing = new Promise<void>((resolve, reject) => {
      socket.write(bytes, (error) => {
        if (error == null) resolve();
        else reject(new CloudletError("FAILED", `QEMU of guest ${guest.name} has ended while it took in what arrives`, { cause: error }));
      });
    });
    this.#passing.catch(() => undefined);
  }

  get #ram(): RamWriter {
    if (this.#writer === undefined) throw this.#damaged("has a page before the list of its memory");
    return this.#writer;
  }

  #disk(index: number): NbdClient {
    const disk = this.#parts.disks[index];
    if (disk === undefined) throw this.#damaged(`has a disk ${String(index)} that is not there`);
    return disk;
  }

  #damaged(what: string): CloudletError {
    return new CloudletError("INTEGRITY", `what arrives of guest ${this.#parts.guest.name} ${what}`);
  }
}

async function connected(path: string): Promise<Socket> {
  const deadline = Date.now() + connectMillis;
  for (;;) {
    const socket = createConnection(path);
    try {
      await once(socket, "connect");
      socket.on("error", () => undefined);
      return socket;
    } catch (error) {
      socket.destroy();
      if (Date.now() > deadline) throw error;
      await delay(5);
    }
  }
}
