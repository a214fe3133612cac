import { createHash } from "node:crypto";
import { appendFile, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Images } from "../../../../provider/hypervisors/qemu/live/images.ts";
import { hashOf } from "../../../../provider/hypervisors/qemu/live/pageTable.ts";
import { UnitFile } from "../../../../provider/hypervisors/qemu/live/unitFile.ts";

const signal = AbortSignal.timeout(60_000);
let directory = "";
let path = "";
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "cloudlet-units-"));
  path = join(directory, "former");
});
afterEach(() => rm(directory, { recursive: true, force: true }));

/** Four KiB of which no two are alike. */
function unit(of: string): Buffer {
  return Buffer.alloc(4096, createHash("sha256").update(of).digest());
}

async function found(of: Buffer): Promise<Buffer | undefined> {
  const [target, source] = [await Images.open([], path), await Images.open([])];
  try {
    source.addFormer(await target.formerHashes(signal));
    const place = source.find(hashOf(of));
    return place && target.read(place, 1);
  } finally {
    await target.close();
    await source.close();
  }
}

describe("what a node keeps of a guest", () => {
  it("is found again by what it holds, and holds everything once", async () => {
    const file = await UnitFile.fresh(path);
    for (const name of ["a", "b", "a"]) file.add(unit(name), hashOf(unit(name)));
    await file.keep();
    expect(await readFile(path)).toEqual(Buffer.concat([unit("a"), unit("b")]));
    expect(await found(unit("b"))).toEqual(unit("b"));
    expect(await found(unit("c"))).toBeUndefined();
  });

  it("is what was there when it was added, however the buffer is used afterwards", async () => {
    const file = await UnitFile.fresh(path);
    const buffer = unit("a");
    file.add(buffer, hashOf(buffer));
    unit("b").copy(buffer);
    file.add(buffer, hashOf(buffer));
    await file.keep();
    expect(await readFile(path)).toEqual(Buffer.concat([unit("a"), unit("b")]));
  });

  it("takes the place of what was there only once it is kept", async () => {
    const first = await UnitFile.fresh(path);
    first.add(unit("old"));
    await first.keep();
    const second = await UnitFile.fresh(path);
    second.add(unit("new"));
    await second.close();
    expect(await found(unit("old"))).toEqual(unit("old"));
    const third = await UnitFile.fresh(path);
    third.add(unit("new"));
    await third.keep();
    expect(await found(unit("old"))).toBeUndefined();
  });

  it("goes on behind what had come, but for a unit that was cut off", async () => {
    const first = await UnitFile.more(path);
    first.add(unit("a"));
    await first.close();
    await appendFile(path, unit("torn").subarray(0, 1000));
    const second = await UnitFile.more(path);
    second.add(Buffer.concat([unit("b"), unit("c")]));
    await second.close();
    expect(await readFile(path)).toEqual(Buffer.concat([unit("a"), unit("b"), unit("c")]));
  });

  it("never passes zeros for something that is not there any more", async () => {
    const file = await UnitFile.more(path);
    file.add(unit("a"));
    await file.close();
    const images = await Images.open([], path);
    expect(() => images.read({ image: 0, unit: 1 }, 1)).toThrow(expect.objectContaining({ code: "INTEGRITY" }));
    await images.close();
  });

  it("hinders nobody where it cannot be written", async () => {
    const nowhere = join(directory, "missing", "former");
    for (const file of [await UnitFile.fresh(nowhere), await UnitFile.more(nowhere)]) {
      file.add(unit("a"));
      await file.flush(true);
      await file.keep();
      await file.close();
    }
  });
});
