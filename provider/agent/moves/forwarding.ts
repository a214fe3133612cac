import { isIPv4 } from "node:net";
import { describeError } from "../../core/errors.ts";
import type { JobContext } from "../jobs.ts";
import type { InstanceSpec } from "../protocol.ts";
import type { Forward, InstanceRecord } from "../records.ts";
import type { Services } from "../services.ts";

type Ports = InstanceSpec["ports"];

/** Clients who still come to this node are passed on to the one where the cloudlet is now, for a while. No move fails for that. */
export async function passClientsOn(
  services: Services,
  { spec }: InstanceRecord,
  { there, context }: { there: { address: string | undefined; ports: Ports }; context: JobContext },
): Promise<void> {
  if (spec.ports.length === 0) return;
  const without = (why: string): void => context.status(`clients of this node are not passed on to the new place of ${spec.id}: ${why}`);
  try {
    const { address, ports } = there;
    if (address === undefined) return without("the nodes cannot reach each other directly");
    if (!isIPv4(address)) return without(`the other node is reached by IPv6 only, at ${address}`);
    await services.lock.run("hypervisor", () => begin(services, spec, { address, ports }));
    context.step("passing");
  } catch (error) {
    without(describeError(error));
  }
}

/** A cloudlet that wants a port here comes before the clients of one that has left. */
export async function endForwards({ records }: Pick<Services, "records">, wanted: Pick<InstanceSpec, "id" | "ports">): Promise<void> {
  for (const { spec, forward } of await records.list()) {
    if (spec.id === wanted.id || forward === undefined) continue;
    const ports = forward.ports.filter((port) => !wanted.ports.some((other) => isSame(port, other)));
    if (ports.length < forward.ports.length) await records.update(spec.id, (record) => withForward(record, { ...forward, ports }));
  }
}

async function begin(services: Services, spec: InstanceSpec, there: { address: string; ports: Ports }): Promise<void> {
  const { records, network } = services;
  const others = (await records.list()).filter((other) => other.spec.id !== spec.id && other.ownership.role !== "released");
  const taken = others.flatMap((other) => other.spec.ports);
  const ports = spec.ports
    .filter((port) => !taken.some((other) => isSame(port, other)))
    .flatMap(({ port, protocol, hostPort }) => {
      const target = there.ports.find((other) => other.port === port && other.protocol === protocol);
      return target === undefined ? [] : [{ protocol, hostPort, targetPort: target.hostPort }];
    });
  await records.update(spec.id, (record) => withForward(record, { address: there.address, ports, since: Date.now() }));
  try {
    await network.publish(await records.list());
  } catch (error) {
    // a kernel that cannot do this must not keep other cloudlets from being published
    await records.update(spec.id, (record) => withForward(record, undefined));
    await network.publish(await records.list());
    throw error;
  }
}

function withForward({ forward: _, ...record }: InstanceRecord, forward: Forward | undefined): InstanceRecord {
  return forward === undefined || forward.ports.length === 0 ? record : { ...record, forward };
}

function isSame(a: { protocol: string; hostPort: number }, b: { protocol: string; hostPort: number }): boolean {
  return a.protocol === b.protocol && a.hostPort === b.hostPort;
}
