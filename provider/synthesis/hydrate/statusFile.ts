import { rename, writeFile } from "node:fs/promises";
import type { HydratorStatus } from "./config.ts";

const shortestMillis = 200;

/** Says how far the hydrator is, to whoever reads the file: always one whole status, soon after it changed. Not meant to survive a loss of power. */
export class StatusFile {
  readonly #file: string;
  readonly #current: () => HydratorStatus;
  readonly #timer: NodeJS.Timeout;
  #written = "";
  #writing = Promise.resolve();

  constructor(file: string, current: () => HydratorStatus) {
    this.#file = file;
    this.#current = current;
    this.#timer = setInterval(() => void this.write(), shortestMillis);
  }

  write(): Promise<void> {
    this.#writing = this.#writing.then(() => this.#write()).catch(() => undefined);
    return this.#writing;
  }

  close(): Promise<void> {
    clearInterval(this.#timer);
    return this.write();
  }

  async #write(): Promise<void> {
    const text = JSON.stringify(this.#current());
    if (text === this.#written) return;
    await writeFile(`${this.#file}.new`, text, { mode: 0o600 });
    await rename(`${this.#file}.new`, this.#file);
    this.#written = text;
  }
}
