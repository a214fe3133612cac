import { appendFile, mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { isMissing, writeDurably } from "../durable.ts";
import { handoffEventSchema, type Handoff, type HandoffEvent } from "../handoffProtocol.ts";
import type { KeyedLock } from "../keyedLock.ts";
import { toJobError } from "../jobs.ts";
import { guestName } from "../protocol.ts";

/** So many handoffs of a cloudlet are remembered. */
const keptHandoffs = 20;
/** So many events of one, the first and the last ones. */
const keptEvents = 200;

/** An event without its time, which is added where it is noted. */
export type Happening = HandoffEvent extends infer E ? (E extends HandoffEvent ? Omit<E, "at"> : never) : never;

/** What has happened in the handoffs of this node's cloudlets: a file for each cloudlet, which goes along with it. */
export class Handoffs {
  readonly #directory: string;
  readonly #lock: KeyedLock;

  constructor(directory: string, lock: KeyedLock) {
    this.#directory = directory;
    this.#lock = lock;
  }

  /** Never fails a handoff: that something was not written down is no reason to end it. */
  async note(id: string, happening: Happening, at = Date.now()): Promise<void> {
    await this.#inTurn(id, async () => {
      const event = handoffEventSchema.parse({ ...happening, at });
      await mkdir(this.#directory, { recursive: true, mode: 0o700 });
      // now and then what is too old goes
      if (event.type === "began") await this.#write(id, bounded([...(await this.#events(id)), event]));
      // the line break ends a line that a crash has cut off
      else await appendFile(this.#file(id), `\n${JSON.stringify(event)}`, { mode: 0o600 });
    }).catch(() => undefined);
  }

  /** `resumed`: the application goes on where it was. */
  async noteFailure(id: string, error: unknown, resumed: boolean): Promise<void> {
    const { code, message } = toJobError(error);
    await this.note(id, { type: "failed", code, message, resumed });
  }

  /** Newest first. */
  async list(id: string): Promise<Handoff[]> {
    return toHandoffs(await this.events(id)).reverse();
  }

  /** Oldest first; what travels with the cloudlet. */
  async events(id: string): Promise<HandoffEvent[]> {
    return this.#inTurn(id, () => this.#events(id));
  }

  /** What the node that it came from has written down takes the place of what an earlier stay has left here. */
  async adopt(id: string, events: readonly HandoffEvent[]): Promise<void> {
    if (events.length === 0) return;
    await this.#inTurn(id, async () => {
      await mkdir(this.#directory, { recursive: true, mode: 0o700 });
      await this.#write(id, bounded(events));
    });
  }

  async forget(id: string): Promise<void> {
    await this.#inTurn(id, () => rm(this.#file(id), { force: true }));
  }

  /** A line that a crash has cut off, or that another version wrote, is left out. */
  async #events(id: string): Promise<HandoffEvent[]> {
    const text = await readFile(this.#file(id), "utf8").catch((error: unknown) => {
      if (isMissing(error)) return "";
      throw error;
    });
    return text.split("\n").flatMap(parseLine);
  }

  async #write(id: string, events: readonly HandoffEvent[]): Promise<void> {
    await writeDurably(this.#file(id), events.map((event) => JSON.stringify(event)).join("\n"), 0o600);
  }

  #inTurn<T>(id: string, work: () => Promise<T>): Promise<T> {
    return this.#lock.run(`handoffs:${id}`, work);
  }

  #file(id: string): string {
    return join(this.#directory, `${guestName(id)}.ndjson`);
  }
}

function bounded(events: readonly HandoffEvent[]): HandoffEvent[] {
  return grouped(events)
    .slice(-keptHandoffs)
    .flatMap((group) => (group.length <= keptEvents ? group : [...group.slice(0, keptEvents / 2), ...group.slice(-keptEvents / 2)]));
}

function toHandoffs(events: readonly HandoffEvent[]): Handoff[] {
  return grouped(events).flatMap((group, index, groups): Handoff[] => {
    const [first, last] = [group[0], group.at(-1)];
    if (first?.type !== "began") return [];
    const { from, to, mode, route, at: beganAt } = first;
    const handoff = { from, to, mode, route, beganAt, events: group };
    if (last?.type === "ended") return [{ ...handoff, mode: last.report.mode, outcome: "moved", endedAt: last.at, report: last.report }];
    if (last?.type === "failed") return [{ ...handoff, outcome: "failed", endedAt: last.at, message: last.message }];
    // one that was begun anew has lost its end with its agent
    return [{ ...handoff, outcome: index === groups.length - 1 ? "underWay" : "failed" }];
  });
}

/** Each handoff from its begin on; one that is gone on with after a crash may begin twice. */
function grouped(events: readonly HandoffEvent[]): HandoffEvent[][] {
  const groups: HandoffEvent[][] = [];
  for (const event of events) {
    if (event.type === "began") groups.push([event]);
    else groups.at(-1)?.push(event);
  }
  return groups;
}

function parseLine(line: string): HandoffEvent[] {
  if (line === "") return [];
  try {
    return [handoffEventSchema.parse(JSON.parse(line))];
  } catch {
    return [];
  }
}
