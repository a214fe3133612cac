import { execFileSync } from "node:child_process";
import { createHash, X509Certificate } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A self-signed certificate such as an agent has, and the digest by which another agent knows it. */
export function newCertificate(): { key: Buffer; cert: Buffer; digest: string } {
  const directory = mkdtempSync(join(tmpdir(), "cloudlet-certificate-"));
  const [key, cert] = [join(directory, "tls.key"), join(directory, "tls.crt")];
  const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=test"];
  try {
    execFileSync("openssl", ["req", "-x509", ...kind, "-keyout", key, "-out", cert], { stdio: "ignore" });
    const bytes = readFileSync(cert);
    return { key: readFileSync(key), cert: bytes, digest: createHash("sha256").update(new X509Certificate(bytes).raw).digest("hex") };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
