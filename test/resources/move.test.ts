import { expect, it } from "vitest";
import { checkInputs } from "../../provider/core/check.ts";
import { Declarations } from "../../provider/core/declarations.ts";
import type { ResourceDefinition } from "../../provider/core/define.ts";
import { create, inputsOf, update, type State } from "../../provider/core/reconcile.ts";
import { cloudlet as definition } from "../../provider/resources/cloudlet/index.ts";
import { fakeDigests, FakeWorld } from "../fakes/agents.ts";

const id = "faces/server";
const cloudlet = definition as unknown as ResourceDefinition;

async function declared(node: string, old?: State): Promise<State> {
  const news = {
    name: "server",
    owner: "project/dev",
    cluster: "faces",
    hypervisor: `${node}/kvm`,
    connection: { host: node },
    nodeAddress: node,
    base: { file: "debian.qcow2" },
  };
  const { inputs, issues } = await checkInputs(cloudlet, { news, old, declarations: new Declarations(), local: fakeDigests });
  expect(issues).toEqual([]);
  return inputs;
}

it("takes up a move that the two agents end while it asks one after the other", async () => {
  const world = new FakeWorld();
  const [gw1, gw2] = [world.node("gw1"), world.node("gw2")];
  const { state } = await create(cloudlet, await declared("gw1"), world.context());
  const here = gw1.instances.get(id);
  if (here === undefined) throw new Error("it was not made");
  gw2.instances.set(id, { ...here, ownership: { epoch: 2, role: "incoming", peer: "gw1" } });
  gw1.instances.get = () => {
    gw2.instances.set(id, { ...here, ownership: { epoch: 2, role: "owner", peer: "gw1" } });
    return { ...here, ownership: { epoch: 2, role: "released", peer: "gw2" } };
  };
  const moved = await update(cloudlet, { id, inputs: await declared("gw2", inputsOf(cloudlet, state)), old: state }, world.context());
  expect(moved).toMatchObject({ hypervisor: "gw2/kvm" });
  expect(gw2.calls).not.toContain("move.prepare");
});
