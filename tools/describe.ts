import { z } from "zod";
import type { FunctionDefinition, ResourceDefinition } from "../provider/core/define.ts";
import { fieldsOf, type Field, type FieldType } from "../provider/core/fields.ts";

/** A resource with its fields taken apart once: the same field objects, and so the same shapes, for every generator. */
export interface Described {
  definition: Pick<ResourceDefinition, "token" | "description" | "inputs" | "outputs">;
  inputs: readonly Field[];
  outputs: readonly Field[];
}

export function describeResource(definition: ResourceDefinition): Described {
  return { definition, inputs: fieldsOf(definition.inputs), outputs: fieldsOf(definition.outputs) };
}

/** A function as if it were a resource: the generators ask for fields only. */
export function describeFunction(definition: FunctionDefinition): Described {
  return { definition, inputs: fieldsOf(definition.inputs), outputs: fieldsOf(definition.outputs) };
}

/** The provider itself, whose inputs are its configuration. */
export function describeProvider(settings: z.ZodObject): Described {
  const definition = { token: "cloudlet:index:Provider", description: "", inputs: settings, outputs: z.strictObject({}) };
  return { definition, inputs: fieldsOf(settings), outputs: [] };
}

/** `Node` for `cloudlet:index:Node`. */
export function nameOf(definition: Pick<ResourceDefinition, "token">): string {
  return definition.token.split(":").at(-1) ?? definition.token;
}

/** A name for each object type: `Connection` where several resources share it, else `CloudletReady`. */
export function typeNamesOf(resources: Described[]): Map<object, string> {
  const users = new Map<object, Set<string>>();
  const paths = new Map<object, string[]>();
  for (const resource of resources) {
    const note = (shape: object, path: string[]) => {
      users.set(shape, (users.get(shape) ?? new Set()).add(nameOf(resource.definition)));
      if (!paths.has(shape)) paths.set(shape, path);
    };
    for (const field of [...resource.inputs, ...resource.outputs]) visit(field.type, [field.name], note);
  }
  const named = [...paths].map(([shape, path]) => {
    const [first = "", ...others] = users.get(shape) ?? [];
    return [shape, (others.length === 0 ? capitalised(first) : "") + path.map(capitalised).join("")] as const;
  });
  return new Map(named);
}

function visit(type: FieldType, path: string[], note: (shape: object, path: string[]) => void): void {
  if (type.kind === "array") visit(type.items.type, singular(path), note);
  if (type.kind === "record") visit(type.values.type, singular(path), note);
  if (type.kind !== "object") return;
  note(type.shape, path);
  for (const field of type.fields) visit(field.type, [...path, field.name], note);
}

function singular(path: string[]): string[] {
  return [...path.slice(0, -1), (path.at(-1) ?? "").replace(/s$/, "")];
}

export function capitalised(word: string): string {
  return word.charAt(0).toUpperCase() + word.slice(1);
}
