import { createHash, randomBytes, timingSafeEqual } from "node:crypto";

/** A token for one purpose, and how it is kept: only its digest is on disk. */
export function newToken(): { token: string; digest: string } {
  const token = randomBytes(32).toString("base64url");
  return { token, digest: digestToken(token) };
}

export function tokenMatches(token: string, digest: string): boolean {
  return timingSafeEqual(Buffer.from(digestToken(token), "hex"), Buffer.from(digest, "hex"));
}

function digestToken(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}
