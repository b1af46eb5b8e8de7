# kill -9 of an nginx worker in the middle of load, again and again: whatever was answered is in PostgreSQL, once.

use Affiliated::Test;
use Affiliated::Load;

my $load = Affiliated::Load->begin;
my $kill = sub { $_[0]->kill_worker(($_[0]->nginx_workers)[rand 2]) };

$load->ordeal(12, map { ["kill -9 worker $_", $kill] } 1 .. 8);
is(join("\n", $load->settle), '', 'everything that was answered is there, once, and the books hold');

done_testing();
