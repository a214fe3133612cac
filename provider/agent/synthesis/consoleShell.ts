import type { Duplex } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { CloudletError } from "../../core/errors.ts";
import type { Login } from "../protocol.ts";
import { carried, newMark } from "./guestShell.ts";
import type { GuestShell } from "./guestShell.ts";

const promptMillis = 2_000;
const loginMillis = 20_000;
const answerMillis = 5_000;
const pieceMillis = 60_000;
// a terminal takes lines of 4095 characters
const pieceCharacters = 2_000;

/** The shell or login on a guest's serial port. Fails where there is none, or not yet. */
export async function openConsoleShell(stream: Duplex, login: NonNullable<Login["console"]>, signal: AbortSignal): Promise<GuestShell> {
  const typed = new Typed(stream);
  try {
    const loggedIn = await logIn(typed, login, signal);
    // nothing is repeated, nothing lands in a history, and long lines are not folded
    typed.type("unset HISTFILE; PS1=; PS2=; stty -echo 2>/dev/null");
    await greet(typed, signal);
    return {
      name: "the serial console",
      seeded: false,
      run: (script, options) => runScript(typed, script, options),
      close: async () => {
        typed.type(loggedIn ? "stty echo; exit" : "stty echo");
        await new Promise<void>((resolve) => stream.end(resolve));
        stream.destroy();
      },
    };
  } catch (error) {
    stream.destroy();
    throw error;
  }
}

/** Returns whether it had to, as opposed to finding a shell. */
async function logIn(typed: Typed, { user, password }: NonNullable<Login["console"]>, signal: AbortSignal): Promise<boolean> {
  typed.type("");
  await sleep(promptMillis, undefined, { signal });
  // half a login of somebody else
  if (passwordPrompt.test(typed.text)) typed.type("");
  else if (!loginPrompt.test(typed.text)) return (await greet(typed, signal), false);
  await typed.until((text) => loginPrompt.test(text), { timeoutMillis: answerMillis, signal });
  typed.forget();
  typed.type(user);
  const asked = await typed.until((text) => passwordPrompt.exec(text) ?? shellPrompt.exec(text), { timeoutMillis: loginMillis, signal });
  if (passwordPrompt.test(asked[0])) {
    if (password === undefined)
      throw new CloudletError("UNAUTHORIZED", `the serial console asks for a password of ${user}`, {
        fix: "give it in `login.console.password`",
      });
    typed.forget();
    typed.type(password);
    const answer = await typed.until((text) => refusal.exec(text) ?? shellPrompt.exec(text), { timeoutMillis: loginMillis, signal });
    if (refusal.test(answer[0]))
      throw new CloudletError("UNAUTHORIZED", `the serial console does not let ${user} in`, { fix: "correct `login.console`" });
  }
  await greet(typed, signal);
  return true;
}

const loginPrompt = /login: *$/i;
const passwordPrompt = /password: *$/i;
const refusal = /incorrect|fail|denied/i;
const shellPrompt = /[#$>%]\s*(?:\u001b\[[0-9;?]*[A-Za-z]\s*)*$/;

/** A shell computes what anything else would only repeat. */
async function greet(typed: Typed, signal: AbortSignal): Promise<void> {
  const mark = newMark();
  typed.type(`echo "${mark}""-here"`);
  await typed.until((text) => text.includes(`${mark}-here`), { timeoutMillis: answerMillis, signal });
  typed.forget();
}

async function runScript(
  typed: Typed,
  script: string,
  { timeoutMillis, signal }: { timeoutMillis: number; signal: AbortSignal },
): ReturnType<GuestShell["run"]> {
  const mark = newMark();
  const next = { timeoutMillis: pieceMillis, signal };
  const taken = (): Promise<unknown> => typed.until((text) => text.includes(`${mark}-next`), next).then(() => typed.forget());
  // piece by piece, each once the one before has been read, as a serial port drops what comes too fast
  typed.type(
    `F=$(mktemp) && echo "${mark}""-next" && (umask 077; while IFS= read -r l && [ "$l" != . ]; do printf %s "$l" >>"$F.64"; echo "${mark}""-next"; done) && base64 -d <"$F.64" >"$F" && rm "$F.64" && echo "${mark}""-next"`,
  );
  await taken();
  const text = Buffer.from(script === "" ? ":" : script).toString("base64");
  for (let at = 0; at < text.length; at += pieceCharacters) {
    typed.type(text.slice(at, at + pieceCharacters));
    await taken();
  }
  typed.type(".");
  await taken();
  const { command, resultIn } = carried();
  typed.type(command.replaceAll("\n", "; "));
  return typed.until(resultIn, { timeoutMillis, signal });
}

/** What has come over a line that is typed to. */
class Typed {
  text = "";
  readonly #stream: Duplex;
  #ended: string | undefined;
  #wake: () => void = () => undefined;

  constructor(stream: Duplex) {
    this.#stream = stream;
    stream.on("data", (chunk: Buffer) => {
      this.text = (this.text + chunk.toString("latin1")).slice(-textLimit);
      this.#wake();
    });
    const ended = (why: string): void => {
      this.#ended ??= why;
      this.#wake();
    };
    stream.on("error", (error: Error) => ended(error.message));
    stream.on("close", () => ended("it was closed"));
  }

  type(line: string): void {
    if (this.#ended === undefined) this.#stream.write(`${line}\n`);
  }

  forget(): void {
    this.text = "";
  }

  /** Waits until something can be made of what has come. */
  async until<T>(
    find: (text: string) => T,
    { timeoutMillis, signal }: { timeoutMillis: number; signal: AbortSignal },
  ): Promise<NonNullable<T>> {
    const end = Date.now() + timeoutMillis;
    for (;;) {
      const found = find(this.text);
      if (found !== undefined && found !== null && found !== false) return found;
      signal.throwIfAborted();
      if (this.#ended !== undefined) throw new CloudletError("UNREACHABLE", `the serial console of the guest: ${this.#ended}`);
      if (Date.now() > end) {
        throw new CloudletError("TIMEOUT", `nothing understandable came over the serial console within ${String(timeoutMillis)} ms`, {
          fix: "have a shell or a login on the guest's first serial port (ttyS0)",
        });
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, pollMillis);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }
}

const pollMillis = 200;
const textLimit = 64 * 1024;
