import * as pulumi from "@pulumi/pulumi";
import { BaseImage, Cloudlet, EdgeCluster, Hypervisor, Node, Overlay } from "pulumi-cloudlet/dynamic";

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
const nodes = [...hypervisors.values()];
const hypervisor = hypervisors.get(subscriberAt);
const [builder] = nodes;
if (!hypervisor || !builder)
  throw new pulumi.RunError(`subscriberAt is "${subscriberAt}"; it must be one of ${Object.keys(gateways).join(", ")}`);

const cluster = new EdgeCluster("visits", { application: "visit-counter" });

// on both gateways before any cloudlet asks for it
const base = new BaseImage("counter", { file: config.require("base"), nodes });

const ready = { http: { port: 8080, path: "/peek" } };

// the application at the moment when it first answered; cloudlets go on from there instead of booting
const overlay = new Overlay("counter", { base, builder, resources: { cores: 1, memoryMib: 256 }, ready });

const counter = new Cloudlet("counter", {
  cluster,
  hypervisor,
  base,
  overlay,
  ports: [{ port: 8080 }],
  stateFiles: ["/var/lib/counter"],
  ready,
});

export const endpoint = counter.endpoint;
export const accelerator = counter.accelerator;
export const provision = counter.provision;
export const lastMove = counter.lastMove;
