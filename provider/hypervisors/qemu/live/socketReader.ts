import type { Socket } from "node:net";

/** Reads a socket by hand, so that nothing is read before it is wanted. */
export class SocketReader {
  readonly #socket: Socket;
  #ended = false;
  #wake: () => void = () => undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("readable", () => this.#wake());
    for (const event of ["end", "close", "error"]) {
      socket.on(event, () => {
        this.#ended = true;
        this.#wake();
      });
    }
  }

  /** Resolves when something may have come, or nothing will any more, or `wake` was called; takes nothing. */
  async ready(): Promise<void> {
    if (this.#socket.readableLength > 0 || this.#ended) return;
    await this.#woken();
  }

  wake(): void {
    this.#wake();
  }

  /** What has come; undefined = nothing at the moment. */
  now(): Buffer | undefined {
    const bytes: unknown = this.#socket.read();
    return Buffer.isBuffer(bytes) ? bytes : undefined;
  }

  get isOver(): boolean {
    return this.#ended && this.#socket.readableLength === 0;
  }

  #woken(): Promise<void> {
    return new Promise((resolve) => (this.#wake = resolve));
  }
}
