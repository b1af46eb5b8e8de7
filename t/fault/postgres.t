# kill -9 of PostgreSQL in the middle of load, with commits in doubt: applied batches are known, the others come again.

use Affiliated::Test;
use Affiliated::Load;

my $load = Affiliated::Load->begin(pg => { conf => "fsync = on\n" });
my $kill = sub {
    my $t = shift;

    $t->pg_kill;
    sleep rand 1;
    $t->pg_start;
};

$load->ordeal(11, map { ["kill -9 PostgreSQL $_", $kill] } 1 .. 3);
is(join("\n", $load->settle), '', 'everything that was answered is there, once, and the books hold');
is($load->journal->{lost} + $load->journal->{refused}, 0, 'nobody outside noticed');

done_testing();
