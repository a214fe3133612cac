import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { imageFacts } from "../../../provider/agent/synthesis/imageFormat.ts";
import { imageStatus, keepImage, releaseImage } from "../../../provider/agent/synthesis/images.ts";
import { context, testAgent } from "../fixture.ts";
import type { TestAgent } from "../fixture.ts";

const file = "/store/image";

describe("what qemu-img says of an image", () => {
  it.each([
    ["qcow2", { format: "qcow2" }],
    ["raw", { format: "raw" }],
    ["vhdx", { format: "vhdx" }],
    ["vmdk", { format: "vmdk", "format-specific": { data: { extents: [{ filename: file }] } } }],
  ])("is taken for %s", (format, info) => {
    expect(imageFacts({ "virtual-size": 1024, ...info }, file)).toEqual({ kind: "kvm", format, virtualBytes: 1024 });
  });

  it.each([
    [/backing file \/etc\/shadow/, { format: "qcow2", "backing-filename": "/etc/shadow" }],
    [/data in another file, \/dev\/sda/, { format: "qcow2", "format-specific": { data: { "data-file": "/dev/sda" } } }],
    [
      /another file, \/etc\/shadow/,
      { format: "vmdk", "format-specific": { data: { extents: [{ filename: file }, { filename: "/etc/shadow" }] } } },
    ],
    [/encrypted/, { format: "qcow2", encrypted: true }],
    [/format luks/, { format: "luks" }],
    [/format vdi/, { format: "vdi" }],
    [/not understood/, { format: 3 }],
  ])("is refused: %s", (message, info) => {
    expect(() => imageFacts({ "virtual-size": 1024, ...info }, file)).toThrow(message);
  });
});

describe("an image that is kept", () => {
  let agent: TestAgent;
  let looks = 0;
  beforeEach(async () => {
    agent = await testAgent();
    looks = 0;
    // a qemu-img that takes everything for a qcow2
    agent.services.run = () => {
      looks++;
      return Promise.resolve({ stdout: JSON.stringify({ format: "qcow2", "virtual-size": 4096 }), stderr: "", exitCode: 0 });
    };
  });
  afterEach(() => {
    agent.remove();
  });

  it("stays until its last owner has released it", async () => {
    const digest = await agent.store("image");
    const status = await keepImage(agent.services, { name: "debian", owner: "p/a", digest }, context());
    expect(status).toEqual({ digest, kind: "kvm", format: "qcow2", bytes: 5, virtualBytes: 4096, owners: ["p/a"] });
    await keepImage(agent.services, { name: "other", owner: "p/b", digest }, context());
    await releaseImage(agent.services, { name: "debian", owner: "p/a" }, context());
    expect(await imageStatus(agent.services, "debian", "p/a")).toBeUndefined();
    expect(await imageStatus(agent.services, "other", "p/b")).toMatchObject({ owners: ["p/b"] });
    expect(await agent.services.store.has(digest)).toBe(true);
    await releaseImage(agent.services, { name: "other", owner: "p/b" }, context());
    expect(await agent.services.store.list()).toEqual([]);
  });

  it("is looked into once, and another one takes its place", async () => {
    const [first, second] = [await agent.store("image"), await agent.store("newer")];
    await keepImage(agent.services, { name: "debian", owner: "p/a", digest: first }, context());
    await keepImage(agent.services, { name: "debian", owner: "p/a", digest: first }, context());
    expect(looks).toBe(1);
    await keepImage(agent.services, { name: "debian", owner: "p/a", digest: second }, context());
    expect(await agent.services.store.list()).toEqual([second]);
  });

  it("must be in the store, and is refused where it is a descriptor of other files", async () => {
    await expect(keepImage(agent.services, { name: "debian", owner: "p/a", digest: "0".repeat(64) }, context())).rejects.toMatchObject({
      code: "NOT_FOUND",
    });
    const digest = await agent.store('# Disk DescriptorFile\nRW 2048 FLAT "/etc/shadow" 0\n');
    await expect(keepImage(agent.services, { name: "debian", owner: "p/a", digest }, context())).rejects.toMatchObject({
      code: "REFUSED",
      message: expect.stringContaining("vmdk descriptor"),
    });
    expect(looks).toBe(0);
    expect(await agent.services.images.list()).toEqual([]);
  });
});
