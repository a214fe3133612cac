import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { CloudletError, codeOf } from "../core/errors.ts";
import type { Driver } from "../hypervisors/types.ts";
import { exists, syncDirectory, syncFile } from "./durable.ts";
import { bringTo, guestOf, imagesOf, instanceStatus, requireOwner } from "./instances.ts";
import type { Opened } from "./instances.ts";
import { wasCancelled } from "./jobs.ts";
import type { JobContext } from "./jobs.ts";
import { dataPort, guestName, isHere } from "./protocol.ts";
import type { InstanceSpec, InstanceStatus, Offer, VerbArgs } from "./protocol.ts";
import { forgetArrived } from "./moves/copies.ts";
import { MoveFiles } from "./moves/files.ts";
import { endForwards } from "./moves/forwarding.ts";
import { allocateNetwork, freshOwnership } from "./records.ts";
import type { InstanceRecord } from "./records.ts";
import type { Services } from "./services.ts";
import { fetchImages, prepareSynthesis } from "./synthesis/prepare.ts";
import type { Prepared } from "./synthesis/prepare.ts";
import { collectLayers } from "./synthesis/references.ts";
import { removeForeign } from "./foreign.ts";
import { noteFirstReply, synthesise, undoSynthesis } from "./synthesis/synthesise.ts";

/** Makes a cloudlet what its spec says; run again after a crash at any step, it continues. */
export async function applyInstance(services: Services, args: VerbArgs<"instance.apply">, context: JobContext): Promise<InstanceStatus> {
  const { spec } = args;
  const before = await services.records.read(spec.id);
  // data first: a spec whose data is not here changes nothing
  const prepared = await prepare(services, { args, before }, context);
  await forgetIncoming(services, args, context);
  const { record: claimed, driver, wasPending } = await claim(services, args);
  context.step("record");
  await services.network.prepare(await services.records.list());
  context.step("network");
  const opened = { record: claimed, driver, guest: await guestOf(services, claimed, await imagesOf(services, claimed)) };
  try {
    await carryOut(services, { ...opened, wasPending, prepared, offers: args.offers ?? [] }, context);
  } catch (error) {
    // data that is damaged makes no cloudlet, however often it is tried; one that was given up is not left half made
    const inVain = codeOf(error) === "INTEGRITY" || wasCancelled(context.signal);
    if (inVain && prepared !== undefined && neverAnswered(before)) await undoSynthesis(services, opened, context.status);
    // what was begun comes to its end, asked for again or not
    else services.hydrations.watch(spec.id);
    throw error;
  }
  await services.records.update(spec.id, (record) => ({ ...record, complete: true, restartPending: false }));
  await collectLayers(services);
  context.step("complete");
  const status = await instanceStatus(services, spec.id);
  if (status === undefined) throw new CloudletError("BUG", `cloudlet ${spec.id} was applied and cannot be read back`);
  return status;
}

/** Those that an overlay's coming was begun with may have expired, or have led through an operator who is gone. */
export async function takeOffers(
  services: Services,
  { spec, offers = [] }: { spec: InstanceSpec; offers?: readonly Offer[] | undefined },
  context: JobContext,
): Promise<void> {
  const record = await services.records.read(spec.id);
  const same = record?.spec.owner === spec.owner && record.synthesis?.overlay === spec.overlay?.digest;
  if (record?.synthesis?.hydrating !== true || !same || offers.length === 0) return;
  await services.layers.arrive(record.synthesis.overlay, offers, context);
}

interface Work extends Opened {
  wasPending: boolean;
  /** Where the guest is to be made from an overlay. */
  prepared: Prepared | undefined;
  offers: readonly Offer[];
}

/** From the claim to the state that is declared. */
async function carryOut(services: Services, work: Work, context: JobContext): Promise<void> {
  const { id, state, resources } = work.record.spec;
  const inTurn = <T>(start: () => Promise<T>): Promise<T> => services.starts.run(resources, context, start);
  let record = await inTurn(() => makeGuest(services, work, context));
  context.step("created");
  const publish = async (): Promise<void> => services.network.publish(await services.records.list());
  // what was resumed runs by now
  if (record.synthesis !== undefined) await publish();
  if (record.synthesis?.hydrating === true) {
    await services.hydrations.follow(id, context);
    record = (await services.records.read(id)) ?? record;
    context.step("whole");
    // what was declared while it was coming could not show before, and nothing of it was carried out
    if (work.prepared === undefined) record = await inTurn(() => makeGuest(services, { ...work, record, wasPending: false }, context));
  }
  const restart = record.restartPending;
  if (record.synthesis !== undefined && state !== "stopped") {
    await inTurn(() => bringTo({ ...work, record }, { state: "running", restart }, context));
    await noteFirstReply(services, id);
    await bringTo({ ...work, record }, { state, restart: false }, context);
  } else await inTurn(() => bringTo({ ...work, record }, { state, restart, publish }, context));
}

/** undefined where nothing is to be made from an overlay: there is none, or the guest stands on it already. */
async function prepare(
  services: Services,
  { args, before }: { args: VerbArgs<"instance.apply">; before: InstanceRecord | undefined },
  context: JobContext,
): Promise<Prepared | undefined> {
  const { spec, offers = [] } = args;
  if (spec.overlay === undefined) {
    await fetchImages(services, { spec, offers }, context);
    // said here, before anything is written down
    await imagesOf(services, { spec });
    return undefined;
  }
  const way = before === undefined || !isHere(before) ? "anew" : await wayFrom(services, before, spec);
  if (way === "as it is") return undefined;
  const importsState = way === "rebuild" && spec.stateFiles.length > 0;
  return prepareSynthesis(services, spec.overlay.digest, { wanted: { spec, offers, importsState }, context });
}

/** Whether a guest stays, is made for the first time, or is made again from other data. */
async function wayFrom(services: Services, record: InstanceRecord, spec: InstanceSpec): Promise<"as it is" | "anew" | "rebuild"> {
  if (record.rebuilding === true) return "rebuild";
  const driver = await services.hypervisors.driver(record.spec.kind);
  const state = await driver.observe(await guestOf(services, record));
  if (state === undefined) return "anew";
  const { builtFrom, builtOver, synthesis } = record;
  const same = builtFrom === undefined || (builtFrom === spec.base.digest && builtOver === spec.overlay?.digest);
  if (!same) return neverAnswered(record) ? "anew" : "rebuild";
  if (synthesis === undefined || synthesis.hydrating || !neverAnswered(record)) return "as it is";
  // cut off while it was made, or before anybody heard from it: its memory is still in the overlay
  return synthesis.wholeMillis === undefined || (synthesis.rung !== "boot" && state === "stopped") ? "anew" : "as it is";
}

/** Nobody has heard from it, so nothing that it may have written counts. */
function neverAnswered(record: InstanceRecord | undefined): boolean {
  if (record === undefined) return true;
  return record.synthesis !== undefined && record.synthesis.firstReplyMillis === undefined && !record.complete;
}

export async function removeInstance(
  services: Services,
  { id, owner, foreign }: VerbArgs<"instance.remove">,
  context: JobContext,
): Promise<void> {
  const record = await services.records.read(id);
  if (foreign !== undefined && (record === undefined || !isHere(record)) && (await removeForeign(services, { id, foreign }, context)))
    return;
  if (record !== undefined) {
    if (record.spec.owner !== owner) throw new CloudletError("CONFLICT", `cloudlet ${id} belongs to ${record.spec.owner}, not to ${owner}`);
    checkRemoval(record);
    const driver = await services.hypervisors.driver(record.spec.kind);
    const guest = await guestOf(services, record);
    context.status(`stopping ${id}`);
    await services.hydrations.end(id);
    if ((await driver.observe(guest)) !== undefined) await driver.stop(guest, context);
    context.step("stopped");
    await driver.remove(guest, context);
    if (record.foreign !== undefined) await removeForeign(services, { id, foreign: record.foreign }, context);
    context.step("removed");
    await rm(asidePath(services, id), { force: true });
  }
  await services.records.remove(id);
  await new MoveFiles(services.root).forget(id);
  await services.handoffs.forget(id);
  await services.formerCopies.remove(id);
  context.step("forgotten");
  await collectLayers(services);
  if (record !== undefined) await services.network.publish(await services.records.list());
}

/** What runs on another node by now would go on there, unseen, if it were forgotten here. */
function checkRemoval({ spec, ownership, leaving }: InstanceRecord): void {
  if (ownership.role !== "released") return;
  const peer = ownership.peer ?? "another node";
  throw leaving === true
    ? new CloudletError("REFUSED", `cloudlet ${spec.id} is on its way to ${peer}`, {
        fix: "run `pulumi up` to finish the move, then remove it",
      })
    : new CloudletError("REFUSED", `cloudlet ${spec.id} has moved to ${peer}`, {
        fix: `run \`pulumi up\` with its hypervisor set to the one on ${peer}, then remove it`,
      });
}

/** Whoever knows of no cloudlet has given up the one that was on its way here; only its copy is forgotten. */
async function forgetIncoming(services: Services, { spec, fresh }: VerbArgs<"instance.apply">, context: JobContext): Promise<void> {
  const record = await services.records.read(spec.id);
  if (!fresh || record?.ownership.role !== "incoming" || record.spec.owner !== spec.owner) return;
  const files = new MoveFiles(services.root);
  await services.lock.run(`arrival:${spec.id}`, () => forgetArrived(services, files, { record, progress: context }));
}

/** Checks that the spec may be applied here and writes it down, as one step that nothing else on this node can get between. */
async function claim(
  services: Services,
  { spec, fresh }: VerbArgs<"instance.apply">,
): Promise<{ record: InstanceRecord; driver: Driver; wasPending: boolean }> {
  return services.lock.run("hypervisor", async () => {
    const known = await services.records.read(spec.id);
    // a note that one of this id moved away says nothing about a new one
    const gone = fresh && known !== undefined && !isHere(known) ? known : undefined;
    const existing = gone === undefined ? known : undefined;
    if (existing !== undefined) checkExisting(existing, spec);
    checkPattern(spec);
    const driver = await services.hypervisors.driver(spec.kind);
    if (existing !== undefined) await checkBase(services, { existing, spec, driver });
    const others = (await services.records.list()).filter((record) => record.spec.id !== spec.id);
    await checkPorts(services, { spec, others, existing });
    await services.volumes.attach(spec);
    await endForwards(services, spec);
    const wasPending = existing?.restartPending ?? false;
    const changed = existing !== undefined && JSON.stringify(existing.spec) !== JSON.stringify(spec);
    const record: InstanceRecord = {
      ownership: freshOwnership(gone),
      network: allocateNetwork(spec.id, new Set([...others, ...(await services.builds.list())].map((other) => other.network.address))),
      ...existing,
      spec,
      complete: false,
      // until the driver has said whether the change shows without a restart
      restartPending: changed || wasPending,
    };
    await services.records.write(record);
    return { record, driver, wasPending };
  });
}

function checkExisting(existing: InstanceRecord, spec: InstanceSpec): void {
  if (existing.spec.owner !== spec.owner)
    throw new CloudletError("CONFLICT", `cloudlet ${spec.id} belongs to ${existing.spec.owner}, not to ${spec.owner}`);
  requireOwner(existing);
  if (existing.spec.kind !== spec.kind)
    throw new CloudletError(
      "REFUSED",
      `cloudlet ${spec.id} is of kind ${existing.spec.kind} here and cannot become ${spec.kind} in place`,
      { fix: "move it to a hypervisor of the other kind" },
    );
}

/** A changed base replaces the disk: only where what matters is declared to be elsewhere, or nothing was made yet. */
async function checkBase(
  services: Services,
  { existing, spec, driver }: { existing: InstanceRecord; spec: InstanceSpec; driver: Driver },
): Promise<void> {
  const { builtFrom, builtOver } = existing;
  if (builtFrom === undefined || (builtFrom === spec.base.digest && builtOver === spec.overlay?.digest)) return;
  if (neverAnswered(existing)) return;
  if (spec.stateFiles.length > 0 || spec.volumes.length > 0 || existing.rebuilding === true) return;
  if ((await driver.observe(await guestOf(services, existing))) === undefined) return;
  throw new CloudletError(
    "REFUSED",
    `the ${builtFrom === spec.base.digest ? "overlay" : "base"} of cloudlet ${spec.id} changes, and what it wrote to its disk would be lost: it has neither stateFiles nor volumes`,
    { fix: "declare stateFiles or a volume, or replace the cloudlet" },
  );
}

function checkPattern({ id, ready }: InstanceSpec): void {
  try {
    new RegExp(ready?.log ?? "");
  } catch (cause) {
    throw new CloudletError("INVALID", `ready.log of cloudlet ${id} is not a regular expression: ${String(ready?.log)}`, { cause });
  }
}

export async function checkPorts(
  services: Services,
  { spec, others, existing }: { spec: InstanceSpec; others: InstanceRecord[]; existing: InstanceRecord | undefined },
): Promise<void> {
  for (const { hostPort, protocol } of spec.ports) {
    const same = (port: { hostPort: number; protocol: string }): boolean => port.hostPort === hostPort && port.protocol === protocol;
    const holder = others.find((other) => other.ownership.role !== "released" && other.spec.ports.some(same));
    if (holder !== undefined)
      throw new CloudletError(
        "CONFLICT",
        `${protocol} host port ${String(hostPort)} of cloudlet ${spec.id} is taken by cloudlet ${holder.spec.id}`,
        { fix: "choose another hostPort" },
      );
    if (existing?.spec.ports.some(same) === true) continue;
    if ((protocol === "tcp" && hostPort === dataPort) || (await services.usedPorts(protocol)).has(hostPort)) {
      throw new CloudletError("CONFLICT", `${protocol} host port ${String(hostPort)} of cloudlet ${spec.id} is used by the node itself`, {
        fix: "choose another hostPort",
      });
    }
  }
}

async function makeGuest(services: Services, work: Work, context: JobContext): Promise<InstanceRecord> {
  const { record, driver, guest, wasPending, prepared } = work;
  const { id, base, overlay } = record.spec;
  const present = (await driver.observe(guest)) !== undefined;
  const other = present && record.builtFrom !== undefined && (record.builtFrom !== base.digest || record.builtOver !== overlay?.digest);
  if ((other && !neverAnswered(record)) || record.rebuilding === true) return rebuild(services, work, context);
  if (prepared !== undefined) return synthesise(services, work, { prepared, context });
  const making: InstanceRecord = { ...record, builtFrom: base.digest };
  // known before the guest is there: a crash must not leave one of unknown origin
  if (!present) await services.records.write(making);
  // a guest that only begins to read what it stands on is let be
  if (record.synthesis?.hydrating === true) {
    await takeOffers(services, { spec: record.spec, offers: work.offers }, context);
    return { ...record, restartPending: false };
  }
  context.status(`${present ? "updating" : "making"} ${id}`);
  const { restartNeeded } = await driver.ensure(guest, context);
  const made: InstanceRecord = { ...making, restartPending: present && (restartNeeded || wasPending) };
  await services.records.write(made);
  return made;
}

/** Makes the guest anew from another base or overlay; what stateFiles name is kept aside meanwhile. */
async function rebuild(services: Services, work: Work, context: JobContext): Promise<InstanceRecord> {
  const { record, driver, guest, prepared } = work;
  const { id, base } = record.spec;
  const aside = asidePath(services, id);
  if (record.rebuilding !== true) {
    if (record.synthesis?.hydrating === true) await services.hydrations.follow(id, context);
    await saveAside(work, aside, context);
    await driver.stop(guest, context);
    await services.records.write({ ...record, rebuilding: true });
    context.step("saved");
  }
  context.status(`making ${id} from its new ${prepared === undefined ? "base" : "overlay"}`);
  await driver.remove(guest, context);
  context.step("removed");
  const rebuilding: InstanceRecord = { ...record, rebuilding: true };
  const { rebuilding: _, ...rest } =
    prepared === undefined ? rebuilding : await synthesise(services, { ...work, record: rebuilding }, { prepared, context });
  if (prepared === undefined) await driver.ensure({ ...guest, ...(await imagesOf(services, record)) }, context);
  if (await exists(aside)) await driver.importState(guest, createReadStream(aside), context);
  const { builtOver: _over, synthesis: _synthesis, provision: _provision, ...plain } = rest;
  const made: InstanceRecord = { ...(prepared === undefined ? plain : rest), builtFrom: base.digest, restartPending: false };
  await services.records.write(made);
  await rm(aside, { force: true });
  context.step("rebuilt");
  return made;
}

async function saveAside({ record, driver, guest }: Opened, aside: string, context: JobContext): Promise<void> {
  const { id, stateFiles } = record.spec;
  // what an earlier rebuild may have left is not this one's state
  if (stateFiles.length === 0) return rm(aside, { force: true });
  context.status(`saving the state of ${id}`);
  await mkdir(path.dirname(aside), { recursive: true, mode: 0o700 });
  await pipeline(await driver.exportState(guest, context), createWriteStream(`${aside}.tmp`, { mode: 0o600 }), { signal: context.signal });
  await syncFile(`${aside}.tmp`);
  await rename(`${aside}.tmp`, aside);
  await syncDirectory(path.dirname(aside));
}

function asidePath(services: Services, id: string): string {
  return path.join(services.root, "rebuild", `${guestName(id)}.tar`);
}
