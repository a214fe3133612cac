import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cacheDirectory } from "../setup/cache.ts";
import { buildContainer } from "./container.ts";
import { chosenPackages, digestOfSources, unpackPackages } from "./packages.ts";
import { buildVm } from "./vm.ts";

export interface Images {
  /** A bootable qcow2 disk, for `kind: "kvm"`. */
  vm: string;
  /** An LXD image in one tar.gz, for `kind: "lxd"`. */
  container: string;
}

/** Both demo images, built from Debian packages; kept until packages or sources change. */
export async function buildImages(): Promise<Images> {
  const chosen = await chosenPackages();
  const key = createHash("sha256")
    .update(JSON.stringify([chosen, digestOfSources(import.meta.dirname)]))
    .digest("hex")
    .slice(0, 16);
  const directory = join(cacheDirectory(), `images-${key}`);
  if (!existsSync(directory)) {
    console.error("building the demo images from Debian packages, which takes about a minute");
    await buildInto(directory, chosen);
  }
  return { vm: join(directory, "vm.qcow2"), container: join(directory, "container.tar.gz") };
}

async function buildInto(directory: string, chosen: readonly string[]): Promise<void> {
  const work = mkdtempSync(join(cacheDirectory(), "images-work-"));
  try {
    await unpackPackages(chosen, work);
    const output = join(work, "output");
    mkdirSync(output);
    const packages = join(work, "packages");
    await buildContainer({ packages, work, target: join(output, "container.tar.gz") });
    await buildVm({ packages, work, target: join(output, "vm.qcow2") });
    if (!existsSync(directory)) renameSync(output, directory);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

if (import.meta.main) console.log(JSON.stringify(await buildImages(), null, 2));
