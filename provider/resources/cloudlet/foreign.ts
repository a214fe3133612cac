import type { AgentClient } from "../../agent/clientTypes.ts";
import { guestName, type InstanceStatus } from "../../agent/protocol.ts";
import type { Context } from "../../core/context.ts";
import { parseHypervisorId } from "../shared.ts";
import { follow } from "../supply.ts";
import type { Inputs, State } from "./fields.ts";
import { idOf } from "./spec.ts";

/** A container that was made without us and is to be imported: it has the cloudlet's name, or the one that we would give it. */
export async function findForeign(
  { id, owner, hypervisor }: { id: string; owner: string; hypervisor: string },
  agent: AgentClient,
): Promise<InstanceStatus | undefined> {
  const [, name] = id.split("/");
  if (name === undefined || parseHypervisorId(hypervisor).kind !== "lxd") return undefined;
  return (await agent.foreign({ name, id, owner })) ?? (await agent.foreign({ name: guestName(id), id, owner }));
}

/** The one that was imported, while it is there and nobody has taken it over. */
export async function stillForeign(known: Inputs & Partial<State>, agent: AgentClient): Promise<InstanceStatus | undefined> {
  const { foreign, owner } = known;
  const found = foreign && (await agent.foreign({ name: foreign.name, id: idOf(known), owner }));
  return found?.foreign?.uuid === foreign?.uuid ? found : undefined;
}

/** Makes it a cloudlet where it is, before anything else is done with it. */
export async function takeOver(old: Inputs & Partial<State>, context: Context): Promise<void> {
  if (old.foreign === undefined) return;
  const agent = await context.agent(old.connection);
  await agent.run("instance.adopt", { id: idOf(old), owner: old.owner, foreign: old.foreign }, follow(context));
}

/** What a reviewer should know before the first update. */
export function explainTakeOver({ foreign }: Partial<State>): string | undefined {
  return foreign && `takes over the container "${foreign.name}" with all that is in it: it restarts once, and gets the cloudlets' network`;
}
