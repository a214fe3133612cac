import { CustomResource, type Inputs } from "@pulumi/pulumi";
import type { Deployment, PulumiFn } from "@pulumi/pulumi/automation/index.js";
import type { ResourceDefinition } from "../../provider/core/define.ts";
import { Operations } from "../../provider/doors/plugin/operations.ts";
import { serve } from "../../provider/doors/plugin/server.ts";
import { resources } from "../../provider/index.ts";
import { createRuntime, run } from "../../provider/runtime.ts";
import { readSettings } from "../../provider/settings.ts";
import { openStack } from "../engine.ts";

const digest = "5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592";
const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBlBsOX1Nn+wmWbdr+EFRtAYMhvW8bW0Lnsbc1/p6hmk";
/** A gateway with its hypervisor, an application, its base, a volume and five cloudlets. */
const groupSize = 10;
const cpuFlags = Array.from({ length: 100 }, (_, index) => `flag${index}`);

/** So many resources of all kinds but overlays. */
export function mixed(count: number): PulumiFn {
  return () => {
    for (let group = 0; group < count / groupSize; group++) declareGroup(group);
    return Promise.resolve({});
  };
}

/** So many resources that are on no node, and so can be made without one. */
export function clusters(count: number): PulumiFn {
  return () => {
    for (let index = 0; index < count; index++)
      declare("EdgeCluster", `faces-${index}`, { application: "face-recognition", description: "x" });
    return Promise.resolve({});
  };
}

/** The state that a program leads to once its nodes are what it declares. No node is asked: what each would have told is made up. */
export async function recorded(program: PulumiFn): Promise<Deployment> {
  const operations = new Operations({
    definitions: resources.map((definition) => madeUp(definition)),
    functions: [],
    digests: run.digests,
    secretSettings: [],
    checkSettings: () => [],
    world: () => () => Promise.resolve(createRuntime(readSettings({}))),
    report: () => ({ status: () => undefined, warn: () => undefined, note: () => undefined }),
  });
  const { port, close } = await serve({
    version: "0.0.0",
    schema: () => Promise.resolve("{}"),
    operations: () => Promise.resolve(operations),
    attach: () => undefined,
  });
  // the engine would write all of the state at each step
  const env = { PULUMI_DEBUG_PROVIDERS: `cloudlet:${port}`, PULUMI_SKIP_CHECKPOINTS: "true", PULUMI_EXPERIMENTAL: "true" };
  const stack = await openStack({ program, env });
  try {
    const made = await stack.up();
    if (!made.ok) throw new Error(made.text);
    return await stack.exportState();
  } finally {
    await stack.close();
    close();
  }
}

class Declared extends CustomResource {}

function declare(type: string, name: string, inputs: Inputs): CustomResource {
  return new Declared(`cloudlet:index:${type}`, name, inputs);
}

function declareGroup(group: number): void {
  const [node, host] = [`gw${group}`, `gw${group}.example.net`];
  const connection = { host, hostKey, user: "operator" };
  const reach = { connection, nodeAddress: host };
  declare("Node", node, { connection });
  const hypervisor = declare("Hypervisor", `kvm${group}`, { node, kind: "kvm", ...reach });
  const cluster = declare("EdgeCluster", `faces${group}`, { application: "face-recognition" });
  const url = "https://images.example.net/faces.qcow2";
  const base = declare("BaseImage", `base${group}`, {
    url,
    digest,
    nodes: [hypervisor.id],
    connections: [{ hypervisor: hypervisor.id, ...reach }],
  });
  const volume = declare("Volume", `data${group}`, { hypervisor: hypervisor.id, connection, sizeMib: 64 });
  for (let index = 0; index < groupSize / 2; index++)
    declare("Cloudlet", `server${group}-${index}`, {
      cluster: cluster.id,
      hypervisor: hypervisor.id,
      ...reach,
      base: { image: base.id, digest },
      baseSource: { url },
      resources: { cores: 2, memoryMib: 1024 },
      ports: [{ port: 8080, hostPort: 8080 + index }],
      environment: { MODE: "production", REGION: "north" },
      files: [{ path: "/etc/faces.conf", content: "threshold=0.8\n" }],
      ready: { http: { port: 8080, path: "/" } },
      ...(index === 0 && { volumes: [{ volume: volume.id, path: "/data" }] }),
    });
}

/** A definition that finds what was declared, and tells of it what `told` says. */
function madeUp(definition: ResourceDefinition): ResourceDefinition {
  return {
    ...definition,
    apply: async () => {},
    observe: (known) => Promise.resolve({ ...known, ...told[definition.token] }),
  };
}

const told: Record<string, Record<string, unknown>> = {
  "cloudlet:index:Node": {
    machineId: "f338e8469c03087d1234e33f8afdc73b",
    hostKeyFingerprint: "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU",
    facts: {
      hostname: "gw",
      machineId: "f338e8469c03087d1234e33f8afdc73b",
      os: { id: "debian", version: "12", name: "Debian GNU/Linux 12 (bookworm)" },
      kernel: "6.1.0",
      architecture: "x86_64",
      cores: 4,
      memoryMib: 16_384,
      cpuModel: "a processor",
      cpuFlags,
      disks: [{ mount: "/", totalMib: 100_000, freeMib: 50_000 }],
      virtualisation: { kvm: true, reason: "" },
      systemd: true,
    },
    addedPackages: ["qemu-system-x86", "qemu-utils"],
  },
  "cloudlet:index:Hypervisor": {
    version: "7.2.22",
    accelerator: "kvm",
    capacity: { cores: 4, memoryMib: 16_384, cpuFlags, machineTypes: ["pc-i440fx-7.2", "pc-q35-7.2"] },
  },
  "cloudlet:index:BaseImage": { digest, kind: "kvm", format: "qcow2", bytes: 1e9, virtualBytes: 8e9, placements: [] },
  "cloudlet:index:Volume": { node: "gw" },
  "cloudlet:index:Cloudlet": {
    endpoint: "gw.example.net:8080",
    address: "10.92.0.2",
    node: "gw",
    status: "running",
    imageDigest: digest,
    accelerator: "kvm",
  },
};
