# Two daemons at one stream, and one of them is killed with entries in hand.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;
my $seed = $t->{seed} % 100_000;
my %quick = (clicks => { threads => 1, batch_bytes => '64k', batch_delay => '1ms' });

$t->redis_start;
$t->pg_start;

second($t, 'b', roles => ['clicks'], conf => \%quick);
$t->daemon_start(roles => ['clicks'], conf => { %quick, run => { claim_idle => '10s', roles => 'clicks' } });
$t->wait_until('both', sub { $t->daemon_log =~ /clicks: works/ && $t->slurp($t->path('b.log')) =~ /clicks: works/ });
my @made;
my $held = 0;
for my $round (1 .. 6) {
    push @made, produce($t, seed => $seed + 10 + $round, count => 4000, batch_records => 20);
    last if $held;
    sleep rand 0.05;
    kill 'STOP', $t->{processes}{b};
    sleep 0.2;    # Redis may still be reading the last acknowledgement
    my $reply = $t->redis('XPENDING', 'aff:clicks:0', 'affiliated');
    my %of = map { @$_ } @{ $reply->[3] || [] };
    $held = $of{b} || 0;
    kill $held ? 'KILL' : 'CONT', $t->{processes}{b};
}
note("the killed daemon held $held entries");
cmp_ok($held, '>', 0, 'a daemon was killed with entries in hand');
ok($t->wait_until('the other one', sub { value($t, 'clicks', 'records_total') > 0 }), 'while the other one worked, too');
$t->wait_until('the claim', sub { value($t, 'clicks', 'claimed_entries_total') >= $held }, 30);
drained($t);
clicks_are($t, 4000 * @made, 'two daemons at one stream, one of them killed: every click once');
done_testing();
