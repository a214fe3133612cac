import { z } from "zod";

/** What a machine says of itself. */
export const factsSchema = z.object({
  hostname: z.string().describe("Name that the machine has for itself."),
  machineId: z.string().describe("Identifies the machine: contents of /etc/machine-id, or the digest of the host key where there is none."),
  os: z
    .object({
      id: z.string().describe("`debian`, `ubuntu` and so on, as in /etc/os-release."),
      version: z.string().describe("Its VERSION_ID, such as `12`."),
      name: z.string().describe("Its name in full."),
    })
    .describe("The operating system."),
  kernel: z.string().describe("Release of the running kernel."),
  architecture: z.string().describe("`x86_64`, `aarch64` and so on, as `uname -m` says."),
  cores: z.int().describe("Processor cores."),
  memoryMib: z.int().describe("Memory in MiB."),
  cpuModel: z.string().describe("The processor's name."),
  cpuFlags: z.array(z.string()).describe("What the processor can do, in the words of /proc/cpuinfo."),
  disks: z
    .array(
      z.object({
        mount: z.string().describe("Where it is mounted."),
        totalMib: z.int().describe("Its size in MiB."),
        freeMib: z.int().describe("What is free of it, in MiB."),
      }),
    )
    .describe("The file systems of `/` and of what the agent keeps."),
  virtualisation: z
    .object({
      kvm: z.boolean().describe("True only when a guest really executed with hardware acceleration."),
      reason: z.string().describe("How that is known, or why it is not so."),
    })
    .describe("Whether guests execute with hardware acceleration."),
  systemd: z.boolean().describe("Whether systemd runs there."),
});
export type Facts = z.infer<typeof factsSchema>;
