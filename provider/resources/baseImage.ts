import { z } from "zod";
import {
  digestSchema,
  imageStatusSchema,
  kindSchema,
  machineSchema,
  type ImageStatus,
  type Makings,
  type OverlayStatus,
} from "../agent/protocol.ts";
import type { Context, ImageSource, LocalBlob } from "../core/context.ts";
import { defineResource, type CheckContext, type Issue } from "../core/define.ts";
import { CloudletError } from "../core/errors.ts";
import { keepOrBuild } from "./building.ts";
import { readyIssues, readySchema, readyText, toReady } from "./guest.ts";
import { imageSourceFields, memoryName, oneOf, pinDigest, reachSchema, toImageSource, type Reach } from "./images.ts";
import {
  adoptedPlace,
  hypervisorField,
  nameField,
  onUnreachableField,
  ownerField,
  parseAdopted,
  parseHypervisor,
  removeOrForget,
} from "./shared.ts";
import { bring, follow, nodeOf } from "./supply.ts";

const memorySchema = z.strictObject({
  sizeMib: z.int().min(32).describe("Memory of the guest in MiB."),
  cores: z.int().min(1).default(1).describe("Its processor cores."),
  diskMib: z.int().min(64).default(2048).describe("Size of its disk in MiB; never smaller than the image."),
  ready: readySchema.describe(`When it is saved. ${readyText}`),
  builder: hypervisorField.optional().describe("The Hypervisor that boots it, one of `nodes`. Default: the first of them."),
});

const inputs = z.strictObject({
  name: nameField.describe("Name of the image. Default: the Pulumi name.").meta({ replaces: true }),
  owner: ownerField,
  ...imageSourceFields,
  digest: digestSchema
    .optional()
    .describe(
      "SHA-256 of the image, its identity. Default: computed from `file`; of the others, what came first. Set it to pin the content.",
    )
    .meta({ computed: true }),
  nodes: z
    .array(hypervisorField)
    .default([])
    .describe("Hypervisors whose nodes have the image before any cloudlet asks for it; all of one kind.")
    .meta({ set: true }),
  connections: z
    .array(reachSchema)
    .default([])
    .describe("How to reach these nodes; the SDK takes it from the hypervisors that are named.")
    .meta({ set: true, internal: true }),
  memory: memorySchema
    .optional()
    .describe(
      "Boots the image once and keeps its memory at the moment it is ready, so that cloudlets and overlays resume from it (kvm only).",
    ),
  onUnreachable: onUnreachableField,
});
type Inputs = z.infer<typeof inputs>;

const outputs = z.strictObject({
  digest: digestSchema.describe("SHA-256 of the image, its identity."),
  kind: kindSchema.optional().describe("The kind of hypervisor it is for; absent while it is on no node."),
  format: imageStatusSchema.shape.format.optional().describe("Detected, not declared; absent while it is on no node."),
  bytes: z.int().optional().describe("Its size as it is stored."),
  virtualBytes: z.int().optional().describe("Size of the disk that a guest sees; absent while it is on no node."),
  placements: z
    .array(
      z.strictObject({
        node: z.string().describe("Name of the node."),
        bytesTransferred: z.int().describe("Bytes that were sent to place it; 0 where the node had it."),
        from: z.string().describe("Who sent them: a node, or `operator`; empty where the node had it."),
      }),
    )
    .describe("Where it is, and how it came there."),
  memoryDigest: digestSchema.optional().describe("Digest of the saved memory."),
  machine: machineSchema.optional().describe("What the saved memory can be resumed on."),
});
type Known = Inputs & Partial<z.infer<typeof outputs>>;

/** A bootable base, content-addressed and placed on nodes before it is needed. */
export const baseImage = defineResource({
  token: "cloudlet:index:BaseImage",
  description:
    "A bootable base, known by its digest and placed on nodes before it is needed. A node takes it from a neighbour that has it, and from the operator's machine only where none has.",
  inputs,
  outputs,
  identity: ({ name }) => name,
  complete,
  constraints,

  adopt({ id, owner }, context) {
    const [first = "", ...more] = id.split(",");
    const [name = "", ...place] = parseAdopted(first, "NAME@NODE/KIND[@HOST]");
    const connections = [place, ...more.map((text) => parseAdopted(text, "NODE/KIND[@HOST]"))].map(adoptedPlace);
    return observe(inputs.parse({ name, owner, nodes: connections.map(({ hypervisor }) => hypervisor), connections }), context);
  },

  observe,

  async apply(want, old, context) {
    const { digest, open } = await identify(want, old, context);
    const places = reaches(want);
    const givers = [...places, ...(old ? reaches(old) : [])];
    const local = async (): Promise<LocalBlob[]> => [await open()];
    for (const taker of places) {
      const arrival = await bring({ what: `image "${want.name}"`, digests: [digest], taker, givers }, local, context);
      const agent = await context.agent(taker.connection);
      await agent.run("image.keep", { name: want.name, owner: want.owner, digest, ...(arrival && { arrival }) }, follow(context));
    }
    if (want.memory) await placeMemory({ want, memory: want.memory, old, digest, givers }, context);
    if (old) await leave(old, want, context);
    // on no node it is known here only
    return { digest, ...(places.length === 0 && old?.digest !== digest && { bytes: (await open()).bytes }) };
  },

  async remove(have, context) {
    for (const reach of reaches(have)) await release({ have, reach, image: true }, context);
  },
});

async function observe(
  known: Inputs & { bytes?: number | undefined },
  context: Context,
): Promise<(Inputs & z.infer<typeof outputs>) | undefined> {
  const found = await Promise.all(reaches(known).map((reach) => lookAt(known, reach, context)));
  const digest = known.digest ?? found.find(({ image }) => image)?.image?.digest;
  if (digest === undefined) return undefined;
  const placed = found.filter(({ image, memory }) => image?.digest === digest && (!known.memory || memory));
  const [first] = placed;
  const memory = placed.find(({ reach }) => reach.hypervisor === builderOf(known))?.memory ?? first?.memory;
  return {
    ...inputs.strip().parse(known),
    digest,
    nodes: known.nodes.filter((node) => placed.some(({ reach }) => reach.hypervisor === node)),
    bytes: first?.image?.bytes ?? known.bytes,
    kind: first?.image?.kind,
    format: first?.image?.format,
    virtualBytes: first?.image?.virtualBytes,
    placements: placed.map(({ reach, image }) => ({
      node: nodeOf(reach),
      bytesTransferred: image?.arrival?.bytesTransferred ?? 0,
      from: image?.arrival?.from ?? "",
    })),
    memoryDigest: memory?.digest,
    machine: memory?.machine,
  };
}

async function complete(want: Partial<Inputs>, local: CheckContext): Promise<{ inputs: Partial<Inputs>; issues: Issue[] }> {
  const issues: Issue[] = [];
  const { file, build } = want;
  const digest =
    file === undefined ? want.digest : await pinDigest({ path: "file", digest: want.digest }, () => local.digestFile(file), issues);
  const context =
    build && (await pinDigest({ path: "build.context", digest: build.digest }, () => local.digestDirectory(build.context), issues));
  return {
    inputs: {
      ...want,
      ...(digest !== undefined && { digest }),
      ...(build && context !== undefined && { build: { ...build, digest: context } }),
    },
    issues,
  };
}

function constraints(want: Partial<Inputs>, { given }: CheckContext): Issue[] {
  const { nodes = [], connections = [], memory } = want;
  const [first = ""] = nodes;
  const sources = ["file", "url", "build", "image"];
  // what has no source is where it was found, by its digest
  const named = given.has("digest") && !sources.some((source) => given.has(source));
  const issues = [...(named ? [] : oneOf(sources, given)), ...readyIssues(memory?.ready, "memory.ready")];
  for (const [index, node] of nodes.entries()) {
    if (parseHypervisor(node).kind !== parseHypervisor(first).kind)
      issues.push({
        path: `nodes[${index}]`,
        message: `is ${node}, and the first is ${first}; an image is for one kind, so declare another for these`,
      });
    if (want.connections && !connections.some(({ hypervisor }) => hypervisor === node))
      issues.push({ path: `nodes[${index}]`, message: `is ${node}, and how to reach it is not said; give the Hypervisor itself` });
  }
  if (!memory || !want.nodes) return issues;
  if (nodes.length === 0)
    issues.push({ path: "memory", message: "is saved on a node, and `nodes` is empty; name the node that boots the image" });
  else if (parseHypervisor(first).kind !== "kvm")
    issues.push({ path: "memory", message: "is for kvm only; a container has none, so remove it" });
  if (memory.builder !== undefined && !nodes.includes(memory.builder))
    issues.push({
      path: "memory.builder",
      message: `is ${memory.builder}, which is none of \`nodes\`; add it there, or choose one of them`,
    });
  return issues;
}

/** Of the nodes that are named, in their order. */
function reaches({ nodes, connections }: Inputs): Reach[] {
  return nodes.flatMap((node) => connections.find(({ hypervisor }) => hypervisor === node) ?? []);
}

function builderOf({ memory, nodes }: Inputs): string | undefined {
  return memory?.builder ?? nodes[0];
}

interface Found {
  reach: Reach;
  image: ImageStatus | undefined;
  memory: OverlayStatus | undefined;
}

async function lookAt(known: Inputs, reach: Reach, context: Context): Promise<Found> {
  const agent = await context.agent(reach.connection);
  const [image, memory] = await Promise.all([
    agent.image(known.name, known.owner),
    known.memory && agent.overlay(memoryName(known), known.owner),
  ]);
  return { reach, image, memory };
}

/** What the image is: pinned, or known from before and still to be had, or whatever its source gives now. */
async function identify(want: Inputs, old: Known | undefined, context: Context): Promise<{ digest: string; open(): Promise<LocalBlob> }> {
  const sameSource = old !== undefined && JSON.stringify(sourceOf(old)) === JSON.stringify(sourceOf(want));
  const earlier = want.digest ?? (sameSource ? old.digest : undefined);
  let blob: Promise<LocalBlob> | undefined;
  const open = (): Promise<LocalBlob> => (blob ??= context.local.acquire(mustSource(want), { ...context, digest: want.digest }));
  if (
    earlier === undefined ||
    (want.digest === undefined && !(await anyHas(earlier, [...reaches(want), ...reaches(old ?? want)], context)))
  ) {
    return { digest: (await open()).digest, open };
  }
  return { digest: earlier, open };
}

function mustSource(want: Inputs): ImageSource {
  const source = toImageSource(want);
  if (source) return source;
  throw new CloudletError("NOT_FOUND", `image "${want.name}" has no source, and no node that is reached has it`, {
    fix: "set one of file, url, build and image",
  });
}

function sourceOf({ file, url, build, image }: Inputs): unknown[] {
  return [file, url, build?.context, build?.command, build?.digest, image];
}

/** On no node at all, what is known from before stands. */
async function anyHas(digest: string, nodes: Reach[], context: Context): Promise<boolean> {
  if (nodes.length === 0) return true;
  for (const { connection } of nodes) {
    const there = await context.agent(connection).then(
      (agent) => agent.hasBlob(digest),
      () => false,
    );
    if (there) return true;
  }
  return false;
}

interface Placing {
  want: Inputs;
  memory: z.infer<typeof memorySchema>;
  old: Known | undefined;
  digest: string;
  givers: Reach[];
}

/** Saved on one node, taken by the others. */
async function placeMemory({ want, memory, old, digest, givers }: Placing, context: Context): Promise<void> {
  const [name, owner] = [memoryName(want), want.owner];
  const builder = reaches(want).find(({ hypervisor }) => hypervisor === builderOf(want));
  if (builder === undefined) return;
  const makings = makingsOf(memory, digest);
  const same =
    old?.memory !== undefined && old.digest !== undefined && JSON.stringify(makingsOf(old.memory, old.digest)) === JSON.stringify(makings);
  const saved = await keepOrBuild({ name, owner, builder, makings, earlier: same ? old.memoryDigest : undefined, givers }, context);
  for (const taker of reaches(want)) {
    if (taker.hypervisor === builder.hypervisor) continue;
    await bring(
      { what: `memory of image "${want.name}"`, digests: [saved.digest], taker, givers: [builder, ...givers] },
      undefined,
      context,
    );
    const agent = await context.agent(taker.connection);
    await agent.run("overlay.keep", { name, owner, digest: saved.digest }, follow(context));
  }
}

function makingsOf(memory: z.infer<typeof memorySchema>, base: string): Makings {
  const resources = { cores: memory.cores, memoryMib: memory.sizeMib, diskMib: memory.diskMib };
  return { kind: "kvm", base, resources, files: [], environment: {}, ready: toReady(memory.ready) };
}

/** Nodes that are no longer named, and a memory that is no longer wanted. */
async function leave(old: Known, want: Inputs, context: Context): Promise<void> {
  for (const reach of reaches(old)) {
    const stays = want.nodes.includes(reach.hypervisor);
    if (stays && (!old.memory || want.memory)) continue;
    await release({ have: old, reach, image: !stays }, context);
  }
}

/** The memory, and the image itself where the node is to lose it. */
async function release({ have, reach, image }: { have: Known; reach: Reach; image: boolean }, context: Context): Promise<void> {
  await removeOrForget({ what: `image "${have.name}" on ${nodeOf(reach)}`, onUnreachable: have.onUnreachable, context }, async () => {
    const agent = await context.agent(reach.connection);
    if (have.memory) await agent.run("overlay.release", { name: memoryName(have), owner: have.owner }, follow(context));
    if (image) await agent.run("image.release", { name: have.name, owner: have.owner }, follow(context));
  });
}
