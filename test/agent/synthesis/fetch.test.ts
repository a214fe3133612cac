import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Offer } from "../../../provider/agent/protocol.ts";
import { fetchBlobs } from "../../../provider/agent/synthesis/fetch.ts";
import { MoveTarget } from "../../../provider/agent/moves/target.ts";
import { freePort } from "../../freePort.ts";
import { Link } from "../moves/rig.ts";
import { context, testAgent } from "../fixture.ts";
import type { TestAgent } from "../fixture.ts";

const large = Buffer.alloc(8 * 1024 * 1024, "0123456789abcdef\n");
const sha256 = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");

type Way = Pick<Offer, "addresses" | "port" | "certificate">;

/** An agent that hands out blobs at a real data port, behind a link that can be cut. */
class Giver {
  readonly name: string;
  readonly agent: TestAgent;
  readonly link: Link;
  readonly #target: MoveTarget;
  readonly #way: Way;

  private constructor(name: string, parts: { agent: TestAgent; target: MoveTarget; link: Link; way: Way }) {
    this.name = name;
    this.agent = parts.agent;
    this.link = parts.link;
    this.#target = parts.target;
    this.#way = parts.way;
  }

  /** Listens before anything else asks for a free port, as that may be the same. */
  static async open(name: string): Promise<Giver> {
    const agent = await testAgent();
    const port = await freePort();
    const target = new MoveTarget(agent.services, { port, onStep: () => undefined });
    const { certificate } = await target.open();
    const link = new Link(port);
    return new Giver(name, { agent, target, link, way: { addresses: ["127.0.0.1"], port: await link.open(), certificate } });
  }

  async offer(digests: string[], seconds = 60): Promise<Offer> {
    return { node: this.name, ...this.#way, token: await this.agent.services.offers.give(digests, seconds) };
  }

  close(): void {
    this.#target.close();
    this.link.close();
    this.agent.remove();
  }
}

describe("blobs from another node", () => {
  let near: Giver;
  let far: Giver;
  let taker: TestAgent;
  const digest = sha256(large);
  const put = (agent: TestAgent): Promise<void> => agent.services.store.put(digest, () => Readable.from([large]));
  const fetch = (offers: Offer[], digests = [digest]) => fetchBlobs(taker.services, { digests, offers }, context());

  beforeEach(async () => {
    near = await Giver.open("near");
    far = await Giver.open("far");
    taker = await testAgent();
  });
  afterEach(() => {
    near.close();
    far.close();
    taker.remove();
  });

  it("come from the first that has them, and are counted", async () => {
    await put(far.agent);
    const offers = [await near.offer([digest]), await far.offer([digest])];
    expect(await fetch(offers)).toEqual({ bytesTransferred: large.length, bytesAvoided: 0, from: ["far"] });
    expect(await fetch(offers)).toEqual({ bytesTransferred: 0, bytesAvoided: large.length, from: [] });
  });

  it("that two need at once are transferred once", async () => {
    await put(far.agent);
    const offers = [await far.offer([digest])];
    const results = await Promise.all([fetch(offers), fetch(offers)]);
    expect(results.map(({ bytesTransferred }) => bytesTransferred).sort((a, b) => a - b)).toEqual([0, large.length]);
  });

  it("go on where a cut link left them, from whoever answers", async () => {
    await put(near.agent);
    await put(far.agent);
    const offers = [await near.offer([digest]), await far.offer([digest])];
    near.link.cutAfter(3_000_000);
    const result = await fetch(offers);
    expect(result).toMatchObject({ bytesTransferred: large.length, from: ["near", "far"] });
    expect(near.link.forwarded + far.link.forwarded).toBeLessThan(large.length * 1.2);
  });

  it("are refused without the offer's token, for other blobs, and once it has expired", async () => {
    await put(far.agent);
    const offer = await far.offer([digest]);
    const other = await far.agent.store("other");
    const told = /no other hands it out: far answered 401/;
    await expect(fetch([{ ...offer, token: "guessed" }])).rejects.toThrow(told);
    await expect(fetch([offer], [other])).rejects.toThrow(told);
    await expect(fetch([await far.offer([digest], 0)])).rejects.toThrow(told);
  });

  it("do not come from a node with another certificate, and never damaged", async () => {
    await put(far.agent);
    await expect(fetch([{ ...(await far.offer([digest])), certificate: "0".repeat(64) }])).rejects.toThrow(/certificate/);
    expect(await taker.services.store.list()).toEqual([]);
  });

  it("whose nodes are all silent fail in time and say which were asked", { timeout: 30_000 }, async () => {
    await put(far.agent);
    const offer = await far.offer([digest]);
    far.link.cut();
    await expect(fetch([offer])).rejects.toMatchObject({ code: "UNREACHABLE", message: expect.stringContaining("far") });
  });
});
