import type * as pulumi from "@pulumi/pulumi";
import type { ConnectionArgs } from "./args.ts";
import type { CloudletProperties, HypervisorProperties, NodeProperties } from "./properties.ts";

/** The node itself, what is on it, or how to reach it. */
export type OnNode = NodeProperties | HypervisorProperties | { connection: pulumi.Input<ConnectionArgs> };

/** The cloudlet itself, or its id and how to reach its node. */
export type OnCloudlet = CloudletProperties | { id: pulumi.Input<string>; connection: pulumi.Input<ConnectionArgs> };

export interface UtilizationArgs {
  /** The nodes that are asked, under the names that the result has. */
  nodes: Record<string, OnNode>;
  /** Seconds after which a node counts as one that does not answer. Default 15. */
  timeoutSeconds?: pulumi.Input<number> | undefined;
}

export interface LogOptions {
  /** How many lines. Default 100. */
  lines?: pulumi.Input<number> | undefined;
}

// What each function is asked with, the same behind both doors.

export function onNode({ connection }: OnNode): pulumi.Inputs {
  return { connection };
}

export function onCloudlet({ id, connection }: OnCloudlet): pulumi.Inputs {
  return { id, connection };
}

export function onNodes({ nodes, timeoutSeconds }: UtilizationArgs): pulumi.Inputs {
  return { nodes: Object.entries(nodes).map(([name, node]) => ({ name, ...onNode(node) })), timeoutSeconds };
}
