import { readdir } from "node:fs/promises";
import { z } from "zod";
import { forgetProcess, kill, livePid, spawnDetached } from "../../agent/detached.ts";
import { run } from "../../agent/process.ts";
import { CloudletError } from "../../core/errors.ts";
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
  const [gatewayMac] = await Promise.all([macOf(guest.network.bridge, guest.name), run(["ip", "netns", "add", namespace])]);
  const outer = outerName(guest.name);
  await run(["ip", "-batch", "-"], {
    stdin: `link add ${outer} type veth peer name uplink netns ${namespace}\nlink set ${outer} master ${guest.network.bridge} up\n`,
  });
  const script = namespaceScript(guest.network, inside, { tap: tapName(guest.name), gatewayMac, user });
  const [program, ...argv] = enterNamespace(namespace, ["sh", "-e"]);
  await run([program, ...argv], { stdin: script });
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

/** Set up inside the namespace, the tap included; nothing leaves before the rules are there. */
function namespaceScript(
  outside: Guest["network"],
  inside: Inside,
  { tap, gatewayMac, user }: { tap: string; gatewayMac: string; user: string | undefined },
): string {
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
link set ${tap} address ${gatewayMac}
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
route add default via ${gateway} dev uplink
END
`;
}

function outerName(guest: string): string {
  return tapName(guest).replace(/^cl/, "cv");
}

const linksSchema = z.array(z.object({ address: z.string() }));

/** What the guest's memory holds as its gateway's MAC: every node's bridge has the same. */
async function macOf(bridge: string, guest: string): Promise<string> {
  const { stdout, exitCode } = await run(["ip", "-json", "link", "show", "dev", bridge], { okCodes: [0, 1] });
  const mac = exitCode === 0 ? linksSchema.parse(JSON.parse(stdout))[0]?.address : undefined;
  if (mac === undefined) throw new CloudletError("FAILED", `guest ${guest} cannot start: the bridge ${bridge} is not there`);
  return mac;
}
