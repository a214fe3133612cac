import { spawn } from "node:child_process";
import { CloudletError } from "../core/errors.ts";
import { frameAt } from "./zstdFrame.ts";

/** A compressed piece, what it is in the words of an error, and the size that it must have decompressed. */
export interface Packed {
  part: string;
  compressed: Buffer;
  rawBytes: number;
}

const timeoutMillis = 120_000;
// more than the window of any level up to 19
const memoryLimit = "-M64MB";

/** Decompresses one zstd frame; one that holds more than `maxBytes` is refused while it is being decompressed. */
export async function decompress(compressed: Buffer, bounds: { part: string; maxBytes: number }): Promise<Buffer> {
  const { output, failed } = await zstd(["-d", "-c", "-q", memoryLimit], { input: compressed, maxBytes: bounds.maxBytes });
  if (output.length > bounds.maxBytes)
    throw damaged(bounds.part, `decompresses to more than the ${String(bounds.maxBytes)} bytes it may have`);
  if (failed !== undefined) throw damaged(bounds.part, `cannot be decompressed${failed}`);
  return output;
}

/** Compresses the files, each into a frame that says the size of its content. */
export async function compressFiles(files: string[], level: string, signal: AbortSignal): Promise<Buffer[]> {
  const { output, failed } = await zstd([level, "-c", "-q", ...files], { signal });
  if (failed !== undefined) throw new CloudletError("FAILED", `zstd could not compress${failed}`);
  const frames: Buffer[] = [];
  for (let start = 0; start < output.length;) {
    const frame = frameAt(output, start);
    if (frame === undefined) throw new CloudletError("FAILED", "zstd wrote a frame that cannot be read");
    frames.push(output.subarray(start, start + frame.bytes));
    start += frame.bytes;
  }
  if (frames.length !== files.length)
    throw new CloudletError("FAILED", `zstd made ${String(frames.length)} frames of ${String(files.length)} files`);
  return frames;
}

interface RunOptions {
  input?: Buffer;
  /** The process is ended as soon as it has written more. */
  maxBytes?: number;
  signal?: AbortSignal;
}

// not by `run`: that one reads text
async function zstd(args: string[], options: RunOptions): Promise<{ output: Buffer; failed: string | undefined }> {
  options.signal?.throwIfAborted();
  const child = spawn("zstd", args, {
    stdio: ["pipe", "pipe", "pipe"],
    signal: options.signal,
    timeout: timeoutMillis,
    killSignal: "SIGKILL",
  });
  const pieces: Buffer[] = [];
  let bytes = 0;
  let words = "";
  child.stdout.on("data", (piece: Buffer) => {
    bytes += piece.length;
    // one piece too many shows the caller that there was more
    if (bytes - piece.length <= (options.maxBytes ?? Infinity)) pieces.push(piece);
    if (bytes > (options.maxBytes ?? Infinity)) child.kill("SIGKILL");
  });
  child.stderr.on("data", (piece: Buffer) => (words = (words + piece.toString()).slice(-500)));
  // it may end without having read everything
  child.stdin.on("error", () => undefined);
  child.stdin.end(options.input);
  const code = await new Promise<number | string | null>((resolve, reject) => {
    child.once("error", (cause) =>
      reject(options.signal?.aborted ? cause : new CloudletError("FAILED", `zstd cannot be started: ${cause.message}`, { cause })),
    );
    child.once("close", (exit, signal) => resolve(exit ?? signal));
  });
  return { output: Buffer.concat(pieces), failed: code === 0 ? undefined : ` (${words.trim() || String(code)})` };
}

/** Decompresses pieces, each by itself as far as the caller can see; those that wait meanwhile share one process. */
export class Decompressor {
  readonly #waiting: (Packed & { resolve: (raw: Buffer) => void; reject: (error: unknown) => void })[] = [];
  #running = 0;

  /** INTEGRITY unless the piece is exactly one frame of `rawBytes`. */
  async decompress(packed: Packed): Promise<Buffer> {
    const frame = frameAt(packed.compressed, 0);
    if (frame === undefined || frame.bytes !== packed.compressed.length) throw damaged(packed.part, "is no single zstd frame");
    if (frame.rawBytes !== packed.rawBytes) {
      throw damaged(packed.part, `says it decompresses to ${String(frame.rawBytes)} bytes where ${String(packed.rawBytes)} are expected`);
    }
    const raw = new Promise<Buffer>((resolve, reject) => this.#waiting.push({ ...packed, resolve, reject }));
    // what is given in one go shares a process
    setImmediate(() => this.#start());
    return raw;
  }

  #start(): void {
    while (this.#running < processes && this.#waiting.length > 0) {
      const batch = [];
      let bytes = 0;
      for (let next = this.#waiting[0]; next !== undefined && bytes < batchBytes; next = this.#waiting[0]) {
        batch.push(next);
        bytes += next.rawBytes;
        this.#waiting.shift();
      }
      this.#running++;
      void this.#perform(batch).finally(() => {
        this.#running--;
        this.#start();
      });
    }
  }

  async #perform(batch: (Packed & { resolve: (raw: Buffer) => void; reject: (error: unknown) => void })[]): Promise<void> {
    try {
      for (const [position, raw] of (await decompressAll(batch)).entries()) batch[position]?.resolve(raw);
    } catch (error) {
      if (batch.length === 1) batch[0]?.reject(error);
      // one by one, to find out which of them it is
      else for (const piece of batch) await this.#perform([piece]);
    }
  }
}

const processes = 2;
const batchBytes = 8 * 1024 * 1024;

async function decompressAll(batch: Packed[]): Promise<Buffer[]> {
  const total = batch.reduce((sum, { rawBytes }) => sum + rawBytes, 0);
  const part = batch.map((piece) => piece.part).join(", ");
  const raw = await decompress(Buffer.concat(batch.map(({ compressed }) => compressed)), { part, maxBytes: total });
  if (raw.length !== total) throw damaged(part, `decompresses to ${String(raw.length)} bytes where ${String(total)} are expected`);
  let start = 0;
  return batch.map(({ rawBytes }) => raw.subarray(start, (start += rawBytes)));
}

function damaged(part: string, what: string): CloudletError {
  return new CloudletError("INTEGRITY", `the overlay's ${part} ${what}`);
}
