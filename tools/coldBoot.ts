import type { Kind } from "../provider/agent/protocol.ts";
import { openContext } from "../provider/runtime.ts";
import type { ConnectionSettings } from "../provider/transport/types.ts";

const owner = "demo/cold";
const id = "demo/cold";

/** Milliseconds until an application answers that boots from its base, on the same node and by the same agent as one that is synthesised there. */
export async function coldBootMillis(
  connection: ConnectionSettings,
  { kind, resembles }: { kind: Kind; resembles: string },
): Promise<number> {
  const silent = { status: () => undefined, warn: () => undefined };
  const agent = await openContext(silent).agent(connection);
  const like = await agent.instance(resembles);
  if (like === undefined) throw new Error(`${agent.label} has no cloudlet ${resembles} to compare with`);
  const { base, resources, ready } = like.spec;
  const nothing = { volumes: [], stateFiles: [], files: [], environment: {} };
  const spec = {
    id,
    owner,
    kind,
    state: "running" as const,
    base,
    resources,
    ...nothing,
    ports: [{ port: 8080, hostPort: 18080, protocol: "tcp" as const }],
  };
  const began = performance.now();
  try {
    await agent.run("instance.apply", { spec: { ...spec, ...(ready && { ready }) }, fresh: true });
    return Math.round(performance.now() - began);
  } finally {
    await agent.run("instance.remove", { id, owner });
  }
}
