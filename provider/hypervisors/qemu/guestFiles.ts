import { join } from "node:path";
import { z } from "zod";
import { exists } from "../../agent/durable.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Guest } from "../types.ts";

/** What this driver keeps in a guest's directory. */
export function guestFiles(guest: Pick<Guest, "directory">) {
  const at = (name: string) => join(guest.directory, name);
  return {
    disk: at("disk.qcow2"),
    seed: at("seed.iso"),
    /** Which contents the seed has. */
    seedId: at("seed.id"),
    console: at("console.log"),
    /** Where a guest that is to be frozen can be typed to. */
    consoleSocket: at("console.sock"),
    launch: at("launch.json"),
    qmp: at("qmp.sock"),
    /** A monitor of its own, so that looking never waits for a long command. */
    status: at("status.sock"),
    guestAgent: at("guest-agent.sock"),
    export: at("export"),
    /** Of a guest resumed from an overlay: what it has changed of the overlay's memory by giving pages back, and that memory as one file. */
    memory: at("memory.qcow2"),
    memoryView: at("memory.view"),
    viewMonitor: at("view.sock"),
    /** The seed that the guest in the overlay's memory has seen. */
    originSeed: at("origin-seed.iso"),
    /** There while a layer below is still arriving. */
    arriving: at("arriving"),
    /** There while the guest is held because nothing arrives. */
    held: at("held"),
    /** Of a guest that is to be frozen: its whole memory, and its device state once it is. */
    frozenMemory: at("frozen.memory"),
    frozenState: at("frozen.state"),
  };
}

/** How the guest's process was started; a suspended guest can only resume the same way. */
export const launchSchema = z.object({
  accelerator: z.enum(["kvm", "tcg"]),
  cores: z.int(),
  memoryMib: z.int(),
  /** Ids of the attached volumes. */
  volumes: z.array(z.string()).optional(),
  /** Digest of everything that shows only after a restart. */
  settings: z.string(),
  /** Machine type and processor model, where they are not this driver's choice. */
  pinned: z.object({ type: z.string(), cpu: z.string() }).optional(),
  /** What a guest that was resumed from an overlay's memory believes to be its network. */
  inside: z.object({ mac: z.string(), address: z.string() }).optional(),
  /** Whether it has run since it was resumed. */
  ran: z.boolean().optional(),
});
export type Launch = z.infer<typeof launchSchema>;

export async function mustExist(guest: Guest): Promise<void> {
  if (!(await exists(guestFiles(guest).disk)))
    throw new CloudletError("NOT_FOUND", `guest ${guest.name} is not there: it has no disk in ${guest.directory}`);
}
