import * as pulumi from "@pulumi/pulumi";
import { Cloudlet, EdgeCluster, Hypervisor, Node } from "pulumi-cloudlet/dynamic";

interface Gateway {
  host: string;
  user?: string;
  hostKey?: string;
}

const config = new pulumi.Config();
const gateways = config.requireObject<Record<string, Gateway>>("gateways");
const kind = config.get<"kvm" | "lxd">("kind") ?? "kvm";
// without a key the SSH agent and the ssh configuration of whoever runs this are used
const privateKey = config.getSecret("privateKey");

const hypervisors = new Map<string, Hypervisor>();
for (const [name, gateway] of Object.entries(gateways)) {
  const node = new Node(name, { connection: privateKey ? { ...gateway, privateKey } : gateway });
  hypervisors.set(name, new Hypervisor(`${kind}-${name}`, { node, kind }));
}

const subscriberAt = config.require("subscriberAt");
const hypervisor = hypervisors.get(subscriberAt);
if (!hypervisor) throw new pulumi.RunError(`subscriberAt is "${subscriberAt}"; it must be one of ${Object.keys(gateways).join(", ")}`);

const cluster = new EdgeCluster("visits", { application: "visit-counter" });

const counter = new Cloudlet("counter", {
  cluster,
  hypervisor,
  base: { file: config.require("base") },
  resources: { cores: 1, memoryMib: 256 },
  ports: [{ port: 8080 }],
  stateFiles: ["/var/lib/counter"],
  ready: { http: { port: 8080, path: "/peek" } },
});

export const endpoint = counter.endpoint;
export const accelerator = counter.accelerator;
export const lastMove = counter.lastMove;
