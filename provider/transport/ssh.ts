import type { Duplex } from "node:stream";
import ssh2, { type AnyAuthMethod, type Client, type ClientChannel, type ConnectConfig, type ServerHostKeyAlgorithm } from "ssh2";
import { CloudletError } from "../core/errors.ts";
import { fingerprintOf, hostKeyError, judge } from "./hostKey.ts";
import type { Credential, Target } from "./target.ts";

export type SshClient = Client;
export type SshChannel = ClientChannel;

export interface Connected {
  client: SshClient;
  /** `SHA256:…` of the host key that was verified. */
  fingerprint: string;
}

export interface Handshake {
  socket: Duplex;
  /** Host key algorithms in order of preference. */
  algorithms: string[];
  signal: AbortSignal;
}

/** Speaks SSH over an open stream: verifies the host key, then authenticates. One attempt; the socket is destroyed where it fails. */
export function handshake(target: Target, { socket, algorithms, signal }: Handshake): Promise<Connected> {
  const { methods, notes } = authMethods(target);
  if (methods.length === 0) throw noCredential(target, notes);
  const client = new ssh2.Client();
  let presented: Buffer | undefined;
  return new Promise<Connected>((resolve, reject) => {
    const fail = (error: CloudletError): void => {
      signal.removeEventListener("abort", onAbort);
      client.destroy();
      socket.destroy();
      reject(error);
    };
    const onAbort = (): void => fail(new CloudletError("ABORTED", `connecting to ${target.label} was cancelled`));
    signal.addEventListener("abort", onAbort, { once: true });
    client.on("ready", () => {
      signal.removeEventListener("abort", onAbort);
      client.setNoDelay(true);
      resolve({ client, fingerprint: presented === undefined ? "" : fingerprintOf(presented) });
    });
    client.on("change password", () =>
      fail(
        new CloudletError("UNAUTHORIZED", `${target.label} wants a new password before it lets anybody in`, {
          fix: "change the password by hand once",
        }),
      ),
    );
    // stays for the connection's whole life: a late error without listener would end the process
    client.on("error", (error) => {
      // a missing SSH agent is no failure while other methods are left
      if (error.level === "agent") notes.push(`SSH agent: ${error.message}`);
      else fail(connectError(target, { error, presented, notes }));
    });
    client.on("close", () => fail(new CloudletError("UNREACHABLE", `${target.label} closed the connection before the login was done`)));
    client.connect(
      connectConfig(target, { socket, algorithms, methods, verify: (key) => judge((presented = key), target.trust) === "trusted" }),
    );
  });
}

interface ConfigParts {
  socket: Duplex;
  algorithms: string[];
  methods: AnyAuthMethod[];
  verify(key: Buffer): boolean;
}

function connectConfig(target: Target, { socket, algorithms, methods, verify }: ConfigParts): ConnectConfig {
  return {
    sock: socket,
    username: target.user,
    readyTimeout: target.timeoutMillis,
    // ssh2's own timer would keep the process alive; the link has one that does not
    keepaliveInterval: 0,
    hostVerifier: verify,
    authHandler: methods,
    algorithms: { serverHostKey: algorithms.filter(isHostKeyAlgorithm) },
  };
}

function isHostKeyAlgorithm(name: string): name is ServerHostKeyAlgorithm {
  return /^(ssh-ed25519|ecdsa-sha2-nistp(256|384|521)|rsa-sha2-(256|512))$/.test(name);
}

function authMethods(target: Target): { methods: AnyAuthMethod[]; notes: string[] } {
  const notes: string[] = [];
  const methods = target.credentials.flatMap((credential) => toMethods(credential, target, notes));
  return { methods, notes };
}

function toMethods(credential: Credential, { user: username, label }: Target, notes: string[]): AnyAuthMethod[] {
  if (credential.kind === "agent") return [{ type: "agent", username, agent: credential.socketPath }];
  if (credential.kind === "password") {
    const { password } = credential;
    return [
      { type: "password", username, password },
      { type: "keyboard-interactive", username, prompt: (...[, , , prompts, finish]) => finish(prompts.map(() => password)) },
    ];
  }
  const problem = keyProblem(credential);
  if (problem === undefined)
    return [{ type: "publickey", username, key: credential.text, ...(credential.passphrase && { passphrase: credential.passphrase }) }];
  if (credential.required) throw new CloudletError("UNAUTHORIZED", `${credential.from} for ${label} ${problem.what}`, { fix: problem.fix });
  notes.push(`${credential.from} ${problem.what}`);
  return [];
}

/** Why a key cannot be used. The parser's own words are left out of messages, as they might quote the key. */
function keyProblem({ text, passphrase }: { text: string; passphrase: string | undefined }): { what: string; fix: string } | undefined {
  const parsed: unknown = ssh2.utils.parseKey(text, passphrase);
  const key: unknown = Array.isArray(parsed) ? parsed[0] : parsed;
  if (!(key instanceof Error)) {
    const isPrivate =
      typeof key === "object" &&
      key !== null &&
      "isPrivateKey" in key &&
      typeof key.isPrivateKey === "function" &&
      key.isPrivateKey() === true;
    return isPrivate ? undefined : { what: "is a public key", fix: "give the private key" };
  }
  if (/no passphrase given/i.test(key.message)) {
    return { what: "is encrypted and no passphrase is known", fix: "set connection.privateKeyPassword, or load the key into an SSH agent" };
  }
  if (/bad passphrase|integrity check failed|bad decrypt/i.test(key.message))
    return { what: "cannot be decrypted with the given passphrase", fix: "correct connection.privateKeyPassword" };
  return { what: "is not a private key that can be read", fix: "give it in OpenSSH form; `ssh-keygen -p -f KEYFILE` converts other forms" };
}

function noCredential({ label }: Target, notes: string[]): CloudletError {
  return new CloudletError(
    "UNAUTHORIZED",
    `there is no credential to log in to ${label} with${notes.length > 0 ? ` (${notes.join("; ")})` : ": no SSH agent and no identity file"}`,
    {
      fix: "load a key into an SSH agent, name an IdentityFile in ~/.ssh/config, or set connection.privateKey or connection.password",
    },
  );
}

interface Circumstances {
  error: Error & { level?: string; code?: unknown };
  presented: Buffer | undefined;
  notes: string[];
}

function connectError(target: Target, { error, presented, notes }: Circumstances): CloudletError {
  const { label, user } = target;
  if (presented !== undefined && judge(presented, target.trust) !== "trusted") return hostKeyError({ ...target, key: presented });
  // 2 is what OpenSSH answers after too many keys, 14 what the standard says
  if (error.level === "client-authentication" || error.code === 2 || error.code === 14) {
    const more = [...notes, ...(error.level === "client-authentication" ? [] : [error.message])];
    return new CloudletError(
      "UNAUTHORIZED",
      `${label} refused the login of ${user} (tried ${tried(target)})${more.length > 0 ? `; ${more.join("; ")}` : ""}`,
      { cause: error },
    );
  }
  if (/no matching/i.test(error.message)) {
    return new CloudletError("UNSUPPORTED", `${label} shares no SSH algorithm with this program: ${error.message}`, {
      fix: "enable current algorithms in the node's sshd",
      cause: error,
    });
  }
  const what =
    error.level === "client-timeout"
      ? `did not complete the SSH handshake within ${String(target.timeoutMillis / 1000)} s`
      : `broke the SSH handshake: ${error.message}`;
  return new CloudletError("UNREACHABLE", `${label} ${what}`, { cause: error });
}

function tried({ credentials }: Target): string {
  return credentials
    .map((credential) =>
      credential.kind === "key" ? credential.from : credential.kind === "agent" ? "the keys of the SSH agent" : "connection.password",
    )
    .join(", ");
}
