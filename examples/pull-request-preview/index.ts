import * as pulumi from "@pulumi/pulumi";
import { BaseImage, Cloudlet, EdgeCluster, Hypervisor, Node } from "pulumi-cloudlet";

interface Gateway {
  host: string;
  hostKey: string;
}

const config = new pulumi.Config();
const gateways = config.requireObject<Record<string, Gateway>>("gateways");

const hypervisors = new Map<string, Hypervisor>();
for (const [name, connection] of Object.entries(gateways)) {
  // without a credential: the job that may reach the gateways has one in CLOUDLET_CONNECTION, and no other job needs one
  const node = new Node(name, { connection });
  hypervisors.set(name, new Hypervisor(`kvm-${name}`, { node, kind: "kvm" }));
}

const subscriberAt = config.require("subscriberAt");
const hypervisor = hypervisors.get(subscriberAt);
if (!hypervisor) throw new pulumi.RunError(`subscriberAt is "${subscriberAt}"; it must be one of ${Object.keys(gateways).join(", ")}`);

const base = new BaseImage("counter", { url: config.require("base"), digest: config.require("baseDigest") });

const cluster = new EdgeCluster("visits", { application: "visit-counter" });

const counter = new Cloudlet("counter", {
  cluster,
  hypervisor,
  base,
  resources: { memoryMib: 192 },
  files: [{ path: "/etc/counter.token", content: config.requireSecret("token"), mode: 0o600 }],
  ports: [{ port: 8080 }],
  ready: { http: { port: 8080, path: "/peek" } },
});

export const endpoint = counter.endpoint;
export const lastMove = counter.lastMove;
