import { spawn } from "node:child_process";
import { CloudletError } from "../../provider/core/errors.ts";

export interface RunOptions {
  stdin?: string | Buffer;
  timeoutMillis?: number;
  env?: NodeJS.ProcessEnv;
  cwd?: string;
}

export interface RunResult {
  exitCode: number;
  stdout: string;
  stderr: string;
}

/** Runs one program; its exit code is an answer, not an error. */
export async function tryRun(argv: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const [program, ...args] = argv;
  if (program === undefined) throw new CloudletError("BUG", "there is no program to run");
  const timeoutMillis = options.timeoutMillis ?? 60_000;
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd: options.cwd, env: options.env ?? process.env, stdio: ["pipe", "pipe", "pipe"] });
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      // something it started may still hold the pipes open
      child.stdout.destroy();
      child.stderr.destroy();
      reject(new CloudletError("TIMEOUT", `${argv.join(" ").slice(0, 200)} did not end within ${timeoutMillis} ms`));
    }, timeoutMillis);
    child.stdout.on("data", (data: Buffer) => out.push(data));
    child.stderr.on("data", (data: Buffer) => err.push(data));
    child.on("error", (cause) => {
      clearTimeout(timer);
      reject(new CloudletError("FAILED", `cannot start ${program}`, { cause }));
    });
    child.on("close", (code) => {
      clearTimeout(timer);
      resolve({ exitCode: code ?? 137, stdout: Buffer.concat(out).toString(), stderr: Buffer.concat(err).toString() });
    });
    // a program that ends without reading its input is fine
    child.stdin.on("error", () => undefined);
    child.stdin.end(options.stdin ?? "");
  });
}

/** Runs one program that must succeed, and gives what it printed. */
export async function run(argv: readonly string[], options: RunOptions = {}): Promise<string> {
  const result = await tryRun(argv, options);
  if (result.exitCode !== 0) {
    const words = (result.stderr.trim() || result.stdout.trim()).slice(-2000);
    throw new CloudletError("FAILED", `${argv.join(" ").slice(0, 300)} ended with ${result.exitCode}: ${words}`);
  }
  return result.stdout;
}
