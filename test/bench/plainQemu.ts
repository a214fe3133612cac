import { setTimeout as sleep } from "node:timers/promises";
import { connectQmp, type Qmp } from "../../provider/hypervisors/qemu/qmp.ts";
import type { LabHost } from "../lab/host.ts";
import { moving } from "./movingGuest.ts";
import { guestResources } from "./workload.ts";

/** Where plain guests answer; the agent's own ports are published otherwise. */
export const plainPort = 8090;
const directory = "/var/lib/cloudlet/plain";
export const diskPath = `${directory}/disk.qcow2`;
export const statePath = `${directory}/state.zst`;

/** The same guest as users of QEMU start it, without an agent, on a lab host that has the image in a file. */
export class PlainGuest {
  readonly host: LabHost;
  #qmp: Qmp | undefined;

  constructor(host: LabHost) {
    this.host = host;
  }

  /** A directory with a disk of its own, and a seed that makes it the moving guest at its first boot. */
  async prepare(image?: string): Promise<void> {
    const seed = [
      `rm -rf ${directory} && mkdir -p ${directory}/seed && cd ${directory}`,
      "cat >seed/user-data",
      "printf 'instance-id: moving\\nlocal-hostname: moving\\n' >seed/meta-data",
      "genisoimage -quiet -volid cidata -joliet -rational-rock -output seed.iso seed",
    ];
    await this.host.run(seed.join(" && "), { stdin: `#!/bin/sh\n${moving}\n` });
    if (image !== undefined) await this.host.run(`qemu-img convert -O qcow2 ${image} ${diskPath} && ${resize}`, { timeoutMillis: 300_000 });
  }

  /** An empty disk, for what will be copied. */
  async prepareEmpty(): Promise<void> {
    await this.prepare();
    await this.host.run(`qemu-img create -q -f qcow2 ${diskPath} ${guestResources.diskMib}M`);
  }

  async start(incoming?: string): Promise<void> {
    const [node, drive] = [JSON.stringify, "-device virtio-blk-pci,drive"];
    const disk = node({ driver: "qcow2", "node-name": "disk", discard: "unmap", file: { driver: "file", filename: diskPath } });
    const seed = node({
      driver: "raw",
      "node-name": "seed",
      "read-only": true,
      file: { driver: "file", filename: `${directory}/seed.iso` },
    });
    const line = [
      "qemu-system-x86_64 -nodefaults -no-user-config -display none -daemonize -machine pc-q35-6.2,hpet=off,vmport=off",
      // less than declared, as every emulated guest (decision 0020): a migration would lose writes
      `-accel tcg,tb-size=256 -cpu qemu64 -smp ${guestResources.cores} -m ${guestResources.memoryMib * 1024 - 8}K`,
      `-blockdev '${disk}' ${drive}=disk,serial=root,bootindex=1 -blockdev '${seed}' ${drive}=seed,serial=cidata`,
      `-netdev user,id=net,hostfwd=tcp::${plainPort}-:8080 -device virtio-net-pci,netdev=net`,
      "-device virtio-balloon-pci,free-page-reporting=on -device virtio-rng-pci",
      `-serial file:${directory}/console -qmp unix:${directory}/qmp.sock,server=on,wait=off -pidfile ${directory}/pid`,
      incoming === undefined ? "" : `-incoming '${incoming}'`,
    ];
    await this.host.run(line.join(" "));
  }

  /** The guest answers, and does what is expected of it. */
  async answers(timeoutMillis: number): Promise<void> {
    const deadline = Date.now() + timeoutMillis;
    const asked = ["curl", "-s", "-f", "-m", "2", `http://127.0.0.1:${plainPort}/peek`];
    while ((await this.host.exec(asked)).exitCode !== 0) {
      if (Date.now() > deadline) throw new Error(`the guest on ${this.host.name} does not answer`);
      await sleep(500);
    }
  }

  async execute(command: string, args?: Record<string, unknown>): Promise<unknown> {
    return (await this.#connected()).execute(command, args);
  }

  /** Waits until QEMU has told this. */
  async event(name: string, timeoutMillis: number): Promise<void> {
    const qmp = await this.#connected();
    await until(() => Promise.resolve(qmp.events.some(({ event }) => event === name)), { what: name, timeoutMillis });
  }

  /** Ends QEMU; the disk stays. */
  async quit(): Promise<void> {
    this.#qmp?.close();
    this.#qmp = undefined;
    const end = `[ ! -e ${directory}/pid ] || { pid=$(cat ${directory}/pid); kill $pid; for i in $(seq 200); do kill -0 $pid || break; sleep 0.05; done; rm -f ${directory}/pid; } 2>/dev/null`;
    await this.host.exec(end);
  }

  async remove(): Promise<void> {
    await this.quit();
    await this.host.run(`rm -rf ${directory}`);
  }

  async #connected(): Promise<Qmp> {
    const path = `/proc/${this.host.pids[0]}/root${directory}/qmp.sock`;
    this.#qmp ??= await connectQmp(path, {
      guest: `on ${this.host.name}`,
      deadlines: { default: 120_000, stop: 120_000, greeting: 60_000 },
    });
    return this.#qmp;
  }
}

const resize = `qemu-img resize -q ${diskPath} ${guestResources.diskMib}M`;

export async function until(done: () => Promise<boolean>, { what, timeoutMillis }: { what: string; timeoutMillis: number }): Promise<void> {
  for (const deadline = Date.now() + timeoutMillis; !(await done()); await sleep(20)) {
    if (Date.now() > deadline) throw new Error(`${what} did not come within ${Math.round(timeoutMillis / 1000)} s`);
  }
}
