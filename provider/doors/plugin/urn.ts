import { CloudletError } from "../../core/errors.ts";

export interface Subject {
  urn: string;
  /** `cloudlet:index:Node` */
  token: string;
  /** The Pulumi name. */
  name: string;
  /** `project/stack` */
  owner: string;
}

/** `urn:pulumi:STACK::PROJECT::PARENT$TYPE::NAME` */
export function parseUrn(urn: string): Subject {
  const [, stack, project, types, name] = /^urn:pulumi:(.*?)::(.*?)::(.*?)::(.*)$/s.exec(urn) ?? [];
  if (stack === undefined || project === undefined || types === undefined || name === undefined)
    throw new CloudletError("BUG", `the engine named a resource by "${urn}", which is no URN`);
  return { urn, token: types.split("$").at(-1) ?? types, name, owner: `${project}/${stack}` };
}
