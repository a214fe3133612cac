import { createHash } from "node:crypto";
import { mkdir, open, rm, writeFile } from "node:fs/promises";
import { readJson, syncDirectory, syncFile, writeDurably } from "../agent/durable.ts";
import { CloudletError } from "../core/errors.ts";
import { ArrivingImage } from "./arrivingImage.ts";
import { Arrivals } from "./arrivals.ts";
import { type FileName, type ImageName, type LayerFiles, type LayersBelow, imageNames, layerFiles } from "./layerFiles.ts";
import { type Manifest, manifestSchema } from "./manifest.ts";
import { type BlockChunk, type OverlayIndex, type OverlayPaths, readOverlay } from "./overlay.ts";
import { digestFile } from "./packWriter.ts";
import { type Over, ParentLayer, requireOver, turnBytes } from "./parentLayer.ts";
import { Decompressor } from "./zstd.ts";

export interface ArrivingOptions extends OverlayPaths {
  directory: string;
  below: LayersBelow;
  /** Directory of the parent's layer, which is whole; absent where the overlay has none. */
  parent?: string | undefined;
}

const flushEveryMillis = 1000;

/**
 * A layer's directory while its chunks arrive. The qcow2 files have all their metadata from the beginning, and holes
 * where data is missing; which chunk fills which hole is known from the index.
 */
export class ArrivingLayer {
  readonly overlay: OverlayIndex;
  readonly #files: LayerFiles;
  readonly #directory: string;
  readonly #images: Partial<Record<ImageName, ArrivingImage>>;
  readonly #decompressor = new Decompressor();
  readonly #present: Uint8Array;
  readonly #blocksOf: (BlockChunk | undefined)[] = [];
  #parent: ParentLayer | undefined;
  #over: Over | undefined;
  #arrivals: Arrivals | undefined;
  /** Written, but perhaps not durable yet. */
  #fresh: number[] = [];
  #flushed = Promise.resolve();
  #nextFlush = 0;

  private constructor(overlay: OverlayIndex, { directory, below }: ArrivingOptions) {
    this.overlay = overlay;
    this.#directory = directory;
    this.#files = layerFiles(directory);
    this.#present = new Uint8Array(overlay.manifest.pack.chunks.length);
    for (const blocks of overlay.blockChunks) this.#blocksOf[blocks.chunk] = blocks;
    this.#images = imagesOf(overlay, this.#files, below);
  }

  /** Makes the metadata, or goes on after a crash. */
  static async open(options: ArrivingOptions): Promise<ArrivingLayer> {
    const layer = new ArrivingLayer(await readOverlay(options), options);
    try {
      await layer.#openParent(options.parent);
      await layer.#begin();
      return layer;
    } catch (error) {
      await layer.close();
      throw error;
    }
  }

  /** Positions in `pack.chunks`, ascending. */
  missing(): number[] {
    return [...this.#present.keys()].filter((chunk) => this.#present[chunk] === 0);
  }

  has(chunk: number): boolean {
    return this.#present[chunk] === 1;
  }

  /** Whether the whole of a file is here. */
  hasFile(name: FileName): boolean {
    return this.overlay.manifest.files.some((file) => file.name === name && file.chunks.every((chunk) => this.has(chunk)));
  }

  /** Verifies a chunk's bytes and writes what they hold; INTEGRITY when they are not what the manifest says. */
  async accept(position: number, compressed: Buffer): Promise<void> {
    const chunk = this.overlay.manifest.pack.chunks[position];
    if (chunk === undefined) throw new CloudletError("INVALID", `the overlay's pack has no chunk ${String(position)}`);
    if (this.has(position)) return;
    const part = `pack, chunk ${String(position)}`;
    const found = createHash("sha256").update(compressed).digest("hex");
    if (compressed.length !== chunk.bytes || found !== chunk.digest) {
      throw new CloudletError("INTEGRITY", `the overlay's ${part} has the digest ${found} where ${chunk.digest} is expected`);
    }
    const raw = await this.#decompressor.decompress({ part, compressed, rawBytes: chunk.rawBytes });
    const blocks = this.#blocksOf[position];
    if (blocks === undefined) await this.#writeToFile(position, raw);
    else await this.#writeToImages(blocks, raw);
    this.#present[position] = 1;
    this.#fresh.push(position);
    if (blocks === undefined) await this.#checkFileOf(position);
    if (Date.now() > this.#nextFlush) await this.flush();
  }

  /** The chunk that must be here before this byte of the image's qcow2 file can be read; undefined for metadata. */
  chunkOfFileOffset(image: ImageName, offset: number): number | undefined {
    const block = this.#images[image]?.storedBlockAt(offset);
    return block === undefined ? undefined : chunkOfBlock(this.overlay.blockChunks, block);
  }

  /** The block of the image (the first one, where several are equal) that is at this byte of its qcow2 file. */
  blockOfFileOffset(image: ImageName, offset: number): number | undefined {
    return this.#images[image]?.blockAt(offset);
  }

  /** Size of the image's qcow2 file; 0 where the overlay has no such image. */
  fileBytes(image: ImageName): number {
    return this.#images[image]?.fileBytes ?? 0;
  }

  /** Bytes of the image's qcow2 file; those of missing chunks are zeros. */
  async read(image: ImageName, offset: number, length: number): Promise<Buffer> {
    return (await this.#images[image]?.read(offset, length)) ?? Buffer.alloc(length);
  }

  /** Everything accepted so far survives a loss of power from here on; done by itself every second or so. */
  async flush(): Promise<void> {
    this.#nextFlush = Date.now() + flushEveryMillis;
    this.#flushed = this.#flushed.catch(() => undefined).then(() => this.#flush());
    return this.#flushed;
  }

  /** Every chunk is here: checks the files, makes all of it durable and marks the layer as whole. */
  async complete(): Promise<void> {
    const [missing] = this.missing();
    if (missing !== undefined) throw new CloudletError("BUG", `chunk ${String(missing)} of the overlay's pack has not arrived`);
    for (const file of this.overlay.manifest.files) await this.#checkFile(file);
    await this.flush();
    await writeDurably(this.#files.manifest, JSON.stringify(this.overlay.manifest), 0o600);
    await rm(this.#files.arrived, { force: true });
    await syncDirectory(this.#directory);
  }

  async close(): Promise<void> {
    if (this.#fresh.length > 0) await this.flush();
    await Promise.all(imageNames.map((name) => this.#images[name]?.close()));
    await this.#parent?.close();
  }

  async #openParent(directory: string | undefined): Promise<void> {
    const { manifest, images, differences } = this.overlay;
    if (!differences.includes(1) && !manifest.files.some(({ difference }) => difference === true)) return;
    if (directory === undefined) throw new CloudletError("BUG", "an overlay is recombined without the layer of its parent");
    this.#parent = await ParentLayer.open(directory);
    if (images.memory !== undefined) this.#over = this.#parent.over(images.memory, differences.length);
    requireOver(this.#over, differences);
  }

  async #begin(): Promise<void> {
    const { manifest, digest } = this.overlay;
    const overlay = { digest, chunks: manifest.pack.chunks.length };
    const images = imageNames.flatMap((name) => this.#images[name] ?? []);
    const isMade = (await Promise.all(images.map((image) => image.isMade()))).every(Boolean);
    if (isMade && (await isWhole(this.#files, manifest))) {
      this.#present.fill(1);
    } else {
      this.#arrivals = isMade ? await Arrivals.open(this.#files.arrived, overlay) : undefined;
      if (this.#arrivals === undefined) {
        await mkdir(this.#directory, { recursive: true, mode: 0o755 });
        await rm(this.#files.manifest, { force: true });
        await rm(this.#files.arrived, { force: true });
        for (const image of images) await image.make();
        for (const { name } of manifest.files) await writeFile(this.#files[name], "", { mode: 0o644 });
        this.#arrivals = await Arrivals.begin(this.#files.arrived, overlay);
      }
      for (const chunk of this.#present.keys()) if (this.#arrivals.has(chunk)) this.#present[chunk] = 1;
    }
    for (const image of images) await image.open();
  }

  async #writeToImages({ first, blocks }: BlockChunk, raw: Buffer): Promise<void> {
    const numbers = Uint32Array.from({ length: blocks }, (_, position) => first + position);
    await this.#over?.turn(raw, numbers, this.overlay.differences);
    await Promise.all(imageNames.map((name) => this.#images[name]?.write(raw, first)));
  }

  async #writeToFile(position: number, raw: Buffer): Promise<void> {
    const file = this.#fileOf(position);
    const { chunks } = this.overlay.manifest.pack;
    const before = file.chunks.slice(0, file.chunks.indexOf(position));
    const offset = before.reduce((sum, chunk) => sum + (chunks[chunk]?.rawBytes ?? 0), 0);
    if (file.difference === true && this.#parent !== undefined) turnBytes(raw, (await this.#parent.file(file.name)).subarray(offset));
    const handle = await open(this.#files[file.name], "r+");
    try {
      await handle.write(raw, 0, raw.length, offset);
    } finally {
      await handle.close();
    }
  }

  /** Once the last chunk of a file is here, the file may be used. */
  async #checkFileOf(position: number): Promise<void> {
    const file = this.#fileOf(position);
    if (this.hasFile(file.name)) await this.#checkFile(file);
  }

  async #checkFile({ name, bytes, digest }: Manifest["files"][number]): Promise<void> {
    const found = await digestFile(this.#files[name]);
    if (found.bytes === bytes && found.digest === digest) return;
    throw new CloudletError("INTEGRITY", `the overlay's ${name} has the digest ${found.digest} where ${digest} is expected`);
  }

  #fileOf(position: number): Manifest["files"][number] {
    const file = this.overlay.manifest.files.find(({ chunks }) => chunks.includes(position));
    if (file === undefined) throw new CloudletError("BUG", `chunk ${String(position)} belongs to nothing`);
    return file;
  }

  async #flush(): Promise<void> {
    const chunks = this.#fresh;
    this.#fresh = [];
    await Promise.all(imageNames.map((name) => this.#images[name]?.sync()));
    for (const { name, chunks: own } of this.overlay.manifest.files) {
      if (chunks.some((chunk) => own.includes(chunk))) await syncFile(this.#files[name]);
    }
    await this.#arrivals?.add(chunks);
  }
}

function imagesOf(overlay: OverlayIndex, files: LayerFiles, below: LayersBelow): Partial<Record<ImageName, ArrivingImage>> {
  const last = overlay.blockChunks.at(-1);
  const storedBlocks = last === undefined ? 0 : last.first + last.blocks;
  const images: Partial<Record<ImageName, ArrivingImage>> = {};
  for (const name of imageNames) {
    const [index, about] = [overlay.images[name], overlay.manifest[name]];
    if (index === undefined || about === undefined) continue;
    images[name] = new ArrivingImage(files[name], { virtualBytes: about.virtualBytes, index, storedBlocks, below: below[name] });
  }
  return images;
}

/** Whether a layer was completed from this very overlay. */
async function isWhole(files: LayerFiles, manifest: Manifest): Promise<boolean> {
  const found = await readJson(files.manifest, manifestSchema);
  return found !== undefined && JSON.stringify(found) === JSON.stringify(manifest);
}

function chunkOfBlock(chunks: readonly BlockChunk[], block: number): number | undefined {
  let low = 0;
  for (let high = chunks.length; low < high;) {
    const middle = (low + high) >> 1;
    const { first, blocks } = chunks[middle] ?? { first: Infinity, blocks: 0 };
    if (first + blocks <= block) low = middle + 1;
    else high = middle;
  }
  return chunks[low]?.chunk;
}
