interface Named {
  base: string;
  /** Five bytes. */
  index: string;
  pack: { digest: string; bytes: number };
  /** What an overlay with memory has besides. */
  memory?: Record<string, unknown> | false;
}

/** A kvm overlay's manifest that names these blobs, whatever they hold. */
export function manifestText({ base, index, pack, memory }: Named): string {
  const image = { virtualBytes: 4096, digest: "0".repeat(64), blocks: 1 };
  return JSON.stringify({
    format: "cloudlet-overlay/1",
    ...{ kind: "kvm", base, diskMib: 64, disk: image, files: [] },
    ...(memory && { ...memory, memory: image }),
    index: { digest: index, bytes: 5 },
    pack: { ...pack, chunks: [{ offset: 0, bytes: pack.bytes, rawBytes: 4096, digest: pack.digest }], touched: 0 },
  });
}
