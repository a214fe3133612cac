import type { Issue } from "../../core/define.ts";
import { plan, type Plan } from "../../synthesis/plan.ts";
import { baseIssues } from "../images.ts";
import { parseHypervisor } from "../shared.ts";
import type { Inputs } from "./fields.ts";
import { overlayOf } from "./spec.ts";

type Wanted = Partial<Inputs>;

/** What an overlay asks of a cloudlet and its node, as far as program and state suffice to know. */
export function synthesisIssues(want: Wanted): Issue[] {
  return [...baseIssues(want), ...belongingIssues(want), ...fitIssues(want)];
}

/** A resumed guest is as it was built, so what goes into it belongs to the overlay. */
function belongingIssues(want: Wanted): Issue[] {
  if (!want.overlay || want.hypervisor === undefined || parseHypervisor(want.hypervisor).kind !== "kvm") return [];
  const given = {
    files: (want.files?.length ?? 0) > 0,
    environment: Object.keys(want.environment ?? {}).length > 0,
    userData: want.userData !== undefined,
    build: want.build !== undefined,
  };
  return Object.entries(given).flatMap(([path, is]) =>
    is ? [{ path, message: "has no effect in a guest that is resumed as its overlay was built; declare it on the Overlay instead" }] : [],
  );
}

function fitIssues(want: Wanted): Issue[] {
  const { made, hypervisor } = want;
  if (hypervisor === undefined) return [];
  const { kind } = parseHypervisor(hypervisor);
  if (want.overlay && made && made.kind !== kind) {
    return [
      { path: "overlay", message: `is for ${made.kind}, and ${hypervisor} is ${kind}; use an overlay for ${kind}, or another hypervisor` },
    ];
  }
  const planned = planFor(want);
  if (planned === undefined || !("refusal" in planned)) return [];
  const { path, message, fix } = planned.refusal;
  return [{ path: path === "overlay" && !want.overlay ? "base" : path, message: `${message}; ${fix}` }];
}

/** The rung of the start ladder, where a new cloudlet or another overlay makes it start. */
export function explainStart(want: Wanted, old: Wanted | undefined): string | undefined {
  if (want.overlay ? old?.overlay?.digest === want.overlay.digest : old !== undefined) return undefined;
  // an overlay that has memory says on what machine; while that is unknown, so is the rung
  if (want.made && want.made.memoryBytes > 0 && !want.machine) return undefined;
  const planned = planFor(want);
  if (planned === undefined || "refusal" in planned) return undefined;
  return `${planned.rung === undefined ? `starts from its ${want.overlay ? "overlay" : "base's memory"}` : `starts by ${planned.rung}`}: ${planned.reason}`;
}

/** undefined = too little is known, or it starts from neither an overlay nor saved memory. */
function planFor(want: Wanted): Plan | undefined {
  const { hypervisor, base, resources, state, volumes, machine, capacity } = want;
  const made = want.overlay ? want.made : savedBase(want);
  if (hypervisor === undefined || base?.digest === undefined || !resources || !made) return undefined;
  const { kind } = parseHypervisor(hypervisor);
  return plan({
    spec: { kind, state: state ?? "running", resources, base: base.digest, volumes: volumes?.length ?? 0 },
    holding: { base: made.base, diskMib: made.resources.diskMib, machine },
    ground: { accelerator: capacity?.accelerator, cpuFlags: capacity?.cpuFlags, machineTypes: capacity?.machineTypes },
    place: made.builder === hypervisor ? "here" : undefined,
  });
}

/** The base's memory, where the cloudlet goes on from that; on which nodes it is shows only on them. */
function savedBase({ base, files, environment, userData, resources, machine }: Wanted): Made | undefined {
  if (base?.digest === undefined || base.memory === undefined || !files || !environment || !resources || !machine) return undefined;
  if (overlayOf({ base, files, environment, userData, resources }) === undefined) return undefined;
  return { base: base.digest, builder: undefined, resources: { diskMib: base.memory.diskMib } };
}

interface Made {
  base: string;
  builder: string | undefined;
  resources: { diskMib: number };
}
