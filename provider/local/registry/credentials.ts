import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";

export interface Credentials {
  user: string;
  password: string;
}

const settingsSchema = z.object({
  auths: z.record(z.string(), z.object({ auth: z.string().optional() })).optional(),
  credHelpers: z.record(z.string(), z.string()).optional(),
  credsStore: z.string().optional(),
});
const answerSchema = z.object({ Username: z.string(), Secret: z.string() });

const helperMillis = 20_000;

/** What `docker login` has kept for a registry on the operator's machine; undefined = nothing. */
export async function dockerCredentials(registry: string, directory = settingsDirectory()): Promise<Credentials | undefined> {
  const file = join(directory, "config.json");
  const text = await readFile(file, "utf8").catch(() => "{}");
  const settings = parseSettings(text, file);
  const names = registry === "registry-1.docker.io" ? ["https://index.docker.io/v1/", "docker.io"] : [registry, `https://${registry}`];
  for (const name of names) {
    const helper = settings.credHelpers?.[name] ?? settings.credsStore;
    const found = helper === undefined ? undefined : await askHelper(helper, name);
    const kept = found ?? decode(settings.auths?.[name]?.auth);
    if (kept) return kept;
  }
  return undefined;
}

function settingsDirectory(): string {
  return process.env["DOCKER_CONFIG"] ?? join(homedir(), ".docker");
}

function parseSettings(text: string, file: string): z.infer<typeof settingsSchema> {
  try {
    return settingsSchema.parse(JSON.parse(text));
  } catch (cause) {
    throw new CloudletError("INVALID", `${file} cannot be understood`, { cause, fix: "correct it, or run `docker login` again" });
  }
}

function decode(auth: string | undefined): Credentials | undefined {
  const text = Buffer.from(auth ?? "", "base64").toString("utf8");
  const colon = text.indexOf(":");
  return colon < 0 ? undefined : { user: text.slice(0, colon), password: text.slice(colon + 1) };
}

/** A helper that is absent or knows nothing of the registry is no error: many registries need no credentials. */
function askHelper(name: string, registry: string): Promise<Credentials | undefined> {
  if (!/^[\w.-]+$/.test(name)) return Promise.resolve(undefined);
  return new Promise((resolve) => {
    const child = execFile(`docker-credential-${name}`, ["get"], { timeout: helperMillis }, (error, stdout) => {
      if (error) return resolve(undefined);
      try {
        const { Username, Secret } = answerSchema.parse(JSON.parse(stdout));
        resolve({ user: Username, password: Secret });
      } catch {
        resolve(undefined);
      }
    });
    child.stdin?.on("error", () => undefined);
    child.stdin?.end(registry);
  });
}
