import { describe } from "vitest";
import { driverContract } from "../../contracts/driver.ts";
import { openQemuBench } from "./bench.ts";

describe("the QEMU driver", () => {
  driverContract(openQemuBench);
});
