import { z } from "zod";
import { digestSchema, moveReportSchema } from "../../agent/protocol.ts";
import { connectionField, hypervisorField, nameField, nodeAddressField, onUnreachableField, ownerField } from "../shared.ts";

const absolutePath = z.string().regex(/^\/[^\0]*$/, "must be an absolute path");
const portNumber = z.int().min(1).max(65535);

export const inputs = z.strictObject({
  name: nameField.describe("Name of the cloudlet in its cluster. Default: the Pulumi name.").meta({ replaces: true }),
  owner: ownerField,
  cluster: nameField.describe("The EdgeCluster it belongs to.").meta({ replaces: true }),
  application: z.string().min(1).optional().describe("The application it serves. Default: the cluster's; another one is refused."),
  hypervisor: hypervisorField.describe("The Hypervisor it runs on. A change moves the cloudlet with its state, in place."),
  connection: connectionField,
  nodeAddress: nodeAddressField,
  capacity: z
    .strictObject({ cores: z.int(), memoryMib: z.int() })
    .optional()
    .describe("What the hypervisor's node has; the SDK takes it from the hypervisor.")
    .meta({ internal: true, checkOnly: true }),
  state: z.enum(["running", "stopped", "suspended"]).default("running").describe("What the cloudlet should be doing."),
  base: z
    .strictObject({
      file: z
        .string()
        .min(1)
        .describe(
          "Path on the operator's machine: a bootable disk image (qcow2 or raw) for kvm, a root file system or LXD image tar for lxd.",
        ),
      digest: digestSchema.optional().describe("SHA-256 of the file. Default: computed; set it to pin the content."),
    })
    .describe("The image it starts from. A change rebuilds the root in place; state files and volumes are kept."),
  build: z
    .strictObject({
      context: z.string().min(1).describe("Directory on the operator's machine; its content becomes /opt/cloudlet/app in the cloudlet."),
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
  resources: z
    .strictObject({
      cores: z.int().min(1).default(1).describe("Processor cores."),
      memoryMib: z.int().min(32).default(256).describe("Memory in MiB."),
      diskMib: z.int().min(64).default(2048).describe("Size of the root disk in MiB; never smaller than the base."),
    })
    .prefault({})
    .describe("What the cloudlet may use."),
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
  files: z
    .array(
      z.strictObject({
        path: absolutePath.describe("Absolute path in the cloudlet."),
        content: z
          .string()
          .max(1024 * 1024)
          .describe("Text of the file, 1 MiB at most."),
        mode: z.int().min(0).max(0o7777).default(0o644).describe("Permission bits as a number. Default 420 (0644 in octal)."),
      }),
    )
    .default([])
    .describe("Files written before the application starts.")
    .meta({ set: true }),
  environment: z
    .record(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, "must be letters, digits and underscores"), z.string())
    .default({})
    .describe("Environment of the application."),
  userData: z
    .string()
    .max(64 * 1024)
    .optional()
    .describe("cloud-init user data (kvm only)."),
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
  ready: z
    .strictObject({
      tcp: portNumber.optional().describe("Ready when this port of the cloudlet accepts a connection."),
      http: z
        .strictObject({
          port: portNumber.describe("Port in the cloudlet."),
          path: z.string().startsWith("/").default("/").describe("Path to GET."),
        })
        .optional()
        .describe("Ready when this URL answers with a status below 400."),
      log: z.string().min(1).optional().describe("Ready when a line of the console matches this regular expression."),
      timeoutSeconds: z.int().min(1).max(3600).default(120).describe("Seconds to wait before create, update or a move fails."),
    })
    .optional()
    .describe("How to tell that the application answers. Exactly one of tcp, http and log. Default: the first published tcp port, if any."),
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
  lastMove: moveReportSchema.optional().describe("The last move: what was sent, and how long the application was away."),
});
export type State = Inputs & z.infer<typeof outputs>;
