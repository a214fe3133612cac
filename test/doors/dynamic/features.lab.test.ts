import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openGateways, type Declaration, type Gateways } from "../../gateways.ts";

describe("what only containers have", () => {
  let gateways: Gateways;
  let source: string;
  beforeAll(async () => {
    source = await mkdtemp(join(tmpdir(), "cloudlet-build-"));
    gateways = await openGateways("features", { lxd: ["gw1"] });
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
    await rm(source, { recursive: true, force: true });
  });

  it("build: changed source is a new version, put in place without making the cloudlet anew", async () => {
    const version = async (text: string): Promise<void> => {
      await mkdir(join(source, "src"), { recursive: true });
      await writeFile(join(source, "src", "version"), text);
    };
    const declared: Declaration = {
      gateways: { gw1: { kind: "lxd" } },
      at: "gw1",
      cloudlet: {
        build: { context: source, command: "cp src/version built", start: "cp built /run/version; exec sleep 1000000" },
        ready: { tcp: 8080 },
      },
    };
    await version("one\n");
    const made = await gateways.up(declared);
    expect(made, made.text).toMatchObject({ ok: true });
    const shown = (text: string) =>
      gateways.eventually(async () => expect(await gateways.exec(["cat", "/run/version"])).toBe(text), 20_000);
    await shown("one\n");
    await gateways.exec(["sh", "-c", "echo here >/root/mark"]);

    await version("two\n");
    const previewed = await gateways.preview(declared);
    expect(previewed.steps.map(({ op, changed }) => `${op} ${changed.join()}`)).toEqual(["update build"]);
    const changed = await gateways.up(declared);
    expect(changed, changed.text).toMatchObject({ ok: true });
    await shown("two\n");
    expect(await gateways.exec(["cat", "/root/mark"])).toBe("here\n");

    await writeFile(join(source, "src", "version"), "three\n");
    const broken = await gateways.up({
      ...declared,
      cloudlet: { ...declared.cloudlet, build: { context: source, command: "echo no such thing >&2; exit 7", start: "sleep 1" } },
    });
    expect(broken.ok).toBe(false);
    expect(broken.text).toContain("no such thing");
    const repaired = await gateways.up(declared);
    expect(repaired, repaired.text).toMatchObject({ ok: true });
    await shown("three\n");
  });

  it("an LXD reached by HTTPS: client certificate, pinned server certificate, and the key is a secret", async () => {
    const removed = await gateways.up({ gateways: { gw1: { kind: "lxd" } } });
    expect(removed, removed.text).toMatchObject({ ok: true });
    const host = gateways.lab.hosts.gw1;
    await host.run(
      `cd /root && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=operator -keyout client.key -out client.crt 2>/dev/null
       lxc config set core.https_address :8443 && lxc config trust add client.crt`,
      { timeoutMillis: 60_000 },
    );
    const lxd = {
      address: `https://${host.address}:8443`,
      clientCertificate: await host.run("cat /root/client.crt"),
      clientKey: await host.run("cat /root/client.key"),
      serverCertificate: await host.run("cat /var/lib/lxd/server.crt"),
    };
    const stranger = await gateways.up({
      gateways: { gw1: { kind: "lxd", lxd: { ...lxd, serverCertificate: "ab".repeat(32) } } },
      at: "gw1",
    });
    expect(stranger.ok).toBe(false);
    expect(stranger.text).toContain("HOST_KEY");
    const outcome = await gateways.up({ gateways: { gw1: { kind: "lxd", lxd } }, at: "gw1" });
    expect(outcome, outcome.text).toMatchObject({ ok: true });
    expect(await gateways.visit("gw1")).toBeGreaterThan(0);
    const keyLine = lxd.clientKey.split("\n")[1] ?? "";
    expect(outcome.text).not.toContain(keyLine);
    expect(await gateways.storedText()).not.toContain(keyLine);
  });
});

describe("what only virtual machines have", () => {
  let gateways: Gateways;
  beforeAll(async () => {
    gateways = await openGateways("featkvm");
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  it("user data runs before the application answers, the console is kept, and the output says how it executes", async () => {
    const outcome = await gateways.up({
      gateways: { gw1: { kind: "kvm" } },
      at: "gw1",
      cloudlet: {
        userData: "#!/bin/sh\necho from user data >/etc/user-data-was-here\n",
        ready: { log: "counter ready", timeoutSeconds: 60 },
      },
    });
    expect(outcome, outcome.text).toMatchObject({ ok: true });
    expect(outcome.outputs["accelerator"]).toBe("tcg");
    expect(await gateways.exec(["cat", "/etc/user-data-was-here"])).toBe("from user data\n");
    const processes = await gateways.lab.hosts.gw1.run("ps -eo user,args | grep '[q]emu-system'");
    expect(processes).toMatch(/^cloudlet/);
  });
});
