import type { AgentClient } from "../agent/clientTypes.ts";
import { writeArchive, openArchive } from "../local/overlays/archive.ts";
import { openArtefact, pushOverlay } from "../local/overlays/artefact.ts";
import { describe, readThrough, sizeText, type Watch } from "../local/overlays/parts.ts";
import { parseReference } from "../local/registry/reference.ts";
import { openRegistry, type Registry } from "../local/registry/registry.ts";
import { CloudletError } from "../core/errors.ts";
import type { ConnectionSettings } from "../transport/types.ts";
import { table } from "./table.ts";
import { commandOwner, findOverlay, nodeSource, parseNode, place, type OverlayNode } from "./node.ts";

/** What a command works with; results go to `print`, what is being done goes to `status`. */
export interface Surroundings extends Watch {
  print(line: string): void;
  agent(connection: ConnectionSettings): Promise<Pick<AgentClient, keyof OverlayNode | "handoffs">>;
}

interface AtNode {
  node: string;
}

export async function list({ node: name }: AtNode, around: Surroundings): Promise<void> {
  const node = await around.agent(parseNode(name));
  const rows = (await node.overlays({ signal: around.signal })).map(({ digest, kind, bytes, base, name: kept, owner }) => [
    digest.slice(0, 12),
    kind,
    sizeText(bytes),
    base.slice(0, 12),
    owner === commandOwner ? "imported" : `${kept} of ${owner}`,
  ]);
  for (const line of table([["DIGEST", "KIND", "SIZE", "BASE", "KEPT AS"], ...rows])) around.print(line);
}

export async function exportOverlay(
  text: string,
  { node: name, output, withBase }: AtNode & { output: string; withBase: boolean },
  around: Surroundings,
): Promise<void> {
  const node = await around.agent(parseNode(name));
  const { digest } = await findOverlay(node, text, around);
  const source = await nodeSource(node, { digest, withBase }, around);
  await describe(source, around);
  await writeArchive(output, source, around);
  around.print(`${digest} is in ${output}`);
}

export async function importOverlay(file: string, { node: name }: AtNode, around: Surroundings): Promise<void> {
  const source = await openArchive(file);
  await describe(source, around);
  // all of it is read before the node gets any of it
  await readThrough(source, around);
  const node = await around.agent(parseNode(name));
  const { digest } = await place(node, source, around);
  around.print(`${digest} is on ${name}`);
}

export async function push(
  [text, reference]: [string, string],
  { node: name, withBase }: AtNode & { withBase: boolean },
  around: Surroundings,
): Promise<void> {
  const registry = registryAt(reference, around);
  const node = await around.agent(parseNode(name));
  const { digest } = await findOverlay(node, text, around);
  const source = await nodeSource(node, { digest, withBase }, around);
  await describe(source, around);
  const artefact = await pushOverlay(registry, source, around);
  around.print(`${digest} is ${registry.label}@${artefact}`);
}

export async function pull(reference: string, { node: name }: AtNode, around: Surroundings): Promise<void> {
  const source = await openArtefact(registryAt(reference, around));
  const node = await around.agent(parseNode(name));
  const { digest } = await place(node, source, around);
  around.print(`${digest} is on ${name}`);
}

export async function verify(text: string, { node: name }: AtNode, around: Surroundings): Promise<void> {
  const node = await around.agent(parseNode(name));
  const { digest } = await findOverlay(node, text, around);
  around.status(`recombining ${digest} on ${node.label}`);
  const { bytes } = await node.run("overlay.verify", { digest }, { signal: around.signal });
  around.print(`${digest} is whole: ${sizeText(bytes)} of recombined images are what they were when it was sealed`);
}

export async function remove(text: string, { node: name }: AtNode, around: Surroundings): Promise<void> {
  const node = await around.agent(parseNode(name));
  const { digest } = await findOverlay(node, text, around);
  const kept = (await node.overlays({ signal: around.signal })).filter((it) => it.digest === digest);
  const own = kept.find(({ owner }) => owner === commandOwner);
  if (own === undefined)
    throw new CloudletError("REFUSED", `${digest} was not imported: it belongs to ${kept.map(({ owner }) => owner).join(", ")}`, {
      fix: "remove it from the program that declares it",
    });
  await node.run("overlay.release", { name: own.name, owner: own.owner }, { signal: around.signal });
  const others = kept.filter((it) => it !== own).map(({ owner }) => owner);
  around.print(others.length === 0 ? `${digest} is removed` : `${digest} is no longer kept as imported; ${others.join(", ")} keeps it`);
}

function registryAt(reference: string, { signal }: Watch): Registry {
  return openRegistry(parseReference(reference), { signal });
}
