# Things that come in the wrong order: conversions before their clicks, clicks before their partitions.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;

$t->redis_start;
$t->pg_start;
$t->daemon_start(roles => [qw(conversions holds)]);
my $w = $t->world(hold => '1 day', rate => 1000, fee => 2000);
my %of = (merchant => $w->{merchant}, campaign => $w->{campaign}, affiliate => $w->{affiliate}, count => 200,
    seed => $t->{seed} % 1000, start_ms => int(time() * 1000), delay_ms => 1000, batch_records => 50);

# --- conversions first -----------------------------------------------------------------------------------------------------

produce($t, %of, channel => 'conversions', statuses => 'pending,approved');
$t->wait_until('events', sub { conversions($t) == 400 });
is($t->value('select count(*) from affiliate.conversion where waiting'), 400, 'events without their clicks wait');
is($t->value('select count(*) from affiliate.order_fact'), 0, 'and count for nothing yet');
is($t->value('select coalesce(sum(credits_minor), 0) from affiliate.account'), 0, 'in no book');
my $shown = $t->cli_json('order', 'show', '--merchant', $w->{merchant}, '--order', "order-$of{seed}-0");
is($shown->{state}, 'waiting', 'the order says that it waits');
books_hold($t, 'the books hold while they wait');

# --- the clicks, before anybody made partitions -------------------------------------------------------------------------------

produce($t, %of);
$t->daemon_stop;
for my $leaf ($t->rows('select relation from affiliate.click_partitions()')) {
    $t->psql("drop table $leaf->[0]");
}
is($t->value('select count(*) from affiliate.click_partitions()'), 0, 'there is no partition');
$t->daemon_start(roles => [qw(clicks conversions)]);
$t->wait_until('clicks', sub { clicks($t) == 200 });
clicks_are($t, 200, 'the role clicks makes the partitions that it needs');
is_deeply(dead($t), {}, 'and puts nothing to the dead letters');
$t->wait_until('orders', sub { $t->value('select count(*) from affiliate.conversion where waiting') == 0 });
is($t->value("select count(*) from affiliate.order_fact where outcome = 'accepted'"), 200, 'events are applied once their click is there');
my $commission = 0;
$commission += int((125050 + $_) / 10 + 0.5) for 0 .. 199;
my $posted = $t->value("select sum(credits_minor - debits_minor) from affiliate.account where owner = 'affiliate' and kind = 'pending'");
cmp_ok(abs($posted - $commission), '<=', 20, 'and their commission is posted, once');    # half-even against half-up
produce($t, %of, channel => 'conversions', statuses => 'pending,approved', spool => 'beef');
drained($t);
is(conversions($t), 400, 'the same events in other batches change nothing');
is($t->value("select sum(credits_minor - debits_minor) from affiliate.account where owner = 'affiliate' and kind = 'pending'"),
    $posted, 'in the books, either');
cmp_ok(value($t, 'conversions', 'duplicates_total'), '==', 400, 'and are counted as duplicates');
books_hold($t);
done_testing();
