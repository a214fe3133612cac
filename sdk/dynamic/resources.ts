import * as pulumi from "@pulumi/pulumi";
import { optionsOf, propertiesOf } from "./arguments.ts";
import { providers } from "./providers.ts";
import { CloudletProperties, EdgeClusterProperties, HypervisorProperties, NodeProperties, traits, VolumeProperties } from "./properties.ts";
import type { CloudletInputs, EdgeClusterInputs, HypervisorInputs, NodeInputs, VolumeInputs } from "./inputs.ts";
import type { ConnectionArgs } from "./types.ts";

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

export interface VolumeArgs extends Omit<VolumeInputs, "hypervisor">, Pick<Reach, "connection"> {
  /** The Hypervisor it is made on, or its id (`gw1/kvm`). An attached volume follows its cloudlet, so give both the same hypervisor. */
  hypervisor: Hypervisor | pulumi.Input<string>;
}

export interface CloudletArgs extends Omit<CloudletInputs, "cluster" | "hypervisor" | "volumes">, Reach {
  /** The EdgeCluster it belongs to, or its name. */
  cluster: EdgeCluster | pulumi.Input<string>;
  /** The Hypervisor it runs on, or its id (`gw1/kvm`). A change moves the cloudlet with its state, in place. */
  hypervisor: Hypervisor | pulumi.Input<string>;
  /** Volumes attached to the cloudlet; they move with it. */
  volumes?: { volume: Volume | pulumi.Input<string>; path: pulumi.Input<string> }[] | undefined;
}

/** The nodes that serve one application. Every cloudlet belongs to a cluster; a second application on a cluster is refused in preview. */
export class EdgeCluster extends EdgeClusterProperties {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:EdgeCluster";

  constructor(name: string, args: EdgeClusterArgs, options?: pulumi.CustomResourceOptions) {
    super(
      providers.EdgeCluster,
      name,
      propertiesOf(traits.EdgeCluster, name, args),
      optionsOf(traits.EdgeCluster, options),
      "cloudlet",
      "EdgeCluster",
    );
  }
}

/** A bare-metal edge gateway. Create commissions it over SSH, delete leaves the host as it was. */
export class Node extends NodeProperties {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Node";

  constructor(name: string, args: NodeArgs, options?: pulumi.CustomResourceOptions) {
    super(providers.Node, name, propertiesOf(traits.Node, name, args), optionsOf(traits.Node, options), "cloudlet", "Node");
  }
}

/** The one hypervisor of a node: QEMU (`kvm`) or LXD (`lxd`). */
export class Hypervisor extends HypervisorProperties {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Hypervisor";

  constructor(name: string, args: HypervisorArgs, options?: pulumi.CustomResourceOptions) {
    const given = { ...reachByNode(args.node), ...defined(args), node: args.node instanceof Node ? args.node.name : args.node };
    super(
      providers.Hypervisor,
      name,
      propertiesOf(traits.Hypervisor, name, given),
      optionsOf(traits.Hypervisor, options),
      "cloudlet",
      "Hypervisor",
    );
  }
}

/** A small VM or system container that serves one application. Changing `hypervisor` moves it with its state, in place. */
export class Cloudlet extends CloudletProperties {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Cloudlet";

  constructor(name: string, args: CloudletArgs, options?: pulumi.CustomResourceOptions) {
    const { cluster, hypervisor, volumes } = args;
    const given = {
      ...reachByHypervisor(hypervisor),
      ...(hypervisor instanceof Hypervisor && { capacity: hypervisor.capacity }),
      ...(cluster instanceof EdgeCluster && { application: cluster.application }),
      ...defined(args),
      cluster: cluster instanceof EdgeCluster ? cluster.name : cluster,
      hypervisor: hypervisorId(hypervisor),
      volumes: volumes?.map(({ volume, path }) => ({ volume: volume instanceof Volume ? volume.name : volume, path })),
    };
    super(
      providers.Cloudlet,
      name,
      propertiesOf(traits.Cloudlet, name, given),
      optionsOf(traits.Cloudlet, options),
      "cloudlet",
      "Cloudlet",
    );
  }
}

/** State that outlives a cloudlet: made on a node, attached to one cloudlet at a time, and moved along with it. */
export class Volume extends VolumeProperties {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Volume";

  constructor(name: string, args: VolumeArgs, options?: pulumi.CustomResourceOptions) {
    const { hypervisor } = args;
    const given = {
      ...(hypervisor instanceof Hypervisor && { connection: hypervisor.connection }),
      ...defined(args),
      hypervisor: hypervisorId(hypervisor),
    };
    super(providers.Volume, name, propertiesOf(traits.Volume, name, given), optionsOf(traits.Volume, options), "cloudlet", "Volume");
  }
}

// an id in plain sight, so that a preview can show where a cloudlet moves; what may be secret travels in `connection`
function hypervisorId(hypervisor: Hypervisor | pulumi.Input<string>): pulumi.Input<string> {
  return hypervisor instanceof Hypervisor ? pulumi.interpolate`${hypervisor.node}/${hypervisor.kind}` : hypervisor;
}

function reachByHypervisor(hypervisor: Hypervisor | pulumi.Input<string>): object {
  return hypervisor instanceof Hypervisor ? { connection: hypervisor.connection, nodeAddress: hypervisor.nodeAddress } : {};
}

function reachByNode(node: Node | pulumi.Input<string>): object {
  if (!(node instanceof Node)) return {};
  // one secret makes the whole connection secret, and an address is none
  const host = pulumi.unsecret(node.connection.apply((connection) => connection.host));
  return { connection: node.connection, nodeAddress: pulumi.all([node.address, host]).apply(([address, fallback]) => address ?? fallback) };
}

// an argument that is undefined must not hide what comes from the resource that is named
function defined(args: object): object {
  return Object.fromEntries(Object.entries(args).filter(([, value]) => value !== undefined));
}
