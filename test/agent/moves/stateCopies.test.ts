import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { copyState, takeCopy } from "../../../provider/agent/moves/stateCopies.ts";
import { recover } from "../../../provider/agent/recover.ts";
import { releasePreseed } from "../../../provider/agent/synthesis/preseeds.ts";
import { context } from "../fixture.ts";
import { RigNode, World } from "./rig.ts";

const id = "shop/counter";
const owner = "p/s";

let a: RigNode;
let b: RigNode;
beforeEach(async () => {
  const world = new World();
  [a, b] = [new RigNode("a", world, { live: true }), new RigNode("b", world, { live: true })];
  await a.boot();
  await b.boot();
  await a.make();
});
afterEach(async () => {
  await a.close();
  await b.close();
});

const formerOf = (node: RigNode) => join(node.services.root, "former");

async function take(digest: string | undefined) {
  const { certificate, port } = await a.target.open();
  const token = await a.services.offers.give([digest ?? ""], 60);
  const offers = [{ node: "a", addresses: ["127.0.0.1"], port, certificate, token }];
  return takeCopy(b.services, { id, owner, digest: digest ?? "", offers }, context());
}

describe("a copy of what a running cloudlet has of its own", () => {
  it("is there on the other node under the cloudlet's name, what it cost is added, and it goes when it is released", async () => {
    const cost = { bytesTransferred: 10, bytesAvoided: 1, totalMillis: 5 };
    await b.services.preseeds.write({ name: id, owner, base: "0".repeat(64), cost });
    const { digest } = await copyState(a.services, id, context());
    const { bytesTransferred } = await take(digest);
    expect(bytesTransferred).toBeGreaterThan(0);
    expect(await b.services.formerCopies.has(id)).toBe(true);
    expect(await readFile(await b.services.formerCopies.pathOf(id), "utf8")).toBe("new");
    expect((await b.services.preseeds.read(id, owner))?.cost).toMatchObject({ bytesTransferred: 10 + bytesTransferred, bytesAvoided: 1 });
    expect(await b.services.store.list()).not.toContain(digest);
    expect(await readdir(formerOf(a))).toEqual([]);
    await releasePreseed(b.services, { id, owner }, context());
    expect(await readdir(formerOf(b))).toEqual([]);
  });

  it("is not made of one that would move stopped, nor of one that is not this node's", async () => {
    a.driver.guests.forEach((guest) => (guest.state = "stopped"));
    expect(await copyState(a.services, id, context())).toEqual({});
    expect(await copyState(b.services, id, context())).toEqual({});
  });

  it("that cannot be taken leaves nothing", async () => {
    await expect(take("f".repeat(64))).rejects.toMatchObject({ code: "UNREACHABLE" });
    expect(await readdir(formerOf(b))).toEqual([]);
  });

  it("that an agent was killed over is let go of by the next one, and its guest is not read any more", async () => {
    const stayed: string[] = [];
    const { live } = a.driver;
    if (live !== undefined) live.stay = async ({ name }) => void stayed.push(name);
    await writeFile(`${await a.services.formerCopies.pathOf(id)}.ahead.new`, "half");
    await recover(a.services, { signal: AbortSignal.timeout(10_000), status: () => undefined });
    expect(stayed).toHaveLength(1);
    expect(await readdir(formerOf(a))).toEqual([]);
  });
});
