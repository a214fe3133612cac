import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { parseArgs } from "node:util";
import { CloudletError, describeError } from "../../provider/core/errors.ts";
import { buildImages } from "../../tools/images/images.ts";
import { fillProgramFolder } from "../engine.ts";
import { createLab, openLab, refuseWhereImpossible } from "./lab.ts";
import { labProgram } from "./program.ts";
import { pulumi } from "./pulumi.ts";
import { readState, sweep } from "./state.ts";

const help = `usage: node test/lab/cli.ts COMMAND [--name NAME]

  up                 start the hosts gw1, gw2, subscriber and core, and leave them running
  down               take the lab down, leaving nothing
  status             show the hosts
  ssh HOST [CMD...]  log in as root, or run a command there
  pulumi COMMAND     preview, up, refresh or destroy the lab's program
  shape HOST MBIT    limit a link in both directions; 0 lifts the limit
  cut HOST [HOST]    cut a link, or only what goes between two hosts
  heal HOST [HOST]   and join it again`;

// what follows a host's name is a command of that host, with options of its own
const given = process.argv.slice(2);
const own = given.includes("ssh") ? given.indexOf("ssh") + 2 : given.length;
const { values, positionals } = parseOwn(given.slice(0, own));
const [command, first = "", ...others] = positionals;
const rest = [...others, ...given.slice(own)];
const home = resolve(import.meta.dirname, "../../.lab", values.name);
const cli = `node_modules/.bin/node test/lab/cli.ts${values.name === "lab" ? "" : ` --name ${values.name}`}`;

try {
  if (values.help || command === undefined) console.log(help);
  else await perform(command);
} catch (error) {
  console.error(describeError(error));
  process.exitCode = 1;
}

function parseOwn(args: string[]) {
  try {
    return parseArgs({
      args,
      allowPositionals: true,
      options: { name: { type: "string", default: "lab" }, help: { type: "boolean", short: "h" } },
    });
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : String(error)}\n${help}`);
    process.exit(2);
  }
}

async function perform(command: string): Promise<void> {
  if (command === "up") return up();
  if (command === "down") {
    refuseWhereImpossible();
    await sweep(values.name);
    // the program and its stack are about hosts that are no more
    return rmSync(home, { recursive: true, force: true });
  }
  const lab = openLab(values.name);
  const needed = (name: string): string => {
    if (name in lab.hosts) return name;
    throw new CloudletError("INVALID", `"${name}" is none of the hosts ${Object.keys(lab.hosts).join(", ")}`, { fix: "name one of them" });
  };
  const second = rest[0];
  if (command === "status") return status();
  if (command === "pulumi") return pulumi(home, first);
  if (command === "ssh")
    process.exitCode =
      spawnSync("ssh", [...sshOptions(), `root@${lab.hosts[needed(first)]?.address ?? ""}`, ...rest], { stdio: "inherit" }).status ?? 1;
  else if (command === "shape") await lab.shape(needed(first), Number(second) > 0 ? { mbit: Number(second) } : {});
  else if (command === "cut") await (second === undefined ? lab.cut(needed(first)) : lab.cutBetween(needed(first), needed(second)));
  else if (command === "heal") await (second === undefined ? lab.heal(needed(first)) : lab.healBetween(needed(first), needed(second)));
  else throw new CloudletError("INVALID", `there is no command "${command}"`, { fix: `see ${cli} --help` });
}

async function up(): Promise<void> {
  refuseWhereImpossible();
  if (readState(values.name) === undefined) {
    rmSync(home, { recursive: true, force: true });
    await createLab({
      name: values.name,
      hosts: [{ name: "gw1", lxd: true }, { name: "gw2", lxd: true }, { name: "subscriber" }, { name: "core" }],
      detached: true,
    });
  }
  status();
  const program = join(home, "index.ts");
  // one that is there may have been edited
  if (!existsSync(program)) await writeProgram(program);
  const lab = openLab(values.name);
  const address = (name: string): string => lab.hosts[name]?.address ?? "";
  console.log(`
log in:             ssh ${sshOptions().join(" ")} root@${address("gw1")}
or, for any host:   ${cli} ssh gw1
a program to try:   ${relative(process.cwd(), program)}
run it:             ${cli} pulumi up
see it answer:      ${cli} ssh subscriber curl -s http://gw1:8080/
take it down:       make lab-down`);
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

async function writeProgram(file: string): Promise<void> {
  const lab = openLab(values.name);
  const gateways = Object.values(lab.hosts)
    .filter(({ name }) => name.startsWith("gw"))
    .map(({ name, address, connection }) => ({ name, address, hostKey: connection.hostKey }));
  const { container } = await buildImages();
  mkdirSync(home, { recursive: true });
  await fillProgramFolder(home);
  writeFileSync(file, labProgram({ keyPath: lab.keyPath, gateways, image: container, command: `${cli} pulumi up` }));
}
