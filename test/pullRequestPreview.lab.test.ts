import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Lab } from "./lab/lab.ts";
import { Checkout, openPullRequestLab, serveImage } from "./pullRequest.ts";

const gateways = ["gw1", "gw2"] as const;
type GatewayName = (typeof gateways)[number];

describe("examples/pull-request-preview", () => {
  let lab: Lab<GatewayName>;
  let checkout: Checkout;
  let image: Awaited<ReturnType<typeof serveImage>>;
  let secrets: Record<string, string>;
  beforeAll(async () => {
    image = await serveImage();
    lab = await openPullRequestLab();
    checkout = await Checkout.open();
    secrets = { SSH_PRIVATE_KEY: lab.hosts.gw1.connection.privateKey };
    const connections = gateways.map((name) => [name, { host: lab.hosts[name].address, hostKey: lab.hosts[name].connection.hostKey }]);
    await checkout.pulumi("stack", "init", "dev");
    await set("gateways", JSON.stringify(Object.fromEntries(connections)));
    await set("base", image.url);
    await set("baseDigest", image.digest);
    await checkout.pulumi("config", "set", "--secret", "token", "hunter22");
    await deployed("gw1");
  });
  afterAll(async () => {
    await checkout?.close();
    await lab?.close();
    image?.server.close();
  });

  const set = (name: string, value: string) => checkout.pulumi("config", "set", name, value);
  const deployed = async (at: GatewayName) => {
    await set("subscriberAt", at);
    const ran = await checkout.job("deploy", secrets);
    expect(ran.code, ran.text).toBe(0);
  };
  /** A pull request whose job reaches neither gateway. */
  const previewed = async (subscriberAt: string) => {
    await set("subscriberAt", subscriberAt);
    const before = image.asked();
    for (const name of gateways) await lab.cut(name);
    try {
      const ran = await checkout.job("preview");
      const comment = await checkout.comment();
      expect(image.asked()).toBe(before);
      expectNoSecret(ran.text + comment);
      return { ...ran, comment };
    } finally {
      for (const name of gateways) await lab.heal(name);
    }
  };
  const expectNoSecret = (text: string) => {
    for (const secret of ["hunter2", ...(secrets["SSH_PRIVATE_KEY"] ?? "").split("\n").filter((line) => line.length > 40)])
      expect(text).not.toContain(secret);
  };

  it("shows a move in place, while no gateway can be reached", async () => {
    const shown = await previewed("gw2");
    expect(shown, shown.text).toMatchObject({ code: 0 });
    expect(shown.comment).toMatch(/^### Preview of `dev`\n/);
    expect(shown.comment).toContain("moves in place from gw1 to gw2 (live)");
    expect(shown.comment).toMatch(/~ hypervisor *: "gw1\/kvm" => "gw2\/kvm"/);
    expect(shown.comment).toMatch(/~ 1 to update\n *\d unchanged\n``````\n$/);
  });

  it("shows how much a move will send, once there was one", async () => {
    await deployed("gw2");
    const shown = await previewed("gw1");
    expect(shown, shown.text).toMatchObject({ code: 0 });
    expect(shown.comment).toMatch(/moves in place from gw2 to gw1 \(live, about \d+ MB\)/);
  });

  it("shows that a secret changes, and not the secret", async () => {
    await checkout.pulumi("config", "set", "--secret", "token", "hunter23");
    const shown = await previewed("gw2");
    expect(shown, shown.text).toMatchObject({ code: 0 });
    expect(shown.comment).toMatch(/content *: \[secret\] => \[secret\]/);
    await checkout.pulumi("config", "set", "--secret", "token", "hunter22");
  });

  it("fails with the reason in the comment where the program is wrong", async () => {
    const shown = await previewed("gw9");
    expect(shown.code).not.toBe(0);
    expect(shown.comment).toMatch(/^### Preview of `dev` failed\n/);
    expect(shown.comment).toContain('subscriberAt is "gw9"; it must be one of gw1, gw2');
  });

  it("finds no drift where there is none, and fails where there is, and where a gateway is silent", async () => {
    await set("subscriberAt", "gw2");
    const same = await checkout.job("drift", secrets);
    expect(same, same.text).toMatchObject({ code: 0 });
    await lab.hosts.gw2.run("for p in /proc/[0-9]*; do readlink $p/exe | grep -q qemu-system && kill -KILL ${p#/proc/}; done; true");
    const drifted = await checkout.job("drift", secrets);
    expect(drifted.code, drifted.text).not.toBe(0);
    expect(drifted.text).toMatch(/~ state *: "stopped" => "running"/);
    await lab.cut("gw1");
    const silent = await checkout.job("drift", secrets);
    expect(silent.code, silent.text).not.toBe(0);
    expect(silent.text).toContain("UNREACHABLE");
    expectNoSecret(same.text + drifted.text + silent.text + (await checkout.state()));
  });
});
