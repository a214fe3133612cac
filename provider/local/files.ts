import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import type { Readable } from "node:stream";
import type { Local, LocalBlob } from "../core/context.ts";
import type { LocalDigests } from "../core/define.ts";
import { CloudletError } from "../core/errors.ts";
import { Cache } from "./cache.ts";
import { packDirectory } from "./directory.ts";
import { acquireImage } from "./images.ts";
import { acquireOverlay } from "./overlays/acquire.ts";

/** Files and directories of the operator's machine, as blobs with a digest; `store` is where downloads and builds are kept. */
export function createLocal(store?: string): Local {
  const local: Local = {
    async open(path) {
      const found = await statOf(path);
      if (!found.isFile()) throw new CloudletError("INVALID", `${path} is not a file`, { fix: "name a file" });
      return blobOf(path, () => createReadStream(path));
    },
    async openDirectory(path) {
      const found = await statOf(path);
      if (!found.isDirectory()) throw new CloudletError("INVALID", `${path} is not a directory`, { fix: "name a directory" });
      return blobOf(path, () => packDirectory(path));
    },
    acquire: (source, options) => acquireImage(source, options, { cache: new Cache(store), files: local, limits: { bytes: imageLimit } }),
    acquireOverlay,
  };
  return local;
}

export const local = createLocal();

/** A larger one is a mistake, or an attack. */
const imageLimit = 64 * 1024 * 1024 * 1024;

export const digests: LocalDigests = {
  digestFile: async (path) => (await local.open(path)).digest,
  digestDirectory: async (path) => (await local.openDirectory(path)).digest,
  digestOverlay: async (path) =>
    (await local.acquireOverlay({ file: path }, { signal: AbortSignal.timeout(checkMillis), status: () => undefined })).digest,
};

/** A check has no deadline of its own. */
const checkMillis = 600_000;

async function statOf(path: string): ReturnType<typeof stat> {
  return stat(path).catch((error: unknown) => {
    throw new CloudletError("NOT_FOUND", `${path} is not on this machine`, {
      cause: error,
      fix: "correct the path; relative ones start at the program's directory",
    });
  });
}

async function blobOf(path: string, stream: () => Readable): Promise<LocalBlob> {
  const hash = createHash("sha256");
  let bytes = 0;
  try {
    for await (const chunk of stream()) {
      if (!Buffer.isBuffer(chunk)) throw new TypeError("a stream of bytes gave something else");
      hash.update(chunk);
      bytes += chunk.length;
    }
  } catch (error) {
    throw new CloudletError("INVALID", `${path} cannot be read`, { cause: error, fix: "check its permissions" });
  }
  return { digest: hash.digest("hex"), bytes, stream };
}
