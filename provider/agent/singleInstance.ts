import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { CloudletError } from "../core/errors.ts";

/** Makes sure that one agent at a time works below a directory. Returns what gives the place free. */
export function takeSingleInstance(directory: string): () => void {
  mkdirSync(directory, { recursive: true, mode: 0o711 });
  const lock = path.join(directory, "agent.lock");
  const mine = `${String(process.pid)} ${startTimeOf(process.pid) ?? ""}`;
  const temporary = `${lock}.${String(process.pid)}`;
  writeFileSync(temporary, mine, { mode: 0o600 });
  try {
    for (let attempt = 0; attempt < 10; attempt++) {
      if (linked(temporary, lock)) {
        return () => {
          if (contentOf(lock) === mine) rmSync(lock, { force: true });
        };
      }
      const holder = contentOf(lock);
      if (holder !== undefined && isAlive(holder)) {
        throw new CloudletError("BUSY", `another agent (process ${holder.split(" ")[0] ?? "?"}) works below ${directory}`, {
          fix: "stop it first",
        });
      }
      if (holder !== undefined) removeStale(lock, holder);
    }
    throw new CloudletError("BUSY", `${lock} cannot be taken`, { fix: "stop other agents on this node" });
  } finally {
    rmSync(temporary, { force: true });
  }
}

function linked(from: string, to: string): boolean {
  try {
    linkSync(from, to);
    return true;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "EEXIST") return false;
    throw error;
  }
}

/** Renaming is atomic: of several that find a stale lock, each moves away what it has seen, never a newer one for good. */
function removeStale(lock: string, seen: string): void {
  const aside = `${lock}.stale.${String(process.pid)}`;
  try {
    renameSync(lock, aside);
  } catch {
    return;
  }
  if (contentOf(aside) === seen) rmSync(aside, { force: true });
  else renameSync(aside, lock);
}

function contentOf(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return undefined;
  }
}

function isAlive(holder: string): boolean {
  const [pid = "", startTime] = holder.split(" ");
  const found = startTimeOf(Number(pid));
  return found !== undefined && found === startTime;
}

/** A pid with its start time names one process for good. */
function startTimeOf(pid: number): string | undefined {
  const stat = contentOf(`/proc/${String(pid)}/stat`);
  // the command's name may hold spaces and brackets
  return stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
}
