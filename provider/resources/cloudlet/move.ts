import { isHere, type InstanceStatus, type Kind } from "../../agent/protocol.ts";
import type { AgentClient } from "../../agent/clientTypes.ts";
import type { Context } from "../../core/context.ts";
import { CloudletError, codeOf, describeError } from "../../core/errors.ts";
import { abilitiesOf } from "../../hypervisors/types.ts";
import { openRelay } from "../relay.ts";
import { hypervisorField, parseHypervisor } from "../shared.ts";
import { follow } from "../supply.ts";
import type { Inputs, State } from "./fields.ts";
import { idOf, toSpec } from "./spec.ts";
import { supply } from "./supply.ts";

/**
 * Moves a cloudlet from where the state says it is to where the program wants it. Ownership passes between the two
 * agents, who finish a move that has begun even when this process dies; run again, it joins or continues that move.
 * Returns what is left to do once the cloudlet is as declared: one that does not come up as it is may need that first.
 */
export async function move(want: Inputs, old: Inputs & Partial<State>, context: Context): Promise<(() => Promise<void>) | undefined> {
  const id = idOf(want);
  const from = parseHypervisor(old.hypervisor).node;
  const to = parseHypervisor(want.hypervisor).node;
  const target = await context.agent(want.connection);
  const there = await target.instance(id);
  const arrived = there?.ownership.role === "owner";
  const source = await sourceAgent({ id, old, arrived }, context);
  if (source === undefined) return undefined;

  const here = await source.instance(id);
  if (here?.ownership.role === "released" && here.ownership.peer !== to) {
    throw new CloudletError("REFUSED", `cloudlet "${id}" is on ${here.ownership.peer} now`, {
      fix: `set hypervisor to the one on ${here.ownership.peer} and run \`pulumi up\`, then move it from there`,
    });
  }
  if (here === undefined || !isHere(here)) {
    // the agents may have ended the move since the target was asked
    if (arrived || (await target.instance(id))?.ownership.role === "owner") return undefined;
    throw new CloudletError("NOT_FOUND", `neither ${from} nor ${to} has cloudlet "${id}"`, {
      fix: "run `pulumi refresh`, which will drop it from the state, then `pulumi up` to make it anew",
    });
  }
  const hand = () => handOver({ id, from, to, here, source, target }, { want, old }, context);
  if (here.ownership.role === "owner" || !arrived) return hand().then(() => undefined);
  return () =>
    hand().catch((error: unknown) => {
      context.warn(`${from} still keeps its copy of "${id}", stopped, and removes it by itself: ${describeError(error)}`);
    });
}

/** What a reviewer should know of a move before it happens. */
export function explainMove(want: Partial<Inputs>, old: Partial<State>): string | undefined {
  const [before, after] = [hypervisorField.safeParse(old.hypervisor), hypervisorField.safeParse(want.hypervisor)];
  if (!before.success || !after.success || before.data === after.data) return undefined;
  const [from, to] = [parseHypervisor(before.data), parseHypervisor(after.data)];
  const cold = whyNotLive(old, { from: from.kind, to: to.kind });
  const way = `moves in place from ${from.node} to ${to.node}`;
  const preseeded = old.preseeded?.some(({ hypervisor }) => hypervisor === after.data) === true;
  const there = preseeded ? `; its base${old.overlay ? " and overlay are" : " is"} there already` : "";
  if (cold !== undefined) {
    const ahead = from.kind === "lxd" && to.kind === "lxd" && (old.state ?? "running") === "running";
    const load = `what ${to.node} ${ahead ? "still " : ""}lacks of its disk and volumes is sent`;
    const copied = ahead ? "it is copied while it runs, then " : "";
    return `${way} (cold, as ${cold}): ${copied}it stops, ${from.kind === to.kind ? load : "its state files and volumes are sent"}, and it starts at ${to.node}${there}`;
  }
  const { lastMove } = old;
  // only its last move tells how much of it is its own; of that, too, a preseeded node may have a copy
  const own = lastMove && lastMove.bytesSent - (preseeded ? (lastMove.bytesSupplied ?? 0) : 0);
  const load = lastMove?.mode === "live" && own !== undefined ? `, ${preseeded ? "at most" : "about"} ${Math.ceil(own / 1e6)} MB` : "";
  return `${way} (live${load}): it runs while it is copied, then ${pauseOf(want.handoff)}, and goes on at ${to.node}${there}`;
}

function whyNotLive({ state }: Partial<State>, kinds: { from: Kind; to: Kind }): string | undefined {
  if (kinds.from !== kinds.to) return `${kinds.from} and ${kinds.to} have no running state in common`;
  if (!abilitiesOf[kinds.from].includes("live")) return `a cloudlet of kind ${kinds.from} moves only while it is stopped`;
  return state === undefined || state === "running" ? undefined : `it is ${state}`;
}

function pauseOf(budget: Inputs["handoff"] | undefined): string {
  if (budget === undefined) return "pauses";
  const most = `pauses for ${budget.maxDowntimeMillis} ms at most`;
  const ways = {
    throttle: `${most}, slowed down before if it must be`,
    proceed: `pauses, for ${budget.maxDowntimeMillis} ms if that can be kept`,
    abort: `${most} or stays where it is`,
  };
  return ways[budget.onExceeded];
}

interface Ends {
  id: string;
  from: string;
  to: string;
  /** What the source has. */
  here: InstanceStatus;
  source: AgentClient;
  target: AgentClient;
}

async function handOver(
  { id, from, to, here, source, target }: Ends,
  { want, old }: { want: Inputs; old: Inputs },
  context: Context,
): Promise<void> {
  const declared = toSpec(want);
  // what comes along is what is there; how to tell that it answers may have been corrected since
  const spec =
    here.spec.kind === declared.kind
      ? { ...here.spec, ports: declared.ports, ready: declared.ready }
      : { ...declared, volumes: here.spec.volumes };
  const epoch = here.ownership.role === "released" ? here.ownership.epoch : here.ownership.epoch + 1;
  context.status(`moving ${id} from ${from} to ${to}: preparing`);
  // the source can hand on its own base, and has none for the other kind
  if (here.spec.kind !== declared.kind) await supply(want, context);
  const prepared = await target.run("move.prepare", { spec, epoch, from }, follow(context));
  const addresses = [...new Set([want.nodeAddress, want.connection.host, ...prepared.addresses])];
  const args = { id, epoch, self: from, target: { node: to, ...prepared, addresses }, budget: want.handoff };
  const options = { ...follow(context), timeoutMillis: 3_600_000 };
  try {
    await source.run("move.run", { ...args, route: "direct" }, options);
  } catch (error) {
    // the source could not reach the target: the data goes through this machine's two SSH connections
    if (codeOf(error) !== "UNREACHABLE") throw error;
    context.status(`${from} cannot reach ${to} directly; sending through this machine`);
    const ends = { from: await context.host(old.connection), to: await context.host(want.connection) };
    const relay = await openRelay(ends, context.signal);
    await source.run("move.run", { ...args, route: "operator", relayPort: relay.port }, options).finally(() => relay.close());
    if (here.spec.ports.length > 0) context.warn(`${from} does not pass clients on to ${to}, as it cannot reach it directly`);
  }
}

async function sourceAgent(
  { id, old, arrived }: { id: string; old: Inputs; arrived: boolean },
  context: Context,
): Promise<AgentClient | undefined> {
  try {
    return await context.agent(old.connection);
  } catch (error) {
    if (!arrived || codeOf(error) !== "UNREACHABLE") throw error;
    context.warn(
      `the copy of "${id}" left on ${old.hypervisor} could not be removed; its node does not answer, and removes it by itself when it is back`,
    );
    return undefined;
  }
}
