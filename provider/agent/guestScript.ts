/** Shell text that has a guest write files. */
export interface GuestFile {
  path: string;
  /** base64 */
  content: string;
  mode: number;
}

/** Each file is there whole or not at all. */
export function fileLines(file: GuestFile): string[] {
  const target = quoted(file.path);
  const temporary = quoted(`${file.path}.cloudlet`);
  return [
    `mkdir -p ${quoted(parentOf(file.path))}`,
    `rm -f ${temporary}`,
    ...heredoc(`(umask 077; base64 -d >${temporary})`, file.content.match(/.{1,76}/g) ?? []),
    `chmod ${file.mode.toString(8).padStart(4, "0")} ${temporary}`,
    `mv -f ${temporary} ${target}`,
  ];
}

/** Puts the variables into /etc/environment, in the place of those that were put there before. */
export function environmentLines(variables: Record<string, string>): string[] {
  const environment = Object.entries(variables).sort(([a], [b]) => (a < b ? -1 : 1));
  return [
    "touch /etc/environment",
    "sed -i '/^# cloudlet begin$/,/^# cloudlet end$/d' /etc/environment",
    ...heredoc("cat >>/etc/environment", [
      "# cloudlet begin",
      ...environment.map(([name, value]) => `${name}="${value.replace(/[\\"$`]/g, "\\$&")}"`),
      "# cloudlet end",
    ]),
  ];
}

export function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function heredoc(command: string, lines: string[]): string[] {
  const text = lines.join("\n");
  let end = "END";
  while (text.split("\n").includes(end)) end += "_";
  return [`${command} <<'${end}'`, ...lines, end];
}

function parentOf(path: string): string {
  return path.slice(0, Math.max(path.lastIndexOf("/"), 1));
}
