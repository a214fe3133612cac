import { spawn, type ChildProcessByStdio } from "node:child_process";
import { createReadStream, createWriteStream } from "node:fs";
import { open } from "node:fs/promises";
import { Readable, type Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { CloudletError } from "../../core/errors.ts";

type Filter = ChildProcessByStdio<Writable, Readable, null>;

function filter(command: string, args: string[]): { child: Filter; ended: Promise<void> } {
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "ignore"] });
  const ended = new Promise<void>((resolve, reject) => {
    child.once("error", (error) => reject(new CloudletError("FAILED", `${command} could not be started: ${error.message}`)));
    child.once("close", (code, signal) =>
      code === 0
        ? resolve()
        : reject(new CloudletError("INTEGRITY", `${command} ended with ${code ?? signal}: its input was cut short or is damaged`)),
    );
  });
  // whoever awaits `ended` sees the failure; until then it must not count as unhandled
  ended.catch(() => {});
  return { child, ended };
}

/** Frames as one zstd stream. */
export function compress(frames: AsyncIterable<Buffer>): Readable {
  const { child, ended } = filter("zstd", ["-3", "-c", "-q"]);
  const feeding = pipeline(Readable.from(frames), child.stdin);
  feeding.catch((error: unknown) => child.stdout.destroy(error instanceof Error ? error : new Error(String(error))));
  ended.catch((error: Error) => child.stdout.destroy(error));
  return child.stdout;
}

/** Hands the plain bytes to `use`; what arrives is never larger than what `use` agrees to read. */
export async function decompressTo(body: Readable, use: (plain: Readable) => Promise<void>): Promise<void> {
  const { child, ended } = filter("zstd", ["-d", "-c", "-q", "--long=27"]);
  const feeding = pipeline(body, child.stdin);
  feeding.catch(() => child.kill());
  try {
    await use(child.stdout);
    await Promise.all([feeding, ended]);
  } catch (error) {
    child.kill();
    throw error;
  }
}

const formats: { magic: string; command: string }[] = [
  { magic: "1f8b", command: "gzip" },
  { magic: "28b52ffd", command: "zstd" },
  { magic: "fd377a58", command: "xz" },
];

/** Writes the file without its compression, which is recognised by its first bytes. */
export async function decompressFile(from: string, to: string): Promise<void> {
  const file = await open(from, "r");
  const start = Buffer.alloc(4);
  await file.read(start, 0, 4, 0).finally(() => file.close());
  const command = formats.find(({ magic }) => start.toString("hex").startsWith(magic))?.command;
  if (command === undefined) return pipeline(createReadStream(from), createWriteStream(to));
  const { child, ended } = filter(command, ["-d", "-c"]);
  await Promise.all([pipeline(createReadStream(from), child.stdin), pipeline(child.stdout, createWriteStream(to)), ended]);
}
