import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";

export interface FakeOperation {
  /** How many wait calls see it still running. */
  runsFor: number;
  /** LXD's words when it fails. */
  err?: string;
  progress?: string;
  cancelled?: boolean;
}

/** A fake of LXD's frame and operations, nothing of its behaviour: requests to /begin start the operation that was set. */
export class FakeLxd {
  readonly socket: string;
  readonly seen: string[] = [];
  operation: FakeOperation = { runsFor: 0 };
  /** Called at each wait that finds the operation running. */
  onWait: () => void = () => undefined;
  readonly #directory = mkdtempSync(join(tmpdir(), "fake-lxd-"));
  readonly #server = createServer((request, response) => void this.#answer(request, response));

  constructor() {
    this.socket = join(this.#directory, "unix.socket");
  }

  async listen(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(this.socket, resolve));
    return this;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
    rmSync(this.#directory, { recursive: true, force: true });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    await text(request);
    const path = request.url ?? "";
    this.seen.push(`${request.method ?? ""} ${path}`);
    if (path === "/begin") return send(response, 202, { type: "async", operation: "/1.0/operations/one", metadata: this.#state() });
    if (path === "/silent") return;
    if (path === "/broken") return void response.writeHead(200).end("<html>");
    if (path === "/missing") return send(response, 404, { type: "error", error: "Instance not found", error_code: 404 });
    if (request.method === "DELETE" && path === "/1.0/operations/one") {
      this.operation.cancelled = true;
      return send(response, 200, { type: "sync", metadata: {} });
    }
    if (path.startsWith("/1.0/operations/one/wait")) {
      const state = this.#state();
      if (state.status_code === 103) this.onWait();
      this.operation.runsFor--;
      return send(response, 200, { type: "sync", metadata: state });
    }
    return send(response, 200, { type: "sync", metadata: {} });
  }

  #state() {
    const { runsFor, err, progress, cancelled } = this.operation;
    const running = runsFor > 0 && cancelled !== true;
    const ended = cancelled === true ? [401, "Cancelled"] : err === undefined ? [200, "Success"] : [400, "Failure"];
    const [status_code, status] = running ? [103, "Running"] : ended;
    return {
      id: "one",
      status,
      status_code,
      err: running ? "" : (err ?? ""),
      metadata: progress === undefined ? null : { unpack_progress: progress },
    };
  }
}

function send(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}
