import { describe } from "vitest";
import { lifecycleContract } from "../../contracts/lifecycle.ts";
import { openGateways } from "../../gateways.ts";

describe("the plugin door, on kvm", () => {
  lifecycleContract("kvm", () => openGateways("pluginkvm", { door: "plugin" }));
});
