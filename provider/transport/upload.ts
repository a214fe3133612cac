import { createHash, randomBytes } from "node:crypto";
import { createReadStream } from "node:fs";
import { posix } from "node:path";
import { pipeline } from "node:stream/promises";
import { CloudletError } from "../core/errors.ts";
import { execute, lastLines, quote, type Access } from "./exec.ts";
import type { RemoteHost } from "./types.ts";

type Source = Parameters<RemoteHost["upload"]>[0];
type Target = Parameters<RemoteHost["upload"]>[1];
type Options = NonNullable<Parameters<RemoteHost["upload"]>[2]>;

const digestMismatch = 66;

/** Writes a file on the node so that its path holds the old content or the whole new one, never anything else. */
export async function upload(access: Access, { source, target }: { source: Source; target: Target }, options: Options = {}): Promise<void> {
  const digest = target.digest ?? (await digestOf(source));
  const result = await execute(access, script({ ...target, digest }), {
    stdin: "content" in source ? source.content : createReadStream(source.path),
    timeoutMillis: options.timeoutMillis ?? 600_000,
    signal: options.signal,
  });
  const { label } = access.link;
  if (result.exitCode === digestMismatch) {
    throw new CloudletError(
      "INTEGRITY",
      `${target.path} on ${label} was not written: what arrived has SHA-256 ${result.stdout.trim()}, expected ${digest}`,
    );
  }
  if (result.exitCode !== 0) throw new CloudletError("FAILED", `${target.path} on ${label} was not written${lastLines(result.stderr)}`);
}

async function digestOf(source: Source): Promise<string> {
  const hash = createHash("sha256");
  if ("content" in source) return hash.update(source.content).digest("hex");
  try {
    await pipeline(createReadStream(source.path), hash);
  } catch (cause) {
    throw new CloudletError("NOT_FOUND", `${source.path} cannot be read: ${cause instanceof Error ? cause.message : String(cause)}`, {
      fix: "check the path",
      cause,
    });
  }
  return hash.digest("hex");
}

/** A cut connection ends the input early: then the digest is wrong, and the trap removes the temporary. */
function script({ path, mode, digest }: Required<Target>): string {
  const temporary = posix.join(posix.dirname(path), `.${posix.basename(path)}.${randomBytes(6).toString("hex")}.tmp`);
  return `
set -eu
umask 077
new=${quote(temporary)}
trap 'rm -f "$new"' EXIT
trap 'exit 143' TERM HUP INT
cat >"$new"
digest=$(sha256sum <"$new")
digest=\${digest%% *}
if [ "$digest" != ${quote(digest)} ]; then echo "$digest"; exit ${String(digestMismatch)}; fi
chmod ${mode.toString(8)} "$new"
sync "$new"
mv -fT "$new" ${quote(path)}
sync ${quote(posix.dirname(path))}
`;
}
