import { spawn } from "node:child_process";
import { rm } from "node:fs/promises";
import { PassThrough } from "node:stream";
import type { Readable } from "node:stream";
import { run } from "../../agent/process.ts";
import { CloudletError } from "../../core/errors.ts";

/** Streams parts of a temporary directory as a tar with numeric owners, and removes the directory when the stream ends, however it ends. */
export function tarAndRemove(directory: string, names: string[], signal: AbortSignal): Readable {
  const out = new PassThrough();
  const input = names.map((name) => `${name}\0`).join("");
  const tar = spawn(
    "tar",
    ["-C", directory, "--numeric-owner", "--format=pax", "--null", "--verbatim-files-from", "--files-from=-", "-cf", "-"],
    {
      stdio: ["pipe", "pipe", "pipe"],
      signal,
    },
  );
  let words = "";
  tar.stderr.on("data", (chunk: Buffer) => (words += chunk.toString()));
  tar.stdin.on("error", () => undefined);
  tar.stdin.end(input);
  tar.stdout.pipe(out, { end: false });
  tar.on("error", (cause) => out.destroy(new CloudletError("FAILED", `tar cannot read ${directory}: ${cause.message}`, { cause })));
  tar.on("close", (code) => {
    void rm(directory, { recursive: true, force: true }).then(() => {
      if (code === 0) out.end();
      else out.destroy(new CloudletError("FAILED", `tar ended with ${String(code)}: ${words.trim().slice(-500)}`));
    });
  });
  out.on("close", () => tar.kill());
  return out;
}

/** Unpacks with the owners and modes of the tar. */
export async function untar(tar: Readable, directory: string, signal: AbortSignal): Promise<void> {
  await run(["tar", "-C", directory, "--numeric-owner", "--same-permissions", "--same-owner", "-xf", "-"], {
    stdin: tar,
    timeoutMillis: 600_000,
    signal,
  });
}
