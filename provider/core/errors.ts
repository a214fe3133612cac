/** Every error code a user can meet: what it means and what usually helps. `docs/errors.md` is generated from this table. */
export const errorCodes = {
  NOT_FOUND: { meaning: "the node answered and the thing is not there", fix: "run `pulumi refresh`, then `pulumi up`" },
  UNREACHABLE: {
    meaning: "the node did not answer; nothing is known about what runs there",
    fix: "check the network and the node's power, then run the same command again",
  },
  HOST_KEY: {
    meaning: "the node's SSH host key is unknown or differs from the pinned one",
    fix: "compare the fingerprint on the node's console, then set connection.hostKey",
  },
  UNAUTHORIZED: { meaning: "the node refused the credentials", fix: "check connection.user and the key or password" },
  INVALID: { meaning: "an input is wrong", fix: "correct the property named in the message" },
  REFUSED: { meaning: "the request is understood and not allowed in this situation", fix: "resolve what the message names first" },
  BUSY: { meaning: "another operation holds the same thing", fix: "wait for it to end, then run the same command again" },
  CONFLICT: { meaning: "the thing exists and belongs to somebody else", fix: "choose another name, or remove it where it was made" },
  UNSUPPORTED: { meaning: "the node or hypervisor lacks this ability", fix: "use another node or hypervisor kind" },
  TIMEOUT: {
    meaning: "the operation did not finish within its deadline",
    fix: "look at the console output in the message, then run the same command again",
  },
  ABORTED: { meaning: "the operation was cancelled", fix: "run the same command again to continue" },
  INTEGRITY: { meaning: "data does not match its digest", fix: "fetch or build the data again" },
  PARTIAL: { meaning: "the resource exists but is not yet as declared", fix: "run `pulumi up` again to continue" },
  FAILED: { meaning: "a program on the node failed", fix: "read the output in the message" },
  BUG: { meaning: "a defect of this provider", fix: "please report it with the text of this message" },
} as const;

export type ErrorCode = keyof typeof errorCodes;

export interface ErrorDetail {
  /** One imperative clause: what the user should do. Defaults to the code's usual remedy. */
  fix?: string;
  cause?: unknown;
}

/** The one error class: message = what failed, on which thing, at which host. Match on `code`, never on `instanceof`, as two versions of the package may be loaded. */
export class CloudletError extends Error {
  readonly code: ErrorCode;
  readonly fix: string;

  constructor(code: ErrorCode, message: string, detail: ErrorDetail = {}) {
    super(message, detail.cause === undefined ? undefined : { cause: detail.cause });
    this.name = "CloudletError";
    this.code = code;
    this.fix = detail.fix ?? errorCodes[code].fix;
  }
}

export function codeOf(error: unknown): ErrorCode {
  if (error instanceof Error && "code" in error && typeof error.code === "string" && error.code in errorCodes) {
    return error.code as ErrorCode;
  }
  if (error instanceof Error && error.name === "AbortError") return "ABORTED";
  return "BUG";
}

/** The text a user sees: message, remedy and code, without a stack. */
export function describeError(error: unknown): string {
  const code = codeOf(error);
  const message = error instanceof Error ? error.message : String(error);
  const fix = error instanceof Error && "fix" in error && typeof error.fix === "string" ? error.fix : errorCodes[code].fix;
  return `${message}; ${fix} [${code}]`;
}
