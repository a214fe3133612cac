import { createHash, randomBytes } from "node:crypto";
import { Readable } from "node:stream";
import { zstdCompressSync } from "node:zlib";
import type { Part, PartName, PartSource, Watch } from "../../../provider/local/overlays/parts.ts";
import { encodeIndex } from "../../../provider/synthesis/blockIndex.ts";
import type { Manifest } from "../../../provider/synthesis/manifest.ts";

export const digestOf = (content: Buffer): string => createHash("sha256").update(content).digest("hex");

export const watch: Watch = { signal: AbortSignal.timeout(600_000), status: () => undefined };

/** The blobs of a small overlay, whose pack holds one file; real in form, not built by a hypervisor. */
export function sampleOverlay({ base, parent, bytes = 20_000 }: { base: string; parent?: string; bytes?: number }) {
  const content = randomBytes(bytes);
  const pack = zstdCompressSync(content);
  // a frame that zstd skips, so that no two indices are the same
  const index = Buffer.concat([zstdCompressSync(encodeIndex([])), Buffer.from("502a4d1808000000", "hex"), randomBytes(8)]);
  const manifest: Manifest = {
    format: "cloudlet-overlay/1",
    kind: "lxd",
    base,
    ...(parent !== undefined && { parent }),
    diskMib: 1,
    index: { digest: digestOf(index), bytes: index.length },
    pack: {
      digest: digestOf(pack),
      bytes: pack.length,
      chunks: [{ offset: 0, bytes: pack.length, rawBytes: content.length, digest: digestOf(pack) }],
      touched: 0,
    },
    files: [{ name: "delta", bytes: content.length, digest: digestOf(content), chunks: [0] }],
  };
  return { manifest: Buffer.from(JSON.stringify(manifest)), index, pack };
}

/** An overlay with everything that can travel with it. */
export function sampleParts(): Record<PartName, Buffer> {
  const base = randomBytes(3_000);
  const below = sampleOverlay({ base: digestOf(base), bytes: 700 });
  const own = sampleOverlay({ base: digestOf(base), parent: digestOf(below.manifest) });
  return {
    "manifest.json": own.manifest,
    index: own.index,
    pack: own.pack,
    "parent/manifest.json": below.manifest,
    "parent/index": below.index,
    "parent/pack": below.pack,
    base,
  };
}

/** Parts in memory, as they are told and as they are then read. */
export function sourceOf(contents: Partial<Record<PartName, Buffer>>, read: Partial<Record<PartName, Buffer>> = contents): PartSource {
  const parts = Object.entries(contents).map(([name, content]): Part => ({
    name: name as PartName,
    digest: digestOf(content),
    bytes: content.length,
  }));
  return { label: "memory", parts, read: ({ name }) => Promise.resolve(Readable.from([read[name] ?? Buffer.alloc(0)])) };
}

export async function bytesOf(stream: Readable): Promise<Buffer> {
  return Buffer.concat((await stream.toArray()) as Buffer[]);
}
