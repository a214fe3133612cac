import { homedir } from "node:os";
import { join } from "node:path";

/** What the machine of whoever runs the program contributes to reaching a node. */
export interface Operator {
  home: string;
  agentSocketPath: string | undefined;
  /** Read in this order; a missing file is empty. */
  knownHostsPaths: [string, ...string[]];
}

export function currentOperator(knownHostsFile?: string): Operator {
  const home = homedir();
  const named = knownHostsFile ?? process.env["CLOUDLET_KNOWN_HOSTS"];
  return {
    home,
    agentSocketPath: process.env["SSH_AUTH_SOCK"] || undefined,
    knownHostsPaths: named ? [named] : [join(home, ".ssh", "known_hosts"), "/etc/ssh/ssh_known_hosts"],
  };
}
