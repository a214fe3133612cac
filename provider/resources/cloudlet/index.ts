import type { InstanceStatus } from "../../agent/protocol.ts";
import { defineResource, type CheckContext, type Issue } from "../../core/define.ts";
import { describeError } from "../../core/errors.ts";
import { parseHypervisor, removeOrForget } from "../shared.ts";
import { constraints } from "./constraints.ts";
import { inputs, outputs, type Inputs, type State } from "./fields.ts";
import { explainMove, move } from "./move.ts";
import { idOf, toSpec } from "./spec.ts";
import { supply } from "./supply.ts";

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
  explain: explainMove,

  async observe(known, context) {
    const agent = await context.agent(known.connection);
    const found = await agent.instance(idOf(known));
    if (found === undefined || found.spec.owner !== known.owner) return undefined;
    return toState(known, found);
  },

  async apply(want, old, context) {
    const finish = old !== undefined && old.hypervisor !== want.hypervisor ? await move(want, old, context) : undefined;
    const agent = await context.agent(want.connection);
    await supply(want, context);
    const fresh = old === undefined;
    await agent.run(
      "instance.apply",
      { spec: toSpec(want), fresh },
      { signal: context.signal, onEvent: (event) => event.type === "progress" && context.status(event.text) },
    );
    await finish?.();
  },

  async remove(have, context) {
    await removeOrForget({ what: `cloudlet "${idOf(have)}"`, onUnreachable: have.onUnreachable, context }, async () => {
      const agent = await context.agent(have.connection);
      await agent.run("instance.remove", { id: idOf(have), owner: have.owner }, { signal: context.signal });
    });
  },
});

async function complete(want: Partial<Inputs>, local: CheckContext): Promise<{ inputs: Partial<Inputs>; issues: Issue[] }> {
  const issues: Issue[] = [];
  const digestOf = async (path: string, pinned: string | undefined, compute: () => Promise<string>): Promise<string | undefined> => {
    try {
      const digest = await compute();
      if (pinned === undefined || pinned === digest) return digest;
      issues.push({
        path: path.replace(/[^.]+$/, "digest"),
        message: `is ${pinned}, and the content has ${digest}; correct the digest or the content`,
      });
    } catch (error) {
      issues.push({ path, message: describeError(error) });
    }
    return pinned;
  };
  const { base, build } = want;
  const baseDigest = base && (await digestOf("base.file", base.digest, () => local.digestFile(base.file)));
  const buildDigest = build && (await digestOf("build.context", build.digest, () => local.digestDirectory(build.context)));
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

/** What is true, in the words of the inputs, so that drift shows as a difference. */
function toState(known: Inputs, found: InstanceStatus): State {
  const { spec, ownership } = found;
  const here = parseHypervisor(known.hypervisor);
  const away = ownership.role === "released" && ownership.peer !== undefined && found.leaving !== true;
  const hypervisor = away ? `${ownership.peer}/${spec.kind}` : known.hypervisor;
  const first = spec.ports[0];
  return {
    ...inputs.strip().parse({ ...known, state: "running" }),
    hypervisor,
    // what the node cannot tell apart from the declaration stays as declared
    state: observedState(known, found),
    base: { ...known.base, digest: spec.base.digest },
    resources: spec.resources,
    ports: spec.ports,
    environment: spec.environment,
    stateFiles: spec.stateFiles,
    endpoint: first ? `${known.nodeAddress}:${first.hostPort}` : "",
    address: found.address,
    node: away ? (ownership.peer ?? here.node) : here.node,
    status: ownership.role === "released" ? `${away ? "moved" : "moving"} to ${ownership.peer ?? "another node"}` : found.status,
    imageDigest: found.imageDigest,
    accelerator: found.accelerator,
    ...(found.lastMove && { lastMove: found.lastMove }),
  };
}

function observedState(known: Inputs, { status, ownership }: InstanceStatus): Inputs["state"] {
  if (ownership.role === "released") return known.state;
  return status === "missing" ? "stopped" : status;
}
