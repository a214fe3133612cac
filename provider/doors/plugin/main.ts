import { runPlugin } from "./process.ts";

// set by the build
declare const packageVersion: string;

runPlugin({
  version: packageVersion,
  schema: async () => (await import("./schema.ts")).schemaText,
  operations: async (report) => (await import("./real.ts")).realOperations(report),
});
