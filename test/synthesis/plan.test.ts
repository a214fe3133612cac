import { describe, expect, it } from "vitest";
import { plan } from "../../provider/synthesis/plan.ts";
import type { PlanInput } from "../../provider/synthesis/plan.ts";

const base = "a".repeat(64);
const machine = {
  type: "pc-q35-6.2",
  accelerator: "kvm" as const,
  cpu: { model: "host", flags: ["sse4_2", "avx"] },
  cores: 1,
  memoryMib: 256,
};

function input(change: {
  spec?: Partial<PlanInput["spec"]>;
  holding?: Partial<PlanInput["holding"]>;
  ground?: PlanInput["ground"];
  place?: PlanInput["place"] | null;
  importsState?: boolean;
}): PlanInput {
  return {
    spec: { kind: "kvm", state: "running", resources: { cores: 1, memoryMib: 256, diskMib: 1024 }, base, volumes: 0, ...change.spec },
    holding: { base, diskMib: 1024, machine, ...change.holding },
    ground: change.ground ?? { accelerator: "kvm", cpuModel: "host", cpuFlags: ["sse4_2", "avx", "avx2"], machineTypes: ["pc-q35-6.2"] },
    place: change.place === null ? undefined : (change.place ?? "here"),
    importsState: change.importsState,
  };
}

const emulated = { ...machine, accelerator: "tcg" as const, cpu: { model: "qemu64", flags: [] } };

describe("the rung of the start ladder", () => {
  it.each([
    ["resume", /are on the node/, {}],
    ["lazy", /on another node/, { place: "elsewhere" }],
    [undefined, /at once where the overlay is on the node/, { place: null }],
    [undefined, /not known yet/, { ground: {} }],
    ["resume", /are on the node/, { spec: { state: "suspended" } }],
    ["resume", /are on the node/, { holding: { machine: emulated }, ground: { accelerator: "tcg", cpuModel: "qemu64", cpuFlags: [] } }],
    ["boot", /no memory/, { holding: { machine: undefined } }],
    ["boot", /no memory/, { holding: { machine: undefined }, ground: {}, place: null }],
    ["boot", /container/, { spec: { kind: "lxd" }, ground: { accelerator: "none" } }],
    ["boot", /declared stopped/, { spec: { state: "stopped" } }],
    ["boot", /volumes are attached at boot/, { spec: { volumes: 1 } }],
    ["boot", /state files/, { importsState: true }],
    ["boot", /2 cores.*1 core/, { spec: { resources: { cores: 2, memoryMib: 256, diskMib: 1024 } } }],
    ["boot", /512 MiB.*256 MiB/, { spec: { resources: { cores: 1, memoryMib: 512, diskMib: 1024 } } }],
    ["boot", /2048 MiB.*1024 MiB/, { spec: { resources: { cores: 1, memoryMib: 256, diskMib: 2048 } } }],
    ["boot", /with tcg on the node.*with kvm/, { ground: { accelerator: "tcg", cpuModel: "qemu64", cpuFlags: [] } }],
    ["boot", /with kvm on the node.*with tcg/, { holding: { machine: emulated } }],
    ["boot", /processor EPYC.*with host/, { ground: { accelerator: "kvm", cpuModel: "EPYC", cpuFlags: ["sse4_2", "avx"] } }],
  ] satisfies [string | undefined, RegExp, Parameters<typeof input>[0]][])("is %s: %s", (rung, reason, change) => {
    expect(plan(input(change))).toEqual({ rung, reason: expect.stringMatching(reason) });
  });

  it.each([
    ["overlay", /base bbbbbbbbbbbb.*base is aaaaaaaaaaaa/, { holding: { base: "b".repeat(64) } }],
    ["resources.diskMib", /is 512.*1024 MiB/, { spec: { resources: { cores: 1, memoryMib: 256, diskMib: 512 } } }],
    ["overlay", /needs a processor with avx\b/, { ground: { accelerator: "kvm", cpuModel: "host", cpuFlags: ["sse4_2"] } }],
    ["overlay", /machine type pc-q35-6.2.*knows pc-q35-5.2/, { ground: { accelerator: "kvm", machineTypes: ["pc-q35-5.2"] } }],
    ["overlay", /needs a processor with sse4_2, avx/, { ground: { accelerator: "kvm", cpuFlags: [] }, place: null }],
  ] satisfies [string, RegExp, Parameters<typeof input>[0]][])("is refused at %s: %s", (path, message, change) => {
    expect(plan(input(change))).toEqual({ refusal: { path, message: expect.stringMatching(message), fix: expect.any(String) } });
  });
});
