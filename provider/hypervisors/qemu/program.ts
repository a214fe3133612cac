import { stat } from "node:fs/promises";
import { join } from "node:path";
import { run } from "../../agent/process.ts";
import { CloudletError } from "../../core/errors.ts";

const program = "qemu-system-x86_64";

export interface Program {
  version: string;
  machineTypes: string[];
}

/** What the installed QEMU is: asked once for each build of it, since each question is a process in the middle of a start. */
export function openProgram(): () => Promise<Program> {
  let known: { build: string; asked: Promise<Program> } | undefined;
  return () =>
    installedBuild().then((build) => {
      if (known?.build !== build) {
        const asked = ask();
        asked.catch(() => (known = undefined));
        known = { build, asked };
      }
      return known.asked;
    });
}

/** Changes with each upgrade. */
async function installedBuild(): Promise<string> {
  for (const directory of (process.env["PATH"] ?? "").split(":")) {
    const file = join(directory, program);
    const found = await stat(file).catch(() => undefined);
    if (found?.isFile() === true) return [file, found.ino, found.size, found.mtimeMs].join(" ");
  }
  return "not found";
}

async function ask(): Promise<Program> {
  const [version, machines] = await Promise.all([
    run([program, "-version"], { timeoutMillis: 10_000 }),
    run([program, "-machine", "help"], { timeoutMillis: 10_000 }),
  ]);
  const number = /version (\d+(?:\.\d+)+)/.exec(version.stdout)?.[1];
  if (number === undefined) throw new CloudletError("FAILED", `${program} tells no version: ${version.stdout.slice(0, 200)}`);
  // an alias would say another machine on another node
  const lines = machines.stdout.split("\n").filter((line) => !line.includes("(alias of"));
  return { version: number, machineTypes: lines.flatMap((line) => /^([a-z]\S*) {2,}/.exec(line)?.[1] ?? []) };
}
