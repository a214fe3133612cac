import { writeFile } from "node:fs/promises";
import type { FormerCopy, Guest, Live, LiveArrival, LiveDeparture, LiveRound } from "../../provider/hypervisors/types.ts";
import type { FakeDriver } from "./driver.ts";

/** Moves the fake hypervisor's running guests: a record is all that a guest contains, and a paused guest is a stopped one that keeps it. */
export class FakeLive implements Live {
  readonly #driver: FakeDriver;
  /** Guests that have arrived whole; their processes outlive the agent, and die by `lose`. */
  readonly #waiting = new Set<string>();
  /** What a guest takes up on the disk. */
  bytes = 0;
  /** Guests whose clocks were set. */
  readonly caughtUp: string[] = [];

  constructor(driver: FakeDriver) {
    this.#driver = driver;
  }

  shape(guest: Guest): Promise<{ shape: string } | { impossible: string }> {
    const running = this.#driver.guests.get(guest.name)?.state === "running";
    return Promise.resolve(running ? { shape: guest.name } : { impossible: "it does not run" });
  }

  diskBytes(): Promise<number> {
    return Promise.resolve(this.bytes);
  }

  async copy(guest: Guest, { path }: { path: string }): Promise<void> {
    await writeFile(path, this.#driver.guests.get(guest.name)?.contents ?? "");
  }

  async depart(guest: Guest, { former }: { former: FormerCopy }): Promise<LiveDeparture> {
    await former.onTarget;
    const contents = (): Buffer => Buffer.from(this.#driver.guests.get(guest.name)?.contents ?? "");
    const round = (before: () => void): LiveRound => ({
      records: (async function* () {
        await Promise.resolve();
        before();
        yield contents();
      })(),
      stats: () => ({ pages: 1, blocks: 0, rawBytes: contents().length, knownBytes: 0 }),
    });
    return {
      round: () => round(() => undefined),
      remaining: () => Promise.resolve({ memoryBytes: 1, diskBytes: 0 }),
      last: (_signal, onPaused) =>
        round(() => {
          this.#set(guest, "stopped");
          onPaused();
        }),
      throttle: () => Promise.resolve(),
      close: () => Promise.resolve(),
    };
  }

  async stay(guest: Guest): Promise<void> {
    if (this.#driver.guests.get(guest.name)?.state === "stopped") await this.#driver.start(guest);
  }

  receive(guest: Guest): Promise<LiveArrival> {
    let last = "";
    return Promise.resolve({
      has: Buffer.alloc(0),
      take: async (records) => {
        const chunks: Buffer[] = [];
        for await (const chunk of records) chunks.push(chunk);
        last = Buffer.concat(chunks).toString("utf8");
      },
      finish: () => {
        this.#driver.guests.set(guest.name, { state: "stopped", basePath: guest.basePath, settings: "", contents: last });
        this.#waiting.add(guest.name);
        return Promise.resolve();
      },
      close: () => Promise.resolve(),
    });
  }

  isWaiting(guest: Guest): Promise<boolean> {
    return Promise.resolve(this.#waiting.has(guest.name) && this.#driver.guests.has(guest.name));
  }

  async release(guest: Guest): Promise<void> {
    this.#waiting.delete(guest.name);
    await this.#driver.start(guest);
  }

  catchUp(guest: Guest): Promise<void> {
    this.caughtUp.push(guest.name);
    return Promise.resolve();
  }

  /** All processes of this hypervisor are killed. */
  lose(): void {
    this.#waiting.clear();
  }

  #set(guest: Guest, state: "running" | "stopped"): void {
    const found = this.#driver.guests.get(guest.name);
    if (found !== undefined) found.state = state;
  }
}
