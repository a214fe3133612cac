import * as pulumi from "@pulumi/pulumi";
import { BaseImage, Cloudlet, EdgeCluster, Hypervisor, Node, Overlay } from "pulumi-cloudlet/dynamic";

interface Gateway {
  host: string;
  user?: string;
  hostKey?: string;
}

const config = new pulumi.Config();
const kind = config.get<"kvm" | "lxd">("kind") ?? "kvm";
// without a key the SSH agent and the ssh configuration of whoever runs this are used
const privateKey = config.getSecret("privateKey");

const hypervisors = Object.entries(config.requireObject<Record<string, Gateway>>("gateways")).map(([name, gateway]) => {
  const node = new Node(name, { connection: privateKey ? { ...gateway, privateKey } : gateway });
  return { name, hypervisor: new Hypervisor(`${kind}-${name}`, { node, kind }) };
});
const [first] = hypervisors;
if (!first) throw new pulumi.RunError("gateways is empty; name at least one");

// each gateway has the base before any cloudlet asks for it; all but the first take it from a neighbour
const base = new BaseImage("counter-base", { file: config.require("base"), nodes: hypervisors.map(({ hypervisor }) => hypervisor) });

const overlay = new Overlay("counter", {
  base,
  builder: first.hypervisor,
  resources: { cores: 1, memoryMib: 192 },
  files: [{ path: "/etc/greeting", content: "hello from an overlay\n" }],
  script: "sync",
  ready: { http: { port: 8080, path: "/peek" } },
});

const cluster = new EdgeCluster("visits", { application: "visit-counter" });

const cloudlets = hypervisors.map(
  ({ name, hypervisor }) =>
    new Cloudlet(`counter-${name}`, {
      cluster,
      hypervisor,
      base,
      overlay,
      ports: [{ port: 8080 }],
      ready: { http: { port: 8080, path: "/peek" } },
    }),
);

export const endpoints = cloudlets.map(({ endpoint }) => endpoint);
export const overlayBytes = overlay.bytes;
export const provisions = cloudlets.map(({ provision }) => provision);
