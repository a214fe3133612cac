import { createHash } from "node:crypto";
import { readFile, stat, statfs } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { z } from "zod";
import { readJson, writeDurably } from "./durable.ts";
import type { Facts } from "./factsProtocol.ts";

export interface FactsOptions {
  root: string;
  /** Whether a guest really executes with hardware acceleration. Throws where that cannot be found out now. */
  probeAcceleration(): Promise<{ kvm: boolean; reason: string }>;
}

const probeSchema = z.object({ bootId: z.string(), kvm: z.boolean(), reason: z.string() });

export async function readFacts({ root, probeAcceleration }: FactsOptions): Promise<Facts> {
  const release = parseOsRelease(await text("/etc/os-release"));
  const { model, flags } = parseCpuInfo(await text("/proc/cpuinfo"));
  return {
    hostname: os.hostname(),
    machineId: await machineId(),
    os: { id: release.ID ?? "linux", version: release.VERSION_ID ?? "", name: release.PRETTY_NAME ?? release.NAME ?? "Linux" },
    kernel: os.release(),
    architecture: os.machine(),
    cores: os.cpus().length,
    memoryMib: Math.floor(os.totalmem() / 1024 / 1024),
    cpuModel: model,
    cpuFlags: flags,
    disks: await disks(["/", root]),
    virtualisation: await acceleration(root, probeAcceleration),
    systemd: await stat("/run/systemd/system").then(
      () => true,
      () => false,
    ),
  };
}

export function parseOsRelease(content: string): Record<string, string> {
  const found: Record<string, string> = {};
  for (const line of content.split("\n")) {
    const match = /^([A-Z0-9_]+)=(.*)$/.exec(line.trim());
    if (match?.[1] !== undefined) found[match[1]] = (match[2] ?? "").replace(/^(["'])(.*)\1$/, "$2");
  }
  return found;
}

export function parseCpuInfo(content: string): { model: string; flags: string[] } {
  const field = (name: RegExp): string => name.exec(content)?.[1]?.trim() ?? "";
  return {
    model: field(/^(?:model name|Model)\s*:(.*)$/m) || "unknown",
    flags: field(/^(?:flags|Features)\s*:(.*)$/m)
      .split(/\s+/)
      .filter(Boolean)
      .sort(),
  };
}

/** Probing executes a guest, so it is done once per boot. */
async function acceleration(root: string, probe: FactsOptions["probeAcceleration"]): Promise<Facts["virtualisation"]> {
  const bootId = (await text("/proc/sys/kernel/random/boot_id")).trim();
  const file = path.join(root, "acceleration.json");
  const known = await readJson(file, probeSchema).catch(() => undefined);
  if (known?.bootId === bootId) return { kvm: known.kvm, reason: known.reason };
  try {
    const { kvm, reason } = await probe();
    await writeDurably(file, JSON.stringify({ bootId, kvm, reason }), 0o644);
    return { kvm, reason };
  } catch (error) {
    return { kvm: false, reason: error instanceof Error ? error.message : String(error) };
  }
}

async function machineId(): Promise<string> {
  const id = (await text("/etc/machine-id")).trim();
  if (id !== "") return id;
  for (const name of ["ed25519", "ecdsa", "rsa"]) {
    const key = await text(`/etc/ssh/ssh_host_${name}_key.pub`);
    if (key !== "") return createHash("sha256").update(key).digest("hex");
  }
  return os.hostname();
}

async function disks(mounts: string[]): Promise<Facts["disks"]> {
  const found: Facts["disks"] = [];
  const seen = new Set<number>();
  for (const mount of mounts) {
    const device = (await stat(mount)).dev;
    if (seen.has(device)) continue;
    seen.add(device);
    const { blocks, bavail, bsize } = await statfs(mount);
    found.push({ mount, totalMib: Math.floor((blocks * bsize) / 1024 / 1024), freeMib: Math.floor((bavail * bsize) / 1024 / 1024) });
  }
  return found;
}

function text(file: string): Promise<string> {
  return readFile(file, "utf8").catch(() => "");
}
