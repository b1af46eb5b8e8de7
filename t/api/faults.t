# What breaks around the role api: PostgreSQL, the daemon itself, clients that do not go on.

use Affiliated::Api;

use IO::Socket::UNIX ();

my $t = Affiliated::Api->new;

$t->redis_start;
$t->api_start(conf => { api => { threads => 3, statement_timeout => '1s', export_timeout => '5s', read_timeout => '1s', send_timeout => '2s' } });

my $asha = $t->person;

# The body of an operation, in place of its own; the harness runs each as the tenant.
sub operation
{
    my ($name, $body) = @_;
    $t->psql("create or replace function affiliate.api_$name(p_actor affiliate.actor, p_request jsonb) returns setof jsonb "
            . "language plpgsql volatile security definer set search_path = pg_catalog, affiliate, pg_temp as \$body\$ begin $body end \$body\$");
}

# --- statements that fail ------------------------------------------------------------------------------------------------------

$t->psql('create sequence affiliate.tries; grant usage on sequence affiliate.tries to affiliate_tenant');
operation('me_show', q{if nextval('affiliate.tries') < 3 then raise exception using errcode = '40001'; end if; return next '{"user": 1}';});
is($asha->get('/me', undef, check => 0)->{status}, 200, 'what could not be serialized is done again');
is($t->value('select last_value from affiliate.tries'), 3, 'twice');
operation('me_show', q{raise exception using errcode = '40P01';});
is(problem($asha->get('/me')), '503 unavailable', 'but not for ever');
operation('me_show', q{perform pg_sleep(20); return;});
is(problem($asha->get('/me')), '503 unavailable', 'what takes too long');
operation('me_show', q{perform 1 / 0; return;});
{
    my $r = $asha->get('/me');
    is(problem($r), '500 internal_error', 'what should not be');
    unlike($r->{body}, qr/zero/, 'says nothing of the inside');
    like($t->daemon_log, qr/$r->{json}{request_id}: me_show: PostgreSQL: division by zero/, 'but to the operator');
}
operation('me_show', q{perform affiliate.problem(409, 'state', 'It is so.'); return;});
is(problem($asha->get('/me')), '409 state', 'what is refused');
operation('me_show', q{perform affiliate.refuse_fields('{"a": "is wrong", "b": "too"}'); return;});
is_deeply([sort map { "$_->{pointer} $_->{detail}" } @{ $asha->get('/me')->{json}{errors} }], ['/a is wrong', '/b too'], 'each field');
operation('me_show', q{return;});
is(problem($asha->get('/me', undef, check => 0)), 204, 'nothing');

# --- CSV --------------------------------------------------------------------------------------------------------------------------

operation('session_list', q{return query select jsonb_build_object('session', n, 'user_agent', repeat('=cmd|', 20), 'address', 'a"b', 'x', 1)
    from generate_series(1, case when p_request -> 'all' = 'true' then 20000 else 3 end) n;});
{
    my $r = $asha->get('/sessions?format=csv&limit=2');
    my @lines = split /\r\n/, $r->{body};
    is(scalar @lines, 20_001, 'twenty thousand rows, whatever the limit') or diag substr $r->{raw}, 0, 2000;
    is($lines[7], q{7,,,,,"a""b",'} . '=cmd|' x 20, 'what a spreadsheet would run is text');
    operation('session_list', q{return next '{}'; perform pg_sleep(30);});
    is(problem($asha->get('/sessions?format=csv')), '503 unavailable', 'one that is not finished is a problem, not half a file');
}

# --- clients ------------------------------------------------------------------------------------------------------------------------

sub slow { my $s = IO::Socket::UNIX->new(Peer => $t->path('state/api.sock')) or die "connect: $!"; syswrite $s, shift; return $s }

{
    # All lanes are taken by requests that do not go on; they are given up in time.
    my @slow = map { slow('100:CONTENT') } 1 .. 6;
    is($t->client->get('/time')->{status}, 200, 'slow clients do not keep others out for long');
    my $head = "CONTENT_LENGTH\0" . "1000\0SCGI\0" . "1\0REQUEST_METHOD\0POST\0REQUEST_URI\0/api/v1/session\0";
    push @slow, map { slow(length($head) . ":$head,half") } 1 .. 6;
    is($t->client->get('/time')->{status}, 200, 'nor those whose body does not come');
}

# --- PostgreSQL goes away -------------------------------------------------------------------------------------------------------------

operation('me_show', q{return next '{"user": 1}';});
$t->pg_stop('immediate');
is(problem($asha->get('/me')), '503 unavailable', 'without PostgreSQL') for 1 .. 8;
is($asha->get('/me')->{headers}{'retry-after'}, 1, 'it is to be tried again');
is($t->client->get('/time')->{status}, 200, 'the time is there');
is(problem($t->client->get('/health')), '503 unavailable', 'health is not');
$t->pg_start;
$t->wait_until('PostgreSQL is back', sub { $asha->get('/me', undef, check => 0)->{status} == 200 });
$t->wait_until('all lanes are up', sub {
    my ($code, $out) = $t->cli('status', '--json');
    my $roles = JSON::PP::decode_json($out)->{roles};
    return !grep { /^api/ && $roles->{$_}{state} ne 'up' } keys %$roles;
});

# Within a request: a GET is done again; a change that has no Idempotency-Key is not.
operation('me_show', q{perform pg_sleep(case when nextval('affiliate.tries') < 1003 then 0.9 else 0 end); return next '{"user": 1}';});
sub cut
{
    my $wait = shift;
    my $pid = fork;
    if (!$pid) {
        for (1 .. 100) {
            last if $t->value("select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'api_login' and state = 'active'");
            select undef, undef, undef, 0.01;
        }
        POSIX::_exit(0);
    }
    my $r = $wait->();
    waitpid $pid, 0;
    return $r;
}
$t->psql("select setval('affiliate.tries', 1001)");
is(cut(sub { $asha->get('/me', undef, check => 0) })->{status}, 200, 'a lost connection within a GET');
operation('me_update', q{perform pg_sleep(0.9); return next '{"user": 1}';});
is(problem(cut(sub { $asha->patch('/me', {}, check => 0) })), '503 unavailable', 'within a change: nobody knows');

# --- the daemon goes away ---------------------------------------------------------------------------------------------------------------

operation('me_show', q{return next '{"user": 1}';});
$t->api_kill;
is($asha->get('/me', undef, check => 0)->{status}, 502, 'kill -9: nginx says so');
$t->api_again;
is($asha->get('/me', undef, check => 0)->{status}, 200, 'the session outlives it, and the socket that was left is no hindrance');

# SIGTERM: what is under way, and what waits already, is answered.
operation('me_show', q{perform pg_sleep(0.4); return next '{"user": 1}';});
{
    my @connections = map {
        my $c = $t->keepalive;
        $c->send("GET /api/v1/me HTTP/1.1\r\nHost: localhost\r\nCookie: __Host-affiliate=$asha->{cookie}\r\nConnection: close\r\n\r\n");
        $c;
    } 1 .. 9;
    sleep 0.2;
    ok($t->daemon_stop, 'it stops');
    is(scalar(grep { $_->response->{status} == 200 } @connections), 9, 'with everybody answered');
    ok(!-e $t->path('state/api.sock'), 'the socket is gone');
}

# Reload: sockets and sessions go on; new limits count.
$t->api_again;
operation('me_show', q{return next '{"user": 1}';});
$t->write('affiliated.conf', $t->slurp($t->path('affiliated.conf')) =~ s/^rate_login = 0$/rate_login = 1/mr);
$t->daemon_signal('HUP');
$t->wait_until('the new limit', sub { $t->client->login('x@example.com', 'x' x 12)->{status} == 429 });
is($asha->get('/me', undef, check => 0)->{status}, 200, 'and everything else goes on');

# Another daemon can't take the socket away.
{
    my $conf = $t->slurp($t->path('affiliated.conf')) =~ s/status\.sock/other.sock/r;
    my $path = $t->write('other.conf', $conf);
    my $log = $t->path('other.log');
    $t->_spawn('other', { user => 'postgres', log => $log, env => $t->_sanitizer_env(0) }, $t->_affiliated, '-c', $path, 'run');
    $t->wait_until('the other says so', sub { $t->slurp($log) =~ /another daemon answers/ });
    $t->_end('other', 'TERM');
    is($asha->get('/me', undef, check => 0)->{status}, 200, 'the first one serves as before');
}

# systemd's socket: it is there before the daemon, and outlives it; who comes meanwhile waits, and is answered.
{
    local $^F = 255;
    my $listen = IO::Socket::UNIX->new(Local => $t->path('given.sock'), Listen => 64) or die "given.sock: $!";
    my $conf = $t->write('given.conf', $t->slurp($t->path('affiliated.conf')) =~ s/status\.sock/given-status.sock/r =~ s/api\.sock/never.sock/r);
    my $start = sub {
        $t->_spawn('given', { user => 'postgres', log => $t->path('given.log'), env => $t->_sanitizer_env(0) },
            $^X, '-MPOSIX', '-e', 'POSIX::dup2(shift, 3); $ENV{LISTEN_PID} = $$; $ENV{LISTEN_FDS} = 1; exec @ARGV',
            fileno $listen, $t->_affiliated, '-c', $conf, 'run');
    };
    my $ask = sub {
        my $head = "CONTENT_LENGTH\0" . "0\0SCGI\0" . "1\0REQUEST_METHOD\0GET\0REQUEST_URI\0/api/v1/health\0";
        my $socket = IO::Socket::UNIX->new(Peer => $t->path('given.sock')) or die "connect: $!";
        syswrite $socket, length($head) . ":$head,";
        return $socket;
    };
    my $answer = sub { my $socket = shift; local $/; return readline($socket) // '' };

    my $early = $ask->();
    $start->();
    like($answer->($early), qr/^Status: 200 /, 'who came before the daemon');
    like($answer->($ask->()), qr/^Status: 200 /, 'and after it');
    for my $signal (qw(KILL TERM)) {
        $t->_end('given', $signal);
        my $between = $ask->();
        $start->();
        like($answer->($between), qr/^Status: 200 /, "who came after $signal, before the next");
    }
    ok(-S $t->path('given.sock') && !-e $t->path('state/never.sock'), 'the socket stays, and no other was made');
    $t->_end('given', 'TERM');
}

done_testing();
