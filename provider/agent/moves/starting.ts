import { CloudletError } from "../../core/errors.ts";
import { bringTo, guestOf, imagesOf } from "../instances.ts";
import { toJobError, type JobContext } from "../jobs.ts";
import type { Services } from "../services.ts";
import type { ArrivalFile, MoveFiles } from "./files.ts";

const lookMillis = 250;

interface Starting {
  services: Services;
  files: MoveFiles;
  note(change: Pick<ArrivalFile, "phase" | "error">): Promise<void>;
  onStep(step: "up" | "ready"): void;
  context: JobContext;
}

/** Brings to life what has arrived, in the background: the source watches the arrival, and its operator through it. */
export function startArrived(id: string, starting: Starting): void {
  const gaveWay = new AbortController();
  starting.services.lock
    .run(`instance:${id}`, () => bringUp(id, starting, gaveWay))
    .catch(async (error: unknown) => {
      // after whoever came between, which may have changed what is waited for, or removed it
      if (gaveWay.signal.aborted) startArrived(id, starting);
      else await starting.note({ phase: "failed", error: toJobError(error) }).catch(() => undefined);
    });
}

async function bringUp(id: string, { services, files, note, onStep, context }: Starting, gaveWay: AbortController): Promise<void> {
  const record = await services.records.read(id);
  if (record?.ownership.role !== "owner" || (await files.arrival(id))?.phase === "ready") return;
  await note({ phase: "starting" });
  const guest = await guestOf(services, record, await imagesOf(services, record));
  const opened = { record, driver: await services.hypervisors.driver(record.spec.kind), guest };
  const live = (await files.arrival(id))?.mode === "live" ? opened.driver.live : undefined;
  // one that has arrived whole has all that it needs to run
  await Promise.all([services.network.prepare(await services.records.list()), live?.release(guest, context)]);
  let looking: NodeJS.Timeout | undefined;
  const publish = async (): Promise<void> => {
    await services.network.publish(await services.records.list());
    // from here on it only waits for the application, and who wants to correct what it waits for should not
    looking = setInterval(() => {
      if (services.lock.isAwaited(`instance:${id}`)) gaveWay.abort(new CloudletError("ABORTED", "another operation on it began"));
    }, lookMillis);
  };
  const signal = AbortSignal.any([context.signal, gaveWay.signal]);
  await bringTo(opened, { state: record.spec.state, restart: false, publish }, { ...context, signal }).finally(() =>
    clearInterval(looking),
  );
  onStep("up");
  await note({ phase: "ready" });
  onStep("ready");
  // nobody waits for that
  void live?.catchUp(guest).catch(() => undefined);
}
