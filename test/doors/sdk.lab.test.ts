import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type * as Sdk from "../../sdk/dynamic/index.ts";
import { openStack, type TestStack } from "../engine.ts";

const built = existsSync(join(resolve(import.meta.dirname, "../.."), "dist", "hooks.js"));

interface Place {
  cluster: Sdk.EdgeCluster;
  hypervisor: Sdk.Hypervisor;
}

/** None of these programs reaches a node: there is none. */
describe.skipIf(!built)("a preview without any node", () => {
  let stack: TestStack;
  let sdk: typeof Sdk;
  let base: string;
  beforeAll(async () => {
    stack = await openStack({ program: () => Promise.resolve({}) });
    sdk = createRequire(join(stack.directory, "x"))("pulumi-cloudlet/dynamic") as typeof Sdk;
    base = join(stack.directory, "base.qcow2");
    await writeFile(base, "a base");
  }, 30_000);
  afterAll(() => stack.close());

  function gateway(name: string, kind: "kvm" | "lxd" = "kvm"): Sdk.Hypervisor {
    const node = new sdk.Node(name, { connection: { host: `${name}.invalid`, privateKey: "hunter2" } });
    return new sdk.Hypervisor(`${name}-${kind}`, { node, kind });
  }

  it("shows where a cloudlet will run, and no secret", { timeout: 60_000 }, async () => {
    const outcome = await stack.preview(() => {
      const cluster = new sdk.EdgeCluster("faces", { application: "face-recognition" });
      const cloudlet = new sdk.Cloudlet("server", { cluster, hypervisor: gateway("gw1"), base: { file: base }, ports: [{ port: 8080 }] });
      sdk.execInCloudlet(cloudlet, { command: ["true"] }).apply(({ stdout }) => stdout);
      return Promise.resolve({});
    });
    expect(outcome.text).not.toContain("hunter2");
    expect(outcome).toMatchObject({ ok: true, counts: { create: 5 } });
    expect(outcome.text).toMatch(/hypervisor\s*: "gw1\/kvm"/);
    expect(outcome.text).toMatch(/nodeAddress\s*: "gw1\.invalid"/);
  });

  it("shows an image, an overlay over it and a cloudlet of both by their names, and no secret", { timeout: 60_000 }, async () => {
    const outcome = await stack.preview(() => {
      const [here, there] = [gateway("gw1"), gateway("gw2")];
      const ready = { tcp: 8080 };
      const image = new sdk.BaseImage("debian", { file: base, nodes: [here, there], memory: { sizeMib: 128, ready, builder: there } });
      const overlay = new sdk.Overlay("recogniser", { base: image, builder: here, script: "/opt/start", ready });
      const cluster = new sdk.EdgeCluster("faces", { application: "face-recognition" });
      const cloudlet = new sdk.Cloudlet("server", { cluster, hypervisor: there, base: image, overlay });
      return Promise.resolve({ rung: cloudlet.provision.apply((provision) => provision?.rung) });
    });
    expect(outcome, outcome.text).toMatchObject({ ok: true, counts: { create: 9 } });
    expect(outcome.text).not.toContain("hunter2");
    expect(outcome.text).toMatch(/nodes\s*: \[\s*\[0\]: "gw1\/kvm"\s*\[1\]: "gw2\/kvm"/);
    expect(outcome.text).toMatch(/builder\s*: "gw1\/kvm"/);
    expect(outcome.text).toMatch(/image\s*: "debian"/);
  });

  // the engine stops at the first refusal, so each needs a program of its own
  const refusals: [string, string, (place: Place) => unknown][] = [
    [
      "a second application",
      'application: cluster "faces" serves "face-recognition"',
      (place) => new sdk.Cloudlet("c", { ...place, application: "other", base: { file: base } }),
    ],
    [
      "a port that is taken",
      "ports[0].hostPort: tcp port 8080 on gw1/kvm is taken",
      (place) => {
        const dependsOn = new sdk.Cloudlet("a", { ...place, base: { file: base }, ports: [{ port: 8080 }] });
        return new sdk.Cloudlet("b", { ...place, base: { file: base }, ports: [{ port: 80, hostPort: 8080 }] }, { dependsOn });
      },
    ],
    [
      "files in a cloudlet that has an overlay",
      "files: has no effect in a guest that is resumed as its overlay was built",
      (place) =>
        new sdk.Cloudlet("c", {
          ...place,
          base: { file: base },
          overlay: { digest: "e".repeat(64) },
          files: [{ path: "/a", content: "" }],
        }),
    ],
    [
      "an overlay of which nothing is said",
      "ready: is missing; set it",
      (place) => new sdk.Overlay("o", { builder: place.hypervisor, base: { file: base } }),
    ],
    [
      "a second hypervisor",
      'node: node "gw1" already has the hypervisor',
      () => new sdk.Hypervisor("second", { node: "gw1", kind: "lxd", connection: { host: "gw1.invalid" }, nodeAddress: "gw1.invalid" }),
    ],
  ];

  it.each(refusals)("refuses %s", { timeout: 60_000 }, async (_what, text, declare) => {
    const outcome = await stack.preview(() => {
      declare({ cluster: new sdk.EdgeCluster("faces", { application: "face-recognition" }), hypervisor: gateway("gw1") });
      return Promise.resolve({});
    });
    expect(outcome.ok).toBe(false);
    expect(outcome.text.replaceAll('\\"', '"')).toContain(text);
    expect(outcome.text).not.toContain("hunter2");
  });

  it("names a base that is missing", { timeout: 60_000 }, async () => {
    const outcome = await stack.preview(() => {
      const cluster = new sdk.EdgeCluster("faces", { application: "face-recognition" });
      new sdk.Cloudlet("a", { cluster, hypervisor: gateway("gw1"), base: { file: "/nonexistent.qcow2" } });
      return Promise.resolve({});
    });
    expect(outcome.ok).toBe(false);
    expect(outcome.text).toContain("/nonexistent.qcow2 is not on this machine");
  });
});
