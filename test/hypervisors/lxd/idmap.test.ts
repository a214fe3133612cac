import { expect, it } from "vitest";
import type { TarEntry } from "../../../provider/archive/tar.ts";
import { diskMap, insideOf } from "../../../provider/hypervisors/lxd/idmap.ts";

const map = diskMap({
  config: { "volatile.last_state.idmap": '[{"Isuid":true,"Isgid":true,"Hostid":100000,"Nsid":0,"Maprange":65536}]' },
});
const entry: TarEntry = {
  path: "x",
  type: "file",
  mode: 0o755,
  uid: 100_000,
  gid: 101_000,
  mtime: 0,
  size: 0,
  target: "",
  major: 0,
  minor: 0,
  xattrs: {},
};

it("gives owners as the container sees them, and leaves those alone that it cannot have", () => {
  expect(insideOf(map)(entry)).toMatchObject({ uid: 0, gid: 1000 });
  expect(insideOf(map)({ ...entry, uid: 5, gid: 200_000 })).toMatchObject({ uid: 5, gid: 200_000 });
  expect(insideOf(diskMap({ config: {} }))(entry)).toMatchObject({ uid: 100_000 });
});

it("gives capabilities back to the container's own root", () => {
  const bytes = "\u0080\u0020\u0000\u0000".padEnd(16, "\u0000");
  const third = `\u0001\u0000\u0000\u0003${bytes}\u00a0\u0086\u0001\u0000`;
  expect(insideOf(map)({ ...entry, xattrs: { "security.capability": third } }).xattrs).toEqual({
    "security.capability": `\u0001\u0000\u0000\u0002${bytes}`,
  });
});

it("gives the ids in access lists", () => {
  const list = (uid: string, gid: string): string =>
    `\u0002\u0000\u0000\u0000\u0001\u0000\u0006\u0000\u00ff\u00ff\u00ff\u00ff\u0002\u0000\u0007\u0000${uid}\u0008\u0000\u0004\u0000${gid}`;
  const shifted = list("\u00a1\u0086\u0001\u0000", "\u00a5\u0086\u0001\u0000");
  expect(insideOf(map)({ ...entry, xattrs: { "system.posix_acl_access": shifted } }).xattrs).toEqual({
    "system.posix_acl_access": list("\u0001\u0000\u0000\u0000", "\u0005\u0000\u0000\u0000"),
  });
});
