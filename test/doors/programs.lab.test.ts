import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { engineEnvironment, programFolder, pulumiPath } from "../engine.ts";
import { keyService, keyServiceEnvironment } from "../fakes/keyService.ts";

const run = promisify(execFile);
const repository = resolve(import.meta.dirname, "../..");
const node = join(repository, "node_modules", ".bin", "node");

const body = `
const settings = { stackName: "dev", projectName: "programs", program: async () => {
  const faces = new EdgeCluster("faces", { application: "face-recognition" });
  return { name: faces.name, application: faces.application };
} };
const main = async () => {
  const stack = await LocalWorkspace.createOrSelectStack(settings, {
    projectSettings: { name: "programs", runtime: "nodejs", main: process.cwd() },
    workDir: process.cwd(),
    pulumiCommand: await PulumiCommand.get({ root: process.env.ENGINE_ROOT }),
    secretsProvider: "${keyService}",
  });
  const first = await stack.up();
  const second = await stack.up();
  await stack.refresh();
  const { changeSummary } = await stack.preview();
  await stack.destroy();
  const outputs = Object.fromEntries(Object.entries(first.outputs).map(([key, { value }]) => [key, value]));
  console.log(JSON.stringify({ outputs, first: first.summary.resourceChanges, second: second.summary.resourceChanges, third: changeSummary }));
};
main();
`;

const heads = {
  cjs: 'const { LocalWorkspace, PulumiCommand } = require("@pulumi/pulumi/automation"); const { EdgeCluster } = require("pulumi-cloudlet/dynamic");',
  mjs: 'import { LocalWorkspace, PulumiCommand } from "@pulumi/pulumi/automation/index.js"; import { EdgeCluster } from "pulumi-cloudlet/dynamic";',
};

describe.skipIf(!existsSync(join(repository, "dist", "hooks.js")))("a program that uses the built package", () => {
  it.each(["cjs", "mjs"] as const)("creates, repeats and destroys a cluster when it runs as %s", { timeout: 180_000 }, async (form) => {
    const folder = await programFolder();
    try {
      await writeFile(join(folder, `program.${form}`), heads[form] + body);
      const keys = await keyServiceEnvironment();
      const env = { ...process.env, ...engineEnvironment(folder), ...keys, ENGINE_ROOT: resolve(pulumiPath(), "../..") };
      const { stdout } = await run(node, [`program.${form}`], { cwd: folder, env, timeout: 150_000 });
      expect(JSON.parse(stdout.trim().split("\n").at(-1) ?? "")).toEqual({
        outputs: { name: "faces", application: "face-recognition" },
        first: { create: 2 },
        second: { same: 2 },
        third: { same: 2 },
      });
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});
