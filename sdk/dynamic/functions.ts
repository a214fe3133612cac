import * as pulumi from "@pulumi/pulumi";
import type { Cloudlet } from "./resources.ts";
import { onCloudlet as onCloudletAsked, onNode, onNodes, type OnCloudlet, type OnNode, type UtilizationArgs } from "../functions.ts";
import type { GetCloudletResult, GetHypervisorResult, GetNodeResult, GetUtilizationResult } from "../results.ts";
import type { LastMove } from "../types.ts";
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

export interface HandoffReport extends Omit<LastMove, "bytesSupplied" | "bytesAhead" | "predicted" | "rounds"> {
  bytesSupplied?: number | undefined;
  bytesAhead?: number | undefined;
  predicted?: LastMove["predicted"] | undefined;
  rounds?: LastMove["rounds"] | undefined;
}

export interface Handoff {
  from: string;
  to: string;
  mode: LastMove["mode"];
  route: LastMove["route"];
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

/** What a commissioned gateway is at the moment. In a preview unknown, as with all that ask a node. */
export function getNode(node: OnNode): pulumi.Output<GetNodeResult> {
  return ask("cloudlet:index:getNode", onNode(node)) as pulumi.Output<GetNodeResult>;
}

/** The hypervisor of a node, and the cloudlets that the node owns, whoever declared them. */
export function getHypervisor(node: OnNode): pulumi.Output<GetHypervisorResult> {
  return ask("cloudlet:index:getHypervisor", onNode(node)) as pulumi.Output<GetHypervisorResult>;
}

/** A cloudlet as its node has it at the moment, whoever declared it. */
export function getCloudlet(cloudlet: OnCloudlet): pulumi.Output<GetCloudletResult> {
  return ask("cloudlet:index:getCloudlet", onCloudletAsked(cloudlet)) as pulumi.Output<GetCloudletResult>;
}

/** How much of each node is given away. All are asked at the same time; one that does not answer is part of the result. */
export function getUtilization(args: UtilizationArgs): pulumi.Output<GetUtilizationResult> {
  return ask("cloudlet:index:getUtilization", onNodes(args)) as pulumi.Output<GetUtilizationResult>;
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

function ask(token: string, args: pulumi.Inputs): pulumi.Output<unknown> {
  const answer = pulumi.output(args).apply((given) => {
    if (pulumi.runtime.isDryRun()) return unknown;
    return require("pulumi-cloudlet/hooks").ask(token, given as Record<string, unknown>);
  });
  return answer;
}

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
