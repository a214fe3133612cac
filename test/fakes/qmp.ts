import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface FakeQmp {
  socketPath: string;
  /** Commands that arrived, oldest first. */
  received: { execute: string; id: string; arguments?: unknown }[];
  close(): Promise<void>;
}

export interface FakeQmpOptions {
  /** Sent on connect; undefined = silence. */
  greeting?: string | undefined;
  /** Writes whatever should answer a command; capabilities are answered already. */
  answer(command: { execute: string; id: string; arguments?: unknown }, socket: Socket): void;
}

export const qmpGreeting = '{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n';

/** A fake, not QEMU: a unix socket that speaks as much QMP as a test tells it to. */
export async function fakeQmp(options: FakeQmpOptions): Promise<FakeQmp> {
  const directory = await mkdtemp(join(tmpdir(), "fake-qmp-"));
  const socketPath = join(directory, "qmp.sock");
  const received: FakeQmp["received"] = [];
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
    if (options.greeting !== undefined) socket.write(options.greeting);
    let text = "";
    socket.on("data", (chunk) => {
      text += chunk.toString("utf8");
      for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n")) {
        const command: FakeQmp["received"][number] = JSON.parse(text.slice(0, end));
        text = text.slice(end + 1);
        received.push(command);
        if (command.execute === "qmp_capabilities") socket.write(`{"return": {}, "id": "${command.id}"}\r\n`);
        else options.answer(command, socket);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  return {
    socketPath,
    received,
    async close() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
      await rm(directory, { recursive: true, force: true });
    },
  };
}
