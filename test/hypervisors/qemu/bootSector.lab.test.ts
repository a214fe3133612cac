import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Guest } from "../../../provider/hypervisors/types.ts";
import { countingDisk, countsOf } from "./countingSector.ts";
import { layersOf, openOverlayBench, progress } from "./overlayBench.ts";
import type { OverlayBench } from "./overlayBench.ts";

let bench: OverlayBench;
let disk: string;
beforeAll(async () => {
  bench = await openOverlayBench();
  disk = join(bench.root, "counting.raw");
  await writeFile(disk, countingDisk());
});
afterAll(async () => {
  await bench.close();
});

const resources = { cores: 1, memoryMib: 16, diskMib: 1 };
const counts = async (guest: Guest) => countsOf(await bench.driver.log(guest, 2_000));

it("a guest without an operating system is frozen, and two go on counting where it was", async () => {
  const builder = { ...(await bench.guest("builder", { resources })), basePath: disk };
  await bench.driver.ensure(builder, progress);
  await bench.synthesis.startForFreeze(builder, undefined, progress);
  await expect.poll(() => counts(builder), { timeout: 120_000 }).toContain(5);
  const frozen = await bench.synthesis.freeze(builder, progress);
  const last = (await counts(builder)).at(-1) ?? 0;
  const origin = await layersOf(frozen, { guest: builder, directory: join(bench.root, "layer") });
  for (const name of ["first", "second"]) {
    const guest = { ...(await bench.guest(name, { resources, overlay: { digest: "1".repeat(64) } })), basePath: disk };
    await bench.synthesis.resume(guest, origin, progress);
    await expect.poll(async () => (await counts(guest)).length, { timeout: 60_000 }).toBeGreaterThan(3);
    const [, second, third] = await counts(guest);
    expect([second, third]).toEqual([last + 2, last + 3]);
    await bench.driver.suspend(guest, progress);
    const before = (await counts(guest)).at(-1) ?? 0;
    await bench.driver.start(guest, progress);
    await expect.poll(async () => (await counts(guest)).at(-1), { timeout: 60_000 }).toBeGreaterThan(before + 1);
  }
});
