import type { VerbResult } from "../../agent/protocol.ts";
import type { Context } from "../../core/context.ts";
import type { Issue } from "../../core/define.ts";
import { CloudletError, codeOf, describeError } from "../../core/errors.ts";
import type { Reach } from "../images.ts";
import { parseHypervisor, removeOrForget } from "../shared.ts";
import { follow, nodeOf, transferMillis, withOffers } from "../supply.ts";
import { inputs, type Inputs, type State } from "./fields.ts";
import { idOf, toSpec } from "./spec.ts";

type Preseeded = State["preseeded"];
type Known = Inputs & Partial<State>;

/** Where `handoff.preseed` cannot be so. The cloudlet's own hypervisor may be among them, so that one list serves a whole way. */
export function preseedIssues({ handoff, hypervisor, preseedConnections }: Partial<Inputs>): Issue[] {
  const named = handoff?.preseed ?? [];
  return named.flatMap((other, index) => {
    const path = `handoff.preseed[${String(index)}]`;
    if (named.indexOf(other) < index) return [{ path, message: `is ${other} again; name each hypervisor once` }];
    if (hypervisor !== undefined && parseHypervisor(other).kind !== parseHypervisor(hypervisor).kind)
      return [{ path, message: `is ${other}, and the cloudlet runs on ${hypervisor}; name hypervisors of its kind` }];
    if (preseedConnections?.some((reach) => reach.hypervisor === other) === false)
      return [{ path, message: `is ${other}, and how to reach it is not said; give the Hypervisor itself` }];
    return [];
  });
}

/** What a preview says of it. */
export function explainPreseed(want: Partial<Inputs>, old: Partial<Inputs> | undefined): string | undefined {
  const before = old?.handoff?.preseed ?? [];
  const added = elsewhere(want).filter((hypervisor) => !before.includes(hypervisor));
  if (added.length === 0) return undefined;
  const parts = ["base", ...(want.build ? ["build"] : []), ...(want.overlay ? ["overlay"] : [])];
  return `preseeds ${added.map((hypervisor) => parseHypervisor(hypervisor).node).join(" and ")} with its ${parts.join(" and ")}, at low priority`;
}

/**
 * Brings what the cloudlet stands on to the nodes where it may be next, and has nodes that are no longer named let go of
 * it. One that cannot be supplied is a warning, and shows as a change until it is.
 */
export async function preseed(want: Inputs, old: Known | undefined, context: Context): Promise<void> {
  const nodes = reaches(want);
  const lacking: Reach[] = [];
  for (const taker of nodes) {
    try {
      if (!(await supply(want, taker, context)).hasCopy) lacking.push(taker);
    } catch (error) {
      if (context.signal.aborted || codeOf(error) === "BUG") throw error;
      context.warn(
        `${nodeOf(taker)} is not preseeded for cloudlet "${idOf(want)}", and the next \`pulumi up\` tries again: ${describeError(error)}`,
      );
    }
  }
  await sendCopies(want, lacking, context);
  const left = old?.preseedConnections.filter(({ hypervisor }) => !nodes.some((node) => node.hypervisor === hypervisor)) ?? [];
  for (const reach of left) await release(want, reach, context);
}

/** What is true of it: nodes that answer and lack anything are left out, and those that do not answer stay as they were. */
export async function observePreseeds(
  known: Known,
  context: Context,
): Promise<Pick<State, "handoff" | "preseedConnections" | "preseeded">> {
  // a state from before there was any
  const { handoff, preseedConnections } = inputs.strip().pick({ handoff: true, preseedConnections: true }).parse(known);
  const found = await Promise.all(reaches({ ...known, handoff, preseedConnections }).map((reach) => lookAt(known, reach, context)));
  const preseeded = found.flatMap((entry) => entry ?? []);
  const there = new Set([known.hypervisor, ...preseeded.map(({ hypervisor }) => hypervisor)]);
  return { handoff: { ...handoff, preseed: handoff.preseed.filter((hypervisor) => there.has(hypervisor)) }, preseedConnections, preseeded };
}

/** Before the cloudlet itself is forgotten, all who hold something for it are told. */
export async function releasePreseeds(have: Known, context: Context): Promise<void> {
  for (const reach of have.preseedConnections ?? []) await release(have, reach, context);
}

function elsewhere({ handoff, hypervisor }: Partial<Inputs>): string[] {
  return (handoff?.preseed ?? []).filter((other) => other !== hypervisor);
}

/** Of those that are named, in their order, but the cloudlet's own. */
function reaches(want: Pick<Inputs, "handoff" | "hypervisor" | "preseedConnections">): Reach[] {
  return elsewhere(want).flatMap((other) => want.preseedConnections.find(({ hypervisor }) => hypervisor === other) ?? []);
}

async function supply(want: Inputs, taker: Reach, context: Context): Promise<VerbResult<"preseed.apply">> {
  const { owner, base, build, overlay } = toSpec(want);
  const parts = { base: base.digest, ...(build && { build: build.digest }), ...(overlay && { overlay: overlay.digest }) };
  const agent = await context.agent(taker.connection);
  const id = idOf(want);
  const wanted = { what: `base of cloudlet "${id}"`, digests: Object.values(parts), taker, givers: [ownNode(want), ...want.sources] };
  const cost = await withOffers(wanted, context, (offers) =>
    agent.run("preseed.apply", { id, owner, ...parts, offers }, { ...follow(context), timeoutMillis: transferMillis }),
  );
  context.status(`${nodeOf(taker)} has what ${id} stands on (${(cost.bytesTransferred / 1e6).toFixed(1)} MB were sent)`);
  return cost;
}

/** What a running cloudlet has of its own, as it is now: worth something for a day, and needed by nobody. */
async function sendCopies(want: Inputs, takers: readonly Reach[], context: Context): Promise<void> {
  if (takers.length === 0) return;
  const id = idOf(want);
  try {
    const { digest } = await (await context.agent(want.connection)).run("instance.copy", { id }, follow(context));
    if (digest === undefined) return;
    for (const taker of takers) {
      const agent = await context.agent(taker.connection);
      const wanted = { what: `copy of cloudlet "${id}"`, digests: [digest], taker, givers: [ownNode(want)] };
      const { bytesTransferred } = await withOffers(wanted, context, (offers) =>
        agent.run("preseed.copy", { id, owner: want.owner, digest, offers }, { ...follow(context), timeoutMillis: transferMillis }),
      );
      context.status(`${nodeOf(taker)} has what ${id} is now (${(bytesTransferred / 1e6).toFixed(1)} MB were sent)`);
    }
  } catch (error) {
    if (context.signal.aborted || codeOf(error) === "BUG") throw error;
    context.warn(`a move of cloudlet "${id}" will send all of its memory and disk: ${describeError(error)}`);
  }
}

function ownNode({ hypervisor, connection, nodeAddress }: Inputs): Reach {
  return { hypervisor, connection, nodeAddress };
}

async function release(have: Inputs, reach: Reach, context: Context): Promise<void> {
  const what = `what ${nodeOf(reach)} holds for cloudlet "${idOf(have)}"`;
  await removeOrForget({ what, onUnreachable: have.onUnreachable, context }, async () => {
    const agent = await context.agent(reach.connection);
    await agent.run("preseed.release", { id: idOf(have), owner: have.owner }, follow(context));
  });
}

/** undefined = not, or not all of it, as far as is known. */
async function lookAt(known: Known, reach: Reach, context: Context): Promise<Preseeded[number] | undefined> {
  const { hypervisor } = reach;
  try {
    const cost = await (await context.agent(reach.connection)).preseed(idOf(known), known.owner);
    return cost && { hypervisor, ...cost };
  } catch (error) {
    if (!(error instanceof CloudletError) || error.code !== "UNREACHABLE") throw error;
    return known.preseeded?.find((before) => before.hypervisor === hypervisor);
  }
}
