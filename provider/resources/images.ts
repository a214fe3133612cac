import { z } from "zod";
import { digestSchema } from "../agent/protocol.ts";
import type { ImageSource, OverlaySource } from "../core/context.ts";
import type { Issue } from "../core/define.ts";
import { CloudletError, describeError } from "../core/errors.ts";
import { connectionSchema, hypervisorField, nameField } from "./shared.ts";

/** A hypervisor, and how to reach its node. */
export const reachSchema = z.strictObject({
  hypervisor: hypervisorField.describe("Id of the hypervisor."),
  connection: connectionSchema.describe("How to reach its node."),
  nodeAddress: z.string().min(1).describe("Address of its node."),
});
export type Reach = z.infer<typeof reachSchema>;

export const sourcesField = z
  .array(reachSchema)
  .default([])
  .describe("Nodes that may hand on what is missing here; the SDK takes them from the images that are named.")
  .meta({ internal: true, carried: true });

/** Where an image comes from: exactly one of them. */
export const imageSourceFields = {
  file: z
    .string()
    .min(1)
    .optional()
    .describe(
      "Path on the operator's machine: a disk image (qcow2, raw, vmdk or vhdx) for kvm, a root file system or LXD image tar for lxd.",
    )
    .meta({ origin: true }),
  url: z
    .string()
    .regex(/^https?:\/\//, 'must begin with "https://" or "http://"')
    .optional()
    .describe("Where the operator's machine downloads it from.")
    .meta({ origin: true }),
  build: z
    .strictObject({
      context: z.string().min(1).describe("Directory on the operator's machine.").meta({ origin: true }),
      command: z
        .string()
        .min(1)
        .describe(
          "Shell command run in a copy of that directory; it writes the image to the path in $CLOUDLET_IMAGE, or makes a directory there, a root file system.",
        ),
      digest: digestSchema.optional().describe("SHA-256 of the directory's deterministic tar. Default: computed."),
    })
    .optional()
    .describe("A directory that the operator's machine builds it from.")
    .meta({ origin: true }),
  image: z
    .string()
    .min(1)
    .optional()
    .describe(
      "OCI reference that the operator's machine pulls it from: a container image, for lxd (of several platforms linux/amd64), or an artefact with one file.",
    )
    .meta({ origin: true }),
};
const imageSourceSchema = z.strictObject(imageSourceFields);

export const baseSourceField = imageSourceSchema
  .optional()
  .describe("Where the operator's machine has the base from; the SDK takes it from the BaseImage.")
  .meta({ internal: true, carried: true });

export const overlaySourceField = z
  .strictObject({
    file: z.string().optional().describe("Path of an overlay that was exported."),
    image: z.string().optional().describe("OCI reference of an overlay that was pushed."),
  })
  .optional()
  .describe("Where the operator's machine has the overlay from; the SDK takes it from the Overlay.")
  .meta({ internal: true, carried: true });

/** A base: a file of the operator's, or a BaseImage. */
export const baseField = z.strictObject({
  file: z
    .string()
    .min(1)
    .optional()
    .describe("Path on the operator's machine: a bootable disk image (qcow2 or raw) for kvm, a root file system or LXD image tar for lxd.")
    .meta({ origin: true }),
  image: nameField.optional().describe("Name of the BaseImage; give the resource itself instead.").meta({ origin: true }),
  digest: digestSchema
    .optional()
    .describe("SHA-256 of the image. Default: computed from `file`; set it to pin the content. Alone it names an image that the node has."),
  memory: z
    .strictObject({
      digest: digestSchema.describe("Digest of the saved memory."),
      cores: z.int().describe("Processor cores of the guest that was saved."),
      sizeMib: z.int().describe("Its memory in MiB."),
      diskMib: z.int().describe("Size of its disk in MiB."),
    })
    .optional()
    .describe("The BaseImage's saved memory; the SDK takes it from the resource."),
});
export type Base = z.infer<typeof baseField>;

/** The memory of a base is an overlay without an application, under a name that no Overlay can have. */
export function memoryName({ name }: { name: string }): string {
  return `${name}.memory`;
}

export function isMemoryName(name: string): boolean {
  return name.endsWith(".memory");
}

type SourceFields = z.infer<typeof imageSourceSchema>;

/** undefined where none is given. */
export function toImageSource({ file, url, build, image }: SourceFields): ImageSource | undefined {
  if (file !== undefined) return { file };
  if (url !== undefined) return { url };
  if (build !== undefined) return { build: { context: build.context, command: build.command } };
  return image === undefined ? undefined : { image };
}

export function toOverlaySource({ file, image }: { file?: string | undefined; image?: string | undefined }): OverlaySource | undefined {
  if (file !== undefined) return { file };
  return image === undefined ? undefined : { image };
}

export function oneOf(names: readonly string[], given: ReadonlySet<string>): Issue[] {
  const present = names.filter((name) => given.has(name));
  if (present.length === 1) return [];
  const words = `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
  return present.length === 0
    ? [{ path: names[0] ?? "", message: `is missing, as are the others of ${words}; set exactly one` }]
    : [{ path: present[1] ?? "", message: `stands beside \`${present[0]}\`; set exactly one of ${words}` }];
}

export function baseIssues({ base }: { base?: Base | undefined }): Issue[] {
  if (!base) return [];
  if (base.image === undefined)
    return base.file === undefined && base.digest === undefined
      ? [{ path: "base.file", message: "is missing; name a file, or give a BaseImage as `base`" }]
      : [];
  if (base.file !== undefined) return [{ path: "base.image", message: "stands beside `file`; set one of them" }];
  return base.digest === undefined
    ? [{ path: "base.digest", message: "is missing; give the BaseImage itself as `base`, or its digest" }]
    : [];
}

/** Digest of what is on the operator's machine, compared with the one that is pinned; what is wrong goes to `issues`. */
export async function pinDigest(
  { path, digest: pinned }: { path: string; digest: string | undefined },
  compute: () => Promise<string>,
  issues: Issue[],
): Promise<string | undefined> {
  try {
    const digest = await compute();
    if (pinned === undefined || pinned === digest) return digest;
    issues.push({
      path: path.replace(/[^.]+$/, "digest"),
      message: `is ${pinned}, and the content has ${digest}; correct the digest or the content`,
    });
  } catch (error) {
    issues.push({ path, message: describeError(error) });
  }
  return pinned;
}

/** What check has filled in. */
export function digestOf({ digest }: { digest?: string | undefined }, what: string): string {
  if (digest === undefined) throw new CloudletError("BUG", `${what} has no digest after check`);
  return digest;
}
