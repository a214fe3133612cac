import fc from "fast-check";
import { afterEach, beforeEach, expect, it } from "vitest";
import { manifestSchema } from "../../../provider/synthesis/manifest.ts";
import type { Manifest } from "../../../provider/synthesis/manifest.ts";
import { referencedDigests, referencedLayers } from "../../../provider/agent/synthesis/references.ts";
import { digestText, spec, testAgent } from "../fixture.ts";
import type { TestAgent } from "../fixture.ts";

let agent: TestAgent;
beforeEach(async () => {
  agent = await testAgent();
});
afterEach(() => {
  agent.remove();
});

/** A manifest that names these blobs; what they hold does not matter here. */
function manifest(names: { base: string; index: string; pack: string; parent?: string | undefined }): Manifest {
  return manifestSchema.parse({
    format: "cloudlet-overlay/1",
    kind: "kvm",
    base: names.base,
    ...(names.parent !== undefined && { parent: names.parent }),
    diskMib: 64,
    index: { digest: names.index, bytes: 1 },
    pack: { digest: names.pack, bytes: 1, chunks: [], touched: 0 },
    files: [],
  });
}

interface World {
  bases: number;
  /** Which base, and which earlier overlay it stands on, if any. */
  overlays: { base: number; parent: number | undefined }[];
  cloudlets: { base: number; overlay: number | undefined }[];
  keptImages: number[];
  keptOverlays: number[];
  preseeds: { base: number; overlay: number | undefined }[];
  offered: number[];
  loose: number;
}

const few = fc.nat({ max: 3 });
const some = <T>(item: fc.Arbitrary<T>): fc.Arbitrary<T[]> => fc.array(item, { maxLength: 3 });
const world: fc.Arbitrary<World> = fc.record({
  bases: fc.integer({ min: 1, max: 3 }),
  overlays: some(fc.record({ base: few, parent: fc.option(few, { nil: undefined }) })),
  cloudlets: some(fc.record({ base: few, overlay: fc.option(few, { nil: undefined }) })),
  keptImages: some(few),
  keptOverlays: some(few),
  preseeds: some(fc.record({ base: few, overlay: fc.option(few, { nil: undefined }) })),
  offered: some(few),
  loose: few,
});

/** Puts the world on the node; returns what must stay and which layers are needed, found by following names and not digests. */
async function build(
  { services, store }: TestAgent,
  { bases, overlays, ...uses }: World,
): Promise<{ needed: Set<string>; layers: Set<string> }> {
  const needed = new Set<string>();
  const layers = new Set<string>();
  const baseDigests: string[] = [];
  for (let i = 0; i < bases; i++) baseDigests.push(await store(`base ${String(i)}`));
  const base = (index: number): string => baseDigests[index % bases] ?? "";
  const made: { digest: string; parts: string[]; layers: string[] }[] = [];
  for (const [i, overlay] of overlays.entries()) {
    const parent = overlay.parent === undefined || made.length === 0 ? undefined : made[overlay.parent % made.length];
    const index = await store(`index ${String(i)}`);
    const pack = await store(`pack ${String(i)}`);
    const digest = await store(JSON.stringify(manifest({ base: base(overlay.base), index, pack, parent: parent?.digest })));
    const own = [digest, index, pack, base(overlay.base)];
    made.push({ digest, parts: [...own, ...(parent?.parts ?? [])], layers: [digest, ...(parent?.layers ?? [])] });
  }
  const overlay = (index: number) => (made.length === 0 ? undefined : made[index % made.length]);
  const need = (digests: string[] | undefined): void => digests?.forEach((digest) => needed.add(digest));
  for (const [i, cloudlet] of uses.cloudlets.entries()) {
    const found = cloudlet.overlay === undefined ? undefined : overlay(cloudlet.overlay);
    await services.records.write({
      spec: spec(base(cloudlet.base), { id: `shop/c${String(i)}`, ...(found && { overlay: { digest: found.digest } }) }),
      ownership: { epoch: 1, role: "owner" },
      network: { mac: "", address: "" },
      complete: true,
      restartPending: false,
    });
    need([base(cloudlet.base), ...(found?.parts ?? [])]);
    found?.layers.forEach((digest) => layers.add(digest));
  }
  for (const [i, index] of uses.keptImages.entries()) {
    const digest = base(index);
    await services.images.write({
      name: `image ${String(i)}`,
      owner: "p/s",
      digest,
      kind: "kvm",
      format: "raw",
      bytes: 1,
      virtualBytes: 1,
    });
    need([digest]);
  }
  for (const [i, index] of uses.keptOverlays.entries()) {
    const found = overlay(index);
    if (found === undefined) continue;
    const rest = {
      kind: "kvm" as const,
      base: base(0),
      resources: { cores: 1, memoryMib: 1, diskMib: 1 },
      bytes: 1,
      diskBytes: 1,
      memoryBytes: 1,
    };
    await services.overlays.write({ name: `overlay ${String(i)}`, owner: "p/s", digest: found.digest, ...rest });
    need(found.parts);
    found.layers.forEach((digest) => layers.add(digest));
  }
  for (const [i, preseed] of uses.preseeds.entries()) {
    const found = preseed.overlay === undefined ? undefined : overlay(preseed.overlay);
    await services.preseeds.write({
      name: `shop/p${String(i)}`,
      owner: "p/s",
      base: base(preseed.base),
      ...(found && { overlay: found.digest }),
    });
    need([base(preseed.base), ...(found?.parts ?? [])]);
    found?.layers.forEach((digest) => layers.add(digest));
  }
  for (const index of uses.offered) {
    await services.offers.give([base(index)], 60);
    need([base(index)]);
  }
  for (let i = 0; i < uses.loose; i++) await store(`loose ${String(i)}`);
  return { needed, layers };
}

it("a collection never removes a blob that something needs, and always removes one that nothing needs", { timeout: 60_000 }, async () => {
  await fc.assert(
    fc.asyncProperty(world, async (it) => {
      const node = await testAgent();
      try {
        const { needed, layers } = await build(node, it);
        expect(await referencedLayers(node.services)).toEqual(layers);
        await node.services.store.collect(await referencedDigests(node.services));
        expect(await node.services.store.list()).toEqual([...needed].sort());
      } finally {
        node.remove();
      }
    }),
    { numRuns: 25 },
  );
});

it("an offer that has expired keeps nothing", async () => {
  const digest = await agent.store("base");
  await agent.services.offers.give([digest], 0);
  expect(await referencedDigests(agent.services)).toEqual(new Set());
});

it("a manifest that cannot be read refers to nothing, and stays itself", async () => {
  const digest = await agent.store("no manifest");
  await agent.services.records.write({
    spec: spec(digestText("base"), { overlay: { digest } }),
    ownership: { epoch: 1, role: "owner" },
    network: { mac: "", address: "" },
    complete: true,
    restartPending: false,
  });
  expect(await referencedDigests(agent.services)).toEqual(new Set([digestText("base"), digest]));
});

it("a note of a cloudlet that has moved away keeps nothing; its copy that has not gone yet does", async () => {
  const base = digestText("base");
  const overlay = await agent.store(JSON.stringify(manifest({ base, index: digestText("index"), pack: digestText("pack") })));
  const gone = {
    spec: spec(base, { overlay: { digest: overlay } }),
    ownership: { epoch: 2, role: "released" as const, peer: "gw2" },
    network: { mac: "", address: "" },
    complete: true,
    restartPending: false,
  };
  await agent.services.records.write({ ...gone, leaving: true });
  expect(await referencedLayers(agent.services)).toEqual(new Set([overlay]));
  await agent.services.records.write(gone);
  expect(await referencedLayers(agent.services)).toEqual(new Set());
  expect(await referencedDigests(agent.services)).toEqual(new Set());
});
