import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cacheDirectory } from "../../tools/setup/cache.ts";
import { run, tryRun } from "./run.ts";

/** What a fresh Debian lacks and commissioning installs. A package source with exactly these is on a bare host's own disk. */
const absent = [
  "qemu-system-x86",
  "qemu-system-common",
  "qemu-system-data",
  "qemu-utils",
  "ipxe-qemu",
  "seabios",
  "lxd",
  "lxd-client",
  "lxcfs",
  "liblxc1",
  "liblxc-common",
  "dnsmasq-base",
  "nftables",
  "genisoimage",
  "zstd",
];

export interface BareHost {
  /** A layer over this machine's root, without the absent packages. */
  layer: string;
  /** Path of the package source, the same on this machine and on the host. */
  repository: string;
  /** Node is among the packages that are absent and offered, in the distribution's own version. */
  offersNode: boolean;
}

interface Package {
  name: string;
  version: string;
}

/** Made once for each set of installed packages, and kept. */
export async function bareHost(): Promise<BareHost> {
  const node = await nodePackages();
  const others = await installed(absent);
  const packages = { removed: [...others, ...node.removed], offered: [...others, ...node.offered] };
  const key = createHash("sha256")
    .update(JSON.stringify([version, packages, await machinePackages()]))
    .digest("hex")
    .slice(0, 16);
  const directory = join(cacheDirectory(), `bare-${key}`);
  if (!existsSync(directory)) {
    const partial = `${directory}.${process.pid}`;
    try {
      await makeRepository(join(partial, "repository"), packages.offered);
      await makeLayer(partial, packages.removed);
      renameSync(partial, directory);
    } finally {
      rmSync(partial, { recursive: true, force: true });
    }
  }
  return { layer: join(directory, "layer"), repository: "/var/lib/lab-packages", offersNode: node.offered.length > 0 };
}

// raise when the way these are made changes
const version = 2;

async function installed(names: readonly string[]): Promise<Package[]> {
  const listed = await tryRun(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}|${Package}|${Version}\\n", ...names]);
  return listed.stdout
    .split("\n")
    .map((line) => line.split("|"))
    .filter(([status]) => status?.startsWith("ii"))
    .map(([, name = "", version = ""]) => ({ name, version }));
}

/** This machine's Node may come from elsewhere; a fresh Debian has none, and offers its own. */
async function nodePackages(): Promise<{ removed: Package[]; offered: Package[] }> {
  const offers = (await tryRun(["apt-cache", "madison", "nodejs"])).stdout.split("\n").map((line) => line.split("|")[1]?.trim() ?? "");
  const own = offers.find((version) => version.includes("dfsg"));
  if (own === undefined) return { removed: [], offered: [] };
  const removed = await installed(["nodejs", "libnode[0-9]*", "node-*"]);
  const simulated = await run(["apt-get", "-s", "install", "--no-install-recommends", "--allow-downgrades", `nodejs=${own}`]);
  const added = [...simulated.matchAll(/^Inst (\S+) (?:\[[^\]]*\] )?\((\S+)/gm)].map(([, name = "", version = ""]) => ({ name, version }));
  const kept = removed.filter(({ name }) => !added.some((it) => it.name === name));
  return { removed, offered: [...added, ...kept] };
}

async function machinePackages(): Promise<string> {
  return run(["dpkg-query", "-W", "-f", "${Package} ${Version}\\n"]);
}

async function makeRepository(directory: string, packages: readonly Package[]): Promise<void> {
  mkdirSync(directory, { recursive: true });
  const wanted = packages.map((it) => `${it.name}=${it.version}`);
  await run(["apt-get", "download", "-qq", ...wanted], { cwd: directory, timeoutMillis: 300_000 });
  await run(["sh", "-c", "dpkg-scanpackages --multiversion . /dev/null >Packages 2>/dev/null"], { cwd: directory });
}

/** The packages are removed in a root of its own, laid over this machine's, so nothing happens here. */
async function makeLayer(directory: string, packages: readonly Package[]): Promise<void> {
  for (const it of ["layer", "work", "root"]) mkdirSync(join(directory, it), { recursive: true });
  const script = `
    set -e
    mount --make-rprivate /
    mount -t overlay overlay -o "lowerdir=/,upperdir=$1/layer,workdir=$1/work" "$1/root"
    mount -t proc proc "$1/root/proc"
    mount -t tmpfs tmpfs "$1/root/run"
    mount -t tmpfs tmpfs "$1/root/dev"
    mknod -m 666 "$1/root/dev/null" c 1 3
    printf '#!/bin/sh\\nexit 101\\n' >"$1/root/run/policy-rc.d"
    policy="$1/root/usr/sbin/policy-rc.d"
    had=; [ ! -e "$policy" ] || had=1
    [ -n "$had" ] || install -m 755 "$1/root/run/policy-rc.d" "$policy"
    shift_directory=$1; shift
    DEBIAN_FRONTEND=noninteractive chroot "$shift_directory/root" dpkg --purge --force-depends --force-remove-essential --no-triggers "$@" >/dev/null
    [ -n "$had" ] || rm -f "$policy"
  `;
  const argv = ["unshare", "-m", "-p", "-f", "-n", "--kill-child", "sh", "-c", script, "sh", directory, ...packages.map((it) => it.name)];
  await run(argv, { timeoutMillis: 300_000 });
  const inside = join(directory, "layer/var/lib/lab-packages");
  mkdirSync(inside, { recursive: true });
  for (const file of readdirSync(join(directory, "repository"))) copyFileSync(join(directory, "repository", file), join(inside, file));
  for (const it of ["work", "root", "repository"]) rmSync(join(directory, it), { recursive: true, force: true });
}
