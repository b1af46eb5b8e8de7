# kill -9 of Redis in the middle of load, its data deleted: links go on, what was on its way is sent again, once applied.

use Affiliated::Test;
use Affiliated::Load;

my $load = Affiliated::Load->begin;
my $t = $load->{t};
my $wipe = sub {
    my $t = shift;

    $t->redis_kill;
    sleep rand 1;
    $t->redis_restart(wipe => 1);
};
my $away = sub {
    my $t = shift;

    # What comes now is in Redis, and not in PostgreSQL: only the spool can bring it back.
    kill 'STOP', $t->{processes}{daemon};
    sleep 1;
    $wipe->($t);
    kill 'CONT', $t->{processes}{daemon};
};

$load->ordeal(13, ['Redis lost', $wipe], ['Redis lost with batches nobody had read', $away], ['Redis lost again', $wipe]);
is(join("\n", $load->settle), '', 'everything that was answered is there, once, and the books hold');
cmp_ok($load->journal->{refused}, '<', 20, 'known links and keys did not need Redis');

done_testing();
