import { chown, mkdtemp, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Guest } from "../../types.ts";
import type { Confinement } from "../confinement.ts";

const directory = "/run";

function prefixOf(guest: Pick<Guest, "name">): string {
  return `cloudlet-live-${guest.name}-`;
}

/** A directory in which QEMU, as its own user, may make sockets. */
export async function makePlace(guest: Guest, { user }: Confinement): Promise<string> {
  const place = await mkdtemp(join(directory, prefixOf(guest)));
  if (user !== undefined) await chown(place, user.uid, user.gid);
  return place;
}

export async function removePlaces(guest: Guest): Promise<void> {
  for (const name of await readdir(directory))
    if (name.startsWith(prefixOf(guest))) await rm(join(directory, name), { recursive: true, force: true });
}
