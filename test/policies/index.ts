import { PolicyPack, validateResourceOfType } from "@pulumi/policy";
import { Cloudlet, Node } from "pulumi-cloudlet";

new PolicyPack("gateways", {
  enforcementLevel: "mandatory",
  policies: [
    {
      name: "small-cloudlets",
      description: "A cloudlet has 512 MiB of memory at most, and publishes no port below 1024.",
      validateResource: validateResourceOfType(Cloudlet, ({ resources, ports }, _args, report) => {
        const memoryMib = resources?.memoryMib ?? 0;
        if (memoryMib > 512) report(`has ${memoryMib} MiB of memory, and may have 512`);
        for (const { port, hostPort = port } of ports ?? []) if (hostPort < 1024) report(`publishes port ${hostPort}`);
      }),
    },
    {
      name: "pinned-host-keys",
      description: "The host key of each gateway stands in the program.",
      validateResource: validateResourceOfType(Node, ({ connection }, _args, report) => {
        if (connection.hostKey === undefined) report("has no connection.hostKey");
      }),
    },
  ],
});
