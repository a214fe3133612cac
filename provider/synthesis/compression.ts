import { compressFiles } from "./zstd.ts";

/** `quick`: for an overlay that is packed once more. `small`: for one that travels. */
export type Effort = "quick" | "small";

// decision 0012 has the figures behind these
const quickLevel = "-1";
const smallLevel = "-19";
const laterLevel = "-9";
const smallBytes = 32 * 1024 * 1024;
const worthwhile = 0.9;

/** Chooses how well each chunk is compressed: most effort for what comes first, none for what does not shrink. */
export class Compression {
  readonly #effort: Effort;
  readonly #signal: AbortSignal;
  #left = smallBytes;
  #decided: Promise<unknown> = Promise.resolve();

  constructor(effort: Effort, signal: AbortSignal) {
    this.#effort = effort;
    this.#signal = signal;
  }

  /** The files' frames. Batches may be compressed side by side; what each costs is decided in the order of the calls. */
  async compress(files: { file: string; bytes: number }[]): Promise<Buffer[]> {
    const quick = compressFiles(
      files.map(({ file }) => file),
      quickLevel,
      this.#signal,
    );
    if (this.#effort === "quick") return quick;
    const levels = this.#decided.then(async () => this.#levelsFor(files, await quick));
    this.#decided = levels.catch(() => undefined);
    const frames = await quick;
    for (const [level, positions] of await levels) {
      const better = await compressFiles(
        positions.map((position) => files[position]?.file ?? ""),
        level,
        this.#signal,
      );
      for (const [number, position] of positions.entries()) {
        const [frame, before] = [better[number], frames[position]];
        // a higher level is not always the better one
        if (frame !== undefined && frame.length < (before?.length ?? Infinity)) frames[position] = frame;
      }
    }
    return frames;
  }

  /** Which of the files deserve which level. */
  #levelsFor(files: { bytes: number }[], quick: Buffer[]): Map<string, number[]> {
    const levels = new Map<string, number[]>();
    for (const [position, { bytes }] of files.entries()) {
      if ((quick[position]?.length ?? 0) > bytes * worthwhile) continue;
      const level = this.#left > 0 ? smallLevel : laterLevel;
      this.#left -= bytes;
      levels.set(level, [...(levels.get(level) ?? []), position]);
    }
    return levels;
  }
}
