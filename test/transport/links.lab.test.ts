import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createHostPool, type HostPool } from "../../provider/transport/pool.ts";
import type { RemoteHost } from "../../provider/transport/types.ts";
import { createLab, type Lab } from "../lab/lab.ts";

// a probe every 15 s, and as long for its answer
const noticedMillis = 35_000;

describe("a link without a word", () => {
  let lab: Lab<"gw1">;
  let pool: HostPool;
  const connected = (): Promise<RemoteHost> => pool.host(lab.hosts.gw1.connection);

  beforeAll(async () => {
    lab = await createLab({ name: "sshlink", hosts: [{ name: "gw1" }] });
    // one that idles is kept, so that it is this one that must be found dead
    pool = createHostPool({ idleMillis: 600_000 });
  });
  afterAll(async () => {
    await pool?.closeAll();
    await lab?.close();
  });

  async function whileCut<T>(work: () => Promise<T>): Promise<T> {
    await lab.cut("gw1");
    try {
      return await work();
    } finally {
      await lab.heal("gw1");
    }
  }

  it("a peer that falls silent during a command is noticed, and the command fails as unreachable", async () => {
    const host = await connected();
    const began = Date.now();
    const running = host.exec("sleep 300", { timeoutMillis: 300_000 });
    running.catch(() => undefined);
    await whileCut(() => expect(running).rejects.toMatchObject({ code: "UNREACHABLE" }));
    expect(Date.now() - began).toBeLessThan(noticedMillis);
    expect(await host.run("echo again")).toBe("again\n");
  });

  it("a peer that falls silent while nothing is asked of it is found dead, and the next command has a new connection", async () => {
    const host = await connected();
    await host.run("true");
    await whileCut(() => sleep(noticedMillis));
    const began = Date.now();
    expect(await host.run("echo again")).toBe("again\n");
    expect(Date.now() - began).toBeLessThan(5_000);
  });

  it("a link that is cut for a moment during an upload costs nothing but time", async () => {
    const host = await connected();
    const content = randomBytes(8 * 1024 * 1024);
    await lab.shape("gw1", { mbit: 16 });
    const uploading = host.upload({ content }, { path: "/root/upload", mode: 0o600 });
    await sleep(1_500);
    await whileCut(() => sleep(3_000));
    await uploading;
    await lab.shape("gw1", {});
    expect(Number(await lab.hosts.gw1.run("stat -c %s /root/upload"))).toBe(content.length);
  });

  it("a link that stays cut during an upload fails it as unreachable, and leaves the old content", async () => {
    const host = await connected();
    await host.upload({ content: Buffer.from("old") }, { path: "/root/upload", mode: 0o600 });
    await lab.shape("gw1", { mbit: 16 });
    const uploading = host.upload({ content: randomBytes(16 * 1024 * 1024) }, { path: "/root/upload", mode: 0o600 });
    uploading.catch(() => undefined);
    await sleep(1_500);
    const began = Date.now();
    await whileCut(() => expect(uploading).rejects.toMatchObject({ code: "UNREACHABLE" }));
    expect(Date.now() - began).toBeLessThan(noticedMillis);
    await lab.shape("gw1", {});
    expect(await lab.hosts.gw1.run("cat /root/upload")).toBe("old");
  });

  it("a link so slow that the answer to a probe takes longer than a dead one's is not taken for dead", async () => {
    const host = await connected();
    const content = randomBytes(2_500_000);
    await lab.shape("gw1", { mbit: 0.5 });
    await host.upload({ content }, { path: "/root/upload", mode: 0o600 });
    await lab.shape("gw1", {});
    expect(Number(await lab.hosts.gw1.run("stat -c %s /root/upload"))).toBe(content.length);
  });
});
