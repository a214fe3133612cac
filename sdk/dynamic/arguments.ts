import * as pulumi from "@pulumi/pulumi";
import { traits, type Traits } from "./properties.ts";
import { providers } from "./providers.ts";

interface Registered {
  name: string;
  /** The arguments, completed. */
  given: object;
  options: pulumi.CustomResourceOptions | undefined;
}

/** What a class hands to its base class. */
export function registration(
  type: keyof typeof providers,
  { name, given, options }: Registered,
): [pulumi.dynamic.ResourceProvider, string, pulumi.Inputs, pulumi.CustomResourceOptions, string, string] {
  return [providers[type], name, propertiesOf(traits[type], name, given), optionsOf(traits[type], options), "cloudlet", type];
}

/** An argument that is undefined must not hide what comes from the resource that is named. */
export function defined(args: object): object {
  return Object.fromEntries(Object.entries(args).filter(([, value]) => value !== undefined));
}

/** The arguments with their secrets marked, the name's default, the owner, and every output's name. */
function propertiesOf(traits: Traits, name: string, args: object): pulumi.Inputs {
  const given = Object.entries({ name, ...args, owner: `${pulumi.getProject()}/${pulumi.getStack()}` });
  return {
    // pulumi resolves only those outputs whose names it is given
    ...Object.fromEntries(traits.outputs.map((output) => [output, undefined])),
    ...Object.fromEntries(given.map(([key, value]) => [key, marked(value, below(traits.secrets, key))])),
  };
}

/** Options with the secret outputs of the type added. */
function optionsOf(traits: Traits, options: pulumi.CustomResourceOptions = {}): pulumi.CustomResourceOptions {
  return { ...options, additionalSecretOutputs: [...(options.additionalSecretOutputs ?? []), ...traits.secretOutputs] };
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
