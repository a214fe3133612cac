import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openSshShell } from "../../../provider/agent/synthesis/sshShell.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { run } from "../../lab/run.ts";

const signal = AbortSignal.timeout(120_000);
const options = { timeoutMillis: 30_000, signal };

describe("a shell over a guest's OpenSSH server", () => {
  let lab: Lab<"guest">;
  let directory: string;
  beforeAll(async () => {
    lab = await createLab({ name: "sshshell", hosts: [{ name: "guest" }] });
    directory = await mkdtemp(join(tmpdir(), "cloudlet-ssh-shell-"));
  });
  afterAll(async () => {
    await lab?.close();
    await rm(directory, { recursive: true, force: true });
  });

  const target = (user: string, privateKey = lab.hosts.guest.connection.privateKey) => ({
    address: lab.hosts.guest.address,
    ssh: { user, port: 22, privateKey },
    directory,
  });

  it.each(["root", "operator"])("runs scripts of any length as root where the login user is %s, and leaves nothing", async (user) => {
    const shell = await openSshShell(target(user), signal);
    const text = "ä'\"$`\\ ".repeat(50_000);
    const script = `id -u; printf %s '${text.replaceAll("'", "'\\''")}' | md5sum; cat; exit 255`;
    const md5 = createHash("md5").update(text).digest("hex");
    expect(await shell.run(script, options)).toEqual({ exitCode: 255, output: `0\n${md5}  -\n` });
    await expect(shell.run("sleep 60", { timeoutMillis: 1_000, signal })).rejects.toMatchObject({ code: "TIMEOUT" });
    await shell.close();
    expect(await readdir(directory)).toEqual([]);
  });

  it("says what the server says where it lets nobody in, and leaves no key", async () => {
    await run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", join(directory, "other")]);
    const key = await readFile(join(directory, "other"), "utf8");
    for (const name of ["other", "other.pub"]) await rm(join(directory, name));
    await expect(openSshShell(target("root", key), signal)).rejects.toMatchObject({
      code: "UNREACHABLE",
      message: expect.stringContaining("Permission denied"),
    });
    expect(await readdir(directory)).toEqual([]);
  });
});
