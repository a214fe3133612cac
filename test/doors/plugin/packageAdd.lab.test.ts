import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { engineEnvironment } from "../../engine.ts";
import { serveRepository, type GitServer } from "../../gitServer.ts";

const repository = resolve(import.meta.dirname, "../../..");

/** Pulumi leaves out what is empty, so what is compared are names. */
const names = z.record(z.string(), z.unknown()).transform((entries) => Object.keys(entries).sort());
const schemaSchema = z.object({ name: z.string(), version: z.string(), resources: names, functions: names, types: names });

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "cloudlet-add-"));
  await mkdir(join(folder, "backend"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const run = async ([program = "", ...args]: string[], cwd = folder, more: Record<string, string> = {}): Promise<string> => {
  const offline = engineEnvironment(folder);
  const env = { ...process.env, ...offline, PATH: `${join(repository, "test/languageHost")}:${offline["PATH"] ?? ""}`, ...more };
  return (await promisify(execFile)(program, args, { cwd, env, timeout: 240_000, maxBuffer: 16 * 1024 * 1024 })).stdout;
};
const version = async () => (JSON.parse(await readFile(join(repository, "package.json"), "utf8")) as { version: string }).version;

/** A program that names a resource and not where its provider is. */
async function openProject(name: string): Promise<string> {
  const project = join(folder, name);
  await mkdir(project);
  const faces = { type: "cloudlet:EdgeCluster", properties: { application: "face-recognition" } };
  await writeFile(join(project, "Pulumi.yaml"), JSON.stringify({ name, runtime: "yaml", resources: { faces } }));
  await run(["pulumi", "stack", "init", "dev"], project);
  return project;
}

describe("pulumi package", { timeout: 180_000 }, () => {
  it("gets the schema from the package's folder, by PulumiPlugin.yaml", async () => {
    const shown = schemaSchema.parse(JSON.parse(await run(["pulumi", "package", "get-schema", repository])));
    const generated = schemaSchema.parse(JSON.parse(await readFile(join(repository, "schema.json"), "utf8")));
    expect(shown).toEqual(generated);
  });

  it("adds the package's folder to a project, which then previews", async () => {
    const project = await openProject("by-folder");
    await run(["pulumi", "package", "add", repository], project);
    expect(await readFile(join(project, "Pulumi.yaml"), "utf8")).toContain("packages");
    expect(await run(["pulumi", "preview", "--non-interactive"], project)).toContain("+ 2 to create");
  });

  it("adds the plugin that was installed from a tarball", async () => {
    const release = join(folder, "release");
    await run([join(repository, "node_modules/.bin/node"), join(repository, "tools/release.ts"), release]);
    const current = await version();
    const tarball = join(release, `pulumi-resource-cloudlet-v${current}-linux-amd64.tar.gz`);
    await run(["pulumi", "plugin", "install", "resource", "cloudlet", current, "--file", tarball]);
    const project = await openProject("by-tarball");
    const program = join(folder, `home/plugins/resource-cloudlet-v${current}/pulumi-resource-cloudlet`);
    await run(["pulumi", "package", "add", program], project);
    expect(await run(["pulumi", "preview", "--non-interactive"], project)).toContain("+ 2 to create");
  });
});

describe("pulumi package, with the repository's git address", { timeout: 300_000 }, () => {
  let server: GitServer;
  beforeAll(async () => (server = await serveRepository(join(folder, "git"), repository, await version())));
  afterAll(() => server?.close());
  const pulumi = (args: string[], cwd: string) => {
    const { command, env } = server.reaching(["pulumi", ...args]);
    return run(command, cwd, { ...env, npm_config_prefer_offline: "true" });
  };

  it("builds the plugin from a fresh checkout, and previews by it", async () => {
    const project = await openProject("by-address");
    await pulumi(["package", "add", server.url], project);
    expect(await readFile(join(project, "Pulumi.yaml"), "utf8")).toContain("git.example.net/pulumi-cloudlet/pulumi-cloudlet.git");
    expect(await pulumi(["preview", "--non-interactive"], project)).toContain("+ 2 to create");
  });

  it("takes the version that an entry in Pulumi.yaml names", async () => {
    const project = await openProject("by-entry");
    const source = `git.example.net/pulumi-cloudlet/pulumi-cloudlet@v${await version()}`;
    const text = await readFile(join(project, "Pulumi.yaml"), "utf8");
    await writeFile(join(project, "Pulumi.yaml"), JSON.stringify({ ...JSON.parse(text), packages: { cloudlet: source } }));
    await pulumi(["install"], project);
    expect(await pulumi(["preview", "--non-interactive"], project)).toContain("+ 2 to create");
  });
});
