import * as pulumi from "@pulumi/pulumi";
import { onCloudlet, onNode, onNodes, type LogOptions, type OnCloudlet, type OnNode, type UtilizationArgs } from "../functions.ts";
import type {
  ExecInCloudletResult,
  GetCloudletLogsResult,
  GetCloudletResult,
  GetHypervisorResult,
  GetNodeResult,
  GetUtilizationResult,
} from "../results.ts";

export interface ExecOptions {
  /** Program and arguments; no shell is involved. */
  command: pulumi.Input<pulumi.Input<string>[]>;
  /** Environment of the command, besides the cloudlet's own. */
  environment?: pulumi.Input<Record<string, pulumi.Input<string>>> | undefined;
  /** Seconds after which the command is ended. Default 60. */
  timeoutSeconds?: pulumi.Input<number> | undefined;
}

/** What a commissioned gateway is at the moment. */
export function getNode(node: OnNode, options?: pulumi.InvokeOutputOptions): pulumi.Output<GetNodeResult> {
  return pulumi.runtime.invokeOutput("cloudlet:index:getNode", onNode(node), options);
}

/** The hypervisor of a node, and the cloudlets that the node owns, whoever declared them. */
export function getHypervisor(node: OnNode, options?: pulumi.InvokeOutputOptions): pulumi.Output<GetHypervisorResult> {
  return pulumi.runtime.invokeOutput("cloudlet:index:getHypervisor", onNode(node), options);
}

/** A cloudlet as its node has it at the moment, whoever declared it. */
export function getCloudlet(cloudlet: OnCloudlet, options?: pulumi.InvokeOutputOptions): pulumi.Output<GetCloudletResult> {
  return pulumi.runtime.invokeOutput("cloudlet:index:getCloudlet", onCloudlet(cloudlet), options);
}

/** The last lines of a cloudlet's console. */
export function getCloudletLogs(
  cloudlet: OnCloudlet,
  { lines }: LogOptions = {},
  options?: pulumi.InvokeOutputOptions,
): pulumi.Output<string> {
  const asked = { ...onCloudlet(cloudlet), lines };
  const answer: pulumi.Output<GetCloudletLogsResult> = pulumi.runtime.invokeOutput("cloudlet:index:getCloudletLogs", asked, options);
  return answer.apply(({ text }) => text);
}

/** Runs a command in a cloudlet. A non-zero exit code is a result, not an error. In a preview nothing runs, and every field is empty. */
export function execInCloudlet(
  cloudlet: OnCloudlet,
  { command, environment, timeoutSeconds }: ExecOptions,
  options?: pulumi.InvokeOutputOptions,
): pulumi.Output<ExecInCloudletResult> {
  const asked = { ...onCloudlet(cloudlet), command, environment, timeoutSeconds };
  return pulumi.runtime.invokeOutput("cloudlet:index:execInCloudlet", asked, options);
}

/** How much of each node is given away. All are asked at the same time; one that does not answer is part of the result. */
export function getUtilization(args: UtilizationArgs, options?: pulumi.InvokeOutputOptions): pulumi.Output<GetUtilizationResult> {
  return pulumi.runtime.invokeOutput("cloudlet:index:getUtilization", onNodes(args), options);
}
