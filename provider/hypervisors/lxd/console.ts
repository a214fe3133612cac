import { appendFile, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { isMissing, writeDurably } from "../../agent/durable.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Rest } from "../../transport/types.ts";
import type { Guest } from "../types.ts";
import { download, send } from "./client.ts";
import { inTurn } from "./turns.ts";

const keptBytes = 256 * 1024;

/** Everything on the guest's console so far. Reading empties LXD's buffer, so what was read is kept beside the guest. */
export function readConsole(rest: Rest, guest: Guest, stopped: boolean): Promise<string> {
  return inTurn(`console ${guest.directory}`, () => drain(rest, guest, stopped));
}

export function lastLines(content: string, lines: number): string {
  const all = content.replace(/\r+\n/g, "\n").replace(/\n\r/g, "\n").replace(/\n+$/, "").split("\n");
  return all.slice(-lines).join("\n");
}

async function drain(rest: Rest, guest: Guest, stopped: boolean): Promise<string> {
  const kept = join(guest.directory, "console.log");
  const path = `/1.0/instances/${guest.name}/console`;
  const fresh = await unread(rest, path, guest.name);
  if (fresh !== "") {
    await appendFile(kept, fresh, { mode: 0o600 });
    // a stopped guest's console stays in a file, to be read again
    if (stopped) await send(rest, { method: "DELETE", path, what: `empty the console log of ${guest.name}` }).catch(() => undefined);
    if ((await stat(kept)).size > 2 * keptBytes) await writeDurably(kept, (await readFile(kept)).subarray(-keptBytes), 0o600);
  }
  return await readFile(kept, "utf8").catch((error: unknown) => {
    if (isMissing(error)) return "";
    throw error;
  });
}

async function unread(rest: Rest, path: string, name: string): Promise<string> {
  try {
    return await text((await download(rest, { method: "GET", path, what: `read the console of ${name}` })).body);
  } catch (error) {
    // nothing new on the console is an error 500 for LXD: "no such file"
    if (error instanceof CloudletError && (error.code === "NOT_FOUND" || error.message.includes("no such file"))) return "";
    throw error;
  }
}
