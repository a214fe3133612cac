import { z } from "zod";
import { CloudletError } from "./core/errors.ts";
import { parseKnown } from "./core/parse.ts";
import { unknownValue } from "./core/values.ts";
import { connectionDefaultsSchema } from "./resources/shared.ts";

/** What holds for all resources of a provider. Nothing of it is stored with them. */
export const settingsSchema = z.strictObject({
  connection: connectionDefaultsSchema
    .optional()
    .describe(
      "What holds for every connection that does not say otherwise. A connection with a credential of its own takes none from here.",
    ),
  knownHostsFile: z
    .string()
    .min(1)
    .optional()
    .describe(
      "Where host keys are looked up. Default: what CLOUDLET_KNOWN_HOSTS names, else ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts.",
    ),
  storePath: z
    .string()
    .min(1)
    .optional()
    .describe(
      "Where the operator's machine keeps what it downloads and builds. Default: pulumi-cloudlet in XDG_CACHE_HOME, or in ~/.cache.",
    ),
  concurrency: z.int().min(1).optional().describe("Resources that are worked on at the same time. Default: as many as Pulumi begins."),
  operationTimeout: z
    .int()
    .min(1)
    .max(86_400)
    .default(3600)
    .describe("Seconds after which an operation on one resource is given up, where its customTimeouts do not say less."),
});
export type Settings = z.infer<typeof settingsSchema>;

/** Where a setting is taken from that the configuration leaves out; `connection` as JSON. */
const environmentNames: Partial<Record<keyof Settings, string>> = {
  connection: "CLOUDLET_CONNECTION",
  storePath: "CLOUDLET_STORE_PATH",
  concurrency: "CLOUDLET_CONCURRENCY",
  operationTimeout: "CLOUDLET_OPERATION_TIMEOUT",
};

/** The configuration, completed from the environment. INVALID names the setting and what is wrong with it. */
export function readSettings(given: Record<string, unknown>): Settings {
  const { value, issues } = parseSettings(given);
  const [first] = issues;
  if (first) throw new CloudletError("INVALID", `provider configuration: ${first.path}: ${first.message}`);
  return settingsSchema.parse(value);
}

/** What is wrong with a configuration, by its path; what came from the environment is named by its variable. */
export function parseSettings(given: Record<string, unknown>): ReturnType<typeof parseKnown> {
  // the engine adds the version of the SDK, and passes whatever is no text as JSON
  const known = Object.fromEntries(
    Object.entries(given).flatMap(([name, item]) =>
      name === "version" ? [] : [[name, typeof item === "string" && item !== unknownValue ? read(name, item) : item]],
    ),
  );
  const fromEnvironment = Object.entries(environmentNames).flatMap(([name, variable]) => {
    const text = process.env[variable];
    return given[name] === undefined && text !== undefined && text !== "" ? [[name, variable, read(name, text)] as const] : [];
  });
  const { value, issues } = parseKnown(settingsSchema, {
    ...known,
    ...Object.fromEntries(fromEnvironment.map(([name, , item]) => [name, item])),
  });
  const variables = new Map<string, string>(fromEnvironment.map(([name, variable]) => [name, variable]));
  return {
    value,
    issues: issues.map(({ path, message }) => {
      const [name = ""] = path.split(/[.[]/, 1);
      return { path: `${variables.get(name) ?? name}${path.slice(name.length)}`, message };
    }),
  };
}

function read(name: string, text: string): unknown {
  if (name === "concurrency" || name === "operationTimeout") return Number(text);
  if (name !== "connection") return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
