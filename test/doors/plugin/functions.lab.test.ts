import { createRequire } from "node:module";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type * as Hooks from "../../../provider/doors/dynamic/hooks.ts";
import type * as Sdk from "../../../sdk/plugin/index.ts";
import { openGateways, type Declaration, type Gateways } from "../../gateways.ts";

const declared: Declaration = { gateways: { gw1: { kind: "lxd" } }, at: "gw1" };
const id = "visits/counter";

describe("the functions", () => {
  let gateways: Gateways;
  let sdk: typeof Sdk;
  beforeAll(async () => {
    gateways = await openGateways("plugfunc", { lxd: ["gw1"], door: "plugin" });
    sdk = createRequire(join(gateways.stack.directory, "x"))("pulumi-cloudlet") as typeof Sdk;
    const made = await gateways.up(declared);
    expect(made, made.text).toMatchObject({ ok: true });
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  /** The same resources, and what is asked of them. */
  const asking = (ask: () => Record<string, unknown>) => async () => {
    await gateways.program(declared)();
    return ask();
  };

  it("tell what is on a node, run commands in cloudlets, and know who does not answer", async () => {
    const { connection } = gateways.lab.hosts.gw1;
    const cloudlet = { id, connection };
    const silent = { connection: { host: "192.0.2.1", hostKey: connection.hostKey, perDialTimeout: 1, dialErrorLimit: 1 } };
    const ask = () => ({
      node: sdk.getNode({ connection }),
      hypervisor: sdk.getHypervisor({ connection }),
      cloudlet: sdk.getCloudlet(cloudlet),
      logs: sdk.getCloudletLogs(cloudlet, { lines: 50 }),
      command: sdk.execInCloudlet(cloudlet, { command: ["sh", "-c", "echo out; echo err >&2; exit 3"] }),
      utilization: sdk.getUtilization({ nodes: { gw1: { connection }, away: silent }, timeoutSeconds: 20 }),
    });
    const { ok, text, outputs } = await gateways.stack.up(asking(ask));
    expect(ok, text).toBe(true);
    expect(outputs["node"]).toMatchObject({ facts: { architecture: "x86_64" } });
    expect(outputs["hypervisor"]).toMatchObject({ kind: "lxd", cloudlets: [id], owners: ["test/dev"] });
    expect(outputs["cloudlet"]).toMatchObject({ status: "running", owner: "test/dev", role: "owner", resources: { memoryMib: 192 } });
    expect(outputs["logs"]).toContain("counter ready");
    expect(outputs["command"]).toEqual({ stdout: "out\n", stderr: "err\n", exitCode: 3 });
    expect(outputs["utilization"]).toMatchObject({
      usage: [
        { name: "gw1", reached: true, problem: "", cloudlets: 1, memoryUsedMib: 192 },
        { name: "away", reached: false, problem: expect.stringContaining("UNREACHABLE") as unknown, cloudlets: 0 },
      ],
    });
  });

  it("run nothing in a preview, and are refused by the path of what is wrong", async () => {
    const { connection } = gateways.lab.hosts.gw1;
    const touch = () => ({ done: sdk.execInCloudlet({ id, connection }, { command: ["touch", "/previewed"] }).exitCode });
    const shown = await gateways.stack.preview(asking(touch));
    expect(shown, shown.text).toMatchObject({ ok: true });
    await expect(gateways.exec(["ls", "/previewed"])).rejects.toThrow("No such file");
    const wrong = await gateways.stack.preview(asking(() => ({ logs: sdk.getCloudletLogs({ id: "counter", connection }, { lines: 0 }) })));
    expect(wrong.ok).toBe(false);
    expect(wrong.text).toContain("id: must be the id of a Cloudlet");
    expect(wrong.text).toContain("lines: must be at least 1");
    expect(wrong.text).not.toContain(connection.privateKey.split("\n")[2]);
  });

  it("are the same behind dynamic resources", async () => {
    const { ask } = createRequire(join(gateways.stack.directory, "x"))("pulumi-cloudlet/hooks") as typeof Hooks;
    const { connection } = gateways.lab.hosts.gw1;
    expect(await ask("cloudlet:index:getCloudlet", { id, connection })).toMatchObject({ status: "running" });
    await expect(ask("cloudlet:index:getCloudlet", { id: "visits/other", connection })).rejects.toThrow('no cloudlet "visits/other"');
  });
});
