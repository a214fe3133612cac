import { z } from "zod";
import { kindSchema } from "../agent/protocol.ts";
import type { Context } from "../core/context.ts";
import { defineResource, type Issue } from "../core/define.ts";
import { CloudletError } from "../core/errors.ts";
import {
  adoptedPlace,
  connectionField,
  mustBelong,
  nameField,
  nodeAddressField,
  onUnreachableField,
  ownerField,
  parseAdopted,
  parseHypervisor,
  removeOrForget,
  statusField,
} from "./shared.ts";

const inputs = z.strictObject({
  name: nameField.describe("Name used in messages. Default: the Pulumi name.").meta({ replaces: true }),
  owner: ownerField,
  node: nameField.describe("The Node that it runs on; a node runs exactly one hypervisor.").meta({ replaces: true }),
  kind: kindSchema
    .describe(
      "`kvm`: QEMU with hardware acceleration where it works, else software emulation. `lxd`: system containers. Changing it is refused while cloudlets are there.",
    )
    .meta({ replaces: true }),
  connection: connectionField,
  nodeAddress: nodeAddressField,
  install: z
    .enum(["auto", "never"])
    .default("auto")
    .describe("Whether missing Debian packages of the hypervisor are installed, or named in an error."),
  lxd: z
    .strictObject({
      address: z
        .string()
        .regex(/^https:\/\//, 'must begin with "https://"')
        .describe("URL of the LXD API as seen from the operator and the node."),
      clientCertificate: z.string().describe("Client certificate that LXD trusts, PEM."),
      clientKey: z.string().describe("Key of the client certificate, PEM.").meta({ secret: true }),
      serverCertificate: z.string().describe("LXD's own certificate: PEM, or the SHA-256 fingerprint in hex."),
    })
    .optional()
    .describe("An LXD that is reached by HTTPS. Default: the LXD on the node's unix socket."),
  onUnreachable: onUnreachableField,
  status: statusField,
});

type Inputs = z.infer<typeof inputs>;

const outputs = z.strictObject({
  version: z.string().describe("Version that the hypervisor reports."),
  accelerator: z.enum(["kvm", "tcg", "none"]).describe("How guests execute: kvm = hardware, tcg = software emulation, none = containers."),
  capacity: z
    .strictObject({
      cores: z.int().describe("Processor cores of the node."),
      memoryMib: z.int().describe("Memory of the node in MiB."),
      cpuFlags: z.array(z.string()).describe("What the node's processor can do, in the words of /proc/cpuinfo."),
      machineTypes: z.array(z.string()).describe("Machine types that QEMU has here; none for containers."),
    })
    .describe("What a cloudlet here can have at most, and what saved memory can be resumed here."),
});

/** The one hypervisor of a node. */
export const hypervisor = defineResource({
  token: "cloudlet:index:Hypervisor",
  description: "The one hypervisor of a node: QEMU driven over QMP (`kvm`) or LXD driven over its REST API (`lxd`).",
  inputs,
  outputs,
  identity: ({ node, kind }) => `${node}/${kind}`,

  constraints({ name, node, kind, lxd }, { declared }) {
    const issues: Issue[] = [];
    for (const [other, hypervisor] of declared("cloudlet:index:Hypervisor")) {
      if (other !== name && node !== undefined && hypervisor["node"] === node) {
        issues.push({
          path: "node",
          message: `node "${node}" already has the hypervisor "${other}", and a node runs exactly one; remove one of them`,
        });
      }
    }
    if (kind === "kvm" && lxd !== undefined) issues.push({ path: "lxd", message: 'is only for kind "lxd"; remove it' });
    return issues;
  },

  predict: ({ kind }, old) => ({
    ...(kind === "lxd" && { accelerator: "none" as const }),
    // the machine stays the same one
    ...(old?.capacity && old.accelerator && { capacity: old.capacity, accelerator: old.accelerator }),
  }),

  async adopt({ id, name, owner }, context) {
    const { hypervisor, ...reach } = adoptedPlace(parseAdopted(id, "NODE/KIND[@HOST]"));
    const { node, kind } = parseHypervisor(hypervisor);
    const found = await (await context.agent(reach.connection)).hypervisor();
    if (found?.kind !== kind) return undefined;
    mustBelong(`the hypervisor of ${node}`, { owners: found.owners, owner });
    return observe(inputs.parse({ name, owner, node, kind, ...reach }), context);
  },

  observe,

  async apply(want, _old, context) {
    const host = await context.host(want.connection);
    // an LXD that is reached by HTTPS is there already
    await context.commission.apply(host, { owner: want.owner, install: want.install, kinds: want.lxd ? [] : [want.kind] }, context);
    const agent = await context.agent(want.connection);
    if (want.lxd) {
      // a wrong certificate is better met here, from the operator's side, than inside a job
      const rest = await context.lxd(want.connection, want.lxd);
      const answer = await rest.request({ method: "GET", path: "/1.0" });
      answer.body.resume();
      if (answer.status !== 200)
        throw new CloudletError("UNAUTHORIZED", `${rest.label} answered ${answer.status} to the client certificate`, {
          fix: "add the certificate with `lxc config trust add`",
        });
    }
    await agent.run(
      "hypervisor.apply",
      { kind: want.kind, owner: want.owner, ...(want.lxd && { lxd: want.lxd }) },
      { signal: context.signal, onEvent: (event) => event.type === "progress" && context.status(event.text) },
    );
  },

  async remove(have, context) {
    await removeOrForget({ what: `hypervisor "${have.node}/${have.kind}"`, onUnreachable: have.onUnreachable, context }, async () => {
      const agent = await context.agent(have.connection);
      await agent.run("hypervisor.remove", { owner: have.owner }, { signal: context.signal });
    });
  },
});

async function observe(known: Inputs, context: Context): Promise<(Inputs & z.infer<typeof outputs>) | undefined> {
  const agent = await context.agent(known.connection);
  const [status, facts] = await Promise.all([agent.hypervisor(), agent.facts()]);
  if (status?.kind !== known.kind || !status.owners.includes(known.owner)) return undefined;
  return {
    ...inputs.strip().parse(known),
    status: "ready",
    version: status.version,
    accelerator: status.accelerator,
    capacity: { cores: facts.cores, memoryMib: facts.memoryMib, cpuFlags: facts.cpuFlags, machineTypes: status.machineTypes },
  };
}
