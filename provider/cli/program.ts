import { Command, CommanderError } from "commander";
import { describeError } from "../core/errors.ts";
import { handoffs } from "./handoffs.ts";
import { exportOverlay, importOverlay, list, pull, push, remove, verify, type Surroundings } from "./commands.ts";

/** What the command ends with: done, failed, not understood, interrupted. */
export const exitCodes = { done: 0, failed: 1, usage: 2, interrupted: 130 } as const;

export interface Terminal {
  out(text: string): void;
  err(text: string): void;
}

const examples = `
A node is reached as by a program: with the SSH agent and the ssh configuration of whoever runs this, and only
with a host key that known_hosts has. A DIGEST may be shortened to its first six digits.

Examples:
  cloudlet overlay list --node root@gw1.example.net
  cloudlet overlay export 3f2a91bc --node root@gw1.example.net --output faces.tar
  cloudlet overlay import faces.tar --node root@gw2.example.net:2222
  cloudlet overlay push 3f2a91bc registry.example.net/edge/faces:1.4 --node root@gw1.example.net
  cloudlet overlay pull registry.example.net/edge/faces:1.4 --node root@gw2.example.net

Exit codes: 0 done, 1 failed, 2 not understood, 130 interrupted.`;

const handoffExamples = `
Examples:
  cloudlet handoffs shop/counter --node root@gw2.example.net
  cloudlet handoffs shop/counter --node root@gw2.example.net --html counter.html
  cloudlet handoffs shop/counter --node root@gw2.example.net --json | jq '.[0].report'`;

/** Runs one command line; everything that it needs of the world comes with `around`. */
export async function runCommand(args: string[], around: Surroundings, terminal: Terminal): Promise<number> {
  try {
    await program(around, terminal).parseAsync(args, { from: "user" });
    return exitCodes.done;
  } catch (error) {
    // the words of a usage error are printed already
    if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.done : exitCodes.usage;
    terminal.err(`${describeError(error)}\n`);
    return exitCodes.failed;
  }
}

function program(around: Surroundings, { out, err }: Terminal): Command {
  const top = new Command("cloudlet").description("Looks after what the Pulumi provider pulumi-cloudlet keeps on nodes.");
  // before the subcommands, which take it over
  top.exitOverride().configureOutput({ writeOut: out, writeErr: err }).showHelpAfterError("run it with --help to see how");
  const overlay = top.command("overlay").description("Overlays: the deltas of applications over their bases.");
  overlay.addHelpText("after", examples);
  addThoseThatTake(overlay, around);
  addThoseThatBring(overlay, around);
  addThoseThatStay(overlay, around);
  addHandoffs(top, around);
  return top;
}

const node = "-n, --node <user@host:port>";
const base = "take the base image along, and its memory where the overlay needs it";

function addHandoffs(top: Command, around: Surroundings): void {
  top
    .command("handoffs <cloudlet>")
    .description("show how a cloudlet has moved from node to node; CLOUDLET is its cluster and name, such as shop/counter")
    .requiredOption(node, "the node that it is on; while it moves, the one that it leaves")
    .option("--json", "all that is known, as JSON", false)
    .option("--html <file>", "write a page that shows each handoff over time")
    .addHelpText("after", handoffExamples)
    .action((id: string, options: { node: string; json: boolean; html?: string }) => handoffs(id, options, around));
}

function addThoseThatTake(overlay: Command, around: Surroundings): void {
  overlay
    .command("export <digest>")
    .description("write an overlay of a node to a file")
    .requiredOption(node, "the node that has it")
    .requiredOption("-o, --output <file>", "the file, a tar")
    .option("--with-base", base, false)
    .action((digest: string, options: { node: string; output: string; withBase: boolean }) => exportOverlay(digest, options, around));
  overlay
    .command("push <digest> <reference>")
    .description("store an overlay of a node in an OCI registry")
    .requiredOption(node, "the node that has it")
    .option("--with-base", base, false)
    .action((digest: string, reference: string, options: { node: string; withBase: boolean }) =>
      push([digest, reference], options, around),
    );
}

function addThoseThatBring(overlay: Command, around: Surroundings): void {
  overlay
    .command("import <file>")
    .description("bring an exported overlay to a node, compared bit by bit")
    .requiredOption(node, "the node that gets it")
    .action((file: string, options: { node: string }) => importOverlay(file, options, around));
  overlay
    .command("pull <reference>")
    .description("bring an overlay from an OCI registry to a node")
    .requiredOption(node, "the node that gets it")
    .action((reference: string, options: { node: string }) => pull(reference, options, around));
}

function addThoseThatStay(overlay: Command, around: Surroundings): void {
  overlay
    .command("list")
    .description("show the overlays that a node keeps")
    .requiredOption(node, "the node")
    .action((options: { node: string }) => list(options, around));
  overlay
    .command("verify <digest>")
    .description("have a node recombine an overlay with its base and compare the whole images")
    .requiredOption(node, "the node that has it")
    .action((digest: string, options: { node: string }) => verify(digest, options, around));
  overlay
    .command("remove <digest>")
    .description("have a node no longer keep an overlay that import or pull has brought")
    .requiredOption(node, "the node that has it")
    .action((digest: string, options: { node: string }) => remove(digest, options, around));
}
