/**
 * Starts a program that may not ask for huge pages. QEMU advises them for all guest memory, and for a mapping with that
 * advice the kernel reads up to 4 MiB around each page that is touched, whatever read-ahead the file has: a guest that goes
 * on from saved memory would wait for much that it never needs, and for all of it where that is still arriving. There is no
 * option against it, so the one call (madvise with MADV_HUGEPAGE) is refused by a seccomp filter. Perl is on every Debian;
 * where the filter is not allowed, reading is only slower.
 */
export function withoutHugePages(argv: string[]): string[] {
  return ["perl", "-e", script, ...argv];
}

// numbers of x86_64, the only architecture that the driver starts guests for: syscall 28 = madvise, argument 14 = MADV_HUGEPAGE
const script = `
my @steps = ([0x20,0,0,0], [0x15,0,3,28], [0x20,0,0,32], [0x15,0,1,14], [6,0,0,0x50016], [6,0,0,0x7fff0000]);
my $filter = join "", map { pack "SCCL", @$_ } @steps;
my $program = pack "S x6 P", scalar(@steps), $filter;
syscall 157, 22, 2, $program;
exec { $ARGV[0] } @ARGV or die "$ARGV[0]: $!\\n";
`;
