import { z } from "zod";
import { moveReportSchema } from "../agent/handoffProtocol.ts";
import { digestSchema, execRequestSchema, execResultSchema, kindSchema, portSchema } from "../agent/protocol.ts";
import { defineFunction } from "../core/define.ts";
import { CloudletError } from "../core/errors.ts";
import { resourcesSchema } from "../resources/guest.ts";
import { connectionSchema } from "../resources/shared.ts";

const place = {
  id: z
    .string()
    .regex(/^[^/]+\/[^/]+$/, 'must be the id of a Cloudlet, such as "faces/server"')
    .describe("Id of the cloudlet."),
  connection: connectionSchema.describe("How to reach the node it is on."),
};

export const getCloudlet = defineFunction({
  token: "cloudlet:index:getCloudlet",
  description: "A cloudlet as its node has it at the moment, whoever declared it.",
  inputs: z.strictObject(place),
  outputs: z.strictObject({
    owner: z.string().describe("The `project/stack` that declared it."),
    kind: kindSchema.describe("The kind of its hypervisor."),
    status: z.string().describe("`running`, `stopped`, `suspended`, or `missing`: recorded, and unknown to the hypervisor."),
    ready: z.boolean().describe("Whether its application answers."),
    address: z.string().describe("Its address on its node."),
    role: z.string().describe("`owner`: it may run here. `incoming`: it is on its way here. `released`: it has moved away."),
    // not an integer, which has 32 bits in some languages
    epoch: z.number().describe("The time of its making, in milliseconds since 1970, and one more with each move."),
    resources: resourcesSchema.describe("What it may use."),
    ports: z.array(portSchema).describe("Ports published on the node."),
    imageDigest: digestSchema.describe("SHA-256 of the base it was made from."),
    accelerator: z.string().describe("How it executes: kvm = hardware, tcg = software emulation, none = container."),
    lastMove: moveReportSchema.optional().describe("The last move: what was sent, and how long the application was away."),
  }),
  async run({ id, connection }, context) {
    const agent = await context.agent(connection);
    const found = await agent.instance(id, context);
    if (found === undefined)
      throw new CloudletError("NOT_FOUND", `${agent.label} has no cloudlet "${id}"`, { fix: "ask the node it is on" });
    const { spec, ownership, status, ready, address, imageDigest, accelerator, lastMove } = found;
    const { owner, kind, resources, ports } = spec;
    const { role, epoch } = ownership;
    return { owner, kind, status, ready, address, role, epoch, resources, ports, imageDigest, accelerator, lastMove };
  },
});

export const getCloudletLogs = defineFunction({
  token: "cloudlet:index:getCloudletLogs",
  description: "The last lines of a cloudlet's console.",
  inputs: z.strictObject({ ...place, lines: z.int().min(1).max(10_000).default(100).describe("How many lines.") }),
  outputs: z.strictObject({ text: z.string().describe("The lines.") }),
  run: async ({ id, connection, lines }, context) => ({ text: await (await context.agent(connection)).log(id, lines, context) }),
});

export const execInCloudlet = defineFunction({
  token: "cloudlet:index:execInCloudlet",
  description:
    "Runs a command in a cloudlet. A non-zero exit code is a result, not an error. In a preview nothing runs, and every field is empty.",
  inputs: z.strictObject({
    ...place,
    command: execRequestSchema.shape.command.describe("Program and arguments; no shell is involved."),
    environment: execRequestSchema.shape.environment.describe("Environment of the command, besides the cloudlet's own."),
    timeoutSeconds: execRequestSchema.shape.timeoutSeconds.default(60).describe("Seconds after which the command is ended."),
  }),
  outputs: execResultSchema,
  inPreview: { stdout: "", stderr: "", exitCode: 0 },
  run: async ({ id, connection, ...request }, context) => (await context.agent(connection)).exec(id, request, context),
});
