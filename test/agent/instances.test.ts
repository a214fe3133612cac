import http from "node:http";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { applyInstance, removeInstance } from "../../provider/agent/instanceApply.ts";
import { instanceExec, instanceStatus } from "../../provider/agent/instances.ts";
import { guestName } from "../../provider/agent/protocol.ts";
import type { InstanceSpec } from "../../provider/agent/protocol.ts";
import { recover } from "../../provider/agent/recover.ts";
import { waitReady } from "../../provider/agent/ready.ts";
import { context, digestText, spec, testAgent } from "./fixture.ts";
import type { TestAgent } from "./fixture.ts";

let agent: TestAgent;
let base = "";
beforeEach(async () => {
  agent = await testAgent({ usedPorts: [22] });
  base = await agent.store("base");
});
afterEach(() => {
  agent.remove();
});

const name = guestName("shop/counter");
const apply = (change: Partial<InstanceSpec> = {}, { crashAt, fresh = false }: { crashAt?: string; fresh?: boolean } = {}) =>
  applyInstance(agent.services, { spec: spec(base, change), fresh }, context(crashAt));

describe("instance.apply", () => {
  it("makes a cloudlet that runs, published and ready", async () => {
    const status = await apply({ ports: [{ port: 80, hostPort: 8080, protocol: "tcp" }] });
    expect(status).toMatchObject({
      status: "running",
      ready: true,
      imageDigest: base,
      accelerator: "tcg",
      ownership: { epoch: expect.closeTo(Date.now(), -5), role: "owner" },
    });
    expect(status.console).toContain("serving");
    expect(agent.published().map((record) => record.network.address)).toEqual([status.address]);
  });

  it("does nothing the second time", async () => {
    await apply();
    agent.driver.calls.length = 0;
    await apply();
    expect(agent.driver.calls).toEqual(["ensure"]);
  });

  it.for<[string, Partial<InstanceSpec>, Partial<InstanceSpec>, string[]]>([
    ["restarts where the driver says so", {}, { environment: { A: "1" } }, ["ensure", "stop", "start"]],
    ["does not restart for new ports", {}, { ports: [{ port: 1, hostPort: 8081, protocol: "tcp" }] }, ["ensure"]],
    ["stops", {}, { state: "stopped" }, ["ensure", "stop"]],
    ["suspends", {}, { state: "suspended" }, ["ensure", "suspend"]],
    ["resumes", { state: "suspended" }, {}, ["ensure", "start"]],
    ["starts", { state: "stopped" }, {}, ["ensure", "start"]],
    ["starts before it suspends a stopped one", { state: "stopped" }, { state: "suspended" }, ["ensure", "start", "suspend"]],
  ])("%s", async ([, first, second, calls]) => {
    await apply(first);
    agent.driver.calls.length = 0;
    const status = await apply(second);
    expect(agent.driver.calls).toEqual(calls);
    expect(status.status).toBe(second.state ?? "running");
  });

  it.each(["record", "network", "created", "started", "ready", "complete"])("continues after a crash at step %s", async (step) => {
    await expect(apply({ environment: { A: "1" } }, { crashAt: step })).rejects.toThrow("killed");
    expect(await apply({ environment: { A: "1" } })).toMatchObject({ status: "running" });
    expect(agent.driver.guests.size).toBe(1);
    expect(await agent.services.records.read("shop/counter")).toMatchObject({ complete: true, restartPending: false });
  });

  it.each(["record", "created", "stopped", "started"])("an update that crashed at step %s still restarts the guest", async (step) => {
    await apply();
    await expect(apply({ environment: { A: "1" } }, { crashAt: step })).rejects.toThrow("killed");
    await apply({ environment: { A: "1" } });
    expect(agent.driver.calls.filter((call) => call === "start").length).toBeGreaterThanOrEqual(2);
    expect(agent.driver.guests.get(name)?.state).toBe("running");
  });

  it.for<[string, () => Promise<unknown>, string, string]>([
    ["a cloudlet of another stack", async () => (await apply(), apply({ owner: "other/stack" })), "CONFLICT", "belongs to p/s"],
    ["a base that was never sent", () => apply({ base: { digest: digestText("none") } }), "NOT_FOUND", "no data"],
    ["a kind that the node has not", () => apply({ kind: "lxd" }), "REFUSED", "hypervisor is kvm"],
    [
      "a host port that another cloudlet has",
      async () => (
        await apply({ id: "a/b", ports: [{ port: 1, hostPort: 8080, protocol: "tcp" }] }),
        apply({ ports: [{ port: 2, hostPort: 8080, protocol: "tcp" }] })
      ),
      "CONFLICT",
      "cloudlet a/b",
    ],
    [
      "a host port that the node itself uses",
      () => apply({ ports: [{ port: 22, hostPort: 22, protocol: "tcp" }] }),
      "CONFLICT",
      "used by the node",
    ],
    ["a volume that is not declared", () => apply({ volumes: [{ id: "v", path: "/v" }] }), "REFUSED", "not declared"],
    ["a pattern that is none", () => apply({ ready: { log: "(", timeoutSeconds: 1 } }), "INVALID", "ready.log"],
  ])("refuses %s", async ([, act, code, text]) => {
    await expect(act()).rejects.toMatchObject({ code, message: expect.stringContaining(text) });
  });

  it("lets tcp and udp share a port number", async () => {
    await apply({ id: "a/b", ports: [{ port: 1, hostPort: 8080, protocol: "tcp" }] });
    await apply({ ports: [{ port: 2, hostPort: 8080, protocol: "udp" }] });
    expect(agent.driver.guests.size).toBe(2);
  });

  it.each(["released", "incoming"] as const)("refuses to run a cloudlet that is %s", async (role) => {
    await apply({ state: "stopped" });
    const record = await agent.services.records.read("shop/counter");
    if (record !== undefined) await agent.services.records.write({ ...record, ownership: { epoch: 2, role, peer: "gw2" } });
    await expect(apply()).rejects.toMatchObject({ code: "REFUSED", message: expect.stringContaining("gw2") });
    expect(agent.driver.guests.get(name)?.state).toBe("stopped");
  });

  it("makes one anew where the last of this id was given away and the caller knows of none", async () => {
    await apply();
    const record = await agent.services.records.read("shop/counter");
    if (record !== undefined) await agent.services.records.write({ ...record, ownership: { epoch: 4, role: "released", peer: "gw2" } });
    expect((await apply({}, { fresh: true })).ownership.role).toBe("owner");
  });
});

describe("a changed base", () => {
  it("is refused where the disk would be lost", async () => {
    await apply();
    await expect(apply({ base: { digest: await agent.store("base 2") } })).rejects.toMatchObject({ code: "REFUSED" });
    expect(agent.driver.guests.get(name)?.basePath).toContain(base);
  });

  it.each([undefined, "saved", "removed", "rebuilt", "started"])(
    "carries the state files over, also after a crash at %s",
    async (crashAt) => {
      await apply({ stateFiles: ["/data"] });
      const guest = agent.driver.guests.get(name);
      if (guest !== undefined) guest.contents = "counter=7";
      const change = { stateFiles: ["/data"], base: { digest: await agent.store("base 2") } };
      if (crashAt !== undefined) await expect(apply(change, { crashAt })).rejects.toThrow("killed");
      expect(await apply(change)).toMatchObject({ status: "running", imageDigest: change.base.digest });
      expect(agent.driver.guests.get(name)).toMatchObject({ contents: "counter=7", state: "running" });
      expect(agent.driver.guests.get(name)?.basePath).toContain(change.base.digest);
    },
  );
});

describe("instance.remove", () => {
  it("removes guest and record, and a second time nothing", async () => {
    await apply({ ports: [{ port: 80, hostPort: 8080, protocol: "tcp" }] });
    await removeInstance(agent.services, { id: "shop/counter", owner: "p/s" }, context());
    await removeInstance(agent.services, { id: "shop/counter", owner: "p/s" }, context());
    expect(agent.driver.guests.size).toBe(0);
    expect(await instanceStatus(agent.services, "shop/counter")).toBeUndefined();
    expect(agent.published()).toEqual([]);
  });

  it.each(["stopped", "removed", "forgotten"])("continues after a crash at step %s", async (step) => {
    await apply();
    await expect(removeInstance(agent.services, { id: "shop/counter", owner: "p/s" }, context(step))).rejects.toThrow("killed");
    await removeInstance(agent.services, { id: "shop/counter", owner: "p/s" }, context());
    expect(agent.driver.guests.size).toBe(0);
    expect(await agent.services.records.list()).toEqual([]);
  });

  it("leaves the cloudlet of another stack alone", async () => {
    await apply();
    await expect(removeInstance(agent.services, { id: "shop/counter", owner: "other/stack" }, context())).rejects.toMatchObject({
      code: "CONFLICT",
    });
    expect(agent.driver.guests.size).toBe(1);
  });
});

describe("status", () => {
  it("says missing, not absent, where the hypervisor lost the guest", async () => {
    await apply();
    agent.driver.guests.clear();
    expect(await instanceStatus(agent.services, "shop/counter")).toMatchObject({ status: "missing", ready: false });
  });

  it("is an error, never absent, where the hypervisor is silent", async () => {
    await apply();
    agent.driver.silent = true;
    await expect(instanceStatus(agent.services, "shop/counter")).rejects.toMatchObject({ code: "UNREACHABLE" });
  });

  it("refuses commands in a cloudlet that does not run", async () => {
    await apply({ state: "stopped" });
    const call = instanceExec(agent.services, "shop/counter", {
      request: { command: ["id"], timeoutSeconds: 5 },
      signal: context().signal,
    });
    await expect(call).rejects.toMatchObject({ code: "REFUSED" });
  });
});

describe("when the agent starts", () => {
  it.for<[string, Partial<InstanceSpec>, "owner" | "released" | "incoming", "running" | "stopped"]>([
    ["starts what should run", {}, "owner", "running"],
    ["leaves alone what should be stopped", { state: "stopped" }, "owner", "stopped"],
    ["never starts what was given away", {}, "released", "stopped"],
    ["never starts what has not been activated", {}, "incoming", "stopped"],
  ])("it %s", async ([, change, role, state]) => {
    await apply(change);
    const record = await agent.services.records.read("shop/counter");
    if (record !== undefined) await agent.services.records.write({ ...record, ownership: { epoch: 1, role } });
    const guest = agent.driver.guests.get(name);
    if (guest !== undefined) guest.state = "stopped";
    const again = await testAgent({ root: agent.root, driver: agent.driver });
    await recover(again.services, context());
    expect(agent.driver.guests.get(name)?.state).toBe(state);
    expect(again.published().length).toBe(1);
  });

  it("does not start a guest whose state is still aside", async () => {
    await apply({ stateFiles: ["/data"] });
    const change = { stateFiles: ["/data"], base: { digest: await agent.store("base 2") } };
    await expect(apply(change, { crashAt: "saved" })).rejects.toThrow("killed");
    await recover(agent.services, context());
    expect(agent.driver.guests.get(name)?.state).toBe("stopped");
  });
});

describe("readiness", () => {
  const target = (ready: Parameters<typeof waitReady>[0]["ready"], log = "listening on 80\n") => ({
    id: "shop/counter",
    address: "127.0.0.1",
    ready,
    log: () => Promise.resolve(log),
  });

  it("is a line on the console", async () => {
    await waitReady(target({ log: "^listening", timeoutSeconds: 1 }), context().signal);
  });

  it("is an HTTP answer below 400", async () => {
    const server = http.createServer((request, response) => response.writeHead(request.url === "/ok" ? 200 : 500).end());
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const address = server.address();
    const port = address !== null && typeof address === "object" ? address.port : 0;
    await waitReady(target({ tcp: { port }, http: { port, path: "/ok" }, timeoutSeconds: 2 }), context().signal);
    await expect(waitReady(target({ http: { port, path: "/no" }, timeoutSeconds: 0 }), context().signal)).rejects.toMatchObject({
      message: expect.stringContaining("answers 500"),
    });
    server.close();
  });

  it("that does not come within its deadline is TIMEOUT with the console's last lines", async () => {
    const wait = waitReady(target({ log: "never", timeoutSeconds: 0 }, "kernel panic\n"), context().signal);
    await expect(wait).rejects.toMatchObject({ code: "TIMEOUT", message: expect.stringContaining("kernel panic") });
  });
});

describe("volumes", () => {
  const volume = { id: "data", owner: "p/s", kind: "kvm", sizeMib: 8 } as const;

  it("attach, hold on, and let go", async () => {
    const { volumes } = agent.services;
    expect(await volumes.apply(volume, false, context())).toMatchObject({ place: "here" });
    await apply({ volumes: [{ id: "data", path: "/data" }] });
    expect(await volumes.status("data")).toMatchObject({ attachedTo: "shop/counter" });
    await expect(volumes.remove("data", { owner: "p/s", retain: false }, context())).rejects.toMatchObject({ code: "REFUSED" });
    await expect(apply({ id: "a/b", volumes: [{ id: "data", path: "/data" }] })).rejects.toMatchObject({ code: "CONFLICT" });
    await apply();
    await volumes.remove("data", { owner: "p/s", retain: false }, context());
    expect(await volumes.status("data")).toBeUndefined();
  });

  it("that are awaited cannot be attached yet", async () => {
    expect(await agent.services.volumes.apply(volume, true, context())).toMatchObject({ place: "awaited" });
    await expect(apply({ volumes: [{ id: "data", path: "/data" }] })).rejects.toMatchObject({ code: "REFUSED" });
  });

  it("that were retained come back with their data", async () => {
    const { volumes } = agent.services;
    await volumes.apply(volume, false, context());
    await volumes.remove("data", { owner: "p/s", retain: true }, context());
    expect(await volumes.status("data")).toBeUndefined();
    await expect(volumes.apply({ ...volume, owner: "other/stack" }, false, context())).rejects.toMatchObject({ code: "CONFLICT" });
    expect(await volumes.apply(volume, false, context())).toMatchObject({ place: "here" });
  });
});

describe("the hypervisor", () => {
  it("is one per node and stays while cloudlets are on it", async () => {
    const { hypervisors } = agent.services;
    await expect(hypervisors.apply({ kind: "lxd", owner: "p/s" }, context())).rejects.toMatchObject({ code: "REFUSED" });
    await apply();
    expect(await hypervisors.status()).toMatchObject({ kind: "kvm", cloudlets: ["shop/counter"] });
    await expect(hypervisors.remove("p/s", context())).rejects.toMatchObject({
      code: "REFUSED",
      message: expect.stringContaining("shop/counter"),
    });
    await removeInstance(agent.services, { id: "shop/counter", owner: "p/s" }, context());
    await hypervisors.remove("p/s", context());
    expect(await hypervisors.status()).toBeUndefined();
  });
});
