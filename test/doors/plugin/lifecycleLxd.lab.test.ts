import { describe } from "vitest";
import { lifecycleContract } from "../../contracts/lifecycle.ts";
import { openGateways } from "../../gateways.ts";

describe("the plugin door, on lxd", () => {
  lifecycleContract("lxd", () => openGateways("pluginlxd", { lxd: ["gw1", "gw2"], door: "plugin" }));
});
