import { z } from "zod";
import type { LabHost } from "../lab/host.ts";
import { diskPath, statePath, until, type PlainGuest } from "./plainQemu.ts";

/** What is not over by then is told as not ended. */
const mostMillis = 1_200_000;
const streamPort = 9001;

/** From where to where a plain guest goes. */
export interface Ends {
  from: PlainGuest;
  to: PlainGuest;
}

/** QEMU's own way, as its managers go it: the disk mirrored to an NBD export, then memory by multifd through zstd. */
export async function liveMigration({ from, to }: Ends): Promise<void> {
  const deadline = Date.now() + mostMillis;
  const left = (): number => Math.max(1, deadline - Date.now());
  const { address } = to.host;
  await to.start("defer");
  await multifd(to);
  await to.execute("nbd-server-start", { addr: { type: "inet", data: { host: "0.0.0.0", port: "10809" } } });
  await to.execute("block-export-add", { type: "nbd", id: "disk", "node-name": "disk", name: "disk", writable: true });
  await to.execute("migrate-incoming", { uri: "tcp:0.0.0.0:4444" });
  const server = { type: "inet", host: address, port: "10809" };
  await from.execute("blockdev-add", { driver: "nbd", "node-name": "far", server, export: "disk" });
  await from.execute("blockdev-mirror", { "job-id": "mirror", device: "disk", target: "far", sync: "full" });
  await from.event("BLOCK_JOB_READY", left());
  await multifd(from);
  await from.execute("migrate-set-capabilities", { capabilities: [{ capability: "pause-before-switchover", state: true }] });
  // as long as ours may take by default
  await from.execute("migrate-set-parameters", { "downtime-limit": 1000, "max-bandwidth": 10 * 1024 ** 3 });
  await from.execute("migrate", { uri: `tcp:${address}:4444` });
  await migrationIs(from, "pre-switchover", left());
  await from.execute("block-job-cancel", { device: "mirror" });
  await from.event("BLOCK_JOB_COMPLETED", left());
  await from.execute("migrate-continue", { state: "pre-switchover" });
  await migrationIs(from, "completed", left());
  await to.execute("nbd-server-stop");
}

/** The guest stands still while its memory and its disk, through `zstd -3`, are copied. */
export async function suspendCopyResume({ from, to }: Ends): Promise<void> {
  await from.execute("stop");
  const state = receive(to.host, statePath);
  await from.execute("migrate-set-parameters", { "max-bandwidth": 10 * 1024 ** 3 });
  await from.execute("migrate", { uri: `exec:zstd -3 -q -c | ${sendTo(to.host)}` });
  await migrationIs(from, "completed", mostMillis);
  await state;
  await copyDisk({ from, to });
  await to.start(`exec:zstd -dcq ${statePath}`);
  await migrationIs(to, "completed", 120_000);
  await to.execute("cont");
}

/** What has no way to save memory: the whole disk is copied, through `zstd -3`, and boots. */
export async function fullCopyBoot(ends: Ends): Promise<void> {
  await ends.from.execute("stop");
  await copyDisk(ends);
  await ends.to.start();
}

async function copyDisk({ from, to }: Ends): Promise<void> {
  await from.quit();
  const received = receive(to.host, `${diskPath}.zst`);
  await from.host.run(`zstd -3 -q -c ${diskPath} | ${sendTo(to.host)}`, { timeoutMillis: mostMillis });
  await received;
  await to.host.run(`zstd -dqf --sparse ${diskPath}.zst -o ${diskPath}`, { timeoutMillis: 300_000 });
}

async function multifd(guest: PlainGuest): Promise<void> {
  await guest.execute("migrate-set-capabilities", { capabilities: [{ capability: "multifd", state: true }] });
  await guest.execute("migrate-set-parameters", { "multifd-channels": 2, "multifd-compression": "zstd" });
}

const migrationSchema = z.object({ status: z.string().optional(), "error-desc": z.string().optional() });

async function migrationIs(guest: PlainGuest, wanted: string, timeoutMillis: number): Promise<void> {
  const done = async (): Promise<boolean> => {
    const { status, "error-desc": error } = migrationSchema.parse(await guest.execute("query-migrate"));
    if (status === "failed") throw new Error(`QEMU's migration failed: ${error ?? "it does not say why"}`);
    return status === wanted;
  };
  await until(done, { what: `a migration that is ${wanted}`, timeoutMillis });
}

/** What comes by the next connection, in a file. */
async function receive(host: LabHost, path: string): Promise<void> {
  const program =
    'use IO::Socket::INET; my $s = IO::Socket::INET->new(Listen => 1, LocalPort => $ARGV[0], ReuseAddr => 1) or die "$!"; my $c = $s->accept; while (sysread $c, my $part, 1 << 16) { print $part }';
  await host.run(`perl -e '${program}' ${streamPort} >${path}`, { timeoutMillis: mostMillis });
}

/** A command of a shell that sends its input to who receives on the host, once that listens. */
function sendTo(host: LabHost): string {
  const program =
    'use IO::Socket::INET; my $s; for (1 .. 100) { last if $s = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => $ARGV[1]); select undef, undef, undef, 0.1 } die "no connection" unless $s; while (sysread STDIN, my $part, 1 << 16) { print $s $part or die "$!" }';
  return `perl -e '${program}' ${host.address} ${streamPort}`;
}
