import { createHmac } from "node:crypto";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  algorithmOffers,
  fingerprintOf,
  hostKeyError,
  judge,
  knownHostKeys,
  knownHostsName,
  parseHostKey,
  type Trust,
} from "../../provider/transport/hostKey.ts";

function key(type: string, content: Uint8Array): Buffer {
  const length = (value: number): Buffer => Buffer.from([0, 0, 0, value]);
  return Buffer.concat([length(type.length), Buffer.from(type), length(content.length), content]);
}

const types = ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"] as const;
const anyKey = fc
  .record({ type: fc.constantFrom(...types), content: fc.uint8Array({ minLength: 16, maxLength: 64 }) })
  .map(({ type, content }) => ({ type, bytes: key(type, content) }));
const anyHost = fc.stringMatching(/^[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?$/);
const anyPort = fc.integer({ min: 1, max: 65535 });
const one = { type: "ssh-ed25519", bytes: key("ssh-ed25519", Buffer.alloc(32, 1)) };
const two = { type: "ssh-ed25519", bytes: key("ssh-ed25519", Buffer.alloc(32, 2)) };
const line = (patterns: string, { type, bytes }: { type: string; bytes: Buffer }): string =>
  `${patterns} ${type} ${bytes.toString("base64")} comment`;
const hashed = (name: string): string => {
  const salt = Buffer.alloc(20, 3);
  return `|1|${salt.toString("base64")}|${createHmac("sha1", salt).update(name).digest("base64")}`;
};
const trust = (accepted: Trust["accepted"], revoked: Trust["revoked"] = []): Trust => ({ source: "here", accepted, revoked });

describe("hostKey in a program", () => {
  it("accepts the same key as line, as base64 and as fingerprint", () => {
    fc.assert(
      fc.property(anyKey, anyKey, ({ type, bytes }, other) => {
        const blob = bytes.toString("base64");
        for (const text of [
          `${type} ${blob}`,
          `${type} ${blob} root@gw1`,
          ` ${blob}\n`,
          fingerprintOf(bytes),
          `${fingerprintOf(bytes)}=`,
        ]) {
          const pin = parseHostKey(text, "hostKey");
          expect(judge(bytes, trust([pin]))).toBe("trusted");
          if (!other.bytes.equals(bytes)) expect(judge(other.bytes, trust([pin]))).toBe("changed");
        }
      }),
    );
  });

  it("refuses everything else with INVALID and never with another error", () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        try {
          parseHostKey(text, "hostKey");
        } catch (error) {
          expect(error).toMatchObject({ code: "INVALID" });
        }
      }),
    );
    expect(() => parseHostKey(`ssh-rsa ${one.bytes.toString("base64")}`, "hostKey")).toThrow(/not an SSH host key/);
    expect(() => parseHostKey("MD5:aa:bb", "hostKey")).toThrow(/not an SSH host key/);
  });
});

describe("known_hosts", () => {
  it("finds a host by its name, with its port where that is not 22, plain or hashed", () => {
    fc.assert(
      fc.property(anyHost, anyPort, anyKey, (host, port, found) => {
        const name = knownHostsName(host, port);
        for (const patterns of [name, `other.example,${name}`, hashed(name)]) {
          expect(
            judge(found.bytes, { source: "", ...knownHostKeys(`# comment\n\n${line(patterns, found)}\n`, host.toUpperCase(), port) }),
          ).toBe("trusted");
        }
        expect(knownHostKeys(line(name, found), `x${host}`, port).accepted).toEqual([]);
        expect(knownHostKeys(line(hashed(name), found), host, port === 65535 ? 1 : port + 1).accepted).toEqual([]);
      }),
    );
  });

  it("survives any text", () => {
    fc.assert(fc.property(fc.string(), anyHost, anyPort, (text, host, port) => void knownHostKeys(text, host, port)));
    fc.assert(
      fc.property(
        fc.string({ unit: fc.constantFrom("*", "?", "!", ",", "[", "]", "|", "\\", "(", "+", "a") }),
        (text) => void knownHostKeys(line(text, one), "a", 22),
      ),
    );
  });

  it.each([
    ["*", true],
    ["*.example", true],
    ["gw?.example", true],
    ["gw?.example,!gw1.example", false],
    ["!gw1.example,*", false],
    ["*.exampl", false],
    ["gw1.example:22", false],
    ["[gw1.example]:2222", false],
    ["GW1.Example", true],
  ])("matches the pattern %s: %s", (patterns, matches) => {
    expect(knownHostKeys(line(patterns, one), "gw1.example", 22).accepted.length).toBe(matches ? 1 : 0);
  });

  it("refuses a revoked key even where another line accepts it", () => {
    const text = `${line("gw1", one)}\n@revoked ${line("*", one)}`;
    expect(judge(one.bytes, { source: "", ...knownHostKeys(text, "gw1", 22) })).toBe("revoked");
  });

  it("does not take a certificate authority for a host's key", () => {
    expect(judge(one.bytes, { source: "", ...knownHostKeys(`@cert-authority ${line("*", one)}`, "gw1", 22) })).toBe("unknown");
  });

  it("accepts any of several keys, and calls a further one changed", () => {
    const found = {
      source: "",
      ...knownHostKeys(`${line("gw1", one)}\n${line("gw1", { type: "ssh-rsa", bytes: key("ssh-rsa", Buffer.alloc(9)) })}`, "gw1", 22),
    };
    expect(judge(one.bytes, found)).toBe("trusted");
    expect(judge(two.bytes, found)).toBe("changed");
  });
});

describe("host key algorithms", () => {
  it("offer known types first and all others after them", () => {
    const [offer = []] = algorithmOffers(trust([{ blob: key("ssh-rsa", Buffer.alloc(9)).toString("base64") }]));
    expect(offer.slice(0, 2)).toEqual(["rsa-sha2-512", "rsa-sha2-256"]);
    expect(offer).toContain("ssh-ed25519");
  });

  it("give each type a turn where only a fingerprint is known", () => {
    expect(algorithmOffers(trust([{ fingerprint: fingerprintOf(one.bytes) }]))).toHaveLength(3);
  });
});

describe("the error for an untrusted key", () => {
  const presented = { label: "root@gw1:2222", host: "gw1", port: 2222, key: one.bytes };

  it("prints the fingerprint and both ways to accept an unknown key, and what it prints is accepted", () => {
    const { message, fix, code } = hostKeyError({ ...presented, trust: trust([]) });
    expect(code).toBe("HOST_KEY");
    expect(message).toContain(fingerprintOf(one.bytes));
    const [, pin = ""] = /connection\.hostKey to "([^"]+)"/.exec(fix) ?? [];
    const [, known = ""] = /known_hosts: (.+)$/.exec(fix) ?? [];
    expect(judge(one.bytes, trust([parseHostKey(pin, "hostKey")]))).toBe("trusted");
    expect(judge(one.bytes, { source: "", ...knownHostKeys(known, "gw1", 2222) })).toBe("trusted");
  });

  it("prints both fingerprints of a changed key", () => {
    const { message, fix } = hostKeyError({ ...presented, trust: trust([{ fingerprint: fingerprintOf(two.bytes) }]) });
    expect(message).toContain(fingerprintOf(one.bytes));
    expect(message).toContain(fingerprintOf(two.bytes));
    expect(fix).toContain("ssh-keygen -R '[gw1]:2222'");
  });
});
