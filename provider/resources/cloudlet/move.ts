import { dataPort, type MoveReport, type MoveTarget } from "../../agent/protocol.ts";
import type { AgentClient, CallOptions } from "../../agent/clientTypes.ts";
import type { Context } from "../../core/context.ts";
import { CloudletError, codeOf } from "../../core/errors.ts";
import type { RemoteHost } from "../../transport/types.ts";
import { parseHypervisor } from "../shared.ts";
import type { Inputs, State } from "./fields.ts";
import { idOf, toSpec } from "./spec.ts";

/**
 * Moves a cloudlet from where the state says it is to where the program wants it. Ownership passes between the two
 * agents, who finish a move that has begun even when this process dies; run again, it joins or continues that move.
 */
export async function move(want: Inputs, old: Inputs & Partial<State>, context: Context): Promise<void> {
  const id = idOf(want);
  const from = parseHypervisor(old.hypervisor).node;
  const to = parseHypervisor(want.hypervisor).node;
  const target = await context.agent(want.connection);
  const there = await target.instance(id);
  const source = await sourceAgent({ id, old, arrived: there?.ownership.role === "owner" }, context);
  if (source === undefined) return;

  const here = await source.instance(id);
  if (
    here === undefined ||
    (here.ownership.role === "released" && here.ownership.peer === to && there?.ownership.role === "owner" && here.status === "missing")
  ) {
    if (there?.ownership.role === "owner") return;
    throw new CloudletError("NOT_FOUND", `neither ${from} nor ${to} has cloudlet "${id}"`, {
      fix: "run `pulumi refresh`, which will drop it from the state, then `pulumi up` to make it anew",
    });
  }
  if (here.ownership.role === "released" && here.ownership.peer !== to) {
    throw new CloudletError("REFUSED", `cloudlet "${id}" has moved from ${from} to ${here.ownership.peer}`, {
      fix: `set hypervisor to the one on ${here.ownership.peer} and run \`pulumi up\`, then move it from there`,
    });
  }

  const spec = here.spec.kind === toSpec(want).kind ? { ...here.spec, ports: toSpec(want).ports } : toSpec(want);
  const epoch = here.ownership.role === "released" ? here.ownership.epoch : here.ownership.epoch + 1;
  const follow: CallOptions = { signal: context.signal, onEvent: (event) => event.type === "progress" && context.status(event.text) };
  context.status(`moving ${id} from ${from} to ${to}: preparing`);
  const prepared = await target.run("move.prepare", { spec, epoch, from }, follow);
  const run = (route: MoveReport["route"], way: Omit<MoveTarget, "node">) =>
    source.run("move.run", { id, epoch, self: from, target: { node: to, ...way }, route }, { ...follow, timeoutMillis: 3_600_000 });
  const addresses = [want.nodeAddress, want.connection.host, ...prepared.addresses].filter(
    (address, index, all) => all.indexOf(address) === index,
  );
  try {
    await run("direct", { ...prepared, addresses });
  } catch (error) {
    // the source could not reach the target: the data goes through this machine's two SSH connections
    if (codeOf(error) !== "UNREACHABLE") throw error;
    context.status(`${from} cannot reach ${to} directly; sending through this machine`);
    const ends = { source: await context.host(old.connection), target: await context.host(want.connection) };
    await throughOperator(ends, context.signal, (port) => run("operator", { ...prepared, addresses: ["127.0.0.1"], port }));
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

async function throughOperator<T>(
  ends: { source: RemoteHost; target: RemoteHost },
  signal: AbortSignal,
  run: (port: number) => Promise<T>,
): Promise<T> {
  const relay = await ends.source.listenTcp((stream) => {
    ends.target.openTcp("127.0.0.1", dataPort, signal).then(
      (onward) => {
        stream.pipe(onward).pipe(stream);
        stream.on("error", () => onward.destroy()).on("close", () => onward.destroy());
        onward.on("error", () => stream.destroy()).on("close", () => stream.destroy());
      },
      () => stream.destroy(),
    );
  });
  try {
    return await run(relay.port);
  } finally {
    await relay.close();
  }
}
