import { open } from "node:fs/promises";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import type { Run } from "../process.ts";
import type { ImageStatus } from "../protocol.ts";

export type ImageFacts = Pick<ImageStatus, "kind" | "format" | "virtualBytes">;

/** What of `qemu-img info` matters here. */
const infoSchema = z.object({
  format: z.string(),
  "virtual-size": z.int(),
  encrypted: z.boolean().default(false),
  "backing-filename": z.string().optional(),
  "format-specific": z
    .object({ data: z.object({ "data-file": z.string().optional(), extents: z.array(z.object({ filename: z.string() })).optional() }) })
    .optional(),
});

const diskFormats = ["qcow2", "raw", "vmdk", "vhdx"] as const;
const infoMillis = 60_000;
const listMillis = 600_000;
const headBytes = 4096;

/** Finds out what an image is by looking into it, and refuses what refers to other files or is nothing that boots. */
export async function detectImage(run: Run, file: string, signal: AbortSignal): Promise<ImageFacts> {
  const head = await headOf(file);
  if (isArchive(head)) return { kind: "lxd", format: "tar", virtualBytes: await archivedBytes(run, file, signal) };
  refuseTextDescriptor(head);
  const { stdout } = await run(["qemu-img", "info", "--output=json", file], { timeoutMillis: infoMillis, signal });
  const facts = imageFacts(JSON.parse(stdout), file);
  if (facts.format === "raw" && !(head[510] === 0x55 && head[511] === 0xaa))
    throw refused("is of no known format: neither qcow2, vmdk, vhdx nor a tar, and no raw disk with a boot sector");
  return facts;
}

/** Pure: what `qemu-img info` says, checked. */
export function imageFacts(info: unknown, file: string): ImageFacts {
  const parsed = infoSchema.safeParse(info);
  if (!parsed.success) throw refused(`is described in a way that is not understood: ${parsed.error.issues[0]?.message ?? ""}`);
  const { data } = parsed;
  const format = diskFormats.find((known) => known === data.format);
  if (format === undefined) throw refused(`is of format ${data.format}, which is not one of ${diskFormats.join(", ")}`);
  if (data.encrypted) throw refused("is encrypted");
  if (data["backing-filename"] !== undefined) throw refused(`has the backing file ${data["backing-filename"]}, which is not part of it`);
  const specific = data["format-specific"]?.data;
  if (specific?.["data-file"] !== undefined) throw refused(`keeps its data in another file, ${specific["data-file"]}`);
  const other = specific?.extents?.find(({ filename }) => filename !== file);
  if (other !== undefined) throw refused(`refers to another file, ${other.filename}`);
  return { kind: "kvm", format, virtualBytes: data["virtual-size"] };
}

/** A vmdk descriptor is only text: just opening it would open whatever files it names. */
function refuseTextDescriptor(head: Buffer): void {
  if (/^\s*(# Disk DescriptorFile|version=)/.test(head.toString("latin1", 0, 64)))
    throw refused("is a vmdk descriptor that refers to other files");
}

function isArchive(head: Buffer): boolean {
  const magics = [
    [0x1f, 0x8b],
    [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00],
    [0x28, 0xb5, 0x2f, 0xfd],
    [0x42, 0x5a, 0x68],
  ];
  return head.toString("latin1", 257, 262) === "ustar" || magics.some((magic) => magic.every((byte, index) => head[index] === byte));
}

async function archivedBytes(run: Run, file: string, signal: AbortSignal): Promise<number> {
  const { stdout } = await run(["tar", "--list", "--verbose", "--numeric-owner", "--file", file], {
    timeoutMillis: listMillis,
    signal,
  }).catch((cause: unknown) => {
    throw refused(`is compressed and holds no tar: ${cause instanceof Error ? cause.message : String(cause)}`);
  });
  const lines = stdout.split("\n").filter(Boolean);
  // LXD's own form, or a root file system
  if (!lines.some((line) => / (\.?\/)?(metadata\.yaml$|(bin|etc|sbin|usr)(\/| -> ))/.test(line)))
    throw refused("is a tar of neither an LXD image nor a root file system");
  return lines.reduce((sum, line) => sum + Number(/^\S+ +\S+ +(\d+) /.exec(line)?.[1] ?? 0), 0);
}

async function headOf(file: string): Promise<Buffer> {
  const handle = await open(file, "r");
  try {
    const buffer = Buffer.alloc(headBytes);
    await handle.read(buffer, 0, headBytes, 0);
    return buffer;
  } finally {
    await handle.close();
  }
}

function refused(what: string): CloudletError {
  return new CloudletError("REFUSED", `the image ${what}`, {
    fix: "convert it with `qemu-img convert` to a qcow2 that stands alone, or give a tar of a container's image",
  });
}
