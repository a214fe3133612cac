import { mkdir, readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { guestName } from "../protocol.ts";

/** What a cloudlet was when it left this node, or what had come of it when the link broke: should it come again, only the rest must travel. */
export class FormerCopies {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** Where it is, or would be. */
  async pathOf(id: string): Promise<string> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    return join(this.#directory, guestName(id));
  }

  async remove(id: string): Promise<void> {
    await rm(join(this.#directory, guestName(id)), { force: true });
  }

  /** Those that nobody has asked for in so long, and with 0 all of them. */
  async expire(ageMillis: number): Promise<void> {
    for (const name of await readdir(this.#directory).catch(() => [])) {
      const path = join(this.#directory, name);
      const found = await stat(path).catch(() => undefined);
      if (found !== undefined && found.mtimeMs <= Date.now() - ageMillis) await rm(path, { force: true });
    }
  }
}
