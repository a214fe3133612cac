import type { InstanceSpec } from "../../agent/protocol.ts";
import { CloudletError } from "../../core/errors.ts";
import { parseHypervisor } from "../shared.ts";
import type { Inputs } from "./fields.ts";

export function idOf({ cluster, name }: { cluster: string; name: string }): string {
  return `${cluster}/${name}`;
}

/** The agent's view of a cloudlet, from complete inputs. */
export function toSpec(want: Inputs): InstanceSpec {
  const { digest } = want.base;
  if (digest === undefined) throw new CloudletError("BUG", `cloudlet "${idOf(want)}" has no base digest after check`);
  const first = want.ports.find((port) => port.protocol === "tcp");
  const ready = want.ready ?? (first && { tcp: first.port, timeoutSeconds: 120 });
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
    files: want.files.map(({ path, content, mode }) => ({ path, mode, content: Buffer.from(content).toString("base64") })),
    environment: want.environment,
    ...(want.userData !== undefined && { userData: want.userData }),
    volumes: want.volumes.map(({ volume, path }) => ({ id: volume, path })),
    stateFiles: want.stateFiles,
    ...(ready && {
      ready: {
        timeoutSeconds: ready.timeoutSeconds,
        ...(ready.tcp !== undefined && { tcp: { port: ready.tcp } }),
        ...("http" in ready && ready.http !== undefined && { http: ready.http }),
        ...("log" in ready && ready.log !== undefined && { log: ready.log }),
      },
    }),
  };
}
