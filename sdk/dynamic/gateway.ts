import * as pulumi from "@pulumi/pulumi";
import { defined, registration } from "./arguments.ts";
import { EdgeClusterProperties, HypervisorProperties, NodeProperties } from "./properties.ts";
import type { EdgeClusterInputs, HypervisorInputs, NodeInputs } from "./inputs.ts";
import type { ConnectionArgs } from "./args.ts";

export type EdgeClusterArgs = EdgeClusterInputs;
export type NodeArgs = NodeInputs;

/** Needed only where a node or hypervisor is given by name instead of as a resource. */
export interface Reach {
  /** How to reach the node. */
  connection?: pulumi.Input<ConnectionArgs> | undefined;
  /** Address that clients of the node's cloudlets use. */
  nodeAddress?: pulumi.Input<string> | undefined;
}

export interface HypervisorArgs extends Omit<HypervisorInputs, "node">, Reach {
  /** The Node that it runs on, or its name; a node runs exactly one hypervisor. */
  node: Node | pulumi.Input<string>;
}

/** The nodes that serve one application. Every cloudlet belongs to a cluster; a second application on a cluster is refused in preview. */
export class EdgeCluster extends EdgeClusterProperties {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:EdgeCluster";

  constructor(name: string, args: EdgeClusterArgs, options?: pulumi.CustomResourceOptions) {
    super(...registration("EdgeCluster", { name, given: args, options }));
  }
}

/** A bare-metal edge gateway. Create commissions it over SSH, delete leaves the host as it was. */
export class Node extends NodeProperties {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Node";

  constructor(name: string, args: NodeArgs, options?: pulumi.CustomResourceOptions) {
    super(...registration("Node", { name, given: args, options }));
  }
}

/** The one hypervisor of a node: QEMU (`kvm`) or LXD (`lxd`). */
export class Hypervisor extends HypervisorProperties {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Hypervisor";

  constructor(name: string, args: HypervisorArgs, options?: pulumi.CustomResourceOptions) {
    const given = { ...reachByNode(args.node), ...defined(args), node: args.node instanceof Node ? args.node.name : args.node };
    super(...registration("Hypervisor", { name, given, options }));
  }
}

/** An id in plain sight, so that a preview can show where something is; what may be secret travels in `connection`. */
export function hypervisorId(hypervisor: Hypervisor | pulumi.Input<string>): pulumi.Input<string> {
  return hypervisor instanceof Hypervisor ? pulumi.interpolate`${hypervisor.node}/${hypervisor.kind}` : hypervisor;
}

/** How to reach the node of what is named as a resource; nothing where it is named by its id. */
export function reachByHypervisor(hypervisor: Hypervisor | pulumi.Input<string>): Reach {
  return hypervisor instanceof Hypervisor ? { connection: hypervisor.connection, nodeAddress: hypervisor.nodeAddress } : {};
}

function reachByNode(node: Node | pulumi.Input<string>): Reach {
  if (!(node instanceof Node)) return {};
  // one secret makes the whole connection secret, and an address is none
  const host = pulumi.unsecret(node.connection.apply((connection) => connection.host));
  return { connection: node.connection, nodeAddress: pulumi.all([node.address, host]).apply(([address, fallback]) => address ?? fallback) };
}
