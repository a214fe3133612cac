import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import { readJson, writeDurably } from "../durable.ts";
import { digestSchema } from "../protocol.ts";
import { newToken, tokenMatches } from "../tokens.ts";

const offersSchema = z.array(
  z.object({
    token: digestSchema.describe("SHA-256 of the token."),
    digests: z.array(digestSchema),
    until: z.number().describe("Milliseconds since 1970."),
  }),
);
type Given = z.infer<typeof offersSchema>[number];

/** Blobs that other nodes may take from here, each for whoever has its token, until it expires. They outlive a restart of the agent. */
export class Offers {
  readonly #file: string;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(file: string) {
    this.#file = file;
  }

  /** Returns the token, which is nowhere on disk. */
  async give(digests: readonly string[], seconds: number): Promise<string> {
    const { token, digest } = newToken();
    await this.#inTurn(async () => {
      const given: Given = { token: digest, digests: [...digests], until: Date.now() + seconds * 1000 };
      await this.#write([...(await this.active()), given]);
    });
    return token;
  }

  /** UNAUTHORIZED where this token was not given for that blob. */
  async check(token: string, digest: string): Promise<void> {
    if ((await this.active()).some((offer) => tokenMatches(token, offer.token) && offer.digests.includes(digest))) return;
    throw new CloudletError("UNAUTHORIZED", `this token is not, or no longer, for data ${digest.slice(0, 12)}`, {
      fix: "run `pulumi up` again for a new one",
    });
  }

  /** Those that have not expired. */
  async active(): Promise<Given[]> {
    const now = Date.now();
    return ((await readJson(this.#file, offersSchema)) ?? []).filter(({ until }) => until > now);
  }

  async #write(offers: Given[]): Promise<void> {
    await mkdir(dirname(this.#file), { recursive: true, mode: 0o700 });
    await writeDurably(this.#file, JSON.stringify(offers), 0o600);
  }

  async #inTurn(work: () => Promise<void>): Promise<void> {
    const mine = this.#turn.then(work);
    this.#turn = mine.catch(() => undefined);
    await mine;
  }
}
