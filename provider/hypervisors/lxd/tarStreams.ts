import { once } from "node:events";
import type { Readable } from "node:stream";
import { extract, type Extract, type Header, type Pack } from "tar-stream";

export type TarEntry = Extract extends AsyncIterable<infer Entry> ? Entry : never;
export type TarHeader = Partial<Header> & Pick<Header, "name">;

/** The entries of a tar, one after the other, each to be read or resumed; an error of the source ends the loop. */
export async function* readTar(source: Readable): AsyncGenerator<TarEntry> {
  const entries = extract();
  source.on("error", (error) => entries.destroy(error));
  source.on("data", (chunk: Buffer) => {
    if (!entries.write(chunk)) source.pause();
  });
  entries.on("drain", () => source.resume());
  source.once("end", () => entries.end(null));
  try {
    yield* entries;
  } finally {
    source.destroy();
  }
}

/** Adds one entry, at the pace of the tar's reader; without content it is a directory or a link. */
export async function addEntry(target: Pack, header: TarHeader, content?: AsyncIterable<unknown>): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const gone = () => reject(new Error("the tar was closed before its end"));
    target.once("close", gone);
    const sink = target.entry(header, (error) => {
      target.off("close", gone);
      if (error) reject(error);
      else resolve();
    });
    const fill = async () => {
      if (content === undefined) return;
      for await (const chunk of content) if (Buffer.isBuffer(chunk) && !sink.write(chunk)) await once(sink, "drain");
      sink.end(null);
    };
    fill().catch((error: unknown) => {
      reject(asError(error));
      target.destroy(asError(error));
    });
  });
}

export function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
