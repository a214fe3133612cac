import { createHash } from "node:crypto";
import { connect, type TLSSocket } from "node:tls";
import { CloudletError } from "../core/errors.ts";

const dialMillis = 5_000;

export interface Peer {
  /** For messages. */
  node: string;
  /** SHA-256 of its certificate in DER form: agents' certificates are self-signed, so the pin is the whole verification. */
  certificate: string;
}

/** Connects to an agent's data port and makes sure that it is that agent; HOST_KEY where it is another one. */
export function dialPinned(peer: Peer, host: string, port: number): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port, rejectUnauthorized: false, timeout: dialMillis });
    socket.once("timeout", () => socket.destroy(new Error("no answer")));
    socket.once("error", reject);
    socket.once("close", () => reject(new Error("the connection was closed")));
    socket.once("secureConnect", () => {
      const raw = socket.getPeerX509Certificate()?.raw;
      const digest = raw === undefined ? "none" : createHash("sha256").update(raw).digest("hex");
      if (digest !== peer.certificate) {
        reject(wrongCertificate(peer, `${host}:${port}`, digest));
        socket.destroy();
        return;
      }
      socket.removeListener("error", reject);
      socket.setNoDelay(true);
      // from here on each request has its own deadline
      socket.setTimeout(0);
      socket.removeAllListeners("timeout");
      resolve(socket);
    });
  });
}

function wrongCertificate({ node, certificate }: Peer, address: string, shown: string): CloudletError {
  return new CloudletError(
    "HOST_KEY",
    `${address} shows certificate ${shown.slice(0, 16)}, not the ${certificate.slice(0, 16)} of ${node}`,
    { fix: "look for another program on that port, or an address that two machines share" },
  );
}
