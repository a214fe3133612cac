import { createConnection } from "node:net";
import { CloudletError } from "../../core/errors.ts";

/** A unix socket that carries one JSON value per line, of any length. */
export interface JsonLines {
  send(value: unknown): void;
  /** Bytes before the next line, for protocols that resynchronise. */
  sendRaw(bytes: Buffer): void;
  /** Resolves once, with the reason, when nothing more will come. */
  readonly ended: Promise<CloudletError>;
  close(): void;
}

export interface JsonLinesOptions {
  /** For messages: `QMP of guest demo-1a2b3c4d`. */
  label: string;
  onValue(value: unknown): void;
  /** Everything up to and including this byte is thrown away when it comes. */
  sentinel?: number;
}

export async function connectJsonLines(socketPath: string, options: JsonLinesOptions): Promise<JsonLines> {
  const socket = createConnection(socketPath);
  await new Promise<void>((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("error", (cause) =>
      reject(new CloudletError("UNREACHABLE", `${options.label} does not answer at ${socketPath}: ${cause.message}`, { cause })),
    );
  });
  const ended = new Promise<CloudletError>((resolve) => {
    const end = (why: string, cause?: unknown) => {
      resolve(new CloudletError("UNREACHABLE", `${options.label}: ${why}`, { cause }));
      socket.destroy();
    };
    socket.on("error", (cause) => end(`the connection broke: ${cause.message}`, cause));
    socket.on("close", () => end("the connection ended"));
    const split = lineSplitter(options.sentinel, (line) => {
      const value = parseLine(line);
      if (value === undefined) {
        resolve(new CloudletError("FAILED", `${options.label} sent a malformed line: ${line.slice(0, 200)}`));
        socket.destroy();
      } else options.onValue(value.parsed);
    });
    socket.on("data", split);
  });
  return {
    send: (value) => void socket.write(`${JSON.stringify(value)}\n`),
    sendRaw: (bytes) => void socket.write(bytes),
    ended,
    close: () => socket.destroy(),
  };
}

/** Collects chunks instead of joining them at each arrival, so that a huge line costs linear time. */
export function lineSplitter(sentinel: number | undefined, onLine: (line: string) => void): (chunk: Buffer) => void {
  let pending: Buffer[] = [];
  return (chunk) => {
    let rest = chunk;
    const mark = sentinel === undefined ? -1 : rest.lastIndexOf(sentinel);
    if (mark >= 0) {
      pending = [];
      rest = rest.subarray(mark + 1);
    }
    for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
      const line = Buffer.concat([...pending, rest.subarray(0, end)])
        .toString("utf8")
        .trim();
      pending = [];
      rest = rest.subarray(end + 1);
      if (line !== "") onLine(line);
    }
    if (rest.length > 0) pending.push(rest);
  };
}

function parseLine(line: string): { parsed: unknown } | undefined {
  try {
    return { parsed: JSON.parse(line) as unknown };
  } catch {
    return undefined;
  }
}
