import { describe } from "vitest";
import { lifecycleContract } from "../../contracts/lifecycle.ts";
import { openGateways } from "../../gateways.ts";

describe("the dynamic door, on kvm", () => {
  lifecycleContract("kvm", () => openGateways("lifekvm"));
});
