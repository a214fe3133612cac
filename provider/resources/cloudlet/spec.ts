import type { InstanceSpec } from "../../agent/protocol.ts";
import { CloudletError } from "../../core/errors.ts";
import { toFiles, toReady } from "../guest.ts";
import type { Base } from "../images.ts";
import { parseHypervisor } from "../shared.ts";
import type { Inputs } from "./fields.ts";

export function idOf({ cluster, name }: { cluster: string; name: string }): string {
  return `${cluster}/${name}`;
}

/** The overlay that it starts from: its own, else the base's memory where nothing is declared that only a boot brings about. */
export function overlayOf({
  overlay,
  base,
  files,
  environment,
  userData,
  resources,
}: Pick<Inputs, "overlay" | "base" | "files" | "environment" | "userData" | "resources">): string | undefined {
  if (overlay !== undefined) return overlay.digest;
  const { memory } = base;
  if (memory === undefined || files.length > 0 || Object.keys(environment).length > 0 || userData !== undefined) return undefined;
  const same = resources.cores === memory.cores && resources.memoryMib === memory.sizeMib && resources.diskMib === memory.diskMib;
  return same ? memory.digest : undefined;
}

/** The agent's view of a cloudlet, from complete inputs. */
export function toSpec(want: Inputs): InstanceSpec {
  const { digest } = want.base;
  if (digest === undefined) throw new CloudletError("BUG", `cloudlet "${idOf(want)}" has no base digest after check`);
  const first = want.ports.find((port) => port.protocol === "tcp");
  const ready = want.ready ?? (first && { tcp: first.port, timeoutSeconds: 120 });
  const overlay = overlayOf(want);
  return {
    id: idOf(want),
    owner: want.owner,
    kind: parseHypervisor(want.hypervisor).kind,
    state: want.state,
    base: { digest },
    ...(want.build?.digest !== undefined && {
      build: {
        digest: want.build.digest,
        start: want.build.start,
        ...(want.build.command !== undefined && { command: want.build.command }),
      },
    }),
    resources: want.resources,
    ports: want.ports.map(({ port, hostPort = port, protocol }) => ({ port, hostPort, protocol })),
    files: toFiles(want.files),
    environment: want.environment,
    ...(want.userData !== undefined && { userData: want.userData }),
    volumes: want.volumes.map(({ volume, path }) => ({ id: volume, path })),
    stateFiles: want.stateFiles,
    ...(ready && { ready: toReady(ready) }),
    ...(overlay !== undefined && { overlay: { digest: overlay }, hydrate: want.hydrate }),
  };
}

/** What a program would declare to get this, with digests for what it would name by where it comes from. */
export function toDeclared(spec: InstanceSpec): Record<string, unknown> & { base: Base } {
  const { ready, ports } = spec;
  const first = ports.find(({ protocol }) => protocol === "tcp");
  const usual = first && toReady({ tcp: first.port, timeoutSeconds: 120 });
  return {
    base: { digest: spec.base.digest },
    build: spec.build,
    overlay: spec.overlay,
    files: spec.files.map(({ path, mode, content }) => ({ path, mode, content: Buffer.from(content, "base64").toString() })),
    volumes: spec.volumes.map(({ id, path }) => ({ volume: id, path })),
    userData: spec.userData,
    ...(ready && JSON.stringify(ready) !== JSON.stringify(usual) && { ready: { ...ready, tcp: ready.tcp?.port } }),
  };
}
