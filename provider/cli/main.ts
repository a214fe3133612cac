import { openContext } from "../runtime.ts";
import { exitCodes, runCommand } from "./program.ts";
import { createProgress } from "./progress.ts";

const progress = createProgress(process.stderr);
const cancel = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => {
    // a second one does not wait for the cleaning up
    if (cancel.signal.aborted) process.exit(exitCodes.interrupted);
    cancel.abort();
  });

const context = openContext(
  {
    status: progress.status,
    warn(text) {
      progress.clear();
      process.stderr.write(`${text}\n`);
    },
  },
  cancel.signal,
);
const terminal = {
  out(text: string) {
    progress.clear();
    process.stdout.write(text);
  },
  err(text: string) {
    progress.clear();
    process.stderr.write(text);
  },
};

async function main(): Promise<void> {
  const { signal, status, agent } = context;
  const code = await runCommand(process.argv.slice(2), { signal, status, agent, print: (line) => terminal.out(`${line}\n`) }, terminal);
  process.exitCode = code !== exitCodes.done && cancel.signal.aborted ? exitCodes.interrupted : code;
}

void main();
