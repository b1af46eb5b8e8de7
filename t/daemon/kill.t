# The daemon is killed again and again while it drains both channels: every click and every event is there once, every
# batch is acknowledged, and the books hold.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;
my ($rounds, $orders) = (8, 1500);
my ($caught, $kills) = (0, 0);
my @made;

$t->redis_start;
$t->pg_start;
$t->daemon_start(conf => { clicks => { batch_bytes => '64k', batch_delay => '1ms' },
    conversions => { batch_bytes => '64k', batch_delay => '1ms' } });
my $w = $t->world(hold => '1 day', rate => 1000, fee => 2000);
my %of = (merchant => $w->{merchant}, campaign => $w->{campaign}, affiliate => $w->{affiliate}, delay_ms => 1000,
    count => $orders, batch_records => 50);

# A batch that is in the stream and not acknowledged at the moment of the kill.
sub kill_it
{
    my $pending = 0;

    for my $key (qw(aff:clicks:0 aff:conversions:0)) {
        my $reply = $t->redis_try('XPENDING', $key, 'affiliated');
        $pending += ref $reply eq 'ARRAY' ? $reply->[0] : 0;
    }
    $t->daemon_kill;
    $kills++;
    $caught++ if $pending;
}

for my $round (1 .. $rounds) {
    my $now = int(time() * 1000);

    push @made, produce($t, %of, start_ms => $now, seed => $t->{seed} % 1000 + $round);
    push @made, produce($t, %of, start_ms => $now, seed => $t->{seed} % 1000 + $round, channel => 'conversions',
        statuses => 'pending,approved');
    for (1 .. 2) {
        sleep 0.02 + rand 0.12;
        kill_it();
        $t->daemon_start;
    }
}
drained($t);

note("$kills kills, $caught of them with entries under way");
cmp_ok($caught, '>=', 3, 'kills hit the daemon at work');
clicks_are($t, $rounds * $orders, 'every click is there, once');
is(conversions($t), 2 * $rounds * $orders, 'every event, too');
is($t->value('select count(*) from affiliate.order_fact where outcome = \'accepted\''), $rounds * $orders, 'of accepted orders');
is_deeply(dead($t), {}, 'no dead letters');

my $sum = 0;
$sum += 125050 + $_ % 1000 for 0 .. $orders - 1;
is($t->value("select sum(amount_minor) from affiliate.order_fact"), $rounds * $sum, 'with the amounts that were reported');

my ($batches, $missing) = (0, 0);
for my $made (@made) {
    $batches += $made->{batches};
    $missing += $made->{batches} - acknowledged($t, $made);
}
is($missing, 0, 'every batch is acknowledged to its producer');
is($t->value('select count(*) from affiliate.inbox'), $batches, 'and in the inbox once');
books_hold($t);
done_testing();
