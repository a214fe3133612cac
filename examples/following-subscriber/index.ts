import * as pulumi from "@pulumi/pulumi";
import { BaseImage, Cloudlet, EdgeCluster, Hypervisor, Node, Overlay } from "pulumi-cloudlet/dynamic";

interface Gateway {
  host: string;
  user?: string;
  hostKey?: string;
}

const config = new pulumi.Config();
const gateways = config.requireObject<Record<string, Gateway>>("gateways");
// without a key the SSH agent and the ssh configuration of whoever runs this are used
const privateKey = config.getSecret("privateKey");

const hypervisors = new Map<string, Hypervisor>();
for (const [name, gateway] of Object.entries(gateways)) {
  const node = new Node(name, { connection: privateKey ? { ...gateway, privateKey } : gateway });
  hypervisors.set(name, new Hypervisor(`kvm-${name}`, { node, kind: "kvm" }));
}

const subscriberAt = config.require("subscriberAt");
const nodes = [...hypervisors.values()];
const hypervisor = hypervisors.get(subscriberAt);
const [builder] = nodes;
if (!hypervisor || !builder)
  throw new pulumi.RunError(`subscriberAt is "${subscriberAt}"; it must be one of ${Object.keys(gateways).join(", ")}`);

const cluster = new EdgeCluster("walk", { application: "sessions" });

// along the whole way before the subscriber comes by
const base = new BaseImage("busybox", { file: config.require("base"), nodes });

const ready = { http: { port: 8080, path: "/ready" } };

/** Without a question it begins a session, with the id of one it takes a step in it. /run is memory: no disk has a session. */
const session = String.raw`#!/bin/sh
directory=/run/sessions
mkdir -p "$directory"
id=$QUERY_STRING
if [ -z "$id" ]; then
  read -r id </proc/sys/kernel/random/uuid
  echo 0 >"$directory/$id"
fi
case $id in *[!0-9a-f-]*) id=none ;; esac
if ! read -r steps 2>/dev/null <"$directory/$id"; then
  printf 'Status: 404 Not Found\r\n\r\n'
  exit
fi
steps=$((steps + 1))
# in place: a number that only grows covers the one before
echo "$steps" 1<>"$directory/$id"
printf 'Content-Type: application/json\r\n\r\n{"session": "%s", "steps": %d}\n' "$id" "$steps"
`;

const overlay = new Overlay("sessions", {
  base,
  builder,
  resources: { cores: 1, memoryMib: 192 },
  // they are there before the base starts its application, which is this one then
  files: [
    { path: "/srv/cgi-bin/session", content: session, mode: 0o755 },
    { path: "/srv/ready", content: "ready\n" },
    { path: "/etc/init.d/application", content: "#!/bin/sh\nexec httpd -f -p 8080 -h /srv\n", mode: 0o755 },
  ],
  ready,
});

const sessions = new Cloudlet("sessions", {
  cluster,
  hypervisor,
  base,
  overlay,
  ports: [{ port: 8080 }],
  ready,
  // a walking subscriber should not notice
  handoff: { maxDowntimeMillis: 1_000, onExceeded: "throttle" },
});

export const endpoint = sessions.endpoint;
export const provision = sessions.provision;
export const lastMove = sessions.lastMove;
