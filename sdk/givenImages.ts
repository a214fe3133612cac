import * as pulumi from "@pulumi/pulumi";
import { defined, isResource } from "./arguments.ts";
import type { BaseArgs } from "./args.ts";
import type { BaseImageProperties, OverlayProperties } from "./properties.ts";
import type { Resources, Source } from "./types.ts";

type BaseGiven = BaseImageProperties | pulumi.Input<BaseArgs> | undefined;
type OverlayGiven = OverlayProperties | pulumi.Input<{ digest: pulumi.Input<string> }> | undefined;

/** What stands for a base in the inputs: a name and digests, and beside them where the operator's machine has it from. */
export function baseInputs(base: BaseGiven): object {
  if (!isResource(base)) return base === undefined ? {} : { base };
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
export function sourcesInput(base: BaseGiven, overlay: OverlayGiven): { sources?: pulumi.Output<Source[]> } {
  const placed = isResource(base) && held(base.connections) ? [base.connections] : [];
  const kept = isResource(overlay)
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
export function overlayInputs(overlay: OverlayGiven, base: BaseGiven): object {
  if (overlay === undefined) return isResource(base) && held(base.memory) ? { machine: base.machine } : {};
  if (!isResource(overlay)) return { overlay };
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
export function resourcesOf(base: BaseGiven, overlay: OverlayGiven): pulumi.Output<Resources | undefined> | undefined {
  if (isResource(overlay)) return overlay.resources;
  if (!isResource(base) || !held(base.memory)) return undefined;
  return base.memory.apply((memory) => memory && { cores: memory.cores, memoryMib: memory.sizeMib, diskMib: memory.diskMib });
}

/** Whether the program gave a value for this property: pulumi makes an output only of what it is given. */
function held(property: pulumi.Output<unknown> | undefined): boolean {
  return property !== undefined;
}
