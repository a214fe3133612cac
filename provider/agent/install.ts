import type { Commission, CommissionRecord, Context } from "../core/context.ts";
import { CloudletError } from "../core/errors.ts";
import type { RemoteHost } from "../transport/types.ts";
import { bringUpAgent, gatherFacts } from "./agentService.ts";
import {
  agentFile,
  commissionSchema,
  initFile,
  missingFrom,
  oldestNode,
  plannedPackages,
  platformProblem,
  requiredPackages,
  serviceCommand,
  unitFile,
} from "./installText.ts";
import type { NodeFacts, StoredCommission } from "./installText.ts";
import { guestUser, paths } from "./protocol.ts";

type ApplyOptions = Parameters<Commission["apply"]>[1];

const installMillis = 20 * 60_000;
const apt = "DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300";
const installOptions = "install --no-install-recommends";
// systemd starts it when it is first asked; a start script's LXD may have been left off by its installation, or not be there yet
const startLxd = "[ -d /run/systemd/system ] || [ ! -x /etc/init.d/lxd ] || { /etc/init.d/lxd start && lxd waitready --timeout=120; }";
const unitsOf = { lxd: ["lxd-containers.service", "lxd.socket", "lxd.service"], lxcfs: ["lxcfs.service"] };

/** Commissioning: every addition is written down before it is made, so that a killed run leaves nothing unknown. */
export function createCommission({ bundle }: { bundle: string }): Commission {
  return {
    async apply(host, options, context) {
      context.status(`looking at ${host.label}`);
      const facts = await gatherFacts(host, context);
      const problem = platformProblem(facts.os);
      if (problem !== undefined)
        throw new CloudletError("UNSUPPORTED", `${host.label}: ${problem}`, {
          fix: "use Debian 12 or newer, or an Ubuntu LTS from 22.04 on",
        });
      const record = await claimNode(host, { facts, options }, context);
      const prepared = await prepare(host, { facts, record, install: options.install }, context);
      await bringUpAgent(host, { bundle, facts: prepared.facts }, context);
      return toRecord(prepared.record);
    },

    async observe(host, context) {
      const facts = await gatherFacts(host, context);
      if (facts.record === undefined) return undefined;
      return { record: toRecord(facts.record), problems: problemsOf(facts, facts.record) };
    },

    async remove(host, owner, context) {
      const facts = await gatherFacts(host, context);
      if (facts.record === undefined) return;
      const owners = facts.record.owners.filter((other) => other !== owner);
      // the last owner stays written down until all is gone: a killed run must be able to go on
      if (owners.length > 0) return writeRecord(host, { ...facts.record, owners }, context);
      await decommission(host, { facts, record: facts.record }, context);
    },
  };
}

export function problemsOf(facts: NodeFacts, record: StoredCommission): string[] {
  const wanted = new Set([...record.packages, ...requiredPackages(facts, record.kinds)]);
  const problems = missingFrom([...wanted], facts.installed).map((name) => `package ${name} is not installed`);
  if (!facts.user) problems.push(`user ${guestUser} is missing`);
  if (facts.agentDigest === undefined) problems.push("the agent's program is missing");
  else if (facts.info === undefined) problems.push("the agent is stopped");
  return problems;
}

async function claimNode(
  host: RemoteHost,
  { facts, options }: { facts: NodeFacts; options: ApplyOptions },
  context: Context,
): Promise<StoredCommission> {
  const before: StoredCommission = facts.record ?? { owners: [], packages: [], user: false, sysctl: {}, kinds: [] };
  const missing = missingFrom(requiredPackages(facts, options.kinds), facts.installed);
  if (missing.length > 0 && options.install === "never") {
    throw new CloudletError("REFUSED", `${host.label} lacks the packages ${missing.join(", ")}, and install is "never"`, {
      fix: `install them yourself, or set install: "auto"`,
    });
  }
  const record: StoredCommission = {
    ...before,
    owners: [...new Set([...before.owners, options.owner])].sort(),
    kinds: [...new Set([...before.kinds, ...options.kinds])].sort(),
    user: before.user || !facts.user,
    sysctl: facts.forward === "1" ? before.sysctl : { "net.ipv4.ip_forward": facts.forward, ...before.sysctl },
  };
  if (facts.record === undefined || JSON.stringify(record) !== JSON.stringify(before)) await writeRecord(host, record, context);
  return record;
}

async function prepare(
  host: RemoteHost,
  { facts, record, install }: { facts: NodeFacts; record: StoredCommission; install: "auto" | "never" },
  context: Context,
): Promise<{ facts: NodeFacts; record: StoredCommission }> {
  const missing = missingFrom(requiredPackages(facts, record.kinds), facts.installed);
  let latest = record;
  if (missing.length > 0 && install === "auto") latest = await installPackages(host, { facts, record, missing }, context);
  if (!facts.user) {
    await host.run(
      `getent passwd ${guestUser} >/dev/null || useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin ${guestUser}`,
      { signal: context.signal },
    );
  }
  if (facts.forward !== "1") await host.run("echo 1 >/proc/sys/net/ipv4/ip_forward", { signal: context.signal });
  return { facts: missing.length > 0 ? await gatherFacts(host, context) : facts, record: latest };
}

async function installPackages(
  host: RemoteHost,
  { facts, record, missing }: { facts: NodeFacts; record: StoredCommission; missing: string[] },
  context: Context,
): Promise<StoredCommission> {
  const list = missing.join(" ");
  const simulate = `${apt} -s ${installOptions} ${list}`;
  context.status(`looking for ${missing.length === 1 ? "package" : "packages"} ${missing.join(", ")}`);
  let plan = await host.exec(simulate, { signal: context.signal, timeoutMillis: 120_000 });
  if (plan.exitCode !== 0) {
    context.status(`updating the package lists of ${host.label}`);
    await host.run(`${apt} update`, { signal: context.signal, timeoutMillis: installMillis });
    plan = { stdout: await host.run(simulate, { signal: context.signal, timeoutMillis: 120_000 }), stderr: "", exitCode: 0 };
  }
  if (missing.includes("nodejs")) checkNode(host, facts, plan.stdout);
  const planned: StoredCommission = { ...record, packages: [...new Set([...record.packages, ...plannedPackages(plan.stdout)])].sort() };
  await writeRecord(host, planned, context);
  context.status(`installing ${missing.join(", ")} on ${host.label}`);
  // the lists may name versions that the mirror has replaced since
  await host.run(`${apt} ${installOptions} ${list} || { ${apt} update && ${apt} ${installOptions} ${list}; }`, {
    signal: context.signal,
    timeoutMillis: installMillis,
  });
  if (missing.includes("lxd")) await host.run(startLxd, { signal: context.signal, timeoutMillis: 180_000 });
  return planned;
}

function checkNode(host: RemoteHost, facts: NodeFacts, simulation: string): void {
  const offered = Number(/^Inst nodejs (?:\[[^\]]*\] )?\((?:\d+:)?(\d+)/m.exec(simulation)?.[1] ?? facts.nodeCandidate);
  if (offered >= oldestNode) return;
  throw new CloudletError(
    "UNSUPPORTED",
    `${host.label} has no Node ${String(oldestNode)} or newer, and its distribution offers version ${String(offered)}`,
    { fix: `install Node ${String(oldestNode)} or newer on the node` },
  );
}

async function decommission(
  host: RemoteHost,
  { facts, record }: { facts: NodeFacts; record: StoredCommission },
  context: Context,
): Promise<void> {
  const { signal } = context;
  const agent = facts.node === undefined || facts.agentDigest === undefined ? undefined : `${facts.node.path} ${agentFile}`;
  if (agent !== undefined) {
    const remaining = (await host.run(`${agent} remaining`, { signal })).trim().split("\n").filter(Boolean);
    if (remaining.length > 0)
      throw new CloudletError("REFUSED", `${host.label} still has ${remaining.join(", ")}`, { fix: "remove or move them first" });
  }
  context.status(`stopping the agent on ${host.label}`);
  await host.run(`if [ -e ${unitFile} ] || [ -e ${initFile} ]; then ${serviceCommand("stop", facts.systemd)}; fi`, { signal });
  if (agent !== undefined) await host.run(`${agent} teardown`, { signal, timeoutMillis: 330_000 });
  context.status(`removing the agent from ${host.label}`);
  await host.run(removalScript(record), { signal, timeoutMillis: 120_000 });
  await purge(host, record.packages, context);
  const { stdout } = await host.exec(
    `rm -f ${paths.commission}; rmdir ${paths.root} 2>/dev/null; ls ${paths.root}/volumes/retained 2>/dev/null`,
    { signal },
  );
  const retained = stdout.trim().split("\n").filter(Boolean);
  if (retained.length > 0)
    context.warn(`${host.label} keeps the retained data of ${String(retained.length)} volumes below ${paths.root}/volumes/retained`);
}

/** Everything but the record and retained volumes. */
function removalScript(record: StoredCommission): string {
  const lines = [
    `if [ -e ${unitFile} ]; then systemctl disable --quiet cloudlet-agent; rm -f ${unitFile}; systemctl daemon-reload; fi`,
    `if [ -e ${initFile} ]; then rm -f ${initFile}; update-rc.d cloudlet-agent remove; fi`,
    `for name in ${paths.root}/* ${paths.root}/.[!.]*; do case "$name" in ${paths.commission} | ${paths.root}/volumes) ;; *) rm -rf "$name" ;; esac; done`,
    `for name in ${paths.root}/volumes/*; do [ "$name" = ${paths.root}/volumes/retained ] || rm -rf "$name"; done`,
    `rmdir ${paths.root}/volumes/retained ${paths.root}/volumes 2>/dev/null`,
    `rm -rf /run/cloudlet ${paths.log}`,
    ...Object.entries(record.sysctl).map(
      ([name, value]) =>
        `printf %s '${value.replace(/[^0-9a-z ]/gi, "")}' >/proc/sys/${name.replace(/[^a-z0-9_.]/g, "").replaceAll(".", "/")}`,
    ),
    ...(record.user ? [`if getent passwd ${guestUser} >/dev/null; then userdel ${guestUser}; fi`] : []),
  ];
  return `set -u\n${lines.join("\n")}\ntrue\n`;
}

/** dpkg itself, not apt: it never takes along what somebody else installed on top. */
async function purge(host: RemoteHost, packages: readonly string[], context: Context): Promise<void> {
  if (packages.length === 0) return;
  context.status(`removing ${String(packages.length)} packages from ${host.label}`);
  const present = `for name in ${packages.join(" ")}; do dpkg-query -W -f='\${db:Status-Status} ' "$name" 2>/dev/null | grep -Eqv 'not-installed' && echo "$name"; done; true`;
  const left = async (): Promise<string[]> => (await host.run(present, { signal: context.signal })).trim().split("\n").filter(Boolean);
  const before = await left();
  if (before.length === 0) return;
  await switchUnits(host, { action: "stop", packages: before }, context);
  const { stderr } = await host.exec(`DEBIAN_FRONTEND=noninteractive dpkg --purge ${before.join(" ")}`, {
    signal: context.signal,
    timeoutMillis: installMillis,
  });
  const after = await left();
  if (after.length === 0) return;
  await switchUnits(host, { action: "start", packages: after }, context);
  context.warn(
    `${host.label} keeps packages that others need now: ${after.join(", ")} (${stderr.trim().split("\n").slice(-3).join("; ")})`,
  );
}

/** Units that outlive the removal of their package: Debian stops these daemons only where there is no systemd. */
async function switchUnits(
  host: RemoteHost,
  { action, packages }: { action: "start" | "stop"; packages: readonly string[] },
  { signal }: Context,
): Promise<void> {
  const units = Object.entries(unitsOf).flatMap(([name, its]) => (packages.includes(name) ? its : []));
  if (units.length === 0) return;
  const command = `if [ -d /run/systemd/system ]; then systemctl ${action} ${units.join(" ")}; fi`;
  await host.run(command, { signal, timeoutMillis: installMillis });
}

async function writeRecord(host: RemoteHost, record: StoredCommission, context: Context): Promise<void> {
  await host.run(`mkdir -p -m 0711 ${paths.root}`, { signal: context.signal });
  const content = Buffer.from(`${JSON.stringify(commissionSchema.parse(record), null, 2)}\n`);
  await host.upload({ content }, { path: paths.commission, mode: 0o600 }, { signal: context.signal });
}

function toRecord({ owners, packages, user, sysctl }: StoredCommission): CommissionRecord {
  return { owners, packages, user, sysctl };
}
