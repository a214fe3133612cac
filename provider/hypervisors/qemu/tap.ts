import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { run } from "../../agent/process.ts";
import { CloudletError } from "../../core/errors.ts";

export interface Nic {
  tap: string;
  mac: string;
  /** The network namespace that the tap is in, where it is not the agent's own. */
  namespace?: string | undefined;
}

/** The guest's network device on the host; Linux allows 15 characters. */
export function tapName(guest: string): string {
  return `cl${createHash("sha256").update(guest).digest("hex").slice(0, 8)}`;
}

export async function ensureTap(guest: string, bridge: string, user: string | undefined): Promise<string> {
  const name = tapName(guest);
  if (!(await isThere(bridge))) throw new CloudletError("FAILED", `guest ${guest} cannot start: the bridge ${bridge} is not there`);
  if (!(await isThere(name))) await run(["ip", "tuntap", "add", "dev", name, "mode", "tap", ...(user === undefined ? [] : ["user", user])]);
  await run(["ip", "link", "set", "dev", name, "master", bridge, "up"]);
  return name;
}

export async function removeTap(guest: string): Promise<void> {
  const name = tapName(guest);
  if (await isThere(name)) await run(["ip", "link", "delete", "dev", name]);
}

/** /proc/net follows the network namespace; a /sys that was mounted outside it does not. */
export async function isThere(device: string): Promise<boolean> {
  const devices = await readFile("/proc/self/net/dev", "utf8");
  return devices.split("\n").some((line) => line.trim().startsWith(`${device}:`));
}
