import { type JobEvent } from "../agent/jobProtocol.ts";
import { digestSchema, type OverlayStatus } from "../agent/protocol.ts";
import type { Readable } from "node:stream";
import type { AgentClient } from "../agent/clientTypes.ts";
import { CloudletError } from "../core/errors.ts";
import { parseManifest } from "../synthesis/manifestCheck.ts";
import type { ConnectionSettings } from "../transport/types.ts";
import { describe, open, openLater, sizeText, type Described, type PartSource, type Part, type Watch } from "../local/overlays/parts.ts";

/** What the commands need of a node's agent. */
export type OverlayNode = Pick<AgentClient, "label" | "overlays" | "hypervisor" | "hasBlob" | "getBlob" | "putBlob" | "run">;

/** Under whose name a node keeps what the command has brought. */
export const commandOwner = "cloudlet-command";

const manifestLimit = 64 * 1024 * 1024;

/** `USER@HOST:PORT`; what is left out comes from the ssh configuration. */
export function parseNode(text: string): ConnectionSettings {
  const [, user, address = "", plain = "", port] =
    /^(?:([^@\s]+)@)?(?:\[([0-9a-f:.%\w]+)\]|([^@:\s[\]]+))(?::(\d{1,5}))?$/i.exec(text) ?? [];
  const host = address || plain;
  if (host === "" || Number(port ?? 22) > 65535 || Number(port ?? 22) === 0)
    throw new CloudletError("INVALID", `"${text}" names no node`, { fix: "write --node USER@HOST or --node USER@HOST:PORT" });
  return { host, ...(user !== undefined && { user }), ...(port !== undefined && { port: Number(port) }) };
}

/** The one overlay on a node whose digest begins so. */
export async function findOverlay(node: OverlayNode, text: string, watch: Watch): Promise<OverlayStatus> {
  if (!/^[0-9a-f]{6,64}$/.test(text))
    throw new CloudletError("INVALID", `"${text}" is no digest of an overlay`, {
      fix: "take six or more of its first hex digits from `cloudlet overlay list`",
    });
  const kept = await node.overlays({ signal: watch.signal });
  const fitting = new Map(kept.filter(({ digest }) => digest.startsWith(text)).map((it) => [it.digest, it]));
  const [found, another] = fitting.values();
  if (found === undefined)
    throw new CloudletError("NOT_FOUND", `${node.label} keeps no overlay ${text}`, {
      fix: "see `cloudlet overlay list` for those it keeps",
    });
  if (another !== undefined)
    throw new CloudletError("INVALID", `${node.label} keeps several overlays whose digest begins with ${text}`, {
      fix: "give more of its digits",
    });
  return found;
}

/** An overlay in a node's store; with the base where that is wanted: the image, and its memory if the overlay needs it. */
export async function nodeSource(
  node: OverlayNode,
  { digest, withBase }: { digest: string; withBase: boolean },
  watch: Watch,
): Promise<PartSource> {
  const own = await partsOf(node, { digest, below: "" }, watch);
  const parts = [...own.parts];
  if (withBase) {
    if (own.parent !== undefined) parts.push(...(await partsOf(node, { digest: own.parent, below: "parent/" }, watch)).parts);
    parts.push({ name: "base", digest: own.base, bytes: await sizeOf(node, own.base, watch) });
  }
  return {
    label: node.label,
    parts,
    read: async ({ digest: wanted }) => (await blobOf(node, wanted, watch)).stream,
  };
}

/** Puts a whole overlay into a node's store and has the node keep it and compare it; on failure the node keeps nothing. */
export async function place(node: OverlayNode, source: PartSource, watch: Watch): Promise<Described> {
  const described = await describe(source, watch);
  await refuseMisfit(node, { source, described }, watch);
  // the node has an overlay once it has the manifest, so that goes last
  for (const part of source.parts.toReversed()) {
    if (await node.hasBlob(part.digest, { signal: watch.signal })) watch.status(`${part.name}: ${node.label} has it`);
    else await send(node, { source, part }, watch);
  }
  const held = { name: described.digest, owner: commandOwner };
  const options = { signal: watch.signal, onEvent: (event: JobEvent) => void (event.type === "progress" && watch.status(event.text)) };
  const wasKept = (await node.overlays({ signal: watch.signal })).some(({ name, owner }) => name === held.name && owner === held.owner);
  try {
    await node.run("overlay.keep", { ...held, digest: described.digest }, options);
    await node.run("overlay.verify", { digest: described.digest }, options);
  } catch (error) {
    // an earlier import stays what it was; the signal may be what has failed it, so this goes without
    if (!wasKept) await node.run("overlay.release", held, { timeoutMillis: 30_000 }).catch(() => undefined);
    throw error;
  }
  return described;
}

async function send(node: OverlayNode, { source, part }: { source: PartSource; part: Part }, watch: Watch): Promise<void> {
  const stream = openLater(source, part, watch);
  try {
    await node.putBlob({ digest: part.digest, bytes: part.bytes, stream: () => stream }, { signal: watch.signal });
  } catch (error) {
    // why the bytes stopped coming says more than that they did
    throw stream.errored ?? error;
  } finally {
    stream.destroy();
  }
}

/** Before anything is transferred: what the node must have, and does not get. */
async function refuseMisfit(
  node: OverlayNode,
  { source, described }: { source: PartSource; described: Described },
  { signal }: Watch,
): Promise<void> {
  const { kind, base, parent } = described.manifest;
  const hypervisor = await node.hypervisor({ signal });
  if (hypervisor?.kind !== kind)
    throw new CloudletError("REFUSED", `the overlay is for ${kind}, and ${node.label} has ${hypervisor?.kind ?? "no hypervisor"}`, {
      fix: `take a node with a Hypervisor of kind ${kind}`,
    });
  const needed = [
    { digest: base, part: "base", what: `its base image ${base}` },
    { digest: parent, part: "parent/manifest.json", what: `the memory of its base, ${parent ?? ""}` },
  ];
  for (const { digest, part, what } of needed) {
    if (digest === undefined || source.parts.some(({ name }) => name === part) || (await node.hasBlob(digest, { signal }))) continue;
    throw new CloudletError("REFUSED", `the overlay needs ${what}, which is neither on ${node.label} nor in ${source.label}`, {
      fix: "have a BaseImage keep it there, or export or push the overlay --with-base",
    });
  }
}

interface OwnParts {
  parts: Part[];
  base: string;
  parent: string | undefined;
}

async function partsOf(node: OverlayNode, { digest, below }: { digest: string; below: "" | "parent/" }, watch: Watch): Promise<OwnParts> {
  const { bytes, stream } = await blobOf(node, digestSchema.parse(digest), watch);
  const part: Part = { name: `${below}manifest.json`, digest, bytes };
  if (bytes > manifestLimit) {
    stream.destroy();
    throw new CloudletError("INVALID", `${part.name} of ${node.label} has ${sizeText(bytes)}, more than any may have`);
  }
  const source: PartSource = { label: node.label, parts: [part], read: () => Promise.resolve(stream) };
  const pieces: Buffer[] = [];
  for await (const piece of (await open(source, part, watch)) as AsyncIterable<Buffer>) pieces.push(piece);
  const { base, parent, index, pack } = parseManifest(Buffer.concat(pieces).toString("utf8"));
  const inner = [
    { name: `${below}index`, digest: index.digest, bytes: index.bytes },
    { name: `${below}pack`, digest: pack.digest, bytes: pack.bytes },
  ] as const;
  return { parts: [part, ...inner], base, parent };
}

async function sizeOf(node: OverlayNode, digest: string, watch: Watch): Promise<number> {
  const { bytes, stream } = await blobOf(node, digest, watch);
  stream.destroy();
  return bytes;
}

async function blobOf(node: OverlayNode, digest: string, { signal }: Watch): Promise<{ bytes: number; stream: Readable }> {
  const found = await node.getBlob(digest, { signal });
  if (found !== undefined) return found;
  throw new CloudletError("NOT_FOUND", `${node.label} has no data ${digest}, which the overlay needs`, {
    fix: "take the overlay from another node, or build it again",
  });
}
