import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { CloudletError } from "../core/errors.ts";
import type { RemoteHost } from "../transport/types.ts";
import {
  agentFile,
  factsScript,
  infoCommand,
  initFile,
  initScript,
  parseFacts,
  parseInfo,
  serviceCommand,
  systemdUnit,
  unitFile,
} from "./installText.ts";
import type { NodeFacts } from "./installText.ts";
import { paths, protocolVersion } from "./protocol.ts";
import type { AgentInfo } from "./protocol.ts";

/** What the operator's side may say and hear meanwhile. */
export interface Watch {
  signal: AbortSignal;
  status(text: string): void;
}

const jobsMillis = 120_000;
const answerSeconds = 30;

/** The agent's bundle: beside the built package, or in `dist` of a checkout. */
export function findBundle(from: string): string {
  for (let directory = from; ; directory = dirname(directory)) {
    for (const file of [join(directory, "agent.js"), join(directory, "dist", "agent.js")]) if (existsSync(file)) return file;
    if (directory === dirname(directory)) break;
  }
  throw new CloudletError("BUG", `the package lacks the agent's program, agent.js (looked for upwards from ${from})`, {
    fix: "install the package again; in a checkout run `make build`",
  });
}

export async function gatherFacts(host: RemoteHost, watch: Watch): Promise<NodeFacts> {
  return parseFacts(await host.run(factsScript(), { signal: watch.signal, timeoutMillis: 60_000 }));
}

/** Puts this version of the agent on the node and has it run; nothing is touched where that is so already. */
export async function bringUpAgent(
  host: RemoteHost,
  { bundle, facts }: { bundle: string; facts: NodeFacts },
  watch: Watch,
): Promise<AgentInfo> {
  const { node, systemd, info } = facts;
  if (node === undefined) throw new CloudletError("PARTIAL", `${host.label} has no Node runtime for the agent`);
  if (info !== undefined && info.protocol > protocolVersion) {
    throw new CloudletError(
      "UNSUPPORTED",
      `the agent on ${host.label} speaks protocol ${String(info.protocol)}, this provider ${String(protocolVersion)}`,
      { fix: "use a newer version of this provider" },
    );
  }
  const digest = digestOfFile(bundle);
  if (info !== undefined && info.digest === digest && facts.agentDigest === digest) return info;
  if (info !== undefined) await waitForJobs(host, node.path, watch);
  if (facts.agentDigest !== digest) {
    watch.status(`putting the agent on ${host.label}`);
    await host.upload({ path: bundle }, { path: agentFile, mode: 0o755, digest }, { signal: watch.signal, timeoutMillis: 300_000 });
  }
  await putService(host, facts, watch);
  watch.status(`starting the agent on ${host.label}`);
  await host.run(serviceCommand("restart", systemd), { signal: watch.signal, timeoutMillis: 60_000 });
  return waitForAnswer(host, { node: node.path, digest }, watch);
}

export function digestOfFile(file: string): string {
  return createHash("sha256").update(readFileSync(file)).digest("hex");
}

async function putService(host: RemoteHost, { node, systemd }: NodeFacts, watch: Watch): Promise<void> {
  const program = node?.path ?? "node";
  const [path, content, mode] = systemd
    ? ([unitFile, systemdUnit(program), 0o644] as const)
    : ([initFile, initScript(program), 0o755] as const);
  await host.upload({ content: Buffer.from(content) }, { path, mode }, { signal: watch.signal });
  const enable = systemd ? "systemctl daemon-reload && systemctl enable --quiet cloudlet-agent" : "update-rc.d cloudlet-agent defaults";
  await host.run(enable, { signal: watch.signal, timeoutMillis: 60_000 });
}

async function waitForJobs(host: RemoteHost, node: string, watch: Watch): Promise<void> {
  const end = Date.now() + jobsMillis;
  for (;;) {
    const jobs = parseInfo((await host.run(infoCommand(node), { signal: watch.signal })).trim())?.jobs ?? [];
    if (jobs.length === 0) return;
    if (Date.now() > end)
      throw new CloudletError("BUSY", `the agent on ${host.label} cannot be brought up to date while these jobs run: ${jobs.join(", ")}`);
    watch.status(`waiting for ${String(jobs.length)} running jobs on ${host.label} before the agent is brought up to date`);
    await sleep(1_000, undefined, { signal: watch.signal });
  }
}

async function waitForAnswer(host: RemoteHost, { node, digest }: { node: string; digest: string }, watch: Watch): Promise<AgentInfo> {
  const script = `i=0; while [ $i -lt ${String(answerSeconds * 5)} ]; do answer=$(${infoCommand(node)}); case "$answer" in *${digest}*) echo "$answer"; exit 0;; esac; sleep 0.2; i=$((i+1)); done; tail -n 5 ${paths.log} >&2; exit 1`;
  const { stdout, stderr, exitCode } = await host.exec(script, { signal: watch.signal, timeoutMillis: (answerSeconds + 90) * 1000 });
  const info = exitCode === 0 ? parseInfo(stdout.trim()) : undefined;
  if (info === undefined)
    throw new CloudletError(
      "TIMEOUT",
      `the agent on ${host.label} does not answer after it was started; its log ends with:\n${stderr.trim()}`,
    );
  return info;
}
