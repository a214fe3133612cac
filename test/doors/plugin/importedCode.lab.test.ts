import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineEnvironment } from "../../engine.ts";
import { openGateways, type Gateways } from "../../gateways.ts";

const repository = resolve(import.meta.dirname, "../../..");

describe("the code that pulumi import writes, in YAML", { timeout: 300_000 }, () => {
  let gateways: Gateways;
  let folder: string;
  beforeAll(async () => {
    gateways = await openGateways("plugcode", { door: "plugin", lxd: ["gw1"] });
    const made = await gateways.up({ gateways: { gw1: { kind: "lxd" } }, at: "gw1", volume: { sizeMib: 16 } });
    expect(made, made.text).toMatchObject({ ok: true });
    folder = await mkdtemp(join(tmpdir(), "cloudlet-code-"));
    await mkdir(join(folder, "backend"));
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
    await rm(folder, { recursive: true, force: true });
  });

  const pulumi = async (...args: string[]): Promise<string> => {
    const env = { ...process.env, ...engineEnvironment(folder), CLOUDLET_KNOWN_HOSTS: gateways.lab.knownHostsPath };
    const options = { cwd: folder, env, timeout: 120_000 };
    try {
      const { stdout, stderr } = await promisify(execFile)("pulumi", [...args, "--non-interactive", "--color", "never"], options);
      return stdout + stderr;
    } catch (error) {
      throw new Error(`${String(error)}\n${(error as { stdout: string }).stdout}`);
    }
  };

  it("previews without a difference", async () => {
    const { address, connection } = gateways.lab.hosts.gw1;
    // of the same name as the stack that has made it, whose state was lost
    const project = { name: "test", runtime: "yaml", plugins: { providers: [{ name: "cloudlet", path: repository }] } };
    await writeFile(join(folder, "Pulumi.yaml"), JSON.stringify(project));
    await pulumi("stack", "init", "dev");
    const { user, privateKey } = connection;
    await pulumi("config", "set", "--secret", "cloudlet:connection", JSON.stringify({ user, privateKey }));
    const resources = [
      ["Node", "gw1", `gw1@${address}`],
      ["Hypervisor", "lxd-gw1", `gw1/lxd@${address}`],
      ["EdgeCluster", "visits", "visits@visit-counter"],
      ["Volume", "data", `data@gw1/lxd@${address}`],
      ["Cloudlet", "counter", `visits/counter@gw1/lxd@${address}`],
    ].map(([type, name, id]) => ({ type: `cloudlet:index:${type}`, name, id }));
    await writeFile(join(folder, "import.json"), JSON.stringify({ resources }));
    await pulumi("import", "--file", "import.json", "--out", "code.yaml", "--yes", "--skip-preview", "--protect=false");
    const code = await readFile(join(folder, "code.yaml"), "utf8");
    // resources refer to each other, and what is not on the node is not guessed
    expect(code).toContain('hypervisor: ${["lxd-gw1"].id}');
    expect(code).not.toContain("PRIVATE KEY");
    await writeFile(join(folder, "Pulumi.yaml"), `name: test\nruntime: yaml\nplugins: ${JSON.stringify(project.plugins)}\n${code}`);
    expect(await pulumi("preview", "--expect-no-changes")).toContain("6 unchanged");
  });
});
