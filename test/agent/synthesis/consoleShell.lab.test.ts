import { spawn, type ChildProcess } from "node:child_process";
import { createHash } from "node:crypto";
import { Duplex } from "node:stream";
import { afterEach, describe, expect, it } from "vitest";
import { openConsoleShell } from "../../../provider/agent/synthesis/consoleShell.ts";

const signal = AbortSignal.timeout(60_000);
const options = { timeoutMillis: 20_000, signal };
const children: ChildProcess[] = [];
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
});

/** A program on a terminal of its own, as a serial port has it. */
function terminal(command: string): Duplex {
  const child = spawn("script", ["-qfc", command, "/dev/null"], { stdio: ["pipe", "pipe", "ignore"] });
  children.push(child);
  return Duplex.from({ readable: child.stdout, writable: child.stdin });
}

/** As getty and login do it. */
const login = `sh -c 'while :; do printf "Welcome\\nguest login: "; read -r u; stty -echo; printf "Password: "; read -r p; stty echo; echo; [ "$u:$p" = "root:let me in" ] && exec env PS1="# " sh -i; sleep 1; echo "Login incorrect"; done'`;

describe("a shell over a serial console", () => {
  it.each(["sh -i", "bash --norc -i"])(
    "is found where %s is there already, and carries scripts of any length and bytes",
    async (program) => {
      const shell = await openConsoleShell(terminal(program), { user: "root" }, signal);
      const text = "ä'\"$`\\ ".repeat(5_000);
      const script = `printf %s '${text.replaceAll("'", "'\\''")}' | md5sum; cat; exit 7`;
      const result = await shell.run(script, options);
      expect(result).toEqual({ exitCode: 7, output: `${createHash("md5").update(text).digest("hex")}  -\n` });
      expect(await shell.run("echo again >&2; yes | head -c 10000000", options)).toMatchObject({
        exitCode: 0,
        output: expect.stringMatching(/^y?(\ny)+\n$/),
      });
      await shell.close();
    },
  );

  it("is logged in to by name and password", async () => {
    const shell = await openConsoleShell(terminal(login), { user: "root", password: "let me in" }, signal);
    expect(await shell.run("echo hello", options)).toEqual({ exitCode: 0, output: "hello\n" });
    await shell.close();
  });

  it("is refused with a wrong password, and without one that is asked for", async () => {
    await expect(openConsoleShell(terminal(login), { user: "root", password: "wrong" }, signal)).rejects.toMatchObject({
      code: "UNAUTHORIZED",
      fix: expect.stringContaining("login.console"),
    });
    await expect(openConsoleShell(terminal(login), { user: "root" }, signal)).rejects.toMatchObject({ code: "UNAUTHORIZED" });
  });

  it("is not there yet where nobody answers, or the line is cut", async () => {
    await expect(openConsoleShell(terminal("sleep 100"), { user: "root" }, signal)).rejects.toMatchObject({ code: "TIMEOUT" });
    await expect(openConsoleShell(terminal("true"), { user: "root" }, signal)).rejects.toMatchObject({ code: "UNREACHABLE" });
  });
});
