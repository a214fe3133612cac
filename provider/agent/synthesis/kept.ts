import { mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { readJson, syncDirectory, writeDurably } from "../durable.ts";
import { digestSchema, guestName, imageStatusSchema, overlayStatusSchema, preseedSpecSchema, preseedStatusSchema } from "../protocol.ts";

const holder = { name: z.string(), owner: z.string() };

export const keptImageSchema = imageStatusSchema.omit({ owners: true }).extend(holder);

export const keptOverlaySchema = overlayStatusSchema.extend({
  ...holder,
  /** Digest of what it was built from, where it was built here. */
  makings: digestSchema.optional(),
});
export type KeptOverlay = z.infer<typeof keptOverlaySchema>;

export const keptPreseedSchema = preseedSpecSchema.omit({ id: true }).extend({
  ...holder,
  /** Absent until all of it has come. */
  cost: preseedStatusSchema.optional(),
});
export type KeptPreseed = z.infer<typeof keptPreseedSchema>;

/** What owners keep on this node, each under a name of the owner's own; what is kept is not collected. */
export class Kept<S extends z.ZodType<{ name: string; owner: string }>> {
  readonly #directory: string;
  readonly #schema: S;

  constructor(directory: string, schema: S) {
    this.#directory = directory;
    this.#schema = schema;
  }

  read(name: string, owner: string): Promise<z.infer<S> | undefined> {
    return readJson(this.#file(name, owner), this.#schema);
  }

  async write(kept: z.infer<S>): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    await writeDurably(this.#file(kept.name, kept.owner), `${JSON.stringify(kept, null, 2)}\n`, 0o600);
  }

  async remove(name: string, owner: string): Promise<void> {
    await rm(this.#file(name, owner), { force: true });
    await syncDirectory(this.#directory).catch(() => undefined);
  }

  async list(): Promise<z.infer<S>[]> {
    const found: z.infer<S>[] = [];
    for (const file of (await readdir(this.#directory).catch(() => [])).filter((name) => name.endsWith(".json")).sort()) {
      const kept = await readJson(join(this.#directory, file), this.#schema);
      if (kept !== undefined) found.push(kept);
    }
    return found;
  }

  #file(name: string, owner: string): string {
    return join(this.#directory, `${guestName(JSON.stringify([owner, name]))}.json`);
  }
}
