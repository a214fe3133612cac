import { z } from "zod";
import { defineResource, type Issue } from "../core/define.ts";
import type { Context } from "../core/context.ts";
import { CloudletError } from "../core/errors.ts";
import {
  adoptedPlace,
  connectionField,
  hypervisorField,
  nameField,
  onUnreachableField,
  ownerField,
  parseAdopted,
  parseHypervisor,
  mustBelong,
  removeOrForget,
  statusField,
} from "./shared.ts";

const inputs = z.strictObject({
  name: nameField.describe("Name of the volume. Default: the Pulumi name.").meta({ replaces: true }),
  owner: ownerField,
  hypervisor: hypervisorField.describe(
    "The Hypervisor it is made on. An attached volume follows its cloudlet, so give both the same hypervisor.",
  ),
  connection: connectionField,
  sizeMib: z.int().min(8).describe("Size in MiB (not enforced for containers, whose volumes are directories)."),
  retainOnDelete: z
    .boolean()
    .default(false)
    .describe("Whether delete keeps the data on the node; a volume declared again under the same name takes it up."),
  onUnreachable: onUnreachableField,
  status: statusField,
});
type Inputs = z.infer<typeof inputs>;

const outputs = z.strictObject({
  node: z.string().describe("Name of the node it is on."),
  attachedTo: z.string().optional().describe("Id of the cloudlet that has it attached."),
});

/** State that outlives a cloudlet. */
export const volume = defineResource({
  token: "cloudlet:index:Volume",
  description: "State that outlives a cloudlet: made on a node, attached to one cloudlet at a time, and moved along with it.",
  inputs,
  outputs,
  identity: ({ name }) => name,

  constraints({ sizeMib }, _context, old): Issue[] {
    if (sizeMib === undefined || old?.sizeMib === undefined || sizeMib >= old.sizeMib) return [];
    return [
      {
        path: "sizeMib",
        message: `is ${sizeMib}, and the volume has ${old.sizeMib}; a volume only grows, so declare another one to have less`,
      },
    ];
  },

  predict: ({ hypervisor }) => (hypervisor === undefined ? {} : { node: parseHypervisor(hypervisor).node }),

  async adopt({ id, owner }, context) {
    const [name = "", ...place] = parseAdopted(id, "NAME@NODE/KIND[@HOST]");
    const { hypervisor, connection } = adoptedPlace(place);
    const found = await (await context.agent(connection)).volume(name);
    if (found === undefined) return undefined;
    mustBelong(`volume "${name}"`, { owners: [found.spec.owner], owner });
    return observe(inputs.parse({ name, owner, hypervisor, connection, sizeMib: found.spec.sizeMib }), context);
  },

  observe,

  async apply(want, old, context) {
    const awaited = old !== undefined && old.hypervisor !== want.hypervisor && (await attachedElsewhere(old, context));
    const agent = await context.agent(want.connection);
    const { kind } = parseHypervisor(want.hypervisor);
    await agent.run(
      "volume.apply",
      { spec: { id: want.name, owner: want.owner, kind, sizeMib: want.sizeMib }, awaited },
      { signal: context.signal },
    );
  },

  async remove(have, context) {
    await removeOrForget({ what: `volume "${have.name}"`, onUnreachable: have.onUnreachable, context }, async () => {
      const agent = await context.agent(have.connection);
      await agent.run("volume.remove", { id: have.name, owner: have.owner, retain: have.retainOnDelete }, { signal: context.signal });
    });
  },
});

async function observe(known: Inputs, context: Context): Promise<(Inputs & z.infer<typeof outputs>) | undefined> {
  const agent = await context.agent(known.connection);
  const found = await agent.volume(known.name);
  if (found === undefined || found.spec.owner !== known.owner) return undefined;
  const { node } = parseHypervisor(known.hypervisor);
  return {
    ...inputs.strip().parse(known),
    status: "ready",
    sizeMib: found.spec.sizeMib,
    node: found.place === "gone" ? (found.peer ?? node) : node,
    ...(found.attachedTo !== undefined && { attachedTo: found.attachedTo }),
  };
}

/** Whether its cloudlet's move will bring the volume. One that nothing has attached does not travel by itself. */
async function attachedElsewhere(old: Inputs, context: Context): Promise<boolean> {
  const agent = await context.agent(old.connection);
  const found = await agent.volume(old.name);
  if (found === undefined || found.place !== "here") return false;
  if (found.attachedTo === undefined) {
    throw new CloudletError("REFUSED", `volume "${old.name}" is on ${old.hypervisor} and attached to no cloudlet, so nothing carries it`, {
      fix: "attach it to a cloudlet and move that, or declare a new volume on the other hypervisor",
    });
  }
  return true;
}
