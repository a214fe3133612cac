/** Where status lines go: one line that changes on a terminal, else a line for each new thing that is done. */
export function createProgress(stream: { isTTY?: boolean; columns?: number; write(text: string): unknown }): {
  status(text: string): void;
  /** Before other text is printed, and at the end. */
  clear(): void;
} {
  let last = "";
  let shownAt = 0;
  const subject = (text: string): string => text.split(":")[0] ?? "";
  return {
    status(text) {
      if (!stream.isTTY) {
        // how far it has come would be a line for every piece of data
        if (subject(text) !== subject(last)) stream.write(`${text}\n`);
        last = text;
        return;
      }
      const now = Date.now();
      if (subject(text) === subject(last) && now - shownAt < 100) return;
      [last, shownAt] = [text, now];
      stream.write(`\r\x1b[2K${text.slice(0, (stream.columns ?? 80) - 1)}`);
    },
    clear() {
      if (stream.isTTY && last !== "") stream.write("\r\x1b[2K");
      last = "";
    },
  };
}
