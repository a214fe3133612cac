import { z } from "zod";
import { factsSchema } from "../agent/factsProtocol.ts";
import type { Context } from "../core/context.ts";
import { defineResource, type Issue } from "../core/define.ts";
import { CloudletError } from "../core/errors.ts";
import {
  connectionSchema,
  mustBelong,
  nameField,
  onUnreachableField,
  ownerField,
  parseAdopted,
  removeOrForget,
  statusField,
} from "./shared.ts";

const inputs = z.strictObject({
  name: nameField
    .describe("Name of the gateway; hypervisors are `NAME/kvm` or `NAME/lxd`. Default: the Pulumi name.")
    .meta({ replaces: true }),
  owner: ownerField,
  connection: connectionSchema.describe(
    "How to reach the machine by SSH. Hypervisors, cloudlets and volumes on this node use the same connection.",
  ),
  address: z.string().min(1).optional().describe("Address that clients of the node's cloudlets use. Default: `connection.host`."),
  install: z.enum(["auto", "never"]).default("auto").describe("Whether missing Debian packages are installed, or named in an error."),
  onUnreachable: onUnreachableField,
  status: statusField,
});

const outputs = z.strictObject({
  machineId: z.string().describe("Identifies the machine; a node never silently becomes another machine."),
  hostKeyFingerprint: z.string().describe("SHA256 fingerprint of the host key that was verified."),
  facts: factsSchema.describe("What the machine is: cores, memory, processor, kernel, disks, virtualisation."),
  addedPackages: z.array(z.string()).describe("Packages that commissioning installed; delete removes exactly these."),
});

type Known = z.infer<typeof inputs> & Partial<z.infer<typeof outputs>>;

/** A bare-metal edge gateway: create commissions it, delete leaves the host as it was. */
export const node = defineResource({
  token: "cloudlet:index:Node",
  description:
    "A bare-metal edge gateway. Create commissions it over SSH (facts, packages, agent), delete decommissions it and leaves the host as it was.",
  inputs,
  outputs,
  identity: ({ name }) => name,

  constraints({ name, connection }, { declared }) {
    const issues: Issue[] = [];
    for (const [other, node] of declared("cloudlet:index:Node")) {
      const there = connectionSchema.safeParse(node["connection"]);
      if (other === name || !there.success || !connection) continue;
      const same =
        there.data.host === connection.host &&
        (there.data.port ?? 22) === (connection.port ?? 22) &&
        there.data.proxy?.host === connection.proxy?.host;
      if (same)
        issues.push({
          path: "connection.host",
          message: `the node "${other}" is the same machine (${connection.host}); declare each machine once`,
        });
    }
    return issues;
  },

  // a node never becomes another machine
  predict: (_want, old) => (old?.machineId === undefined ? {} : { machineId: old.machineId }),

  async adopt({ id, owner }, context) {
    const [name = "", host = name] = parseAdopted(id, "NAME[@HOST]");
    const found = await context.commission.observe(await context.host({ host }), context);
    if (found === undefined) return undefined;
    mustBelong(`node "${name}"`, { owners: found.record.owners, owner });
    return observe(inputs.parse({ name, owner, connection: { host } }), context);
  },

  observe,

  async apply(want, old, context) {
    const host = await context.host(want.connection);
    if (old?.machineId !== undefined) {
      const now = (await host.run("cat /etc/machine-id 2>/dev/null || true")).trim();
      if (now !== "" && old.machineId !== now) {
        throw new CloudletError("CONFLICT", `${host.label} is not the machine that node "${want.name}" was made on`, {
          fix: "correct connection.host, or declare the new machine as a node of another name",
        });
      }
    }
    await context.commission.apply(host, { owner: want.owner, install: want.install, kinds: [] }, context);
  },

  async remove(have, context) {
    await removeOrForget({ what: `node "${have.name}"`, onUnreachable: have.onUnreachable, context }, async () => {
      const host = await context.host(have.connection);
      await context.commission.remove(host, have.owner, context);
    });
  },
});

async function observe(known: Known, context: Context): Promise<(z.infer<typeof inputs> & z.infer<typeof outputs>) | undefined> {
  const host = await context.host(known.connection);
  const commissioned = await context.commission.observe(host, context);
  // another stack's commissioning is not ours: for this stack the node is not there
  if (!commissioned?.record.owners.includes(known.owner)) return undefined;
  const facts =
    commissioned.problems.length === 0 || known.facts === undefined ? await (await context.agent(known.connection)).facts() : known.facts;
  return {
    ...inputs.strip().parse(known),
    status: commissioned.problems.join("; ") || "ready",
    machineId: facts.machineId,
    hostKeyFingerprint: host.hostKeyFingerprint,
    facts: factsSchema.parse(facts),
    addedPackages: commissioned.record.packages,
  };
}
