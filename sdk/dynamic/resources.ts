import * as pulumi from "@pulumi/pulumi";
import { defined, registration } from "./arguments.ts";
import { EdgeCluster, Hypervisor, hypervisorId, reachByHypervisor, type Reach } from "./gateway.ts";
import { baseInputs, overlayInputs, resourcesOf, sourcesInput, type BaseImage, type Overlay } from "./images.ts";
import type { CloudletInputs, VolumeInputs } from "./inputs.ts";
import { CloudletProperties, VolumeProperties } from "./properties.ts";
import type { BaseArgs } from "./args.ts";

export interface VolumeArgs extends Omit<VolumeInputs, "hypervisor">, Pick<Reach, "connection"> {
  /** The Hypervisor it is made on, or its id (`gw1/kvm`). An attached volume follows its cloudlet, so give both the same hypervisor. */
  hypervisor: Hypervisor | pulumi.Input<string>;
}

export interface CloudletArgs extends Omit<CloudletInputs, "cluster" | "hypervisor" | "volumes" | "base" | "overlay">, Reach {
  /** The EdgeCluster it belongs to, or its name. */
  cluster: EdgeCluster | pulumi.Input<string>;
  /** The Hypervisor it runs on, or its id (`gw1/kvm`). A change moves the cloudlet with its state, in place. */
  hypervisor: Hypervisor | pulumi.Input<string>;
  /** The image it starts from: a BaseImage, or a file. A change rebuilds the root in place; state files and volumes are kept. */
  base: BaseImage | pulumi.Input<BaseArgs>;
  /** The Overlay it is synthesised from, or its digest. A change rebuilds the root in place; state files and volumes are kept. */
  overlay?: Overlay | pulumi.Input<{ digest: pulumi.Input<string> }> | undefined;
  /** Volumes attached to the cloudlet; they move with it. */
  volumes?: { volume: Volume | pulumi.Input<string>; path: pulumi.Input<string> }[] | undefined;
}

/** A small VM or system container that serves one application. Changing `hypervisor` moves it with its state, in place. */
export class Cloudlet extends CloudletProperties {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Cloudlet";

  constructor(name: string, args: CloudletArgs, options?: pulumi.CustomResourceOptions) {
    const { cluster, hypervisor, base, overlay, volumes } = args;
    const given = {
      ...reachByHypervisor(hypervisor),
      ...defined({ capacity: capacityOf(hypervisor), resources: resourcesOf(base, overlay) }),
      ...(cluster instanceof EdgeCluster && { application: cluster.application }),
      ...defined(args),
      ...baseInputs(base),
      ...overlayInputs(overlay, base),
      ...sourcesInput(base, overlay),
      cluster: cluster instanceof EdgeCluster ? cluster.name : cluster,
      hypervisor: hypervisorId(hypervisor),
      volumes: volumes?.map(({ volume, path }) => ({ volume: volume instanceof Volume ? volume.name : volume, path })),
    };
    super(...registration("Cloudlet", { name, given, options }));
  }
}

/** State that outlives a cloudlet: made on a node, attached to one cloudlet at a time, and moved along with it. */
export class Volume extends VolumeProperties {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Volume";

  constructor(name: string, args: VolumeArgs, options?: pulumi.CustomResourceOptions) {
    const { hypervisor } = args;
    const { connection } = reachByHypervisor(hypervisor);
    const given = { ...defined({ connection }), ...defined(args), hypervisor: hypervisorId(hypervisor) };
    super(...registration("Volume", { name, given, options }));
  }
}

function capacityOf(hypervisor: Hypervisor | pulumi.Input<string>): pulumi.Output<object> | undefined {
  if (!(hypervisor instanceof Hypervisor)) return undefined;
  return pulumi.all([hypervisor.capacity, hypervisor.accelerator]).apply(([capacity, accelerator]) => ({ ...capacity, accelerator }));
}
