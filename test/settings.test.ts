import { afterEach, describe, expect, it, vi } from "vitest";
import { unknownValue } from "../provider/core/values.ts";
import { parseSettings, readSettings } from "../provider/settings.ts";

afterEach(() => {
  vi.unstubAllEnvs();
});

describe("the settings of a provider", () => {
  it("are what the engine passes: texts, and JSON where they are none", () => {
    const given = { version: "0.1.0", connection: '{"user": "operator", "port": 2222}', concurrency: "4", storePath: "/store" };
    expect(readSettings(given)).toEqual({
      connection: { user: "operator", port: 2222 },
      concurrency: 4,
      storePath: "/store",
      operationTimeout: 3600,
    });
  });

  it("come from the environment where they are left out", () => {
    vi.stubEnv("CLOUDLET_CONNECTION", '{"user": "operator"}');
    vi.stubEnv("CLOUDLET_OPERATION_TIMEOUT", "60");
    expect(readSettings({ operationTimeout: "90" })).toEqual({ connection: { user: "operator" }, operationTimeout: 90 });
  });

  it.each([
    [{ connection: '{"passwort": "hunter2"}' }, 'connection.passwort: is not a property here (did you mean "password"?)'],
    [{ connection: "hunter2" }, "connection: must be an object, and is text"],
    [{ connection: '{"host": "gw1"}' }, "connection.host: is not a property here"],
    [{ concurrency: "many" }, "concurrency: must be a number"],
    [{ operationTimeout: "0" }, "operationTimeout: must be at least 1"],
    [{ knownHosts: "/known_hosts" }, 'knownHosts: is not a property here (did you mean "knownHostsFile"?)'],
  ])("%o is refused by its path, without its value", (given, text) => {
    expect(() => readSettings(given)).toThrow(text);
    expect(() => readSettings(given)).not.toThrow("hunter2");
  });

  it("that are wrong in the environment are named by their variable", () => {
    vi.stubEnv("CLOUDLET_CONNECTION", '{"port": "ssh"}');
    expect(parseSettings({}).issues.map(({ path }) => path)).toEqual(["CLOUDLET_CONNECTION.port"]);
  });

  it("that are not known yet are not refused", () => {
    expect(parseSettings({ connection: unknownValue, concurrency: "2" }).issues).toEqual([]);
  });
});
