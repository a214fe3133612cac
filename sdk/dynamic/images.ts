import * as pulumi from "@pulumi/pulumi";
import { defined, registration } from "./arguments.ts";
import { Hypervisor, hypervisorId, reachByHypervisor, type Reach } from "./gateway.ts";
import type { BaseImageInputs, OverlayInputs } from "./inputs.ts";
import { BaseImageProperties, OverlayProperties } from "./properties.ts";
import type { BaseArgs, SourceArgs } from "./args.ts";
import type { Resources, Source } from "./types.ts";

type HypervisorReference = Hypervisor | pulumi.Input<string>;

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
  base?: BaseImage | pulumi.Input<BaseArgs> | undefined;
  /** The Hypervisor that builds and keeps it, or its id. A change has the new one take it over. */
  builder: HypervisorReference;
}

/** A bootable base, known by its digest and placed on nodes before it is needed. */
export class BaseImage extends BaseImageProperties {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:BaseImage";

  constructor(name: string, args: BaseImageArgs, options?: pulumi.CustomResourceOptions) {
    const { nodes = [], connections = [], memory } = args;
    const reaches = nodes.flatMap((node) =>
      node instanceof Hypervisor ? [{ hypervisor: hypervisorId(node), ...reachByHypervisor(node) }] : [],
    );
    const given = {
      ...defined(args),
      nodes: nodes.map(hypervisorId),
      connections: [...reaches, ...connections],
      ...(memory && { memory: { ...memory, ...(memory.builder !== undefined && { builder: hypervisorId(memory.builder) }) } }),
    };
    super(...registration("BaseImage", { name, given, options }));
  }
}

/** The delta of an application over a base, built once on a node, from which any number of cloudlets start. */
export class Overlay extends OverlayProperties {
  static readonly __pulumiType = "pulumi-nodejs:dynamic/cloudlet:Overlay";

  constructor(name: string, args: OverlayArgs, options?: pulumi.CustomResourceOptions) {
    const { base, builder } = args;
    const given = {
      ...reachByHypervisor(builder),
      ...defined(args),
      ...baseInputs(base),
      ...sourcesInput(base, undefined),
      builder: hypervisorId(builder),
    };
    super(...registration("Overlay", { name, given, options }));
  }
}

/** What stands for a base in the inputs: a name and digests, and beside them where the operator's machine has it from. */
export function baseInputs(base: BaseImage | pulumi.Input<BaseArgs> | undefined): object {
  if (!(base instanceof BaseImage)) return base === undefined ? {} : { base };
  const { memory, memoryDigest } = base;
  // an output that was given no value is no output, and must not make the rest unknown in a preview
  const saved = held(memory) && {
    memory: pulumi
      .all([memory, memoryDigest])
      .apply(([wanted, digest]) => wanted && { digest, cores: wanted.cores, sizeMib: wanted.sizeMib, diskMib: wanted.diskMib }),
  };
  return {
    base: { image: base.name, digest: base.digest, ...saved },
    baseSource: defined({ file: base.file, url: base.url, build: base.build, image: base.image }),
  };
}

/** Nodes that have what is named: those where the base is placed, and the one that keeps the overlay. */
export function sourcesInput(base: unknown, overlay: unknown): { sources?: pulumi.Output<Source[]> } {
  const placed = base instanceof BaseImage && held(base.connections) ? [base.connections] : [];
  const kept =
    overlay instanceof Overlay
      ? [
          pulumi
            .all([overlay.builder, overlay.connection, overlay.nodeAddress])
            .apply(([hypervisor, connection, nodeAddress]): Source[] => [{ hypervisor, connection, nodeAddress }]),
        ]
      : [];
  const all = [...placed, ...kept];
  return all.length === 0 ? {} : { sources: pulumi.all(all).apply((lists) => lists.flat()) };
}

/** What a cloudlet takes from the overlay that it is given, or else from its base's saved memory. */
export function overlayInputs(
  overlay: Overlay | pulumi.Input<{ digest: pulumi.Input<string> }> | undefined,
  base: BaseImage | pulumi.Input<BaseArgs> | undefined,
): object {
  if (overlay === undefined) return base instanceof BaseImage && held(base.memory) ? { machine: base.machine } : {};
  if (!(overlay instanceof Overlay)) return { overlay };
  return {
    overlay: { digest: overlay.digest },
    overlaySource: defined({ file: overlay.file, image: overlay.image }),
    made: {
      kind: overlay.kind,
      base: overlay.baseDigest,
      builder: overlay.builder,
      resources: overlay.resources,
      memoryBytes: overlay.memoryBytes,
    },
    machine: overlay.machine,
  };
}

/** A cloudlet resumes from memory only where it has what was saved, so that is its default. */
export function resourcesOf(
  base: BaseImage | pulumi.Input<BaseArgs>,
  overlay: Overlay | pulumi.Input<{ digest: pulumi.Input<string> }> | undefined,
): pulumi.Output<Resources | undefined> | undefined {
  if (overlay instanceof Overlay) return overlay.resources;
  if (!(base instanceof BaseImage) || !held(base.memory)) return undefined;
  return base.memory.apply((memory) => memory && { cores: memory.cores, memoryMib: memory.sizeMib, diskMib: memory.diskMib });
}

/** Whether the program gave a value for this property: pulumi makes an output only of what it is given. */
function held(property: pulumi.Output<unknown> | undefined): boolean {
  return property !== undefined;
}
