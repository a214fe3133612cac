import type { LabHost } from "../lab/host.ts";

/** Asks from a host of its own, every 10 ms, until the application answers; resolves with the moment (Date.now()) of that. It ends with its host at the latest. */
export async function firstReply(subscriber: LabHost, address: string): Promise<number> {
  // one process for all questions: starting one for each would take the processor from the guest that is measured
  const { exitCode, stdout, stderr } = await subscriber.exec(["perl", "-e", asking, address], { timeoutMillis: 7_200_000 });
  if (exitCode !== 0) throw new Error(`the subscriber cannot ask ${address}: ${stderr}`);
  return Number(stdout);
}

const asking = `
use IO::Socket::INET; use Time::HiRes qw(time sleep alarm);
$SIG{ALRM} = sub { die "silence" };
for (;; sleep 0.01) {
  my $first = eval {
    alarm 2;
    my $socket = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => 8080, Timeout => 2) or die;
    print $socket "GET /peek HTTP/1.0\\r\\n\\r\\n";
    scalar <$socket>;
  };
  alarm 0;
  if (($first // "") =~ / 200 /) { printf "%d\\n", time * 1000; exit 0 }
}
`;
