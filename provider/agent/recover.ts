import { describeError } from "../core/errors.ts";
import { guestOf, imagesOf } from "./instances.ts";
import type { Progress } from "../hypervisors/types.ts";
import type { InstanceRecord } from "./records.ts";
import type { Services } from "./services.ts";

/** After the agent or the node has started: makes the network again and starts what should run and does not. One that fails leaves the others alone. */
export async function recover(services: Services, progress: Progress): Promise<void> {
  const records = await services.records.list();
  if (records.length > 0 || (await services.hypervisors.current()) !== undefined) {
    await services.network.publish(records).catch((error: unknown) => {
      progress.status(`the guests' network cannot be made: ${describeError(error)}`);
    });
  }
  for (const { spec } of records.filter(shouldRun)) {
    await services.lock
      .run(`instance:${spec.id}`, () => startAgain(services, spec.id, progress))
      .catch((error: unknown) => {
        progress.status(`${spec.id} cannot be started: ${describeError(error)}`);
      });
  }
}

async function startAgain(services: Services, id: string, progress: Progress): Promise<void> {
  // read again: an operation may have changed it while this one waited for its turn
  const record = await services.records.read(id);
  if (record === undefined || !shouldRun(record)) return;
  const driver = await services.hypervisors.driver(record.spec.kind);
  const guest = await guestOf(services, record);
  if ((await driver.observe(guest)) !== "stopped") return;
  progress.status(`starting ${id}`);
  await driver.start({ ...guest, ...(await imagesOf(services, record)) }, progress);
}

/** Never one that was given away or has not arrived, nor one whose state is still aside. */
function shouldRun({ spec, ownership, rebuilding }: InstanceRecord): boolean {
  return ownership.role === "owner" && spec.state === "running" && rebuilding !== true;
}
