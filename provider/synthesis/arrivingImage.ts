import { type FileHandle, open, stat, writeFile } from "node:fs/promises";
import { isMissing } from "../agent/durable.ts";
import { firstBlocks } from "./blockIndex.ts";
import { blockBytes } from "./manifest.ts";
import { type LayoutOptions, type Qcow2Layout, noSlot, qcow2Layout } from "./qcow2Layout.ts";

/** One qcow2 file of a layer: whole as to its metadata, with holes where data is still missing. */
export class ArrivingImage {
  readonly fileBytes: number;
  readonly #file: string;
  readonly #options: LayoutOptions;
  readonly #layout: Qcow2Layout;
  #handle: FileHandle | undefined;
  #firstBlocks: Uint32Array | undefined;

  constructor(file: string, options: LayoutOptions) {
    this.#file = file;
    this.#options = options;
    this.#layout = qcow2Layout(options);
    this.fileBytes = this.#layout.fileBytes;
  }

  /** Whether the file is there in its whole length. */
  async isMade(): Promise<boolean> {
    try {
      return (await stat(this.#file)).size === this.fileBytes;
    } catch (error) {
      if (isMissing(error)) return false;
      throw error;
    }
  }

  async make(): Promise<void> {
    // others read it: QEMU runs as a user of its own
    await writeFile(this.#file, this.#layout.metadata, { mode: 0o644 });
    const handle = await open(this.#file, "r+");
    try {
      await handle.truncate(this.fileBytes);
      await handle.sync();
    } finally {
      await handle.close();
    }
  }

  async open(): Promise<void> {
    this.#handle = await open(this.#file, "r+");
  }

  /** Writes those blocks of a chunk that this image has; `first` is the chunk's first block, counted over the pack. */
  async write(raw: Buffer, first: number): Promise<void> {
    const pieces: Buffer[] = [];
    let start = noSlot;
    for (let position = 0; position * blockBytes < raw.length; position++) {
      const slot = this.#layout.slotOf[first + position] ?? noSlot;
      if (slot === noSlot) continue;
      // slots ascend with the pack's blocks, so one chunk's blocks lie one behind the other
      if (start === noSlot) start = slot;
      pieces.push(raw.subarray(position * blockBytes, (position + 1) * blockBytes));
    }
    if (pieces.length === 0) return;
    const whole = pieces.length * blockBytes === raw.length;
    const data = whole ? raw : Buffer.concat(pieces);
    await this.#handle?.write(data, 0, data.length, this.#layout.metadata.length + start * blockBytes);
  }

  /** The pack's block at this byte of the file; undefined = metadata, or beyond the end. */
  storedBlockAt(offset: number): number | undefined {
    return this.#layout.slots[Math.floor((offset - this.#layout.metadata.length) / blockBytes)];
  }

  /** The image's (first) block at this byte of the file. */
  blockAt(offset: number): number | undefined {
    const stored = this.storedBlockAt(offset);
    if (stored === undefined) return undefined;
    this.#firstBlocks ??= firstBlocks(this.#options.index, this.#options.storedBlocks);
    return this.#firstBlocks[stored];
  }

  async read(offset: number, length: number): Promise<Buffer> {
    const buffer = Buffer.alloc(length);
    await this.#handle?.read(buffer, 0, length, offset);
    return buffer;
  }

  async sync(): Promise<void> {
    await this.#handle?.datasync();
  }

  async close(): Promise<void> {
    await this.#handle?.close();
    this.#handle = undefined;
  }
}
