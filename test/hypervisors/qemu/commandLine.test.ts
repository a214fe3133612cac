import { describe, expect, it } from "vitest";
import { commandLine, sandboxRules } from "../../../provider/hypervisors/qemu/commandLine.ts";
import type { Machine } from "../../../provider/hypervisors/qemu/commandLine.ts";

const machine: Machine = {
  name: "demo-1a2b3c4d",
  accelerator: "tcg",
  cores: 2,
  memoryMib: 256,
  disk: "/g/disk.qcow2",
  seed: "/g/seed.iso",
  volumes: [],
  nic: { tap: "cl01234567", mac: "02:00:00:00:00:07" },
  sockets: { qmp: "/g/qmp.sock", status: "/g/status.sock", guestAgent: "/g/ga.sock" },
  console: "/g/console.log",
  sandbox: true,
};

const valuesOf = (argv: string[], option: string) => argv.flatMap((word, index) => (argv[index - 1] === option ? [word] : []));

it("is this line for a small guest", () => {
  expect(commandLine(machine)).toMatchSnapshot();
});

describe("each setting shows in the line", () => {
  const table: [string, Partial<Machine>, string, string][] = [
    ["hardware acceleration", { accelerator: "kvm" }, "-accel", "kvm"],
    ["the host's processor with kvm", { accelerator: "kvm" }, "-cpu", "host"],
    ["a common processor with tcg", {}, "-cpu", "qemu64"],
    ["cores", { cores: 7 }, "-smp", "7"],
    ["memory", { accelerator: "kvm", memoryMib: 333 }, "-m", "333M"],
    ["emulated memory that is no multiple of 256 KiB", { memoryMib: 333 }, "-m", "340984K"],
    ["the user to become", { user: "cloudlet" }, "-runas", "cloudlet"],
    ["a filter that lets it become a user", { user: "cloudlet" }, "-sandbox", sandboxRules(true)],
    ["a filter that does not", {}, "-sandbox", sandboxRules(false)],
    ["the tap", {}, "-netdev", "tap,id=net,ifname=cl01234567,script=no,downscript=no"],
    ["where saved memory arrives", { incoming: "unix:/run/x/state.sock" }, "-incoming", "unix:/run/x/state.sock"],
    ["a pinned processor", { accelerator: "kvm", pinned: { type: "pc-q35-7.2", cpu: "Nehalem" } }, "-cpu", "Nehalem"],
    ["a pinned machine type", { pinned: { type: "pc-q35-7.2", cpu: "qemu64" } }, "-machine", "pc-q35-7.2,hpet=off,vmport=off"],
    [
      "memory that comes from a file, under the name that it has without one",
      { memory: { path: "/g/memory", shared: false } },
      "-object",
      "memory-backend-file,id=pc.ram,size=262136K,mem-path=/g/memory,share=off,x-use-canonical-path-for-ramblock-id=off",
    ],
    ["commas in paths", { console: "/a,b/console.log" }, "-chardev", "file,id=console,path=/a,,b/console.log,append=on"],
    [
      "commas in disks",
      { disk: "/a,b" },
      "-blockdev",
      JSON.stringify({
        driver: "qcow2",
        "node-name": "disk",
        discard: "unmap",
        "detect-zeroes": "unmap",
        file: { driver: "file", filename: "/a,b", discard: "unmap" },
      }),
    ],
  ];
  it.each(table)("%s", (_name, change, ...[option, value]) => {
    expect(valuesOf(commandLine({ ...machine, ...change }), option)).toContain(value);
  });
});

it("gives each volume its serial and a fixed slot", () => {
  const devices = valuesOf(
    commandLine({
      ...machine,
      volumes: [
        { path: "/v/a", serial: "vol-a" },
        { path: "/v/b", serial: "vol-b" },
      ],
    }),
    "-device",
  );
  expect(devices.filter((device) => device.includes("vol-"))).toEqual([
    "virtio-blk-pci,drive=volume0,serial=vol-a,addr=0x8",
    "virtio-blk-pci,drive=volume1,serial=vol-b,addr=0x9",
  ]);
});

it("has no filter and no user where there are none", () => {
  const argv = commandLine({ ...machine, sandbox: false });
  expect(argv).not.toContain("-sandbox");
  expect(argv).not.toContain("-runas");
});
