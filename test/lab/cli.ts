import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { describeError } from "../../provider/core/errors.ts";
import { buildImages } from "../../tools/images/images.ts";
import { createLab, openLab, refuseWhereImpossible } from "./lab.ts";
import { labProgram } from "./program.ts";
import { readState, sweep } from "./state.ts";

const help = `usage: node test/lab/cli.ts COMMAND [--name NAME]

  up                 start the hosts gw1, gw2, subscriber and core, and leave them running
  down               take the lab down, leaving nothing
  status             show the hosts
  ssh HOST [CMD...]  log in as root
  shape HOST MBIT    limit a link in both directions; 0 lifts the limit
  cut HOST [HOST]    cut a link, or only what goes between two hosts
  heal HOST [HOST]   and join it again`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { name: { type: "string", default: "lab" }, help: { type: "boolean", short: "h" } },
});
const [command, first = "", ...rest] = positionals;

try {
  if (values.help || command === undefined) console.log(help);
  else await perform(command);
} catch (error) {
  console.error(describeError(error));
  process.exitCode = 1;
}

async function perform(command: string): Promise<void> {
  if (command === "up") return up();
  if (command === "down") {
    refuseWhereImpossible();
    return sweep(values.name);
  }
  const lab = openLab(values.name);
  const needed = (name: string): string => {
    if (name in lab.hosts) return name;
    throw new Error(`"${name}" is none of the hosts ${Object.keys(lab.hosts).join(", ")}`);
  };
  const second = rest[0];
  if (command === "status") return status();
  if (command === "ssh")
    process.exitCode =
      spawnSync("ssh", [...sshOptions(), `root@${lab.hosts[needed(first)]?.address ?? ""}`, ...rest], { stdio: "inherit" }).status ?? 1;
  else if (command === "shape") await lab.shape(needed(first), Number(second) > 0 ? { mbit: Number(second) } : {});
  else if (command === "cut") await (second === undefined ? lab.cut(needed(first)) : lab.cutBetween(needed(first), needed(second)));
  else if (command === "heal") await (second === undefined ? lab.heal(needed(first)) : lab.healBetween(needed(first), needed(second)));
  else throw new Error(`there is no command "${command}"\n${help}`);
}

async function up(): Promise<void> {
  refuseWhereImpossible();
  if (readState(values.name) === undefined) {
    await createLab({
      name: values.name,
      hosts: [{ name: "gw1" }, { name: "gw2", lxd: true }, { name: "subscriber" }, { name: "core" }],
      detached: true,
    });
  }
  status();
  const program = await writeProgram();
  console.log(`\nlog in:  ssh ${sshOptions().join(" ")} root@${openLab(values.name).hosts["gw1"]?.address ?? ""}`);
  console.log(`or:      node_modules/.bin/node test/lab/cli.ts ssh gw1\na program to try: ${program}\ntake it down: make lab-down`);
}

function status(): void {
  const lab = openLab(values.name);
  for (const host of Object.values(lab.hosts))
    console.log(`${host.name.padEnd(12)} ${host.address}:22  ${host.pids.length > 0 ? "up" : "off"}`);
}

function sshOptions(): string[] {
  const lab = openLab(values.name);
  return ["-F", "none", "-i", lab.keyPath, "-o", `UserKnownHostsFile=${lab.knownHostsPath}`];
}

async function writeProgram(): Promise<string> {
  const lab = openLab(values.name);
  const directory = join(import.meta.dirname, "../../.lab");
  mkdirSync(directory, { recursive: true });
  const gateways = Object.values(lab.hosts)
    .filter(({ name }) => name.startsWith("gw"))
    .map(({ name, address, connection }) => ({ name, address, hostKey: connection.hostKey }));
  const { container } = await buildImages();
  writeFileSync(join(directory, "index.ts"), labProgram({ keyPath: lab.keyPath, gateways, image: container }));
  return ".lab/index.ts";
}
