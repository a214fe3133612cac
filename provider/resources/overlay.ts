import { z } from "zod";
import { digestSchema, kindSchema, machineSchema, type Makings, type OverlayStatus } from "../agent/protocol.ts";
import type { Context, LocalBlob } from "../core/context.ts";
import { defineResource, type CheckContext, type Issue } from "../core/define.ts";
import { CloudletError } from "../core/errors.ts";
import { abilitiesOf } from "../hypervisors/types.ts";
import { keepOrBuild } from "./building.ts";
import {
  environmentField,
  filesField,
  loginField,
  loginIssues,
  readyIssues,
  readySchema,
  readyText,
  resourcesSchema,
  toFiles,
  toLogin,
  toReady,
  userDataField,
} from "./guest.ts";
import {
  baseField,
  baseIssues,
  baseSourceField,
  digestOf,
  oneOf,
  pinDigest,
  sourcesField,
  toImageSource,
  toOverlaySource,
  type Reach,
} from "./images.ts";
import {
  adoptedPlace,
  connectionField,
  hypervisorField,
  nameField,
  nodeAddressField,
  onUnreachableField,
  ownerField,
  parseAdopted,
  parseHypervisor,
  removeOrForget,
} from "./shared.ts";
import { bring, follow, nodeOf } from "./supply.ts";

const inputs = z.strictObject({
  name: nameField.describe("Name of the overlay. Default: the Pulumi name.").meta({ replaces: true }),
  owner: ownerField,
  base: baseField
    .optional()
    .describe(
      "The image that it is built over. One that comes from `file` or `image` was built already, and is refused where its base is another.",
    ),
  baseSource: baseSourceField,
  sources: sourcesField,
  builder: hypervisorField.describe("The Hypervisor that builds and keeps it. A change has the new one take it over."),
  connection: connectionField,
  nodeAddress: nodeAddressField,
  files: filesField.meta({ origin: true }),
  environment: environmentField.meta({ origin: true }),
  userData: userDataField.meta({ origin: true }),
  script: z
    .string()
    .min(1)
    .max(256 * 1024)
    .optional()
    .describe("Shell script run in the guest once the files are there.")
    .meta({ origin: true }),
  login: loginField,
  resources: resourcesSchema
    .optional()
    .describe(
      "What the guest has while it is built; cloudlets that have the same resume from its memory. Default: the base's memory, else that of a cloudlet.",
    )
    .meta({ computed: true }),
  ready: readySchema.optional().describe(`When it is saved. ${readyText} Required where it is built.`).meta({ origin: true }),
  file: z
    .string()
    .min(1)
    .optional()
    .describe("Path on the operator's machine of an overlay that was exported, instead of building one.")
    .meta({ origin: true }),
  image: z
    .string()
    .min(1)
    .optional()
    .describe("OCI reference of an overlay that was pushed, instead of building one.")
    .meta({ origin: true }),
  digest: digestSchema
    .optional()
    .describe(
      "Digest of the overlay's manifest, its identity. Set it to pin what comes from `file` or `image`; alone it names an overlay that the builder has.",
    )
    .meta({ computed: true }),
  onUnreachable: onUnreachableField,
});
type Inputs = z.infer<typeof inputs>;

const outputs = z.strictObject({
  digest: digestSchema.describe("Digest of the overlay's manifest, its identity."),
  kind: kindSchema.describe("The kind of hypervisor it is for."),
  baseDigest: digestSchema.describe("SHA-256 of the image that it stands on."),
  resources: resourcesSchema.describe("What the guest had while it was built."),
  bytes: z.int().describe("Bytes that a node without it takes."),
  diskBytes: z.int().describe("Changed blocks of the disk, decompressed."),
  memoryBytes: z.int().describe("Changed pages of the memory, decompressed."),
  machine: machineSchema.optional().describe("What the saved memory can be resumed on; absent where there is none."),
  node: z.string().describe("Name of the node that keeps it."),
});
type Known = Inputs & Partial<z.infer<typeof outputs>>;

/** The delta of an application over a base: disk, memory and device state at one instant. */
export const overlay = defineResource({
  token: "cloudlet:index:Overlay",
  description:
    "The delta of an application over a base: disk, memory and device state at one instant, built once on a node, from which any number of cloudlets start.",
  inputs,
  outputs,
  identity: ({ name }) => name,
  complete,
  constraints,

  predict: ({ builder, base, resources }) => ({
    ...(builder !== undefined && parseHypervisor(builder)),
    ...(base?.digest !== undefined && { baseDigest: base.digest }),
    ...(resources && { resources }),
  }),

  async adopt({ id, owner }, context) {
    const [name = "", ...place] = parseAdopted(id, "NAME@NODE/KIND[@HOST]");
    const { hypervisor: builder, ...reach } = adoptedPlace(place);
    const agent = await context.agent(reach.connection);
    const found = await agent.overlay(name, owner);
    return found && toState(inputs.parse({ name, owner, builder, ...reach, base: { digest: found.base } }), found);
  },

  async observe(known, context) {
    const agent = await context.agent(known.connection);
    const found = await agent.overlay(known.name, known.owner);
    return found && toState(known, found);
  },

  async apply(want, old, context) {
    const kept = isAdopted(want) ? await adopt(want, context) : await build(want, old, context);
    if (want.base?.digest !== undefined && kept.base !== want.base.digest) {
      await release(want, context);
      throw new CloudletError(
        "REFUSED",
        `overlay "${want.name}" was built over base ${kept.base}, and its base here is ${want.base.digest}`,
        {
          fix: "give the base that it was built over, or another overlay",
        },
      );
    }
    if (old && old.builder !== want.builder) await removeFrom(old, context);
  },

  remove: removeFrom,
});

async function complete(want: Partial<Inputs>, local: CheckContext): Promise<{ inputs: Partial<Inputs>; issues: Issue[] }> {
  const issues: Issue[] = [];
  const { base, file, resources } = want;
  const baseFile = base?.file;
  const baseDigest =
    baseFile === undefined
      ? base?.digest
      : await pinDigest({ path: "base.file", digest: base?.digest }, () => local.digestFile(baseFile), issues);
  const digest =
    file === undefined ? want.digest : await pinDigest({ path: "file", digest: want.digest }, () => local.digestOverlay(file), issues);
  const built = !isTaken(local.given);
  return {
    inputs: {
      ...want,
      ...(base && baseDigest !== undefined && { base: { ...base, digest: baseDigest } }),
      ...(digest !== undefined && { digest }),
      ...(built && !local.given.has("resources") && { resources: defaultResources(base) }),
      ...(resources && { resources }),
    },
    issues,
  };
}

function defaultResources(base: Inputs["base"]): z.infer<typeof resourcesSchema> {
  const memory = base?.memory;
  return memory ? { cores: memory.cores, memoryMib: memory.sizeMib, diskMib: memory.diskMib } : resourcesSchema.parse({});
}

const adoptedWays = ["file", "image"];

/** Built already: it comes from elsewhere, or is on its builder, known by its digest. */
function isTaken(given: ReadonlySet<string>): boolean {
  return adoptedWays.some((way) => given.has(way)) || (given.has("digest") && !given.has("ready"));
}

/** Where it is built elsewhere, nothing of how it is built may be said here. */
const buildingFields = ["files", "environment", "userData", "script", "login", "resources", "ready"] as const;

function constraints(want: Partial<Inputs>, { given }: CheckContext): Issue[] {
  const issues = [...baseIssues(want), ...readyIssues(want.ready), ...kindIssues(want), ...loginIssues(want.login)];
  if (isTaken(given)) {
    if (!given.has("digest")) issues.push(...oneOf(adoptedWays, given));
    for (const field of buildingFields) {
      // an import says what it has
      if (isGiven(want[field]) && !(field === "resources" && !adoptedWays.some((way) => given.has(way))))
        issues.push({ path: field, message: "is for an overlay that is built, and this one was built already; remove it" });
    }
    return issues;
  }
  for (const field of ["base", "ready"])
    if (!given.has(field)) issues.push({ path: field, message: "is missing; set it, or name a finished overlay in `file` or `image`" });
  const memory = want.base?.memory;
  const pairs =
    memory &&
    want.resources &&
    ([
      ["cores", memory.cores],
      ["memoryMib", memory.sizeMib],
      ["diskMib", memory.diskMib],
    ] as const);
  for (const [field, value] of pairs ?? []) {
    if (want.resources?.[field] !== value)
      issues.push({
        path: `resources.${field}`,
        message: `is ${want.resources?.[field]}, and the base's saved memory has ${value}; leave \`resources\` out`,
      });
  }
  return issues;
}

function isGiven(value: unknown): boolean {
  if (Array.isArray(value)) return value.length > 0;
  return value !== undefined && (typeof value !== "object" || value === null || Object.keys(value).length > 0);
}

function kindIssues({ builder, userData, login, base }: Partial<Inputs>): Issue[] {
  if (builder === undefined) return [];
  const { kind } = parseHypervisor(builder);
  const issues: Issue[] = [];
  if (userData !== undefined && !abilitiesOf[kind].includes("userData"))
    issues.push({ path: "userData", message: `a hypervisor of kind "${kind}" has no "userData"; remove it, or use the other kind` });
  if (login !== undefined && kind !== "kvm")
    issues.push({ path: "login", message: `is for virtual machines, and ${builder} reaches into its containers by itself; remove it` });
  if (base?.memory && kind !== "kvm")
    issues.push({ path: "base", message: `has saved memory, and ${builder} is ${kind}; use a base for ${kind}` });
  return issues;
}

function isAdopted({ ready }: Inputs): boolean {
  return ready === undefined;
}

function reachOf({ builder, connection, nodeAddress }: Inputs): Reach {
  return { hypervisor: builder, connection, nodeAddress };
}

function toState(known: Inputs, found: OverlayStatus): Known & z.infer<typeof outputs> {
  const base = known.base && { ...known.base, digest: found.base };
  return {
    ...inputs.strip().parse(known),
    ...(base && { base }),
    digest: found.digest,
    kind: found.kind,
    baseDigest: found.base,
    resources: found.resources,
    bytes: found.bytes,
    diskBytes: found.diskBytes,
    memoryBytes: found.memoryBytes,
    ...(found.machine && { machine: found.machine }),
    node: nodeOf(reachOf(known)),
  };
}

async function adopt(want: Inputs, context: Context): Promise<OverlayStatus> {
  const agent = await context.agent(want.connection);
  const source = toOverlaySource(want);
  let acquired: Promise<{ digest: string; blobs: LocalBlob[] }> | undefined;
  const acquire = (): Promise<{ digest: string; blobs: LocalBlob[] }> => {
    if (source) return (acquired ??= context.local.acquireOverlay(source, { ...context, digest: want.digest }));
    throw new CloudletError("NOT_FOUND", `no node that has the overlay "${want.name}" can be reached`, {
      fix: "say what it is built from, or name a finished overlay in `file` or `image`",
    });
  };
  const digest = want.digest ?? (await acquire()).digest;
  const wanted = { what: `overlay "${want.name}"`, digests: [digest], taker: reachOf(want), givers: want.sources };
  await bring(wanted, async () => (await acquire()).blobs, context);
  return agent.run("overlay.keep", { name: want.name, owner: want.owner, digest }, follow(context));
}

async function build(want: Inputs, old: Known | undefined, context: Context): Promise<OverlayStatus> {
  const makings = makingsOf(want);
  const same = old !== undefined && !isAdopted(old) && JSON.stringify(makingsOf(old)) === JSON.stringify(makings);
  const builder = reachOf(want);
  const what = `base of overlay "${want.name}"`;
  const { base } = want;
  if (base) {
    const local = async (): Promise<LocalBlob[]> => [await openBase(want, context)];
    await bring({ what, digests: [makings.base], taker: builder, givers: want.sources }, local, context);
    if (base.memory) await bring({ what, digests: [base.memory.digest], taker: builder, givers: want.sources }, undefined, context);
  }
  const givers = old ? [reachOf(old)] : [];
  const kept = { name: want.name, owner: want.owner, builder, makings, ...(want.login && { login: toLogin(want.login) }) };
  return keepOrBuild({ ...kept, earlier: same ? old.digest : undefined, givers }, context);
}

async function openBase(want: Inputs, context: Context): Promise<LocalBlob> {
  const source = want.base?.file !== undefined ? { file: want.base.file } : want.baseSource && toImageSource(want.baseSource);
  if (source) return context.local.acquire(source, { ...context, digest: want.base?.digest });
  throw new CloudletError("NOT_FOUND", `no node that has the base "${want.base?.image}" of overlay "${want.name}" can be reached`, {
    fix: "give the BaseImage itself as `base`, or place it on the builder's node first",
  });
}

function makingsOf({ name, base, builder, resources, ready, files, environment, userData, script }: Inputs): Makings {
  if (!base || !ready || !resources) throw new CloudletError("BUG", `overlay "${name}" lacks what it is built from after check`);
  return {
    kind: parseHypervisor(builder).kind,
    base: digestOf(base, `the base of overlay "${name}"`),
    ...(base.memory && { parent: base.memory.digest }),
    resources,
    files: toFiles(files),
    environment,
    ...(script !== undefined && { script }),
    ...(userData !== undefined && { userData }),
    ready: toReady(ready),
  };
}

async function release(have: Inputs, context: Context): Promise<void> {
  const agent = await context.agent(have.connection);
  await agent.run("overlay.release", { name: have.name, owner: have.owner }, follow(context));
}

async function removeFrom(have: Inputs, context: Context): Promise<void> {
  await removeOrForget({ what: `overlay "${have.name}"`, onUnreachable: have.onUnreachable, context }, () => release(have, context));
}
