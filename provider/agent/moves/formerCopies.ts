import { mkdir, readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { exists } from "../durable.ts";
import { guestName } from "../protocol.ts";

const ahead = ".ahead";

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

  async has(id: string): Promise<boolean> {
    return exists(await this.pathOf(id));
  }

  /** Where one is made of a guest that runs here, with `work` on it; nothing stays of it. */
  async making<T>(id: string, work: (path: string) => Promise<T>): Promise<T> {
    const path = `${await this.pathOf(id)}${ahead}`;
    try {
      return await work(path);
    } finally {
      await this.forgetMade(id);
    }
  }

  /** Whether an agent ended while it made one: then the guest is still being read. */
  async wasMaking(id: string): Promise<boolean> {
    return (await this.#namesOf(id)).length > 0;
  }

  async forgetMade(id: string): Promise<void> {
    for (const name of await this.#namesOf(id)) await rm(join(this.#directory, name), { force: true });
  }

  async remove(id: string): Promise<void> {
    await rm(join(this.#directory, guestName(id)), { force: true });
  }

  async #namesOf(id: string): Promise<string[]> {
    return (await readdir(this.#directory).catch(() => [])).filter((name) => name.startsWith(`${guestName(id)}${ahead}`));
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
