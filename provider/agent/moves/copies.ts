import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Progress } from "../../hypervisors/types.ts";
import { guestOf } from "../instances.ts";
import type { JobContext } from "../jobs.ts";
import type { InstanceRecord } from "../records.ts";
import type { Services } from "../services.ts";
import type { MoveFiles } from "./files.ts";

/** Ends the copy of a cloudlet that was given away and runs elsewhere. A note of where it went stays with its record. */
export async function discardCopy(services: Services, record: InstanceRecord, context: JobContext): Promise<void> {
  const { hypervisors, volumes, records, network } = services;
  const driver = await hypervisors.driver(record.spec.kind);
  await driver.remove(await guestOf(services, record), context);
  for (const { id } of record.spec.volumes) {
    const volume = await volumes.read(id);
    if (volume?.place !== "here") continue;
    await volumes.write({ ...volume, place: "gone", ...(record.ownership.peer !== undefined && { peer: record.ownership.peer }) });
    await rm(volumes.dataPath(id), { recursive: true, force: true });
  }
  await removeExport(services, record.spec.id);
  await network.publish(await records.list());
}

/** Where copies are put aside to be sent; `export` is the driver's own. */
export function outgoingDirectory(services: Services, id: string): string {
  return join(services.records.directoryOf(id), "outgoing");
}

/** What was copied out to be sent. */
export async function removeExport(services: Services, id: string): Promise<void> {
  await rm(outgoingDirectory(services, id), { recursive: true, force: true });
  await rm(join(services.records.directoryOf(id), "export"), { recursive: true, force: true });
}

/** Forgets a copy that was never activated; its owner still has the original. */
export async function forgetArrived(
  services: Services,
  files: MoveFiles,
  { record, progress }: { record: InstanceRecord; progress: Progress },
): Promise<void> {
  const driver = await services.hypervisors.driver(record.spec.kind);
  await driver.remove(await guestOf(services, record), progress);
  for (const { id } of record.spec.volumes) {
    if ((await services.volumes.read(id))?.place !== "here") await rm(services.volumes.dataPath(id), { recursive: true, force: true });
  }
  await services.records.remove(record.spec.id);
  await files.forget(record.spec.id);
}
