import { mkdirSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

/** Where what takes long to make is kept between runs and between checkouts. */
export function cacheDirectory(): string {
  const base = process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache");
  const directory = join(base, "pulumi-cloudlet");
  mkdirSync(directory, { recursive: true });
  return directory;
}
