import { describe } from "vitest";
import { lifecycleContract } from "../../contracts/lifecycle.ts";
import { openGateways } from "../../gateways.ts";

describe("the dynamic door, on lxd", () => {
  lifecycleContract("lxd", () => openGateways("lifelxd", { lxd: ["gw1", "gw2"] }));
});
