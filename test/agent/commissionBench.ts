import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import type { AgentClient } from "../../provider/agent/clientTypes.ts";
import { connectAgent } from "../../provider/agent/connect.ts";
import { createCommission } from "../../provider/agent/install.ts";
import { paths } from "../../provider/agent/protocol.ts";
import type { Commission, Context } from "../../provider/core/context.ts";
import { createHostPool } from "../../provider/transport/pool.ts";
import { restOverSsh } from "../../provider/transport/rest.ts";
import type { RemoteHost } from "../../provider/transport/types.ts";
import { createLab, type Lab, type LabDeclaration } from "../lab/lab.ts";

/** What a decommissioned host must have as before. Caches and logs of dpkg and apt are not anybody's state. */
const inventoryScript = `
find / -xdev \\( -path /proc -o -path /sys -o -path /tmp -o -path /run -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/lib/swcatalog -o -path /var/log \\) -prune -o -print | sort
find /var/lib/lxd /var/lib/cloudlet | sort
cut -d' ' -f2 /proc/mounts | sort
dpkg-query -W -f='\${db:Status-Status} \${Package}\\n' | grep -Ev '^(config-files|not-installed)' | cut -d' ' -f2 | sort
getent passwd | sort
ip -o link | cut -d: -f2 | sort
command -v nft >/dev/null && nft list ruleset
cat /proc/sys/net/ipv4/ip_forward
ps -eo comm= | grep -Ev '^(ps|sh|grep|sort|cut|sshd|sftp-server)' | sort
`;

/** Lab hosts, and the code that commissions them, with an agent made of the present sources. */
export interface CommissionBench<Name extends string> {
  lab: Lab<Name>;
  commission: Commission;
  context: Context;
  warnings: readonly string[];
  host(name: Name): Promise<RemoteHost>;
  /** The agent, started where it does not run. */
  connect(name: Name): Promise<AgentClient>;
  /** Everything of a host that is somebody's state, one thing a line. */
  inventory(name: Name): Promise<string[]>;
  close(): Promise<void>;
}

export async function openCommissionBench<const Name extends string>(declaration: LabDeclaration<Name>): Promise<CommissionBench<Name>> {
  const directory = mkdtempSync(join(tmpdir(), "cloudlet-commission-test-"));
  const bundle = join(directory, "agent.js");
  await bundleAgent(bundle);
  const lab = await createLab(declaration);
  const pool = createHostPool();
  const warnings: string[] = [];
  const context = contextOf(warnings);
  const host = (name: Name): Promise<RemoteHost> => pool.host(lab.hosts[name].connection, context.signal);
  return {
    lab,
    commission: createCommission({ bundle }),
    context,
    warnings,
    host,
    async connect(name) {
      const remote = await host(name);
      return connectAgent(remote, restOverSsh(remote, paths.socket, `agent on ${name}`), { ...context, bundle });
    },
    inventory: async (name) => (await lab.hosts[name].run(inventoryScript)).split("\n"),
    async close() {
      await pool.closeAll();
      await lab.close();
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

async function bundleAgent(outfile: string): Promise<void> {
  await build({
    entryPoints: [join(import.meta.dirname, "../../provider/agent/main.ts")],
    outfile,
    bundle: true,
    platform: "node",
    format: "cjs",
    target: "node18",
    define: { "import.meta.dirname": "__dirname" },
    logLevel: "error",
  });
}

function contextOf(warnings: string[]): Context {
  const refuse = (): never => {
    throw new Error("commissioning uses nothing else");
  };
  return {
    signal: AbortSignal.timeout(500_000),
    status: () => undefined,
    warn: (text) => void warnings.push(text),
    host: refuse,
    agent: refuse,
    lxd: refuse,
    commission: { apply: refuse, observe: refuse, remove: refuse },
    local: { open: refuse, openDirectory: refuse, acquire: refuse, acquireOverlay: refuse },
  };
}
