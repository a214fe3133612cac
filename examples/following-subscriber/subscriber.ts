// A subscriber who walks along a row of gateways: node subscriber.ts http://gw1:8080 http://gw2:8080 http://gw3:8080
// It begins one session and goes on with it wherever it is answered, until SIGINT. One line of JSON for each gateway.

interface Answer {
  session: string;
  steps: number;
}

const gateways = process.argv.slice(2);
let walking = true;
process.once("SIGINT", () => (walking = false));

const began = Date.now();
let state: Answer | undefined;
let at = -1;
let lastAnswer: number | undefined;
let longestSilenceMillis = 0;

while (walking) {
  const found = await ask();
  if (found) {
    if (state && found.answer.steps <= state.steps) fail(`the session went back from ${state.steps} to ${found.answer.steps} steps`);
    const silenceMillis = Date.now() - (lastAnswer ?? Date.now());
    longestSilenceMillis = Math.max(longestSilenceMillis, silenceMillis);
    lastAnswer = Date.now();
    state = found.answer;
    if (found.at !== at) tell({ gateway: gateways[found.at], silenceMillis });
    at = found.at;
  } else if (!state && Date.now() - began > 60_000) fail("no gateway has answered for a minute");
  await new Promise((resolve) => setTimeout(resolve, 50));
}
tell({ longestSilenceMillis });

/** The farthest gateway on the way that answers; those behind it would pass it on. */
async function ask(): Promise<{ at: number; answer: Answer } | undefined> {
  for (let index = gateways.length - 1; index >= 0; index--) {
    const answer = await step(`${gateways[index]}/cgi-bin/session${state ? `?${state.session}` : ""}`);
    if (answer) return { at: index, answer };
  }
  return undefined;
}

async function step(url: string): Promise<Answer | undefined> {
  const response = await fetch(url, { signal: AbortSignal.timeout(1_000) }).catch(() => undefined);
  if (response?.status === 404 && state) fail(`the session is lost at ${url}`);
  return response?.ok ? ((await response.json()) as Answer) : undefined;
}

function tell(what: object): void {
  console.log(JSON.stringify({ afterMillis: Date.now() - began, ...state, ...what }));
}

function fail(reason: string): never {
  console.error(reason);
  process.exit(1);
}
