import { cp, rm, symlink, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { programFolder } from "./engine.ts";
import { Checkout } from "./pullRequest.ts";

/** The pack in a folder in which its packages are installed. */
async function packFolder(): Promise<string> {
  const directory = await programFolder();
  await cp(resolve(import.meta.dirname, "policies"), directory, { recursive: true });
  const modules = resolve(import.meta.dirname, "../node_modules");
  for (const name of ["@pulumi/policy", "typescript"]) await symlink(join(modules, name), join(directory, "node_modules", name));
  await writeFile(join(directory, "package.json"), JSON.stringify({ name: "policies", version: "1.0.0", main: "index.ts" }));
  return directory;
}

const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBlBsOX1Nn+wmWbdr+EFRtAYMhvW8bW0Lnsbc1/p6hmk";

describe("a policy pack that knows the classes", () => {
  let checkout: Checkout;
  let pack: string;
  beforeAll(async () => {
    pack = await packFolder();
    checkout = await Checkout.open();
    const plugins = "plugins: {providers: [{name: cloudlet, path: node_modules/pulumi-cloudlet}]}";
    await writeFile(join(checkout.directory, "Pulumi.yaml"), `name: test\nruntime: nodejs\nmain: index.ts\n${plugins}\n`);
    await checkout.pulumi("stack", "init", "dev");
  });
  afterAll(async () => {
    await checkout?.close();
    await rm(pack, { recursive: true, force: true });
  });

  /** A preview of one cloudlet on one gateway that is not there. */
  const previewed = async (program: { connection: object; cloudlet: object }) => {
    const text = `import { Cloudlet, EdgeCluster, Hypervisor, Node } from "pulumi-cloudlet";
      const node = new Node("gw1", { connection: ${JSON.stringify(program.connection)} });
      const hypervisor = new Hypervisor("kvm1", { node, kind: "kvm" });
      const cluster = new EdgeCluster("faces", { application: "faces" });
      const base = { image: "faces", digest: "${"a".repeat(64)}" };
      new Cloudlet("server", { cluster, hypervisor, base, ...${JSON.stringify(program.cloudlet)} });`;
    await writeFile(join(checkout.directory, "index.ts"), text);
    return checkout.preview("--policy-pack", pack);
  };

  it("lets a program pass that keeps to it", async () => {
    const shown = await previewed({
      connection: { host: "192.0.2.1", hostKey },
      cloudlet: { resources: { memoryMib: 256 }, ports: [{ port: 8080 }] },
    });
    expect(shown, shown.text).toMatchObject({ code: 0 });
    expect(shown.text).toContain("gateways@");
  });

  it("fails the preview with the resource and the reason", async () => {
    const shown = await previewed({
      connection: { host: "192.0.2.1" },
      cloudlet: { resources: { memoryMib: 1024 }, ports: [{ port: 80 }] },
    });
    expect(shown.code, shown.text).not.toBe(0);
    for (const reason of ["has 1024 MiB of memory, and may have 512", "publishes port 80", "has no connection.hostKey"])
      expect(shown.text).toContain(reason);
  });
});
