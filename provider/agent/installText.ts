import { z } from "zod";
import { guestUser, infoSchema, paths } from "./protocol.ts";
import type { AgentInfo, Kind } from "./protocol.ts";

export const agentFile = `${paths.root}/agent.js`;
export const unitFile = "/etc/systemd/system/cloudlet-agent.service";
export const initFile = "/etc/init.d/cloudlet-agent";
export const oldestNode = 18;

const commonPackages = ["nftables", "dnsmasq-base", "zstd", "openssl", "iproute2"];
const kindPackages: Record<Kind, string[]> = { kvm: ["qemu-system-x86", "qemu-utils", "genisoimage", "e2fsprogs"], lxd: ["lxd"] };
const everyPackage = [...commonPackages, ...kindPackages.kvm, ...kindPackages.lxd, "nodejs"];

/** What is kept on the node: what was added, and for which kinds. */
export const commissionSchema = z.object({
  owners: z.array(z.string()),
  packages: z.array(z.string()),
  user: z.boolean(),
  sysctl: z.record(z.string(), z.string()),
  kinds: z.array(z.enum(["kvm", "lxd"])),
});
export type StoredCommission = z.infer<typeof commissionSchema>;

/** Everything that commissioning wants to know of a node, from one round trip. */
export interface NodeFacts {
  os: { id: string; version: string; name: string };
  systemd: boolean;
  /** Version and path of the Node runtime, if any. */
  node: { major: number; path: string } | undefined;
  /** Major version of the distribution's own Node. */
  nodeCandidate: number;
  installed: ReadonlySet<string>;
  /** An LXD answers here already, whoever installed it. */
  lxd: boolean;
  user: boolean;
  forward: string;
  agentDigest: string | undefined;
  /** The running agent's answer. */
  info: AgentInfo | undefined;
  record: StoredCommission | undefined;
}

/** Prints the facts, one `key=value` per line. */
export function factsScript(): string {
  return `
has() { case "$(dpkg-query -W -f='\${db:Status-Status}' "$1" 2>/dev/null)" in installed | triggers-*) ;; *) return 1 ;; esac; }
value() { [ -r /etc/os-release ] && ( . /etc/os-release; eval "printf %s \\"\\$$1\\"" ); }
echo "os.id=$(value ID)"
echo "os.version=$(value VERSION_ID)"
echo "os.name=$(value PRETTY_NAME)"
[ -d /run/systemd/system ] && echo systemd=yes
node=$(command -v node || command -v nodejs) && echo "node=$node" && echo "node.version=$("$node" --version)"
[ -n "$node" ] || echo "node.candidate=$(apt-cache policy nodejs 2>/dev/null | sed -n 's/^ *Candidate: *//p')"
for name in ${everyPackage.join(" ")}; do
  has "$name" && echo "package=$name"
done
if [ -r ${paths.commission} ]; then
  for name in $(tr -d '[]",' <${paths.commission} | tr -s ' \\n' '\\n\\n' | grep -E '^[a-z0-9][a-z0-9.+-]*(:[a-z0-9]+)?$'); do
    has "$name" && echo "package=$name"
  done
fi
{ [ -S /var/lib/lxd/unix.socket ] || [ -S /var/snap/lxd/common/lxd/unix.socket ]; } && echo lxd=yes
getent passwd ${guestUser} >/dev/null && echo user=yes
echo "forward=$(cat /proc/sys/net/ipv4/ip_forward)"
[ -r ${agentFile} ] && echo "agent=$(sha256sum ${agentFile} | cut -d' ' -f1)"
[ -n "$node" ] && [ -S ${paths.socket} ] && [ -r ${agentFile} ] && echo "info=$(${infoCommand('"$node"')})"
[ -r ${paths.commission} ] && echo "record=$(base64 -w0 ${paths.commission})"
true
`;
}

export function parseFacts(output: string): NodeFacts {
  const values = new Map<string, string>();
  const installed = new Set<string>();
  for (const line of output.split("\n")) {
    const [, key = "", value = ""] = /^([a-z.]+)=(.*)$/.exec(line) ?? [];
    if (key === "package") installed.add(value);
    else if (key !== "") values.set(key, value);
  }
  const text = (key: string): string => values.get(key) ?? "";
  const nodePath = text("node");
  const record = values.get("record");
  return {
    os: { id: text("os.id"), version: text("os.version"), name: text("os.name") },
    systemd: values.has("systemd"),
    node: nodePath === "" ? undefined : { path: nodePath, major: majorOf(text("node.version")) },
    nodeCandidate: majorOf(text("node.candidate")),
    installed,
    lxd: values.has("lxd"),
    user: values.has("user"),
    forward: text("forward"),
    agentDigest: values.get("agent"),
    info: parseInfo(text("info")),
    record: record === undefined ? undefined : commissionSchema.parse(JSON.parse(Buffer.from(record, "base64").toString("utf8"))),
  };
}

/** undefined = fine; else what is wrong with this platform. */
export function platformProblem({ id, version, name }: NodeFacts["os"]): string | undefined {
  const found = name === "" ? `${id} ${version}`.trim() || "an unknown system" : name;
  const [major = 0, minor = 0] = version.split(".").map(Number);
  // Debian's testing and unstable have no version
  if (id === "debian") return version === "" || major >= 12 ? undefined : `${found} is older than Debian 12`;
  if (id === "ubuntu") {
    if (minor !== 4 || major % 2 !== 0) return `${found} is not an LTS release`;
    return major >= 22 ? undefined : `${found} is older than Ubuntu 22.04`;
  }
  return `${found} is neither Debian nor Ubuntu`;
}

export function requiredPackages(facts: Pick<NodeFacts, "node" | "lxd">, kinds: readonly Kind[]): string[] {
  const packages = [...commonPackages];
  if (kinds.includes("kvm")) packages.push(...kindPackages.kvm);
  if (kinds.includes("lxd") && !facts.lxd) packages.push(...kindPackages.lxd);
  if (facts.node === undefined || facts.node.major < oldestNode) packages.push("nodejs");
  return packages;
}

/** Packages that apt says it is going to install, from `apt-get -s install`. */
export function plannedPackages(simulation: string): string[] {
  return [...simulation.matchAll(/^Inst (\S+) (?!\[)/gm)].map((match) => match[1] ?? "").filter((name) => name !== "");
}

export function missingFrom(required: readonly string[], installed: ReadonlySet<string>): string[] {
  return required.filter((name) => !installed.has(name));
}

export function systemdUnit(node: string): string {
  return `[Unit]
Description=cloudlet agent
Wants=network-online.target
After=network-online.target lxd.service snap.lxd.daemon.service
# never given up, however often it ends
StartLimitIntervalSec=0

[Service]
EnvironmentFile=-/etc/default/cloudlet-agent
ExecStart=${node} ${agentFile} serve
Restart=always
RestartSec=1
# guests are not the agent's children to end
KillMode=process
StandardOutput=append:${paths.log}
StandardError=append:${paths.log}

[Install]
WantedBy=multi-user.target
`;
}

/** The same where there is no systemd: a loop starts the agent again when it was killed. */
export function initScript(node: string): string {
  return `#!/bin/sh
### BEGIN INIT INFO
# Provides:          cloudlet-agent
# Required-Start:    $local_fs $network $remote_fs
# Required-Stop:     $local_fs $network $remote_fs
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: cloudlet agent
### END INIT INFO
pidfile=/run/cloudlet/agent.pid

start_agent() {
  [ -r /etc/default/cloudlet-agent ] && { set -a; . /etc/default/cloudlet-agent; set +a; }
  exec ${node} ${agentFile} serve
}

supervise() {
  trap 'kill "$child" 2>/dev/null; wait "$child"; exit 0' TERM INT
  while :; do
    start_agent &
    child=$!
    wait "$child" && exit 0
    sleep 1
  done
}

case "$1" in
  start)
    mkdir -p /run/cloudlet
    start-stop-daemon --start --oknodo --background --make-pidfile --pidfile "$pidfile" --startas /bin/sh -- -c 'exec "$0" supervise </dev/null >>${paths.log} 2>&1' ${initFile}
    ;;
  stop)
    start-stop-daemon --stop --oknodo --retry TERM/20/KILL/5 --pidfile "$pidfile" --remove-pidfile
    ;;
  restart | force-reload)
    "$0" stop
    "$0" start
    ;;
  status)
    start-stop-daemon --status --pidfile "$pidfile"
    ;;
  supervise)
    supervise
    ;;
  *)
    echo "usage: $0 {start|stop|restart|status}" >&2
    exit 2
    ;;
esac
`;
}

export function serviceCommand(action: "start" | "stop" | "restart", systemd: boolean): string {
  return systemd ? `systemctl ${action} cloudlet-agent` : `${initFile} ${action}`;
}

/** Prints the running agent's AgentInfo; nothing where it does not answer. */
export function infoCommand(node: string): string {
  return `printf 'GET /v1/info HTTP/1.0\\r\\n\\r\\n' | timeout 10 ${node} ${agentFile} bridge ${paths.socket} 2>/dev/null | tail -n 1`;
}

export function parseInfo(text: string): AgentInfo | undefined {
  try {
    return infoSchema.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

function majorOf(version: string): number {
  // an epoch (`1:18.2`) and a leading v are no part of it
  return Number(/^v?(?:\d+:)?(\d+)/.exec(version)?.[1] ?? 0);
}
