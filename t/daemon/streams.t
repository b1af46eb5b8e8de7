# What streams bring: the same batch many times, several streams, several days, Redis emptied, groups and streams deleted.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;
my $seed = $t->{seed} % 100_000;

$t->redis_start;
$t->pg_start;

# --- the same batch many times within one load ------------------------------------------------------------------------

my $made = produce($t, seed => $seed, count => 1000, batch_records => 50, repeat => 4);
$t->daemon_start(conf => { clicks => { threads => 1 } });
drained($t);
clicks_are($t, 1000, 'a batch that is in one load four times is applied once');
is(acknowledged($t, $made), 20, 'and acknowledged');
is(value($t, 'clicks', 'repeated_entries_total'), 60, 'the others are counted');

# --- Redis loses everything, everything is sent again -----------------------------------------------------------------

$t->redis_restart(wipe => 1);
produce($t, seed => $seed, count => 1000, batch_records => 50, start_ms => $made->{start_ms});
my $more = produce($t, seed => $seed + 1, count => 500, batch_records => 50);
$t->wait_until('the new clicks', sub { clicks($t) >= 1500 });
drained($t);
clicks_are($t, 1500, 'after Redis came back empty, what is sent again is not applied again');
is(acknowledged($t, $made), 20, 'and acknowledged once more, for a producer that lost the bits, too');
is(acknowledged($t, $more), 10, 'beside what is new');

# --- the group, then the stream, vanish under the daemon --------------------------------------------------------------

$t->redis('XGROUP', 'DESTROY', 'aff:clicks:0', 'affiliated');
$more = produce($t, seed => $seed + 2, count => 300, batch_records => 50);
$t->wait_until('clicks behind a lost group', sub { acknowledged($t, $more) == 6 });
clicks_are($t, 1800, 'a group that was destroyed is made anew, from the beginning');
$t->redis('DEL', 'aff:clicks:0');
$more = produce($t, seed => $seed + 3, count => 300, batch_records => 50);
$t->wait_until('clicks behind a lost stream', sub { acknowledged($t, $more) == 6 });
clicks_are($t, 2100, 'so is a stream');
like($t->daemon_log, qr/lost its streams or groups/, 'and the log says what happened');
$t->redis('FLUSHALL');
$more = produce($t, seed => $seed + 4, count => 300, batch_records => 50);
$t->wait_until('clicks behind FLUSHALL', sub { acknowledged($t, $more) == 6 });
clicks_are($t, 2400, 'and everything');

# --- days --------------------------------------------------------------------------------------------------------------

my ($yesterday, $today, $tomorrow) = map {
    my ($d, $m, $y) = (gmtime(midnight_ms($_) / 1000))[3, 4, 5];
    sprintf 'click_%04d%02d%02d', $y + 1900, $m + 1, $d;
} -1, 0, 1;
$t->psql('set session_replication_role = replica; truncate affiliate.click');
$t->daemon_stop;
produce($t, seed => $seed + 5, count => 400, rate => 1000, start_ms => midnight_ms() - 200, batch_records => 150);
produce($t, seed => $seed + 6, count => 400, rate => 1000, start_ms => midnight_ms(1) - 200, batch_records => 150);
$t->daemon_start(conf => { clicks => { threads => 1, batch_delay => '500ms' } });
drained($t);
is_deeply([map { $t->value("select count(*) from affiliate.$_") } $yesterday, $today, $tomorrow], [200, 400, 200],
    'one load over two midnights: each click is in its day');
clicks_are($t, 800, 'once');

# --- several streams ---------------------------------------------------------------------------------------------------

$t->daemon_stop;
$t->psql('set session_replication_role = replica; truncate affiliate.click');
$t->redis('FLUSHALL');
$t->daemon_start(conf => { redis => { streams => 3 } });
my @made = map { produce($t, seed => $seed + 10 + $_, count => 400, batch_records => 50, stream => $_) } 0 .. 2;
$t->wait_until('three streams', sub { clicks($t) >= 1200 });
drained($t, 3);
clicks_are($t, 1200, 'three streams are drained, each once');
is_deeply([map { acknowledged($t, $_) } @made], [8, 8, 8], 'and acknowledged');

# --- batches as large as they may be ------------------------------------------------------------------------------------

$t->daemon_stop;
$t->psql('set session_replication_role = replica; truncate affiliate.click');
$t->redis('FLUSHALL');
produce($t, seed => $seed + 20, count => 250_000, batch_records => 100_000, batch_bytes => 1_000_000);
$t->daemon_start(conf => { redis => { streams => 1 } });
drained($t);
is(clicks($t), 250_000, 'large batches are applied');
SKIP: {
    skip 'a sanitizer takes memory, too', 1 if $ENV{AFFILIATED_BUILD};
    my ($kib) = $t->slurp("/proc/$t->{processes}{daemon}/status") =~ /^VmHWM:\s+(\d+)/m;
    cmp_ok($kib, '<', 64 * 1024, 'and a read asks for fewer of them, so that memory stays bounded');
}

# --- a Redis that is full of what is kept for a replay -------------------------------------------------------------------

sub used { return $t->redis('INFO', 'memory') =~ /^used_memory:(\d+)/m ? $1 : die 'no used_memory' }

$t->daemon_stop;
$t->psql('set session_replication_role = replica; truncate affiliate.click');
$t->redis('FLUSHALL');
$t->daemon_start(conf => { redis => { streams => 1 } });
produce($t, seed => $seed + 30, count => 60_000);
drained($t);
$t->daemon_stop;
my $kept = $t->redis('XLEN', 'aff:clicks:0');
my $full = used();
$t->redis('CONFIG', 'SET', 'maxmemory', $full - 1_000_000);
like(eval { $t->redis('SETBIT', 'aff:test', 1, 1) } // $@, qr/OOM/, 'Redis takes nothing any more');
$t->daemon_start;
ok($t->wait_until('room', sub { used() < $full * 0.75 }), 'makes room for what comes, as soon as a daemon runs');
my $left = $t->redis('XLEN', 'aff:clicks:0');
cmp_ok($left, '>', $kept / 8, 'and not more of it than is needed');
like($t->daemon_log, qr/of aff:clicks:0 the last \d+ s are kept for a replay, not 3600/, 'and says so');
my $later = produce($t, seed => $seed + 31, count => 1000);
ok($t->wait_until('what comes', sub { clicks($t) == 61_000 }), 'what comes is applied');
drained($t);
clicks_are($t, 61_000, 'once');
cmp_ok(acknowledged($t, $later), '>', 0, 'and acknowledged');
$t->redis('CONFIG', 'SET', 'maxmemory', 0);

is_deeply(dead($t), {}, 'no dead letters');
done_testing();
