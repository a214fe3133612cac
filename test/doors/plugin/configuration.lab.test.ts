import { createRequire } from "node:module";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type * as Sdk from "../../../sdk/plugin/index.ts";
import { openStack, type TestStack } from "../../engine.ts";
import { openGateways, type Declaration, type Gateways } from "../../gateways.ts";

const sdkOf = (stack: TestStack) => createRequire(join(stack.directory, "x"))("pulumi-cloudlet") as typeof Sdk;

describe("the configuration of a provider", () => {
  const previewed = async (settings: Record<string, string>, env: Record<string, string> = {}) => {
    const stack = await openStack({ program: () => Promise.resolve({}), env });
    try {
      const { EdgeCluster } = sdkOf(stack);
      for (const [name, value] of Object.entries(settings)) await stack.setConfig(`cloudlet:${name}`, value, name === "connection");
      return await stack.preview(() => {
        new EdgeCluster("faces", { application: "face-recognition" });
        return Promise.resolve({});
      });
    } finally {
      await stack.close();
    }
  };

  it("is refused by its path, and no secret of it is shown", { timeout: 60_000 }, async () => {
    const refused = await previewed({ concurrency: "many", connection: JSON.stringify({ passwort: "hunter2" }) });
    expect(refused.ok).toBe(false);
    expect(refused.text).toContain("concurrency: must be");
    expect(refused.text.replaceAll('\\"', '"')).toContain('connection.passwort: is not a property here (did you mean "password"?)');
    expect(refused.text).not.toContain("hunter2");
  });

  it("comes from the environment where it is left out, and is refused by the variable's name", { timeout: 60_000 }, async () => {
    const refused = await previewed({}, { CLOUDLET_CONCURRENCY: "0" });
    expect(refused.ok).toBe(false);
    expect(refused.text).toContain("CLOUDLET_CONCURRENCY: must be at least 1");
    expect(await previewed({ concurrency: "4" }, { CLOUDLET_CONCURRENCY: "0" })).toMatchObject({ ok: true });
  });
});

const declared: Declaration = { gateways: { gw1: { kind: "lxd" } }, at: "gw1" };

describe("a provider with credentials, on nodes where another door was", () => {
  let gateways: Gateways;
  let stack: TestStack;
  beforeAll(async () => {
    gateways = await openGateways("plugconf", { lxd: ["gw1", "gw2"] });
    const made = await gateways.up(declared);
    expect(made, made.text).toMatchObject({ ok: true });
    // the same project and stack, with an empty state
    stack = await openStack({ program: () => Promise.resolve({}) });
    const { user, privateKey } = gateways.lab.hosts.gw1.connection;
    await stack.setConfig("cloudlet:connection", JSON.stringify({ user, privateKey }), true);
    await stack.setConfig("cloudlet:knownHostsFile", gateways.lab.knownHostsPath);
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
    await stack?.close();
  });

  /** What is on the first gateway, without any credential; `imported` adds where it is found. */
  const found = (imported: boolean) => {
    const { Node, Hypervisor, EdgeCluster, Cloudlet } = sdkOf(stack);
    const { address } = gateways.lab.hosts.gw1;
    const from = (id: string) => (imported ? { import: `${id}@${address}` } : {});
    const node = new Node("gw1", { connection: { host: address } }, from("gw1"));
    const hypervisor = new Hypervisor("lxd-gw1", { node, kind: "lxd" }, from("gw1/lxd"));
    const cluster = new EdgeCluster("visits", { application: "visit-counter" });
    const cloudlet = {
      cluster,
      hypervisor,
      base: { file: gateways.images.container },
      resources: { memoryMib: 192 },
      ports: [{ port: 8080 }],
      stateFiles: ["/var/lib/counter"],
      ready: { http: { port: 8080, path: "/peek" }, timeoutSeconds: 60 },
    };
    return new Cloudlet("counter", cloudlet, from("visits/counter@gw1/lxd"));
  };

  it("imports gateway, hypervisor and cloudlet by their ids; the cloudlet goes on, and nothing shows afterwards", async () => {
    const before = (await gateways.visit("gw1")) ?? -1;
    const imported = await stack.up(() => Promise.resolve({ endpoint: found(true).endpoint }));
    expect(imported, imported.text).toMatchObject({ ok: true, counts: { import: 3 } });
    expect(imported.outputs["endpoint"]).toBe(`${gateways.lab.hosts.gw1.address}:8080`);
    expect(imported.steps.filter(({ op }) => op === "update")).toEqual([]);
    const shown = await stack.preview(() => Promise.resolve({ endpoint: found(false).endpoint }));
    expect(shown, shown.text).toMatchObject({ ok: true, counts: { same: 5 } });
    expect(await gateways.visit("gw1")).toBe(before + 1);
  });

  it("is one of several, each with its own credentials, none of which is in the state", async () => {
    const { password, address, connection } = gateways.lab.hosts.gw2;
    const { Provider, Node } = sdkOf(stack);
    const both = () => {
      const settings = { connection: { user: "operator", password }, knownHostsFile: gateways.lab.knownHostsPath };
      new Node("gw2", { connection: { host: address } }, { provider: new Provider("operator", settings) });
      return Promise.resolve({ endpoint: found(false).endpoint });
    };
    const made = await stack.up(both);
    expect(made, made.text).toMatchObject({ ok: true });
    expect(made.steps.filter(({ op }) => op !== "same").map(({ op, name }) => `${op} ${name}`)).toEqual(["create gw2"]);
    const state = await stack.stateText();
    expect(state).not.toContain(password);
    expect(state).not.toContain(connection.privateKey.split("\n")[2] ?? "no key");
    const gone = await stack.up(() => Promise.resolve({ endpoint: found(false).endpoint }));
    expect(gone, gone.text).toMatchObject({ ok: true });
  });
});
