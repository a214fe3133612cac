import { createHash } from "node:crypto";
import { createReadStream, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { unpackPackages } from "../../../tools/images/packages.ts";
import { run } from "../../lab/run.ts";

/** A file to put into an image: from this machine, or of this text. */
export interface Put {
  path: string;
  mode: number;
  source?: string;
  text?: string;
}

// where the image's only partition begins
const partition = 1024 * 1024;

/** The demo image as one that reads no seed and runs no guest agent; `also` is run at its start. */
export async function plainGuest(
  image: string,
  given: { directory: string; puts: Put[]; also: string },
): Promise<{ file: string; digest: string }> {
  const { directory, puts, also } = given;
  mkdirSync(directory, { recursive: true });
  const setup = readFileSync(join(import.meta.dirname, "../../../tools/images/guest/rcS.vm"), "utf8");
  const start = setup.replace("seed=$(findfs LABEL=cidata 2>/dev/null)", "seed=").replace(/^.*qemu-ga -d.*$/m, also);
  if (start.includes("qemu-ga") || start.includes("cidata")) throw new Error("the demo image starts in another way than it did");
  const disk = join(directory, "disk.raw");
  await run(["qemu-img", "convert", "-O", "raw", image, disk]);
  const commands: string[] = [];
  const folders = new Set<string>();
  for (const [index, put] of [...puts, { path: "/etc/init.d/rcS", mode: 0o755, text: start }].entries()) {
    const source = put.source ?? join(directory, `put${String(index)}`);
    if (put.text !== undefined) writeFileSync(source, put.text);
    const parts = put.path.split("/").slice(1, -1);
    for (const at of parts.keys()) folders.add(`/${parts.slice(0, at + 1).join("/")}`);
    commands.push(`rm ${put.path}`, `write ${source} ${put.path}`, `sif ${put.path} mode 0${(0o100000 | put.mode).toString(8)}`);
  }
  // of folders that are there already it says so, and goes on
  writeFileSync(join(directory, "commands"), [...[...folders].map((path) => `mkdir ${path}`), ...commands, ""].join("\n"));
  await run(["debugfs", "-w", "-f", join(directory, "commands"), `${disk}?offset=${String(partition)}`]);
  const file = join(directory, "plain.qcow2");
  await run(["qemu-img", "convert", "-O", "qcow2", disk, file]);
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(file) as AsyncIterable<Buffer>) hash.update(chunk);
  return { file, digest: hash.digest("hex") };
}

/** Debian's dropbear, an SSH server, and who may log in as root. */
export async function dropbear(directory: string, publicKey: string): Promise<Put[]> {
  mkdirSync(directory, { recursive: true });
  await unpackPackages(["dropbear-bin", "libtomcrypt1", "libtommath1", "libcrypt1", "zlib1g", "libgmp10"], directory);
  const unpacked = join(directory, "packages");
  const found = await run(["find", unpacked, "-name", "lib*.so.*"]);
  return [
    { path: "/usr/sbin/dropbear", mode: 0o755, source: join(unpacked, "usr/sbin/dropbear") },
    ...found
      .trim()
      .split("\n")
      .map((source) => ({ path: `/lib/x86_64-linux-gnu/${source.split("/").at(-1) ?? ""}`, mode: 0o644, source })),
    { path: "/etc/dropbear/readme", mode: 0o644, text: "host keys\n" },
    { path: "/root/.ssh/authorized_keys", mode: 0o600, text: publicKey },
  ];
}
