import { z } from "zod";
import { defaultBudget, moveReportSchema } from "../../agent/handoffProtocol.ts";
import { digestSchema, foreignSchema, kindSchema, machineSchema, preseedStatusSchema, provisionSchema } from "../../agent/protocol.ts";
import {
  absolutePath,
  environmentField,
  filesField,
  portNumber,
  readySchema,
  readyText,
  resourcesField,
  resourcesSchema,
  userDataField,
} from "../guest.ts";
import { baseField, baseSourceField, overlaySourceField, reachSchema, sourcesField } from "../images.ts";
import { connectionField, hypervisorField, nameField, nodeAddressField, onUnreachableField, ownerField } from "../shared.ts";

const capacityField = z
  .strictObject({
    cores: z.int().describe("Processor cores of the node."),
    memoryMib: z.int().describe("Memory of the node in MiB."),
    cpuFlags: z.array(z.string()).optional().describe("What the node's processor can do, in the words of /proc/cpuinfo."),
    machineTypes: z.array(z.string()).optional().describe("Machine types that QEMU has there."),
    accelerator: z.enum(["kvm", "tcg", "none"]).optional().describe("How guests execute there."),
  })
  .optional()
  .describe("What the hypervisor's node has; the SDK takes it from the hypervisor.")
  .meta({ internal: true, checkOnly: true });

export const inputs = z.strictObject({
  name: nameField.describe("Name of the cloudlet in its cluster. Default: the Pulumi name.").meta({ replaces: true }),
  owner: ownerField,
  cluster: nameField.describe("The EdgeCluster it belongs to.").meta({ replaces: true }),
  application: z
    .string()
    .min(1)
    .optional()
    .describe("The application it serves, as a check: one that is not the cluster's is refused.")
    .meta({ checkOnly: true }),
  hypervisor: hypervisorField.describe("The Hypervisor it runs on. A change moves the cloudlet with its state, in place."),
  connection: connectionField,
  nodeAddress: nodeAddressField,
  capacity: capacityField,
  state: z.enum(["running", "stopped", "suspended"]).default("running").describe("What the cloudlet should be doing."),
  base: baseField.describe("The image it starts from. A change rebuilds the root in place; state files and volumes are kept."),
  baseSource: baseSourceField,
  resources: resourcesField,
  overlay: z
    .strictObject({ digest: digestSchema.describe("Digest of the overlay.") })
    .optional()
    .describe("The Overlay that it is synthesised from. A change rebuilds the root in place; state files and volumes are kept."),
  overlaySource: overlaySourceField,
  made: z
    .strictObject({
      kind: kindSchema.describe("The kind of hypervisor it is for."),
      base: digestSchema.describe("SHA-256 of the image that it stands on."),
      builder: z.string().describe("The Hypervisor that keeps it."),
      resources: resourcesSchema.describe("What the guest had while it was built."),
      memoryBytes: z.int().describe("Changed pages of the memory, decompressed."),
    })
    .optional()
    .describe("What the overlay was made from; the SDK takes it from the overlay.")
    .meta({ internal: true, checkOnly: true }),
  machine: machineSchema
    .optional()
    .describe("What the saved memory can be resumed on; the SDK takes it from the overlay, or from the BaseImage.")
    .meta({ internal: true, checkOnly: true }),
  sources: sourcesField,
  hydrate: z
    .strictObject({
      timeoutSeconds: z
        .int()
        .min(1)
        .max(86_400)
        .default(600)
        .describe("Seconds of silence of the overlay's source after which that happens."),
      onTimeout: z
        .enum(["wait", "boot"])
        .default("wait")
        .describe(
          "`wait`: it is held still, and goes on when the data comes. `boot`: it is ended, and boots from its disk once that has come.",
        ),
    })
    .prefault({})
    .describe("What becomes of a cloudlet that was started before its overlay had arrived, and whose source falls silent."),
  build: z
    .strictObject({
      context: z
        .string()
        .min(1)
        .optional()
        .describe(
          "Directory on the operator's machine; its content becomes /opt/cloudlet/app in the cloudlet. Left out where `digest` names what the node has.",
        )
        .meta({ origin: true }),
      command: z.string().optional().describe("Shell command run in that directory, in the cloudlet, for each new version."),
      start: z.string().min(1).describe("Shell command that runs the application."),
      digest: digestSchema
        .optional()
        .describe("SHA-256 of the directory's deterministic tar. Default: computed; set it to pin the content."),
    })
    .optional()
    .describe(
      "An application built in the cloudlet from source. A changed source is a new version, put in place without making the cloudlet anew.",
    ),
  ports: z
    .array(
      z.strictObject({
        port: portNumber.describe("Port inside the cloudlet."),
        hostPort: portNumber.optional().describe("Port on the node. Default: the same as `port`."),
        protocol: z.enum(["tcp", "udp"]).default("tcp").describe("Transport protocol."),
      }),
    )
    .default([])
    .describe("Ports published on the node. `endpoint` is the first one.")
    .meta({ set: true }),
  files: filesField,
  environment: environmentField,
  userData: userDataField,
  volumes: z
    .array(
      z.strictObject({
        volume: nameField.describe("The Volume to attach."),
        path: absolutePath.describe("Where it is mounted in the cloudlet."),
      }),
    )
    .default([])
    .describe("Volumes attached to the cloudlet; they move with it."),
  stateFiles: z
    .array(absolutePath)
    .default([])
    .describe("Paths in the cloudlet that make up its state; they survive a new base and a move to a hypervisor of the other kind.")
    .meta({ set: true }),
  handoff: z
    .strictObject({
      maxDowntimeMillis: z
        .int()
        .min(1)
        .max(3_600_000)
        .default(defaultBudget.maxDowntimeMillis)
        .describe("How long the application may stand still when it moves while it runs."),
      maxTotalSeconds: z
        .int()
        .min(1)
        .max(86_400)
        .default(defaultBudget.maxTotalSeconds)
        .describe("How long such a move may take, from its begin until the application answers on the other node."),
      onExceeded: z
        .enum(["throttle", "proceed", "abort"])
        .default(defaultBudget.onExceeded)
        .describe(
          "Where that cannot be kept: `throttle`: the cloudlet is slowed down until it can. `proceed`: it moves all the same. `abort`: it stays where it is, and the update fails.",
        ),
      preseed: z
        .array(hypervisorField)
        .default([])
        .describe(
          "Hypervisors where it may be next: their nodes are given its base, build and overlay beforehand, at low priority. Its own may be among them.",
        )
        .meta({ set: true }),
    })
    .prefault({})
    .describe("How it moves. What a move of the running cloudlet may cost is for kvm; others are stopped to be moved."),
  preseedConnections: z
    .array(reachSchema)
    .default([])
    .describe("How to reach the nodes of `handoff.preseed`; the SDK takes it from the hypervisors that are named.")
    .meta({ set: true, internal: true }),
  ready: readySchema.optional().describe(`${readyText} Default: the first published tcp port, if any.`),
  onUnreachable: onUnreachableField,
});
export type Inputs = z.infer<typeof inputs>;

export const outputs = z.strictObject({
  endpoint: z.string().describe("`HOST:PORT` of the first published port; empty when none is published."),
  address: z.string().describe("Address of the cloudlet on its node."),
  node: z.string().describe("Name of the node it is on."),
  status: z.string().describe("`running`, `stopped`, `suspended`, or what is wrong."),
  imageDigest: digestSchema.describe("SHA-256 of the base it was made from."),
  accelerator: z.enum(["kvm", "tcg", "none"]).describe("How it executes: kvm = hardware, tcg = software emulation, none = container."),
  foreign: foreignSchema
    .optional()
    .describe("The container made without this provider that it was imported from, until the first update takes that over."),
  provision: provisionSchema
    .optional()
    .describe("How its last start from an overlay went: which rung of the start ladder and why, how long, how many bytes."),
  preseeded: z
    .array(preseedStatusSchema.extend({ hypervisor: z.string().describe("One of `handoff.preseed`.") }))
    .describe("Where its base, build and overlay are beforehand, and what that cost."),
  lastMove: moveReportSchema.optional().describe("The last move: what was sent, and how long the application was away."),
});
export type State = Inputs & z.infer<typeof outputs>;
