import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import net from "node:net";
import { describeError } from "../core/errors.ts";
import { runHydrator } from "../synthesis/hydrate/hydrator.ts";
import { createDriver } from "./drivers.ts";
import type { JobContext } from "./jobs.ts";
import { listeningPorts } from "./networkText.ts";
import { run } from "./process.ts";
import { paths } from "./protocol.ts";
import { serve } from "./serve.ts";
import { createServices } from "./services.ts";
import type { Services } from "./services.ts";
import { takeSingleInstance } from "./singleInstance.ts";
import { Hydrations } from "./synthesis/hydrations.ts";
import { works } from "./synthesis/realWorks.ts";
import { remaining, teardown } from "./teardown.ts";

const help = `cloudlet agent: runs on an edge gateway and looks after its cloudlets

usage: agent [serve]         listen on ${paths.socket}
       agent hydrate CONFIG  bring an overlay here, and serve it to guests meanwhile
       agent bridge SOCKET   connect standard input and output to a unix socket
       agent remaining       print the cloudlets and volumes on this node, one per line
       agent teardown        remove bridge, rules and hypervisor set-up; the agent must not be running
       agent --version       print the digest of this program
       agent --help

environment:
  CLOUDLET_ROOT      directory of the agent's data (default ${paths.root})
  CLOUDLET_SOCKET    unix socket (default ${paths.socket})

fault injection for tests:
  CLOUDLET_CRASH_AT  the agent kills itself as soon as a step of this name is durable
  CLOUDLET_PAUSE_AT  everything in the agent stands still for a moment when a step of this name is durable
`;

const root = process.env.CLOUDLET_ROOT ?? paths.root;
const socket = process.env.CLOUDLET_SOCKET ?? paths.socket;
const { CLOUDLET_CRASH_AT: crashAt, CLOUDLET_PAUSE_AT: pauseAt } = process.env;
const pauseMillis = 1_500;

async function main([command = "serve", ...rest]: string[]): Promise<void> {
  if (command === "serve") return serveUntilSignal();
  if (command === "bridge" && rest[0] !== undefined) return bridge(rest[0]);
  if (command === "hydrate" && rest[0] !== undefined) return runHydrator(rest[0]);
  if (command === "remaining") return void process.stdout.write((await remaining(await services())).map((id) => `${id}\n`).join(""));
  if (command === "teardown") return tearDown();
  if (command === "--version") return void process.stdout.write(`${digest()}\n`);
  process.stdout.write(help);
  if (command !== "--help") process.exitCode = 2;
}

async function serveUntilSignal(): Promise<void> {
  const release = takeSingleInstance(root);
  try {
    const ending = new AbortController();
    for (const name of ["SIGTERM", "SIGINT"] as const) {
      process.on(name, () => {
        ending.abort();
      });
    }
    const onStep = (name: string): void => {
      if (name === crashAt) process.kill(process.pid, "SIGKILL");
      if (name === pauseAt) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, pauseMillis);
    };
    await serve(await services(), { root, socket, digest: digest(), log, onStep }, ending.signal);
  } finally {
    release();
  }
}

async function tearDown(): Promise<void> {
  const release = takeSingleInstance(root);
  try {
    const context: JobContext = { signal: AbortSignal.timeout(300_000), status: log, step: log };
    await teardown(await services(), context);
  } finally {
    release();
  }
}

function services(): Promise<Services> {
  return createServices({
    root,
    run,
    works,
    createDriver: (spec) => createDriver(spec, { root, log }),
    createHydrations: (all) => new Hydrations(all),
    usedPorts,
  });
}

async function usedPorts(protocol: "tcp" | "udp"): Promise<ReadonlySet<number>> {
  const texts = await Promise.all([protocol, `${protocol}6`].map((name) => readFile(`/proc/net/${name}`, "utf8").catch(() => "")));
  return listeningPorts(texts.join("\n"), protocol);
}

function bridge(target: string): void {
  const stream = net.connect(target);
  stream.once("error", (error) => {
    process.stderr.write(`${target}: ${error.message}\n`);
    process.exitCode = 1;
  });
  process.stdin.pipe(stream).pipe(process.stdout);
}

function digest(): string {
  return createHash("sha256")
    .update(readFileSync(process.argv[1] ?? ""))
    .digest("hex");
}

function log(line: string): void {
  process.stderr.write(`${new Date().toISOString()} ${line}\n`);
}

main(process.argv.slice(2)).then(
  () => {
    // an operation of a driver that is still under way must not keep an ended agent alive
    if (process.argv[2] !== "bridge") process.exit();
  },
  (error: unknown) => {
    log(describeError(error));
    process.exit(1);
  },
);
