import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createReadStream } from "node:fs";
import { cp, readFile, rm } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join, resolve } from "node:path";
import { pipeline } from "node:stream/promises";
import { buildImages } from "../tools/images/images.ts";
import { engineEnvironment, programFolder } from "./engine.ts";
import { createLab, type Lab } from "./lab/lab.ts";

const example = resolve(import.meta.dirname, "../examples/pull-request-preview");
const languageHost = resolve(import.meta.dirname, "languageHost");

export interface Ran {
  code: number | null;
  /** All that was printed. */
  text: string;
}

/** The example in a folder of its own, as a job of a pull request has it: its script, and Pulumi's own command. */
export class Checkout {
  readonly directory: string;
  readonly #env: Record<string, string>;

  private constructor(directory: string, env: Record<string, string>) {
    this.directory = directory;
    this.#env = env;
  }

  static async open(): Promise<Checkout> {
    const directory = await programFolder();
    for (const name of ["ci.sh", "index.ts", "Pulumi.yaml"]) await cp(join(example, name), join(directory, name));
    const { PATH = "", ...env } = engineEnvironment(directory);
    const store = join(directory, "store");
    return new Checkout(directory, { ...env, PATH: `${languageHost}:${PATH}`, PULUMI_STACK: "dev", CLOUDLET_STORE_PATH: store });
  }

  /** A job: `secrets` are in its environment. */
  job(command: string, secrets: Record<string, string> = {}): Promise<Ran> {
    return this.#run(["./ci.sh", command], secrets);
  }

  /** `pulumi preview` with more arguments; its code is not looked at. */
  preview(...args: string[]): Promise<Ran> {
    return this.#run(["pulumi", "preview", "--stack", "dev", "--non-interactive", "--color", "never", ...args], {});
  }

  async pulumi(...args: string[]): Promise<Ran> {
    const ran = await this.#run(["pulumi", ...args], {});
    if (ran.code !== 0) throw new Error(`pulumi ${args.join(" ")}: ${ran.text}`);
    return ran;
  }

  comment(): Promise<string> {
    return readFile(join(this.directory, "comment.md"), "utf8");
  }

  /** The stack's state as it lies on the disk. */
  state(): Promise<string> {
    return readFile(join(this.directory, "backend/.pulumi/stacks/pull-request-preview/dev.json"), "utf8");
  }

  close(): Promise<void> {
    return rm(this.directory, { recursive: true, force: true });
  }

  async #run([program = "", ...args]: string[], env: Record<string, string>): Promise<Ran> {
    const child = spawn(program, args, {
      cwd: this.directory,
      env: { HOME: process.env["HOME"] ?? "/", ...this.#env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 300_000,
    });
    let text = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (text += chunk.toString()));
    const [code] = (await once(child, "close")) as [number | null];
    return { code, text };
  }
}

/** Where the image is downloaded from, and who has asked. */
export async function serveImage(): Promise<{ url: string; digest: string; asked(): number; server: Server }> {
  const { vm } = await buildImages();
  const hash = createHash("sha256");
  await pipeline(createReadStream(vm), hash);
  let asked = 0;
  const server = createServer((_request, response) => {
    asked++;
    createReadStream(vm).pipe(response);
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}/counter.qcow2`, digest: hash.digest("hex"), asked: () => asked, server };
}

export function openPullRequestLab(): Promise<Lab<"gw1" | "gw2">> {
  return createLab({ name: "prsview", hosts: [{ name: "gw1" }, { name: "gw2" }] });
}
