# A Redis, or what is in its place, that claims more than it sends, or sends without end: the daemon takes no memory for
# it, and goes on afterwards.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;

$t->redis_start;
$t->pg_start;
my $stub = $t->stub;
$t->daemon_start(conf => { redis => { address => $stub->address } });
produce($t, count => 100);
drained($t);
clicks_are($t, 100, 'through the stub, clicks are applied');

# The most that it ever had, MiB: an array of 2^30 pointers would be 8192 at once, 4000 of 60 000 would be 1800.
sub peak
{
    my ($kib) = $t->slurp("/proc/$t->{processes}{daemon}/status") =~ /^VmPeak:\s+(\d+)/m;
    return $kib / 1024;
}

my $usual = peak();
my $stored = 100;
for my $mode (qw(array arrays endless)) {
    my $failures = value($t, 'clicks', 'failures_total');

    $stub->mode($mode);
    $t->wait_until("$mode: it fails", sub { value($t, 'clicks', 'failures_total') >= $failures + 2 });
    $stub->mode('pass');
    produce($t, count => 50, seed => length $mode);
    $stored += 50;
    $t->wait_until("$mode: and works again", sub { clicks($t) == $stored });
    ok($t->alive('daemon'), "$mode: the daemon lives");
    cmp_ok(peak(), '<', $usual + 512, "$mode: and has taken no memory for what never came");
}

like($t->daemon_log, qr/Redis: a reply of more than \d+ bytes/, 'endless: the log says why');

done_testing();
