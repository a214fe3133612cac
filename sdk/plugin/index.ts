export { Provider } from "./provider.ts";
export type { ProviderArgs } from "./provider.ts";
export { EdgeCluster, Node, Hypervisor, Cloudlet, BaseImage, Overlay, Volume } from "./resources.ts";
export type { EdgeClusterArgs, NodeArgs, HypervisorArgs, CloudletArgs, BaseImageArgs, OverlayArgs, VolumeArgs } from "../classArgs.ts";
export type { ConnectionArgs } from "../args.ts";
export type { Connection } from "../types.ts";
