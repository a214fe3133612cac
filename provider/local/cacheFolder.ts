import { homedir } from "node:os";
import { join } from "node:path";

/** Where the operator's machine keeps what can be had again: in `XDG_CACHE_HOME`, else below `~/.cache`. */
export function cacheFolder(): string {
  return join(process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "pulumi-cloudlet");
}
