import { spawn } from "node:child_process";

/** What a change must pass; what takes longest begins first. */
const checks: Record<string, string[]> = {
  "unit tests": ["vitest", "run", "--project", "unit"],
  lint: ["eslint", "."],
  types: ["tsc", "-p", "."],
  format: ["npm", "run", "--silent", "format:check"],
  "generated files": ["npm", "run", "--silent", "generate:check"],
};

const atOnce = 2;
const limitMillis = 5 * 60_000;

const waiting = Object.entries(checks);
const worker = async (): Promise<void> => {
  for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await perform(...next);
};
await Promise.all(Array.from({ length: atOnce }, worker));

/** One line for what passes; everything that was printed for what does not. */
async function perform(name: string, [program = "", ...args]: string[]): Promise<void> {
  const began = performance.now();
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"], timeout: limitMillis });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (output += chunk.toString()));
  const ended = await new Promise<number | string>((resolve) => {
    child.on("error", (error) => resolve(error.message));
    child.on("close", (code, signal) => resolve(signal === null ? (code ?? 1) : `ended by ${signal} after ${limitMillis / 1000} s`));
  });
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  console.log(`${ended === 0 ? "ok    " : "FAILED"} ${name} (${seconds} s)`);
  if (ended === 0) return;
  process.exitCode = 1;
  console.error(output.trimEnd());
  if (typeof ended === "string") console.error(ended);
}
