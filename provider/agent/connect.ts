import { CloudletError, codeOf } from "../core/errors.ts";
import type { RemoteHost, Rest } from "../transport/types.ts";
import { bringUpAgent, digestOfFile, gatherFacts } from "./agentService.ts";
import type { Watch } from "./agentService.ts";
import { createAgentClient } from "./client.ts";
import type { AgentClient } from "./clientTypes.ts";
import { protocolVersion } from "./protocol.ts";

/** The agent of a commissioned node, brought up to date or started where needed. NOT_FOUND where the node was never commissioned. */
export async function connectAgent(host: RemoteHost, rest: Rest, { bundle, ...watch }: Watch & { bundle: string }): Promise<AgentClient> {
  const client = createAgentClient(rest);
  const info = await client.info({ signal: watch.signal, timeoutMillis: 20_000 }).catch((error: unknown) => {
    // no answer may only mean that the agent is not running: the next command on the node tells
    if (["UNREACHABLE", "TIMEOUT", "BUG", "FAILED"].includes(codeOf(error))) return undefined;
    throw error;
  });
  if (info?.protocol === protocolVersion && info.digest === digestOfFile(bundle)) return client;
  const facts = await gatherFacts(host, watch);
  if (facts.record === undefined)
    throw new CloudletError("NOT_FOUND", `${host.label} is not commissioned`, { fix: "declare a Node for it" });
  await bringUpAgent(host, { bundle, facts }, watch);
  return client;
}
