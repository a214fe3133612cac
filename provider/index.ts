import { execInCloudlet, getCloudlet, getCloudletLogs } from "./functions/cloudlets.ts";
import { getHypervisor, getNode, getUtilization } from "./functions/gateways.ts";
import { baseImage } from "./resources/baseImage.ts";
import { cloudlet } from "./resources/cloudlet/index.ts";
import { edgeCluster } from "./resources/edgeCluster.ts";
import { hypervisor } from "./resources/hypervisor.ts";
import { node } from "./resources/node.ts";
import { overlay } from "./resources/overlay.ts";
import { volume } from "./resources/volume.ts";

/** Every resource of the provider. */
export const resources = [edgeCluster, node, hypervisor, cloudlet, baseImage, overlay, volume] as const;

/** Every function that programs in any language have. */
export const functions = [getNode, getHypervisor, getCloudlet, getCloudletLogs, execInCloudlet, getUtilization] as const;
