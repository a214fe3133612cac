import { readdir, readFile, rm, stat, mkdir, writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import path from "node:path";
import { CloudletError } from "../core/errors.ts";
import { writeDurably } from "./durable.ts";
import { dhcpHostsText, dnsmasqArguments, nftablesText, passages, publications } from "./networkText.ts";
import type { Run } from "./process.ts";
import { subnet } from "./records.ts";
import type { InstanceRecord } from "./records.ts";

const hairpinMillis = 2_000;

/** The guests' network: bridge, addresses, published ports. Everything is made again from the records, and removed by `teardown`. */
export class Network {
  readonly #directory: string;
  readonly #run: Run;
  #hairpins: NodeJS.Timeout | undefined;

  constructor(directory: string, run: Run) {
    this.#directory = directory;
    this.#run = run;
  }

  /** Bridge and addresses, so that the guests of these records can start. */
  async prepare(records: readonly InstanceRecord[]): Promise<void> {
    await this.#ensureBridge();
    await mkdir(this.#directory, { recursive: true, mode: 0o755 });
    const [file, text] = [path.join(this.#directory, "hosts"), dhcpHostsText(records)];
    const known = (await textOf(file)) === text.trim();
    if (!known) await writeDurably(file, text, 0o644);
    const pid = await this.#dnsmasq();
    if (pid === undefined) await this.#run(["dnsmasq", ...dnsmasqArguments(this.#directory)], { timeoutMillis: 20_000 });
    // dnsmasq reads its list of hosts again
    else if (!known) process.kill(pid, "SIGHUP");
    // a guest's port appears when it starts, and again when it restarts by itself
    this.#hairpins ??= setInterval(() => void allowHairpins(), hairpinMillis).unref();
  }

  /** Makes bridge, addresses and published ports what these records say. */
  async publish(records: readonly InstanceRecord[]): Promise<void> {
    await this.prepare(records);
    const text = nftablesText(publications(records), passages(records, Date.now()));
    await this.#run(["nft", "-f", "-"], { stdin: text, timeoutMillis: 20_000 });
  }

  async teardown(): Promise<void> {
    clearInterval(this.#hairpins);
    this.#hairpins = undefined;
    const pid = await this.#dnsmasq();
    if (pid !== undefined) {
      process.kill(pid, "SIGTERM");
      for (let i = 0; i < 100 && (await this.#dnsmasq()) !== undefined; i++) await sleep(50);
    }
    // adding first makes the removal of a missing table no error
    await this.#run(["nft", "-f", "-"], { stdin: "table inet cloudlet {\n}\ndelete table inet cloudlet\n", timeoutMillis: 20_000 });
    if (await bridgeExists()) await this.#run(["ip", "link", "delete", subnet.bridge], { timeoutMillis: 20_000 });
    await rm(this.#directory, { recursive: true, force: true });
  }

  async #ensureBridge(): Promise<void> {
    if (!(await bridgeExists()))
      await this.#run(["ip", "link", "add", subnet.bridge, "address", subnet.gatewayMac, "type", "bridge"], { timeoutMillis: 20_000 });
    const commands = `address replace ${subnet.gateway}/${String(subnet.prefix)} dev ${subnet.bridge}\nlink set ${subnet.bridge} up\n`;
    await this.#run(["ip", "-batch", "-"], { stdin: commands, timeoutMillis: 20_000 });
    await setKernel("net/ipv4/ip_forward", "1");
    // lets the node reach published ports through 127.0.0.1; the guard chain keeps guests away from it
    await setKernel(`net/ipv4/conf/${subnet.bridge}/route_localnet`, "1");
  }

  /** Pid of our dnsmasq if it runs. */
  async #dnsmasq(): Promise<number | undefined> {
    const file = path.join(this.#directory, "dnsmasq.pid");
    const pid = Number(await textOf(file));
    if (!Number.isInteger(pid) || pid <= 0) return undefined;
    // a pid may have been given to another program since
    const command = await readFile(`/proc/${String(pid)}/cmdline`, "utf8").catch(() => "");
    return command.includes("dnsmasq") && command.includes(file) ? pid : undefined;
  }
}

/**
 * Where the kernel shows bridged packets to nftables (br_netfilter), what a guest sends to its own published port is bridged
 * back instead of routed, and a bridge sends nothing back by the port it came from unless that port is told to.
 */
async function allowHairpins(): Promise<void> {
  if ((await textOf("/proc/sys/net/bridge/bridge-nf-call-iptables")) !== "1") return;
  const directory = `/sys/class/net/${subnet.bridge}/brif`;
  for (const port of await readdir(directory).catch(() => [])) {
    const file = path.join(directory, port, "hairpin_mode");
    // a guest may end meanwhile
    if ((await textOf(file)) === "0") await writeFile(file, "1").catch(() => undefined);
  }
}

async function textOf(file: string): Promise<string> {
  return (await readFile(file, "utf8").catch(() => "")).trim();
}

async function bridgeExists(): Promise<boolean> {
  return stat(`/sys/class/net/${subnet.bridge}`).then(
    () => true,
    () => false,
  );
}

async function setKernel(name: string, value: string): Promise<void> {
  const file = `/proc/sys/${name}`;
  if ((await textOf(file)) === value) return;
  try {
    await writeFile(file, value);
  } catch (cause) {
    throw new CloudletError("FAILED", `the kernel setting ${name} cannot be set to ${value}`, {
      cause,
      fix: "let the agent run as root outside a restricted container",
    });
  }
}
