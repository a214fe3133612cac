import { chmodSync, copyFileSync, existsSync, lstatSync, lutimesSync, mkdirSync, readdirSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { run } from "../../test/lab/run.ts";

/** What one image is built from, and where it goes. */
export interface Recipe {
  /** Unpacked Debian packages. */
  packages: string;
  work: string;
  target: string;
}

/** Every time stamp in an image is this one, so that the same inputs give the same bytes. */
export const epoch = 1_700_000_000;

/** Busybox with all its names, the application, and what both images have in common. */
export async function fillUserland(root: string, packages: string): Promise<void> {
  for (const it of [
    "bin",
    "dev",
    "etc/init.d",
    "home",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr/bin",
    "usr/sbin",
    "usr/share/udhcpc",
    "var/lib",
    "var/log",
    "mnt",
  ]) {
    mkdirSync(join(root, it), { recursive: true });
  }
  chmodSync(join(root, "tmp"), 0o1777);
  chmodSync(join(root, "root"), 0o700);
  install(join(packages, "bin/busybox"), join(root, "bin/busybox"), 0o755);
  for (const applet of (await run([join(root, "bin/busybox"), "--list"])).trim().split("\n")) {
    if (applet !== "busybox") symlinkSync("busybox", join(root, "bin", applet));
  }
  guestFile(root, "init", { path: "sbin/init", mode: 0o755 });
  symlinkSync("/run/resolv.conf", join(root, "etc/resolv.conf"));
  guestFile(root, "counter", { path: "usr/bin/counter", mode: 0o755 });
  guestFile(root, "udhcpc", { path: "usr/share/udhcpc/default.script", mode: 0o755 });
  symlinkSync("../usr/share/udhcpc", join(root, "etc/udhcpc"));
  guestFile(root, "application", { path: "etc/init.d/application", mode: 0o755 });
  guestFile(root, "passwd", { path: "etc/passwd", mode: 0o644 });
  guestFile(root, "group", { path: "etc/group", mode: 0o644 });
}

/** Copies a file of the folder `guest` into an image. */
export function guestFile(root: string, name: string, to: { path: string; mode: number }): void {
  install(join(import.meta.dirname, "guest", name), join(root, to.path), to.mode);
}

export function install(source: string, target: string, mode: number): void {
  mkdirSync(dirname(target), { recursive: true });
  copyFileSync(source, target);
  chmodSync(target, mode);
}

/** Sets every time stamp below, children first, as making a child touches its folder. */
export function stopClock(path: string): void {
  if (!existsSync(path) && !lstatSync(path).isSymbolicLink()) return;
  if (lstatSync(path).isDirectory()) for (const name of readdirSync(path)) stopClock(join(path, name));
  lutimesSync(path, epoch, epoch);
}
