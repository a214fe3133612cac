import { createReadStream, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { paths } from "../../../provider/agent/protocol.ts";
import type { Login, Makings } from "../../../provider/agent/protocol.ts";
import { run } from "../../lab/run.ts";
import { openOverlayBench, owner } from "./bench.ts";
import type { OverlayBench } from "./bench.ts";
import { dropbear, plainGuest } from "./plainGuest.ts";

const password = "open sesame";

describe("an overlay over a base without cloud-init and guest agent", () => {
  let bench: OverlayBench;
  let directory: string;
  let privateKey: string;
  let base: { file: string; digest: string };

  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), "cloudlet-furnish-"));
    bench = await openOverlayBench("furnish");
    await run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", join(directory, "key")]);
    privateKey = readFileSync(join(directory, "key"), "utf8");
    const hash = (await run(["openssl", "passwd", "-1", password])).trim();
    const puts = await dropbear(join(directory, "dropbear"), readFileSync(join(directory, "key.pub"), "utf8"));
    base = await plainGuest(bench.base.file, {
      directory: join(directory, "image"),
      puts: [...puts, { path: "/etc/passwd", mode: 0o644, text: `root:${hash}:0:0:root:/root:/bin/sh\n` }],
      also: "(while :; do getty -L 115200 ttyS0 vt100; done) &\n(sleep 1; dropbear -R) &",
    });
    await bench.client("gw1").putBlob({ digest: base.digest, bytes: statSync(base.file).size, stream: () => createReadStream(base.file) });
  });
  afterAll(async () => {
    await bench?.gateways.close();
    rmSync(directory, { recursive: true, force: true });
  });

  const makings = (): Makings => ({
    ...bench.makings(
      '[ "$(cat /etc/app/name)" = "$NAME" ] && grep -q recogniser /etc/environment && [ "$(stat -c %a /etc/app/name)" = 640 ]',
    ),
    base: base.digest,
    files: [{ path: "/etc/app/name", content: Buffer.from("recogniser").toString("base64"), mode: 0o640 }],
    environment: { NAME: "recogniser" },
  });

  async function expectFurnished(name: string, login: Login): Promise<void> {
    const overlay = await bench.client("gw1").run("overlay.build", { name, owner, makings: { ...makings(), userData: name }, login });
    console.log(`${name}: built in ${String(overlay.buildMillis)} ms`);
    const spec = { ...bench.spec(name, overlay.digest), base: { digest: base.digest } };
    const { provision } = await bench.apply("gw1", spec);
    expect(provision).toMatchObject({ rung: "resume" });
    expect(await bench.ask("gw1", name)).toContain("counter");
    await bench.remove("gw1", name);
    expect(bench.list("gw1", "builds")).toEqual([]);
  }

  it("is furnished over SSH", async () => {
    await expectFurnished("ssh", { ssh: { user: "root", port: 22, privateKey } });
    const said = await bench.gateways.lab.hosts.gw1.run(`cat ${paths.root}/jobs/* ${paths.log}; true`);
    expect(said).toContain("through SSH as root");
    expect(said).not.toContain(privateKey.split("\n")[2]);
  });

  it("is furnished over SSH in a guest that goes on from saved memory, with a network of another time", async () => {
    const login = { ssh: { user: "root", port: 22, privateKey } };
    const { digest: parent } = await bench
      .client("gw1")
      .run("overlay.build", { name: "below", owner, makings: { ...makings(), userData: "ssh" }, login });
    const script = '[ "$(cat /etc/app/name)" = other ] && [ "$NAME" = recogniser ]';
    const files = [{ path: "/etc/app/name", content: Buffer.from("other").toString("base64"), mode: 0o644 }];
    const above = await bench
      .client("gw1")
      .run("overlay.build", { name: "above", owner, makings: { ...makings(), parent, script, files }, login });
    expect(above.parent).toBe(parent);
  });

  it("is furnished over the serial console", async () => {
    await expectFurnished("console", { console: { user: "root", password } });
    expect(await bench.gateways.lab.hosts.gw1.run(`cat ${paths.root}/jobs/* ${paths.log}; true`)).not.toContain(password);
  });
});
