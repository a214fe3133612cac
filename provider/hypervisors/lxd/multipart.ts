import { CloudletError } from "../../core/errors.ts";

const endOfHeaders = "\r\n\r\n";
// headers are short: a part that has none within this is no part
const mostHeaders = 16 * 1024;

/** The contents of all parts of a multipart body, one after the other, as they come. */
export async function* contentsOf(body: AsyncIterable<Buffer>, boundary: string): AsyncGenerator<Buffer> {
  const delimiter = Buffer.from(`\r\n--${boundary}`);
  // the first delimiter need not stand after an empty line
  let pending: Buffer = Buffer.from("\r\n");
  let inside = false;
  let ended = false;
  for await (const chunk of body) {
    if (ended) continue;
    pending = Buffer.concat([pending, chunk]);
    for (;;) {
      if (inside) {
        const at = pending.indexOf(delimiter);
        // the last bytes may be the begin of a delimiter
        const known = at < 0 ? Math.max(0, pending.length - delimiter.length) : at;
        if (known > 0) yield pending.subarray(0, known);
        pending = pending.subarray(known);
        if (at < 0) break;
        inside = false;
      }
      ended = pending.length >= delimiter.length + 2 && pending.subarray(delimiter.length, delimiter.length + 2).toString() === "--";
      const at = pending.indexOf(endOfHeaders, delimiter.length);
      if (at < 0 && !ended && pending.length > mostHeaders) throw cutOff();
      if (ended || at < 0) break;
      pending = pending.subarray(at + endOfHeaders.length);
      inside = true;
    }
  }
  if (!ended) throw cutOff();
}

function cutOff(): CloudletError {
  return new CloudletError("INTEGRITY", "an image that LXD exports in two parts ends too early");
}
