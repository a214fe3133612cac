import { z } from "zod";
import type { Context } from "../core/context.ts";
import { CloudletError, codeOf } from "../core/errors.ts";
import { kindSchema, type Kind } from "../agent/protocol.ts";

const hop = {
  host: z.string().min(1).describe("Name or address of the node."),
  port: z.int().min(1).max(65535).optional().describe("SSH port. Default: the ssh configuration's, else 22."),
  user: z
    .string()
    .min(1)
    .optional()
    .describe("Login user: root, or one with password-less sudo. Default: the ssh configuration's, else root."),
  password: z.string().optional().describe("Password of the login user.").meta({ secret: true }),
  privateKey: z
    .string()
    .optional()
    .describe(
      "Private key in OpenSSH or PEM form. Without any credential the SSH agent and the ssh configuration of whoever runs the program are used.",
    )
    .meta({ secret: true }),
  privateKeyPassword: z.string().optional().describe("Passphrase of the private key.").meta({ secret: true }),
  agentSocketPath: z.string().optional().describe("Socket of the SSH agent. Default: SSH_AUTH_SOCK."),
  hostKey: z
    .string()
    .optional()
    .describe("The node's host key: an OpenSSH public key line or a SHA256 fingerprint. Default: the operator's known_hosts."),
  perDialTimeout: z.int().min(1).optional().describe("Seconds that one attempt to connect may take. Default 15."),
  dialErrorLimit: z.int().min(1).optional().describe("Attempts to connect before giving up."),
};

export const connectionSchema = z.strictObject({
  ...hop,
  proxy: z.strictObject(hop).optional().describe("A bastion host to go through."),
});
const { host: _host, ...withoutHost } = hop;
/** What may hold for many connections. */
export const connectionDefaultsSchema = z.strictObject({
  ...withoutHost,
  proxy: z.strictObject(hop).optional().describe("A bastion host to go through."),
});

export type Connection = z.infer<typeof connectionSchema>;

const nameRule = "must be lower-case letters, digits and dashes, 40 at most; pass `name` where the Pulumi name is not";

export const nameField = z
  .string()
  .regex(/^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/, nameRule)
  .max(40, nameRule);

export const ownerField = z
  .string()
  .min(1)
  .describe("Project and stack that declare this resource; what one stack made, another neither sees as its own nor removes.")
  .meta({ internal: true });

export const statusField = z
  .string()
  .default("ready")
  .describe("`ready`, or what a refresh found to be wrong with it; `pulumi up` repairs it.")
  .meta({ internal: true });

export const onUnreachableField = z
  .enum(["fail", "forget"])
  .default("fail")
  .describe(
    "What delete does when the node cannot be reached: fail and keep the state, or forget the resource for a node that will never come back.",
  );

export const connectionField = connectionSchema
  .describe("How to reach the node; the SDK takes it from the resource that is named.")
  .meta({ internal: true });

export const nodeAddressField = z
  .string()
  .min(1)
  .describe("Address that clients of the node's cloudlets use; the SDK takes it from the node.")
  .meta({ internal: true });

export const hypervisorField = z
  .string()
  .regex(/^[a-z0-9]([a-z0-9-]*[a-z0-9])?\/(kvm|lxd)$/, 'must be a Hypervisor, or its id such as "gw1/kvm"');

/** `gw1/kvm` → its node and kind. */
export function parseHypervisor(reference: string): { node: string; kind: Kind } {
  const [node = "", kind] = reference.split("/");
  return { node, kind: kindSchema.parse(kind) };
}

/** The same for what a user wrote where no schema looks. */
export function parseHypervisorId(text: string): { node: string; kind: Kind } {
  if (hypervisorField.safeParse(text).success) return parseHypervisor(text);
  throw new CloudletError("INVALID", `"${text}" is no hypervisor's id`, { fix: 'give it as NODE/KIND, such as "gw1/kvm"' });
}

/** Runs a removal; where the node cannot be reached and the user chose to forget it, a warning takes the place of the error. */
export async function removeOrForget(
  { what, onUnreachable, context }: { what: string; onUnreachable: "fail" | "forget"; context: Context },
  remove: () => Promise<void>,
): Promise<void> {
  try {
    await remove();
  } catch (error) {
    if (onUnreachable !== "forget" || codeOf(error) !== "UNREACHABLE") throw error;
    context.warn(`${what} was forgotten without reaching its node; should the node come back, what runs there is still there`);
  }
}

/** What an id to import says of a place, after it was parsed: `NODE/KIND`, and the host, or a node's name that leads there. */
export function adoptedPlace([hypervisor = "", host]: string[]): { hypervisor: string; connection: Connection; nodeAddress: string } {
  const nodeAddress = host ?? parseHypervisorId(hypervisor).node;
  return { hypervisor, connection: { host: nodeAddress }, nodeAddress };
}

/** Of what is to be imported: another stack's is not taken away from it. */
export function mustBelong(what: string, { owners, owner }: { owners: readonly string[]; owner: string }): void {
  if (owners.includes(owner)) return;
  throw new CloudletError("CONFLICT", `${what} belongs to ${owners.join(" and ")}, not to ${owner}`, {
    fix: "import it in that stack; what several stacks share (nodes, hypervisors) is declared in each",
  });
}

/** `WHAT@PLACE@HOST`, the grammar of ids that are imported; the last part may be left out where the place's name is enough to reach it. */
export function parseAdopted(id: string, form: string): string[] {
  const parts = id.split("@");
  const most = form.replaceAll(/[[\]]/g, "").split("@").length;
  const least = form.replace(/\[.*/, "").split("@").length;
  if (parts.length >= least && parts.length <= most && parts.every((part) => part !== "")) return parts;
  throw new CloudletError("INVALID", `"${id}" does not say what is to be imported`, { fix: `give it as ${form}` });
}
