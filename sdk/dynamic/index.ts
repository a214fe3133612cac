export { Cloudlet, EdgeCluster, Hypervisor, Node, Volume } from "./resources.ts";
export type { CloudletArgs, EdgeClusterArgs, HypervisorArgs, NodeArgs, VolumeArgs } from "./resources.ts";
export { execInCloudlet, getCloudletLogs, restartCloudlet, restoreCloudlet, snapshotCloudlet } from "./functions.ts";
export type { ExecOptions, ExecResult } from "./functions.ts";
export type { Connection, ConnectionArgs } from "./types.ts";
