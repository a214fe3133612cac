import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { CloudletError } from "../../../core/errors.ts";
import type { Qmp } from "../qmp.ts";
import { QmpError } from "../qmp.ts";

const guard = "guard";
/** What the guard holds back, in QEMU's count of bytes that are still to be sent: one for each bit. */
const guardBits = 2 ** 22;
const guardGranularity = 65_536;

/** Bytes per second while nothing is wanted: enough that QEMU looks at its parameters, ten times a second. */
const idleRate = 20_000;
const fullRate = 10 * 1024 ** 3;

/**
 * QEMU ends a migration by itself once less is left than it could send within the downtime limit. A bitmap that is sent
 * only at the very end counts as left all the time, so it never does; with a limit of 1 ms it then looks for changed pages
 * as soon as it has sent all, with 0 never, and with the longest it ends. Seen in QEMU 7.2; from 8.0 on it counts otherwise.
 */
export async function addGuard(qmp: Qmp): Promise<void> {
  await qmp.execute("blockdev-add", { driver: "null-co", "node-name": guard, size: guardBits * guardGranularity });
}

export async function guardedMigration(qmp: Qmp, socketPath: string): Promise<void> {
  await qmp.execute("block-dirty-bitmap-add", { node: guard, name: guard, granularity: guardGranularity, disabled: true });
  await setCapabilities(qmp, true);
  const bitmaps = [{ name: guard, alias: guard }];
  await qmp.execute("migrate-set-parameters", {
    "downtime-limit": 0,
    "max-bandwidth": fullRate,
    "block-bitmap-mapping": [{ "node-name": guard, alias: guard, bitmaps }],
  });
  await qmp.execute("migrate", { uri: `unix:${socketPath}` });
}

export type Pace = "idle" | "round" | "flow" | "end";

const paces: Record<Pace, Record<string, number>> = {
  idle: { "downtime-limit": 0, "max-bandwidth": idleRate },
  // at the idle rate: measured at full speed the limit would let the migration end
  round: { "downtime-limit": 1, "max-bandwidth": idleRate },
  flow: { "downtime-limit": 0, "max-bandwidth": fullRate },
  end: { "downtime-limit": 2_000_000, "max-bandwidth": fullRate },
};

export async function setPace(qmp: Qmp, pace: Pace): Promise<void> {
  await qmp.execute("migrate-set-parameters", paces[pace]);
}

const migrationSchema = z.object({
  status: z.string().optional(),
  "error-desc": z.string().optional(),
  ram: z.object({ remaining: z.number(), "dirty-sync-count": z.number(), normal: z.number(), duplicate: z.number() }).optional(),
});

export interface Migration {
  status: string;
  error: string | undefined;
  /** Bytes of memory known to have changed and not sent yet. */
  remaining: number;
  /** How often changed pages were looked for. */
  looks: number;
  /** Pages sent so far. */
  pages: number;
}

export async function queryMigration(qmp: Qmp): Promise<Migration> {
  const { status = "none", ram, ...rest } = migrationSchema.parse(await qmp.execute("query-migrate"));
  return {
    status,
    error: rest["error-desc"],
    remaining: ram?.remaining ?? 0,
    looks: ram?.["dirty-sync-count"] ?? 0,
    pages: (ram?.normal ?? 0) + (ram?.duplicate ?? 0),
  };
}

/** The guest is paused, and everything but its last changes has been sent. */
export async function letSwitchOver(qmp: Qmp): Promise<void> {
  await qmp.execute("migrate-continue", { state: "pre-switchover" });
}

/** Ends what is under way, and waits until it has ended; a guest that was running runs again then. */
export async function cancelLive(qmp: Qmp, signal: AbortSignal): Promise<void> {
  await qmp.execute("migrate_cancel");
  for (;;) {
    const { status } = await queryMigration(qmp);
    if (!["setup", "active", "pre-switchover", "device", "cancelling"].includes(status)) break;
    await delay(10, undefined, { signal });
  }
}

/** What a live migration leaves in QEMU, on either side, is taken away again. */
export async function removeGuard(qmp: Qmp): Promise<void> {
  await forgiving(qmp, "block-dirty-bitmap-remove", { node: guard, name: guard });
  await forgiving(qmp, "blockdev-del", { "node-name": guard });
  await setCapabilities(qmp, false);
}

async function setCapabilities(qmp: Qmp, state: boolean): Promise<void> {
  const capabilities = ["dirty-bitmaps", "pause-before-switchover"].map((capability) => ({ capability, state }));
  await qmp.execute("migrate-set-capabilities", { capabilities });
}

export async function serveDisks(qmp: Qmp, socketPath: string): Promise<void> {
  await qmp.execute("nbd-server-start", { addr: { type: "unix", data: { path: socketPath } } });
}

export async function offerDisk(qmp: Qmp, disk: Offer): Promise<void> {
  const { node, name, bitmap, writable = false } = disk;
  await qmp.execute("block-export-add", {
    type: "nbd",
    id: name,
    name,
    "node-name": node,
    writable,
    ...(bitmap === undefined ? { "allocation-depth": true } : { bitmaps: [bitmap] }),
  });
}

export interface Offer {
  node: string;
  name: string;
  /** A bitmap that says what has changed; without one, what is allocated. */
  bitmap?: string;
  writable?: boolean;
}

export async function stopServing(qmp: Qmp): Promise<void> {
  await forgiving(qmp, "nbd-server-stop");
}

export async function withdrawDisk(qmp: Qmp, name: string): Promise<void> {
  await qmp.execute("block-export-del", { id: name, mode: "hard" });
  // its bitmap is busy until it is really gone
  for (let tries = 0; tries < 500; tries++) {
    const exports = exportsSchema.parse(await qmp.execute("query-block-exports"));
    if (!exports.some(({ id }) => id === name)) return;
    await delay(2);
  }
  throw new CloudletError("TIMEOUT", `QEMU does not let go of the disk ${name}`);
}

const exportsSchema = z.array(z.object({ id: z.string() }));

/** One instant for all disks: what changes from now on is in `next`, what has changed until now stays in `last`. */
export async function nextBitmaps(
  qmp: Qmp,
  nodes: readonly string[],
  names: { last?: string | undefined; next?: string | undefined },
): Promise<void> {
  const actions = nodes.flatMap((node) => [
    ...(names.next === undefined ? [] : [{ type: "block-dirty-bitmap-add", data: { node, name: names.next, granularity: 4096 } }]),
    ...(names.last === undefined ? [] : [{ type: "block-dirty-bitmap-disable", data: { node, name: names.last } }]),
  ]);
  await qmp.execute("transaction", { actions });
}

export async function removeBitmap(qmp: Qmp, node: string, name: string): Promise<void> {
  await forgiving(qmp, "block-dirty-bitmap-remove", { node, name });
}

const bitmapSchema = z.object({ name: z.string().default(""), count: z.number() });
const nodesSchema = z.array(z.object({ "node-name": z.string(), "dirty-bitmaps": z.array(bitmapSchema).default([]) }));

/** The bitmaps on these nodes, and how many bytes each says have changed. */
export async function bitmapsOf(qmp: Qmp, nodes: readonly string[]): Promise<{ node: string; name: string; bytes: number }[]> {
  const found = nodesSchema.parse(await qmp.execute("query-named-block-nodes", { flat: true }));
  return found
    .filter((it) => nodes.includes(it["node-name"]))
    .flatMap((it) => it["dirty-bitmaps"].map(({ name, count }) => ({ node: it["node-name"], name, bytes: count })));
}

/** What is not there need not be taken away. */
async function forgiving(qmp: Qmp, command: string, args?: Record<string, unknown>): Promise<void> {
  try {
    await qmp.execute(command, args);
  } catch (error) {
    if (!(error instanceof QmpError)) throw error;
  }
}
