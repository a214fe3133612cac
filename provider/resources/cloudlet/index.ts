import type { AgentClient } from "../../agent/clientTypes.ts";
import { isHere, type InstanceSpec, type InstanceStatus } from "../../agent/protocol.ts";
import type { Context } from "../../core/context.ts";
import { defineResource, type Adopted, type CheckContext, type Issue } from "../../core/define.ts";
import { isMemoryName, pinDigest, type Base } from "../images.ts";
import { adoptedPlace, mustBelong, parseAdopted, parseHypervisor, removeOrForget } from "../shared.ts";
import { follow } from "../supply.ts";
import { constraints } from "./constraints.ts";
import { inputs, outputs, type Inputs, type State } from "./fields.ts";
import { explainTakeOver, findForeign, stillForeign, takeOver } from "./foreign.ts";
import { explainMove, move } from "./move.ts";
import { explainPreseed, observePreseeds, preseed, releasePreseeds } from "./preseed.ts";
import { idOf, toDeclared, toSpec } from "./spec.ts";
import { supply, withOverlay } from "./supply.ts";
import { explainStart } from "./synthesis.ts";

/** A small VM or container that serves one application and moves between nodes with its state. */
export const cloudlet = defineResource({
  token: "cloudlet:index:Cloudlet",
  description:
    "A small VM (kvm) or system container (lxd) that serves one application close to its users. Changing `hypervisor` moves it with its state, as an in-place update.",
  inputs,
  outputs,
  identity: ({ cluster, name }) => `${cluster}/${name}`,
  complete,
  constraints,
  explain,
  explainChange,

  predict,
  adopt,

  async observe(known, context) {
    const agent = await context.agent(known.connection);
    const recorded = await agent.instance(idOf(known));
    const found = recorded !== undefined && isHere(recorded) ? recorded : ((await stillForeign(known, agent)) ?? recorded);
    if (found === undefined || found.spec.owner !== known.owner) return undefined;
    return { ...toState(known, found), ...(await observePreseeds(known, context)) };
  },

  async apply(want, old, context) {
    if (old?.foreign !== undefined) await takeOver(old, context);
    const finish = old !== undefined && old.hypervisor !== want.hypervisor ? await move(want, old, context) : undefined;
    const agent = await context.agent(want.connection);
    await supply(want, context);
    const fresh = old === undefined;
    await withOverlay(want, context, (offers) =>
      agent.run(
        "instance.apply",
        { spec: toSpec(want), fresh, ...(offers.length > 0 && { offers }) },
        { ...follow(context), timeoutMillis: startMillis(want) },
      ),
    );
    await finish?.();
    await preseed(want, old, context);
  },
  mayLag: ["handoff.preseed"],

  async remove(have, context) {
    await removeOrForget({ what: `cloudlet "${idOf(have)}"`, onUnreachable: have.onUnreachable, context }, async () => {
      const agent = await context.agent(have.connection);
      await agent.run("instance.remove", { id: idOf(have), owner: have.owner, foreign: have.foreign }, { signal: context.signal });
    });
    await releasePreseeds(have, context);
  },
});

function explain(want: Partial<Inputs>, old: Partial<Inputs> | undefined): string | undefined {
  const said = [explainStart(want, old), explainPreseed(want, old)].flatMap((text) => text ?? []);
  return said.length === 0 ? undefined : said.join("; ");
}

function explainChange(want: Partial<Inputs>, old: Partial<State>): string | undefined {
  const said = [explainTakeOver(old), explainMove(want, old)].flatMap((text) => text ?? []);
  return said.length === 0 ? undefined : said.join("; ");
}

async function complete(want: Partial<Inputs>, local: CheckContext): Promise<{ inputs: Partial<Inputs>; issues: Issue[] }> {
  const issues: Issue[] = [];
  const { base, build } = want;
  const file = base?.file;
  const baseDigest =
    file === undefined ? base?.digest : await pinDigest({ path: "base.file", digest: base?.digest }, () => local.digestFile(file), issues);
  const source = build?.context;
  const buildDigest =
    source === undefined
      ? build?.digest
      : await pinDigest({ path: "build.context", digest: build?.digest }, () => local.digestDirectory(source), issues);
  return {
    inputs: {
      ...want,
      ...(base && baseDigest !== undefined && { base: { ...base, digest: baseDigest } }),
      ...(build && buildDigest !== undefined && { build: { ...build, digest: buildDigest } }),
      ...(want.ports && { ports: want.ports.map((port) => ({ ...port, hostPort: port.hostPort ?? port.port })) }),
    },
    issues,
  };
}

function predict(want: Partial<Inputs>, old: Partial<State> | undefined): Partial<State> {
  const { hypervisor, nodeAddress, ports, base } = want;
  const place = hypervisor === undefined ? undefined : parseHypervisor(hypervisor);
  return {
    ...(place && { node: place.node }),
    ...(place?.kind === "lxd" && { accelerator: "none" }),
    ...(nodeAddress !== undefined && ports && { endpoint: endpointOf(nodeAddress, ports) }),
    ...(base?.digest !== undefined && { imageDigest: base.digest }),
    // a guest keeps its address where it stays, but for one that comes from another network
    ...(old?.address !== undefined && old.foreign === undefined && old.hypervisor === hypervisor && { address: old.address }),
  };
}

/** Everything of a cloudlet that its node knows, for a program that has not declared it yet. */
async function adopt({ id, owner }: Adopted, context: Context): Promise<State | undefined> {
  const [identity = "", ...place] = parseAdopted(id, "CLUSTER/NAME@NODE/KIND[@HOST]");
  const [cluster, name] = identity.split("/");
  const reach = adoptedPlace(place);
  const agent = await context.agent(reach.connection);
  const recorded = await agent.instance(identity);
  const found =
    recorded !== undefined && isHere(recorded) ? recorded : ((await findForeign({ id: identity, owner, ...reach }, agent)) ?? recorded);
  if (found === undefined) return undefined;
  mustBelong(`cloudlet "${identity}"`, { owners: [found.spec.owner], owner });
  const { base, ...declared } = toDeclared(found.spec);
  const whole = { ...declared, base: { ...base, ...(await savedMemory(found.spec, agent)) } };
  return toState(inputs.parse({ name, cluster, owner, ...reach, ...whole }), found);
}

/** The base's memory is kept like an overlay, under a name that only a BaseImage gives. */
async function savedMemory({ overlay }: InstanceSpec, agent: AgentClient): Promise<Pick<Base, "memory">> {
  const kept = overlay && (await agent.overlays()).find(({ digest, name }) => digest === overlay.digest && isMemoryName(name));
  if (!kept) return {};
  const { cores, memoryMib, diskMib } = kept.resources;
  return { memory: { digest: kept.digest, cores, sizeMib: memoryMib, diskMib } };
}

function endpointOf(nodeAddress: string, ports: Inputs["ports"]): string {
  const [first] = ports;
  return first ? `${nodeAddress}:${first.hostPort ?? first.port}` : "";
}

/** What is true, in the words of the inputs, so that drift shows as a difference. */
function toState(known: Inputs, found: InstanceStatus): State {
  const { spec, ownership } = found;
  const here = parseHypervisor(known.hypervisor);
  const away = ownership.role === "released" && ownership.peer !== undefined && found.leaving !== true;
  const hypervisor = away ? `${ownership.peer}/${spec.kind}` : known.hypervisor;
  return {
    ...inputs.strip().parse({ ...known, state: "running" }),
    hypervisor,
    // what the node cannot tell apart from the declaration stays as declared
    state: observedState(known, found),
    base: { ...known.base, digest: spec.base.digest },
    overlay: spec.overlay && spec.overlay.digest !== known.base.memory?.digest ? spec.overlay : undefined,
    hydrate: spec.hydrate ?? known.hydrate,
    resources: spec.resources,
    ports: spec.ports,
    environment: spec.environment,
    stateFiles: spec.stateFiles,
    endpoint: endpointOf(known.nodeAddress, spec.ports),
    address: found.address,
    node: away ? (ownership.peer ?? here.node) : here.node,
    status: ownership.role === "released" ? `${away ? "moved" : "moving"} to ${ownership.peer ?? "another node"}` : statusOf(found),
    imageDigest: found.imageDigest,
    accelerator: found.accelerator,
    preseeded: [],
    ...(found.foreign && { foreign: found.foreign }),
    ...(found.provision && { provision: found.provision }),
    ...(found.lastMove && { lastMove: found.lastMove }),
  };
}

/** A guest that is held still for want of data looks like one that runs. */
function statusOf({ status, hydration }: InstanceStatus): string {
  return hydration?.state === "waiting" ? `held until its overlay comes: ${hydration.reason}` : status;
}

/** What is still coming may take as long as its slowest link, and then as long again as its source may be silent. */
function startMillis({ hydrate }: Inputs): number {
  return (1800 + hydrate.timeoutSeconds) * 1000;
}

function observedState(known: Inputs, { status, ownership }: InstanceStatus): Inputs["state"] {
  if (ownership.role === "released") return known.state;
  return status === "missing" ? "stopped" : status;
}
