import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: "unit",
          include: ["test/**/*.test.ts"],
          exclude: ["test/**/*.lab.test.ts"],
          testTimeout: 20_000,
          // many of them wait rather than compute
          maxWorkers: 4,
        },
      },
      {
        test: {
          name: "lab",
          include: ["test/**/*.lab.test.ts"],
          testTimeout: 600_000,
          hookTimeout: 600_000,
          // each file has hosts of its own and waits half of its time; more than two would starve the emulated guests
          maxWorkers: 2,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
