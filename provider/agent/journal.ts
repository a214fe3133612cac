import { closeSync, existsSync, fsyncSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeSync } from "node:fs";
import path from "node:path";
import { agentRestarted, jobEventSchema } from "./jobProtocol.ts";
import type { JobEvent } from "./jobProtocol.ts";

const keptJournals = 500;
const keptMillis = 7 * 24 * 3600 * 1000;

/** A job's journal on disk. Written synchronously: when `append` returns, a line that matters is durable. */
export class Journal {
  readonly #fd: number;

  constructor(directory: string, id: string) {
    this.#fd = openSync(journalPath(directory, id), "w", 0o600);
    const parent = openSync(directory, "r");
    fsyncSync(parent);
    closeSync(parent);
  }

  append(event: JobEvent): void {
    writeSync(this.#fd, line(event));
    if (event.type !== "progress") fsyncSync(this.#fd);
  }

  close(): void {
    closeSync(this.#fd);
  }
}

/** undefined = no such journal. A last line cut off by a crash is left out. */
export function readJournal(directory: string, id: string): JobEvent[] | undefined {
  const file = journalPath(directory, id);
  if (!existsSync(file)) return undefined;
  const events: JobEvent[] = [];
  for (const text of readFileSync(file, "utf8").split("\n")) {
    const event = parseLine(text);
    if (event !== undefined) events.push(event);
  }
  return events;
}

/** Ends what an earlier run of the agent left unfinished, and removes old journals. Returns the ids that were closed. */
export function settleJournals(directory: string, now: Date): string[] {
  const closed: string[] = [];
  const files = readdirSync(directory).filter((name) => name.endsWith(".jsonl"));
  const byAge = files.map((name) => ({ name, millis: statSync(path.join(directory, name)).mtimeMs })).sort((a, b) => b.millis - a.millis);
  for (const [index, { name, millis }] of byAge.entries()) {
    if (index >= keptJournals || now.getTime() - millis > keptMillis) {
      rmSync(path.join(directory, name));
      continue;
    }
    const id = name.slice(0, -".jsonl".length);
    const events = readJournal(directory, id) ?? [];
    const last = events.at(-1);
    if (last?.type === "done" || last?.type === "failed") continue;
    const error = { code: "ABORTED", message: agentRestarted, fix: "run the same command again to continue" };
    const fd = openSync(path.join(directory, name), "a", 0o600);
    // the line break ends a line that the crash cut off
    writeSync(fd, `\n${line({ type: "failed", seq: (last?.seq ?? -1) + 1, at: now.toISOString(), error })}`);
    fsyncSync(fd);
    closeSync(fd);
    closed.push(id);
  }
  return closed;
}

/** Results may hold secrets (a move's token, a cloudlet's environment): they are handed out from memory and never written. */
function line(event: JobEvent): string {
  return `${JSON.stringify(event.type === "done" ? { ...event, result: null } : event)}\n`;
}

function parseLine(text: string): JobEvent | undefined {
  if (text === "") return undefined;
  try {
    return jobEventSchema.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

function journalPath(directory: string, id: string): string {
  return path.join(directory, `${id}.jsonl`);
}
