import { z } from "zod";
import { defineResource } from "../core/define.ts";
import { CloudletError } from "../core/errors.ts";
import { nameField, ownerField } from "./shared.ts";

const inputs = z.strictObject({
  name: nameField.describe("Name of the cluster; cloudlet ids begin with it. Default: the Pulumi name.").meta({ replaces: true }),
  owner: ownerField,
  application: z.string().min(1).describe("The one application that the cluster's cloudlets serve.").meta({ replaces: true }),
  description: z.string().optional().describe("Free text for people."),
});

/** The nodes that serve one application: a name and a rule, nothing on any node. */
export const edgeCluster = defineResource({
  token: "cloudlet:index:EdgeCluster",
  description:
    "The nodes that serve one application. Every cloudlet belongs to a cluster; a second application on a cluster is refused in preview.",
  inputs,
  outputs: z.looseObject({}),
  inStateOnly: true,
  identity: ({ name }) => name,
  // nothing is on any node, so the id says all of it
  adopt({ id, owner }) {
    const [, name, application] = /^([^@]+)@(.+)$/s.exec(id) ?? [];
    const parsed = inputs.safeParse({ name, owner, application });
    if (parsed.success) return Promise.resolve(parsed.data);
    throw new CloudletError("INVALID", `"${id}" does not say what is to be imported`, {
      fix: "give it as NAME@APPLICATION, as no node knows which application a cluster serves; or declare it",
    });
  },

  // a cluster exists in state only, so what is known is what is true
  observe: async (known) => known,
  apply: async () => {},
  remove: async () => {},
});
