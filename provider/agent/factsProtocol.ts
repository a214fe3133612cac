import { z } from "zod";

export const factsSchema = z.object({
  hostname: z.string(),
  machineId: z.string().describe("Identifies the machine: contents of /etc/machine-id, or the digest of the host key where there is none."),
  os: z.object({ id: z.string(), version: z.string(), name: z.string() }),
  kernel: z.string(),
  architecture: z.string(),
  cores: z.int(),
  memoryMib: z.int(),
  cpuModel: z.string(),
  cpuFlags: z.array(z.string()),
  disks: z.array(z.object({ mount: z.string(), totalMib: z.int(), freeMib: z.int() })),
  virtualisation: z.object({
    kvm: z.boolean().describe("True only when a guest really executed with hardware acceleration."),
    reason: z.string(),
  }),
  systemd: z.boolean(),
});
export type Facts = z.infer<typeof factsSchema>;
