import { readdir } from "node:fs/promises";
import { forgetProcess, kill, livePid, spawnDetached } from "../../agent/detached.ts";
import { run } from "../../agent/process.ts";
import { CloudletError, describeError } from "../../core/errors.ts";
import type { Guest } from "../types.ts";
import { isThere, tapName } from "./tap.ts";
import type { Nic } from "./tap.ts";

/** What the guest in saved memory believes to be its network. */
export interface Inside {
  mac: string;
  address: string;
}

/**
 * A network namespace in which a guest is who it believes to be: its tap is there, the gateway's MAC answers for every
 * address, and a DHCP server gives it its address again. Outside it is who it should be: a veth on the bridge has the
 * cloudlet's own address and MAC, and everything is translated one to one. So guests of one memory run side by side.
 */
export async function ensureOwnNetwork(guest: Guest, inside: Inside, user: string | undefined): Promise<Nic> {
  await removeOwnNetwork(guest);
  const namespace = tapName(guest.name);
  const script = outsideScript(guest, namespace, namespaceScript(guest.network, inside, { tap: tapName(guest.name), user }));
  try {
    // one process, as each one that the agent starts costs the guest's first answer some milliseconds
    await run(["sh", "-e"], { stdin: script });
  } catch (cause) {
    throw new CloudletError("FAILED", `the network of guest ${guest.name} cannot be made: ${describeError(cause)}`, { cause });
  }
  return { tap: tapName(guest.name), mac: inside.mac, namespace };
}

/** For a guest that starts anew in its namespace: what it asks by DHCP is answered there as it was where its memory was made. */
export async function answerDhcp(guest: Guest, inside: Inside): Promise<void> {
  const { gateway, address } = guest.network;
  const network = `${address.split(".").slice(0, 2).join(".")}.0.0,static,255.255.0.0`;
  const argv = [
    ...[
      "dnsmasq",
      "--keep-in-foreground",
      "--conf-file=/dev/null",
      "--port=0",
      `--interface=${tapName(guest.name)}`,
      "--except-interface=lo",
    ],
    ...["--bind-interfaces", "--dhcp-authoritative", "--no-ping", `--dhcp-range=${network}`, "--pid-file=", "--log-facility=-"],
    ...[`--dhcp-host=${inside.mac},${inside.address},infinite`, `--dhcp-leasefile=${guest.directory}/dhcp.leases`, "--user=root"],
    ...[`--dhcp-option=option:router,${gateway}`, `--dhcp-option=option:dns-server,${gateway}`],
  ];
  await spawnDetached(guest.directory, enterNamespace(tapName(guest.name), argv), { name: dhcp });
}

export async function removeOwnNetwork(guest: Pick<Guest, "name" | "directory">): Promise<void> {
  if ((await livePid(guest.directory, dhcp)) !== undefined) await kill(guest.directory, `guest ${guest.name}`, dhcp);
  await forgetProcess(guest.directory, dhcp);
  // the kernel clears a namespace away later, and the name of this end is wanted at once
  if (await isThere(outerName(guest.name))) await run(["ip", "link", "delete", outerName(guest.name)]);
  const namespaces = await readdir("/run/netns").catch((): string[] => []);
  if (namespaces.includes(tapName(guest.name))) await run(["ip", "netns", "delete", tapName(guest.name)]);
}

/** Not `ip netns exec`: that would also give the process a mount namespace of its own. */
export function enterNamespace(namespace: string, argv: string[]): [string, ...string[]] {
  return ["nsenter", `--net=/run/netns/${namespace}`, "--", ...argv];
}

const dhcp = "dhcp";

/** What the guest's memory holds as its gateway's MAC, which every node's bridge has, is $gateway for the script inside. */
function outsideScript({ name, network: { bridge } }: Guest, namespace: string, inside: string): string {
  return `gateway=$(ip -o link show dev ${bridge} | sed -n 's/.* link.ether \\([0-9a-f:]*\\) .*/\\1/p')
if [ -z "$gateway" ]; then echo "the bridge ${bridge} is not there" >&2; exit 1; fi
ip netns add ${namespace}
ip -batch - <<OUTSIDE
link add ${outerName(name)} type veth peer name uplink netns ${namespace}
link set ${outerName(name)} master ${bridge} up
OUTSIDE
${enterNamespace(namespace, ["sh", "-e"]).join(" ")} <<INSIDE
${inside}INSIDE
`;
}

/**
 * Set up inside the namespace, the tap included; nothing leaves before the rules are there. The guest's MAC is known, and
 * asking for it before the guest runs would make whoever connects first wait for a second.
 */
function namespaceScript(outside: Guest["network"], inside: Inside, { tap, user }: { tap: string; user: string | undefined }): string {
  const { address, prefix, mac, gateway } = outside;
  return `echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || true
nft -f - <<END
table ip cloudlet {
  chain arriving {
    type nat hook prerouting priority dstnat; policy accept;
    iifname "uplink" ip daddr ${address} dnat to ${inside.address}
  }
  chain leaving {
    type nat hook postrouting priority srcnat; policy accept;
    oifname "uplink" ip saddr ${inside.address} snat to ${address}
  }
}
END
ip -batch - <<END
link set lo up
tuntap add dev ${tap} mode tap${user === undefined ? "" : ` user ${user}`}
link set ${tap} address $gateway
link set uplink address ${mac}
END
echo 1 >/proc/sys/net/ipv4/conf/${tap}/proxy_arp
echo 0 >/proc/sys/net/ipv4/neigh/${tap}/proxy_delay
echo 1 >/proc/sys/net/ipv4/conf/uplink/arp_notify
ip -batch - <<END
address add ${address}/${String(prefix)} dev uplink
address add ${address}/32 dev ${tap}
link set ${tap} up
link set uplink up
route add ${inside.address}/32 dev ${tap}
neigh replace ${inside.address} lladdr ${inside.mac} dev ${tap} nud permanent
route add default via ${gateway} dev uplink
END
`;
}

function outerName(guest: string): string {
  return tapName(guest).replace(/^cl/, "cv");
}
