import { setTimeout as sleep } from "node:timers/promises";
import { CloudletError, describeError } from "../../core/errors.ts";
import type { Driver, Guest, Progress } from "../../hypervisors/types.ts";
import { guestOf } from "../instances.ts";
import type { JobContext } from "../jobs.ts";
import type { InstanceSpec, Makings } from "../protocol.ts";
import { waitReady } from "../ready.ts";
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
const agentMillis = 180_000;
const scriptMillis = 3600_000;
const pauseMillis = 500;
const seeded = "/run/cloudlet.seeded";

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

export function specOf(id: string, makings: Makings): InstanceSpec {
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
    files: cold ? [...files, ...(makings.script === undefined ? [] : [{ path: seeded, content: "", mode: 0o644 }])] : [],
    environment: cold ? environment : {},
    ...(userData !== undefined && cold && { userData }),
    volumes: [],
    stateFiles: [],
    ready,
  };
}

/** Brings what the seed could not, runs the script, and waits until the application is ready. */
export async function furnish(built: BuildGuest, makings: Makings, context: JobContext): Promise<void> {
  const { record, driver, guest } = built;
  const warm = makings.parent !== undefined;
  if (makings.script !== undefined || (warm && makings.files.length > 0)) {
    await listens(built, warm || guest.spec.kind === "lxd" ? ["true"] : ["test", "-e", seeded], context);
    for (const file of warm ? makings.files : []) await writeFile(built, file, context);
    if (makings.script !== undefined) await runScript(built, makings, context);
  }
  context.step("furnished");
  context.status(`waiting for the application to answer`);
  const log = (lines: number): Promise<string> => driver.log(guest, lines);
  await waitReady({ id: record.spec.id, address: record.network.address, ready: makings.ready, log }, context.signal);
  context.step("ready");
}

async function listens({ driver, guest }: BuildGuest, command: string[], { signal }: JobContext): Promise<void> {
  const end = Date.now() + agentMillis;
  for (let reason = "no answer"; ;) {
    try {
      const { exitCode } = await driver.exec(guest, command, { timeoutMillis: 10_000, signal });
      if (exitCode === 0) return;
      reason = "its files are not there yet";
    } catch (error) {
      signal.throwIfAborted();
      reason = error instanceof Error ? error.message : String(error);
    }
    if (Date.now() > end)
      throw new CloudletError("TIMEOUT", `commands cannot be run in the guest that the overlay is built in: ${reason}`, {
        fix: "use a base with QEMU's guest agent, or bring everything as files and leave the script out",
      });
    await sleep(pauseMillis, undefined, { signal });
  }
}

// well below what one command may carry
const pieceBytes = 48 * 1024;

async function writeFile({ driver, guest }: BuildGuest, file: Makings["files"][number], { signal }: JobContext): Promise<void> {
  const content = Buffer.from(file.content, "base64");
  const run = (script: string, environment: Record<string, string>): Promise<void> =>
    driver
      .exec(guest, ["sh", "-c", script], { environment: { FILE: file.path, ...environment }, timeoutMillis: 60_000, signal })
      .then(({ exitCode, stderr }) => {
        if (exitCode !== 0) throw new CloudletError("FAILED", `${file.path} cannot be written in the guest: ${stderr.trim().slice(-500)}`);
      });
  await run('mkdir -p "$(dirname "$FILE")" && : >"$FILE" && chmod "$MODE" "$FILE"', { MODE: file.mode.toString(8) });
  for (let at = 0; at < content.length; at += pieceBytes)
    await run('printf %s "$DATA" | base64 -d >>"$FILE"', { DATA: content.subarray(at, at + pieceBytes).toString("base64") });
}

async function runScript(
  { driver, guest }: BuildGuest,
  { script = "", environment }: Makings,
  { signal, status }: JobContext,
): Promise<void> {
  status("running the overlay's script");
  const { exitCode, stdout, stderr } = await driver.exec(guest, ["sh", "-c", script], { environment, timeoutMillis: scriptMillis, signal });
  if (exitCode === 0) return;
  const words = `${stdout}\n${stderr}`.trim().split("\n").slice(-20).join("\n");
  throw new CloudletError("FAILED", `the overlay's script ended with exit code ${String(exitCode)}; its output ends with:\n${words}`, {
    fix: "correct the script, then run `pulumi up` again",
  });
}
