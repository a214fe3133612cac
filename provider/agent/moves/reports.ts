import type { MoveReport } from "../handoffProtocol.ts";
import type { VerbArgs } from "../protocol.ts";
import type { InstanceRecord } from "../records.ts";
import type { Departure } from "./files.ts";

/** How this very move ended, where it has. */
export function endOf({ ownership, leaving, lastMove }: InstanceRecord, args: VerbArgs<"move.run">): MoveReport | undefined {
  return ownership.role === "released" && ownership.epoch === args.epoch && leaving !== true && lastMove?.to === args.target.node
    ? lastMove
    : undefined;
}

/** Of a move that has just ended. */
export function reportOf({
  mode,
  self,
  target,
  route,
  bytesSent,
  bytesSupplied,
  bytesAhead,
  bytesTotal,
  beganAt,
  stoppedAt,
  rounds,
  predicted,
}: Departure): MoveReport {
  const now = Date.now();
  return {
    mode,
    from: self,
    to: target.node,
    route,
    bytesSent,
    ...(bytesSupplied !== undefined && { bytesSupplied }),
    ...(bytesAhead !== undefined && { bytesAhead }),
    bytesAvoided: Math.max(0, bytesTotal - bytesSent),
    totalMillis: now - beganAt,
    downtimeMillis: now - (stoppedAt ?? now),
    ...(rounds && { rounds }),
    ...(predicted && { predicted }),
  };
}
