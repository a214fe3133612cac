import type { Handoff } from "../agent/handoffProtocol.ts";
import type { ExecRequest, InstanceExecResult } from "../agent/protocol.ts";
import type { Context } from "../core/context.ts";
import { describeError } from "../core/errors.ts";
import type { ConnectionSettings } from "../transport/types.ts";

/** What can be done with a cloudlet besides declaring it. */
export function cloudletFunctions(open: () => Context) {
  const onAgent = async <T>(
    connection: ConnectionSettings,
    call: (agent: Awaited<ReturnType<Context["agent"]>>, options: { signal: AbortSignal }) => Promise<T>,
  ): Promise<T> => {
    const context = open();
    try {
      return await call(await context.agent(connection), { signal: context.signal });
    } catch (error) {
      throw new Error(describeError(error), { cause: error });
    }
  };
  return {
    exec: (connection: ConnectionSettings, id: string, request: ExecRequest): Promise<InstanceExecResult> =>
      onAgent(connection, (agent, options) => agent.exec(id, request, options)),
    logs: (connection: ConnectionSettings, id: string, lines: number): Promise<string> =>
      onAgent(connection, (agent, options) => agent.log(id, lines, options)),
    handoffs: (connection: ConnectionSettings, id: string): Promise<Handoff[]> =>
      onAgent(connection, (agent, options) => agent.handoffs(id, options)),
    snapshot: (connection: ConnectionSettings, id: string, snapshot: string): Promise<void> =>
      onAgent(connection, async (agent, options) => void (await agent.run("instance.snapshot", { id, snapshot }, options))),
    restore: (connection: ConnectionSettings, id: string, snapshot: string): Promise<void> =>
      onAgent(connection, async (agent, options) => void (await agent.run("instance.restore", { id, snapshot }, options))),
    restart: (connection: ConnectionSettings, id: string): Promise<void> =>
      onAgent(connection, async (agent, options) => void (await agent.run("instance.restart", { id }, options))),
  };
}
