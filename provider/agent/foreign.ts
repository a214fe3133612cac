import { CloudletError } from "../core/errors.ts";
import type { ForeignGuest, ForeignGuests } from "../hypervisors/types.ts";
import { bringTo, guestOf, imagesOf } from "./instances.ts";
import type { JobContext } from "./jobs.ts";
import { isHere } from "./protocol.ts";
import type { Foreign, InstanceSpec, InstanceStatus, Kind, VerbArgs } from "./protocol.ts";
import { allocateNetwork, freshOwnership } from "./records.ts";
import type { InstanceRecord } from "./records.ts";
import type { Services } from "./services.ts";

const startMillis = 60_000;

/** A guest that was made without us, as the cloudlet that it would be; nothing is changed or written. undefined = there is none of that name. */
export async function foreignStatus(
  services: Services,
  { name, id, owner }: { name: string; id: string; owner: string },
  signal: AbortSignal,
): Promise<InstanceStatus | undefined> {
  const hypervisor = await services.hypervisors.current();
  const guests = hypervisor && (await services.hypervisors.driver(hypervisor.kind)).foreign;
  const found = await guests?.find(name, signal);
  if (hypervisor === undefined || found === undefined) return undefined;
  const { uuid, base, state, address } = found;
  return {
    spec: specOf(found, { id, owner, kind: hypervisor.kind }),
    ownership: { epoch: 0, role: "owner" },
    status: state,
    ready: state === "running",
    address,
    imageDigest: base,
    accelerator: (await services.hypervisors.describe()).accelerator,
    console: "",
    foreign: { name, uuid },
  };
}

/** Makes such a guest a cloudlet, in the state that it was in. Run again after a crash at any step, it continues; of one that is a cloudlet by now, nothing is done. */
export async function adoptInstance(services: Services, args: VerbArgs<"instance.adopt">, context: JobContext): Promise<void> {
  const { id, owner, foreign } = args;
  const known = await services.records.read(id);
  if (known !== undefined && known.spec.owner !== owner)
    throw new CloudletError("CONFLICT", `cloudlet ${id} belongs to ${known.spec.owner}, not to ${owner}`);
  const here = known !== undefined && isHere(known);
  if (here && known.foreign === undefined) return;
  const record = here ? known : await claim(services, { args, gone: known }, context);
  if (record === undefined) return;
  context.step("record");
  const guests = await guestsOf(services, record.spec.kind);
  const guest = await guestOf(services, record, await imagesOf(services, record));
  await services.network.prepare(await services.records.list());
  context.status(`taking over ${foreign.name} as ${id}`);
  const driver = await services.hypervisors.driver(record.spec.kind);
  await guests.take(guest, record.foreign ?? foreign, context).catch(async (error: unknown) => {
    // what ran goes on as it was
    if (record.spec.state === "running")
      await driver.start(guest, { ...context, signal: AbortSignal.timeout(startMillis) }).catch(() => undefined);
    throw error;
  });
  const taken = await services.records.update(id, ({ foreign: _, ...rest }) => ({ ...rest, complete: true }));
  context.step("taken");
  const publish = async (): Promise<void> => services.network.publish(await services.records.list());
  await bringTo({ record: taken ?? record, driver, guest }, { state: record.spec.state, restart: false, publish }, context);
}

/** Removes a guest that was imported and never taken over; one that has taken its name since is left alone. Returns whether it was there. */
export async function removeForeign(
  services: Services,
  { id, foreign }: { id: string; foreign: Foreign },
  context: JobContext,
): Promise<boolean> {
  const hypervisor = await services.hypervisors.current();
  const guests = hypervisor && (await services.hypervisors.driver(hypervisor.kind)).foreign;
  context.status(`removing ${foreign.name}`);
  return (await guests?.remove(foreign, id, context)) ?? false;
}

/**
 * Its image comes to the store first: without it the cloudlet could neither move nor be made anew. undefined = it was taken
 * over before, and has moved away since.
 */
async function claim(
  services: Services,
  { args, gone }: { args: VerbArgs<"instance.adopt">; gone: InstanceRecord | undefined },
  context: JobContext,
): Promise<InstanceRecord | undefined> {
  const { id, owner, foreign } = args;
  const kind = (await services.hypervisors.current())?.kind ?? "lxd";
  const guests = await guestsOf(services, kind);
  const found = await guests.find(foreign.name, context.signal);
  if (found?.uuid !== foreign.uuid && gone !== undefined) return undefined;
  if (found?.uuid !== foreign.uuid)
    throw new CloudletError("NOT_FOUND", `the ${foreign.name} that was imported as cloudlet ${id} is not here any more`, {
      fix: "run `pulumi refresh`, which drops it from the state",
    });
  context.status(`keeping the image of ${foreign.name}`);
  await services.store.put(found.base, () => guests.openBase(found.base, context.signal));
  return services.lock.run("hypervisor", async () => {
    const others = [...(await services.records.list()).filter(({ spec }) => spec.id !== id), ...(await services.builds.list())];
    const record: InstanceRecord = {
      spec: specOf(found, { id, owner, kind }),
      ownership: freshOwnership(gone),
      network: allocateNetwork(id, new Set(others.map(({ network }) => network.address))),
      complete: false,
      restartPending: false,
      builtFrom: found.base,
      called: foreign.name,
      foreign,
    };
    await services.records.write(record);
    return record;
  });
}

async function guestsOf(services: Services, kind: Kind): Promise<ForeignGuests> {
  const { foreign } = await services.hypervisors.driver(kind);
  if (foreign !== undefined) return foreign;
  throw new CloudletError("UNSUPPORTED", `this node's hypervisor takes over nothing that was made without it`);
}

function specOf(
  { state, base, resources, ports, environment }: ForeignGuest,
  { id, owner, kind }: { id: string; owner: string; kind: Kind },
): InstanceSpec {
  return {
    id,
    owner,
    kind,
    state,
    base: { digest: base },
    resources,
    ports,
    files: [],
    environment,
    volumes: [],
    stateFiles: [],
  };
}
