import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ask } from "../../../provider/hypervisors/lxd/client.ts";
import { perform } from "../../../provider/hypervisors/lxd/operations.ts";
import { restOverSocket } from "../../../provider/hypervisors/lxd/socketRest.ts";
import type { Rest } from "../../../provider/transport/types.ts";
import { z } from "zod";
import { FakeLxd } from "../../fakes/lxd.ts";

describe("LXD's operations", () => {
  let lxd: FakeLxd;
  let rest: Rest;
  beforeEach(async () => {
    lxd = await new FakeLxd().listen();
    rest = restOverSocket(lxd.socket, "LXD on fake");
  });
  afterEach(() => lxd.close());

  const begin = { method: "POST", path: "/begin", what: "make it" } as const;

  it("waits for a slow operation, and tells how far it is", async () => {
    const told: string[] = [];
    lxd.operation = { runsFor: 3, progress: "Unpack: 40%" };
    const operation = await perform(rest, begin, { deadlineMillis: 10_000, status: (text) => told.push(text) });
    expect(operation?.status_code).toBe(200);
    expect(told).toEqual(Array(3).fill("make it: Unpack: 40%"));
    expect(lxd.seen.filter((it) => it.includes("/wait"))).toHaveLength(4);
  });
  it("says why an operation failed, in LXD's words", async () => {
    lxd.operation = { runsFor: 1, err: "no space left on device" };
    await expect(perform(rest, begin, { deadlineMillis: 10_000 })).rejects.toMatchObject({
      code: "FAILED",
      message: "LXD on fake: cannot make it: no space left on device",
    });
  });
  it("cancels the operation on abort", async () => {
    const abort = new AbortController();
    lxd.operation = { runsFor: 1_000_000 };
    lxd.onWait = () => abort.abort();
    await expect(perform(rest, begin, { deadlineMillis: 10_000, signal: abort.signal })).rejects.toMatchObject({ code: "ABORTED" });
    expect(lxd.operation.cancelled).toBe(true);
  });
  it("cancels the operation at its deadline", async () => {
    lxd.operation = { runsFor: 1_000_000 };
    await expect(perform(rest, begin, { deadlineMillis: 50 })).rejects.toMatchObject({ code: "TIMEOUT" });
    expect(lxd.operation.cancelled).toBe(true);
  });
  it("takes what was done at once as done", async () => {
    expect(await perform(rest, { ...begin, path: "/at-once" }, { deadlineMillis: 1_000 })).toBeUndefined();
  });
  it.each([
    ["/missing", "NOT_FOUND", "LXD on fake: cannot look: Instance not found"],
    ["/broken", "FAILED", "LXD on fake: cannot look: the answer is not LXD's (HTTP 200)"],
  ])("turns %s into %s", async (path, code, message) => {
    await expect(ask(rest, { method: "GET", path, what: "look" }, z.unknown())).rejects.toMatchObject({ code, message });
  });
  it("calls a daemon that accepts and never answers UNREACHABLE", async () => {
    await expect(ask(rest, { method: "GET", path: "/silent", what: "look", timeoutMillis: 50 }, z.unknown())).rejects.toMatchObject({
      code: "UNREACHABLE",
    });
  });
  it("calls a daemon that is gone UNREACHABLE", async () => {
    const gone = restOverSocket("/nonexistent/unix.socket", "LXD on nowhere");
    await expect(ask(gone, { method: "GET", path: "/1.0", what: "look" }, z.unknown())).rejects.toMatchObject({ code: "UNREACHABLE" });
  });
});
