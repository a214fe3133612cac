import { z } from "zod";
import { factsSchema } from "../agent/factsProtocol.ts";
import { hypervisorStatusSchema } from "../agent/protocol.ts";
import type { AgentClient } from "../agent/clientTypes.ts";
import type { Context } from "../core/context.ts";
import { defineFunction } from "../core/define.ts";
import { CloudletError, describeError } from "../core/errors.ts";
import { connectionSchema } from "../resources/shared.ts";

const connection = connectionSchema.describe("How to reach the node.");

export const getNode = defineFunction({
  token: "cloudlet:index:getNode",
  description: "What a commissioned gateway is at the moment.",
  inputs: z.strictObject({ connection }),
  outputs: z.strictObject({
    machineId: z.string().describe("Identifies the machine."),
    hostKeyFingerprint: z.string().describe("SHA256 fingerprint of the host key that was verified."),
    facts: factsSchema.describe("Cores, memory, processor, kernel, disks, virtualisation."),
    agentStartedAt: z.string().describe("When the node's agent was started, as ISO 8601."),
  }),
  async run({ connection }, context) {
    const host = await context.host(connection);
    const agent = await context.agent(connection);
    const [facts, info] = await Promise.all([agent.facts(context), agent.info(context)]);
    return { machineId: facts.machineId, hostKeyFingerprint: host.hostKeyFingerprint, facts, agentStartedAt: info.startedAt };
  },
});

export const getHypervisor = defineFunction({
  token: "cloudlet:index:getHypervisor",
  description: "The hypervisor of a node, and the cloudlets that the node owns, whoever declared them.",
  inputs: z.strictObject({ connection }),
  outputs: hypervisorStatusSchema.extend({
    cores: z.int().describe("Processor cores of the node."),
    memoryMib: z.int().describe("Memory of the node in MiB."),
  }),
  async run({ connection }, context) {
    const agent = await context.agent(connection);
    const [status, facts] = await Promise.all([agent.hypervisor(context), agent.facts(context)]);
    if (status === undefined)
      throw new CloudletError("NOT_FOUND", `${agent.label} has no hypervisor`, { fix: "declare a Hypervisor on that node" });
    return { ...status, cores: facts.cores, memoryMib: facts.memoryMib };
  },
});

const usageSchema = z.object({
  name: z.string().describe("As it was given."),
  reached: z.boolean().describe("Whether the node has answered in time; where not, `problem` says why, and the numbers are 0."),
  problem: z.string().describe("Empty where there is none."),
  cloudlets: z.int().describe("Cloudlets that run there."),
  cores: z.int().describe("Processor cores of the node."),
  coresUsed: z.int().describe("Cores given to running cloudlets; more than there are means that they share."),
  memoryMib: z.int().describe("Memory of the node in MiB."),
  memoryUsedMib: z.int().describe("Memory given to running cloudlets, in MiB."),
  diskFreeMib: z.int().describe("Free on the disk that holds the node's store, in MiB."),
});
type Usage = z.infer<typeof usageSchema>;

export const getUtilization = defineFunction({
  token: "cloudlet:index:getUtilization",
  description: "How much of each node is given away. All nodes are asked at the same time; one that does not answer is part of the result.",
  inputs: z.strictObject({
    nodes: z
      .array(z.strictObject({ name: z.string().min(1).describe("A word for it in the result."), connection }))
      .min(1)
      .describe("The nodes that are asked."),
    timeoutSeconds: z.int().min(1).max(600).default(15).describe("Seconds after which a node counts as one that does not answer."),
  }),
  outputs: z.strictObject({ usage: z.array(usageSchema).describe("In the order in which they were given.") }),
  async run({ nodes, timeoutSeconds }, context) {
    const usages = nodes.map(async ({ name, connection }): Promise<Usage> => {
      try {
        const agent = within(timeoutSeconds, context.agent(connection));
        return { name, reached: true, problem: "", ...(await within(timeoutSeconds, usageOf(await agent, context))) };
      } catch (error) {
        context.signal.throwIfAborted();
        return { name, reached: false, problem: describeError(error), ...nothing };
      }
    });
    return { usage: await Promise.all(usages) };
  },
});

type Numbers = Omit<Usage, "name" | "reached" | "problem">;

const nothing: Numbers = { cloudlets: 0, cores: 0, coresUsed: 0, memoryMib: 0, memoryUsedMib: 0, diskFreeMib: 0 };

async function usageOf(agent: AgentClient, context: Context): Promise<Numbers> {
  const [facts, instances] = await Promise.all([agent.facts(context), agent.instances(context)]);
  const running = instances.filter(({ status, ownership }) => status === "running" && ownership.role === "owner");
  const sum = (of: "cores" | "memoryMib"): number => running.reduce((total, { spec }) => total + spec.resources[of], 0);
  // the longest mount point comes first, as /var may be a disk of its own
  const disks = facts.disks.filter(({ mount }) => "/var/lib/cloudlet".startsWith(mount)).sort((a, b) => b.mount.length - a.mount.length);
  return {
    cloudlets: running.length,
    cores: facts.cores,
    coresUsed: sum("cores"),
    memoryMib: facts.memoryMib,
    memoryUsedMib: sum("memoryMib"),
    diskFreeMib: disks[0]?.freeMib ?? 0,
  };
}

/** What is late is given up; what it was waiting for ends by its own deadline. */
async function within<T>(seconds: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new CloudletError("TIMEOUT", `no answer within ${seconds} s`)), seconds * 1000);
  });
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}
