import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import { CloudletError } from "../core/errors.ts";

/** A key that is accepted (or revoked): the public key itself as base64, or only its fingerprint. */
export type HostKeyPin = { blob: string } | { fingerprint: string };

/** Which keys one host may present, and where that is written. */
export interface Trust {
  source: string;
  accepted: HostKeyPin[];
  revoked: HostKeyPin[];
}

export type Verdict = "trusted" | "unknown" | "changed" | "revoked";

/** `hostKey` as users write it: an OpenSSH public key line, its base64 part, or `SHA256:…`. */
export function parseHostKey(text: string, source: string): HostKeyPin {
  const words = text.trim().split(/\s+/);
  const fingerprint = /^SHA256:([A-Za-z0-9+/]{43})=?$/.exec(words[0] ?? "");
  if (fingerprint !== null && words.length === 1) return { fingerprint: `SHA256:${fingerprint[1] ?? ""}` };
  const [type, blob] = words.length === 1 ? [undefined, words[0] ?? ""] : [words[0], words[1] ?? ""];
  const found = keyTypeOf(blob);
  if (found === undefined || (type !== undefined && type !== found)) {
    throw new CloudletError("INVALID", `${source} is not an SSH host key`, {
      fix: "give an OpenSSH public key line such as `ssh-ed25519 AAAA…`, or its fingerprint `SHA256:…`",
    });
  }
  return { blob: canonical(blob) };
}

/** The keys that known_hosts text lists for one host; lines that make no sense are passed over, as ssh does. */
export function knownHostKeys(text: string, host: string, port: number): Omit<Trust, "source"> {
  const name = knownHostsName(host, port);
  const found: Omit<Trust, "source"> = { accepted: [], revoked: [] };
  for (const line of text.split(/\r?\n/)) {
    const words = line.trim().split(/\s+/);
    const marker = words[0]?.startsWith("@") ? words.shift() : undefined;
    const [patterns = "", type = "", blob = ""] = words;
    if (patterns === "" || patterns.startsWith("#") || keyTypeOf(blob) !== type || !matchesName(patterns, name)) continue;
    if (marker === undefined) found.accepted.push({ blob: canonical(blob) });
    if (marker === "@revoked") found.revoked.push({ blob: canonical(blob) });
    // @cert-authority: ssh2 cannot verify host certificates, so such a line vouches for no plain key
  }
  return found;
}

/** How known_hosts names a host: the port only where it is not 22. */
export function knownHostsName(host: string, port: number): string {
  const name = host.toLowerCase();
  return port === 22 ? name : `[${name}]:${String(port)}`;
}

export function judge(key: Buffer, trust: Trust): Verdict {
  if (trust.revoked.some((pin) => matchesKey(pin, key))) return "revoked";
  if (trust.accepted.some((pin) => matchesKey(pin, key))) return "trusted";
  return trust.accepted.length > 0 ? "changed" : "unknown";
}

export function fingerprintOf(key: Buffer): string {
  return `SHA256:${createHash("sha256").update(key).digest("base64").replace(/=+$/, "")}`;
}

/**
 * Lists of host key algorithms to offer, one per attempt. Known types come first, else the node may present another of its keys
 * than the one that is known; a fingerprint does not tell its type, so each type gets a turn.
 */
export function algorithmOffers(trust: Trust): string[][] {
  const types = new Set(trust.accepted.map((pin) => ("blob" in pin ? keyTypeOf(pin.blob) : undefined)));
  if (types.has(undefined)) return families;
  const all = families.flat();
  const known = all.filter((algorithm) => types.has(algorithm.startsWith("rsa-") ? "ssh-rsa" : algorithm));
  return [[...known, ...all.filter((algorithm) => !known.includes(algorithm))]];
}

export interface Presented {
  label: string;
  host: string;
  port: number;
  key: Buffer;
  trust: Trust;
}

/** The error for a key that is not trusted: what was seen, what was expected, and both ways to accept it. */
export function hostKeyError({ label, host, port, key, trust }: Presented): CloudletError {
  const verdict = judge(key, trust);
  const type = keyTypeOf(key.toString("base64")) ?? "unknown type";
  const blob = key.toString("base64");
  const seen = `${type} ${fingerprintOf(key)}`;
  if (verdict === "revoked") {
    return new CloudletError("HOST_KEY", `the SSH host key of ${label} (${seen}) is marked as revoked in ${trust.source}`, {
      fix: "do not trust this host; give the node a new host key",
    });
  }
  const name = knownHostsName(host, port);
  const line = `${name} ${type} ${blob}`;
  const accept = `set connection.hostKey to "${type} ${blob}", or add this line to known_hosts: ${line}`;
  const compare = "compare the fingerprint on the node's own console (for f in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $f; done)";
  if (verdict === "unknown") {
    return new CloudletError("HOST_KEY", `the SSH host key of ${label} is unknown: ${seen} (looked in ${trust.source})`, {
      fix: `${compare}, then ${accept}`,
    });
  }
  const expected = trust.accepted
    .map((pin) => ("blob" in pin ? fingerprintOf(Buffer.from(pin.blob, "base64")) : pin.fingerprint))
    .join(" or ");
  return new CloudletError(
    "HOST_KEY",
    `the SSH host key of ${label} has changed: it presents ${seen}, ${trust.source} says ${expected}; somebody may be in between, or the node was installed anew`,
    {
      fix: `${compare}; if it is right, remove the old key (ssh-keygen -R '${name}') and ${accept}`,
    },
  );
}

const families = [["ssh-ed25519"], ["ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"], ["rsa-sha2-512", "rsa-sha2-256"]];

/** The type a key blob names inside itself; undefined where it is no key. */
function keyTypeOf(blob: string): string | undefined {
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(blob)) return undefined;
  const bytes = Buffer.from(blob, "base64");
  if (bytes.length < 8) return undefined;
  const length = bytes.readUInt32BE(0);
  if (length === 0 || length > 64 || bytes.length <= 4 + length) return undefined;
  const type = bytes.toString("latin1", 4, 4 + length);
  return /^[a-z0-9@.-]+$/.test(type) ? type : undefined;
}

function canonical(blob: string): string {
  return Buffer.from(blob, "base64").toString("base64");
}

function matchesKey(pin: HostKeyPin, key: Buffer): boolean {
  return "blob" in pin ? pin.blob === key.toString("base64") : pin.fingerprint === fingerprintOf(key);
}

function matchesName(patterns: string, name: string): boolean {
  if (patterns.startsWith("|")) return matchesHash(patterns, name);
  let matched = false;
  for (const pattern of patterns.toLowerCase().split(",")) {
    const negated = pattern.startsWith("!");
    if (!matchesWildcard(negated ? pattern.slice(1) : pattern, name)) continue;
    if (negated) return false;
    matched = true;
  }
  return matched;
}

function matchesHash(pattern: string, name: string): boolean {
  const [, version, salt = "", hash = ""] = pattern.split("|");
  if (version !== "1") return false;
  const expected = Buffer.from(hash, "base64");
  const actual = createHmac("sha1", Buffer.from(salt, "base64")).update(name).digest();
  return expected.length === actual.length && timingSafeEqual(expected, actual);
}

function matchesWildcard(pattern: string, name: string): boolean {
  // brackets are literal: they belong to [host]:port
  const source = pattern
    .replace(/[.+^${}()|[\]\\]/g, "\\$&")
    .replace(/\*+/g, ".*")
    .replace(/\?/g, ".");
  return new RegExp(`^${source}$`, "s").test(name);
}
