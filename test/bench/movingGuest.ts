import type { InstanceSpec, OverlayStatus } from "../../provider/agent/protocol.ts";
import { guestResources } from "./workload.ts";

export const cloudlet = "bench/application";
export const owner = "benchmarks/handoff";
export const uniqueMib = { memory: 40, disk: 20, freed: 100 };
/** What it rewrites each time that it counts. */
export const countMegabytes = 0.1;

/** A web server that answers with a counter, 20 times a second 100 KB of memory rewritten, and what nothing can compress. */
export const moving = [
  "mkdir -p /srv",
  "ln -sf /dev/shm/peek /srv/peek",
  `dd if=/dev/urandom of=/dev/shm/unique bs=1048576 count=${uniqueMib.memory} 2>/dev/null`,
  `dd if=/dev/urandom of=/var/unique bs=1048576 count=${uniqueMib.disk} 2>/dev/null`,
  `dd if=/dev/urandom of=/var/rubbish bs=1048576 count=${uniqueMib.freed} 2>/dev/null`,
  "sync",
  "rm /var/rubbish",
  "sync",
  "cat >/usr/bin/busy <<'END'",
  "#!/bin/sh",
  "n=0",
  "read up _ </proc/uptime",
  "next=${up%.*}${up#*.}",
  "while :; do",
  // both in place: a file that is made anew would be empty for a moment
  `  head -c ${countMegabytes * 1e6} /dev/urandom 1<>/dev/shm/busy`,
  "  n=$((n + 1))",
  "  echo $n 1<>/dev/shm/peek",
  "  next=$((next + 5))",
  "  read up _ </proc/uptime",
  "  left=$((next - ${up%.*}${up#*.}))",
  "  [ $left -le 0 ] || usleep $((left * 10000))",
  // what a busy host has kept it from is not made up for
  "  [ $left -ge -20 ] || next=$((next - left))",
  "done",
  "END",
  "chmod 755 /usr/bin/busy",
  // instead of the image's own application, which starts a shell for each answer; what is in memory must begin anew after a boot
  "printf '#!/bin/sh\\n[ -e /dev/shm/peek ] || setsid busy >/dev/null 2>&1 </dev/null &\\nexec httpd -f -p 8080 -h /srv\\n' >/etc/init.d/application",
  "setsid busy >/dev/null 2>&1 </dev/null &",
  "until [ -s /dev/shm/peek ]; do usleep 10000; done",
  "kill $(pidof nc) 2>/dev/null; true",
].join("\n");

/** The cloudlet, resumed from the memory of its base, which both gateways have; it becomes the moving one by `moving`. */
export function specOf(base: string, memory: OverlayStatus): InstanceSpec {
  return {
    id: cloudlet,
    owner,
    kind: "kvm",
    state: "running",
    base: { digest: base },
    resources: { ...guestResources, memoryMib: memory.resources.memoryMib },
    ports: [{ port: 8080, hostPort: 8080, protocol: "tcp" }],
    files: [],
    environment: {},
    volumes: [],
    stateFiles: [],
    ready: { http: { port: 8080, path: "/peek" }, timeoutSeconds: 600 },
    overlay: { digest: memory.digest },
    hydrate: { timeoutSeconds: 3600, onTimeout: "wait" },
  };
}
