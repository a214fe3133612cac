import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import type { Rest } from "../../transport/types.ts";
import type { Progress } from "../types.ts";
import { ask } from "./client.ts";
import { deadlines, perform, waitOf } from "./operations.ts";

const ownName = "cloudlet";
const ownMark = "user.cloudlet.made";

const poolSchema = z.object({ name: z.string(), config: z.record(z.string(), z.string()), used_by: z.array(z.string()).nullish() });

/** The pool that guests go to: ours, else LXD's default, else its first; an LXD that has none gets one of ours below `root`. */
export async function ensurePool(rest: Rest, root: string, progress: Progress): Promise<string> {
  const present = await pools(rest, progress);
  const chosen = present.find((pool) => pool.name === ownName) ?? present.find((pool) => pool.name === "default") ?? present[0];
  if (chosen !== undefined) return chosen.name;
  const source = join(root, "lxd-pool");
  await mkdir(source, { recursive: true, mode: 0o711 });
  const body = { name: ownName, driver: "dir", description: "Guests of cloudlets", config: { source, [ownMark]: "true" } };
  await perform(
    rest,
    { method: "POST", path: "/1.0/storage-pools", body, what: `make the storage pool ${ownName}` },
    waitOf(progress, deadlines.pool),
  );
  return ownName;
}

/** Removes the pool if we made it; one that still holds somebody's guests is refused. */
export async function removePool(rest: Rest, root: string, progress: Progress): Promise<void> {
  const own = (await pools(rest, progress)).find((pool) => pool.name === ownName && pool.config[ownMark] === "true");
  if (own === undefined) return;
  const users = (own.used_by ?? []).filter((user) => !user.startsWith("/1.0/images/"));
  if (users.length > 0) {
    throw new CloudletError("REFUSED", `${rest.label}: the storage pool ${ownName} is still used by ${users.join(", ")}`, {
      fix: "remove or move these first",
    });
  }
  await perform(
    rest,
    { method: "DELETE", path: `/1.0/storage-pools/${ownName}`, what: `remove the storage pool ${ownName}` },
    waitOf(progress, deadlines.pool),
  );
  await rm(join(root, "lxd-pool"), { recursive: true, force: true });
}

function pools(rest: Rest, progress: Progress) {
  return ask(
    rest,
    { method: "GET", path: "/1.0/storage-pools?recursion=1", what: "list storage pools", signal: progress.signal },
    z.array(poolSchema),
  );
}
