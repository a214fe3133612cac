import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { CloudletError } from "../provider/core/errors.ts";

const root = join(import.meta.dirname, "..");
const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };

/** Pulumi looks for a plugin by its platform; what runs is JavaScript, so each holds the same. Windows was never tried. */
const platforms = ["linux-amd64", "linux-arm64", "darwin-amd64", "darwin-arm64"];

/** What the plugin consists of; all it needs beside is `node` on PATH. */
const files = [
  "pulumi-resource-cloudlet",
  "dist/start.js",
  "dist/plugin.js",
  "dist/agent.js",
  "dist/flattenProcess.js",
  "dist/package.json",
  "schema.json",
  "LICENSE",
];

release(resolve(process.argv[2] ?? join(root, "release")));

function release(directory: string): void {
  const missing = files.filter((file) => !existsSync(join(root, file)));
  if (missing.length > 0) throw new CloudletError("NOT_FOUND", `${missing.join(", ")} is not built`, { fix: "run `make build`" });
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { recursive: true });
  const work = mkdtempSync(join(tmpdir(), "cloudlet-release-"));
  try {
    for (const file of files) {
      mkdirSync(dirname(join(work, file)), { recursive: true });
      copyFileSync(join(root, file), join(work, file));
    }
    const tarball = pack(work);
    const digest = createHash("sha256").update(tarball).digest("hex");
    const names = platforms.map((platform) => `pulumi-resource-cloudlet-v${version}-${platform}.tar.gz`);
    for (const name of names) writeFileSync(join(directory, name), tarball);
    writeFileSync(join(directory, "SHA256SUMS"), names.map((name) => `${digest}  ${name}\n`).join(""));
    console.log([...names, "SHA256SUMS"].map((name) => join(directory, name)).join("\n"));
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** The same bytes from the same files, whoever makes it and when. */
function pack(directory: string): Buffer {
  const same = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=go=rX,u+w"];
  const tar = execFileSync("tar", [...same, "-C", directory, "-c", "."], { maxBuffer: 256 * 1024 * 1024, timeout: 60_000 });
  return execFileSync("gzip", ["-9n"], { input: tar, maxBuffer: 256 * 1024 * 1024, timeout: 60_000 });
}
