import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { CloudletError } from "../../provider/core/errors.ts";
import { run } from "../../test/lab/run.ts";

/** What the images consist of. `linux-image` stands for the newest cloud kernel that the package source has. */
const guestPackages = ["busybox-static", "qemu-guest-agent", "libc6", "libglib2.0-0", "libpcre2-8-0", "libudev1", "libnuma1", "liburing2"];
const growPackages = ["e2fsprogs", "libext2fs2", "libcom-err2", "libblkid1", "libuuid1"];
const bootPackages = ["grub-pc-bin", "grub-common", "lz4", "liblz4-1"];

/** `package=version` for everything that goes in: the images' identity, together with this folder's own files. */
export async function chosenPackages(): Promise<string[]> {
  const kernel = /Depends: (linux-image-\S+)/.exec(await run(["apt-cache", "depends", "linux-image-cloud-amd64"]))?.[1];
  if (kernel === undefined)
    throw new CloudletError("FAILED", "no package source has linux-image-cloud-amd64", { fix: "run `apt-get update`" });
  const names = [...guestPackages, ...growPackages, ...bootPackages, kernel];
  // one call: each reads all package lists anew
  const policies = (await run(["apt-cache", "policy", ...names])).split(/^(?=\S+:$)/m);
  return names.map((name) => {
    const policy = policies.find((text) => text.startsWith(`${name}:`));
    const version = /Candidate: (\S+)/.exec(policy ?? "")?.[1];
    if (version !== undefined && version !== "(none)") return `${name}=${version}`;
    throw new CloudletError("FAILED", `no package source has ${name}`, { fix: "run `apt-get update`" });
  });
}

/** Downloads and unpacks packages, which installs nothing on this machine. */
export async function unpackPackages(chosen: readonly string[], directory: string): Promise<void> {
  const [debs, root] = [join(directory, "debs"), join(directory, "packages")];
  for (const it of [debs, root]) mkdirSync(it, { recursive: true });
  await run(["apt-get", "download", "-qq", ...chosen], { cwd: debs, timeoutMillis: 600_000 });
  for (const deb of readdirSync(debs)) await run(["dpkg-deb", "-x", join(debs, deb), root], { timeoutMillis: 120_000 });
}

/** Digest of names and contents of the files that make the images. */
export function digestOfSources(directory: string): string {
  const hash = createHash("sha256");
  const files = readdirSync(directory, { recursive: true, withFileTypes: true }).filter((it) => it.isFile());
  for (const path of files.map((it) => join(it.parentPath, it.name)).sort())
    hash.update(path.slice(directory.length)).update("\0").update(readFileSync(path)).update("\0");
  return hash.digest("hex");
}
