import { describe } from "vitest";
import { promises } from "../../contracts/promises.ts";
import { openGateways } from "../../gateways.ts";

describe("what the plugin door promises to everybody", () => {
  promises(() => openGateways("plugprom", { lxd: ["gw1", "gw2"], door: "plugin" }));
});
