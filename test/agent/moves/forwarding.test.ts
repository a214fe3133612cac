import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { applyInstance } from "../../../provider/agent/instanceApply.ts";
import { passClientsOn } from "../../../provider/agent/moves/forwarding.ts";
import type { InstanceRecord } from "../../../provider/agent/records.ts";
import { CloudletError } from "../../../provider/core/errors.ts";
import { context, digestText, spec, testAgent, type TestAgent } from "../fixture.ts";

const id = "shop/counter";
const ports = [
  { port: 80, hostPort: 8080, protocol: "tcp" as const },
  { port: 53, hostPort: 5353, protocol: "udp" as const },
];
const published = [
  { port: 53, hostPort: 5353, protocol: "udp" as const },
  { port: 80, hostPort: 9090, protocol: "tcp" as const },
];

let agent: TestAgent;
let said: string[];
beforeEach(async () => {
  agent = await testAgent();
  said = [];
  await agent.services.records.write({
    spec: spec(digestText("base"), { ports }),
    ownership: { epoch: 2, role: "released", peer: "gw2" },
    network: { mac: "02:00:0a:57:01:01", address: "10.87.1.1" },
    complete: true,
    restartPending: false,
    leaving: true,
  });
});
afterEach(() => agent.remove());

async function record(): Promise<InstanceRecord> {
  const found = await agent.services.records.read(id);
  if (found === undefined) throw new Error("there is no record");
  return found;
}

/** As if the target had been reached at this address. */
async function pass(reachedAt: string | undefined): Promise<void> {
  const watched = { ...context(), status: (text: string) => said.push(text) };
  await passClientsOn(agent.services, await record(), { there: { address: reachedAt, ports: published }, context: watched });
}

describe("after a move the source", () => {
  it("passes clients on to what the same port of the guest is published as there", async () => {
    await pass("192.0.2.7");
    const passed = [
      { protocol: "tcp", hostPort: 8080, targetPort: 9090 },
      { protocol: "udp", hostPort: 5353, targetPort: 5353 },
    ];
    expect((await record()).forward).toMatchObject({ address: "192.0.2.7", ports: passed });
    expect(agent.published()).toEqual([await record()]);
    expect(said).toEqual([]);
  });

  it("says so where the data went through the operator, or by IPv6, and passes nobody on", async () => {
    await pass(undefined);
    await pass("2001:db8::7");
    expect((await record()).forward).toBeUndefined();
    expect(said).toEqual([
      `clients of this node are not passed on to the new place of ${id}: the nodes cannot reach each other directly`,
      `clients of this node are not passed on to the new place of ${id}: the other node is reached by IPv6 only, at 2001:db8::7`,
    ]);
  });

  it("publishes the rest all the same where the kernel cannot do it", async () => {
    const { publish } = agent.services.network;
    agent.services.network.publish = async (records) => {
      if (records.some(({ forward }) => forward !== undefined)) throw new CloudletError("FAILED", "no zones in this kernel");
      return publish(records);
    };
    await pass("192.0.2.7");
    expect(said.join()).toContain(`clients of this node are not passed on to the new place of ${id}: no zones in this kernel`);
    expect(agent.published()).toEqual([await record()]);
    expect((await record()).forward).toBeUndefined();
  });

  it("leaves a port to another cloudlet that has it by then, or that wants it later", async () => {
    const base = await agent.store("base");
    const want = (other: string, port: (typeof ports)[number]) =>
      applyInstance(agent.services, { spec: spec(base, { id: other, ports: [port] }), fresh: true }, context());
    await want("shop/first", { port: 80, hostPort: 8080, protocol: "tcp" });
    await pass("192.0.2.7");
    expect((await record()).forward?.ports).toEqual([{ protocol: "udp", hostPort: 5353, targetPort: 5353 }]);
    await want("shop/second", { port: 53, hostPort: 5353, protocol: "udp" });
    expect((await record()).forward).toBeUndefined();
  });
});
