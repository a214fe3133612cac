import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, rm, type FileHandle } from "node:fs/promises";
import { dirname } from "node:path";
import { syncDirectory } from "../../agent/durable.ts";
import type { Manifest } from "../manifest.ts";

/** The pack as it is transferred: each chunk at its own offset, so that the node can hand the overlay on. */
export class ArrivingPack {
  readonly #file: string;
  readonly #pack: Manifest["pack"];
  readonly #handle: FileHandle;

  private constructor(file: string, pack: Manifest["pack"], handle: FileHandle) {
    this.#file = file;
    this.#pack = pack;
    this.#handle = handle;
  }

  static async open(file: string, pack: Manifest["pack"]): Promise<ArrivingPack> {
    // made where it is missing, kept where it is not
    await (await open(file, "a", 0o600)).close();
    return new ArrivingPack(file, pack, await open(file, "r+"));
  }

  async write(chunk: number, compressed: Buffer): Promise<void> {
    await this.#handle.write(compressed, 0, compressed.length, this.#pack.chunks[chunk]?.offset ?? 0);
  }

  /** Durable from here on. One that is not whole after all (the power failed before it was durable) is removed: the layer does not need it. */
  async complete(): Promise<boolean> {
    const digest = createHash("sha256");
    for await (const piece of createReadStream(this.#file, { highWaterMark: 1024 * 1024 })) digest.update(piece as Buffer);
    const whole = digest.digest("hex") === this.#pack.digest;
    if (whole) await this.#handle.sync();
    else await rm(this.#file, { force: true });
    await syncDirectory(dirname(this.#file));
    return whole;
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }
}
