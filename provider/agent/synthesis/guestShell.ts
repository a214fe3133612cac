import { randomBytes } from "node:crypto";

/** A way to run shell scripts with root rights in a guest that is being furnished. */
export interface GuestShell {
  /** For messages. */
  name: string;
  /** Whether the guest has got its files and environment already. */
  seeded: boolean;
  run(script: string, options: { timeoutMillis: number; signal: AbortSignal }): Promise<ScriptResult>;
  /** Leaves the guest as it was found. */
  close(): Promise<void>;
}

export interface ScriptResult {
  exitCode: number;
  /** The end of what the script printed. */
  output: string;
}

/** What a way that carries nothing but text is given: a script, and how its end is recognised in whatever else is printed. */
export interface Carried {
  /** Shell text that runs the script in the file `$F`, and removes it. */
  command: string;
  /** undefined = not ended yet. */
  resultIn(text: string): ScriptResult | undefined;
}

export function carried(): Carried {
  const mark = newMark();
  return {
    // quoted, so that a terminal that repeats the command does not show the marks
    command: [
      'if [ "$(id -u)" = 0 ]; then sh "$F"; else sudo -n sh "$F"; fi </dev/null >"$F.out" 2>&1; code=$?',
      `echo "${mark}""-begin"; tail -c 4096 "$F.out" | base64; rm -f "$F" "$F.out"; echo "${mark}""-$code"`,
    ].join("\n"),
    resultIn(text) {
      const end = new RegExp(`${mark}-(\\d+)\\s`).exec(text);
      if (end === null) return undefined;
      const printed = text.slice(text.indexOf(`${mark}-begin`), end.index);
      // a kernel's messages come between the lines
      const lines = printed.split(/\r?\n/).filter((line) => /^[A-Za-z0-9+/]+=*$/.test(line));
      return { exitCode: Number(end[1]), output: Buffer.from(lines.join(""), "base64").toString("utf8") };
    },
  };
}

/** Text that nobody else prints. */
export function newMark(): string {
  return `cloudlet-${randomBytes(6).toString("hex")}`;
}
