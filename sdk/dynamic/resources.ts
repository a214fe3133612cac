import * as pulumi from "@pulumi/pulumi";
import { optionsOf, propertiesOf, type TypeName } from "../arguments.ts";
import type { BaseImageArgs, CloudletArgs, EdgeClusterArgs, HypervisorArgs, NodeArgs, OverlayArgs, VolumeArgs } from "../classArgs.ts";
import { baseImageGiven, cloudletGiven, hypervisorGiven, overlayGiven, volumeGiven } from "../given.ts";
import type {
  BaseImageProperties,
  CloudletProperties,
  EdgeClusterProperties,
  HypervisorProperties,
  NodeProperties,
  OverlayProperties,
  VolumeProperties,
} from "../properties.ts";
import { providers } from "./providers.ts";

export interface EdgeCluster extends EdgeClusterProperties {}
/** The nodes that serve one application. Every cloudlet belongs to a cluster; a second application on a cluster is refused in preview. */
export class EdgeCluster extends pulumi.dynamic.Resource {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:EdgeCluster";

  constructor(name: string, args: EdgeClusterArgs, options?: pulumi.CustomResourceOptions) {
    super(...registration("EdgeCluster", { name, given: args, options }));
  }
}

export interface Node extends NodeProperties {}
/** A bare-metal edge gateway. Create commissions it over SSH, delete leaves the host as it was. */
export class Node extends pulumi.dynamic.Resource {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Node";

  constructor(name: string, args: NodeArgs, options?: pulumi.CustomResourceOptions) {
    super(...registration("Node", { name, given: args, options }));
  }
}

export interface Hypervisor extends HypervisorProperties {}
/** The one hypervisor of a node: QEMU (`kvm`) or LXD (`lxd`). */
export class Hypervisor extends pulumi.dynamic.Resource {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Hypervisor";

  constructor(name: string, args: HypervisorArgs, options?: pulumi.CustomResourceOptions) {
    super(...registration("Hypervisor", { name, given: hypervisorGiven(args), options }));
  }
}

export interface Cloudlet extends CloudletProperties {}
/** A small VM or system container that serves one application. Changing `hypervisor` moves it with its state, in place. */
export class Cloudlet extends pulumi.dynamic.Resource {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Cloudlet";

  constructor(name: string, args: CloudletArgs, options?: pulumi.CustomResourceOptions) {
    super(...registration("Cloudlet", { name, given: cloudletGiven(args), options }));
  }
}

export interface BaseImage extends BaseImageProperties {}
/** A bootable base, known by its digest and placed on nodes before it is needed. */
export class BaseImage extends pulumi.dynamic.Resource {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:BaseImage";

  constructor(name: string, args: BaseImageArgs, options?: pulumi.CustomResourceOptions) {
    super(...registration("BaseImage", { name, given: baseImageGiven(args), options }));
  }
}

export interface Overlay extends OverlayProperties {}
/** The delta of an application over a base, built once on a node, from which any number of cloudlets start. */
export class Overlay extends pulumi.dynamic.Resource {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Overlay";

  constructor(name: string, args: OverlayArgs, options?: pulumi.CustomResourceOptions) {
    super(...registration("Overlay", { name, given: overlayGiven(args), options }));
  }
}

export interface Volume extends VolumeProperties {}
/** State that outlives a cloudlet: made on a node, attached to one cloudlet at a time, and moved along with it. */
export class Volume extends pulumi.dynamic.Resource {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Volume";

  constructor(name: string, args: VolumeArgs, options?: pulumi.CustomResourceOptions) {
    super(...registration("Volume", { name, given: volumeGiven(args), options }));
  }
}

interface Registered {
  name: string;
  /** The arguments, completed. */
  given: object;
  options: pulumi.CustomResourceOptions | undefined;
}

/** What a class hands to its base class. */
function registration(
  type: TypeName,
  { name, given, options }: Registered,
): [pulumi.dynamic.ResourceProvider, string, pulumi.Inputs, pulumi.CustomResourceOptions, string, string] {
  const all = optionsOf(type, { elsewhere: `cloudlet:index:${type}`, options });
  return [providers[type], name, propertiesOf(type, { name, ...given }), all, "cloudlet", type];
}
