import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { dockerCredentials } from "../../../provider/local/registry/credentials.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "cloudlet-docker-"));
});
afterEach(() => rm(folder, { recursive: true }));

const settings = (value: unknown): Promise<void> => writeFile(join(folder, "config.json"), JSON.stringify(value));
const auth = Buffer.from("me:pass:word").toString("base64");

it("takes what docker login has kept for the registry, and nothing else", async () => {
  await settings({ auths: { "registry.example.net": { auth } } });
  expect(await dockerCredentials("registry.example.net", folder)).toEqual({ user: "me", password: "pass:word" });
  expect(await dockerCredentials("other.example.net", folder)).toBeUndefined();
});

it("knows Docker Hub by the name that docker gives it", async () => {
  await settings({ auths: { "https://index.docker.io/v1/": { auth } } });
  expect(await dockerCredentials("registry-1.docker.io", folder)).toEqual({ user: "me", password: "pass:word" });
});

it("needs none where docker was never used, or its helper is not installed", async () => {
  expect(await dockerCredentials("registry.example.net", folder)).toBeUndefined();
  await settings({ credsStore: "nothing-of-this-name", auths: { "registry.example.net": {} } });
  expect(await dockerCredentials("registry.example.net", folder)).toBeUndefined();
});

it("says that the settings cannot be understood", async () => {
  await settings({ auths: 7 });
  await expect(dockerCredentials("registry.example.net", folder)).rejects.toMatchObject({ code: "INVALID" });
});
