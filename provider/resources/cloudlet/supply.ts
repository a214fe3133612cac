import type { Offer } from "../../agent/protocol.ts";
import type { Context, LocalBlob } from "../../core/context.ts";
import { CloudletError } from "../../core/errors.ts";
import { toImageSource, toOverlaySource, type Reach } from "../images.ts";
import { bring, lacking, withOffers } from "../supply.ts";
import type { Inputs } from "./fields.ts";
import { idOf, overlayOf } from "./spec.ts";

/** Brings base and build to the node: from a neighbour that has them, else from the operator's machine. */
export async function supply(want: Inputs, context: Context): Promise<void> {
  const { base, build } = want;
  const image = want.baseSource && toImageSource(want.baseSource);
  const openBase = async (): Promise<LocalBlob> => {
    if (base.file !== undefined) return context.local.open(base.file);
    if (image !== undefined) return context.local.acquire(image, { ...context, digest: base.digest });
    throw new CloudletError(
      "NOT_FOUND",
      `no node that has the base ${base.image ?? base.digest} of cloudlet "${idOf(want)}" can be reached`,
      {
        fix: "give the BaseImage itself as `base`, or place it on the node first",
      },
    );
  };
  await supplyOne(want, { what: "base", digest: base.digest, givers: want.sources, open: openBase }, context);
  if (build) await supplyOne(want, { what: "build", digest: build.digest, givers: [], open: () => openBuild(want, context) }, context);
}

function openBuild(want: Inputs, context: Context): Promise<LocalBlob> {
  const directory = want.build?.context;
  if (directory !== undefined) return context.local.openDirectory(directory);
  throw new CloudletError("NOT_FOUND", `the node lacks the build ${want.build?.digest} of cloudlet "${idOf(want)}"`, {
    fix: "set `build.context` to the directory that it is built from",
  });
}

interface Part {
  what: string;
  digest: string | undefined;
  givers: Reach[];
  open(): Promise<LocalBlob>;
}

async function supplyOne(want: Inputs, { what, digest, givers, open }: Part, context: Context): Promise<void> {
  if (digest === undefined) return;
  const local = async (): Promise<LocalBlob[]> => {
    const blob = await open();
    if (blob.digest === digest) return [blob];
    throw new CloudletError("INTEGRITY", `the ${what} of cloudlet "${idOf(want)}" changed while the program ran`, {
      fix: "run the same command again",
    });
  };
  await bring({ what: `${what} of cloudlet "${idOf(want)}"`, digests: [digest], taker: reachOf(want), givers }, local, context);
}

/**
 * Has those who have the overlay offer it while `work` lasts, so that the cloudlet can start before it has arrived. Where
 * nobody offers what the node lacks, an overlay that the operator's machine can get is sent first.
 */
export async function withOverlay<T>(want: Inputs, context: Context, work: (offers: Offer[]) => Promise<T>): Promise<T> {
  const overlay = overlayOf(want);
  if (overlay === undefined) return work([]);
  const agent = await context.agent(want.connection);
  const digests = [...new Set([overlay, ...(want.base.memory ? [want.base.memory.digest] : [])])];
  const missing = await lacking(agent, digests);
  if (missing.length === 0) return work([]);
  const what = `overlay of cloudlet "${idOf(want)}"`;
  const wanted = { what, digests: missing, taker: reachOf(want), givers: want.sources };
  return withOffers(wanted, context, async (offers) => {
    const source = want.overlaySource && toOverlaySource(want.overlaySource);
    if (offers.length === 0 && source !== undefined) {
      const local = async (): Promise<LocalBlob[]> => (await context.local.acquireOverlay(source, { ...context, digest: overlay })).blobs;
      await bring({ ...wanted, givers: [] }, local, context);
    }
    return work(offers);
  });
}

function reachOf({ hypervisor, connection, nodeAddress }: Inputs): Reach {
  return { hypervisor, connection, nodeAddress };
}
