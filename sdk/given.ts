import * as pulumi from "@pulumi/pulumi";
import type {
  BaseImageArgs,
  CloudletArgs,
  HandoffArgs,
  HypervisorArgs,
  HypervisorReference,
  OverlayArgs,
  Reach,
  VolumeArgs,
} from "./classArgs.ts";
import { baseInputs, overlayInputs, resourcesOf, sourcesInput } from "./givenImages.ts";
import { defined, isResource } from "./arguments.ts";
import type { NodeProperties } from "./properties.ts";

// What each class hands to the engine: where a resource is named, what is needed of it comes along.

export function hypervisorGiven(args: HypervisorArgs): object {
  return { ...reachByNode(args.node), ...defined(args), node: isResource(args.node) ? args.node.name : args.node };
}

export function cloudletGiven(args: CloudletArgs): object {
  const { cluster, hypervisor, base, overlay, volumes } = args;
  return {
    ...reachByHypervisor(hypervisor),
    ...defined({ capacity: capacityOf(hypervisor), resources: resourcesOf(base, overlay) }),
    ...(isResource(cluster) && { application: cluster.application }),
    ...defined(args),
    ...baseInputs(base),
    ...overlayInputs(overlay, base),
    ...sourcesInput(base, overlay),
    cluster: isResource(cluster) ? cluster.name : cluster,
    hypervisor: hypervisorId(hypervisor),
    ...handoffInputs(args),
    volumes: volumes?.map(({ volume, path }) => ({ volume: isResource(volume) ? volume.name : volume, path })),
  };
}

export function volumeGiven(args: VolumeArgs): object {
  const { connection } = reachByHypervisor(args.hypervisor);
  return { ...defined({ connection }), ...defined(args), hypervisor: hypervisorId(args.hypervisor) };
}

export function baseImageGiven(args: BaseImageArgs): object {
  const { nodes = [], connections = [], memory } = args;
  return {
    ...defined(args),
    nodes: nodes.map(hypervisorId),
    connections: [...reachesOf(nodes), ...connections],
    ...(memory && { memory: { ...memory, ...(memory.builder !== undefined && { builder: hypervisorId(memory.builder) }) } }),
  };
}

export function overlayGiven(args: OverlayArgs): object {
  const { base, builder } = args;
  return {
    ...reachByHypervisor(builder),
    ...defined(args),
    ...baseInputs(base),
    ...sourcesInput(base, undefined),
    builder: hypervisorId(builder),
  };
}

/** Hypervisors among the arguments of a handoff become ids, and beside them how to reach them. */
function handoffInputs({ handoff, preseedConnections = [] }: CloudletArgs): object {
  if (!isPlain(handoff)) return {};
  const { preseed } = handoff;
  if (preseed === undefined) return {};
  return {
    handoff: { ...handoff, preseed: preseed.map(hypervisorId) },
    preseedConnections: [...reachesOf(preseed), ...preseedConnections],
  };
}

/** Whether its parts can be looked at already. */
function isPlain(handoff: CloudletArgs["handoff"]): handoff is HandoffArgs {
  return handoff !== undefined && !pulumi.Output.isInstance(handoff) && !(handoff instanceof Promise);
}

/** How to reach those that are given as resources. */
function reachesOf(hypervisors: readonly HypervisorReference[]): object[] {
  return hypervisors.flatMap((given) => (isResource(given) ? [{ hypervisor: hypervisorId(given), ...reachByHypervisor(given) }] : []));
}

/** An id in plain sight, so that a preview can show where something is; what may be secret travels in `connection`. */
function hypervisorId(hypervisor: HypervisorReference): pulumi.Input<string> {
  return isResource(hypervisor) ? pulumi.interpolate`${hypervisor.node}/${hypervisor.kind}` : hypervisor;
}

/** How to reach the node of what is named as a resource; nothing where it is named by its id. */
function reachByHypervisor(hypervisor: HypervisorReference): Reach {
  return isResource(hypervisor) ? { connection: hypervisor.connection, nodeAddress: hypervisor.nodeAddress } : {};
}

function reachByNode(node: NodeProperties | pulumi.Input<string>): Reach {
  if (!isResource(node)) return {};
  // one secret makes the whole connection secret, and an address is none
  const host = pulumi.unsecret(node.connection.apply((connection) => connection.host));
  return { connection: node.connection, nodeAddress: pulumi.all([node.address, host]).apply(([address, fallback]) => address ?? fallback) };
}

function capacityOf(hypervisor: HypervisorReference): pulumi.Output<object> | undefined {
  if (!isResource(hypervisor)) return undefined;
  return pulumi.all([hypervisor.capacity, hypervisor.accelerator]).apply(([capacity, accelerator]) => ({ ...capacity, accelerator }));
}
