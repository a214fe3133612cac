/** What Pulumi's engine puts in the place of a value that is not known yet, whatever its type. */
export const unknownValue = "04da6b54-80e4-46f7-96ec-b56ff0331ba9";

export type PropertyPath = readonly (string | number)[];

/** `ports[0].hostPort`, `files["a.b"]`: Pulumi's notation. */
export function formatPath(path: PropertyPath): string {
  return path.map((step, index) => formatStep(step, index === 0)).join("");
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function containsUnknown(value: unknown): boolean {
  if (value === unknownValue) return true;
  if (Array.isArray(value)) return value.some(containsUnknown);
  return isRecord(value) && Object.values(value).some(containsUnknown);
}

/** Fields without any unknown part: what is half known would be read as if the rest were left out. */
export function knownFields(inputs: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(inputs).filter(([, value]) => !containsUnknown(value)));
}

/** Pulumi treats null, undefined and a missing property alike, so object properties that are null or undefined go. */
export function withoutNulls(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutNulls);
  if (!isRecord(value)) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, item]) => item !== undefined && item !== null)
      .map(([key, item]) => [key, withoutNulls(item)]),
  );
}

function formatStep(step: string | number, first: boolean): string {
  if (typeof step === "number") return `[${step}]`;
  if (!/^[A-Za-z_$][\w$]*$/.test(step)) return `[${JSON.stringify(step)}]`;
  return first ? step : `.${step}`;
}
