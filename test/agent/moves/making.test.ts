import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { withBase } from "../../../provider/agent/moves/making.ts";
import { testAgent, type TestAgent } from "../fixture.ts";

describe("a container's base, in which pieces of what comes may be", () => {
  let agent: TestAgent;
  let directory: string;
  beforeEach(async () => {
    agent = await testAgent();
    directory = join(mkdtempSync(join(tmpdir(), "cloudlet-making-")), "incoming");
  });
  afterEach(() => {
    agent.remove();
    rmSync(join(directory, ".."), { recursive: true });
  });

  async function put(content: Buffer): Promise<string> {
    const digest = createHash("sha256").update(content).digest("hex");
    await agent.services.store.put(digest, () => Readable.from([content]));
    return digest;
  }
  const use = (digest: string): Promise<string[]> =>
    withBase(agent.services, { kind: "lxd", base: { digest }, directory }, (sources) =>
      Promise.resolve(sources.map(({ path }) => readFileSync(path, "utf8"))),
    );

  it("is there without its compression for as long as it is used", async () => {
    expect(await use(await put(gzipSync("an archive")))).toEqual(["an archive"]);
    expect(existsSync(join(directory, "base.plain"))).toBe(false);
  });

  it("is not used where it is no archive", async () => {
    expect(await use(await put(gzipSync("two parts").subarray(0, 20)))).toEqual([]);
  });

  it("is the end of it where the disk is full", async () => {
    mkdirSync(directory, { recursive: true });
    // whatever is written there meets a full disk
    symlinkSync("/dev/full", join(directory, "base.plain"));
    await expect(use(await put(gzipSync("an archive")))).rejects.toThrow("ENOSPC");
    expect(existsSync(join(directory, "base.plain"))).toBe(false);
  });
});
