import { mkdir, open, readFile } from "node:fs/promises";
import { createConnection } from "node:net";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Driver, Guest, Live, LiveArrival, LiveDeparture, LiveRound, Progress } from "../../../provider/hypervisors/types.ts";
import { guestFiles } from "../../../provider/hypervisors/qemu/guestFiles.ts";
import { withQmp } from "../../../provider/hypervisors/qemu/launch.ts";
import { openQemuBench } from "./bench.ts";

const progress: Progress = { signal: AbortSignal.timeout(600_000), status: () => undefined };
/** Counts in memory alone, and says where it is. */
const counting = "i=0; while true; do i=$((i+1)); echo $i >/dev/shm/count; sleep 0.05; done";

describe("a guest of QEMU that is moved while it runs", () => {
  let bench: Awaited<ReturnType<typeof openQemuBench>>;
  let driver: Driver;
  let live: Live;
  const guests: Guest[] = [];
  beforeAll(async () => {
    bench = await openQemuBench();
    driver = bench.driver;
    if (driver.live === undefined) throw new Error("the driver moves nothing live");
    live = driver.live;
  });
  afterEach(async () => {
    for (const guest of guests.splice(0)) await driver.remove(guest, progress);
  });
  afterAll(() => bench.close());

  const shell = async (guest: Guest, script: string) =>
    (await driver.exec(guest, ["sh", "-c", script], { timeoutMillis: 60_000 })).stdout.trim();
  /** The file is empty for a moment whenever it is written. */
  const count = async (guest: Guest) => Number(await shell(guest, 'until c=$(cat /dev/shm/count) && [ -n "$c" ]; do :; done; echo $c'));
  const boot = async (name: string, changes: Partial<Guest["spec"]> = {}) => {
    const guest = await bench.guest(name, changes);
    guests.push(guest);
    await driver.ensure(guest, progress);
    await driver.start(guest, progress);
    await shell(guest, "true");
    return guest;
  };
  /** The same cloudlet as another node would have it. */
  const elsewhere = async (guest: Guest, name: string): Promise<Guest> => {
    const directory = join(bench.root, name);
    await mkdir(directory, { recursive: true });
    const twin = { ...guest, name: `${guest.name.slice(0, -2)}zz`, directory };
    guests.push(twin);
    return twin;
  };
  const images = (guest: Guest) => ({ disk: guest.basePath, memory: undefined });
  const formerOf = (guest: Guest) => join(bench.root, `${guest.name}.former`);
  const shapeOf = async (guest: Guest) => {
    const found = await live.shape(guest);
    if ("impossible" in found) throw new Error(found.impossible);
    return found.shape;
  };
  const pass = async (round: LiveRound, arrival: LiveArrival) => {
    let bytes = 0;
    const begun = performance.now();
    const counted = async function* () {
      for await (const chunk of round.records) {
        bytes += chunk.length;
        yield chunk;
      }
    };
    await arrival.take(counted());
    return { ...round.stats(), bytes, millis: Math.round(performance.now() - begun) };
  };
  const begin = async (guest: Guest, twin: Guest): Promise<{ departure: LiveDeparture; arrival: LiveArrival }> => {
    const arrival = await live.receive(twin, { shape: await shapeOf(guest), images: images(guest), former: formerOf(twin) }, progress);
    const former = { path: formerOf(guest), onTarget: Promise.resolve(arrival.has) };
    return { departure: await live.depart(guest, { images: images(guest), former }, progress), arrival };
  };

  const end = async ({ departure, arrival }: { departure: LiveDeparture; arrival: LiveArrival }) => {
    await pass(
      departure.last(progress.signal, () => undefined),
      arrival,
    );
    await arrival.finish(progress.signal);
    await arrival.close();
    await departure.close();
  };

  it("goes on elsewhere with what is only in its memory, and with its disk", async () => {
    const guest = await boot("leaves");
    await shell(
      guest,
      `(${counting}) >/dev/null 2>&1 & dd if=/dev/urandom of=/root/first bs=4096 count=500 2>/dev/null; sync; md5sum /root/first`,
    );
    const twin = await elsewhere(guest, "arrives");
    const { departure, arrival } = await begin(guest, twin);
    console.log("first", await pass(departure.round(progress.signal), arrival));
    console.log("remaining", await departure.remaining(progress.signal));
    const written = await shell(
      guest,
      "dd if=/dev/urandom of=/root/second bs=4096 count=100 2>/dev/null; sync; md5sum /root/first /root/second",
    );
    console.log("second", await pass(departure.round(progress.signal), arrival));
    console.log("remaining", await departure.remaining(progress.signal));
    const before = await count(guest);
    let paused = 0;
    const last = await pass(
      departure.last(progress.signal, () => (paused = performance.now())),
      arrival,
    );
    await arrival.finish(progress.signal);
    console.log("last", last, "paused for", Math.round(performance.now() - paused));
    await arrival.close();
    await departure.close();
    expect(await live.isWaiting(twin)).toBe(true);
    await driver.start(twin, progress);
    const after = await count(twin);
    expect(after).toBeGreaterThanOrEqual(before);
    expect(after).toBeLessThan(before + 200);
    await driver.remove(guest, progress);
    expect(await shell(twin, "echo 3 >/proc/sys/vm/drop_caches; md5sum /root/first /root/second")).toBe(written);
    await driver.stop(twin, progress);
    await driver.start(twin, progress);
    expect(await shell(twin, "md5sum /root/first /root/second")).toBe(written);
  });

  it("goes back with only what has changed since, and what it has freed does not travel", async () => {
    const guest = await boot("returns");
    const fill = "dd if=/dev/urandom of=/dev/shm/blob bs=4096 count=2000; dd if=/dev/urandom of=/root/kept bs=4096 count=500";
    await shell(guest, `(${fill}; dd if=/dev/urandom of=/root/freed bs=4096 count=5000; sync; rm /root/freed; sync) 2>/dev/null`);
    const sums = await shell(guest, "md5sum /dev/shm/blob /root/kept");
    const twin = await elsewhere(guest, "visited");
    const away = await begin(guest, twin);
    const first = await pass(away.departure.round(progress.signal), away.arrival);
    expect(first.blocks).toBeGreaterThan(450);
    expect(first.blocks, "freed blocks").toBeLessThan(3_000);
    await end(away);
    await driver.start(twin, progress);
    await driver.remove(guest, progress);
    expect(await shell(twin, "md5sum /dev/shm/blob /root/kept")).toBe(sums);
    await shell(twin, "dd if=/dev/urandom of=/root/new bs=4096 count=100 2>/dev/null; sync");

    const arrival = await live.receive(guest, { shape: await shapeOf(twin), images: images(guest), former: formerOf(guest) }, progress);
    const former = { path: formerOf(twin), onTarget: Promise.resolve(arrival.has) };
    const back = { departure: await live.depart(twin, { images: images(twin), former }, progress), arrival };
    const again = await pass(back.departure.round(progress.signal), arrival);
    console.log("away", first, "back", again);
    expect(again.bytes).toBeLessThan(first.bytes / 3);
    expect(again.blocks).toBeLessThan(500);
    await end(back);
    expect(differingPages(await memoryOf(twin), await memoryOf(guest))).toEqual([]);
    await driver.start(guest, progress);
    await driver.remove(twin, progress);
    expect(await shell(guest, "echo 3 >/proc/sys/vm/drop_caches; md5sum /dev/shm/blob /root/kept")).toBe(sums);
  });

  it("sends what had arrived before the link broke no second time", async () => {
    const guest = await boot("breaks");
    await shell(guest, "dd if=/dev/urandom of=/dev/shm/blob bs=4096 count=2000 2>/dev/null");
    const twin = await elsewhere(guest, "broken");
    const broken = await begin(guest, twin);
    const first = await pass(broken.departure.round(progress.signal), broken.arrival);
    await broken.arrival.close();
    await broken.departure.close();
    await live.stay(guest);
    await driver.remove(twin, progress);
    await mkdir(twin.directory, { recursive: true });
    const next = await begin(guest, twin);
    const second = await pass(next.departure.round(progress.signal), next.arrival);
    console.log("first", first, "second", second);
    expect(second.bytes).toBeLessThan(first.bytes / 3);
    await end(next);
    expect(differingPages(await memoryOf(guest), await memoryOf(twin))).toEqual([]);
  });

  it("sends only what has changed since a copy was made ahead, and runs on while that is made", async () => {
    const guest = await boot("ahead");
    await shell(guest, `dd if=/dev/urandom of=/dev/shm/blob bs=4096 count=2000 2>/dev/null; (${counting}) >/dev/null 2>&1 &`);
    const twin = await elsewhere(guest, "expected");
    const before = await count(guest);
    await live.copy(guest, { images: images(guest), path: formerOf(twin) }, progress);
    expect(await count(guest)).toBeGreaterThan(before);
    const { departure, arrival } = await begin(guest, twin);
    const round = await pass(departure.round(progress.signal), arrival);
    console.log("after a copy", round);
    expect(round.bytes).toBeLessThan(15_000_000);
    expect(round.knownBytes).toBeGreaterThan(40_000_000);
    await end({ departure, arrival });
    expect(differingPages(await memoryOf(guest), await memoryOf(twin))).toEqual([]);
  });

  it("has every byte of its memory there, also what one process writes again and again", async () => {
    const guest = await boot("writes");
    await shell(guest, "(while :; do i=$((i+1)); done) >/dev/null 2>&1 &");
    // whom somebody listens to, the guest agent sleeps: each time that another process runs, an emulator looks up pages anew
    const listening = createConnection(guestFiles(guest).guestAgent);
    for (let move = 0; move < 2; move++) {
      const twin = await elsewhere(guest, `written-${String(move)}`);
      const { departure, arrival } = await begin(guest, twin);
      await pass(departure.round(progress.signal), arrival);
      await departure.remaining(progress.signal);
      await pass(departure.round(progress.signal), arrival);
      await pass(
        departure.last(progress.signal, () => undefined),
        arrival,
      );
      await arrival.finish(progress.signal);
      await arrival.close();
      await departure.close();
      const [left, arrived] = [await memoryOf(guest), await memoryOf(twin)];
      expect(differingPages(left, arrived)).toEqual([]);
      await live.stay(guest);
      await driver.remove(twin, progress);
    }
    listening.destroy();
  });

  it("runs on where it is when the move is given up, at any time, and can be moved later", async () => {
    const guest = await boot("stays");
    await shell(guest, `(${counting}) >/dev/null 2>&1 &`);
    for (const until of ["begun", "round", "paused", "last"]) {
      const twin = await elsewhere(guest, `never-${until}`);
      const { departure, arrival } = await begin(guest, twin);
      if (until !== "begun") await pass(departure.round(progress.signal), arrival);
      if (until === "last")
        await pass(
          departure.last(progress.signal, () => undefined),
          arrival,
        );
      if (until === "paused") {
        const round = departure.last(progress.signal, () => undefined);
        for await (const _ of round.records) break;
      }
      await departure.close();
      await live.stay(guest);
      await arrival.close();
      await driver.remove(twin, progress);
      const before = await count(guest);
      await shell(guest, "sleep 0.3");
      expect(await count(guest), until).toBeGreaterThan(before);
    }
    await driver.snapshot(guest, "later", progress);
    expect(await live.shape(guest)).toMatchObject({ impossible: expect.stringContaining("snapshots") });
  });
});

/** What a guest's memory holds, as its process has it. */
async function memoryOf(guest: Guest): Promise<Buffer> {
  const pid = Number.parseInt(await readFile(join(guest.directory, "qemu.pid"), "utf8"), 10);
  const text = await withQmp(guest, guestFiles(guest).qmp, (qmp) => qmp.execute("human-monitor-command", { "command-line": "gpa2hva 0" }));
  const address = Number(/is (0x[0-9a-f]+)/.exec(String(text))?.[1]);
  const memory = Buffer.alloc(guest.spec.resources.memoryMib * 1024 ** 2 - 8192);
  const file = await open(`/proc/${String(pid)}/mem`, "r");
  try {
    const { bytesRead } = await file.read(memory, 0, memory.length, address);
    return memory.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
}

function differingPages(one: Buffer, other: Buffer): number[] {
  const differing: number[] = [];
  for (let at = 0; at < one.length; at += 4096)
    if (!one.subarray(at, at + 4096).equals(other.subarray(at, at + 4096))) differing.push(at / 4096);
  return differing;
}
