import { chmod, mkdir, mkdtemp, rm, symlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, it } from "vitest";
import { local } from "../../provider/local/files.ts";

const folders: string[] = [];
afterEach(async () => {
  for (const folder of folders.splice(0)) await rm(folder, { recursive: true });
});

async function tree(order: string[]): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), "cloudlet-tree-"));
  folders.push(root);
  await mkdir(join(root, "sub"));
  for (const name of order) await writeFile(join(root, name), `content of ${name}`);
  await symlink("b", join(root, "link"));
  return root;
}

it("gives a directory the same digest whatever the order and time of its files", async () => {
  const [one, two] = [await tree(["b", "a", "sub/c"]), await tree(["sub/c", "a", "b"])];
  await utimes(join(two, "a"), 1, 1);
  const [first, second] = [await local.openDirectory(one), await local.openDirectory(two)];
  expect(first.digest).toBe(second.digest);
  let bytes = 0;
  for await (const chunk of first.stream()) bytes += (chunk as Buffer).length;
  expect(bytes).toBe(first.bytes);
});

it("gives another digest where content or mode changed", async () => {
  const root = await tree(["a", "b"]);
  const before = (await local.openDirectory(root)).digest;
  await chmod(join(root, "a"), 0o755);
  const executable = (await local.openDirectory(root)).digest;
  await writeFile(join(root, "a"), "other");
  const digests = [before, executable, (await local.openDirectory(root)).digest];
  expect(new Set(digests).size).toBe(3);
});

it("says that a file is missing, and that a directory is none", async () => {
  await expect(local.open("/nonexistent/x")).rejects.toMatchObject({ code: "NOT_FOUND" });
  await expect(local.open(await tree([]))).rejects.toMatchObject({ code: "INVALID" });
});
