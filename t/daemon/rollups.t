# Rollups are exact whatever happens to the daemons that keep them: killed at work, fed duplicates, refused records, two at once.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;
my $seed = $t->{seed} % 1000;
my %quick = (clicks => { threads => 2, batch_bytes => '64k', batch_delay => '1ms' },
    conversions => { batch_bytes => '64k', batch_delay => '1ms' });

$t->redis_start;
$t->pg_start;
$t->daemon_start(conf => \%quick);
# The clicks are a quarter of an hour old: so must the terms be.
my $w = $t->world(hold => '5 minutes', rate => 1000, fee => 2000, terms => ['--valid-from', '2020-01-01T00:00:00Z']);
my %of = (merchant => $w->{merchant}, campaign => $w->{campaign}, affiliate => $w->{affiliate}, delay_ms => 1000,
    batch_records => 40, links => 7, sub_ids => 120, bots => 20);

my $clicks = 'valid + duplicate + suspect + prefetch + preview + bot';
my $orders = 'pending + approved + payable + cancelled + refunded + review + rejected';

# A rollup's sum and the number of rows, by one look at both: the daemon is at work.
sub counts
{
    my ($rollup, $what, $rows, $name) = @_;
    my ($sum, $count) = @{ ($t->rows("select (select sum($what) from affiliate.$rollup), (select count(*) from $rows)"))[0] };

    return is($sum, $count, $name);
}

sub agree
{
    my ($name) = @_;

    counts('click_day', $clicks, 'affiliate.click', "$name: clicks by day");
    counts('click_link_day', $clicks, 'affiliate.click', "$name: by link");
    counts('click_sub_day', $clicks, 'affiliate.click where sub_ids[1] is not null', "$name: by sub-id");
    counts('order_day', $orders, 'affiliate.order_fact', "$name: orders by day");
    counts('order_link_day', $orders, 'affiliate.order_fact', "$name: by link");
    books_hold($t, "$name: each is the recount");
}

# --- killed while it drains, each batch twice ------------------------------------------------------------------------------

my $now = int(time() * 1000) - 900_000;
for my $round (1 .. 4) {
    my %same = (%of, start_ms => $now, seed => $seed + $round, count => 1200);

    produce($t, %same, repeat => 2);
    produce($t, %same, channel => 'conversions', statuses => 'pending,approved', repeat => 2);
    produce($t, %same, channel => 'conversions', statuses => $round % 2 ? 'cancelled' : 'returned', count => 300);
    for (1 .. 2) {
        sleep 0.02 + rand 0.12;
        $t->daemon_kill;
        $t->daemon_start(conf => \%quick);
    }
}
drained($t);
clicks_are($t, 4800, 'every click is there');
is($t->value('select count(*) filter (where sub_id <> \'\') || \' \' || count(*) from affiliate.click_sub_day group by link_id, day '
        . 'order by 1 limit 1'), '50 51', 'of a link\'s sub-ids fifty are by themselves');
agree('after kills');
$t->wait_until('releases', sub { $t->value('select sum(payable) from affiliate.order_day') > 0 });

# --- two daemons at once, on the same rows --------------------------------------------------------------------------------

my $second = second($t, 'second', roles => [qw(clicks conversions)], conf => { %quick });
for my $round (5 .. 8) {
    my %same = (%of, start_ms => $now, seed => $seed + $round, count => 1000, batch_records => 10);
    produce($t, %same);
    produce($t, %same, channel => 'conversions', statuses => 'approved');
}
drained($t);
clicks_are($t, 8800, 'two daemons store every click');
agree('with two daemons');
is(scalar(() = ($t->daemon_log . $t->slurp($t->path("$second.log"))) =~ /deadlock/g), 0, 'without a deadlock');

# --- refused, replayed ----------------------------------------------------------------------------------------------------

produce($t, %of, start_ms => $now, seed => $seed + 5, count => 20, spool => 'dd', batch_records => 40);
produce($t, %of, start_ms => $now, seed => $seed + 9, count => 20, spool => 'de', batch_records => 40);
produce($t, %of, start_ms => midnight_ms(-5), seed => $seed + 10, count => 6, spool => 'df');
drained($t);
is_deeply(dead($t), { refused => 20, no_partition => 6 }, 'clicks that are there already are refused, those of a day without a partition kept');
clicks_are($t, 8820, 'and what came with them is stored');
agree('record by record');
my ($code, $out, $err) = $t->cli('dead-letters', 'replay', '--reason', 'no_partition');
is($code, 0, 'clicks of an older day are replayed') or diag($err);
clicks_are($t, 8826, 'into a partition of their own');
agree('replayed');
is($t->value("select count(*) from affiliate.audit(now() - interval '6 days')"), 0, 'those of the older day, too');

done_testing();
