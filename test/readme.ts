import { readFileSync } from "node:fs";
import { join } from "node:path";

/** The program that the README shows for one's own gateways. */
export function readmeProgram(): string {
  const text = readFileSync(join(import.meta.dirname, "..", "README.md"), "utf8");
  const program = /^```ts\n(.*?)^```$/ms.exec(text)?.[1];
  if (program === undefined) throw new Error("README.md has no block of TypeScript");
  return program;
}
