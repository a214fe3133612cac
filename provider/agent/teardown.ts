import { CloudletError } from "../core/errors.ts";
import type { JobContext } from "./jobs.ts";
import { isHere } from "./protocol.ts";
import type { Services } from "./services.ts";
import { endBuilds } from "./synthesis/buildGuest.ts";

/** Cloudlets and volumes that keep a node from being decommissioned. Retained data does not. */
export async function remaining(services: Services): Promise<string[]> {
  const cloudlets = (await services.records.list()).filter(isHere);
  const volumes = (await services.volumes.list()).filter((record) => record.place === "here");
  return [...cloudlets.map((record) => `cloudlet ${record.spec.id}`), ...volumes.map((record) => `volume ${record.spec.id}`)];
}

/** Removes what the agent put on the node outside its own directory. The agent must not be running. */
export async function teardown(services: Services, context: JobContext): Promise<void> {
  const ids = await remaining(services);
  if (ids.length > 0) throw new CloudletError("REFUSED", `this node still has ${ids.join(", ")}`, { fix: "remove or move them first" });
  await endBuilds(services, context);
  // ends the hydrators too
  await services.layers.collect(new Set());
  await services.hypervisors.uninstall(context);
  context.status("removing the guests' network");
  await services.network.teardown();
}
