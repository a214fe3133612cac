import { CloudletError, describeError } from "../../core/errors.ts";
import type { Driver, Guest, Progress } from "../../hypervisors/types.ts";
import { guestOf } from "../instances.ts";
import type { JobContext } from "../jobs.ts";
import type { InstanceSpec, Login, Makings } from "../protocol.ts";
import { allocateNetwork } from "../records.ts";
import type { InstanceRecord } from "../records.ts";
import type { Services } from "../services.ts";

/** A guest that is there only while an overlay is built. */
export interface BuildGuest {
  record: InstanceRecord;
  driver: Driver;
  guest: Guest;
}

const cleanMillis = 120_000;
const lookMillis = 500;
/** There once everything of the seed is. */
export const seeded = "/run/cloudlet.seeded";

/** Runs with a temporary guest, of which nothing is left afterwards. `basePath` is what its disk stands on. */
export async function withBuildGuest<T>(
  services: Services,
  { spec, basePath }: { spec: InstanceSpec; basePath: string },
  work: (built: BuildGuest) => Promise<T>,
): Promise<T> {
  return services.lock.run(lockOf(spec), async () => {
    const stale = await services.builds.read(spec.id);
    // of an agent that was killed; it must not be taken for this one
    if (stale !== undefined) await endBuild(services, await openBuild(services, stale));
    const built = await openBuild(services, await claim(services, spec), basePath);
    try {
      await services.network.publish(await services.records.list());
      return await work(built);
    } finally {
      await endBuild(services, built);
    }
  });
}

/** After a crash: the guests of builds that were under way, which are begun anew when they are asked for again. */
export async function endBuilds(services: Services, progress: Progress): Promise<void> {
  for (const { spec } of await services.builds.list()) {
    // begun anew already, which has ended what was there
    if (services.lock.isHeld(lockOf(spec))) continue;
    try {
      await services.lock.run(lockOf(spec), async () => {
        const record = await services.builds.read(spec.id);
        if (record !== undefined) await endBuild(services, await openBuild(services, record));
      });
    } catch (error) {
      progress.status(`${spec.id} of an earlier run cannot be removed: ${describeError(error)}`);
    }
  }
}

/** Ends `work` as soon as the guest, or what else `missing` names, has ended: nothing would come of waiting for it. */
export async function whileItRuns<T>(
  { driver, guest }: BuildGuest,
  { context, missing = () => Promise.resolve(undefined) }: { context: JobContext; missing?: () => Promise<string | undefined> },
  work: (context: JobContext) => Promise<T>,
): Promise<T> {
  const ending = new AbortController();
  const follow = (): void => ending.abort(context.signal.reason);
  context.signal.addEventListener("abort", follow);
  if (context.signal.aborted) follow();
  const look = async (): Promise<void> => {
    const what = (await driver.observe(guest)) === "running" ? await missing() : "the guest";
    if (what !== undefined) ending.abort(new CloudletError("FAILED", `${what} that the overlay is built with has ended by itself`));
  };
  // whether it could be asked does not matter
  const looking = setInterval(() => void look().catch(() => undefined), lookMillis);
  try {
    return await work({ ...context, signal: ending.signal });
  } catch (error) {
    throw ending.signal.aborted && ending.signal.reason instanceof Error ? ending.signal.reason : error;
  } finally {
    clearInterval(looking);
    context.signal.removeEventListener("abort", follow);
  }
}

const lockOf = ({ id }: InstanceSpec): string => `guest:${id}`;

async function claim(services: Services, spec: InstanceSpec): Promise<InstanceRecord> {
  return services.lock.run("hypervisor", async () => {
    const others = [...(await services.records.list()), ...(await services.builds.list())];
    const made: InstanceRecord = {
      spec,
      ownership: { epoch: 1, role: "owner" },
      network: allocateNetwork(spec.id, new Set(others.map((other) => other.network.address))),
      complete: false,
      restartPending: false,
    };
    // known before anything of it is there, so that a crash leaves nothing that nobody looks for
    await services.builds.write(made);
    return made;
  });
}

async function openBuild(services: Services, record: InstanceRecord, basePath = ""): Promise<BuildGuest> {
  const driver = await services.hypervisors.driver(record.spec.kind);
  const guest = { ...(await guestOf(services, record, { basePath })), directory: services.builds.directoryOf(record.spec.id) };
  return { record, driver, guest };
}

async function endBuild(services: Services, { record, driver, guest }: BuildGuest): Promise<void> {
  await driver.remove(guest, { signal: AbortSignal.timeout(cleanMillis), status: () => undefined });
  await services.builds.remove(record.spec.id);
  await services.network.publish(await services.records.list());
}

export function specOf(id: string, makings: Makings, login?: Login): InstanceSpec {
  const { kind, base, resources, files, environment, userData, ready } = makings;
  // resumed from memory, it has read its seed long ago
  const cold = makings.parent === undefined;
  return {
    id,
    owner: "build",
    kind,
    state: "running",
    base: { digest: base },
    ...(makings.parent !== undefined && { overlay: { digest: makings.parent } }),
    resources,
    ports: [],
    // files are written in this order, so the last one says that all are there
    files: cold
      ? [...files, ...(login === undefined && makings.script === undefined ? [] : [{ path: seeded, content: "", mode: 0o644 }])]
      : [],
    environment: cold ? environment : {},
    ...(userData !== undefined && cold && { userData }),
    volumes: [],
    stateFiles: [],
    ready,
  };
}
