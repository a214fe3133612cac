import { CloudletError } from "../../core/errors.ts";

/** A place in a registry: `registry.example.net/team/faces:1.2`, or with `@sha256:…` in place of the tag. */
export interface Reference {
  /** Host, with its port where it is not the usual one. */
  registry: string;
  repository: string;
  /** The tag, or `sha256:…`. */
  version: string;
}

const repositoryPattern = /^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*$/;
const versionPattern = /^(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|sha256:[0-9a-f]{64})$/;

/** Reads a reference in docker's words: no host means Docker Hub, no tag means `latest`. */
export function parseReference(text: string): Reference {
  const wrong = (why: string): CloudletError =>
    new CloudletError("INVALID", `"${text}" is no reference to a registry: ${why}`, { fix: "write it as registry.example.net/name:tag" });
  const [, path = "", digest] = /^([^@]+)(?:@(.+))?$/.exec(text) ?? [];
  const [first = "", ...others] = path.split("/");
  const hasHost = others.length > 0 && /[.:]|^localhost$/.test(first);
  const [, named = "", tag] = /^([^:]+)(?::(.+))?$/.exec(hasHost ? others.join("/") : path) ?? [];
  const repository = hasHost || named.includes("/") ? named : `library/${named}`;
  const version = digest ?? tag ?? "latest";
  if (!repositoryPattern.test(repository)) throw wrong("its name must be lower-case letters, digits, dots and dashes, divided by slashes");
  if (!versionPattern.test(version)) throw wrong(`"${version}" is neither a tag nor a sha256 digest`);
  const registry = hasHost && first !== "docker.io" ? first : "registry-1.docker.io";
  if (!URL.canParse(`https://${registry}`)) throw wrong(`"${registry}" is no host`);
  return { registry, repository, version };
}

export function referenceText({ registry, repository, version }: Reference): string {
  return `${registry}/${repository}${version.startsWith("sha256:") ? "@" : ":"}${version}`;
}

/** Where its API is. A registry on this very machine is spoken to in plain HTTP, as docker does. */
export function originOf({ registry }: Reference): string {
  const isHere = /^(localhost|127(\.\d+){3}|\[::1\])(:\d+)?$/.test(registry);
  return `${isHere ? "http" : "https"}://${registry}`;
}
