import { createServer } from "node:net";

const [first, count, perProcess] = [10_000, 20_000, 200];
let next = process.pid * perProcess;

/**
 * A port on which nothing listens. Not one that the kernel hands out: those are given to whoever asks or connects
 * meanwhile, and what dies and comes back on its port must find it free.
 */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < perProcess; tries++) {
    const port = first + (next++ % count);
    if (await isFree(port)) return port;
  }
  throw new Error("no port is free");
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen(port, () => server.close(() => resolve(true)));
  });
}
