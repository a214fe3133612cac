import type { AcquireOptions, ImageSource, Local, LocalBlob } from "../core/context.ts";
import { CloudletError } from "../core/errors.ts";
import { build } from "./build.ts";
import type { Cache } from "./cache.ts";
import { download, type DownloadLimits } from "./download.ts";
import { pullImage } from "./pullImage.ts";
import type { RegistryOptions } from "./registry/registry.ts";

export interface Acquiring {
  cache: Cache;
  files: Pick<Local, "open" | "openDirectory">;
  limits: DownloadLimits;
  /** Default: what docker knows. */
  credentials?: RegistryOptions["credentials"];
}

/** Under way in this process; whoever wants the same waits for it. */
const underWay = new Map<string, Promise<LocalBlob>>();

/** Brings an image to this machine. */
export async function acquireImage(source: ImageSource, options: AcquireOptions, from: Acquiring): Promise<LocalBlob> {
  const { digest } = options;
  const cached = digest === undefined || "file" in source ? undefined : await from.cache.find(digest);
  const blob = cached ?? (await once(source, options, from));
  if (digest === undefined || blob.digest === digest) return blob;
  throw new CloudletError("INTEGRITY", `${describe(source)} has the digest ${blob.digest}, and ${digest} is expected`, {
    fix: "correct the digest or the content",
  });
}

async function once(source: ImageSource, options: AcquireOptions, from: Acquiring): Promise<LocalBlob> {
  const key = JSON.stringify(source);
  const earlier = underWay.get(key);
  // whoever came first may give up; that is not ours
  const shared = earlier && (await earlier.catch(() => undefined));
  if (shared) return shared;
  const begun = fromSource(source, options, from);
  underWay.set(key, begun);
  try {
    return await begun;
  } finally {
    if (underWay.get(key) === begun) underWay.delete(key);
  }
}

async function fromSource(source: ImageSource, options: AcquireOptions, from: Acquiring): Promise<LocalBlob> {
  if ("file" in source) return from.files.open(source.file);
  if ("url" in source) return download(source.url, { ...from, options });
  if ("image" in source) return pullImage(source.image, { ...from, options });
  const { digest: contextDigest } = await from.files.openDirectory(source.build.context);
  return build({ ...source.build, contextDigest }, { ...from, options });
}

function describe(source: ImageSource): string {
  if ("file" in source) return source.file;
  // what follows may be secret
  if ("url" in source) return source.url.replace(/\/\/[^/@]*@/, "//").replace(/[?#].*$/, "");
  return "image" in source ? source.image : `what is built in ${source.build.context}`;
}
