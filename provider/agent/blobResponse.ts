import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import type { IncomingMessage, ServerResponse } from "node:http";
import { pipeline } from "node:stream/promises";
import { CloudletError } from "../core/errors.ts";

/** Answers GET and HEAD for a file, whole or one range of it. */
export async function sendFile(request: IncomingMessage, response: ServerResponse, file: string): Promise<void> {
  const { size } = await stat(file);
  const range = rangeOf(request.headers.range, size);
  response.writeHead(range === undefined ? 200 : 206, {
    "content-type": "application/octet-stream",
    "accept-ranges": "bytes",
    "content-length": String(range === undefined ? size : range.end - range.start + 1),
    ...(range && { "content-range": `bytes ${String(range.start)}-${String(range.end)}/${String(size)}` }),
  });
  if (request.method === "HEAD" || size === 0) return void response.end();
  await pipeline(createReadStream(file, { highWaterMark: 256 * 1024, ...range }), response);
}

/** `bytes=A-B` or `bytes=A-`; the end is inclusive. */
export function rangeOf(header: string | undefined, size: number): { start: number; end: number } | undefined {
  if (header === undefined) return undefined;
  const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(header) ?? [];
  const start = Number(from);
  const end = to === "" ? size - 1 : Math.min(Number(to), size - 1);
  if (from === undefined || start > end)
    throw new CloudletError("INVALID", `the range "${header}" is not one of ${String(size)} bytes`, {
      fix: "ask for bytes that are there",
    });
  return { start, end };
}
