export { EdgeCluster, Node, Hypervisor, Cloudlet, BaseImage, Overlay, Volume } from "./resources.ts";
export type { EdgeClusterArgs, NodeArgs, HypervisorArgs, CloudletArgs, BaseImageArgs, OverlayArgs, VolumeArgs } from "../classArgs.ts";
export {
  getCloudlet,
  getHypervisor,
  getNode,
  getUtilization,
  execInCloudlet,
  getCloudletLogs,
  getHandoffs,
  restartCloudlet,
  restoreCloudlet,
  snapshotCloudlet,
} from "./functions.ts";
export type { ExecOptions, ExecResult, Handoff, HandoffReport } from "./functions.ts";
export type { OnCloudlet, OnNode, UtilizationArgs } from "../functions.ts";
export type { GetCloudletResult, GetHypervisorResult, GetNodeResult, GetUtilizationResult } from "../results.ts";
export type { ConnectionArgs } from "../args.ts";
export type { Connection } from "../types.ts";
