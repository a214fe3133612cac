import type { Duplex } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { CloudletError, codeOf, describeError } from "../../core/errors.ts";
import { environmentLines, fileLines, quoted } from "../guestScript.ts";
import type { JobContext } from "../jobs.ts";
import type { Login, Makings } from "../protocol.ts";
import { waitReady } from "../ready.ts";
import { seeded, type BuildGuest } from "./buildGuest.ts";
import { openConsoleShell } from "./consoleShell.ts";
import type { GuestShell } from "./guestShell.ts";
import { openSshShell } from "./sshShell.ts";

/** What a guest gets, and the ways into it besides the hypervisor's own. */
export interface Furnishings {
  makings: Makings;
  login: Login | undefined;
}

const enterMillis = 180_000;
const settingsMillis = 600_000;
const scriptMillis = 3600_000;
const pauseMillis = 500;

/** Brings what the seed could not, runs the script, and waits until the application is ready. */
export async function furnish(built: BuildGuest, furnishings: Furnishings, context: JobContext): Promise<void> {
  const { record, driver, guest } = built;
  const { makings, login } = furnishings;
  const lacksFiles = makings.files.length > 0 && (makings.parent !== undefined || login !== undefined);
  const lacksEnvironment = Object.keys(makings.environment).length > 0 && login !== undefined;
  if (makings.script !== undefined || lacksFiles || lacksEnvironment) {
    const shell = await enter(built, furnishings, context);
    try {
      await furnishThrough(shell, makings, context);
    } finally {
      await shell.close();
    }
  }
  context.step("furnished");
  context.status(`waiting for the application to answer`);
  const log = (lines: number): Promise<string> => driver.log(guest, lines);
  await waitReady({ id: record.spec.id, address: record.network.address, ready: makings.ready, log }, context.signal);
  context.step("ready");
}

async function furnishThrough(shell: GuestShell, { parent, files, environment, script }: Makings, context: JobContext): Promise<void> {
  const { signal, status } = context;
  const settings = [
    ...(parent === undefined && Object.keys(environment).length > 0 ? environmentLines(environment) : []),
    ...files.flatMap((file) => fileLines(file)),
  ];
  if (!shell.seeded && settings.length > 0) {
    status(`writing the overlay's files through ${shell.name}`);
    const { exitCode, output } = await shell.run(["set -e", ...settings].join("\n"), { timeoutMillis: settingsMillis, signal });
    if (exitCode !== 0)
      throw new CloudletError("FAILED", `the overlay's files cannot be written through ${shell.name}: ${output.trim().slice(-500)}`, {
        fix: "log in as root or as somebody who may use sudo without a password, and see that the paths can be written",
      });
  }
  if (script === undefined) return;
  status(`running the overlay's script through ${shell.name}`);
  const variables = Object.entries(environment).map(([name, value]) => `export ${name}=${quoted(value)}`);
  const { exitCode, output } = await shell.run([...variables, script].join("\n"), { timeoutMillis: scriptMillis, signal });
  if (exitCode === 0) return;
  const words = output.trim().split("\n").slice(-20).join("\n");
  throw new CloudletError("FAILED", `the overlay's script ended with exit code ${String(exitCode)}; its output ends with:\n${words}`, {
    fix: "correct the script, then run `pulumi up` again",
  });
}

/** The first way that the guest offers: its agent, then SSH, then the serial console. */
async function enter(built: BuildGuest, { makings, login }: Furnishings, { signal, status }: JobContext): Promise<GuestShell> {
  const { driver, guest, record } = built;
  const ssh = login?.ssh && { address: record.network.address, ssh: login.ssh, directory: guest.directory };
  const { console } = login ?? {};
  const ways: (() => Promise<GuestShell>)[] = [
    () => openAgentShell(built, { makings, patienceMillis: login === undefined ? 10_000 : 2_000 }, signal),
    ...(ssh === undefined ? [] : [() => openSshShell(ssh, signal)]),
    ...(console === undefined || driver.synthesis === undefined
      ? []
      : [async () => openConsoleShell(await openConsole(built), console, signal)]),
  ];
  status("waiting until commands can be run in the guest");
  const end = Date.now() + enterMillis;
  for (let reasons: string[] = []; ; reasons = []) {
    for (const way of ways) {
      try {
        return await way();
      } catch (error) {
        signal.throwIfAborted();
        if (codeOf(error) === "UNAUTHORIZED" || codeOf(error) === "UNSUPPORTED") throw error;
        reasons.push(error instanceof CloudletError ? error.message : describeError(error));
      }
    }
    if (Date.now() > end)
      throw new CloudletError("TIMEOUT", `commands cannot be run in the guest that the overlay is built in: ${reasons.join("; ")}`, {
        fix: "use a base with QEMU's guest agent, or say in `login` how to get into it; or bring everything as files and leave the script out",
      });
    await sleep(pauseMillis, undefined, { signal });
  }
}

async function openConsole({ driver, guest }: BuildGuest): Promise<Duplex> {
  if (driver.synthesis === undefined) throw new CloudletError("UNSUPPORTED", "this node's hypervisor has no serial console");
  return driver.synthesis.openConsole(guest);
}

/** The hypervisor's own way. Without a parent the guest reads its seed by itself, and is to have done so first. */
async function openAgentShell(
  { driver, guest }: BuildGuest,
  { makings, patienceMillis }: { makings: Makings; patienceMillis: number },
  signal: AbortSignal,
): Promise<GuestShell> {
  const warm = makings.parent !== undefined;
  const command = warm || guest.spec.kind === "lxd" ? ["true"] : ["test", "-e", seeded];
  const { exitCode } = await driver.exec(guest, command, { timeoutMillis: patienceMillis, signal });
  if (exitCode !== 0) throw new CloudletError("NOT_FOUND", "its files are not there yet");
  const exec = async (script: string, options: Parameters<typeof driver.exec>[2]): Promise<{ exitCode: number; output: string }> => {
    const result = await driver.exec(guest, ["sh", "-c", script], options);
    return { exitCode: result.exitCode, output: `${result.stdout}\n${result.stderr}` };
  };
  return {
    name: "the guest's agent",
    seeded: !warm,
    async run(script, options) {
      if (script.length <= pieceCharacters) return exec(script, options);
      const path = "/tmp/cloudlet.script";
      const content = Buffer.from(script).toString("base64");
      for (let at = 0; at < content.length; at += pieceCharacters) {
        const piece = `umask 077; printf %s "$DATA" | base64 -d >${at === 0 ? "" : ">"}${path}`;
        const result = await exec(piece, { ...options, environment: { DATA: content.slice(at, at + pieceCharacters) } });
        if (result.exitCode !== 0) return result;
      }
      return exec(`sh ${path}; code=$?; rm -f ${path}; exit $code`, options);
    },
    close: () => Promise.resolve(),
  };
}

// well below what one command may carry, and whole groups of base64
const pieceCharacters = 64 * 1024;
