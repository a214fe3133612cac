import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

type Answer = { return: unknown } | { error: { desc: string } };

/** A guest's agent on a socket that says what it is told to say. */
export class FakeGuestAgent {
  readonly asked: { command: string; args: Record<string, unknown> }[] = [];
  directory = "";
  readonly #answers: Record<string, () => Answer>;
  #end: () => void = () => undefined;

  /** By command; the rest is refused. */
  constructor(answers: Record<string, () => Answer>) {
    this.#answers = answers;
  }

  async open(): Promise<void> {
    this.directory = await mkdtemp(join(tmpdir(), "cloudlet-agent-"));
    const server = createServer((socket) => {
      createInterface(socket).on("line", (line) => {
        const { execute, arguments: args = {} } = JSON.parse(line.replace(/^[^{]*/, "")) as { execute: string; arguments?: object };
        const sync = execute === "guest-sync-delimited";
        if (sync) socket.write(Buffer.from([0xff]));
        else this.asked.push({ command: execute, args: { ...args } });
        const refused = { error: { desc: `${execute} is not there` } };
        const answer = sync ? { return: "id" in args ? args.id : undefined } : (this.#answers[execute]?.() ?? refused);
        socket.write(`${JSON.stringify(answer)}\n`);
      });
    });
    await new Promise<void>((resolve) => server.listen(join(this.directory, "guest-agent.sock"), resolve));
    this.#end = () => server.close();
  }

  async close(): Promise<void> {
    this.#end();
    await rm(this.directory, { recursive: true, force: true });
  }
}
