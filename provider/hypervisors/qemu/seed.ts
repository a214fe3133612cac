import { createHash } from "node:crypto";
import { chmod, mkdtemp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { exists, writeDurably } from "../../agent/durable.ts";
import { environmentLines, fileLines, quoted } from "../../agent/guestScript.ts";
import { run } from "../../agent/process.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Guest } from "../types.ts";
import { guestFiles } from "./guestFiles.ts";

/** The files of a NoCloud seed, by name. */
export interface Seed {
  instanceId: string;
  files: Record<"meta-data" | "user-data" | "vendor-data" | "network-config", string>;
}

/** What the guest reads at its first boot. The instance id follows the contents, so that changed contents are applied at the next boot. */
export function seedOf(guest: Pick<Guest, "spec" | "volumes" | "network">): Seed {
  const contents = {
    "user-data": guest.spec.userData ?? "",
    "vendor-data": vendorScript(guest),
    "network-config": networkConfig(guest.network.mac),
  };
  const instanceId = `cl-${createHash("sha256").update(JSON.stringify(contents)).digest("hex").slice(0, 16)}`;
  const hostname = guest.spec.id.split("/").at(-1)?.replaceAll(".", "-") ?? "cloudlet";
  return { instanceId, files: { "meta-data": `instance-id: ${instanceId}\nlocal-hostname: ${hostname}\n`, ...contents } };
}

/** Serial number by which a guest finds a volume's disk; virtio allows 20 characters. */
export function volumeSerial(id: string): string {
  return `vol-${createHash("sha256").update(id).digest("hex").slice(0, 16)}`;
}

/** Writes the ISO image with label `cidata`. It may hold secrets, so only root may read it. */
export async function writeSeed(path: string, seed: Seed, signal: AbortSignal): Promise<void> {
  const program = await isoProgram();
  const directory = await mkdtemp(`${path}.`);
  try {
    for (const [name, content] of Object.entries(seed.files)) await writeFile(join(directory, name), content, { mode: 0o600 });
    const image = `${path}.new`;
    await run([...program, "-quiet", "-volid", "cidata", "-joliet", "-rational-rock", "-output", image, directory], { signal });
    await chmod(image, 0o600);
    await rename(image, path);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Has the guest's seed lie where its disk does. */
export async function ensureSeed(guest: Guest, signal: AbortSignal): Promise<void> {
  const files = guestFiles(guest);
  const seed = seedOf(guest);
  const known = await readFile(files.seedId, "utf8").catch(() => "");
  if (known === seed.instanceId && (await exists(files.seed))) return;
  await writeSeed(files.seed, seed, signal);
  await writeDurably(files.seedId, seed.instanceId, 0o600);
}

function vendorScript(guest: Pick<Guest, "spec" | "volumes">): string {
  const opening = ["#!/bin/sh", "# made by pulumi-cloudlet: environment, files and volumes of this cloudlet"];
  const mounts = guest.volumes.flatMap((volume) => mountLines(volume));
  // environment and files are in the overlay, and must not be undone
  if (guest.spec.overlay !== undefined) return [...opening, ...mounts, ""].join("\n");
  return [
    ...opening,
    ...environmentLines(guest.spec.environment),
    // volumes first: a file may lie on one
    ...mounts,
    ...guest.spec.files.flatMap((file) => fileLines(file)),
    "",
  ].join("\n");
}

/** Mounted at once, and by fstab at later boots of guests that run this script only once. */
function mountLines(volume: { id: string; path: string }): string[] {
  const serial = volumeSerial(volume.id);
  const entry = `/dev/disk/by-id/virtio-${serial} ${volume.path.replaceAll(" ", "\\040")} ext4 nofail 0 2`;
  return [
    `mkdir -p ${quoted(volume.path)}`,
    `grep -qs ${serial} /etc/fstab || printf '%s\\n' ${quoted(entry)} >>/etc/fstab`,
    `for disk in /sys/block/vd*; do`,
    `  if [ "$(cat "$disk/serial")" = ${serial} ]; then grep -qs "^/dev/\${disk##*/} " /proc/mounts || mount -t ext4 "/dev/\${disk##*/}" ${quoted(volume.path)}; fi`,
    `done`,
  ];
}

function networkConfig(mac: string): string {
  return ["version: 2", "ethernets:", "  nic0:", "    match:", `      macaddress: "${mac}"`, "    dhcp4: true", ""].join("\n");
}

async function isoProgram(): Promise<[string, ...string[]]> {
  const directories = (process.env["PATH"] ?? "").split(":").concat("/usr/bin");
  const has = async (name: string) =>
    (await Promise.all(directories.map((directory) => readdir(directory).catch((): string[] => [])))).some((names) => names.includes(name));
  if (await has("genisoimage")) return ["genisoimage"];
  if (await has("xorriso")) return ["xorriso", "-as", "genisoimage"];
  throw new CloudletError("UNSUPPORTED", "neither genisoimage nor xorriso is on this node; a guest's seed cannot be made", {
    fix: "install the package genisoimage",
  });
}
