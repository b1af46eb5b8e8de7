# Reloads and binary upgrades (USR2, QUIT to the old master) in the middle of load: not one request is lost.

use Affiliated::Test;
use Affiliated::Load;

my $load = Affiliated::Load->begin(daemonized => 1, connection => 'close');
my $reload = sub { ok($_[0]->nginx_reload, 'reloaded') };
my $upgrade = sub { ok($load->nginx_upgrade, 'upgraded') };

$load->ordeal(13, [reload => $reload], [upgrade => $upgrade], [reload => $reload], [upgrade => $upgrade],
    ['two reloads at once' => sub { $_[0]->nginx_signal('HUP'); $reload->($_[0]) }]);
is(join("\n", $load->settle), '', 'everything that was answered is there, once, and the books hold');
is($load->journal->{lost} + $load->journal->{refused}, 0, 'nobody outside noticed');
ok($load->nginx_daemon_stop, 'nginx ends');

done_testing();
