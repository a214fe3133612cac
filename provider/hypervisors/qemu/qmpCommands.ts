import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import type { Qmp } from "./qmp.ts";

const statusSchema = z.object({ status: z.string(), running: z.boolean() });
const migrationSchema = z.object({ status: z.string().optional(), "error-desc": z.string().optional() });
const balloonSchema = z.object({ actual: z.int() });
const nodesSchema = z.array(z.object({ "node-name": z.string() }));
const jobsSchema = z.array(z.object({ id: z.string(), status: z.string(), error: z.string().optional() }));

/** `running`, `paused`, `postmigrate`, `inmigrate`, `shutdown`, …: QEMU's own words. */
export async function queryStatus(qmp: Qmp): Promise<{ status: string; running: boolean }> {
  return statusSchema.parse(await qmp.execute("query-status"));
}

export async function pause(qmp: Qmp): Promise<void> {
  await qmp.execute("stop");
}

export async function resume(qmp: Qmp): Promise<void> {
  await qmp.execute("cont");
}

export async function powerdown(qmp: Qmp): Promise<void> {
  await qmp.execute("system_powerdown");
}

export async function quit(qmp: Qmp): Promise<void> {
  await qmp.execute("quit");
}

/** Sends RAM and device state to a unix socket at full speed. The guest must be paused. */
export async function migrateTo(qmp: Qmp, socketPath: string): Promise<void> {
  await qmp.execute("migrate-set-parameters", { "max-bandwidth": 10 * 1024 ** 3 });
  await qmp.execute("migrate", { uri: `unix:${socketPath}` });
}

/** Waits for the end of a migration, outgoing or incoming. */
export async function migrationEnded(qmp: Qmp, what: string, options: { signal: AbortSignal; timeoutMillis: number }): Promise<void> {
  const deadline = Date.now() + options.timeoutMillis;
  for (;;) {
    const { status, "error-desc": error } = migrationSchema.parse(await qmp.execute("query-migrate"));
    if (status === "completed") return;
    if (status === "failed" || status === "cancelled")
      throw new CloudletError("FAILED", `${what} ${status}${error === undefined ? "" : `: ${error}`}`);
    if (Date.now() > deadline) throw new CloudletError("TIMEOUT", `${what} did not end within ${String(options.timeoutMillis)} ms`);
    await delay(10, undefined, { signal: options.signal });
  }
}

export async function cancelMigration(qmp: Qmp): Promise<void> {
  await qmp.execute("migrate_cancel");
}

/** Whether streams leave out memory that lies in a shared file. It must be off again for streams that hold everything. */
export async function leaveOutShared(qmp: Qmp, on: boolean): Promise<void> {
  await qmp.execute("migrate-set-capabilities", { capabilities: [{ capability: "x-ignore-shared", state: on }] });
}

export async function loadFrom(qmp: Qmp, uri: string): Promise<void> {
  await qmp.execute("migrate-incoming", { uri });
}

/** How much memory the guest is to have at hand; the rest goes into the balloon. */
export async function setBalloon(qmp: Qmp, bytes: number): Promise<void> {
  await qmp.execute("balloon", { value: Math.round(bytes) });
}

export async function balloonBytes(qmp: Qmp): Promise<number> {
  return balloonSchema.parse(await qmp.execute("query-balloon")).actual;
}

export async function blockNodeNames(qmp: Qmp): Promise<string[]> {
  return nodesSchema.parse(await qmp.execute("query-named-block-nodes", { flat: true })).map((node) => node["node-name"]);
}

/** Saves or loads disk and RAM under a tag inside the disk's qcow2. */
export async function snapshotJob(
  qmp: Qmp,
  job: { command: "snapshot-save" | "snapshot-load"; tag: string; signal: AbortSignal; timeoutMillis: number },
): Promise<void> {
  const { command, tag, signal, timeoutMillis } = job;
  const id = `${command}-${String(Date.now())}`;
  await qmp.execute(command, { "job-id": id, tag, vmstate: "disk", devices: ["disk"] });
  const deadline = Date.now() + timeoutMillis;
  for (;;) {
    const found = jobsSchema.parse(await qmp.execute("query-jobs")).find((candidate) => candidate.id === id);
    if (found === undefined) throw new CloudletError("FAILED", `QEMU lost its job ${command}`);
    if (found.status === "concluded") {
      await qmp.execute("job-dismiss", { id });
      if (found.error !== undefined) throw new CloudletError("FAILED", `${command} failed: ${found.error}`);
      return;
    }
    if (Date.now() > deadline) throw new CloudletError("TIMEOUT", `${command} did not end within ${String(timeoutMillis)} ms`);
    await delay(20, undefined, { signal: signal });
  }
}
