import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import type { LabHost } from "../lab/host.ts";

export interface Seen {
  /** Longest time without an answer, from wherever. */
  gapSeconds: number;
  /** Date.now() of the last answer before it. */
  gapBegan: number;
  /** Date.now() of the first answer from where the application went. */
  firstThere: number;
  /** How often the guest counted in a second, before it moved. */
  countsPerSecond: number;
  /** Answers that were older than one before: something was forgotten. */
  wentBack: number;
}

export interface Watch {
  /** Resolves once the application has answered from where it went, and for two more seconds. */
  stop(timeoutMillis: number): Promise<Seen>;
}

const afterwardsMillis = 2_000;
/** Nothing should be done for so long after the begin of a watch. */
export const usualMillis = 5_000;
const answersSchema = z.array(z.tuple([z.number(), z.string(), z.number()]));

/**
 * Asks from a host of its own every 50 ms, each time by a new connection and whether or not earlier ones were answered: both
 * where the application is and where it goes, until it has answered there; from then on only there. So the change of the
 * endpoint is part of the gap.
 */
export async function watchMove(subscriber: LabHost, way: { from: string; to: string; port: number }): Promise<Watch> {
  await subscriber.run(`rm -f ${files.stop} ${files.arrived}`);
  const argv = ["perl", "-e", asking, files.stop, files.arrived, String(way.port), way.from, way.to];
  const asked = subscriber.exec(argv, { timeoutMillis: 7_200_000 });
  asked.catch(() => undefined);
  return {
    async stop(timeoutMillis) {
      const deadline = Date.now() + timeoutMillis;
      while ((await subscriber.exec(["test", "-e", files.arrived])).exitCode !== 0 && Date.now() < deadline) await sleep(100);
      await sleep(afterwardsMillis);
      await subscriber.run(`touch ${files.stop}`);
      const { exitCode, stdout, stderr } = await asked;
      if (exitCode !== 0) throw new Error(`the subscriber cannot ask: ${stderr}`);
      return summary(answersSchema.parse(JSON.parse(stdout)), way.to);
    },
  };
}

const files = { stop: "/run/watch-stop", arrived: "/run/watch-arrived" };

function summary(answers: z.infer<typeof answersSchema>, to: string): Seen {
  const there = answers.find(([, address]) => address === to);
  if (there === undefined) throw new Error("the application never answered from where it went");
  let [gap, gapBegan, most, wentBack] = [0, 0, 0, 0];
  let last: number | undefined;
  for (const [at, , count] of answers) {
    if (last !== undefined && at - last > gap) [gap, gapBegan] = [at - last, last];
    // answers that are under way together may overtake each other
    if (count < most - 5) wentBack++;
    [last, most] = [at, Math.max(most, count)];
  }
  return { gapSeconds: gap / 1000, gapBegan, firstThere: there[0], wentBack, countsPerSecond: rateOf(answers) };
}

/** Over what comes before anything else happens. */
function rateOf(answers: z.infer<typeof answersSchema>): number {
  const [first] = answers;
  const last = answers.findLast(([at]) => at - (first?.[0] ?? at) < usualMillis);
  return first === undefined || last === undefined || last[0] === first[0] ? 0 : ((last[2] - first[2]) * 1000) / (last[0] - first[0]);
}

const asking = `
use IO::Socket::INET; use IO::Select; use Time::HiRes qw(time);
my ($stop, $arrived, $port, $from, $to) = @ARGV;
my @addresses = ($from, $to);
my ($readers, $writers) = (IO::Select->new, IO::Select->new);
my (%open, @answers);
sub forget { my $socket = shift; $readers->remove($socket); $writers->remove($socket); delete $open{$socket}; close $socket }
my $next = time;
for (;;) {
  my $now = time;
  if ($now >= $next) {
    last if -e $stop;
    $next = $next + 0.05 > $now ? $next + 0.05 : $now;
    forget($_->{socket}) for grep { $_->{at} < $now - 3 } values %open;
    for my $address (@addresses) {
      my $socket = IO::Socket::INET->new(PeerAddr => $address, PeerPort => $port, Proto => "tcp", Blocking => 0) or next;
      $open{$socket} = { socket => $socket, at => $now, address => $address, text => "" };
      $writers->add($socket);
    }
  }
  my $wait = $next - time;
  my ($readable, $writable) = IO::Select->select($readers, $writers, undef, $wait > 0 ? $wait : 0);
  for my $socket (@{$writable || []}) {
    if ($socket->connected && defined syswrite $socket, "GET /peek HTTP/1.0\\r\\n\\r\\n") { $writers->remove($socket); $readers->add($socket) }
    else { forget($socket) }
  }
  for my $socket (@{$readable || []}) {
    my $asked = $open{$socket};
    my $count = sysread $socket, $asked->{text}, 4096, length $asked->{text};
    next if $count;
    if ($asked->{text} =~ m{^HTTP/\\S+ 200 .*\\r\\n\\r\\n(\\d+)}s) {
      push @answers, sprintf '[%.0f,"%s",%d]', time * 1000, $asked->{address}, $1;
      if ($asked->{address} eq $to && @addresses > 1) { @addresses = ($to); open my $file, ">", $arrived }
    }
    forget($socket);
  }
}
print "[", join(",", @answers), "]";
`;
