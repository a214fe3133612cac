import type { Login, Makings, OverlayStatus } from "../agent/protocol.ts";
import type { Context } from "../core/context.ts";
import { codeOf } from "../core/errors.ts";
import type { Reach } from "./images.ts";
import { bring, follow } from "./supply.ts";

/** An overlay that a node should keep under a name. */
export interface Kept {
  name: string;
  owner: string;
  builder: Reach;
  makings: Makings;
  /** How to get into a guest without a guest agent. */
  login?: Login | undefined;
  /** What came of the same makings before, if it is known; and who may have it. */
  earlier: string | undefined;
  givers: readonly Reach[];
}

const buildMillis = 3_000_000;

/** The same overlay is not built again: it stays, or is taken from a node that has it; else the node builds it. */
export async function keepOrBuild(
  { name, owner, builder, makings, login, earlier, givers }: Kept,
  context: Context,
): Promise<OverlayStatus> {
  const agent = await context.agent(builder.connection);
  if (earlier !== undefined) {
    const kept = await agent.overlay(name, owner);
    if (kept?.digest === earlier) return kept;
    const wanted = { what: `overlay "${name}"`, digests: [earlier], taker: builder, givers };
    if (await reached(bring(wanted, undefined, context))) {
      return agent.run("overlay.keep", { name, owner, digest: earlier }, follow(context));
    }
  }
  return agent.run("overlay.build", { name, owner, makings, ...(login && { login }) }, { ...follow(context), timeoutMillis: buildMillis });
}

async function reached(brought: Promise<unknown>): Promise<boolean> {
  try {
    await brought;
    return true;
  } catch (error) {
    if (codeOf(error) !== "NOT_FOUND") throw error;
    return false;
  }
}
