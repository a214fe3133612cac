import { createHash } from "node:crypto";
import { copyFile, mkdir, readFile, readdir } from "node:fs/promises";
import http from "node:http";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { tapName } from "../../../provider/hypervisors/qemu/tap.ts";
import type { Guest, Origin } from "../../../provider/hypervisors/types.ts";
import { answered, ask, configure, layersOf, openOverlayBench, progress, serveFiles } from "./overlayBench.ts";
import type { OverlayBench } from "./overlayBench.ts";

describe("guests resumed from an overlay", () => {
  let bench: OverlayBench;
  let origin: Origin;
  const guests: Guest[] = [];
  const make = async (name: string) => {
    const guest = await bench.guest(name, { overlay: { digest: "1".repeat(64) } });
    guests.push(guest);
    return guest;
  };
  const shell = async (guest: Guest, script: string) =>
    (await bench.driver.exec(guest, ["sh", "-c", script], { timeoutMillis: 60_000 })).stdout;
  const resumed = async (name: string) => {
    const guest = await make(name);
    await bench.synthesis.resume(guest, origin, progress);
    return guest;
  };

  beforeAll(async () => {
    bench = await openOverlayBench();
    const builder = await bench.guest("builder");
    await bench.driver.ensure(builder, progress);
    await bench.synthesis.startForFreeze(builder, undefined, progress);
    await configure(bench.driver, builder);
    await answered(builder);
    await bench.driver.exec(builder, ["sh", "-c", "echo memory >/dev/shm/mark"], { timeoutMillis: 10_000 });
    const frozen = await bench.synthesis.freeze(builder, progress);
    expect(await bench.synthesis.freeze(builder, progress)).toEqual(frozen);
    origin = await layersOf(frozen, { guest: builder, directory: join(bench.root, "layer") });
    await bench.driver.remove(builder, progress);
  });
  afterEach(async () => {
    for (const guest of guests.splice(0)) await bench.driver.remove(guest, progress);
  });
  afterAll(async () => {
    await bench.close();
  });

  it("answer at once, side by side, each at its own address", async () => {
    const first = await make("first");
    const second = await make("second");
    for (const guest of [first, second]) {
      const begin = performance.now();
      await bench.synthesis.resume(guest, origin, progress);
      const ran = performance.now() - begin;
      await answered(guest);
      console.log(`resumed in ${ran.toFixed(0)} ms, first reply after ${(performance.now() - begin).toFixed(0)} ms`);
    }
    expect(await ask(first)).toContain('"counter"');
    expect(await ask(second)).toContain('"counter"');
    await shell(first, "echo first >/dev/shm/mark");
    expect(await shell(second, "cat /dev/shm/mark")).toBe("memory\n");
    expect(await shell(first, "cat /dev/shm/mark")).toBe("first\n");
  });

  it("reach the gateway under their own address, and get their network again when they restart themselves", async () => {
    const guest = await resumed("outgoing");
    const callers: (string | undefined)[] = [];
    const server = http.createServer((request, response) => {
      callers.push(request.socket.remoteAddress);
      response.end("gateway");
    });
    await new Promise<void>((resolve) => server.listen(0, bench.gateway, resolve));
    const address = server.address();
    const port = typeof address === "object" && address !== null ? address.port : 0;
    expect(await shell(guest, `wget -q -O - http://${bench.gateway}:${String(port)}/`)).toBe("gateway");
    expect(callers).toEqual([guest.network.address]);
    server.close();
    await shell(guest, "(sleep 0.2; reboot -f) >/dev/null 2>&1 &");
    await expect.poll(() => ask(guest, 300), { timeout: 10_000 }).toBeUndefined();
    await answered(guest, 180_000);
  });

  it("have the right time", async () => {
    const guest = await resumed("clock");
    await expect
      .poll(async () => Math.abs(Number(await shell(guest, "date +%s")) - Date.now() / 1000), { timeout: 20_000 })
      .toBeLessThan(5);
  });

  it("move while they run, into a network of their own, and bring only what the overlay lacks", async () => {
    const guest = { ...(await resumed("leaves")), basePath: origin.disk.file };
    await answered(guest);
    await shell(guest, "echo unsaved >/dev/shm/mark; echo saved >/var/lib/mark; sync");
    const twin = { ...(await make("arrives")), basePath: origin.disk.file };
    const { live } = bench.driver;
    const found = await live?.shape(guest);
    if (live === undefined || found === undefined || "impossible" in found) throw new Error(JSON.stringify(found));
    const images = { disk: origin.disk.file, memory: origin.memory.file };
    const arrival = await live.receive(twin, { shape: found.shape, images, former: join(bench.root, "twin.former") }, progress);
    const departure = await live.depart(
      guest,
      { images, former: { path: join(bench.root, "former"), onTarget: Promise.resolve(arrival.has) } },
      progress,
    );
    const round = departure.round(progress.signal);
    await arrival.take(round.records);
    await departure.remaining(progress.signal);
    const last = departure.last(progress.signal, () => undefined);
    await arrival.take(last.records);
    await arrival.finish(progress.signal);
    await departure.close();
    console.log("first", round.stats(), "last", last.stats());
    await bench.driver.remove(guest, progress);
    await live.release(twin, progress);
    await answered(twin);
    expect(await shell(twin, "cat /dev/shm/mark /var/lib/mark")).toBe("unsaved\nsaved\n");
    expect(round.stats().pages).toBeLessThan(8_000);
    await bench.driver.stop(twin, progress);
    await bench.driver.start(twin, progress);
    expect(await shell(twin, "cat /var/lib/mark")).toBe("saved\n");
  });

  it("suspend, snapshot, restore, move and stop like any other guest", async () => {
    const guest = await resumed("lives");
    await shell(guest, "echo saved >/dev/shm/mark; echo saved >/var/lib/mark; sync");
    await bench.driver.snapshot(guest, "one", progress);
    await shell(guest, "echo later >/dev/shm/mark");
    await bench.driver.suspend(guest, progress);
    expect(await bench.driver.observe(guest)).toBe("suspended");
    const kept = join(bench.root, "parts");
    await mkdir(kept);
    for (const part of await bench.driver.exportParts(guest, progress)) await copyFile(part.path, join(kept, part.name));
    await bench.driver.remove(guest, progress);
    const there = { ...guest, basePath: origin.disk.file };
    await bench.driver.importParts(there, kept, progress);
    expect(await bench.driver.observe(there)).toBe("suspended");
    await bench.driver.start(there, progress);
    await answered(there);
    expect(await shell(there, "cat /dev/shm/mark")).toBe("later\n");
    await bench.driver.restore(there, "one", progress);
    expect(await shell(there, "cat /dev/shm/mark")).toBe("saved\n");
    await bench.driver.stop(there, progress);
    // nobody has made a seed of its own for it yet
    await bench.driver.start(there, progress);
    expect(await shell(there, "cat /var/lib/mark; cat /dev/shm/mark 2>/dev/null; cat /sys/class/net/eth0/address")).toBe(
      `saved\n${there.network.mac}\n`,
    );
    await expect(bench.synthesis.resume(there, origin, progress)).rejects.toMatchObject({ code: "REFUSED" });
    // its memory belongs to another network
    await bench.driver.restore(there, "one", progress);
    expect(await shell(there, "cat /var/lib/mark; cat /dev/shm/mark 2>/dev/null; true")).toBe("saved\n");
  });

  it("boot from the overlay's disk without its memory", async () => {
    const guest = await make("over");
    await bench.synthesis.makeOver(guest, origin.disk.file, progress);
    expect(await bench.driver.observe(guest)).toBe("stopped");
    expect(await bench.driver.ensure(guest, progress)).toEqual({ restartNeeded: false });
    await bench.driver.start(guest, progress);
    expect(await shell(guest, "cat /sys/class/net/eth0/address; ls /dev/shm")).toBe(`${guest.network.mac}\n`);
  });

  it("can be frozen again, over what they were resumed from", async () => {
    const builder = await bench.guest("again");
    guests.push(builder);
    await bench.driver.ensure(builder, progress);
    await bench.synthesis.startForFreeze(builder, origin, progress);
    await answered(builder);
    await shell(builder, "cat /dev/shm/mark >/dev/shm/more; echo added >/var/lib/added; sync");
    const frozen = await bench.synthesis.freeze(builder, progress);
    const again = await layersOf(frozen, { guest: builder, network: origin.network, directory: join(bench.root, "again-layer") });
    await bench.driver.remove(builder, progress);
    const guest = await make("second-generation");
    await bench.synthesis.resume(guest, again, progress);
    await answered(guest);
    expect(await shell(guest, "cat /dev/shm/more /var/lib/added")).toBe("memory\nadded\n");
  });

  it("leave the layer as it is, and nothing behind", async () => {
    const before = await digests(origin);
    const guest = await resumed("clean");
    await answered(guest);
    await shell(guest, "dd if=/dev/zero of=/dev/shm/big bs=1M count=30 2>/dev/null; rm /dev/shm/big; sleep 3");
    await bench.driver.remove(guest, progress);
    expect(await digests(origin)).toEqual(before);
    expect(await readdir(guest.directory)).toEqual([]);
    expect(await readFile("/proc/self/mounts", "utf8")).not.toContain(guest.directory);
    expect(await readdir("/run/netns").catch(() => [])).not.toContain(tapName(guest.name));
  });

  it("run while their layers are still arriving, wait for a server that is started anew, and need none once settled", async () => {
    const { socket, arriving } = prepareArriving("lazy");
    let server = await serveFiles(socket, filesOf(origin));
    const guest = await make("lazy");
    await bench.synthesis.resume(guest, arriving, progress);
    await answered(guest);
    await server.end();
    const reading = shell(guest, "find / -xdev -type f -exec cat {} + >/dev/null 2>&1; echo read");
    await delay(1_500);
    expect(await bench.driver.observe(guest)).toBe("running");
    await expect(bench.driver.snapshot(guest, "early", progress)).rejects.toMatchObject({ code: "REFUSED" });
    server = await serveFiles(socket, filesOf(origin));
    expect(await reading).toBe("read\n");
    await bench.synthesis.settle(guest, progress);
    await bench.synthesis.settle(guest, progress);
    await server.end();
    await shell(guest, "echo 3 >/proc/sys/vm/drop_caches; find / -xdev -type f -exec cat {} + >/dev/null 2>&1; true");
    await answered(guest);
    await bench.driver.suspend(guest, progress);
    await bench.driver.start(guest, progress);
    await answered(guest);
  });

  it("are held while nothing arrives, go on afterwards, and can be ended at any time", async () => {
    const { socket, arriving } = prepareArriving("held");
    const server = await serveFiles(socket, filesOf(origin));
    const guest = await make("held");
    await bench.synthesis.resume(guest, arriving, progress);
    await answered(guest);
    server.silence();
    await bench.synthesis.hold(guest, true);
    expect(await bench.driver.observe(guest)).toBe("running");
    await bench.driver.start(guest, progress);
    expect(await ask(guest)).toBeUndefined();
    server.wake();
    await bench.synthesis.hold(guest, false);
    await answered(guest);
    server.silence();
    await ask(guest, 500);
    void ask(guest, 20_000);
    const begin = performance.now();
    await bench.driver.remove(guest, progress);
    expect(performance.now() - begin).toBeLessThan(40_000);
    await server.end();
  });

  const prepareArriving = (name: string) => {
    const socket = join(bench.open, `${name}.sock`);
    const { disk, memory } = origin;
    const arriving: Origin = {
      ...origin,
      disk: { file: disk.file, nbd: socket, exportName: "disk", below: bench.basePath },
      memory: { file: memory.file, nbd: socket, exportName: "memory" },
    };
    return { socket, arriving };
  };
});

function filesOf(origin: Origin): Record<string, string> {
  return { disk: origin.disk.file, memory: origin.memory.file };
}

async function digests(origin: Origin): Promise<string[]> {
  const files = Object.values(filesOf(origin));
  return Promise.all(
    files.map(async (file) =>
      createHash("sha256")
        .update(await readFile(file))
        .digest("hex"),
    ),
  );
}
