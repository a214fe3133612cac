// Pulumi's language host for Node.js as far as tests need it, since the real one cannot be built here: Pulumi's own command
// starts it, and programs, plugins and policy packs run by the SDK's own commands, as they do there.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { Server, ServerCredentials, type handleServerStreamingCall, type handleUnaryCall } from "@grpc/grpc-js";
import languagePb from "@pulumi/pulumi/proto/language_pb.js";
import type {
  InstallDependenciesRequest,
  InstallDependenciesResponse,
  RunPluginRequest,
  RunPluginResponse,
  RunRequest,
  RunResponse,
} from "@pulumi/pulumi/proto/language_pb.js";
import services from "@pulumi/pulumi/proto/language_grpc_pb.js";
import pluginPb from "@pulumi/pulumi/proto/plugin_pb.js";
import type { PluginInfo } from "@pulumi/pulumi/proto/plugin_pb.js";

const engine = process.argv.at(-1) ?? "";
/** What the SDK's runner exits with when the user has been told already. */
const told = 32;

const run: handleUnaryCall<RunRequest, RunResponse> = ({ request }, callback) => {
  runProgram(request).then(
    (response) => callback(null, response),
    (error: unknown) => callback({ details: String(error) }),
  );
};
/** What tests run has its dependencies already; a fresh checkout of a plugin has not. */
const installDependencies: handleServerStreamingCall<InstallDependenciesRequest, InstallDependenciesResponse> = (call) => {
  const folder = call.request.getInfo()?.getProgramDirectory() ?? "";
  if (!call.request.getIsPlugin() || existsSync(join(folder, "node_modules"))) return void call.end();
  const child = spawn("npm", ["install", "--loglevel=error"], { cwd: folder, stdio: ["ignore", "pipe", "pipe"] });
  child.stdout.on("data", (text: Buffer) => call.write(new languagePb.InstallDependenciesResponse().setStdout(text)));
  child.stderr.on("data", (text: Buffer) => call.write(new languagePb.InstallDependenciesResponse().setStderr(text)));
  child.on("close", (code) => {
    if (code === 0) call.end();
    else call.destroy(new Error(`npm install ended with ${code}`));
  });
  call.on("cancelled", () => child.kill());
};
const getPluginInfo: handleUnaryCall<unknown, PluginInfo> = (_call, callback) => {
  const info = new pluginPb.PluginInfo();
  info.setVersion("0.0.0");
  callback(null, info);
};

/** A plugin that is a folder, or a policy pack; like the real host, this gives it no standard input. */
const runPlugin: handleServerStreamingCall<RunPluginRequest, RunPluginResponse> = (call) => {
  const { request } = call;
  const folder = request.getInfo()?.getProgramDirectory() ?? "";
  const isPack = request.getKind() === "analyzer";
  const runner = createRequire(join(folder, "x")).resolve(`@pulumi/pulumi/cmd/${isPack ? "run-policy-pack" : "run-plugin"}`);
  const args = isPack ? [...request.getArgsList(), folder] : [folder, ...request.getArgsList()];
  const child = spawn(process.execPath, [runner, ...args], {
    cwd: isPack ? folder : request.getPwd(),
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...Object.fromEntries(request.getEnvList().map((entry) => entry.split(/=(.*)/s, 2))) },
  });
  child.stdout.on("data", (text: Buffer) => call.write(new languagePb.RunPluginResponse().setStdout(text)));
  child.stderr.on("data", (text: Buffer) => call.write(new languagePb.RunPluginResponse().setStderr(text)));
  child.on("close", (code) => {
    call.write(new languagePb.RunPluginResponse().setExitcode(code ?? 1));
    call.end();
  });
  call.on("cancelled", () => child.kill());
};

// it must not outlive an engine that was killed
process.stdin.resume().on("end", () => process.exit(0));
const server = new Server({ "grpc.max_receive_message_length": -1 });
server.addService(services.LanguageRuntimeService, { run, runPlugin, installDependencies, getPluginInfo });
server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(port);
});

async function runProgram(request: RunRequest): Promise<RunResponse> {
  const program = join(request.getPwd(), "x");
  const settings = {
    monitor: request.getMonitorAddress(),
    engine,
    organization: request.getOrganization(),
    project: request.getProject(),
    stack: request.getStack(),
    pwd: request.getPwd(),
    parallel: String(request.getParallel()),
    "dry-run": String(request.getDryrun()),
  };
  const args = Object.entries(settings).map(([name, value]) => `--${name}=${value}`);
  const child = spawn(process.execPath, [createRequire(program).resolve("@pulumi/pulumi/cmd/run"), ...args, request.getProgram()], {
    stdio: ["ignore", "inherit", "inherit"],
    env: {
      ...process.env,
      PULUMI_CONFIG: JSON.stringify(Object.fromEntries(request.getConfigMap().entries())),
      PULUMI_CONFIG_SECRET_KEYS: JSON.stringify(request.getConfigsecretkeysList()),
    },
  });
  const [code] = (await once(child, "exit")) as [number | null];
  const response = new languagePb.RunResponse();
  if (code === told) response.setBail(true);
  else if (code !== 0) response.setError(`the program ended with ${code}`);
  return response;
}
