import { z } from "zod";
import type { InstanceSpec, Login, Ready } from "../agent/protocol.ts";
import type { Issue } from "../core/define.ts";

/** What a guest is made of: the inputs that cloudlets and overlays have in common. */
export const absolutePath = z.string().regex(/^\/[^\0]*$/, "must be an absolute path");
export const portNumber = z.int().min(1).max(65535);

export const resourcesSchema = z.strictObject({
  cores: z.int().min(1).default(1).describe("Processor cores."),
  memoryMib: z.int().min(32).default(256).describe("Memory in MiB."),
  diskMib: z.int().min(64).default(2048).describe("Size of the root disk in MiB; never smaller than the base."),
});

export const resourcesField = resourcesSchema.prefault({}).describe("What the cloudlet may use.");

export const filesField = z
  .array(
    z.strictObject({
      path: absolutePath.describe("Absolute path in the cloudlet."),
      content: z
        .string()
        .max(1024 * 1024)
        .describe("Text of the file, 1 MiB at most.")
        .meta({ mayBeSecret: true }),
      mode: z.int().min(0).max(0o7777).default(0o644).describe("Permission bits as a number. Default 420 (0644 in octal)."),
    }),
  )
  .default([])
  .describe("Files written before the application starts.")
  .meta({ set: true });

export const environmentField = z
  .record(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, "must be letters, digits and underscores"), z.string())
  .default({})
  .describe("Environment of the application.")
  .meta({ mayBeSecret: true });

export const userDataField = z
  .string()
  .max(64 * 1024)
  .optional()
  .describe("cloud-init user data (kvm only).")
  .meta({ mayBeSecret: true });

const userField = z
  .string()
  .regex(/^[A-Za-z_][A-Za-z0-9_.-]*$/, "must be a user name")
  .default("root")
  .describe("Login user: root, or one with password-less sudo.");

const loginSchema = z.strictObject({
  ssh: z
    .strictObject({
      user: userField,
      port: portNumber.default(22).describe("Port of the guest's SSH server."),
      privateKey: z
        .string()
        .regex(/PRIVATE KEY/, "must be a private key in OpenSSH or PEM form")
        .refine((key) => !/ENCRYPTED/.test(key), "has a passphrase; give a key without one, as nobody is asked while it is built")
        .describe("Private key in OpenSSH or PEM form, without a passphrase, that the image lets in.")
        .meta({ secret: true }),
    })
    .optional()
    .describe("The guest's SSH server."),
  console: z
    .strictObject({
      user: userField,
      password: z
        .string()
        .regex(/^[^\r\n]+$/, "must be one line")
        .optional()
        .describe("Password of the login user. Not needed where the console has a shell already.")
        .meta({ secret: true }),
    })
    .optional()
    .describe("The shell or login on the guest's first serial port (ttyS0)."),
});

export const loginField = loginSchema
  .optional()
  .describe(
    "How to get into the guest while it is built, where its image has no cloud-init and no QEMU guest agent (kvm only). Of the guest agent, `ssh` and `console` the first that answers brings files and environment and runs the script. A change alone does not build anew.",
  )
  .meta({ carried: true });

export function loginIssues(login: z.infer<typeof loginField>): Issue[] {
  if (login === undefined || login.ssh !== undefined || login.console !== undefined) return [];
  return [{ path: "login", message: "says no way into the guest; set `ssh`, `console` or both" }];
}

export function toLogin({ ssh, console }: z.infer<typeof loginSchema>): Login {
  const { password, user } = console ?? {};
  return {
    ...(ssh && { ssh }),
    ...(user !== undefined && { console: { user, ...(password !== undefined && { password }) } }),
  };
}

export const readySchema = z.strictObject({
  tcp: portNumber.optional().describe("Ready when this port of the cloudlet accepts a connection."),
  http: z
    .strictObject({
      port: portNumber.describe("Port in the cloudlet."),
      path: z.string().startsWith("/").default("/").describe("Path to GET."),
    })
    .optional()
    .describe("Ready when this URL answers with a status below 400."),
  log: z.string().min(1).optional().describe("Ready when a line of the console matches this regular expression."),
  timeoutSeconds: z.int().min(1).max(3600).default(120).describe("Seconds to wait before what waits for it fails."),
});
type ReadyInput = z.infer<typeof readySchema>;

export const readyText = "How to tell that the application answers. Exactly one of tcp, http and log.";

/** The agent's view of it. */
export function toReady(ready: ReadyInput): Ready {
  const { tcp, http, log, timeoutSeconds } = ready;
  return { timeoutSeconds, ...(tcp !== undefined && { tcp: { port: tcp } }), ...(http && { http }), ...(log !== undefined && { log }) };
}

/** Files as they travel. */
export function toFiles(files: z.infer<typeof filesField>): InstanceSpec["files"] {
  return files.map(({ path, content, mode }) => ({ path, mode, content: Buffer.from(content).toString("base64") }));
}

export function readyIssues(ready: ReadyInput | undefined, path = "ready"): Issue[] {
  if (!ready) return [];
  const ways = (["tcp", "http", "log"] as const).filter((way) => ready[way] !== undefined);
  if (ways.length !== 1)
    return [{ path, message: `has ${ways.length === 0 ? "none" : ways.join(" and ")} of tcp, http and log; set exactly one` }];
  try {
    if (ready.log !== undefined) new RegExp(ready.log);
    return [];
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return [{ path: `${path}.log`, message: `is not a regular expression (${reason}); correct it` }];
  }
}
