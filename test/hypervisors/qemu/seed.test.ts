import { expect, it } from "vitest";
import { seedOf, volumeSerial } from "../../../provider/hypervisors/qemu/seed.ts";
import type { Guest } from "../../../provider/hypervisors/types.ts";
import { describeGuest } from "./bench.ts";

const plain = describeGuest("shop/counter", "/base.qcow2", "br0");
const withSpec = (changes: Partial<Guest["spec"]>): Guest => ({ ...plain, spec: { ...plain.spec, ...changes } });
const base64 = (text: string) => Buffer.from(text).toString("base64");

it("writes this script for a guest with environment, files and a volume", () => {
  const guest = withSpec({
    environment: { SECOND: 'say "hi" for $5 `now` \\o/', FIRST: "plain" },
    files: [
      { path: "/etc/app/it's.conf", content: base64("x".repeat(100)), mode: 0o640 },
      { path: "/top", content: "", mode: 0o755 },
    ],
  });
  const seed = seedOf({ ...guest, volumes: [{ id: "shop/data", path: "/var/lib/data", hostPath: "/v/data" }] });
  expect(seed.files["vendor-data"]).toMatchSnapshot();
});

it("passes the user's data through unchanged", () => {
  expect(seedOf(withSpec({ userData: "#cloud-config\n{}\n" })).files["user-data"]).toBe("#cloud-config\n{}\n");
  expect(seedOf(plain).files["user-data"]).toBe("");
});

it("names the host after the cloudlet and finds its network card by address", () => {
  const { files } = seedOf(plain);
  expect(files["meta-data"]).toContain("local-hostname: counter\n");
  expect(files["network-config"]).toContain('macaddress: "02:00:00:00:00:07"');
});

it("changes the instance id with its contents, and only then", () => {
  const id = (guest: Guest) => seedOf(guest).instanceId;
  expect(id(withSpec({ resources: { cores: 4, memoryMib: 512, diskMib: 1024 } }))).toBe(id(plain));
  const changed = [
    withSpec({ userData: "x" }),
    withSpec({ environment: { A: "b" } }),
    withSpec({ files: [{ path: "/a", content: "", mode: 0o600 }] }),
  ];
  expect(new Set([plain, ...changed].map(id)).size).toBe(4);
});

it("writes no lines of a file's content that could end the script's own text", () => {
  const environment = { TRICK: "x\nEND\nrm -rf /" };
  const script = seedOf(withSpec({ environment })).files["vendor-data"];
  expect(script).toContain("<<'END_'");
});

it("keeps serial numbers within virtio's 20 characters", () => {
  expect(volumeSerial("a-very-long-project-name/a-very-long-volume-name")).toMatch(/^vol-[0-9a-f]{16}$/);
});
