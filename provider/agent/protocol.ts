import { createHash } from "node:crypto";
import { z } from "zod";
import { budgetSchema, moveReportSchema } from "./handoffProtocol.ts";

/** Raised when a newer provider cannot talk to an older agent; the provider then brings the agent up to date. */
export const protocolVersion = 1;

/** Where things are on a node. */
export const paths = {
  root: "/var/lib/cloudlet",
  socket: "/run/cloudlet/agent.sock",
  commission: "/var/lib/cloudlet/commission.json",
  log: "/var/log/cloudlet-agent.log",
} as const;

/** The port on which an agent accepts data from another agent while a move is under way. */
export const dataPort = 7443;

/** The user that hypervisor processes run as. */
export const guestUser = "cloudlet";

export const digestSchema = z.string().regex(/^[0-9a-f]{64}$/, "must be a SHA-256 in lower-case hex");
export const idSchema = z
  .string()
  .regex(/^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(\/[a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$/, "must be lower-case letters, digits, dots and dashes")
  .max(120);

/** A name that LXD, cgroups and file systems all accept, readable and unique: `cluster/name` → `cluster-name-1a2b3c4d`. */
export function guestName(id: string): string {
  const slug = id
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^[^a-z]+/, "")
    .slice(0, 40)
    .replace(/-+$/, "");
  return `${slug || "c"}-${createHash("sha256").update(id).digest("hex").slice(0, 8)}`;
}

// --- hypervisor ------------------------------------------------------------------------------------

export const kindSchema = z.enum(["kvm", "lxd"]);
export type Kind = z.infer<typeof kindSchema>;

export const hypervisorSpecSchema = z.object({
  kind: kindSchema,
  owner: z.string(),
  /** A remote or TCP-only LXD; without it the LXD on the node's unix socket. */
  lxd: z.object({ address: z.string(), clientCertificate: z.string(), clientKey: z.string(), serverCertificate: z.string() }).optional(),
});
export type HypervisorSpec = z.infer<typeof hypervisorSpecSchema>;

export const hypervisorStatusSchema = z.object({
  kind: kindSchema.describe("`kvm` or `lxd`."),
  owners: z.array(z.string()).describe("Every project/stack that declared it; the last one to go removes it."),
  version: z.string().describe("Version that the hypervisor reports."),
  accelerator: z.enum(["kvm", "tcg", "none"]).describe("kvm = hardware, tcg = software emulation, none = containers."),
  machineTypes: z.array(z.string()).describe("QEMU's machine types there, aliases left out; none for containers."),
  abilities: z.array(z.string()).describe("What its cloudlets can have or do that those of other kinds may lack."),
  cloudlets: z.array(z.string()).describe("Ids of the cloudlets that this node owns."),
});
export type HypervisorStatus = z.infer<typeof hypervisorStatusSchema>;

// --- cloudlets -------------------------------------------------------------------------------------

export const portSchema = z.object({
  port: z.int().describe("Port inside the cloudlet."),
  hostPort: z.int().describe("Port on the node."),
  protocol: z.enum(["tcp", "udp"]).describe("Transport protocol."),
});
export const fileSchema = z.object({ path: z.string(), content: z.string().describe("base64"), mode: z.int() });

export const readySchema = z.object({
  tcp: z.object({ port: z.int() }).optional(),
  http: z.object({ port: z.int(), path: z.string() }).optional(),
  log: z.string().optional().describe("A regular expression looked for in the console log."),
  timeoutSeconds: z.int(),
});
export type Ready = z.infer<typeof readySchema>;

// --- synthesis -------------------------------------------------------------------------------------

/** What the saved memory of a guest can be resumed on. */
export const machineSchema = z.strictObject({
  type: z.string().min(1).describe("QEMU's machine type, pinned."),
  accelerator: z.enum(["kvm", "tcg"]).describe("How the guest was executed: kvm = hardware, tcg = software emulation."),
  cpu: z
    .strictObject({
      model: z.string().min(1).describe("QEMU's processor model."),
      flags: z
        .array(z.string())
        .describe("Flags that the node's processor must have, in the words of /proc/cpuinfo; none under software emulation."),
    })
    .describe("The processor that the guest has seen."),
  cores: z.int().min(1).describe("Its processor cores."),
  memoryMib: z.int().min(1).describe("Its memory in MiB."),
});
export type Machine = z.infer<typeof machineSchema>;

/** The rungs of the start ladder. `resume`: all local. `lazy`: resumed while the overlay is still coming. `boot`: from the disk. */
export const rungSchema = z.enum(["resume", "lazy", "boot"]);
export type Rung = z.infer<typeof rungSchema>;

/** What the start of a cloudlet cost, and how it went. */
export const provisionSchema = z.object({
  rung: rungSchema.describe("`resume`: all was there. `lazy`: it was resumed while its overlay was still coming. `boot`: from its disk."),
  reason: z.string().describe("Why this rung and no better one."),
  totalMillis: z.int().describe("Until nothing was missing on the node any more."),
  firstReplyMillis: z.int().describe("Until the first successful readiness check."),
  bytesTransferred: z.int().describe("Bytes that came to the node for this start."),
  bytesAvoided: z.int().describe("Bytes of base and overlay that the node already had."),
  verified: z.boolean().describe("Whether every byte that was used had been compared with its digest."),
});
export type Provision = z.infer<typeof provisionSchema>;

/** A node that hands out blobs: how another node's agent reaches it. The token is secret and travels through SSH only. */
export const offerSchema = z.object({
  node: z.string(),
  addresses: z.array(z.string()).describe("Tried in order."),
  port: z.int(),
  certificate: digestSchema.describe("SHA-256 of its certificate in DER form."),
  token: z.string(),
  /** Port of the taker's own loopback that leads to it, for as long as the operator is there; tried when no address answers. */
  relayPort: z.int().optional(),
});
export type Offer = z.infer<typeof offerSchema>;

/** What an overlay is built from; the same makings give the same overlay, which is then not built again. */
export const makingsSchema = z.object({
  kind: kindSchema,
  base: digestSchema,
  /** The base's own memory, which the build resumes from. */
  parent: digestSchema.optional(),
  resources: z.object({ cores: z.int(), memoryMib: z.int(), diskMib: z.int() }),
  files: z.array(z.object({ path: z.string(), content: z.string().describe("base64"), mode: z.int() })),
  environment: z.record(z.string(), z.string()),
  /** Shell script run in the guest once the files are there. */
  script: z.string().optional(),
  userData: z.string().optional(),
  ready: z.lazy(() => readySchema),
});
export type Makings = z.infer<typeof makingsSchema>;

/** How to log in to a guest that an overlay is built in; no part of what comes of it. Secret. */
export const loginSchema = z.object({
  ssh: z.object({ user: z.string(), port: z.int(), privateKey: z.string() }).optional(),
  /** The shell or login on the first serial port. */
  console: z.object({ user: z.string(), password: z.string().optional() }).optional(),
});
export type Login = z.infer<typeof loginSchema>;

/** An overlay on a node. */
export const overlayStatusSchema = z.object({
  digest: digestSchema.describe("Of its manifest: its identity."),
  kind: kindSchema,
  base: digestSchema,
  parent: digestSchema.optional(),
  resources: z.object({ cores: z.int(), memoryMib: z.int(), diskMib: z.int() }),
  machine: machineSchema.optional(),
  bytes: z.int().describe("Size of its blobs."),
  diskBytes: z.int().describe("Changed blocks of the disk, decompressed."),
  memoryBytes: z.int().describe("Changed pages of the memory, decompressed."),
  buildMillis: z.int().optional(),
});
export type OverlayStatus = z.infer<typeof overlayStatusSchema>;

/** How what is kept on a node came there: bytes that were sent, and by whom; a node's name, or `operator`. */
export const arrivalSchema = z.object({ bytesTransferred: z.int(), from: z.string() });
export type Arrival = z.infer<typeof arrivalSchema>;

/** An image on a node. */
export const imageStatusSchema = z.object({
  digest: digestSchema,
  kind: kindSchema,
  format: z.enum(["qcow2", "raw", "vmdk", "vhdx", "tar"]),
  bytes: z.int(),
  virtualBytes: z.int(),
  owners: z.array(z.string()),
  arrival: arrivalSchema.optional().describe("As it was when this digest was kept last; absent where nothing had to be sent."),
});
export type ImageStatus = z.infer<typeof imageStatusSchema>;

/** What of a cloudlet is on a node that it may move to: blobs and recombined overlay, held for it there. */
export const preseedSpecSchema = z.object({
  id: idSchema,
  owner: z.string(),
  base: digestSchema,
  build: digestSchema.optional(),
  overlay: digestSchema.optional(),
});
export type PreseedSpec = z.infer<typeof preseedSpecSchema>;

/** What it cost to bring it there, the last time that something was missing. */
export const preseedStatusSchema = z.object({
  bytesTransferred: z.int().describe("Bytes that were sent to it."),
  bytesAvoided: z.int().describe("Bytes that it had already."),
  totalMillis: z.int().describe("How long that took, at low priority."),
});
export type PreseedStatus = z.infer<typeof preseedStatusSchema>;

export const instanceSpecSchema = z.object({
  id: idSchema,
  owner: z.string().describe("project/stack that declared it."),
  kind: kindSchema,
  state: z.enum(["running", "stopped", "suspended"]),
  base: z.object({ digest: digestSchema }),
  build: z.object({ digest: digestSchema, command: z.string().optional(), start: z.string() }).optional(),
  resources: z.object({ cores: z.int(), memoryMib: z.int(), diskMib: z.int() }),
  ports: z.array(portSchema),
  files: z.array(fileSchema),
  environment: z.record(z.string(), z.string()),
  userData: z.string().optional(),
  volumes: z.array(z.object({ id: idSchema, path: z.string() })),
  stateFiles: z.array(z.string()),
  ready: readySchema.optional(),
  /** The overlay it is synthesised from (or, of a base with memory, that memory). */
  overlay: z.object({ digest: digestSchema }).optional(),
  /** What becomes of a guest that was started before its overlay had arrived, and whose source falls silent. */
  hydrate: z.object({ timeoutSeconds: z.int(), onTimeout: z.enum(["wait", "boot"]) }).optional(),
});
export type InstanceSpec = z.infer<typeof instanceSpecSchema>;

/**
 * Who may run a cloudlet. The epoch is the time of its making, in milliseconds since 1970, and grows by one with each move.
 * `owner` may; `incoming` holds or receives a copy and may not until it is activated;
 * `released` has given it away and never runs it again unless it is given back with a higher epoch.
 */
export const ownershipSchema = z.object({
  epoch: z.int().min(0),
  role: z.enum(["owner", "incoming", "released"]),
  /** Name of the node on the other side of the last move. */
  peer: z.string().optional(),
});
export type Ownership = z.infer<typeof ownershipSchema>;

/** A guest that was made without us and is to be a cloudlet. */
export const foreignSchema = z.strictObject({
  name: z.string().describe("What its hypervisor calls it."),
  uuid: z.string().describe("What tells it from a later one of that name."),
});
export type Foreign = z.infer<typeof foreignSchema>;

export const instanceStatusSchema = z.object({
  spec: instanceSpecSchema,
  ownership: ownershipSchema,
  status: z.enum(["running", "stopped", "suspended", "missing"]).describe("missing: recorded here, but the hypervisor does not have it."),
  ready: z.boolean(),
  address: z.string(),
  imageDigest: digestSchema,
  accelerator: z.enum(["kvm", "tcg", "none"]),
  console: z.string().describe("Last lines of the console, for messages."),
  foreign: foreignSchema.optional().describe("Of one that was made without us and not taken over yet."),
  leaving: z.boolean().optional().describe("It was given away, and the other node has not answered yet."),
  lastMove: moveReportSchema.optional(),
  provision: provisionSchema.optional().describe("How it was last made or started from its overlay."),
  hydration: z
    .object({ present: z.int(), total: z.int(), state: z.enum(["coming", "waiting"]), reason: z.string() })
    .optional()
    .describe("Of one whose overlay is still coming: bytes that are here and in all. waiting: the source is silent."),
});
export type InstanceStatus = z.infer<typeof instanceStatusSchema>;

/** Whether anything of the cloudlet is on this node; of one that moved away there is only a note. */
export function isHere({ ownership, leaving }: Pick<InstanceStatus, "ownership" | "leaving">): boolean {
  return ownership.role !== "released" || leaving === true;
}

// --- volumes ---------------------------------------------------------------------------------------

export const volumeSpecSchema = z.object({ id: idSchema, owner: z.string(), kind: kindSchema, sizeMib: z.int() });
export type VolumeSpec = z.infer<typeof volumeSpecSchema>;

export const volumeStatusSchema = z.object({
  spec: volumeSpecSchema,
  /** `awaited`: declared here, and comes with the cloudlet that has it attached elsewhere. `gone`: moved away to `peer`. */
  place: z.enum(["here", "awaited", "gone"]),
  peer: z.string().optional(),
  attachedTo: z.string().optional(),
});
export type VolumeStatus = z.infer<typeof volumeStatusSchema>;

// --- moves -----------------------------------------------------------------------------------------

/** How the source agent reaches the target agent; the secret parts travel through SSH only. */
export const moveTargetSchema = z.object({
  node: z.string(),
  addresses: z.array(z.string()).describe("Tried in order."),
  port: z.int(),
  certificate: digestSchema.describe("SHA-256 of the target's certificate in DER form."),
  token: z.string(),
});
export type MoveTarget = z.infer<typeof moveTargetSchema>;

const nothing = z.object({});
const byId = z.object({ id: idSchema });
const kept = z.object({ name: z.string(), owner: z.string() });
const byIdAndOwner = byId.extend({ owner: z.string() });

/** What an agent does as a job: `PUT /v1/jobs/JOB {verb, args}`. Every verb is idempotent: run again after a crash, it continues. */
export const verbs = {
  "hypervisor.apply": { args: hypervisorSpecSchema, result: hypervisorStatusSchema },
  "hypervisor.remove": { args: z.object({ owner: z.string() }), result: nothing },
  /** `fresh`: the caller knows of no cloudlet of this id, so a note that one moved away does not forbid it. */
  "instance.apply": {
    args: z.object({ spec: instanceSpecSchema, fresh: z.boolean(), offers: z.array(offerSchema).optional() }),
    result: instanceStatusSchema,
  },
  /** Takes over a guest that was made without us, as it is: it restarts once, and what it has on its disk stays. */
  "instance.adopt": { args: byIdAndOwner.extend({ foreign: foreignSchema }), result: instanceStatusSchema },
  /** `foreign`: the guest that the caller knows it as where it was never taken over. */
  "instance.remove": { args: byIdAndOwner.extend({ foreign: foreignSchema.optional() }), result: nothing },
  "instance.restart": { args: byId, result: instanceStatusSchema },
  "instance.snapshot": { args: byId.extend({ snapshot: idSchema }), result: nothing },
  "instance.restore": { args: byId.extend({ snapshot: idSchema }), result: instanceStatusSchema },
  "volume.apply": { args: z.object({ spec: volumeSpecSchema, awaited: z.boolean() }), result: volumeStatusSchema },
  "volume.remove": { args: byIdAndOwner.extend({ retain: z.boolean() }), result: nothing },
  /** On a node that has blobs: let another node take them, until `seconds` have passed. An overlay's digest stands for all its blobs. */
  "blobs.offer": {
    args: z.object({ digests: z.array(digestSchema), seconds: z.int() }),
    result: offerSchema.omit({ node: true, relayPort: true }),
  },
  /** On a node that lacks blobs: take them from the first offer that has them. An overlay's digest stands for all its blobs. Returns what was really transferred. */
  "blobs.fetch": {
    args: z.object({ digests: z.array(digestSchema), offers: z.array(offerSchema) }),
    result: z.object({ bytesTransferred: z.int(), bytesAvoided: z.int(), from: z.array(z.string()) }),
  },
  /** Keeps an image that is in the store for an owner, once it has been looked into. Without `arrival`, what is known of an earlier one stays. */
  "image.keep": { args: kept.extend({ digest: digestSchema, arrival: arrivalSchema.optional() }), result: imageStatusSchema },
  "image.release": { args: kept, result: nothing },
  /** Builds an overlay here and keeps it for an owner; one that was built from the same makings is taken as it is. */
  "overlay.build": { args: kept.extend({ makings: makingsSchema, login: loginSchema.optional() }), result: overlayStatusSchema },
  /** Keeps an overlay whose blobs are in the store (adopted, imported, taken from another node). */
  "overlay.keep": { args: kept.extend({ digest: digestSchema }), result: overlayStatusSchema },
  "overlay.release": { args: kept, result: nothing },
  /** Compares the recombined images of an overlay with the digests that it was sealed with. */
  "overlay.verify": { args: z.object({ digest: digestSchema }), result: z.object({ bytes: z.int() }) },
  /** On a node that a cloudlet may move to: take what is missing, slowly, and hold it for the cloudlet until it is released. */
  "preseed.apply": {
    args: preseedSpecSchema.extend({ offers: z.array(offerSchema) }),
    result: preseedStatusSchema.extend({
      hasCopy: z.boolean().describe("Something of the cloudlet's own is there: from when it was there, or from an earlier preseeding."),
    }),
  },
  /** On the node where a cloudlet runs: a blob of what it has of its own; none where it would move stopped. */
  "instance.copy": { args: byId, result: z.object({ digest: digestSchema.optional() }) },
  /** Takes such a blob, slowly. */
  "preseed.copy": {
    args: byIdAndOwner.extend({ digest: digestSchema, offers: z.array(offerSchema) }),
    result: z.object({ bytesTransferred: z.int() }),
  },
  "preseed.release": { args: byIdAndOwner, result: nothing },
  /** On the target: reserve, open the data port, return what the source needs to connect. */
  "move.prepare": {
    args: z.object({ spec: instanceSpecSchema, epoch: z.int(), from: z.string() }),
    result: moveTargetSchema.omit({ node: true }),
  },
  /** On the source: stop, send, release, have the target activate, discard. Survives the loss of the operator. */
  "move.run": {
    args: z.object({
      id: idSchema,
      epoch: z.int().describe("Epoch that the target will own."),
      self: z.string(),
      target: moveTargetSchema,
      budget: budgetSchema.optional().describe("What a live move may cost."),
      route: z.enum(["direct", "operator"]),
      relayPort: z
        .int()
        .optional()
        .describe("Port of the source's own loopback that leads to the target, for as long as the operator is there."),
    }),
    result: moveReportSchema,
  },
  /** On the target: forget a copy that was never activated. */
  "move.cancel": { args: byId, result: nothing },
} as const;
export type Verb = keyof typeof verbs;
export type VerbArgs<V extends Verb> = z.infer<(typeof verbs)[V]["args"]>;
export type VerbResult<V extends Verb> = z.infer<(typeof verbs)[V]["result"]>;

// --- requests --------------------------------------------------------------------------------------

export const infoSchema = z.object({
  protocol: z.int(),
  digest: digestSchema.describe("SHA-256 of the running agent's bundle."),
  startedAt: z.string(),
  jobs: z.array(z.string()).describe("Ids of running jobs."),
});
export type AgentInfo = z.infer<typeof infoSchema>;

export const execRequestSchema = z.object({
  command: z.array(z.string()).min(1),
  environment: z.record(z.string(), z.string()).optional(),
  timeoutSeconds: z.int().min(1).max(3600),
});
export const execResultSchema = z.object({
  stdout: z.string().describe("What the command wrote to its standard output."),
  stderr: z.string().describe("What it wrote to its standard error."),
  exitCode: z.int().describe("How it ended; 0 is success."),
});
export type ExecRequest = z.infer<typeof execRequestSchema>;
export type InstanceExecResult = z.infer<typeof execResultSchema>;
