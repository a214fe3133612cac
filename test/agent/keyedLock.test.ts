import { describe, expect, it } from "vitest";
import { KeyedLock } from "../../provider/agent/keyedLock.ts";

describe("a lock", () => {
  it("knows whether somebody waits behind its holder, also after one has given up", async () => {
    const lock = new KeyedLock();
    let end = (): void => undefined;
    const holding = lock.run("a", () => new Promise<void>((resolve) => (end = resolve)));
    expect([lock.isHeld("a"), lock.isAwaited("a")]).toEqual([true, false]);
    const tired = new AbortController();
    const waiting = lock.run("a", () => Promise.resolve(), tired.signal);
    expect([lock.isAwaited("a"), lock.isAwaited("b")]).toEqual([true, false]);
    tired.abort(new Error("tired"));
    await expect(waiting).rejects.toThrow("tired");
    expect(lock.isAwaited("a")).toBe(false);
    end();
    await holding;
    await lock.run("a", () => Promise.resolve(expect(lock.isAwaited("a")).toBe(false)));
  });
});
