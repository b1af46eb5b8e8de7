# Starting, stopping, systemd's notifications, the status socket and the log.

use Affiliated::Test;
use Affiliated::Daemon;
use IO::Socket::UNIX;
use Socket qw(SOCK_DGRAM);

my $t = Affiliated::Test->new;
my $seed = $t->{seed} % 1000;

$t->redis_start;
$t->pg_start;
$t->daemon_conf(conf => { log => { format => 'json', level => 'debug' }, run => { stall_limit => '10s' } });

# --- systemd --------------------------------------------------------------------------------------------------------------------

my $notify = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => $t->path('state/notify')) or die $!;
chmod 0777, $t->path('state/notify');
my @told;

sub told
{
    my $pattern = shift;
    return $t->wait_until("the datagram $pattern", sub {
        while (IO::Select->new($notify)->can_read(0)) {
            $notify->recv(my $datagram, 4096);
            push @told, $datagram;
        }
        return grep { $_ =~ $pattern } @told;
    }, 10);
}

local $ENV{NOTIFY_SOCKET} = $t->path('state/notify');
local $ENV{WATCHDOG_USEC} = 500_000;
$t->daemon_start;
my $pid = $t->{processes}{daemon};
ok(told(qr/^READY=1$/m), 'systemd is told that it is ready');
like((grep { /READY/ } @told)[0], qr/^MAINPID=$pid$/m, 'and its pid');
@told = ();
ok(told(qr/^WATCHDOG=1$/m), 'the watchdog is fed');
sleep 1.2;
told(qr/WATCHDOG/);
cmp_ok(scalar(grep { /WATCHDOG/ } @told), '>=', 4, 'again and again');
@told = ();
$t->daemon_signal('HUP');
ok(told(qr/^RELOADING=1$/m), 'a reload is announced');
like((grep { /RELOADING/ } @told)[0], qr/^MONOTONIC_USEC=\d+$/m, 'with its time');
ok(told(qr/^READY=1$/m), 'and its end');

# PostgreSQL being away is no reason to be killed.
my $quiet = length $t->daemon_log;
$t->pg_stop;
ok(told(qr/clicks down/), 'what does not work is in the status line');
@told = ();
ok(told(qr/WATCHDOG/), 'and the watchdog is fed all the same');
$t->pg_start;
ok(told(qr/^STATUS=(?!.*down)/m), 'until it works again');

# --- status -------------------------------------------------------------------------------------------------------------------------

produce($t, seed => $seed, count => 100);
$t->wait_until('clicks', sub { clicks($t) == 100 });
my ($code, $out, $err) = $t->cli('status', '--json');
is($code, 0, 'status as JSON');
my $status = JSON::PP::decode_json($out);
is($status->{pid}, $pid, 'of this daemon');
is_deeply([sort keys %{ $status->{roles} }], [qw(clicks clicks2 conversions holds partitions projection)], 'with every role');
is_deeply([grep { $_ ne 'up' } map { $_->{state} } values %{ $status->{roles} }], [], 'all of them up');
is($status->{roles}{clicks}{records_total} + $status->{roles}{clicks2}{records_total}, 100, 'and what they did');
($code, $out, $err) = $t->cli('status');
is($code, 0, 'status for people');
like($out, qr/^role: +clicks$/m, 'names the roles');
($code, $out, $err) = $t->cli('status', '--prometheus');
is($code, 0, 'status for Prometheus');
like($out, qr/^affiliated_up\{role="clicks"\} 1$/m, 'says that a role works');
like($out, qr/^affiliated_records_total\{role="clicks2?"\} [1-9]/m, 'and what it did');
SKIP: {
    skip 'promtool is not installed', 1 unless grep { -x "$_/promtool" } split /:/, $ENV{PATH};
    my ($rc, $said, $complaint) = $t->run({ stdin => $out }, 'promtool', 'check', 'metrics');
    is($rc, 0, 'in a form that promtool likes') or diag "$said$complaint";
}
($code, $out, $err) = $t->cli('status', '--xml');
is($code, 2, 'any other option is a mistake');

# --- the log ------------------------------------------------------------------------------------------------------------------------

my @lines = grep { length } split /\n/, $t->daemon_log;
my @objects = map { eval { JSON::PP::decode_json($_) } } @lines;
is(scalar(@objects), scalar(@lines), 'every line of the log is JSON');
is(scalar(grep { !$_->{level} || !$_->{message} } @objects), 0, 'with level and message') or diag $lines[0];
cmp_ok(scalar(grep { $_->{level} eq 'debug' } @objects), '>', 0, 'down to the level that was set');
my %errors;
$errors{ $_->{role} }++ for grep { $_->{level} eq 'error' }
    map { JSON::PP::decode_json($_) } grep { length } split /\n/, substr $t->daemon_log, $quiet;
is_deeply(\%errors, { map { $_ => 1 } qw(clicks clicks2 conversions holds partitions projection) },
    'PostgreSQL away: one line a role, however long');

# --- SIGTERM -------------------------------------------------------------------------------------------------------------------------

@told = ();
ok($t->daemon_stop, 'SIGTERM ends it');
is($t->{daemon_status}, 0, 'with exit code 0');
ok(told(qr/^STOPPING=1$/m), 'after telling systemd');
ok(!-e $t->path('state/status.sock'), 'and taking its socket away');
($code, $out, $err) = $t->cli('status');
is($code, 1, 'then there is no status');
like($err, qr/is affiliated running\?/, 'and it asks why');

# A transaction under way is finished: it waits for a lock, and is given it. From here on nobody reads what systemd is told.
$t->daemon_start(conf => { postgres => { lock_timeout => '20s' } });
$t->wait_until('up', sub { (status($t)->{roles}{clicks}{state} || '') eq 'up' });
my $bin = $t->pg_bin;
$t->_spawn('locker', {}, $bin . '/psql', '-X', '-h', $t->{pg_socket}, '-U', 'postgres', '-d', 'affiliate', '-c',
    'begin; lock table affiliate.inbox; select pg_sleep(2); commit');
$t->wait_until('the lock', sub { $t->value("select count(*) from pg_locks where relation = 'affiliate.inbox'::regclass and mode = 'AccessExclusiveLock'") });
my $made = produce($t, seed => $seed + 1, count => 50);
$t->wait_until('a transaction that waits', sub { $t->value("select count(*) from pg_locks where not granted") });
ok($t->daemon_stop, 'SIGTERM while a transaction waits');
is($t->{daemon_status}, 0, 'ends in order');
clicks_are($t, 150, 'the transaction was finished');
is(acknowledged($t, $made), $made->{batches}, 'and acknowledged');

# --- the second SIGTERM -------------------------------------------------------------------------------------------------------------

$t->daemon_start;
$t->wait_until('up', sub { (status($t)->{roles}{clicks}{state} || '') eq 'up' });
$t->_end('locker', 'KILL');
$t->_spawn('locker', {}, $bin . '/psql', '-X', '-h', $t->{pg_socket}, '-U', 'postgres', '-d', 'affiliate', '-c',
    'begin; lock table affiliate.inbox; select pg_sleep(60); commit');
$t->wait_until('the lock', sub { $t->value("select count(*) from pg_locks where relation = 'affiliate.inbox'::regclass and mode = 'AccessExclusiveLock'") });
produce($t, seed => $seed + 2, count => 50);
$t->wait_until('a transaction that waits', sub { $t->value("select count(*) from pg_locks where not granted") });
my $stops = () = $t->daemon_log =~ /stopping: /g;
$t->daemon_signal('TERM');
$t->wait_until('stopping', sub { my $now = () = $t->daemon_log =~ /stopping: /g; $now > $stops });
sleep 1.5;
ok($t->alive('daemon'), 'with a transaction that can\'t end, SIGTERM waits');
my $begun = time();
ok($t->_end('daemon', 'TERM', 5), 'the second one does not');
cmp_ok(time() - $begun, '<', 3, 'at all');
is($t->{daemon_status} >> 8, 1, 'with exit code 1');
$t->psql('select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname is not null');
$t->daemon_start;
$t->wait_until('clicks', sub { clicks($t) == 200 });
clicks_are($t, 200, 'and nothing is lost');

# --- who may run it ---------------------------------------------------------------------------------------------------------------

SKIP: {
    skip 'only root can try', 2 if $>;
    ($code, $out, $err) = $t->run($t->_affiliated, '-c', $t->path('affiliated.conf'), 'run');
    is($code, 2, 'it does not run as root');
    like($err, qr/does not run as root/, 'and says so');
}
($code, $out, $err) = $t->cli('run', '--roles=clicks,payout');
is($code, 2, 'a role that there is not');
like($err, qr/no role "payout"/, 'is named');
($code, $out, $err) = $t->cli('run', '--frob');
is($code, 2, 'an option that there is not');
is($err, qq{affiliated run: "--frob" is no option, or lacks its value\n}, 'is named');
# --- a server that goes away just as we come in says so before libpq has told us that we are in ------------------------------------

{
    my $socket = $t->path('late');
    mkdir $socket or die $!;
    my $server = IO::Socket::UNIX->new(Local => "$socket/.s.PGSQL.5432", Listen => 10) or die $!;
    chmod 0777, $socket, "$socket/.s.PGSQL.5432";
    my $message = sub { my ($type, $body) = @_; return $type . pack('N', 4 + length $body) . $body };
    my $pid = fork // die $!;
    if (!$pid) {
        while (my $c = $server->accept) {
            $c->sysread(my $startup, 10_000);
            $c->syswrite($message->('R', pack 'N', 0) . join('', map { $message->('S', "$_->[0]\0$_->[1]\0") } ['server_version', '15.5'],
                    ['in_hot_standby', 'off'], ['default_transaction_read_only', 'off'], ['client_encoding', 'UTF8'])
                . $message->('Z', 'I') . $message->('E', "SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"));
            $c->close;
        }
        POSIX::_exit(0);
    }
    close $server;
    $t->daemon_conf(conf => { postgres => { conninfo => "host=$socket dbname=x user=x" } });
    ($code, $out, $err) = $t->cli('audit');
    is($code, 1, 'a server that goes away on arrival: an error') or diag $err;
    unlike($err, qr/^FATAL/m, 'and nothing that libpq prints by itself');
    kill 'KILL', $pid;
    waitpid $pid, 0;
}

done_testing();
