import { createWriteStream } from "node:fs";
import { mkdtemp, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { expect, it } from "vitest";
import { z } from "zod";
import type { TarEntry } from "../../provider/archive/tar.ts";
import { endOfTar, headerOf, paddingOf } from "../../provider/archive/write.ts";
import { flatten } from "../../provider/local/flatten.ts";
import { run } from "../lab/run.ts";

it("a container image of 127,000 files is made a root file system by a provider and a child of less than 300 MB each", async () => {
  const directory = await mkdtemp(join(tmpdir(), "cloudlet-many-"));
  try {
    const tar = join(directory, "many.tar");
    await pipeline(manyFiles(127_000), createWriteStream(tar));
    const script = join(import.meta.dirname, "flattenMany.ts");
    const said = await run([process.execPath, script, tar, join(directory, "root.tar")]);
    console.log(said.trim());
    const { provider, child } = z.object({ provider: z.number(), child: z.number() }).parse(JSON.parse(said));
    for (const peak of [provider, child]) expect(peak * 1.048576).toBeLessThan(300);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
});

it("layers that are damaged are named, and cancelling is heard", async () => {
  const directory = await mkdtemp(join(tmpdir(), "cloudlet-many-"));
  try {
    const [tar, target] = [join(directory, "layer.tar"), join(directory, "root.tar")];
    await pipeline(manyFiles(5_000), createWriteStream(tar));
    await truncate(tar, 700 * 1024 + 100);
    const layers = [{ name: "layer one", path: tar }];
    await expect(flatten({ layers, target }, AbortSignal.timeout(60_000))).rejects.toMatchObject({
      code: "INTEGRITY",
      message: expect.stringContaining("ends too early"),
    });
    const cancel = new AbortController();
    const flattening = flatten({ layers, target }, cancel.signal);
    cancel.abort(new Error("enough"));
    await expect(flattening).rejects.toThrow("enough");
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
