import { rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { NbdConnection, type NbdExport } from "./nbdConnection.ts";

/** Read-only network block devices at a unix socket, for any number of clients. */
export class NbdServer {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(exports: NbdExport[]) {
    this.#server = createServer((socket) => {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
      void new NbdConnection(socket, exports).serve();
    });
  }

  /** A socket that a killed process left behind is replaced. */
  static async listen(path: string, exports: NbdExport[]): Promise<NbdServer> {
    const nbd = new NbdServer(exports);
    await rm(path, { force: true });
    await new Promise<void>((resolve, reject) => {
      nbd.#server.once("error", reject);
      nbd.#server.listen(path, resolve);
    });
    return nbd;
  }

  get clients(): number {
    return this.#sockets.size;
  }

  /** Ends every connection; reads that wait are given up. */
  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}
