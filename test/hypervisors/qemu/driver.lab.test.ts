import { describe } from "vitest";
import { driverContract } from "../../contracts/driver.ts";
import { openQemuBench } from "./bench.ts";

const base = process.env["CLOUDLET_TEST_BASE"];

describe.skipIf(base === undefined)("the QEMU driver", () => {
  driverContract(() => openQemuBench(base ?? ""));
});
