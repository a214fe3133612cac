import structPb from "google-protobuf/google/protobuf/struct_pb.js";
import type { Struct, Value } from "google-protobuf/google/protobuf/struct_pb.js";
import { CloudletError } from "../../core/errors.ts";
import { formatPath, unknownValue } from "../../core/values.ts";

/** Values as the core knows them, and beside them which parts were secret: `"*"` stands for each element of a list. */
export interface Decoded {
  values: Record<string, unknown>;
  secrets: string[][];
}

/** What Pulumi's engine sends: unknown parts become the one marker of the core, references to resources their ids. */
export function fromStruct(struct: Struct | undefined): Decoded {
  const secrets: string[][] = [];
  return { values: struct === undefined ? {} : readFields(struct, { above: undefined, secrets }), secrets };
}

/** The way back, with the parts at these paths marked as secret. What is undefined is left out. */
export function toStruct(values: Record<string, unknown>, secrets: readonly string[][] = []): Struct {
  const struct = new structPb.Struct();
  const fields = struct.getFieldsMap();
  for (const [key, value] of Object.entries(values)) {
    if (value !== undefined) fields.set(key, marked(value, below(secrets, key)));
  }
  return struct;
}

/** Keys and values by which Pulumi tells special objects from plain ones. */
const signatureKey = "4dabf18193072939515e22adb298388d";
const signatures = {
  secret: "1b47061264138c4ac30d75fd1eb44270",
  output: "d0e6a833031e9bbcd3f4e8bde6ca49a4",
  resource: "5cf8f73096256a8f31e491e813e4eb8e",
  asset: "c44067f5952c0a294b673a41bacd8c17",
  archive: "0def7320c3a5731c473e5ecbe6d01bc7",
};

/** Older SDKs say what type the unknown value has. */
const unknownMarkers = new Set([
  unknownValue,
  "1c4a061d-8072-4f0a-a4cb-0ff528b18fe7",
  "3eeb2bf0-c639-47a8-9e75-3b44932eb421",
  "6a19a0b0-7e62-4c92-b797-7f8e31da9cc2",
  "030794c1-ac77-496b-92df-f27374a8bd58",
  "e48ece36-62e2-4504-bad9-02848725956a",
  "dd056dcd-154b-4c76-9bd3-c8f88648b5ff",
]);

/** Where a value stands. Most are never asked for their path, so that it is put together when one is. */
interface Place {
  above: { place: Place; step: string | number } | undefined;
  secrets: string[][];
}

function readFields(struct: Struct, place: Place): Record<string, unknown> {
  const entries: [string, unknown][] = [];
  struct.getFieldsMap().forEach((value, key) => entries.push([key, read(value, inside(place, key))]));
  return Object.fromEntries(entries);
}

function inside(place: Place, step: string | number): Place {
  return { above: { place, step }, secrets: place.secrets };
}

function pathOf({ above }: Place): (string | number)[] {
  return above === undefined ? [] : [...pathOf(above.place), above.step];
}

function read(value: Value, place: Place): unknown {
  switch (value.getKindCase()) {
    case structPb.Value.KindCase.NUMBER_VALUE:
      return value.getNumberValue();
    case structPb.Value.KindCase.STRING_VALUE: {
      const text = value.getStringValue();
      return unknownMarkers.has(text) ? unknownValue : text;
    }
    case structPb.Value.KindCase.BOOL_VALUE:
      return value.getBoolValue();
    case structPb.Value.KindCase.LIST_VALUE:
      return (value.getListValue()?.getValuesList() ?? []).map((item, index) => read(item, inside(place, index)));
    case structPb.Value.KindCase.STRUCT_VALUE:
      return readObject(value.getStructValue() ?? new structPb.Struct(), place);
    default:
      return null;
  }
}

function readObject(struct: Struct, place: Place): unknown {
  const fields = struct.getFieldsMap();
  const signature = fields.get(signatureKey)?.getStringValue();
  const inner = fields.get("value");
  switch (signature) {
    case undefined:
    case "":
      return readFields(struct, place);
    case signatures.secret:
      markSecret(place);
      return inner === undefined ? null : read(inner, place);
    case signatures.output:
      if (fields.get("secret")?.getBoolValue() === true) markSecret(place);
      return inner === undefined ? unknownValue : read(inner, place);
    case signatures.resource:
      // an id that is not known yet is an empty text
      return fields.get("id")?.getStringValue() || unknownValue;
    default: {
      const what = { [signatures.asset]: "an asset", [signatures.archive]: "an archive" }[signature] ?? "a value of an unknown kind";
      throw new CloudletError("INVALID", `${formatPath(pathOf(place))}: is ${what}, which nothing here takes`, {
        fix: "give the text, or the path of the file, as a string",
      });
    }
  }
}

// lists may come back in another order, so that all of their elements are secret alike
function markSecret(place: Place): void {
  place.secrets.push(pathOf(place).map((step) => (typeof step === "number" ? "*" : step)));
}

function marked(value: unknown, secrets: readonly string[][]): Value {
  if (value === null || !secrets.some((path) => path.length === 0)) return write(value, secrets);
  const wrapped = { [signatureKey]: signatures.secret, value };
  return write(wrapped, []);
}

function write(value: unknown, secrets: readonly string[][]): Value {
  const made = new structPb.Value();
  if (typeof value === "string") made.setStringValue(value);
  else if (typeof value === "number") made.setNumberValue(value);
  else if (typeof value === "boolean") made.setBoolValue(value);
  else if (Array.isArray(value)) {
    const list = new structPb.ListValue();
    list.setValuesList(value.map((item: unknown) => marked(item ?? null, below(secrets, "*"))));
    made.setListValue(list);
  } else if (typeof value === "object" && value !== null) made.setStructValue(toStruct({ ...value }, secrets));
  else made.setNullValue(structPb.NullValue.NULL_VALUE);
  return made;
}

function below(paths: readonly string[][], step: string): readonly string[][] {
  if (paths.length === 0) return paths;
  return paths.filter(([first]) => first === step || first === "*").map((path) => path.slice(1));
}
