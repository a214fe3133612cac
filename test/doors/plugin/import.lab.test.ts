import { createRequire } from "node:module";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type * as Sdk from "../../../sdk/plugin/index.ts";
import { openStack, type Outcome, type TestStack } from "../../engine.ts";
import { openGateways, type Gateways } from "../../gateways.ts";

const steps = ({ steps: all }: Outcome) => all.filter(({ op }) => op !== "same").map(({ op, name, changed }) => [op, name, ...changed]);

describe("what another door has made, imported by ids alone", () => {
  let gateways: Gateways;
  let stack: TestStack;
  let source: string;
  beforeAll(async () => {
    source = await mkdtemp(join(tmpdir(), "cloudlet-import-"));
    await writeFile(join(source, "version"), "one\n");
    gateways = await openGateways("plugimp", { lxd: ["gw1", "gw2"] });
    const made = await gateways.stack.up(declared(gateways.sdk, gateways.lab.hosts.gw1.connection));
    expect(made, made.text).toMatchObject({ ok: true });
    // the same project and stack, with an empty state
    stack = await openStack({ program: () => Promise.resolve({}) });
    const { user, privateKey } = gateways.lab.hosts.gw1.connection;
    await stack.setConfig("cloudlet:connection", JSON.stringify({ user, privateKey }), true);
    await stack.setConfig("cloudlet:knownHostsFile", gateways.lab.knownHostsPath);
  });
  afterAll(async () => {
    await stack?.destroy();
    await stack?.close();
    await gateways?.close();
    await rm(source, { recursive: true, force: true });
  });

  /** The whole of what there is, on two gateways. */
  const declared =
    (sdk: typeof Sdk, credentials: { user?: string; privateKey?: string } = {}, script = "echo built >/etc/built") =>
    () => {
      const { user, privateKey } = credentials;
      const hypervisors = (["gw1", "gw2"] as const).map((name) => {
        const { address, connection } = gateways.lab.hosts[name];
        const way = privateKey === undefined ? {} : { user, privateKey, hostKey: connection.hostKey };
        const node = new sdk.Node(name, { connection: { host: address, ...way } });
        return new sdk.Hypervisor(`lxd-${name}`, { node, kind: "lxd" });
      });
      const [hypervisor] = hypervisors;
      if (!hypervisor) throw new Error("there are two");
      const cluster = new sdk.EdgeCluster("visits", { application: "visit-counter" });
      const base = new sdk.BaseImage("counter-base", { file: gateways.images.container, nodes: hypervisors });
      const ready = { http: { port: 8080, path: "/peek" }, timeoutSeconds: 60 };
      const resources = { memoryMib: 192 };
      const overlay = new sdk.Overlay("counter", { base, builder: hypervisor, resources, script, ready });
      const volume = new sdk.Volume("data", { hypervisor, sizeMib: 16 });
      const of = { cluster, hypervisor };
      new sdk.Cloudlet("counter", {
        ...of,
        base: { file: gateways.images.container },
        resources,
        ports: [{ port: 8080 }],
        files: [{ path: "/etc/greeting", content: "hello\n" }],
        environment: { MODE: "edge" },
        volumes: [{ volume, path: "/data" }],
        stateFiles: ["/var/lib/counter"],
        build: { context: source, start: "exec sleep 1000000" },
        ready,
      });
      new sdk.Cloudlet("resumed", { ...of, base, overlay, ports: [{ port: 8080, hostPort: 8081 }], ready });
      return Promise.resolve({});
    };
  const program = (script?: string) => declared(createRequire(join(stack.directory, "x"))("pulumi-cloudlet") as typeof Sdk, {}, script);

  it("everything is there, and the program shows no difference, before and after a refresh", async () => {
    const [gw1, gw2] = [gateways.lab.hosts.gw1.address, gateways.lab.hosts.gw2.address];
    const before = await gateways.visit("gw1");
    const imported = await stack.import(
      [
        ["Node", "gw1", `gw1@${gw1}`],
        ["Node", "gw2", `gw2@${gw2}`],
        ["Hypervisor", "lxd-gw1", `gw1/lxd@${gw1}`],
        ["Hypervisor", "lxd-gw2", `gw2/lxd@${gw2}`],
        ["EdgeCluster", "visits", "visits@visit-counter"],
        ["BaseImage", "counter-base", `counter-base@gw1/lxd@${gw1},gw2/lxd@${gw2}`],
        ["Overlay", "counter", `counter@gw1/lxd@${gw1}`],
        ["Volume", "data", `data@gw1/lxd@${gw1}`],
        ["Cloudlet", "counter", `visits/counter@gw1/lxd@${gw1}`],
        ["Cloudlet", "resumed", `visits/resumed@gw1/lxd@${gw1}`],
      ].map(([type, name = "", id = ""]) => ({ type: `cloudlet:index:${type}`, name, id })),
    );
    expect(imported, imported.text).toMatchObject({ ok: true });
    // nobody has said that these are no secrets
    const stored = await stack.stateText();
    for (const text of ["hello\\n", '"edge"']) expect(stored).not.toContain(text);
    const shown = await stack.preview(program());
    expect([shown.ok, steps(shown)], shown.text).toEqual([true, []]);
    const up = await stack.up(program());
    expect([up.ok, steps(up)], up.text).toEqual([true, []]);
    const refreshed = await stack.refresh();
    expect(refreshed, refreshed.text).toMatchObject({ ok: true });
    const again = await stack.preview(program());
    expect([again.ok, steps(again)], again.text).toEqual([true, []]);
    expect(await gateways.visit("gw1")).toBe((before ?? 0) + 1);
  });

  it("what the import could not know is compared from the first run on", async () => {
    const changed = await stack.preview(program("echo changed >/etc/built"));
    expect(
      steps(changed).map(([op, name, ...paths]) => [op, name, paths]),
      changed.text,
    ).toContainEqual(["update", "counter", ["script"]]);
  });

  it("what does not suffice, or belongs to others, is refused with what to do", async () => {
    const host = gateways.lab.hosts.gw1.address;
    const tried = async (type: string, id: string, from = stack) =>
      (await from.import([{ type: `cloudlet:index:${type}`, name: "other", id }])).text;
    expect(await tried("EdgeCluster", "faces")).toContain("give it as NAME@APPLICATION");
    expect(await tried("Cloudlet", "visits/other")).toContain("give it as CLUSTER/NAME@NODE/KIND[@HOST]");
    expect(await tried("Overlay", `other@gw1/lxd@${host}`)).toContain("does not exist");
    const second = await openStack({ project: "second", program: () => Promise.resolve({}) });
    try {
      const { user, privateKey } = gateways.lab.hosts.gw1.connection;
      await second.setConfig("cloudlet:connection", JSON.stringify({ user, privateKey }), true);
      await second.setConfig("cloudlet:knownHostsFile", gateways.lab.knownHostsPath);
      for (const [type, id] of [
        ["Cloudlet", "visits/counter@gw1/lxd"],
        ["Volume", "data@gw1/lxd"],
        ["Hypervisor", "gw1/lxd"],
        ["Node", "gw1"],
      ] as const)
        expect(await tried(type, `${id}@${host}`, second)).toMatch(/belongs to test\/dev, not to second\/dev; import it in that stack/);
    } finally {
      await second.close();
    }
  });
});
