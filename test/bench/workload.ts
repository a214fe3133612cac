import type { Makings } from "../../provider/agent/protocol.ts";

/** The guest of every benchmark: as in "Just-in-Time Provisioning for Cyber Foraging" (MobiSys 2013), with one core. */
export const guestResources = { cores: 1, memoryMib: 1024, diskMib: 8192 };

/** Sizes of the paper's overlays in MB, compressed, by application, and one that does nothing. */
export const applications = { idle: 0, FLUID: 2.5, FACE: 36, OBJECT: 45, SPEECH: 65, AR: 197 } as const;
export type Application = keyof typeof applications;

/**
 * What makes an overlay of about that size: a web server, and random bytes that nothing can compress, half of them in
 * memory and half on the disk; and 100 MiB that were written and deleted again, as installing an application does.
 */
export function workload(application: Application, base: { base: string; parent: string | undefined }): Makings {
  // instead of the image's own application, which starts a shell for each answer: that is what would be measured
  const serve = [
    "mkdir -p /srv",
    `echo ${application} >/srv/peek`,
    "printf '#!/bin/sh\\nexec httpd -f -p 8080 -h /srv\\n' >/etc/init.d/application",
    "kill $(pidof nc)",
  ];
  const half = Math.round((applications[application] * 1e6) / 2 / 4096);
  const steps =
    half === 0
      ? []
      : [
          `dd if=/dev/urandom of=/dev/shm/unique bs=4096 count=${half} 2>/dev/null`,
          `dd if=/dev/urandom of=/var/unique bs=4096 count=${half} 2>/dev/null`,
          "dd if=/dev/urandom of=/var/rubbish bs=1048576 count=100 2>/dev/null",
          "sync",
          "rm /var/rubbish",
          "sync",
        ];
  return {
    kind: "kvm",
    base: base.base,
    ...(base.parent !== undefined && { parent: base.parent }),
    resources: guestResources,
    files: [],
    environment: {},
    script: [...serve, ...steps].join("\n"),
    ready: { http: { port: 8080, path: "/peek" }, timeoutSeconds: 120 },
  };
}
