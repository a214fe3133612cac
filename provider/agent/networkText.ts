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

/** How long clients of the node that a cloudlet has left are passed on. */
export const graceMillis = 10 * 60_000;

/** A port whose clients are passed on to another node. */
type Passage = { protocol: "tcp" | "udp"; hostPort: number; address: string; targetPort: number; leftMillis: number };

/** Who is passed on at this moment: clients of cloudlets that have gone elsewhere not long ago. */
export function passages(records: readonly InstanceRecord[], now: number): Passage[] {
  return (
    records
      .flatMap(({ ownership, forward }) => (forward === undefined || ownership.role === "owner" ? [] : [forward]))
      .flatMap(({ address, ports, since }) => ports.map((port) => ({ address, ...port, leftMillis: since + graceMillis - now })))
      // a clock that was set back must not make it longer
      .filter(({ leftMillis }) => leftMillis > 0 && leftMillis <= graceMillis)
      .sort((a, b) => a.hostPort - b.hostPort || a.protocol.localeCompare(b.protocol))
  );
}

/** The one nftables table, replaced as a whole in one transaction. */
export function nftablesText(published: readonly Publication[], passed: readonly Passage[] = []): string {
  const passing = passingText(passed);
  const rules = published.map(
    ({ protocol, hostPort, address, port }) =>
      `    meta nfproto ipv4 fib daddr type local ${protocol} dport ${String(hostPort)} dnat ip to ${address}:${String(port)}\n`,
  );
  return `table inet cloudlet {
}
delete table inet cloudlet
table inet cloudlet {
${passing.set}  chain guard {
    type filter hook prerouting priority raw; policy accept;
    iifname "${subnet.bridge}" ip daddr 127.0.0.0/8 drop
${passing.mark}  }
${passing.markOwn}  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
${passing.translate}${rules.join("")}  }
  chain output {
    type nat hook output priority -100; policy accept;
${passing.translate}${rules.join("")}  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
${passing.masquerade}    ip saddr ${subnet.cidr} ip daddr != ${subnet.cidr} masquerade
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

/** Connections that are passed on have a zone of their own, so that none is taken for one that led to the guest while it was here. */
const passingZone = 7443;

/**
 * The set forgets a port by itself when its time is over, whether the agent runs then or not. From that moment on packets
 * are in the usual zone again, where nothing is known of their connections: those that are open end, too.
 */
function passingText(passed: readonly Passage[]): Record<"set" | "mark" | "markOwn" | "translate" | "masquerade", string> {
  if (passed.length === 0) return { set: "", mark: "", markOwn: "", translate: "", masquerade: "" };
  const elements = passed.map(({ protocol, hostPort, leftMillis }) => `${protocol} . ${String(hostPort)} timeout ${String(leftMillis)}ms`);
  const mark = `    meta nfproto ipv4 ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto . th dport @passed ct original zone set ${String(passingZone)}\n`;
  const translate = passed.map(
    ({ protocol, hostPort, address, targetPort }) =>
      `    ct original zone ${String(passingZone)} ${protocol} dport ${String(hostPort)} dnat ip to ${address}:${String(targetPort)}\n`,
  );
  return {
    set: `  set passed {
    type inet_proto . inet_service
    flags timeout
    elements = { ${elements.join(", ")} }
  }
`,
    mark,
    markOwn: `  chain own {
    type filter hook output priority raw; policy accept;
${mark}  }
`,
    translate: translate.join(""),
    masquerade: `    ct original zone ${String(passingZone)} masquerade\n`,
  };
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
