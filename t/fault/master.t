# kill -9 of nginx, master and workers, in the middle of load: the next start finds what the last one left in the spool.

use Affiliated::Test;
use Affiliated::Load;

my $load = Affiliated::Load->begin;
my $kill = sub {
    my $t = shift;

    $t->nginx_kill;
    $t->nginx_start;
};

$load->ordeal(12, map { ["kill -9 nginx $_", $kill] } 1 .. 4);
is(join("\n", $load->settle), '', 'everything that was answered is there, once, and the books hold');

done_testing();
