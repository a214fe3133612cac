import { afterEach, describe, expect, it, vi } from "vitest";
import { currentOperator, type Operator } from "../../provider/transport/operator.ts";
import { parseJump, parseSshConfig } from "../../provider/transport/sshConfig.ts";

afterEach(() => void vi.unstubAllEnvs());

const operator: Operator = { home: "/home/me", agentSocketPath: undefined, knownHostsPaths: ["/home/me/.ssh/known_hosts"] };

describe("the operator's machine", () => {
  it("has its known_hosts where CLOUDLET_KNOWN_HOSTS says, else where ssh has it", () => {
    vi.stubEnv("CLOUDLET_KNOWN_HOSTS", "/elsewhere");
    expect(currentOperator().knownHostsPaths).toEqual(["/elsewhere"]);
    vi.stubEnv("CLOUDLET_KNOWN_HOSTS", "");
    expect(currentOperator().knownHostsPaths[0]).toMatch(/\.ssh\/known_hosts$/);
  });
});

describe("the ssh configuration", () => {
  it("is read from the answer of ssh -G", () => {
    const text =
      "user admin\nhostname 10.0.0.1\nport 2200\nidentitiesonly yes\nidentityfile ~/.ssh/gw\nidentityfile /keys/gw\nproxyjump edge,me@[fd00::1]:2222\n";
    expect(parseSshConfig(text, { host: "gw1" }, operator)).toEqual({
      host: "10.0.0.1",
      port: 2200,
      user: "admin",
      identityFiles: ["/home/me/.ssh/gw", "/keys/gw"],
      identitiesOnly: true,
      jumps: ["edge", "me@[fd00::1]:2222"],
    });
  });

  it("is refused where it asks for a ProxyCommand", () => {
    expect(() => parseSshConfig("proxycommand nc gw1 22\n", { host: "gw1" }, operator)).toThrow(/gw1 by ProxyCommand/);
  });

  it.each([
    ["edge", { host: "edge", user: undefined, port: undefined }],
    ["me@edge:22", { host: "edge", user: "me", port: 22 }],
    ["ssh://me@[fd00::1]:2222", { host: "fd00::1", user: "me", port: 2222 }],
  ])("names a hop as %s", (text, expected) => {
    expect(parseJump(text)).toEqual(expected);
  });
});
