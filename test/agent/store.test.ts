import { appendFileSync, chmodSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Store } from "../../provider/agent/store.ts";
import { digestText } from "./fixture.ts";

let root = "";
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "cloudlet-store-test-"));
});
afterEach(() => {
  rmSync(root, { recursive: true, force: true });
});

const from = (text: string) => () => Readable.from([Buffer.from(text)]);

describe("the store", () => {
  it("makes data visible under its digest", async () => {
    const store = new Store(root);
    await store.put(digestText("base"), from("base"));
    expect(await store.has(digestText("base"))).toBe(true);
    expect(await store.path(digestText("base"))).toContain(`/${digestText("base").slice(0, 2)}/${digestText("base")}`);
  });

  it("refuses data with another digest and leaves nothing behind", async () => {
    const store = new Store(root);
    await expect(store.put(digestText("base"), from("bad"))).rejects.toMatchObject({ code: "INTEGRITY" });
    expect(await store.has(digestText("base"))).toBe(false);
    expect(readdirSync(join(root, digestText("base").slice(0, 2)))).toEqual([]);
  });

  it("notices a file that was changed behind its back", async () => {
    const store = new Store(root);
    await store.put(digestText("base"), from("base"));
    const file = await store.path(digestText("base"));
    chmodSync(file, 0o644);
    appendFileSync(file, "!");
    await expect(store.path(digestText("base"))).rejects.toMatchObject({ code: "INTEGRITY" });
    expect(await store.has(digestText("base"))).toBe(false);
  });

  it("says NOT_FOUND for data that never came", async () => {
    await expect(new Store(root).path(digestText("none"))).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it("shares one transfer among those who bring the same data at once", async () => {
    const store = new Store(root);
    let opened = 0;
    const open = () => {
      opened++;
      return Readable.from([Buffer.from("base")]);
    };
    await Promise.all([1, 2, 3].map(() => store.put(digestText("base"), open)));
    expect(opened).toBe(1);
  });

  it("lets the next one try when the first transfer breaks", async () => {
    const store = new Store(root);
    const broken = store.put(digestText("base"), from("bad"));
    const good = store.put(digestText("base"), from("base"));
    await expect(broken).rejects.toMatchObject({ code: "INTEGRITY" });
    await good;
    expect(await store.has(digestText("base"))).toBe(true);
  });

  it("refuses what does not fit on the disk", async () => {
    await expect(new Store(root).put(digestText("base"), from("base"), 1e18)).rejects.toMatchObject({ code: "REFUSED" });
  });

  it("knows whether somebody waits for what another one brings", async () => {
    const store = new Store(root);
    const digest = digestText("base");
    let arrive: () => void = () => undefined;
    const coming = new Promise<void>((resolve) => (arrive = resolve));
    const first = store.put(digest, () => coming.then(from("base")));
    const idle = store.settled(digest);
    expect(store.isAwaited(digest)).toBe(false);
    const second = store.put(digest, from("never asked"));
    expect(store.isAwaited(digest)).toBe(true);
    arrive();
    await Promise.all([first, idle, second]);
    expect(store.isAwaited(digest)).toBe(false);
    expect(await store.has(digest)).toBe(true);
  });

  it("never collects what is referenced and always collects the rest", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(fc.string({ minLength: 1, maxLength: 8 }), { maxLength: 8 }),
        fc.func(fc.boolean()),
        async (texts, isKept) => {
          const directory = mkdtempSync(join(root, "gc-"));
          const store = new Store(directory);
          for (const text of texts) await store.put(digestText(text), from(text));
          const kept = texts.filter((text) => isKept(text)).map(digestText);
          const removed = await store.collect(new Set(kept));
          expect(await store.list()).toEqual([...kept].sort());
          expect(removed.length).toBe(texts.length - kept.length);
        },
      ),
      { numRuns: 25 },
    );
  });

  it("keeps unreferenced data that was used a moment ago, where asked to", async () => {
    const store = new Store(root);
    await store.put(digestText("base"), from("base"));
    expect(await store.collect(new Set(), 60_000)).toEqual([]);
    expect(await store.collect(new Set())).toEqual([digestText("base")]);
  });
});
