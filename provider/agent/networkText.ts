import { subnet } from "./records.ts";
import type { InstanceRecord } from "./records.ts";

type Publication = { address: string; port: number; hostPort: number; protocol: "tcp" | "udp" };

/** What is published on this node: the ports of every cloudlet that it owns. */
export function publications(records: readonly InstanceRecord[]): Publication[] {
  return records
    .filter((record) => record.ownership.role === "owner")
    .flatMap(({ spec, network }) => spec.ports.map((port) => ({ address: network.address, ...port })))
    .sort((a, b) => a.hostPort - b.hostPort || a.protocol.localeCompare(b.protocol));
}

/** The one nftables table, replaced as a whole in one transaction. */
export function nftablesText(published: readonly Publication[]): string {
  const rules = published.map(
    ({ protocol, hostPort, address, port }) =>
      `    meta nfproto ipv4 fib daddr type local ${protocol} dport ${String(hostPort)} dnat ip to ${address}:${String(port)}\n`,
  );
  return `table inet cloudlet {
}
delete table inet cloudlet
table inet cloudlet {
  chain guard {
    type filter hook prerouting priority raw; policy accept;
    iifname "${subnet.bridge}" ip daddr 127.0.0.0/8 drop
  }
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
${rules.join("")}  }
  chain output {
    type nat hook output priority -100; policy accept;
${rules.join("")}  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr ${subnet.cidr} ip daddr != ${subnet.cidr} masquerade
    ip saddr ${subnet.cidr} ip daddr ${subnet.cidr} ct status dnat masquerade
    ip saddr 127.0.0.0/8 oifname "${subnet.bridge}" masquerade
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname "${subnet.bridge}" accept
    oifname "${subnet.bridge}" accept
  }
}
`;
}

/** dnsmasq's list of fixed addresses. */
export function dhcpHostsText(records: readonly InstanceRecord[]): string {
  return records
    .map(({ network }) => `${network.mac},${network.address},infinite\n`)
    .sort()
    .join("");
}

export function dnsmasqArguments(directory: string): string[] {
  return [
    "--conf-file=/dev/null",
    `--interface=${subnet.bridge}`,
    "--except-interface=lo",
    "--bind-interfaces",
    "--dhcp-authoritative",
    "--no-ping",
    `--dhcp-range=${subnet.cidr.split("/")[0] ?? ""},static,255.255.0.0`,
    `--dhcp-hostsfile=${directory}/hosts`,
    `--dhcp-leasefile=${directory}/leases`,
    `--pid-file=${directory}/dnsmasq.pid`,
  ];
}

/** Ports on which programs of the node itself listen, from the text of /proc/net/{tcp,udp}{,6}. */
export function listeningPorts(procNet: string, protocol: "tcp" | "udp"): Set<number> {
  const found = new Set<number>();
  // 0A = LISTEN; an unconnected udp socket is in state 07
  const state = protocol === "tcp" ? "0A" : "07";
  for (const line of procNet.split("\n")) {
    const fields = line.trim().split(/\s+/);
    const port = /^[0-9A-F]+:([0-9A-F]{4})$/.exec(fields[1] ?? "")?.[1];
    if (port !== undefined && fields[3] === state) found.add(Number.parseInt(port, 16));
  }
  return found;
}
