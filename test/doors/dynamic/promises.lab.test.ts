import { describe } from "vitest";
import { promises } from "../../contracts/promises.ts";
import { openGateways } from "../../gateways.ts";

describe("what the dynamic door promises to everybody", () => {
  promises(() => openGateways("promises", { lxd: ["gw1", "gw2"] }));
});
