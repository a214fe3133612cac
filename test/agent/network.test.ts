import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { dhcpHostsText, graceMillis, listeningPorts, nftablesText, passages, publications } from "../../provider/agent/networkText.ts";
import { allocateNetwork } from "../../provider/agent/records.ts";
import type { InstanceRecord } from "../../provider/agent/records.ts";
import { digestText, spec } from "./fixture.ts";

function record(id: string, hostPort: number, role: InstanceRecord["ownership"]["role"] = "owner"): InstanceRecord {
  return {
    spec: spec(digestText("base"), { id, ports: [{ port: 80, hostPort, protocol: "tcp" }] }),
    ownership: { epoch: 1, role },
    network: allocateNetwork(id, new Set()),
    complete: true,
    restartPending: false,
  };
}

describe("addresses", () => {
  it("are the same for the same id on every node", () => {
    expect(allocateNetwork("shop/counter", new Set())).toEqual(allocateNetwork("shop/counter", new Set()));
  });

  it("are unique, inside the guests' network, and never its edges", () => {
    fc.assert(
      fc.property(fc.uniqueArray(fc.string({ minLength: 1 }), { maxLength: 60 }), (ids) => {
        const taken = new Set<string>();
        const macs = new Set<string>();
        for (const id of ids) {
          const { address, mac } = allocateNetwork(id, taken);
          expect(taken.has(address)).toBe(false);
          expect(address).toMatch(/^10\.87\.(?:[1-9]|[1-9]\d|1\d\d|2[0-4]\d|25[0-4])\.(?:[1-9]|[1-9]\d|1\d\d|2[0-4]\d|25[0-4])$/);
          expect(mac).toMatch(/^02:00:0a:57:[0-9a-f]{2}:[0-9a-f]{2}$/);
          taken.add(address);
          macs.add(mac);
        }
        expect(macs.size).toBe(ids.length);
      }),
    );
  });

  it("go to the next free one where another cloudlet has it", () => {
    const first = allocateNetwork("shop/counter", new Set());
    const second = allocateNetwork("shop/counter", new Set([first.address]));
    expect(second.address).not.toBe(first.address);
    expect(second.mac).not.toBe(first.mac);
  });
});

describe("the rules", () => {
  it("publish the ports of owned cloudlets only, for the network and for the node itself", () => {
    const text = nftablesText(publications([record("a/a", 8080), record("b/b", 8081, "incoming"), record("c/c", 8082, "released")]));
    const { address } = allocateNetwork("a/a", new Set());
    expect(text.match(new RegExp(`tcp dport 8080 dnat ip to ${address}:80`, "g"))?.length).toBe(2);
    expect(text).not.toMatch(/808[12]/);
  });

  it("replace the table as a whole in one transaction", () => {
    expect(nftablesText([])).toMatch(/^table inet cloudlet \{\n\}\ndelete table inet cloudlet\ntable inet cloudlet \{\n/);
  });

  it("do not depend on the order of the records", () => {
    const records = [record("a/a", 8080), record("b/b", 80)];
    expect(nftablesText(publications(records))).toBe(nftablesText(publications([...records].reverse())));
    expect(dhcpHostsText(records)).toBe(dhcpHostsText([...records].reverse()));
  });
});

describe("clients of a node that a cloudlet has left", () => {
  const forward = { address: "192.0.2.7", ports: [{ protocol: "tcp" as const, hostPort: 8080, targetPort: 9090 }], since: 1_000_000 };
  const left = (role: InstanceRecord["ownership"]["role"]): InstanceRecord => ({ ...record("a/a", 8080, role), forward });
  const at = (millis: number) => passages([left("released")], forward.since + millis).map(({ leftMillis }) => leftMillis);

  it("are passed on until the time is over, and the rules end with it by themselves", () => {
    const text = nftablesText([], passages([left("released")], forward.since + 1_000));
    expect(text).toContain(`elements = { tcp . 8080 timeout ${graceMillis - 1_000}ms }`);
    expect(text.match(/tcp dport 8080 dnat ip to 192\.0\.2\.7:9090/g)).toHaveLength(2);
  });

  it("are not when it is over, nor after the node's clock was set back", () => {
    expect([at(0), at(graceMillis - 1)]).toEqual([[graceMillis], [1]]);
    expect([at(graceMillis), at(-1)]).toEqual([[], []]);
  });

  it("are until the cloudlet, on its way back, runs here again", () => {
    const count = (role: InstanceRecord["ownership"]["role"]) => passages([left(role)], forward.since).length;
    expect([count("incoming"), count("owner")]).toEqual([1, 0]);
  });

  it("cost nothing where there are none", () => {
    expect(nftablesText([], [])).not.toMatch(/zone|passed/);
  });
});

describe("ports that the node itself uses", () => {
  const text = `  sl  local_address rem_address   st tx_queue rx_queue
   0: 0100007F:0016 00000000:0000 0A 00000000:00000000
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000
   2: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 00000000:00000000
   3: 00000000:0035 00000000:0000 07 00000000:00000000
`;
  it("are those on which something listens", () => {
    expect([...listeningPorts(text, "tcp")]).toEqual([22, 443]);
    expect([...listeningPorts(text, "udp")]).toEqual([53]);
  });
});
