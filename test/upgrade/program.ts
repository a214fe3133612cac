import { createRequire } from "node:module";
import { join } from "node:path";
import { secret } from "@pulumi/pulumi";
import type { PulumiFn } from "@pulumi/pulumi/automation/index.js";
import { z } from "zod";
import type * as Sdk from "../../sdk/plugin/index.ts";

export const doors = ["plugin", "dynamic"] as const;
export type Door = (typeof doors)[number];
const packages: Record<Door, string> = { plugin: "pulumi-cloudlet", dynamic: "pulumi-cloudlet/dynamic" };

/** What the program was told when its state was recorded. */
export const toldSchema = z.object({
  host: z.string(),
  hostKey: z.string(),
  /** Where the base came from. */
  url: z.string(),
  digest: z.string(),
});
export type Told = z.infer<typeof toldSchema>;

/** One resource of each kind, with a secret. Changed, it no longer fits the states that were recorded: record them anew. */
export function upgraded(directory: string, door: Door, { host, hostKey, url, digest }: Told): PulumiFn {
  const sdk = createRequire(join(directory, "x"))(packages[door]) as typeof Sdk;
  return () => {
    // how to log in is not the program's business
    const node = new sdk.Node("gw1", { connection: { host, hostKey } });
    const hypervisor = new sdk.Hypervisor("kvm1", { node, kind: "kvm" });
    const cluster = new sdk.EdgeCluster("visits", { application: "visit-counter", description: "counts" });
    const base = new sdk.BaseImage("counter", { url, digest, nodes: [hypervisor] });
    const ready = { http: { port: 8080, path: "/peek" } };
    const resources = { cores: 1, memoryMib: 192 };
    const overlay = new sdk.Overlay("counter", {
      base,
      builder: hypervisor,
      resources,
      files: [{ path: "/etc/greeting", content: "hello\n" }],
      ready,
    });
    const volume = new sdk.Volume("data", { hypervisor, sizeMib: 16, retainOnDelete: false });
    new sdk.Cloudlet("counter", { cluster, hypervisor, base, overlay, ports: [{ port: 8080 }], stateFiles: ["/var/lib/counter"], ready });
    const files = [{ path: "/etc/counter.token", content: secret("hunter2"), mode: 0o600 }];
    const volumes = [{ volume, path: "/data" }];
    new sdk.Cloudlet("booted", { cluster, hypervisor, base, resources, files, volumes, ports: [{ port: 8080, hostPort: 8081 }], ready });
    return Promise.resolve({});
  };
}
