import http from "node:http";
import type { Server } from "node:http";
import { once } from "node:events";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { createAgentClient, jobId } from "../../provider/agent/client.ts";
import type { JobEvent } from "../../provider/agent/jobProtocol.ts";
import { Jobs } from "../../provider/agent/jobs.ts";
import { createAgentServer } from "../../provider/agent/server.ts";
import { verbTable } from "../../provider/agent/verbs.ts";
import { CloudletError } from "../../provider/core/errors.ts";
import type { Rest } from "../../provider/transport/types.ts";
import { digestText, spec, testAgent } from "./fixture.ts";
import type { TestAgent } from "./fixture.ts";

let agent: TestAgent;
let server: Server;
let socketPath = "";
/** How many times the next event streams are cut after their first chunk. */
let cuts = 0;

beforeEach(async () => {
  agent = await testAgent();
  cuts = 0;
  socketPath = join(agent.root, "a.sock");
  const jobs = new Jobs({ directory: join(agent.root, "jobs"), lock: agent.services.lock });
  const info = () => ({ protocol: 1, digest: digestText("agent"), startedAt: "now", jobs: jobs.running() });
  server = createAgentServer({
    services: agent.services,
    jobs,
    verbs: verbTable,
    info,
    facts: () => Promise.reject(new Error("not asked for")),
  });
  server.listen(socketPath);
  await once(server, "listening");
});
afterEach(() => {
  server.closeAllConnections();
  server.close();
  agent.remove();
});

/** The contract of Rest over a unix socket, as the operator's side has it through SSH. */
const rest: Rest = {
  label: "agent on gw1",
  close: () => Promise.resolve(),
  async request({ method, path, headers, body, signal }) {
    const request = http.request({ socketPath, method, path, headers, signal, agent: false });
    if (body instanceof Readable) body.pipe(request);
    else request.end(body === undefined ? undefined : Buffer.isBuffer(body) ? body : JSON.stringify(body));
    const [response] = await once(request, "response").catch((cause: unknown) => {
      throw new CloudletError(signal?.aborted === true ? "ABORTED" : "UNREACHABLE", "agent on gw1 does not answer", { cause });
    });
    if (path.includes("/events") && cuts > 0) {
      cuts--;
      response.once("data", () => setImmediate(() => response.destroy(new Error("link cut"))));
    }
    return { status: response.statusCode, headers: {}, body: response };
  },
};

describe("the agent over its socket", () => {
  it("answers for what is there, and undefined for what is not", async () => {
    const client = createAgentClient(rest);
    expect(await client.info()).toMatchObject({ protocol: 1, jobs: [] });
    expect(await client.hypervisor()).toMatchObject({ kind: "kvm" });
    expect(await client.instance("shop/counter")).toBeUndefined();
    expect(await client.volume("data")).toBeUndefined();
    expect(await client.instances()).toEqual([]);
  });

  it("keeps connections for longer than its callers, who else would meet one that is just being closed", async () => {
    const keeping = new http.Agent({ keepAlive: true });
    const [response] = (await once(http.get({ socketPath, path: "/v1/info", agent: keeping }), "response")) as [http.IncomingMessage];
    response.resume();
    expect(response.headers["keep-alive"]).toBe("timeout=60");
    keeping.destroy();
  });

  it("takes blobs in, and refuses those with another digest", async () => {
    const client = createAgentClient(rest);
    const put = (text: string) =>
      client.putBlob({ digest: digestText("base"), bytes: Buffer.byteLength(text), stream: () => Readable.from([Buffer.from(text)]) });
    await expect(put("evil")).rejects.toMatchObject({ code: "INTEGRITY" });
    expect(await client.hasBlob(digestText("base"))).toBe(false);
    await put("base");
    await put("base");
    expect(await client.hasBlob(digestText("base"))).toBe(true);
  });

  it("runs a cloudlet from nothing to removed", async () => {
    const client = createAgentClient(rest);
    const base = await agent.store("base");
    const events: JobEvent[] = [];
    const status = await client.run("instance.apply", { spec: spec(base), fresh: true }, { onEvent: (event) => events.push(event) });
    expect(status).toMatchObject({ status: "running", ready: true });
    expect(events.filter((event) => event.type === "step").map((event) => event.name)).toEqual([
      "record",
      "network",
      "created",
      "started",
      "ready",
      "complete",
    ]);
    expect(await client.instance("shop/counter")).toMatchObject({ status: "running" });
    expect(await client.log("shop/counter", 1)).toBe("serving\n");
    expect(await client.exec("shop/counter", { command: ["id", "-u"], timeoutSeconds: 5 })).toMatchObject({
      exitCode: 0,
      stdout: expect.stringContaining("id -u"),
    });
    await client.run("instance.restart", { id: "shop/counter" });
    await client.run("instance.remove", { id: "shop/counter", owner: "p/s" });
    expect(await client.instance("shop/counter")).toBeUndefined();
  });

  it("follows a job over lost connections without losing or repeating an event", async () => {
    const client = createAgentClient(rest);
    const base = await agent.store("base");
    cuts = 2;
    const seqs: number[] = [];
    await client.run("instance.apply", { spec: spec(base), fresh: true }, { onEvent: (event) => seqs.push(event.seq) });
    expect(seqs).toEqual(seqs.map((_, index) => index));
    expect(agent.driver.calls).toEqual(["ensure", "start"]);
  });

  it("rejects with the agent's own error, once", async () => {
    const client = createAgentClient(rest);
    const base = await agent.store("base");
    agent.driver.failNext = "start";
    await expect(client.run("instance.apply", { spec: spec(base), fresh: true })).rejects.toMatchObject({
      code: "FAILED",
      message: "agent on gw1: start failed",
    });
    agent.driver.silent = true;
    await expect(client.run("instance.restart", { id: "shop/counter" })).rejects.toMatchObject({
      code: "UNREACHABLE",
      message: expect.stringContaining("hypervisor is silent"),
    });
  });

  it("cancels the job when whoever asked gives up", async () => {
    const client = createAgentClient(rest);
    const base = await agent.store("base");
    const abort = new AbortController();
    const run = client.run(
      "instance.apply",
      { spec: spec(base, { ready: { log: "never", timeoutSeconds: 60 } }), fresh: true },
      { signal: abort.signal, onEvent: (event) => event.type === "step" && event.name === "started" && abort.abort() },
    );
    await expect(run).rejects.toMatchObject({ code: "ABORTED" });
    await expect.poll(async () => (await client.info()).jobs, { timeout: 5_000 }).toEqual([]);
  });

  it("ends a job that outlasts its deadline", async () => {
    const client = createAgentClient(rest);
    const base = await agent.store("base");
    const run = client.run(
      "instance.apply",
      { spec: spec(base, { ready: { log: "never", timeoutSeconds: 60 } }), fresh: true },
      { timeoutMillis: 500 },
    );
    await expect(run).rejects.toMatchObject({ code: "TIMEOUT" });
    await expect.poll(async () => (await client.info()).jobs, { timeout: 5_000 }).toEqual([]);
  });

  it("says UNREACHABLE where nobody listens", async () => {
    server.closeAllConnections();
    server.close();
    await expect(createAgentClient(rest).instance("shop/counter")).rejects.toMatchObject({ code: "UNREACHABLE" });
  });

  it.for([
    ["GET", "/v1/nothing", undefined, 400],
    ["GET", "/v1/instances/UPPER", undefined, 400],
    ["GET", "/v1/instances/%E0%A4%A", undefined, 400],
    ["GET", "/v1/instances/a/log?lines=-1", undefined, 400],
    ["HEAD", "/v1/blobs/abc", undefined, 400],
    ["GET", "/v1/jobs/none/events", undefined, 404],
    ["GET", "/v1/jobs/..%2Fx/events", undefined, 400],
    ["PUT", "/v1/jobs/j", { verb: "rm" }, 400],
    ["PUT", "/v1/jobs/j", { verb: "instance.remove", args: { id: "../x", owner: "o" } }, 400],
    ["PUT", "/v1/jobs/j", Buffer.from("{"), 400],
  ] as const)("answers %s %s with a plain error", async ([method, path, body, status]) => {
    const response = await rest.request({ method, path, ...(body === undefined ? {} : { body }) });
    expect(response.status).toBe(status);
    response.body.resume();
  });
});

describe("job ids", () => {
  it("are the same for the same request, readable, and accepted by the agent", () => {
    const id = jobId("instance.remove", { id: "shop/counter", owner: "p/s" });
    expect(id).toMatch(/^instance\.remove-shop-counter-[0-9a-f]{8}-[0-9a-f]{12}$/);
    expect(jobId("instance.remove", { id: "shop/counter", owner: "p/s" })).toBe(id);
    expect(jobId("instance.remove", { id: "shop/counter", owner: "p/t" })).not.toBe(id);
    expect(jobId("hypervisor.remove", { owner: "p/s" })).toMatch(/^hypervisor\.remove-node-/);
  });
});
