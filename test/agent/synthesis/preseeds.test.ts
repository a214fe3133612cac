import { existsSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MoveTarget } from "../../../provider/agent/moves/target.ts";
import type { Offer, PreseedSpec } from "../../../provider/agent/protocol.ts";
import { applyPreseed, forgetUnfinished, preseedStatus, releasePreseed } from "../../../provider/agent/synthesis/preseeds.ts";
import { referencedDigests } from "../../../provider/agent/synthesis/references.ts";
import { manifestText } from "../../fakes/manifest.ts";
import { freePort } from "../../freePort.ts";
import { context, digestText, spec, testAgent } from "../fixture.ts";
import type { TestAgent } from "../fixture.ts";

const [id, owner] = ["shop/counter", "p/s"];

describe("what is held for a cloudlet that may come", () => {
  let here: TestAgent;
  let giver: TestAgent;
  let target: MoveTarget;
  let way: Pick<Offer, "addresses" | "port" | "certificate">;
  let wanted: PreseedSpec;

  beforeEach(async () => {
    here = await testAgent();
    giver = await testAgent();
    const port = await freePort();
    target = new MoveTarget(giver.services, { port, onStep: () => undefined });
    way = { addresses: ["127.0.0.1"], port, certificate: (await target.open()).certificate };
    wanted = { id, owner, base: await giver.store("base"), overlay: await overlayOn(giver, "pack") };
  });
  afterEach(() => {
    target.close();
    giver.remove();
    here.remove();
  });

  const offers = async (): Promise<Offer[]> => {
    const all = await giver.services.store.list();
    return [{ node: "gw1", ...way, token: await giver.services.offers.give(all, 60) }];
  };
  const apply = async (change: Partial<PreseedSpec> = {}, at = context()) =>
    applyPreseed(here.services, { ...wanted, ...change, offers: await offers() }, at);
  const stored = () => here.services.store.list();
  const layer = (digest: string | undefined) => here.services.layers.directoryOf(digest ?? "");

  it("comes as a whole, recombined, and says what it cost, also when asked again", async () => {
    const { hasCopy, ...cost } = await apply();
    expect(hasCopy).toBe(false);
    const bytes = (await Promise.all((await stored()).map((digest) => here.services.store.bytes(digest)))).reduce((sum, it) => sum + it, 0);
    expect(cost).toMatchObject({ bytesTransferred: bytes, bytesAvoided: 0 });
    expect(existsSync(layer(wanted.overlay))).toBe(true);
    expect(await apply()).toEqual({ ...cost, hasCopy });
    expect(await preseedStatus(here.services, id, owner)).toEqual(cost);
    expect(await preseedStatus(here.services, id, "other/stack")).toBeUndefined();
  });

  it("is not what was there before anyway", async () => {
    await here.store("base");
    expect(await apply({ overlay: undefined })).toMatchObject({ bytesTransferred: 0, bytesAvoided: 4 });
  });

  it("is missing once any of it is, and only that is brought again", async () => {
    await apply();
    await here.services.store.discard([wanted.base], new Set());
    expect(await preseedStatus(here.services, id, owner)).toBeUndefined();
    expect(await apply()).toMatchObject({ bytesTransferred: 4 });
    await here.services.layers.remove(wanted.overlay ?? "");
    expect(await preseedStatus(here.services, id, owner)).toBeUndefined();
    expect(await apply()).toMatchObject({ bytesTransferred: 0 });
    expect(await preseedStatus(here.services, id, owner)).toBeDefined();
  });

  it("goes at once when it is released, but for what something else needs", async () => {
    await apply();
    await here.services.images.write({ name: "i", owner, digest: wanted.base, kind: "kvm", format: "raw", bytes: 4, virtualBytes: 4 });
    await releasePreseed(here.services, { id, owner: "other/stack" }, context());
    expect(await preseedStatus(here.services, id, owner)).toBeDefined();
    await releasePreseed(here.services, { id, owner }, context());
    await releasePreseed(here.services, { id, owner }, context());
    expect(await stored()).toEqual([wanted.base]);
    expect(existsSync(layer(wanted.overlay))).toBe(false);
  });

  it("stays where the cloudlet has come meanwhile", async () => {
    await apply();
    const record = { network: { mac: "", address: "" }, complete: true, restartPending: false };
    const there = spec(wanted.base, { overlay: { digest: wanted.overlay ?? "" } });
    await here.services.records.write({ ...record, spec: there, ownership: { epoch: 1, role: "owner" } });
    const before = await stored();
    await releasePreseed(here.services, { id, owner }, context());
    expect(await stored()).toEqual(before);
    expect(existsSync(layer(wanted.overlay))).toBe(true);
  });

  it("is something else once the cloudlet is, and what it was goes", async () => {
    await apply();
    const next = await overlayOn(giver, "another pack");
    await apply({ overlay: next });
    expect(existsSync(layer(wanted.overlay))).toBe(false);
    expect(existsSync(layer(next))).toBe(true);
    expect(await stored()).not.toContain(digestText("pack"));
  });

  it("is nothing where it cannot be brought, and what has come by then is not sent again", async () => {
    await giver.services.store.discard([digestText("pack")], new Set());
    await expect(apply()).rejects.toMatchObject({ code: "UNREACHABLE" });
    expect([await preseedStatus(here.services, id, owner), await here.services.preseeds.list()]).toEqual([undefined, []]);
    await giver.store("pack");
    // base and manifest had come
    expect(await apply()).toMatchObject({ bytesTransferred: "index".length + "pack".length });
  });

  it.each(["held", "fetched", "recombined"])(
    "that was cut off at %s with its agent keeps nothing once that has started again",
    async (step) => {
      await here.services.preseeds.write({ ...wanted, name: id });
      expect(await referencedDigests(here.services)).toContain(wanted.base);
      await expect(apply({}, context(step))).rejects.toThrow(step);
      await here.services.preseeds.write({ ...wanted, name: id });
      await forgetUnfinished(here.services);
      expect(await referencedDigests(here.services)).toEqual(new Set());
    },
  );
});

async function overlayOn(agent: TestAgent, text: string): Promise<string> {
  const [base, index, pack] = [await agent.store("base"), await agent.store("index"), await agent.store(text)];
  return agent.store(manifestText({ base, index, pack: { digest: pack, bytes: text.length } }));
}
