# The right to Redis: a user of its own with no more rights than conf.examples/redis.conf gives it, a password alone, and
# a wrong one.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;
my ($rule) = $t->slurp("$Affiliated::Test::TOP/conf.examples/redis.conf") =~ /^# user affiliated +(.+?)$/m
    or die 'no rule in redis.conf';

$t->redis_start;
$t->pg_start(conf => 'fsync = on');
$t->write('redis-password', "secret\n");
chmod 0600, $t->path('redis-password');
$t->_own($t->path('redis-password'), 'postgres');

my %login = (user => 'affiliated', password_file => $t->path('redis-password'));
$rule =~ s/PASSWORD/secret/;
$t->redis('ACL', 'SETUSER', 'affiliated', split ' ', $rule);
$t->daemon_start(conf => { redis => \%login });
my $w = $t->world(hold => '1 day');
my %of = (merchant => $w->{merchant}, campaign => $w->{campaign}, affiliate => $w->{affiliate},
    start_ms => int(time() * 1000), delay_ms => 1000, count => 100, seed => $t->{seed} % 1000);
produce($t, %of);
produce($t, %of, channel => 'conversions');
drained($t);
clicks_are($t, 100, 'as a user of its own, the daemon applies clicks');
is(conversions($t), 100, 'and conversions');
ok($t->wait_until('the link', sub { $t->redis('EXISTS', "aff:link:$w->{link}") }), 'and writes links');
ok($t->wait_until('every role', sub { ($t->cli('status'))[0] == 0 }), 'every role works');
my @users = $t->redis('CLIENT', 'LIST') =~ /user=affiliated/g;
cmp_ok(scalar @users, '>=', 3, 'as that user');
my ($code, $out) = $t->cli('check');
is($code, 0, 'check is content with its rights') or diag $out;
is(scalar grep({ /affiliated/ && !/client-info.*client-info/ } map { my %e = @$_; "$e{username} $e{reason} $e{object}" }
    @{ $t->redis('ACL', 'LOG') }), 0, 'nothing was denied') or diag explain $t->redis('ACL', 'LOG');

# --- the password is changed, and told to the daemon -----------------------------------------------------------------------------

$t->redis('ACL', 'SETUSER', 'affiliated', '<secret', '>changed');
$t->redis('CLIENT', 'KILL', 'USER', 'affiliated');
ok($t->wait_until('the role is down', sub { $t->daemon_log =~ /clicks: .*WRONGPASS.*trying again/ || ($t->cli('status'))[1] =~ /WRONGPASS/ }),
    'a wrong password is told, and tried again');
($code, $out) = $t->cli('check');
is($code, 1, 'check fails');
like($out, qr/FAIL.*WRONGPASS/, 'and says why');
produce($t, %of, seed => 5000 + $t->{seed} % 1000);
$t->write('redis-password', "changed\n");
$t->daemon_signal('HUP');
drained($t);
clicks_are($t, 200, 'with the right one, after SIGHUP, it goes on');

# --- a password alone ------------------------------------------------------------------------------------------------------------------

$t->daemon_stop;
$t->redis('CONFIG', 'SET', 'requirepass', 'changed');
$t->daemon_start(conf => { redis => { password_file => $t->path('redis-password') } });
produce($t, %of, seed => 9000 + $t->{seed} % 1000, password => 'changed');
$t->wait_until('clicks', sub { clicks($t) == 300 });
clicks_are($t, 300, 'a password without a user is that of the default one');
unlike($t->daemon_log, qr/secret|changed/, 'no password is in the log');
done_testing();
