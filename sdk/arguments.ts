import * as pulumi from "@pulumi/pulumi";
import { traits } from "./properties.ts";

export type TypeName = keyof typeof traits;

/** Whether a resource itself was given, and not what stands for it. */
export function isResource<T extends pulumi.CustomResource>(given: T | pulumi.Input<unknown> | undefined): given is T {
  return pulumi.CustomResource.isInstance(given);
}

/** An argument that is undefined must not hide what comes from the resource that is named. */
export function defined(args: object): object {
  return Object.fromEntries(Object.entries(args).filter(([, value]) => value !== undefined));
}

/** The arguments with their secrets marked, the owner, and every output's name. */
export function propertiesOf(type: TypeName, args: object): pulumi.Inputs {
  const { outputs, secrets } = traits[type];
  const given = Object.entries({ ...args, owner: `${pulumi.getProject()}/${pulumi.getStack()}` });
  return {
    // pulumi resolves only those outputs whose names it is given
    ...Object.fromEntries(outputs.map((output) => [output, undefined])),
    ...Object.fromEntries(given.map(([key, value]) => [key, marked(value, below(secrets, key))])),
  };
}

/** Options with the secret outputs of the type, and with its name behind the other door, so that a stack may change doors. */
export function optionsOf(
  type: TypeName,
  { elsewhere, options = {} }: { elsewhere: string; options: pulumi.CustomResourceOptions | undefined },
): pulumi.CustomResourceOptions {
  return {
    ...options,
    aliases: [...(options.aliases ?? []), { type: elsewhere }],
    additionalSecretOutputs: [...(options.additionalSecretOutputs ?? []), ...traits[type].secretOutputs],
  };
}

// only the secret parts are marked, so that the rest stays readable in a preview
function marked(value: unknown, paths: string[][]): unknown {
  if (paths.length === 0 || value === undefined || value === null) return value;
  if (paths.some((path) => path.length === 0)) return pulumi.secret(value);
  if (isDeferred(value)) {
    return pulumi.output(value).apply((plain) => (holdsSecret(plain, paths) ? pulumi.secret(plain) : plain));
  }
  if (Array.isArray(value)) return value.map((item: unknown) => marked(item, below(paths, "*")));
  if (typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, marked(item, [...below(paths, key), ...below(paths, "*")])]));
}

function holdsSecret(value: unknown, paths: string[][]): boolean {
  if (paths.length === 0 || value === undefined || value === null) return false;
  if (paths.some((path) => path.length === 0)) return true;
  if (typeof value !== "object") return false;
  return Object.entries(value).some(([key, item]) => holdsSecret(item, [...below(paths, key), ...below(paths, "*")]));
}

function isDeferred(value: unknown): value is Promise<object> {
  return pulumi.Output.isInstance(value) || value instanceof Promise;
}

function below(paths: string[][], step: string): string[][] {
  return paths.filter(([first]) => first === step).map((path) => path.slice(1));
}
