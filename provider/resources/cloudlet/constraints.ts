import { defaultBudget } from "../../agent/handoffProtocol.ts";
import type { CheckContext, Issue } from "../../core/define.ts";
import { abilitiesOf, type Ability } from "../../hypervisors/types.ts";
import { readyIssues } from "../guest.ts";
import { parseHypervisor } from "../shared.ts";
import type { Inputs } from "./fields.ts";
import { preseedIssues } from "./preseed.ts";
import { synthesisIssues } from "./synthesis.ts";

type Wanted = Partial<Inputs>;

/** The rules that program and state suffice to check; each names the property and the remedy. */
export function constraints(want: Wanted, context: CheckContext, old: Wanted | undefined): Issue[] {
  return [
    ...applicationIssues(want, context),
    ...abilityIssues(want),
    ...portIssues(want, context),
    ...sizeIssues(want),
    ...readyIssues(want.ready),
    ...synthesisIssues(want),
    ...volumeIssues(want, context),
    ...kindChangeIssues(want, old),
    ...handoffIssues(want),
    ...preseedIssues(want),
  ];
}

function applicationIssues({ cluster, application }: Wanted, { declared }: CheckContext): Issue[] {
  const theirs = cluster === undefined ? undefined : declared("cloudlet:index:EdgeCluster").get(cluster)?.["application"];
  if (application === undefined || typeof theirs !== "string" || theirs === application) return [];
  return [
    {
      path: "application",
      message: `cluster "${cluster}" serves "${theirs}", and a cluster serves one application; declare another EdgeCluster for "${application}"`,
    },
  ];
}

function abilityIssues(want: Wanted): Issue[] {
  if (want.hypervisor === undefined) return [];
  const { kind } = parseHypervisor(want.hypervisor);
  const needs: Record<string, Ability | false> = {
    userData: want.userData !== undefined && "userData",
    build: want.build !== undefined && "build",
    state: want.state === "suspended" && "suspend",
    volumes: (want.volumes?.length ?? 0) > 0 && "volumes",
    stateFiles: (want.stateFiles?.length ?? 0) > 0 && "stateFiles",
    environment: Object.keys(want.environment ?? {}).length > 0 && "environment",
    handoff: isBudgeted(want) && "live",
  };
  return Object.entries(needs).flatMap(([path, ability]) =>
    ability === false || abilitiesOf[kind].includes(ability)
      ? []
      : [{ path, message: `a hypervisor of kind "${kind}" has no "${ability}"; remove it, or use the other kind` }],
  );
}

function portIssues(want: Wanted, { declared }: CheckContext): Issue[] {
  const issues: Issue[] = [];
  const taken = new Map<string, string>();
  for (const [other, cloudlet] of declared("cloudlet:index:Cloudlet")) {
    const same = other === want.name && cloudlet["cluster"] === want.cluster;
    if (same || cloudlet["hypervisor"] !== want.hypervisor || want.hypervisor === undefined) continue;
    for (const key of portKeys(cloudlet["ports"])) taken.set(key, `cloudlet "${other}"`);
  }
  for (const [index, key] of portKeys(want.ports).entries()) {
    const holder = taken.get(key);
    if (holder !== undefined)
      issues.push({
        path: `ports[${index}].hostPort`,
        message: `${key} on ${want.hypervisor ?? "this hypervisor"} is taken by ${holder}; choose another hostPort`,
      });
    taken.set(key, `ports[${index}]`);
  }
  return issues;
}

function portKeys(ports: unknown): string[] {
  if (!Array.isArray(ports)) return [];
  return ports.map(
    (item: { port?: unknown; hostPort?: unknown; protocol?: unknown }) =>
      `${String(item.protocol ?? "tcp")} port ${String(item.hostPort ?? item.port)}`,
  );
}

function sizeIssues({ resources, capacity }: Wanted): Issue[] {
  if (!resources || !capacity) return [];
  return (["cores", "memoryMib"] as const).flatMap((field) =>
    resources[field] > capacity[field]
      ? [
          {
            path: `resources.${field}`,
            message: `is ${resources[field]}, and the node has ${capacity[field]}; ask for less, or use a larger node`,
          },
        ]
      : [],
  );
}

function volumeIssues(want: Wanted, { declared }: CheckContext): Issue[] {
  const issues: Issue[] = [];
  const seen = new Set<string>();
  for (const [index, { volume, path }] of (want.volumes ?? []).entries()) {
    const place = declared("cloudlet:index:Volume").get(volume)?.["hypervisor"];
    if (typeof place === "string" && want.hypervisor !== undefined && place !== want.hypervisor) {
      issues.push({
        path: `volumes[${index}].volume`,
        message: `volume "${volume}" is declared on ${place} and the cloudlet on ${want.hypervisor}; a volume follows its cloudlet, so give both the same hypervisor`,
      });
    }
    if (seen.has(path)) issues.push({ path: `volumes[${index}].path`, message: `${path} is used twice; give each volume its own path` });
    seen.add(path);
    for (const [other, cloudlet] of declared("cloudlet:index:Cloudlet")) {
      const same = other === want.name && cloudlet["cluster"] === want.cluster;
      const theirs: unknown = cloudlet["volumes"];
      if (!same && Array.isArray(theirs) && theirs.some((item: { volume?: unknown }) => item.volume === volume)) {
        issues.push({
          path: `volumes[${index}].volume`,
          message: `volume "${volume}" is attached to cloudlet "${other}"; a volume has one cloudlet at a time`,
        });
      }
    }
  }
  return issues;
}

function kindChangeIssues(want: Wanted, old: Wanted | undefined): Issue[] {
  if (old?.hypervisor === undefined || want.hypervisor === undefined) return [];
  const [from, to] = [parseHypervisor(old.hypervisor).kind, parseHypervisor(want.hypervisor).kind];
  if (from === to) return [];
  if (old.base?.digest !== undefined && old.base.digest === want.base?.digest) {
    return [
      { path: "base", message: `is an image for ${from}, and the cloudlet moves to ${to}; give a base for ${to} in the same change` },
    ];
  }
  if ((want.stateFiles?.length ?? 0) === 0 && (want.volumes?.length ?? 0) === 0) {
    return [
      {
        path: "stateFiles",
        message: `is empty, and a move from ${from} to ${to} carries only state files and volumes; name the paths that make up the state`,
      },
    ];
  }
  return [];
}

/** Whether a program asks for anything but the defaults, which say nothing about a kind that cannot keep them. */
function isBudgeted({ handoff }: Wanted): boolean {
  return (
    handoff !== undefined &&
    (Object.keys(defaultBudget) as (keyof typeof defaultBudget)[]).some((key) => handoff[key] !== defaultBudget[key])
  );
}

function handoffIssues({ handoff }: Wanted): Issue[] {
  if (handoff === undefined || handoff.maxDowntimeMillis <= handoff.maxTotalSeconds * 1000) return [];
  return [
    {
      path: "handoff.maxDowntimeMillis",
      message: `is ${handoff.maxDowntimeMillis}, longer than the whole move of ${handoff.maxTotalSeconds} s may take; lower it, or raise maxTotalSeconds`,
    },
  ];
}
