import { spawn } from "node:child_process";
import { createWriteStream } from "node:fs";
import { cp, lstat, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import type { AcquireOptions, LocalBlob } from "../core/context.ts";
import { CloudletError } from "../core/errors.ts";
import { keyOf, type Cache } from "./cache.ts";
import { packRoot } from "./rootTar.ts";

const shownLines = 20;

/** Runs a command in a copy of a directory; what it leaves at `$CLOUDLET_IMAGE`, a file or a root file system, is the image. Built once for the same directory and command. */
export async function build(
  { context, command, contextDigest }: { context: string; command: string; contextDigest: string },
  { cache, options }: { cache: Cache; options: AcquireOptions },
): Promise<LocalBlob> {
  const key = keyOf("build", contextDigest, command);
  const note = await cache.note(key);
  const known = note && (await cache.find(note.digest));
  if (known) return known;
  return await cache.withDirectory(async (directory) => {
    const [copy, image] = [join(directory, "context"), join(directory, "image")];
    await mkdir(copy);
    await cp(context, copy, { recursive: true, verbatimSymlinks: true });
    options.status(`building an image in ${context}`);
    await runCommand({ command, cwd: copy, image }, { what: context, options });
    const blob = await cache.keep(await asFile(image, context));
    await cache.write(key, { digest: blob.digest });
    return blob;
  });
}

async function asFile(image: string, context: string): Promise<string> {
  const found = await lstat(image).catch(() => undefined);
  if (found?.isFile() === true) return image;
  if (found?.isDirectory() !== true) {
    throw new CloudletError("FAILED", `the build in ${context} left neither a file nor a directory at $CLOUDLET_IMAGE`, {
      fix: "have build.command write its image there",
    });
  }
  const tar = `${image}.tar`;
  await pipeline(packRoot(image), createWriteStream(tar, { mode: 0o600 }));
  return tar;
}

async function runCommand(
  { command, cwd, image }: { command: string; cwd: string; image: string },
  { what, options }: { what: string; options: AcquireOptions },
): Promise<void> {
  options.signal.throwIfAborted();
  // a group of its own, so that its children end with it
  const child = spawn("env", [`CLOUDLET_IMAGE=${image}`, "sh", "-c", command], { cwd, detached: true, stdio: ["ignore", "pipe", "pipe"] });
  const end = (): void => void (child.pid !== undefined && endGroup(child.pid));
  options.signal.addEventListener("abort", end, { once: true });
  const lines = collect([child.stdout, child.stderr], options);
  try {
    const ended = await new Promise<string>((resolve, reject) => {
      child.once("error", reject);
      child.once("close", (code, signal) =>
        resolve(code === 0 ? "" : code === null ? `signal ${String(signal)}` : `exit code ${String(code)}`),
      );
    });
    if (options.signal.aborted) throw new CloudletError("ABORTED", `the build in ${what} was cancelled`);
    if (ended !== "") {
      throw new CloudletError("FAILED", `build.command in ${what} ended with ${ended}: ${lines.join("\n")}`, {
        fix: "correct the command or its directory",
      });
    }
  } finally {
    options.signal.removeEventListener("abort", end);
    // what it left running would hold its directory
    end();
  }
}

/** The last lines of both streams; the newest shows as status, not more than one a second. */
function collect(streams: NodeJS.ReadableStream[], { status }: AcquireOptions): string[] {
  const lines: string[] = [];
  let told = 0;
  for (const stream of streams) {
    stream.on("data", (chunk: Buffer) => {
      lines.push(
        ...chunk
          .toString("utf8")
          .split("\n")
          .filter((line) => line.trim() !== ""),
      );
      lines.splice(0, lines.length - shownLines);
      if (Date.now() - told < 1_000) return;
      told = Date.now();
      status(lines.at(-1) ?? "");
    });
  }
  return lines;
}

function endGroup(pid: number): void {
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // it has ended
  }
}
