import type { InstanceSpec, Machine, Rung } from "../agent/protocol.ts";

/** What an overlay holds, as far as the choice of a rung goes; from its manifest, or from the outputs of an Overlay. */
export interface Holding {
  base: string;
  diskMib: number;
  /** Absent where there is no saved memory. */
  machine?: Machine | undefined;
}

/** What a node can run; what is not known stays out. */
export interface Ground {
  accelerator?: "kvm" | "tcg" | "none" | undefined;
  /** The processor's flags in the words of /proc/cpuinfo. */
  cpuFlags?: readonly string[] | undefined;
  /** QEMU's processor model that guests get there. */
  cpuModel?: string | undefined;
  machineTypes?: readonly string[] | undefined;
}

export interface PlanInput {
  spec: Pick<InstanceSpec, "kind" | "state" | "resources"> & { base: string; volumes: number };
  holding: Holding;
  ground: Ground;
  /** Where the overlay's data is; undefined = not known yet. */
  place: "here" | "elsewhere" | undefined;
  /** State files that are put into its disk before it starts. */
  importsState?: boolean | undefined;
}

/** `rung` is absent where it depends on what is not known; `refusal` says why this cannot be started there at all, and names the input. */
export type Plan = { rung: Rung | undefined; reason: string } | { refusal: { path: string; message: string; fix: string } };

/** Picks the rung of the start ladder. The same function decides on the node and in a preview, where less is known. */
export function plan(input: PlanInput): Plan {
  const refusal = refusalOf(input);
  if (refusal !== undefined) return { refusal };
  const reason = reasonToBoot(input);
  if (reason !== undefined) return { rung: "boot", reason };
  if (input.ground.accelerator === undefined) return { rung: undefined, reason: "how guests execute on the node is not known yet" };
  if (input.place === "here") return { rung: "resume", reason: "base and overlay are on the node" };
  if (input.place === "elsewhere") return { rung: "lazy", reason: "the overlay is on another node" };
  return {
    rung: undefined,
    reason: "it resumes, at once where the overlay is on the node by then, else while the overlay is still coming",
  };
}

function refusalOf({ spec, holding, ground }: PlanInput): { path: string; message: string; fix: string } | undefined {
  if (spec.base !== holding.base)
    return {
      path: "overlay",
      message: `was built over base ${holding.base.slice(0, 12)}, and the cloudlet's base is ${spec.base.slice(0, 12)}`,
      fix: "give the cloudlet the base that the overlay was built over, or an overlay of this base",
    };
  if (spec.resources.diskMib < holding.diskMib)
    return {
      path: "resources.diskMib",
      message: `is ${String(spec.resources.diskMib)}, and the overlay's disk has ${String(holding.diskMib)} MiB`,
      fix: `ask for ${String(holding.diskMib)} MiB or more`,
    };
  const { machine } = holding;
  if (spec.kind === "lxd" || machine === undefined) return undefined;
  if (ground.machineTypes?.includes(machine.type) === false)
    return {
      path: "overlay",
      message: `was built on machine type ${machine.type}, which the node's QEMU does not know (it knows ${list(ground.machineTypes)})`,
      fix: "bring QEMU on the node up to date, or build the overlay on a node like it",
    };
  const missing = missingFlags(machine, ground);
  if (missing.length > 0)
    return {
      path: "overlay",
      message: `needs a processor with ${list(missing)}, which the node's lacks`,
      fix: "build the overlay on the node with the oldest processor, or use another node",
    };
  return undefined;
}

/** Emulated processors are the same everywhere; so is one that will not be used. */
function missingFlags(machine: Machine, { accelerator, cpuFlags }: Ground): string[] {
  if (machine.accelerator !== "kvm" || accelerator !== "kvm" || cpuFlags === undefined) return [];
  const there = new Set(cpuFlags);
  return machine.cpu.flags.filter((flag) => !there.has(flag));
}

function reasonToBoot({ spec, holding, ground, importsState }: PlanInput): string | undefined {
  const { machine } = holding;
  if (spec.kind === "lxd") return "a container has no saved memory";
  if (machine === undefined) return "the overlay holds no memory";
  if (spec.state === "stopped") return "it is declared stopped, so it boots when it is started";
  if (spec.volumes > 0) return "its volumes are attached at boot";
  if (importsState === true) return "its state files are put into the disk first";
  const { cores, memoryMib, diskMib } = spec.resources;
  if (cores !== machine.cores)
    return `it has ${plural(cores, "core")}, and the saved memory is of a guest with ${plural(machine.cores, "core")}`;
  if (memoryMib !== machine.memoryMib)
    return `it has ${String(memoryMib)} MiB of memory, and the saved memory is of a guest with ${String(machine.memoryMib)} MiB`;
  if (diskMib !== holding.diskMib)
    return `its disk has ${String(diskMib)} MiB, and the saved guest knows one of ${String(holding.diskMib)} MiB`;
  if (ground.accelerator !== undefined && ground.accelerator !== machine.accelerator)
    return `guests execute with ${ground.accelerator} on the node, and the saved memory is of a guest with ${machine.accelerator}`;
  if (ground.cpuModel !== undefined && ground.cpuModel !== machine.cpu.model)
    return `guests have processor ${ground.cpuModel} on the node, and the saved memory is of a guest with ${machine.cpu.model}`;
  return undefined;
}

const list = (names: readonly string[]): string => names.join(", ");
const plural = (count: number, noun: string): string => `${String(count)} ${noun}${count === 1 ? "" : "s"}`;
