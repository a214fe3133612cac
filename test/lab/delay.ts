import { spawn } from "node:child_process";
import { namespaceOf } from "./network.ts";
import { run } from "./run.ts";

/**
 * Delays what goes over a host's link by this much each way, and returns what ends that. The kernel may have no netem, so the
 * switch is cut in two before the host's port, and a process carries each frame from one side to the other once its time has come.
 */
export async function delayHost(lab: string, host: string, millis: number): Promise<() => Promise<void>> {
  const hub = namespaceOf(lab, "switch");
  const ip = ["ip", "-n", hub];
  const taps = ["late0", "late1"] as const;
  await run([...ip, "link", "add", "name", "late", "type", "bridge"]);
  for (const tap of taps) await run([...ip, "tuntap", "add", "dev", tap, "mode", "tap"]);
  const carrier = spawn("ip", ["netns", "exec", hub, "perl", "-e", carrying, String(millis), ...taps], {
    // it ends with its input, and so with whoever started it
    stdio: ["pipe", "ignore", "inherit"],
  });
  const ended = new Promise((resolve) => carrier.once("close", resolve));
  for (const [port, bridge] of [
    [taps[0], "br0"],
    [taps[1], "late"],
    [host, "late"],
  ] as const)
    await run([...ip, "link", "set", port, "master", bridge, "up"]);
  await run([...ip, "link", "set", "late", "up"]);
  return async () => {
    await run([...ip, "link", "set", host, "master", "br0"]);
    carrier.stdin.end();
    await ended;
    for (const link of [...taps, "late"]) await run([...ip, "link", "delete", link]);
  };
}

const carrying = `
use Time::HiRes qw(time sleep);
my ($millis, @taps) = @ARGV;
my (@ends, @late);
for my $name (@taps) {
  sysopen(my $end, "/dev/net/tun", 2) or die "tun: $!";
  # TUNSETIFF; a tap without a header before each frame
  ioctl($end, 0x400454ca, my $request = pack("a16 S x22", $name, 0x1002)) or die "$name: $!";
  push @ends, $end;
}
my $asked = "";
vec($asked, fileno($_), 1) = 1 for @ends, *STDIN;
for (;;) {
  my $wait = @late ? $late[0][0] - time : 1;
  select(my $ready = $asked, undef, undef, $wait > 0 ? $wait : 0);
  exit 0 if vec($ready, fileno(STDIN), 1);
  for my $side (0, 1) {
    next unless vec($ready, fileno($ends[$side]), 1);
    sysread($ends[$side], my $frame, 65536) or next;
    push @late, [time + $millis / 1000, $ends[1 - $side], $frame];
  }
  while (@late && $late[0][0] <= time) { my $due = shift @late; syswrite($due->[1], $due->[2]) }
}
`;
