import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { json } from "node:stream/consumers";
import { z } from "zod";

const requestSchema = z.union([z.object({ plaintext: z.string() }), z.object({ ciphertext: z.string() })]);
const prefix = "vault:v1:";

let started: Promise<string> | undefined;

/** The secrets provider of stacks whose key the fake service keeps; else Pulumi derives it from a passphrase in each run, for a second. */
export const keyService = "hashivault://tests";

/** The environment in which Pulumi finds a fake of Vault's transit engine. It keeps no key: that of another process opens what this one sealed. */
export async function keyServiceEnvironment(): Promise<Record<string, string>> {
  return { VAULT_SERVER_URL: await (started ??= start()), VAULT_SERVER_TOKEN: "test" };
}

async function start(): Promise<string> {
  const server = createServer((request, response) => {
    void json(request).then((body) => {
      const asked = requestSchema.parse(body);
      const data = "plaintext" in asked ? { ciphertext: prefix + asked.plaintext } : { plaintext: asked.ciphertext.slice(prefix.length) };
      response.setHeader("content-type", "application/json").end(JSON.stringify({ data }));
    });
  });
  server.listen(0, "127.0.0.1").unref();
  await once(server, "listening");
  return `http://127.0.0.1:${String((server.address() as AddressInfo).port)}`;
}
