import { mkdtemp, readdir, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FormerCopies } from "../../../provider/agent/moves/formerCopies.ts";
import { Store } from "../../../provider/agent/store.ts";
import { digestText } from "../fixture.ts";

let root = "";
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "cloudlet-former-"));
});
afterEach(() => rm(root, { recursive: true, force: true }));

describe("former copies", () => {
  it("go after a day, and with their cloudlet", async () => {
    const copies = new FormerCopies(join(root, "former"));
    const [old, young, deleted] = [await copies.pathOf("shop/old"), await copies.pathOf("shop/young"), await copies.pathOf("shop/deleted")];
    for (const path of [old, young, deleted]) await writeFile(path, "x");
    const yesterday = new Date(Date.now() - 25 * 3600 * 1000);
    await utimes(old, yesterday, yesterday);
    await copies.expire(24 * 3600 * 1000);
    await copies.remove("shop/deleted");
    expect(await readdir(join(root, "former"))).toHaveLength(1);
    await copies.remove("shop/young");
    expect(await readdir(join(root, "former"))).toEqual([]);
  });

  it("go before anything is refused for lack of space", async () => {
    let asked = 0;
    const store = new Store(join(root, "store"), async () => {
      asked++;
      await Promise.resolve();
    });
    const data = () => Readable.from(["data"]);
    await store.put(digestText("data"), data);
    expect(asked).toBe(0);
    await expect(store.put(digestText("more"), data, 2 ** 60)).rejects.toMatchObject({ code: "REFUSED" });
    expect(asked).toBe(1);
  });
});
