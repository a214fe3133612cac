import { setTimeout as sleep } from "node:timers/promises";
import { describeError } from "../core/errors.ts";
import { endBuilds } from "./synthesis/buildGuest.ts";
import { collectLayers } from "./synthesis/references.ts";
import { guestOf, imagesOf } from "./instances.ts";
import type { Progress } from "../hypervisors/types.ts";
import type { InstanceRecord } from "./records.ts";
import type { Services } from "./services.ts";

/** After the agent or the node has started: makes the network again and starts what should run and does not. One that fails leaves the others alone. */
export async function recover(services: Services, progress: Progress): Promise<void> {
  await endBuilds(services, progress);
  // what a build that was cut off tried is nobody's
  await collectLayers(services).catch((error: unknown) => progress.status(describeError(error)));
  const records = await services.records.list();
  if (records.length > 0 || (await services.hypervisors.current()) !== undefined) {
    await services.network.publish(records).catch((error: unknown) => {
      progress.status(`the guests' network cannot be made: ${describeError(error)}`);
    });
  }
  for (const { spec } of records.filter(({ synthesis, ownership }) => synthesis?.hydrating === true && ownership.role === "owner"))
    void services.lock.run(`instance:${spec.id}`, async () => services.hydrations.watch(spec.id));
  let waiting = records.filter(shouldRun).map(({ spec }) => spec.id);
  for (const pause of pauses) {
    waiting = await startEach(services, waiting, progress);
    if (waiting.length === 0) return;
    await sleep(pause, undefined, { signal: progress.signal });
  }
}

// after a boot the hypervisor's own daemon may need longer than the agent to be up
const pauses = [1_000, 2_000, 4_000, 8_000, 15_000, 30_000, 60_000, 120_000, 0];

/** Returns those that must be tried again. */
async function startEach(services: Services, ids: readonly string[], progress: Progress): Promise<string[]> {
  const failed: string[] = [];
  for (const id of ids) {
    await services.lock
      .run(`instance:${id}`, () => startAgain(services, id, progress))
      .catch((error: unknown) => {
        failed.push(id);
        progress.status(`${id} cannot be started: ${describeError(error)}`);
      });
  }
  return failed;
}

async function startAgain(services: Services, id: string, progress: Progress): Promise<void> {
  // read again: an operation may have changed it while this one waited for its turn
  const record = await services.records.read(id);
  if (record === undefined || !shouldRun(record)) return;
  if (record.synthesis?.hydrating === true) return services.hydrations.watch(id);
  const driver = await services.hypervisors.driver(record.spec.kind);
  const guest = await guestOf(services, record);
  if (await services.formerCopies.wasMaking(id)) {
    await driver.live?.stay(guest);
    await services.formerCopies.forgetMade(id);
  }
  if ((await driver.observe(guest)) !== "stopped") return;
  progress.status(`starting ${id}`);
  await driver.start({ ...guest, ...(await imagesOf(services, record)) }, progress);
}

/** Never one that was given away or has not arrived, nor one whose state is still aside. */
function shouldRun({ spec, ownership, rebuilding }: InstanceRecord): boolean {
  return ownership.role === "owner" && spec.state === "running" && rebuilding !== true;
}
