import { spawn } from "node:child_process";
import { CloudletError } from "../core/errors.ts";

/** Decompresses one zstd frame; one that holds more than `maxBytes` is refused while it is being decompressed. */
export async function decompress(compressed: Buffer, bounds: { part: string; maxBytes: number }): Promise<Buffer> {
  const child = spawn("zstd", ["-d", "-c", "-q", "--no-sparse", "-M64MB"], { stdio: ["pipe", "pipe", "ignore"] });
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once("error", (cause) => reject(new CloudletError("FAILED", `zstd cannot be started: ${cause.message}`, { cause })));
    child.once("close", resolve);
  });
  child.stdin.on("error", () => undefined);
  child.stdin.end(compressed);
  const pieces: Buffer[] = [];
  let bytes = 0;
  child.stdout.on("data", (piece: Buffer) => {
    bytes += piece.length;
    if (bytes > bounds.maxBytes) child.kill("SIGKILL");
    else pieces.push(piece);
  });
  const code = await ended;
  if (bytes > bounds.maxBytes) {
    throw new CloudletError(
      "INTEGRITY",
      `the overlay's ${bounds.part} decompresses to more than the ${String(bounds.maxBytes)} bytes it may have`,
    );
  }
  if (code !== 0) throw new CloudletError("INTEGRITY", `the overlay's ${bounds.part} cannot be decompressed`);
  return Buffer.concat(pieces);
}
