import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { run } from "../../test/lab/run.ts";
import { epoch, fillUserland, guestFile, type Recipe } from "./userland.ts";

/** An LXD image in one file: `metadata.yaml` and `rootfs/`. */
export async function buildContainer({ packages, work, target }: Recipe): Promise<void> {
  const image = join(work, "container");
  const root = join(image, "rootfs");
  mkdirSync(root, { recursive: true });
  await fillUserland(root, packages);
  guestFile(root, "rcS.container", { path: "etc/init.d/rcS", mode: 0o755 });
  writeFileSync(join(image, "metadata.yaml"), metadata);
  const order = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", `--mtime=@${epoch}`, "--format=gnu"];
  await run(["tar", "-C", image, ...order, "-cf", `${target}.tar`, "metadata.yaml", "rootfs"]);
  await run(["sh", "-c", 'gzip -9n <"$1.tar" >"$1" && rm "$1.tar"', "sh", target]);
}

const metadata = `architecture: x86_64
creation_date: ${epoch}
properties:
  description: stateful counter on busybox
  os: busybox
  release: counter
`;
