import { afterAll, beforeAll, describe, it } from "vitest";
import { declarationFor, lifecycle, type Life } from "../../contracts/lifecycle.ts";
import { openGateways, type Gateways, type Kind } from "../../gateways.ts";

describe.each<Kind>(["lxd", "kvm"])("the dynamic door, on %s", (kind) => {
  let gateways: Gateways;
  let life: Life;
  let broken = false;

  beforeAll(async () => {
    gateways = await openGateways(`life${kind}`, kind === "lxd" ? { lxd: ["gw1", "gw2"] } : {});
    life = {
      gateways,
      kind,
      now: declarationFor(kind),
      change: async (change) => {
        life.now = { ...life.now, ...change };
        return gateways.up(life.now);
      },
      look: (change) => gateways.preview({ ...life.now, ...change }),
    };
  });
  afterAll(() => gateways?.close());

  it.each(lifecycle)("$title", async ({ run }) => {
    // each row begins where the one before ended, so after a failure the rest says nothing
    if (broken) throw new Error("an earlier row failed");
    broken = true;
    await run(life);
    broken = false;
  });
});
