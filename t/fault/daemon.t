# kill -9 of affiliated in the middle of load: batches that it had not finished are taken up again, none is applied twice.

use Affiliated::Test;
use Affiliated::Load;

my $load = Affiliated::Load->begin;
my $kill = sub {
    my $t = shift;

    $t->daemon_kill;
    sleep rand 0.5;
    $t->daemon_start;
};

$load->ordeal(12, map { ["kill -9 affiliated $_", $kill] } 1 .. 5);
is(join("\n", $load->settle), '', 'everything that was answered is there, once, and the books hold');

done_testing();
