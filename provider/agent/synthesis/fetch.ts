import { request, type IncomingMessage } from "node:http";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import type { TLSSocket } from "node:tls";
import { CloudletError, codeOf } from "../../core/errors.ts";
import type { Progress } from "../../hypervisors/types.ts";
import { dialPinned } from "../pinnedTls.ts";
import type { Offer, VerbResult } from "../protocol.ts";
import type { Services } from "../services.ts";
import { gentleBytes } from "./gentle.ts";
import { blobsOf } from "./references.ts";

// a link that is cut makes no sound
const silenceMillis = 20_000;
const pauses = [500, 1_000, 2_000, 4_000, 8_000];
const statusMillis = 2_000;

interface Wanted {
  digests: readonly string[];
  offers: readonly Offer[];
  /** In small pieces with rests between them, for as long as nobody else waits for the same blob. */
  gently?: boolean;
}

/** Takes blobs that the store lacks from the first offer that has them; what was received before a link broke is not sent again. */
export async function fetchBlobs(services: Pick<Services, "store">, args: Wanted, progress: Progress): Promise<VerbResult<"blobs.fetch">> {
  const total = { bytesTransferred: 0, bytesAvoided: 0, from: new Set<string>() };
  const known = new Set<string>();
  // a manifest says only once it is here what else belongs to it
  for (let next = [...args.digests]; next.length > 0;) {
    const { bytesTransferred, bytesAvoided, from } = await fetchThese(services, { ...args, digests: next }, progress);
    total.bytesTransferred += bytesTransferred;
    total.bytesAvoided += bytesAvoided;
    for (const node of from) total.from.add(node);
    for (const digest of next) known.add(digest);
    next = (await Promise.all(next.map((digest) => blobsOf(services, digest)))).flat().filter((digest) => !known.has(digest));
  }
  return { ...total, from: [...total.from] };
}

/** The same for exactly these. */
export async function fetchThese(
  { store }: Pick<Services, "store">,
  { digests, offers, gently }: Wanted,
  progress: Progress,
): Promise<VerbResult<"blobs.fetch">> {
  const result = { bytesTransferred: 0, bytesAvoided: 0, from: new Set<string>() };
  const missing: { digest: string; bytes: number }[] = [];
  for (const digest of new Set(digests)) {
    if (await store.has(digest)) result.bytesAvoided += await store.bytes(digest);
    else missing.push({ digest, bytes: await sizeOf(digest, offers, progress) });
  }
  await store.requireSpace(missing.reduce((sum, { bytes }) => sum + bytes, 0));
  for (const blob of missing) {
    if (gently) await store.settled(blob.digest);
    const taken = new Taking(blob, { offers, ...(gently && { isAwaited: () => store.isAwaited(blob.digest) }) }, progress);
    await store.put(blob.digest, () => Readable.from(taken.bytes()), blob.bytes);
    result.bytesTransferred += taken.received;
    // somebody else's transfer of the same blob served this one too
    result.bytesAvoided += taken.received === 0 ? blob.bytes : 0;
    for (const node of taken.from) result.from.add(node);
  }
  return { ...result, from: [...result.from] };
}

/** One blob on its way here, from one offer after the other. */
class Taking {
  readonly #blob: { digest: string; bytes: number };
  readonly #offers: readonly Offer[];
  readonly #isAwaited: (() => boolean) | undefined;
  readonly #progress: Progress;
  readonly from = new Set<string>();
  received = 0;
  #said = Date.now();

  /** With `isAwaited` gently, unless that says so. */
  constructor(
    blob: { digest: string; bytes: number },
    { offers, isAwaited }: { offers: readonly Offer[]; isAwaited?: () => boolean },
    progress: Progress,
  ) {
    this.#blob = blob;
    this.#offers = offers;
    this.#isAwaited = isAwaited;
    this.#progress = progress;
  }

  async *bytes(): AsyncGenerator<Buffer> {
    for (let attempt = 0; this.received < this.#blob.bytes;) {
      const before = this.received;
      const reasons: string[] = [];
      for (const offer of this.#offers) {
        try {
          yield* this.#from(offer);
          break;
        } catch (error) {
          if (this.#progress.signal.aborted) throw aborted(error);
          reasons.push(error instanceof Error ? error.message : String(error));
        }
      }
      if (this.received > before) {
        attempt = 0;
        continue;
      }
      const pause = pauses[attempt++];
      if (pause === undefined) throw noneHas(this.#blob.digest, reasons);
      await sleep(pause, undefined, { signal: this.#progress.signal });
    }
  }

  async *#from(offer: Offer): AsyncGenerator<Buffer> {
    const { digest, bytes } = this.#blob;
    for await (const chunk of this.#isAwaited ? this.#gently(offer, this.#isAwaited) : this.#atOnce(offer)) {
      this.received += chunk.length;
      if (this.received > bytes)
        throw new CloudletError(
          "INTEGRITY",
          `${offer.node} sends more for ${digest.slice(0, 12)} than the ${String(bytes)} bytes it announced`,
        );
      this.from.add(offer.node);
      this.#say(offer.node);
      yield chunk;
    }
  }

  async *#atOnce(offer: Offer): AsyncGenerator<Buffer> {
    const response = await ask(offer, { method: "GET", digest: this.#blob.digest, from: this.received, signal: this.#progress.signal });
    const expected = this.received === 0 ? [200, 206] : [206];
    if (!expected.includes(response.statusCode ?? 0)) throw refusal(offer, response);
    yield* response as AsyncIterable<Buffer>;
  }

  #gently(offer: Offer, isAwaited: () => boolean): AsyncGenerator<Buffer> {
    return gentleBytes({ offer, ...this.#blob, from: this.received, isAwaited }, this.#progress.signal);
  }

  #say(node: string): void {
    if (Date.now() - this.#said < statusMillis) return;
    this.#said = Date.now();
    this.#progress.status(`fetching from ${node}: ${toMb(this.received)} of ${toMb(this.#blob.bytes)} MB`);
  }
}

/** As the first offer that has it says. */
async function sizeOf(digest: string, offers: readonly Offer[], { signal }: Progress): Promise<number> {
  const reasons: string[] = [];
  for (const pause of [0, ...pauses.slice(0, 2)]) {
    await sleep(pause, undefined, { signal });
    let silent = false;
    for (const offer of offers) {
      try {
        const response = await ask(offer, { method: "HEAD", digest, from: 0, signal });
        response.resume();
        const bytes = Number(response.headers["content-length"]);
        if (response.statusCode === 200 && Number.isSafeInteger(bytes)) return bytes;
        reasons.push(`${offer.node} answered ${String(response.statusCode)}`);
      } catch (error) {
        if (signal.aborted) throw aborted(error);
        silent ||= codeOf(error) === "UNREACHABLE";
        reasons.push(error instanceof Error ? error.message : String(error));
      }
    }
    if (!silent) break;
  }
  throw noneHas(digest, reasons);
}

function ask(
  offer: Offer,
  { method, digest, from, signal }: { method: "GET" | "HEAD"; digest: string; from: number; signal: AbortSignal },
): Promise<IncomingMessage> {
  return dial(offer).then(
    (socket) =>
      new Promise((resolve, reject) => {
        const outgoing = request({
          createConnection: () => socket,
          method,
          path: `/v1/blobs/${digest}`,
          headers: {
            authorization: `Bearer ${offer.token}`,
            host: "node",
            connection: "close",
            ...(from > 0 && { range: `bytes=${String(from)}-` }),
          },
          timeout: silenceMillis,
          signal,
        });
        outgoing.on("timeout", () => outgoing.destroy(lost(offer, "fell silent")));
        outgoing.on("error", (error) => reject(error instanceof CloudletError ? error : lost(offer, error.message)));
        outgoing.on("response", resolve);
        outgoing.end();
      }),
  );
}

/** A relay ends with its operator, so it comes last. */
async function dial(offer: Offer): Promise<TLSSocket> {
  const reasons: string[] = [];
  const direct = offer.addresses.map((host) => ({ host, port: offer.port }));
  const relayed = offer.relayPort === undefined ? [] : [{ host: "127.0.0.1", port: offer.relayPort }];
  for (const { host, port } of [...direct, ...relayed]) {
    try {
      return await dialPinned(offer, host, port);
    } catch (error) {
      reasons.push(`${host}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  throw lost(offer, `no address answers (${reasons.join("; ")})`);
}

function refusal(offer: Offer, response: IncomingMessage): CloudletError {
  response.destroy();
  return new CloudletError("FAILED", `${offer.node} answered ${String(response.statusCode)}`);
}

function noneHas(digest: string, reasons: readonly string[]): CloudletError {
  const told = [...new Set(reasons)].join("; ");
  return new CloudletError(
    "UNREACHABLE",
    `data ${digest.slice(0, 12)} is not on this node, and no other hands it out: ${told || "none was named"}`,
    {
      fix: "check that a node that has it is up and can be reached, then run `pulumi up` again",
    },
  );
}

function lost(offer: Offer, reason: string): CloudletError {
  return new CloudletError("UNREACHABLE", `the connection to the agent of ${offer.node} was lost: ${reason}`);
}

function aborted(cause: unknown): CloudletError {
  return new CloudletError("ABORTED", "the transfer was cancelled", { cause });
}

const toMb = (bytes: number): string => (bytes / 1e6).toFixed(1);
