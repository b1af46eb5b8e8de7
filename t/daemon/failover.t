# A PostgreSQL that went back in time, as after a failover: what it lost is applied again from the streams, once.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;
my $seed = $t->{seed} % 100_000;
my %quick = (clicks => { threads => 1, batch_bytes => '64k', batch_delay => '1ms' });

$t->redis_start;
$t->pg_start;

$t->daemon_start(roles => ['clicks', 'partitions'], conf => \%quick);
my $before = produce($t, seed => $seed + 2, count => 200, batch_records => 20);
$t->wait_until('the first clicks', sub { clicks($t) == 200 });
drained($t);
$t->daemon_stop;
$t->pg_stop;
$t->run('cp', '-a', $t->path('pg'), $t->path('pg.old'));
$t->pg_start;
$t->daemon_start;
drained($t);
is(value($t, 'clicks', 'replayed_entries_total'), 0, 'a restart of PostgreSQL replays nothing');
my $after = produce($t, seed => $seed + 3, count => 300, batch_records => 20);
$t->wait_until('clicks that will be lost', sub { clicks($t) == 500 });
drained($t);
$t->daemon_stop;
$t->pg_stop;
$t->run('rm', '-rf', $t->path('pg'));
rename $t->path('pg.old'), $t->path('pg') or die $!;
$t->_own($t->write('pg/standby.signal', ''), 'postgres');
$t->pg_start;
$t->psql('select pg_promote()');
is(clicks($t), 200, 'a standby that had not got the last commits is promoted');
$t->daemon_start;
$t->wait_until('the replay', sub { clicks($t) >= 500 });
drained($t);
clicks_are($t, 500, 'what was acknowledged is applied again, what was there is not');
is(value($t, 'clicks', 'replayed_entries_total'), 25, 'from the replay window');
like($t->daemon_log, qr/failover or restore/, 'and the log says why');
is(acknowledged($t, $_), $_->{batches}, 'and acknowledged') for $before, $after;

$t->wait_until('up', sub { (status($t)->{roles}{clicks}{state} || '') eq 'up' });
$t->pg_stop;
ok($t->wait_until('down', sub { (status($t)->{roles}{clicks}{state} || '') eq 'down' }), 'a role with nothing to do sees that PostgreSQL is away');
like(status($t)->{roles}{clicks}{reason}, qr/PostgreSQL/, 'and says so');

done_testing();
