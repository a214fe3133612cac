import { CustomResource, secret } from "@pulumi/pulumi";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openGateways, type Declaration, type Gateways } from "../../gateways.ts";

const empty: Declaration = { gateways: { gw1: { kind: "lxd" } } };

/** What a program passes without the classes. */
class Raw extends CustomResource {
  constructor(name: string, args: Record<string, unknown>) {
    super("cloudlet:index:Cloudlet", name, args);
  }
}

describe.each(["the classes", "no classes"] as const)("secrets below the top of an input, by %s", (way) => {
  let gateways: Gateways;
  beforeAll(async () => {
    gateways = await openGateways("plugsecr", { lxd: ["gw1"], door: "plugin" });
    const made = await gateways.up(empty);
    expect(made, made.text).toMatchObject({ ok: true });
  });
  afterAll(async () => {
    // it is named by its id, so that the engine does not know what stands on what
    await gateways?.up(empty);
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  const canaries = (version: string) => ({ environment: `canary-env-${version}-4711`, file: `canary-file-${version}-4711` });
  const program =
    (version: string, wrong: Record<string, unknown> = {}) =>
    async () => {
      await gateways.program(empty)();
      const { connection, address } = gateways.lab.hosts.gw1;
      const { host, user, privateKey, hostKey } = connection;
      const { environment, file } = canaries(version);
      const ready = { http: { port: 8080, path: "/peek" }, timeoutSeconds: 60 };
      const args = {
        cluster: "visits",
        hypervisor: "gw1/lxd",
        nodeAddress: address,
        base: { file: gateways.images.container },
        resources: { memoryMib: 192 },
        ports: [{ port: 8080 }],
        environment: { MODE: "edge", TOKEN: secret(environment) },
        files: [{ path: "/etc/token", content: secret(file) }],
        ready,
        ...wrong,
      };
      const reach = { host, user, hostKey };
      if (way === "the classes") new gateways.sdk.Cloudlet("counter", { ...args, connection: { ...reach, privateKey } });
      else new Raw("counter", { ...args, connection: { ...reach, privateKey: secret(privateKey) } });
      return {};
    };

  it("are ciphertext in the state, [secret] in a preview, and nowhere else", async () => {
    const { gw1 } = gateways.lab.hosts;
    const hidden = [
      ...Object.values(canaries("one")),
      ...Object.values(canaries("two")),
      gw1.connection.privateKey.split("\n")[2] ?? "no key",
    ];
    const silent = (text: string, where: string) => {
      for (const canary of hidden) expect(text.includes(canary), `${canary} in ${where}`).toBe(false);
    };
    const made = await gateways.stack.up(program("one"));
    expect(made, made.text).toMatchObject({ ok: true });
    silent(made.text + made.status.join("\n"), "what up prints");
    silent(await gateways.storedText(), "the state");
    expect(await gateways.exec(["cat", "/etc/token"])).toBe(canaries("one").file);

    const shown = await gateways.stack.preview(program("two"));
    const [update] = shown.steps.filter(({ op }) => op !== "same");
    expect(update, shown.text).toMatchObject({ op: "update", name: "counter" });
    expect(update?.changed.sort()).toEqual(["environment.TOKEN", "files[0].content"]);
    expect(shown.text).toMatch(/TOKEN *: \[secret\] => \[secret\]/);
    silent(shown.text, "a preview");

    const refused = await gateways.stack.preview(
      program("two", { ports: [{ port: 0 }], environment: { "NO NAME": secret(canaries("two").environment) } }),
    );
    expect(refused.ok).toBe(false);
    expect(refused.text).toContain("ports[0].port");
    silent(refused.text, "check failures");

    const failed = await gateways.stack.up(program("two", { ready: { tcp: 9, timeoutSeconds: 1 } }));
    expect(failed.ok).toBe(false);
    silent(failed.text + failed.status.join("\n"), "a failure");
    silent(await gateways.storedText(), "the state that a failure leaves");
    const refreshed = await gateways.stack.refresh();
    silent(refreshed.text, "refresh");
    silent(await gateways.storedText(), "the refreshed state");
    silent(
      await gw1.run("cat /var/log/cloudlet-agent.log; cat /var/lib/cloudlet/jobs/*; ps -eww -o args"),
      "the node's logs and processes",
    );
  });
});
