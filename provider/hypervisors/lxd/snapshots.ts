import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import type { Rest } from "../../transport/types.ts";
import type { Guest, Progress } from "../types.ts";
import { find } from "./client.ts";
import { change, mustHave, syncInstance } from "./instances.ts";
import { stateOf } from "./mapping.ts";
import { deadlines, perform, waitOf } from "./operations.ts";

interface Named {
  name: string;
  progress: Progress;
}

/** A snapshot of the disk; one of the same name is replaced. */
export async function takeSnapshot(rest: Rest, guest: Guest, { name, progress }: Named): Promise<void> {
  await mustHave(rest, guest, progress.signal);
  const snapshot = `/1.0/instances/${guest.name}/snapshots/${lxdName(name)}`;
  const what = `take snapshot ${name} of ${guest.name}`;
  if (await exists(rest, snapshot, progress))
    await perform(rest, { method: "DELETE", path: snapshot, what }, waitOf(progress, deadlines.remove));
  await perform(
    rest,
    { method: "POST", path: `/1.0/instances/${guest.name}/snapshots`, body: { name: lxdName(name), stateful: false }, what },
    waitOf(progress, deadlines.snapshot),
  );
}

/** Leaves the guest stopped; says whether it ran before. */
export async function restoreSnapshot(rest: Rest, guest: Guest, { name, progress }: Named): Promise<boolean> {
  const state = stateOf(await mustHave(rest, guest, progress.signal));
  if (!(await exists(rest, `/1.0/instances/${guest.name}/snapshots/${lxdName(name)}`, progress))) {
    throw new CloudletError("NOT_FOUND", `${guest.name} has no snapshot ${name}`, { fix: "name a snapshot that was taken" });
  }
  // what runs is about to be thrown away: no reason to shut it down gently
  if (state !== "stopped") await change(rest, guest, { action: "kill", progress });
  await perform(
    rest,
    {
      method: "PUT",
      path: `/1.0/instances/${guest.name}`,
      body: { restore: lxdName(name) },
      what: `restore snapshot ${name} of ${guest.name}`,
    },
    waitOf(progress, deadlines.snapshot),
  );
  // the snapshot brought its own limits and devices back
  await syncInstance(rest, guest, { instance: await mustHave(rest, guest, progress.signal), progress });
  return state === "running";
}

async function exists(rest: Rest, path: string, progress: Progress): Promise<boolean> {
  return (
    (await find(rest, { method: "GET", path, what: "look for a snapshot", signal: progress.signal }, z.object({ name: z.string() }))) !==
    undefined
  );
}

// ids may hold one slash, LXD's names none
function lxdName(name: string): string {
  return name.replace("/", "--");
}
