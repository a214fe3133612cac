import { mkdir } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { forgetProcess, kill, livePid, processOutput, spawnDetached, waitGone } from "../../agent/detached.ts";
import { readJson, writeDurably } from "../../agent/durable.ts";
import { CloudletError } from "../../core/errors.ts";
import { type HydratorConfig, hydratorConfigSchema, type HydratorStatus, hydratorStatusSchema } from "./config.ts";

const name = "hydrate";
const startMillis = 30_000;
const answerMillis = 2_000;
const endMillis = 10_000;

/**
 * Starts the hydrator whose files are in this directory, and returns once it serves reads. One that runs goes on, with
 * these offers. `program` is this very program, to which a subcommand is added.
 */
export async function startHydrator(
  directory: string,
  config: HydratorConfig,
  program: readonly string[] = [process.execPath, process.argv[1] ?? ""],
): Promise<void> {
  await mkdir(directory, { recursive: true });
  await writeDurably(configFile(directory), JSON.stringify(hydratorConfigSchema.parse(config)), 0o600);
  const deadline = Date.now() + startMillis;
  let started: { exited: () => number | undefined } | undefined;
  while (!(await answers(config.socket))) {
    if (started?.exited() !== undefined || Date.now() > deadline) throw await notStarted(directory);
    if (started === undefined && (await livePid(directory, name)) === undefined)
      started = await spawnDetached(directory, [...program, name, configFile(directory)], { name });
    await delay(20);
  }
  const running = started === undefined ? await livePid(directory, name) : undefined;
  if (running !== undefined) process.kill(running, "SIGHUP");
}

/** How far it is, and whether its process is there; undefined = it was never started here. */
export async function hydratorStatus(directory: string): Promise<(HydratorStatus & { running: boolean }) | undefined> {
  const config = await readJson(configFile(directory), hydratorConfigSchema);
  const status = config && (await readJson(config.statusFile, hydratorStatusSchema));
  return status && { ...status, running: (await livePid(directory, name)) !== undefined };
}

/** Ends it; what has arrived stays. One that has ended is fine. */
export async function stopHydrator(directory: string): Promise<void> {
  const pid = await livePid(directory, name);
  if (pid !== undefined) {
    process.kill(pid, "SIGTERM");
    if (!(await waitGone(directory, endMillis, name))) await kill(directory, `the layer in ${directory}`, name);
  }
  await forgetProcess(directory, name);
}

async function notStarted(directory: string): Promise<CloudletError> {
  const words = (await processOutput(directory, name)) || "its process does not answer";
  return new CloudletError("FAILED", `the layer in ${directory} cannot be served while it arrives: ${words}`);
}

function configFile(directory: string): string {
  return join(directory, `${name}.json`);
}

/** Whether somebody greets there: a connection alone may be one to a process that is just ending. */
function answers(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(socketPath);
    const settle = (greeted: boolean) => (): void => {
      socket.destroy();
      resolve(greeted);
    };
    socket.setTimeout(answerMillis, settle(false));
    socket.once("data", settle(true));
    for (const event of ["error", "close"]) socket.once(event, settle(false));
  });
}
