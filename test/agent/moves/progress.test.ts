import { expect, it } from "vitest";
import { progressText } from "../../../provider/agent/moves/progress.ts";

const begun = { id: "shop/counter", to: "gw2", round: 1, bytes: 12_345_678, elapsedMillis: 10_400 };

it("says what was sent while nothing can be expected yet", () => {
  expect(progressText(begun)).toBe("moving shop/counter to gw2: round 1, 12.3 MB sent in 10 s");
  expect(progressText({ ...begun, expected: {} })).toBe(progressText(begun));
});

it("says how far it is and what is to come", () => {
  const expected = { predictedTotalMillis: 54_300, predictedDowntimeMillis: 491.4 };
  expect(progressText({ ...begun, round: 2, elapsedMillis: 51_000, expected })).toBe(
    "moving shop/counter to gw2: round 2, 12.3 MB sent in 51 s; 93 %, about 3 s to go, with a pause of about 491 ms",
  );
});

it("is never ready before it is, nor below nothing", () => {
  const expected = { predictedTotalMillis: 9_000, predictedDowntimeMillis: 300 };
  expect(progressText({ ...begun, expected })).toContain("99 %, about 0 s to go");
  expect(progressText({ ...begun, elapsedMillis: 0, expected: { predictedTotalMillis: 0, predictedDowntimeMillis: 0 } })).toContain("0 %");
});
