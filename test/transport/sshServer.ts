import { spawn } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import type { AddressInfo } from "node:net";
import ssh2, { type AuthContext, type Connection } from "ssh2";

/** An in-process SSH server that really runs commands, so that each kind of login, key and loss can be arranged. */
export interface SshServerFixture {
  port: number;
  /** `type base64` */
  hostKey: string;
  hostKeyBlob: Buffer;
  logins: number;
  /** Connections that are open now. */
  open(): number;
  drop(): void;
  stop(): Promise<void>;
}

export interface SshServerOptions {
  hostPrivateKeys?: string[];
  authorize?: (context: AuthContext) => boolean;
}

export interface TestKey {
  privateKey: string;
  publicKey: string;
}

export function newKey(type: "ed25519" | "ecdsa" | "rsa" = "ed25519", passphrase?: string): TestKey {
  if (type === "rsa") {
    const { privateKey, publicKey } = generateKeyPairSync("rsa", {
      modulusLength: 2048,
      publicKeyEncoding: { type: "pkcs1", format: "pem" },
      privateKeyEncoding: { type: "pkcs1", format: "pem" },
    });
    return { privateKey, publicKey };
  }
  // now and then ssh2 writes a key that it cannot read itself
  for (;;) {
    const pair =
      type === "ecdsa"
        ? ssh2.utils.generateKeyPairSync("ecdsa", { bits: 256 })
        : ssh2.utils.generateKeyPairSync("ed25519", passphrase === undefined ? {} : { passphrase, cipher: "aes256-ctr", rounds: 4 });
    if (ssh2.utils.parseKey(pair.private, passphrase) instanceof Error) continue;
    return { privateKey: pair.private, publicKey: pair.public };
  }
}

export function blobOf(privateKey: string): Buffer {
  const key = ssh2.utils.parseKey(privateKey);
  if (key instanceof Error) throw key;
  return key.getPublicSSH();
}

export async function startServer({
  hostPrivateKeys = [newKey().privateKey],
  authorize = () => true,
}: SshServerOptions = {}): Promise<SshServerFixture> {
  const connections = new Set<Connection>();
  const fixture = { port: 0, hostKey: "", hostKeyBlob: blobOf(hostPrivateKeys[0] ?? ""), logins: 0 };
  const server = new ssh2.Server({ hostKeys: hostPrivateKeys }, (connection) => {
    connections.add(connection);
    connection.on("error", () => undefined);
    connection.on("close", () => connections.delete(connection));
    connection.on("authentication", (context) => {
      if (context.method === "none" || !authorize(context)) context.reject(["publickey", "password", "keyboard-interactive"]);
      else if (context.method === "keyboard-interactive")
        context.prompt([{ prompt: "Password: ", echo: false }], (answers) =>
          answers[0] === "canary-secret" ? context.accept() : context.reject(),
        );
      else context.accept();
    });
    connection.on("ready", () => {
      fixture.logins += 1;
      serve(connection);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  fixture.port = (server.address() as AddressInfo).port;
  fixture.hostKey = `${fixture.hostKeyBlob.toString("latin1", 4, 4 + fixture.hostKeyBlob.readUInt32BE(0))} ${fixture.hostKeyBlob.toString("base64")}`;
  const drop = (): void => {
    for (const connection of connections) connection.end();
  };
  return Object.assign(fixture, {
    drop,
    open: () => connections.size,
    stop: () => {
      drop();
      return new Promise<void>((resolve) => server.close(() => resolve()));
    },
  });
}

function serve(connection: Connection): void {
  connection.on("session", (acceptSession) => {
    acceptSession().on("exec", (accept, _reject, { command }) => {
      const channel = accept();
      // the login passes for root's, whoever runs the tests
      const child = spawn("sh", ["-c", command === "id -u" ? "echo 0" : command], { detached: true });
      child.stdin.on("error", () => undefined);
      channel.pipe(child.stdin);
      child.stdout.pipe(channel, { end: false });
      child.stderr.pipe(channel.stderr, { end: false });
      channel.on("error", () => undefined);
      child.on("close", (code, signal) => {
        if (code === null) channel.exit(signal ?? "KILL");
        else channel.exit(code);
        channel.end();
      });
    });
  });
}
