import { dataPort } from "../agent/protocol.ts";
import type { RemoteHost } from "../transport/types.ts";

/** Ends of a way between two nodes that cannot reach each other: this machine's two SSH connections. */
export interface Ends {
  /** Connects to a port of its own loopback. */
  from: RemoteHost;
  /** Whose data port that leads to. */
  to: RemoteHost;
}

/** Listens on the loopback of one node and leads to the data port of the other, until closed. */
export function openRelay({ from, to }: Ends, signal: AbortSignal): Promise<{ port: number; close(): Promise<void> }> {
  return from.listenTcp((stream) => {
    to.openTcp("127.0.0.1", dataPort, signal).then(
      (onward) => {
        stream.pipe(onward).pipe(stream);
        stream.on("error", () => onward.destroy()).on("close", () => onward.destroy());
        onward.on("error", () => stream.destroy()).on("close", () => stream.destroy());
      },
      () => stream.destroy(),
    );
  });
}
