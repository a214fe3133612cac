/** Where the program finds the hosts of a lab that is up. */
export interface LabForProgram {
  keyPath: string;
  gateways: { name: string; address: string; hostKey: string }[];
  /** The image of the demo's container. */
  image: string;
  /** What runs the program once more. */
  command: string;
}

/** A program to try on a lab: an application that counts its visits, on the first gateway. */
export function labProgram({ keyPath, gateways, image, command }: LabForProgram): string {
  const declared = gateways.map(
    ({ name, address, hostKey }) => `const ${name} = new Node("${name}", {
  connection: { host: "${address}", user: "root", privateKey, hostKey: "${hostKey}" },
});
const ${name}lxd = new Hypervisor("${name}-lxd", { node: ${name}, kind: "lxd" });
`,
  );
  const [first, second] = gateways.map(({ name }) => `${name}lxd`);
  return `// run it: ${command}
import { readFileSync } from "node:fs";
import { Cloudlet, EdgeCluster, Hypervisor, Node } from "pulumi-cloudlet/dynamic";

const privateKey = readFileSync("${keyPath}", "utf8");
${declared.join("")}const cluster = new EdgeCluster("visits", { application: "visit-counter" });

const counter = new Cloudlet("counter", {
  cluster,
  hypervisor: ${first ?? ""}, // write ${second ?? ""} here and run it again: the cloudlet moves
  base: { file: "${image}" },
  resources: { memoryMib: 192 },
  ports: [{ port: 8080 }],
  stateFiles: ["/var/lib/counter"],
  ready: { http: { port: 8080, path: "/peek" } },
});

export const endpoint = counter.endpoint;
export const lastMove = counter.lastMove;
`;
}
