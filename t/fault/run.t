# A short slice of the fault run (make faults): two seeds, of which each failure prints what it needs to be run again.

use strict;
use warnings;

use Test::More;

my $seed = $ENV{AFF_TEST_SEED} || 1 + int rand 1_000_000;

local @ENV{qw(SEED RUNS SECONDS JOBS RATE KINDS)} = ($seed, 2, 6, 2, 1.5, '');
my $said = qx($^X -It/lib t/fault/run 2>&1);
is($?, 0, "the fault run, SEED=$seed SECONDS=6 RATE=1.5") or diag $said;
like($said, qr/^2 runs, .* 0 failed$/m, 'came to its end');
my ($clicks, $events) = map { $said =~ /^  ${_}_found +(\d+)$/m ? $1 : 0 } qw(clicks events);
cmp_ok($clicks, '>', 50, 'clicks were there to be lost');
cmp_ok($events, '>', 20, 'events, too');

done_testing();
