import { expect, it } from "vitest";
import { originOf, parseReference, referenceText } from "../../../provider/local/registry/reference.ts";

const digest = `sha256:${"a".repeat(64)}`;

it.each([
  ["images.example.net/team/faces:1.2", "images.example.net/team/faces:1.2"],
  ["images.example.net:5000/faces", "images.example.net:5000/faces:latest"],
  [`localhost/faces@${digest}`, `localhost/faces@${digest}`],
  [`localhost/faces:1.2@${digest}`, `localhost/faces@${digest}`],
  ["debian", "registry-1.docker.io/library/debian:latest"],
  ["team/faces:edge", "registry-1.docker.io/team/faces:edge"],
  ["docker.io/team/faces", "registry-1.docker.io/team/faces:latest"],
])("reads %s", (text, full) => {
  expect(referenceText(parseReference(text))).toBe(full);
});

it.each(["", "UPPER/x", "host.net/../etc", "host.net/a//b", "host.net/a:b c", "host.net/a@sha256:12", "a@b@c", "host.net/a?x=1"])(
  "refuses %j",
  (text) => {
    expect(() => parseReference(text)).toThrow(/is no reference to a registry/);
  },
);

it("speaks plain HTTP to this machine only", () => {
  const origin = (text: string): string => originOf(parseReference(text));
  expect(origin("127.0.0.1:5000/a")).toBe("http://127.0.0.1:5000");
  expect(origin("localhost:5000/a")).toBe("http://localhost:5000");
  expect(origin("127.0.0.1.evil.net/a")).toBe("https://127.0.0.1.evil.net");
  expect(origin("images.example.net/a")).toBe("https://images.example.net");
});
