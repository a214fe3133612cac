import * as pulumi from "@pulumi/pulumi";
import type { Cloudlet } from "./resources.ts";
import type { CloudletLastMove } from "../types.ts";
import type * as Hooks from "../../provider/doors/dynamic/hooks.ts";

declare const require: (module: "pulumi-cloudlet/hooks") => typeof Hooks;

export interface ExecResult {
  stdout: string;
  stderr: string;
  exitCode: number;
}

export interface ExecOptions {
  /** Program and arguments; no shell is involved. */
  command: string[];
  /** Environment of the command, besides the cloudlet's own. */
  environment?: Record<string, string> | undefined;
  /** Seconds after which the command is ended. Default 60. */
  timeoutSeconds?: number | undefined;
}

export interface HandoffReport extends Omit<CloudletLastMove, "predicted" | "rounds"> {
  predicted?: CloudletLastMove["predicted"] | undefined;
  rounds?: CloudletLastMove["rounds"] | undefined;
}

export interface Handoff {
  from: string;
  to: string;
  mode: CloudletLastMove["mode"];
  route: CloudletLastMove["route"];
  outcome: "underWay" | "moved" | "failed";
  /** Milliseconds since 1970, as all times here. */
  beganAt: number;
  endedAt?: number | undefined;
  /** What was sent, and how long the application was away; of one that has moved. */
  report?: HandoffReport | undefined;
  /** Why it failed. */
  message?: string | undefined;
  /** What happened, in order: rounds, decisions, and the moments that decide who may run it. */
  events: { type: string; at: number }[];
}

/** Runs a command in a cloudlet. A non-zero exit code is a result, not an error. In a preview nothing runs and the result is unknown. */
export function execInCloudlet(cloudlet: Cloudlet, options: ExecOptions): pulumi.Output<ExecResult> {
  return onCloudlet(cloudlet, ({ exec }, connection, id) =>
    exec(connection, id, {
      command: options.command,
      timeoutSeconds: options.timeoutSeconds ?? 60,
      ...(options.environment && { environment: options.environment }),
    }),
  );
}

/** The last lines of a cloudlet's console. */
export function getCloudletLogs(cloudlet: Cloudlet, options: { lines?: number | undefined } = {}): pulumi.Output<string> {
  return onCloudlet(cloudlet, ({ logs }, connection, id) => logs(connection, id, options.lines ?? 100));
}

/** How a cloudlet has moved from node to node, the newest handoff first; its nodes keep the last twenty. */
export function getHandoffs(cloudlet: Cloudlet): pulumi.Output<Handoff[]> {
  return onCloudlet(cloudlet, ({ handoffs }, connection, id) => handoffs(connection, id));
}

/** Takes a snapshot of a cloudlet under a name. */
export function snapshotCloudlet(cloudlet: Cloudlet, snapshot: string): pulumi.Output<void> {
  return onCloudlet(cloudlet, (functions, connection, id) => functions.snapshot(connection, id, snapshot));
}

/** Takes a cloudlet back to one of its snapshots. */
export function restoreCloudlet(cloudlet: Cloudlet, snapshot: string): pulumi.Output<void> {
  return onCloudlet(cloudlet, ({ restore }, connection, id) => restore(connection, id, snapshot));
}

/** Restarts a cloudlet and waits until it is ready. */
export function restartCloudlet(cloudlet: Cloudlet): pulumi.Output<void> {
  return onCloudlet(cloudlet, ({ restart }, connection, id) => restart(connection, id));
}

type Functions = ReturnType<typeof require>["functions"];
type Connection = Parameters<Functions["restart"]>[0];

// pulumi exports its marker of an unknown result without a type
const unknown: unknown = Reflect.get(pulumi, "unknown");

function onCloudlet<T>(
  cloudlet: Cloudlet,
  call: (functions: Functions, connection: Connection, id: string) => Promise<T>,
): pulumi.Output<T> {
  const result = pulumi.all([cloudlet.connection, cloudlet.id]).apply(([connection, id]) => {
    if (pulumi.runtime.isDryRun()) return unknown;
    return call(require("pulumi-cloudlet/hooks").functions, connection, id);
  });
  return result as pulumi.Output<T>;
}
