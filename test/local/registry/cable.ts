import { connect, createServer, type AddressInfo, type Socket } from "node:net";

export interface Cable {
  address: string;
  /** Bytes that went towards the server. */
  sent(): number;
  /** Bytes that came from it. */
  received(): number;
  close(): Promise<void>;
}

/** A connection to a server that breaks each time so many bytes went one way, the given number of times. */
export async function openCable(to: string, cut: { sent?: number; received?: number; times: number }): Promise<Cable> {
  const [host = "", port = ""] = to.split(":");
  const bytes = { sent: 0, received: 0 };
  let left = cut.times;
  const open = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(Number(port), host);
    const here = { sent: 0, received: 0 };
    const end = (): void => void [near, far].forEach((socket) => socket.destroy());
    const carry = (from: Socket, into: Socket, way: "sent" | "received"): void => {
      open.add(from);
      from.on("data", (chunk: Buffer) => {
        bytes[way] += chunk.length;
        here[way] += chunk.length;
        if (!into.write(chunk)) from.pause();
        if (left === 0 || here[way] < (cut[way] ?? Infinity)) return;
        left -= 1;
        // what went so far arrives first
        into.end(end);
      });
      into.on("drain", () => from.resume());
      from.on("error", end).on("close", () => {
        open.delete(from);
        end();
      });
    };
    carry(near, far, "sent");
    carry(far, near, "received");
  });
  const address = await listen(server);
  const close = async (): Promise<void> => {
    for (const socket of open) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  };
  return { address, sent: () => bytes.sent, received: () => bytes.received, close };
}

/** Takes connections and never says a word. */
export async function openSilence(): Promise<{ address: string; close(): Promise<void> }> {
  const open = new Set<Socket>();
  const server = createServer((socket) => void open.add(socket));
  const address = await listen(server);
  const close = async (): Promise<void> => {
    for (const socket of open) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  };
  return { address, close };
}

async function listen(server: ReturnType<typeof createServer>): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `127.0.0.1:${String((server.address() as AddressInfo).port)}`;
}
