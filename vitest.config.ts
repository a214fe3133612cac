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
          // hosts, bridges and emulated guests share two cores: one file at a time
          fileParallelism: false,
          maxWorkers: 1,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
