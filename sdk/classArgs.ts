import type * as pulumi from "@pulumi/pulumi";
import type { BaseArgs, CloudletHandoffArgs, ConnectionArgs, SourceArgs } from "./args.ts";
import type {
  BaseImageInputs,
  CloudletInputs,
  EdgeClusterInputs,
  HypervisorInputs,
  NodeInputs,
  OverlayInputs,
  VolumeInputs,
} from "./inputs.ts";
import type {
  BaseImageProperties,
  EdgeClusterProperties,
  HypervisorProperties,
  NodeProperties,
  OverlayProperties,
  VolumeProperties,
} from "./properties.ts";

export type EdgeClusterArgs = EdgeClusterInputs;
export type NodeArgs = NodeInputs;

/** A Hypervisor, or its id. */
export type HypervisorReference = HypervisorProperties | pulumi.Input<string>;

/** Needed only where a node or hypervisor is given by name instead of as a resource. */
export interface Reach {
  /** How to reach the node. */
  connection?: pulumi.Input<ConnectionArgs> | undefined;
  /** Address that clients of the node's cloudlets use. */
  nodeAddress?: pulumi.Input<string> | undefined;
}

export interface HypervisorArgs extends Omit<HypervisorInputs, "node">, Reach {
  /** The Node that it runs on, or its name; a node runs exactly one hypervisor. */
  node: NodeProperties | pulumi.Input<string>;
}

export interface BaseImageArgs extends Omit<BaseImageInputs, "nodes" | "memory"> {
  /** Hypervisors whose nodes have the image before any cloudlet asks for it, or their ids; all of one kind. */
  nodes?: HypervisorReference[] | undefined;
  /** How to reach those of `nodes` that are given by id. */
  connections?: pulumi.Input<SourceArgs>[] | undefined;
  /** Boots the image once and keeps its memory at the moment it is ready, so that cloudlets and overlays resume from it (kvm only). */
  memory?: (Omit<MemoryArgs, "builder"> & { builder?: HypervisorReference | undefined }) | undefined;
}

type MemoryArgs = pulumi.Unwrap<NonNullable<BaseImageInputs["memory"]>>;

export interface OverlayArgs extends Omit<OverlayInputs, "base" | "builder">, Reach {
  /** The BaseImage that it is built over, or a file. */
  base?: BaseImageProperties | pulumi.Input<BaseArgs> | undefined;
  /** The Hypervisor that builds and keeps it, or its id. A change has the new one take it over. */
  builder: HypervisorReference;
}

export interface VolumeArgs extends Omit<VolumeInputs, "hypervisor">, Pick<Reach, "connection"> {
  /** The Hypervisor it is made on, or its id (`gw1/kvm`). An attached volume follows its cloudlet, so give both the same hypervisor. */
  hypervisor: HypervisorReference;
}

export interface CloudletArgs extends Omit<CloudletInputs, "cluster" | "hypervisor" | "volumes" | "base" | "overlay" | "handoff">, Reach {
  /** The EdgeCluster it belongs to, or its name. */
  cluster: EdgeClusterProperties | pulumi.Input<string>;
  /** The Hypervisor it runs on, or its id (`gw1/kvm`). A change moves the cloudlet with its state, in place. */
  hypervisor: HypervisorReference;
  /** The image it starts from: a BaseImage, or a file. A change rebuilds the root in place; state files and volumes are kept. */
  base: BaseImageProperties | pulumi.Input<BaseArgs>;
  /** The Overlay it is synthesised from, or its digest. A change rebuilds the root in place; state files and volumes are kept. */
  overlay?: OverlayProperties | pulumi.Input<{ digest: pulumi.Input<string> }> | undefined;
  /** How it moves. What a move of the running cloudlet may cost is for kvm; others are stopped to be moved. */
  handoff?: HandoffArgs | pulumi.Input<CloudletHandoffArgs> | undefined;
  /** How to reach those of `handoff.preseed` that are given by id. */
  preseedConnections?: pulumi.Input<SourceArgs>[] | undefined;
  /** Volumes attached to the cloudlet; they move with it. */
  volumes?: { volume: VolumeProperties | pulumi.Input<string>; path: pulumi.Input<string> }[] | undefined;
}

export interface HandoffArgs extends Omit<CloudletHandoffArgs, "preseed"> {
  /** Hypervisors where it may be next, or their ids: their nodes are given its base, build and overlay beforehand, at low priority. Its own may be among them. */
  preseed?: HypervisorReference[] | undefined;
}
