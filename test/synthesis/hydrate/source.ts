import type { IncomingMessage } from "node:http";
import { createServer, type Server as HttpsServer } from "node:https";
import { connect, createServer as createTcp, type AddressInfo, type Server, type Socket } from "node:net";
import { Duplex } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { serveRanges } from "../../../provider/agent/ranges.ts";
import type { Offer } from "../../../provider/agent/protocol.ts";
import { newCertificate } from "../../agent/certificate.ts";

const token = "a-token-of-these-tests";
const identity = newCertificate();

/** A node that offers one blob, and the link to it, which may be slow, cut or silent. */
export class Source {
  readonly offer: Offer;
  /** Ranges in the order in which they were asked for. */
  readonly asked: { start: number; end: number }[];
  /** How many of the next requests are refused as if they were no HTTP. */
  bad = 0;
  readonly #server: HttpsServer;
  readonly #link: Link;

  private constructor(server: HttpsServer, link: Link, about: { node: string; asked: { start: number; end: number }[] }) {
    this.#server = server;
    this.#link = link;
    this.asked = about.asked;
    this.offer = { node: about.node, addresses: ["127.0.0.1"], port: link.port, certificate: identity.digest, token };
  }

  static async offering(blob: { digest: string; path: string }, node = "gw1"): Promise<Source> {
    const asked: { start: number; end: number }[] = [];
    const server = createServer({ key: identity.key, cert: identity.cert });
    server.on("upgrade", (request: IncomingMessage, socket: Duplex, head: Buffer) => {
      const refuse = (status: number) => void socket.end(`HTTP/1.1 ${String(status)} No\r\n\r\n`);
      socket.on("error", () => undefined);
      if (request.headers.authorization !== `Bearer ${token}`) return refuse(401);
      if (request.url !== `/v1/blobs/${blob.digest}`) return refuse(404);
      if (source.bad > 0) {
        source.bad--;
        return refuse(400);
      }
      void serveRanges(noting(socket, head, asked), Buffer.alloc(0), blob.path).catch(() => undefined);
    });
    await listening(server);
    const link = await Link.to(portOf(server));
    const source = new Source(server, link, { node, asked });
    return source;
  }

  get link(): Link {
    return this.#link;
  }

  close(): void {
    this.#link.close();
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

/** A connection that writes down what is asked over it. */
function noting(socket: Duplex, head: Buffer, asked: { start: number; end: number }[]): Duplex {
  let rest: Buffer = Buffer.alloc(0);
  const note = (data: Buffer): Buffer => {
    for (rest = Buffer.concat([rest, data]); rest.length >= 12; rest = rest.subarray(12)) {
      const start = Number(rest.readBigUInt64BE(0));
      asked.push({ start, end: start + rest.readUInt32BE(8) - 1 });
    }
    return data;
  };
  const noted = new Duplex({
    read: () => void socket.resume(),
    write: (data: Buffer, _encoding, done) => void (socket.write(data) ? done() : socket.once("drain", () => done())),
    destroy: (error, done) => {
      socket.destroy();
      done(error);
    },
  });
  if (head.length > 0) noted.push(note(head));
  socket.on("data", (data: Buffer) => noted.push(note(data)));
  socket.on("close", () => noted.destroy());
  return noted;
}

/** A TCP connection with a rate, such as a shaped link has. */
export class Link {
  bytesPerSecond = Infinity;
  silent = false;
  /** Connections are refused meanwhile. */
  down = false;
  /** Bytes that went to whoever dialled. */
  carried = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(server: Server) {
    this.#server = server;
  }

  static async to(port: number): Promise<Link> {
    const server = createTcp({ pauseOnConnect: true });
    const link = new Link(server);
    server.on("connection", (near) => {
      if (link.down) return void near.resetAndDestroy();
      const far = connect(port, "127.0.0.1");
      for (const socket of [near, far]) {
        link.#sockets.add(socket);
        socket.on("error", () => undefined);
        socket.on("close", () => {
          near.destroy();
          far.destroy();
          link.#sockets.delete(socket);
        });
      }
      void link.#carry(near, far, false);
      void link.#carry(far, near, true);
    });
    await listening(server);
    return link;
  }

  get port(): number {
    return portOf(this.#server);
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  close(): void {
    this.#server.close();
    this.cut();
  }

  async #carry(from: Socket, to: Socket, counted: boolean): Promise<void> {
    let free = Date.now();
    from.pause();
    try {
      for await (const data of from) {
        for (let rest = data as Buffer; rest.length > 0;) {
          while (this.silent) await delay(20);
          // in pieces of a millisecond or so, as a shaper would
          const piece = rest.subarray(0, Math.max(1500, Math.min(rest.length, Math.round(this.bytesPerSecond / 500))));
          rest = rest.subarray(piece.length);
          free = Math.max(free, Date.now()) + (counted ? (piece.length / this.bytesPerSecond) * 1000 : 0);
          if (free > Date.now() + 2) await delay(free - Date.now());
          if (to.destroyed) return;
          if (counted) this.carried += piece.length;
          to.write(piece);
        }
      }
    } catch {
      // it was cut
    }
    to.end();
  }
}

async function listening(server: Server | HttpsServer): Promise<void> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
}

function portOf(server: Server | HttpsServer): number {
  return (server.address() as AddressInfo).port;
}
