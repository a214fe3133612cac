import { CloudletError } from "../core/errors.ts";
import type { Driver, Guest, GuestState } from "../hypervisors/types.ts";
import { layerFiles } from "../synthesis/layerFiles.ts";
import type { JobContext } from "./jobs.ts";
import type { ExecRequest, InstanceExecResult, InstanceStatus } from "./protocol.ts";
import { guestName } from "./protocol.ts";
import { notReady, waitReady } from "./ready.ts";
import type { ReadyTarget } from "./ready.ts";
import { subnet } from "./records.ts";
import type { InstanceRecord } from "./records.ts";
import type { Services } from "./services.ts";

const consoleLines = 20;

/** One cloudlet of this node with what is needed to work on it. */
export interface Opened {
  record: InstanceRecord;
  driver: Driver;
  guest: Guest;
}

/** The cloudlet as its driver sees it. The base may be missing where the guest is only observed or ended. */
export async function guestOf(
  services: Services,
  record: InstanceRecord,
  images: { basePath: string; buildPath?: string | undefined } = { basePath: "" },
): Promise<Guest> {
  const { spec } = record;
  return {
    name: record.called ?? guestName(spec.id),
    spec,
    basePath: images.basePath,
    buildPath: images.buildPath,
    directory: services.records.directoryOf(spec.id),
    network: {
      bridge: subnet.bridge,
      mac: record.network.mac,
      address: record.network.address,
      prefix: subnet.prefix,
      gateway: subnet.gateway,
    },
    volumes: spec.volumes.map((volume) => ({ ...volume, hostPath: services.volumes.dataPath(volume.id) })),
  };
}

/** What a cloudlet's own disk stands on, its base or its overlay's disk over it, and its build; verified. */
export async function imagesOf(
  services: Services,
  { spec }: Pick<InstanceRecord, "spec">,
): Promise<{ basePath: string; buildPath: string | undefined }> {
  const base = await services.layers.base(spec.base.digest);
  const layered = spec.overlay !== undefined && spec.kind === "kvm";
  return {
    basePath: layered ? layerFiles(services.layers.directoryOf(spec.overlay?.digest ?? "")).disk : base,
    buildPath: spec.build === undefined ? undefined : await services.store.path(spec.build.digest),
  };
}

/** Opens a cloudlet that must be there and that this node must own. */
export async function openOwned(services: Services, id: string): Promise<Opened> {
  const record = await services.records.read(id);
  if (record === undefined) throw new CloudletError("NOT_FOUND", `cloudlet ${id} is not on this node`);
  requireOwner(record);
  const guest = await guestOf(services, record, await imagesOf(services, record));
  return { record, driver: await services.hypervisors.driver(record.spec.kind), guest };
}

/** Only the owner may run a cloudlet. */
export function requireOwner({ spec, ownership }: InstanceRecord): void {
  if (ownership.role === "owner") return;
  const peer = ownership.peer ?? "another node";
  throw ownership.role === "released"
    ? new CloudletError("REFUSED", `cloudlet ${spec.id} has been given to ${peer} and never runs here again by itself`, {
        fix: "name the hypervisor where it is now, or move it back from there",
      })
    : new CloudletError("REFUSED", `cloudlet ${spec.id} is on its way here from ${peer} and may not run yet`, {
        fix: "run `pulumi up` again to finish the move",
      });
}

/** undefined = this node has no record of it. */
export async function instanceStatus(services: Services, id: string): Promise<InstanceStatus | undefined> {
  const record = await services.records.read(id);
  if (record === undefined) return undefined;
  const driver = await driverIfAny(services, record);
  const guest = await guestOf(services, record);
  const state = driver === undefined ? undefined : await driver.observe(guest);
  const { accelerator } = driver === undefined ? { accelerator: "none" as const } : await services.hypervisors.describe();
  const console = driver === undefined || state === undefined ? "" : await driver.log(guest, consoleLines).catch(() => "");
  const ready = state === "running" && driver !== undefined && (await isReady({ record, driver, guest }));
  return {
    spec: record.spec,
    ownership: record.ownership,
    status: state ?? "missing",
    ready,
    address: record.network.address,
    imageDigest: record.builtFrom ?? record.spec.base.digest,
    accelerator,
    console,
    ...(record.foreign && { foreign: record.foreign }),
    ...(record.leaving === true && { leaving: true }),
    ...(record.lastMove === undefined ? {} : { lastMove: record.lastMove }),
    ...(record.provision === undefined ? {} : { provision: record.provision }),
    ...(await hydrationOf(services, record)),
  };
}

/** Of one whose overlay is still coming. */
async function hydrationOf(services: Services, { synthesis }: InstanceRecord): Promise<Pick<InstanceStatus, "hydration">> {
  if (synthesis?.hydrating !== true) return {};
  const found = await services.layers.hydration(synthesis.overlay);
  if (found === undefined) return { hydration: { present: 0, total: 0, state: "waiting", reason: "nothing brings it at the moment" } };
  const { present, total, state, reason } = found;
  return { hydration: { present, total, state: state === "coming" || state === "complete" ? "coming" : "waiting", reason } };
}

export async function instanceStatuses(services: Services): Promise<InstanceStatus[]> {
  const found: InstanceStatus[] = [];
  for (const record of await services.records.list()) {
    const status = await instanceStatus(services, record.spec.id);
    if (status !== undefined) found.push(status);
  }
  return found;
}

export async function instanceLog(services: Services, id: string, lines: number): Promise<string> {
  const record = await services.records.read(id);
  if (record === undefined) throw new CloudletError("NOT_FOUND", `cloudlet ${id} is not on this node`);
  return (await services.hypervisors.driver(record.spec.kind)).log(await guestOf(services, record), lines);
}

export async function instanceExec(
  services: Services,
  id: string,
  { request, signal }: { request: ExecRequest; signal: AbortSignal },
): Promise<InstanceExecResult> {
  const record = await services.records.read(id);
  if (record === undefined) throw new CloudletError("NOT_FOUND", `cloudlet ${id} is not on this node`);
  requireOwner(record);
  const driver = await services.hypervisors.driver(record.spec.kind);
  const guest = await guestOf(services, record);
  const state = await driver.observe(guest);
  if (state !== "running")
    throw new CloudletError("REFUSED", `cloudlet ${id} is ${state ?? "missing"}; commands run in a running one only`, {
      fix: "set its state to running first",
    });
  return driver.exec(guest, request.command, {
    environment: request.environment,
    timeoutMillis: (request.timeoutSeconds ?? 60) * 1000,
    signal,
  });
}

interface WantedState {
  state: GuestState;
  restart: boolean;
  /** Called once the guest runs, or is not to run: before that, its ports would lead nowhere and whoever connects would wait for long. */
  publish?: () => Promise<void>;
}

/** Brings an existing guest to running, stopped or suspended, and waits for its readiness where it runs. */
export async function bringTo({ record, driver, guest }: Opened, want: WantedState, context: JobContext): Promise<void> {
  const { id } = record.spec;
  let state = await driver.observe(guest);
  if (state !== undefined && state !== "stopped" && (want.state === "stopped" || want.restart)) {
    context.status(`stopping ${id}`);
    await driver.stop(guest, context);
    context.step("stopped");
    state = "stopped";
  }
  if (want.state === "stopped" || (want.state === "suspended" && state === "suspended")) return want.publish?.();
  if (state !== "running") {
    // what has not arrived would read as zeros
    if (record.synthesis?.hydrating === true)
      throw new CloudletError("BUSY", `the overlay of cloudlet ${id} is still coming, so it cannot be started from its disk yet`);
    context.status(`${state === "suspended" ? "resuming" : "starting"} ${id}`);
    await driver.start(guest, context);
    context.step("started");
  }
  await want.publish?.();
  if (record.spec.ready !== undefined) {
    context.status(`waiting for ${id} to answer`);
    await waitReady(readyTarget({ record, driver, guest }, record.spec.ready), context.signal);
  }
  context.step("ready");
  if (want.state === "suspended") {
    context.status(`suspending ${id}`);
    await driver.suspend(guest, context);
    context.step("suspended");
  }
}

export async function isReady(opened: Opened): Promise<boolean> {
  const { ready } = opened.record.spec;
  if (ready === undefined) return true;
  return (await notReady(readyTarget(opened, ready), AbortSignal.timeout(10_000)).catch(() => "no answer")) === undefined;
}

function readyTarget({ record, driver, guest }: Opened, ready: ReadyTarget["ready"]): ReadyTarget {
  return { id: record.spec.id, address: record.network.address, ready, log: (lines) => driver.log(guest, lines) };
}

async function driverIfAny(services: Services, record: InstanceRecord): Promise<Driver | undefined> {
  const spec = await services.hypervisors.current();
  return spec?.kind === record.spec.kind ? services.hypervisors.driver(spec.kind) : undefined;
}
