# Consumers that die with entries in hand: what they hold is never trimmed, and is claimed by another.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;
my $seed = $t->{seed} % 100_000;
my %quick = (clicks => { threads => 1, batch_bytes => '64k', batch_delay => '1ms' });

$t->redis_start;
$t->pg_start;

# --- a consumer that is gone for good: never trimmed, then claimed ---------------------------------------------------------

produce($t, seed => $seed, count => 150, batch_records => 1);
my @ids = map { $_->[0] } raw($t, 'aff:clicks:0');
$t->redis('XGROUP', 'CREATE', 'aff:clicks:0', 'affiliated', '0');
$t->redis('XREADGROUP', 'GROUP', 'affiliated', 'gone', 'COUNT', 150, 'STREAMS', 'aff:clicks:0', '>');
$t->redis('XACK', 'aff:clicks:0', 'affiliated', @ids[0 .. 119]);
produce($t, seed => $seed + 1, count => 300, batch_records => 1);
$t->daemon_start(roles => ['clicks', 'partitions'],
    conf => { %quick, run => { replay_window => 0, claim_idle => '10s', roles => 'clicks, partitions' } });
$t->wait_until('what is new', sub { clicks($t) == 300 });
$t->wait_until('trimming', sub { value($t, 'clicks', 'trimmed_entries_total') > 0 });
if (clicks($t) == 300) {
    cmp_ok($t->redis('XLEN', 'aff:clicks:0'), '>=', 330, 'trimming stops before the oldest entry that somebody holds');
    cmp_ok($t->redis('XLEN', 'aff:clicks:0'), '<', 360, 'and not long before it');
    is(scalar @{ $t->redis('XRANGE', 'aff:clicks:0', $ids[120], $ids[149]) }, 30, 'of which none is dropped');
} else {
    fail('claimed before anything was trimmed');
}
$t->wait_until('the claim', sub { clicks($t) == 330 });
is(value($t, 'clicks', 'claimed_entries_total'), 30, 'entries of a consumer that is gone are claimed');
drained($t);
clicks_are($t, 330, 'and applied, once');

done_testing();
