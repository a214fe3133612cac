import { describeError } from "../../core/errors.ts";
import type { Driver, Guest, Progress } from "../../hypervisors/types.ts";
import { guestOf } from "../instances.ts";
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
/** There once everything of the seed is. */
export const seeded = "/run/cloudlet.seeded";

/** Runs with a temporary guest, of which nothing is left afterwards. `basePath` is what its disk stands on. */
export async function withBuildGuest<T>(
  services: Services,
  { spec, basePath }: { spec: InstanceSpec; basePath: string },
  work: (built: BuildGuest) => Promise<T>,
): Promise<T> {
  const driver = await services.hypervisors.driver(spec.kind);
  const record = await services.lock.run("hypervisor", async () => {
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
  const built = {
    record,
    driver,
    guest: { ...(await guestOf(services, record, { basePath })), directory: services.builds.directoryOf(spec.id) },
  };
  try {
    await services.network.publish(await services.records.list());
    return await work(built);
  } finally {
    await endBuild(services, built);
  }
}

/** After a crash: the guests of builds that were under way, which are begun anew when they are asked for again. */
export async function endBuilds(services: Services, progress: Progress): Promise<void> {
  for (const record of await services.builds.list()) {
    try {
      const driver = await services.hypervisors.driver(record.spec.kind);
      await endBuild(services, {
        record,
        driver,
        guest: { ...(await guestOf(services, record)), directory: services.builds.directoryOf(record.spec.id) },
      });
    } catch (error) {
      progress.status(`${record.spec.id} of an earlier run cannot be removed: ${describeError(error)}`);
    }
  }
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
