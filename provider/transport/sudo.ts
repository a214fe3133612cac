import { CloudletError } from "../core/errors.ts";
import { deadlineOf, execute, lastLines } from "./exec.ts";
import type { Link } from "./link.ts";

/** Whether commands need sudo to be root. A login user who may not use it without a password is an error. */
export async function needsSudo(link: Link, signal: AbortSignal): Promise<boolean> {
  const who = await plain(link, "id -u", signal);
  if (who === "0") return false;
  const { exitCode, stderr } = await execute({ link, sudo: true }, "true", { timeoutMillis: 15_000, signal });
  if (exitCode === 0) return true;
  const user = link.label.replace(/@.*$/, "");
  throw new CloudletError("UNAUTHORIZED", `${link.label} is not root and has no password-less sudo${lastLines(stderr)}`, {
    fix: `log in as root, or put "${user} ALL=(ALL) NOPASSWD: ALL" into /etc/sudoers.d/cloudlet on the node`,
  });
}

async function plain(link: Link, command: string, signal: AbortSignal): Promise<string> {
  const deadline = deadlineOf(15_000, signal);
  try {
    const { channel, closed, abandon } = await link.command(command, deadline.signal);
    deadline.signal.addEventListener("abort", abandon, { once: true });
    let text = "";
    channel.on("data", (chunk: Buffer) => (text += chunk.toString()));
    channel.stderr.resume();
    channel.end();
    await closed;
    if (deadline.signal.aborted || !/^\d+\s*$/.test(text)) throw new Error(`no answer to ${command}`);
    return text.trim();
  } catch (cause) {
    throw new CloudletError(signal.aborted ? "ABORTED" : "UNREACHABLE", `${link.label} logs in but does not run commands`, {
      fix: "the login user needs a POSIX shell, and no ForceCommand in the node's sshd_config",
      cause,
    });
  } finally {
    deadline.clear();
  }
}
