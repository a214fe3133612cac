import { chmodSync, existsSync, mkdirSync, rmSync } from "node:fs";
import type { Server } from "node:http";
import { once } from "node:events";
import path from "node:path";
import { describeError } from "../core/errors.ts";
import { probeAcceleration } from "./drivers.ts";
import { readFacts } from "./facts.ts";
import { Jobs } from "./jobs.ts";
import { createMoves } from "./moves/verbs.ts";
import { dataPort, protocolVersion } from "./protocol.ts";
import { recover } from "./recover.ts";
import { createAgentServer } from "./server.ts";
import type { Services } from "./services.ts";
import { forgetUnfinished } from "./synthesis/preseeds.ts";
import { collectLayers, referencedDigests } from "./synthesis/references.ts";
import { verbTable } from "./verbs.ts";

export interface ServeOptions {
  root: string;
  socket: string;
  digest: string;
  log(line: string): void;
  /** Called when a job's step is durable. */
  onStep?: (name: string) => void;
}

const collectMillis = 24 * 3600 * 1000;
const closeMillis = 8_000;

/** Runs the agent until `signal` is aborted. Guests go on without it. */
export async function serve(services: Services, { root, socket, digest, log, onStep }: ServeOptions, signal: AbortSignal): Promise<void> {
  const jobs = new Jobs({ directory: path.join(root, "jobs"), lock: services.lock, ...(onStep === undefined ? {} : { onStep }) });
  const moves = createMoves(services, { port: dataPort, onStep: (step) => onStep?.(`arrival.${step}`) });
  const startedAt = new Date().toISOString();
  const server = createAgentServer({
    services,
    jobs,
    verbs: { ...verbTable, ...moves.verbs },
    info: () => ({ protocol: protocolVersion, digest, startedAt, jobs: jobs.running() }),
    facts: () => readFacts({ root, probeAcceleration }),
  });
  await forgetUnfinished(services);
  await listen(server, socket);
  log(`agent ${digest.slice(0, 12)} listens on ${socket}`);
  const recovered = Promise.all([recover(services, { signal, status: log }), moves.resume(log)]).catch((error: unknown) => {
    log(describeError(error));
  });
  const collecting = setInterval(() => void collect(services, log), collectMillis);
  await new Promise<void>((resolve) => {
    signal.addEventListener("abort", () => {
      resolve();
    });
    if (signal.aborted) resolve();
  });
  clearInterval(collecting);
  moves.close();
  services.hydrations.close();
  server.close();
  await jobs.close(closeMillis);
  server.closeAllConnections();
  await Promise.race([recovered, new Promise((resolve) => setTimeout(resolve, 1_000).unref())]);
  rmSync(socket, { force: true });
  log("agent has ended; guests go on");
}

async function listen(server: Server, socket: string): Promise<void> {
  mkdirSync(path.dirname(socket), { recursive: true, mode: 0o755 });
  // the single-instance lock is ours, so nobody listens on a socket that is still there
  if (existsSync(socket)) rmSync(socket);
  const before = process.umask(0o177);
  server.listen(socket);
  process.umask(before);
  await once(server, "listening");
  chmodSync(socket, 0o600);
}

async function collect(services: Services, log: (line: string) => void): Promise<void> {
  try {
    await collectLayers(services);
    await services.formerCopies.expire(collectMillis);
    const removed = await services.store.collect(await referencedDigests(services), collectMillis);
    if (removed.length > 0) log(`removed ${String(removed.length)} unused images`);
  } catch (error) {
    log(describeError(error));
  }
}
