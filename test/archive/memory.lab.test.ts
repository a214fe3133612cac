import { createWriteStream } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { expect, it } from "vitest";
import type { TarEntry } from "../../provider/archive/tar.ts";
import { endOfTar, headerOf, paddingOf } from "../../provider/archive/write.ts";
import { run } from "../lab/run.ts";

it("a root file system of 127,000 files is packed in less than 300 MB", async () => {
  const directory = await mkdtemp(join(tmpdir(), "cloudlet-many-"));
  try {
    const tar = join(directory, "many.tar");
    await pipeline(manyFiles(127_000), createWriteStream(tar));
    const script = join(import.meta.dirname, "packMany.ts");
    const peak = Number(await run([process.execPath, script, tar, join(directory, "packed.tar")]));
    console.log(`${String(peak)} MiB at most`);
    expect(peak).toBeGreaterThan(0);
    expect(peak * 1.048576).toBeLessThan(300);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
});

function* manyFiles(files: number): Generator<Buffer> {
  const content = Buffer.alloc(400, "x");
  for (let at = 0; at < files; at += 1) {
    const folder = `usr/lib/python3/dist-packages/package${String(Math.floor(at / 40))}`;
    if (at % 40 === 0) yield headerOf(entryOf({ path: folder, type: "directory", mode: 0o755 }));
    yield headerOf(entryOf({ path: `${folder}/some_module_file_${String(at)}.py`, size: content.length }));
    yield Buffer.concat([content, paddingOf(content.length)]);
  }
  yield endOfTar();
}

function entryOf(given: Partial<TarEntry>): TarEntry {
  const usual = { path: "", type: "file" as const, mode: 0o644, uid: 0, gid: 0, mtime: 1, size: 0, target: "", major: 0, minor: 0 };
  return { ...usual, xattrs: {}, ...given };
}
