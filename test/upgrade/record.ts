/**
 * Records the state of the upgrade test's program, as this build leaves it on a real gateway: node test/upgrade/record.ts NAME.
 * For another build, copy this folder into a checkout of it, build there, and bring recorded/NAME.json back. Needs root.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createReadStream, readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";
import { buildImages } from "../../tools/images/images.ts";
import { openStack } from "../engine.ts";
import { createLab } from "../lab/lab.ts";
import { doors, upgraded, type Door, type Told } from "./program.ts";

const name = process.argv[2];
if (name === undefined) throw new Error("usage: node test/upgrade/record.ts NAME");
const { vm } = await buildImages();
const server = createServer((_request, response) => void createReadStream(vm).pipe(response));
await once(server.listen(0, "127.0.0.1"), "listening");
const lab = await createLab({ name: "upgrade", hosts: [{ name: "gw1" }] });
try {
  const { host, hostKey, privateKey, user } = lab.hosts.gw1.connection;
  const address = server.address();
  const url = `http://127.0.0.1:${typeof address === "object" ? address?.port : ""}/counter.qcow2`;
  const told: Told = { host, hostKey, url, digest: createHash("sha256").update(readFileSync(vm)).digest("hex") };
  const states: [Door, unknown][] = [];
  for (const door of doors) states.push([door, await record(door, told, { user, privateKey })]);
  const build = execFileSync("git", ["rev-parse", "--short", "HEAD"], { encoding: "utf8" }).trim();
  const directory = join(import.meta.dirname, "recorded");
  await mkdir(directory, { recursive: true });
  const recorded = { build, told, states: Object.fromEntries(states) };
  await writeFile(join(directory, `${name}.json`), `${JSON.stringify(recorded, null, 1)}\n`);
} finally {
  await lab.close();
  server.close();
}

/** The state after an `up`, as `pulumi stack export` writes it. */
async function record(door: Door, told: Told, credentials: object): Promise<unknown> {
  const env = { CLOUDLET_CONNECTION: JSON.stringify(credentials) };
  const stack = await openStack({ program: () => Promise.resolve({}), env, asUsers: true });
  try {
    const made = await stack.up(upgraded(stack.directory, door, told));
    if (!made.ok) throw new Error(made.text);
    // paths of the machine where it was recorded
    const places = new Set(["sourcePosition", "stackTrace"]);
    const text = JSON.parse(await stack.stateText(), (key, value: unknown) => (places.has(key) ? undefined : value)) as unknown;
    const { checkpoint } = text as { checkpoint: { latest: unknown } };
    const gone = await stack.destroy();
    if (!gone.ok) throw new Error(gone.text);
    return { version: 3, deployment: checkpoint.latest };
  } finally {
    await stack.close();
  }
}
