import type { AgentClient, CallOptions } from "../agent/clientTypes.ts";
import type { Arrival, Offer } from "../agent/protocol.ts";
import type { Context, LocalBlob } from "../core/context.ts";
import { CloudletError, codeOf, describeError } from "../core/errors.ts";
import type { Reach } from "./images.ts";
import { openRelay } from "./relay.ts";
import { parseHypervisor } from "./shared.ts";

/** Blobs that a node should have, and who may have them. An overlay's digest stands for all its blobs. */
export interface Wanted {
  /** For messages: `base of cloudlet "visits/counter"`. */
  what: string;
  digests: string[];
  taker: Reach;
  givers: readonly Reach[];
}

export const transferMillis = 3_600_000;

/** What a long call shows of itself. */
export function follow({ signal, status }: Pick<Context, "signal" | "status">): CallOptions {
  return { signal, onEvent: (event) => event.type === "progress" && status(event.text) };
}

export function lacking(agent: AgentClient, digests: readonly string[]): Promise<string[]> {
  return Promise.all(digests.map(async (digest) => ((await agent.hasBlob(digest)) ? [] : [digest]))).then((found) => found.flat());
}

/**
 * Brings blobs to a node: from a neighbour that has them, else from the operator's machine. undefined = nothing had to
 * be sent. A neighbour that is silent or fails is no reason to give up while the operator's machine has them.
 */
export async function bring(
  wanted: Wanted,
  local: (() => Promise<LocalBlob[]>) | undefined,
  context: Context,
): Promise<Arrival | undefined> {
  const agent = await context.agent(wanted.taker.connection);
  const digests = await lacking(agent, wanted.digests);
  if (digests.length === 0) return undefined;
  const taken = await withOffers({ ...wanted, digests }, context, (offers) => fetchFrom(agent, { ...wanted, digests, offers }, context));
  if (taken) return taken;
  if (local === undefined) {
    throw new CloudletError("NOT_FOUND", `${nodeOf(wanted.taker)} lacks the ${wanted.what}, and no node that has it can be reached`, {
      fix: "bring a node that has it back, or have it built anew",
    });
  }
  return sendFrom(agent, { what: wanted.what, blobs: await local() }, context);
}

async function fetchFrom(
  agent: AgentClient,
  { what, digests, offers }: Wanted & { offers: Offer[] },
  context: Context,
): Promise<Arrival | undefined> {
  if (offers.length === 0) return undefined;
  context.status(`${agent.label} takes the ${what} from ${offers.map(({ node }) => node).join(" or ")}`);
  try {
    const { bytesTransferred, from } = await agent.run(
      "blobs.fetch",
      { digests, offers },
      { ...follow(context), timeoutMillis: transferMillis },
    );
    return { bytesTransferred, from: from.join(", ") };
  } catch (error) {
    if (context.signal.aborted) throw error;
    context.status(`${agent.label} could not take the ${what} from another node: ${describeError(error)}`);
    return undefined;
  }
}

async function sendFrom(agent: AgentClient, { what, blobs }: { what: string; blobs: LocalBlob[] }, context: Context): Promise<Arrival> {
  let bytesTransferred = 0;
  for (const blob of blobs) {
    if (await agent.hasBlob(blob.digest)) continue;
    context.status(`sending the ${what} (${(blob.bytes / 1e6).toFixed(1)} MB) to ${agent.label}`);
    await agent.putBlob(blob, { signal: context.signal });
    bytesTransferred += blob.bytes;
  }
  return { bytesTransferred, from: "operator" };
}

/** Has the givers offer what they have of it for as long as `work` lasts; each is reached directly, or through this machine. */
export async function withOffers<T>(wanted: Wanted, context: Context, work: (offers: Offer[]) => Promise<T>): Promise<T> {
  const relays: { close(): Promise<void> }[] = [];
  const givers = new Map(wanted.givers.map((giver) => [nodeOf(giver), giver]));
  givers.delete(nodeOf(wanted.taker));
  const offers: Offer[] = [];
  try {
    for (const giver of givers.values()) {
      const offer = await offerOf(giver, wanted, context);
      if (offer === undefined) continue;
      const relay = await relayTo(giver, wanted.taker, context);
      if (relay) relays.push(relay);
      offers.push({ ...offer, ...(relay && { relayPort: relay.port }) });
    }
    return await work(offers);
  } finally {
    await Promise.all(relays.map((relay) => relay.close().catch(() => undefined)));
  }
}

/** undefined = it has nothing of it, or cannot be asked now. */
async function offerOf(giver: Reach, { what, digests }: Wanted, context: Context): Promise<Offer | undefined> {
  try {
    const agent = await context.agent(giver.connection);
    const missing = new Set(await lacking(agent, digests));
    const there = digests.filter((digest) => !missing.has(digest));
    if (there.length === 0) return undefined;
    const prepared = await agent.run("blobs.offer", { digests: there, seconds: transferMillis / 1000 }, { signal: context.signal });
    const addresses = [...new Set([giver.nodeAddress, giver.connection.host, ...prepared.addresses])];
    return { ...prepared, node: nodeOf(giver), addresses };
  } catch (error) {
    if (context.signal.aborted) throw error;
    context.status(`${nodeOf(giver)} cannot hand on the ${what} now: ${describeError(error)}`);
    return undefined;
  }
}

async function relayTo(giver: Reach, taker: Reach, context: Context): Promise<Awaited<ReturnType<typeof openRelay>> | undefined> {
  try {
    const ends = { from: await context.host(taker.connection), to: await context.host(giver.connection) };
    return await openRelay(ends, context.signal);
  } catch (error) {
    // sshd may forbid forwarding; then the nodes must reach each other
    if (context.signal.aborted || codeOf(error) === "BUG") throw error;
    return undefined;
  }
}

export function nodeOf({ hypervisor }: Pick<Reach, "hypervisor">): string {
  return parseHypervisor(hypervisor).node;
}
