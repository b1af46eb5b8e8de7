# Processes come and go: reload, kill, quit, helpers, a single process, nginx -t beside a running one.
# Loaded without http, and loaded without being configured: smoke.t. Under load, up to the database: t/fault.

use Affiliated::Test;

use IO::Socket::INET ();
use JSON::PP ();

my $t = Affiliated::Test->new;
my $browser = 'User-Agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/126.0.0.0';

sub status { return JSON::PP::decode_json($t->get('/status')->{body}) }

sub clients { return scalar grep { /\bname=|\bid=/ } split /\n/, $t->redis('CLIENT', 'LIST') }

# Every uuid in the spool's files.
sub spooled
{
    my ($code, $out, $err) = $t->run($t->_affiliated, '-c', $t->daemon_conf, 'dump', glob $t->path('spool/*'));
    my %uuids;

    diag $err if $code;
    $uuids{$1}++ while $out =~ /"([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12})"/g;
    return \%uuids;
}

# Follows a link over and over, each on a connection of its own, until told to stop; then (click_ids, what else came).
sub load
{
    my $pid = fork;

    die "fork: $!\n" unless defined $pid;
    if (!$pid) {
        $SIG{TERM} = 'DEFAULT';
        open my $file, '>>', $t->path('load');
        $file->autoflush(1);
        while (1) {
            my $r = eval { $t->get('/r/abc') } || { status => 0 };
            my ($id) = ($r->{headers}{location} || '') =~ /affiliate_click_id=(\w+)/;
            print $file $id ? "$id\n" : "status $r->{status}\n";
            select undef, undef, undef, 0.002;
        }
    }
    return sub {
        kill 'TERM', $pid;
        waitpid $pid, 0;
        my @lines = split /\n/, $t->slurp($t->path('load'));
        unlink $t->path('load');
        return ([grep { !/ / } @lines], [grep { / / } @lines]);
    };
}

sub all_spooled
{
    my ($ids, $name) = @_;
    my $spooled = spooled();
    my @missing = grep { !$spooled->{ $t->uuid_of($_) } } @$ids;

    cmp_ok(scalar @$ids, '>', 50, "$name: there was load");
    is(scalar @missing, 0, "$name: every click_id given out is in the spool") or diag $missing[0];
}

$t->redis_start;
$t->nginx_start(workers => 2, http => 'affiliate_address_rate off;');
$t->link(code => 'abc');

# --- reload ----------------------------------------------------------------------------------------------------------

{
    my $stop = load();
    for my $n (1 .. 3) {
        sleep 0.4;
        ok($t->nginx_reload, "reload $n");
    }
    sleep 0.3;
    my ($ids, $other) = $stop->();
    is("@$other", '', 'reload: each request was redirected');
    all_spooled($ids, 'reload');
    is(status()->{cache_links}, 1, 'reload: the cache is kept');
    ok($t->wait_until('old workers are gone', sub { clients() == 6 }), 'reload: their connections are closed') or diag clients();
}

# --- nginx -t as root beside it ----------------------------------------------------------------------------------------

{
    my $look = sub { join ' ', map { join ',', $_, (stat $_)[1, 2, 4, 7, 9] } sort glob $t->path('spool/*') };
    my ($files, $connections) = ($look->(), $t->redis('INFO', 'stats') =~ /total_connections_received:(\d+)/);
    my ($code, $out) = $t->nginx_test;
    is($code, 0, 'nginx -t') or diag $out;
    is($look->(), $files, 'nginx -t: the spool is as it was');
    is(($t->redis('INFO', 'stats') =~ /total_connections_received:(\d+)/)[0], $connections, 'nginx -t: Redis was not asked');
    is($t->get('/r/abc')->{status}, 302, 'nginx -t: the running one does not mind');
}

# --- kill -9 of a worker -------------------------------------------------------------------------------------------------

{
    my $stop = load();
    for my $n (1 .. 4) {
        sleep 0.3;
        $t->kill_worker(($t->nginx_workers)[$t->random(2)]);
    }
    sleep 0.5;
    my ($ids, $other) = $stop->();
    cmp_ok(scalar @$other, '<=', 8, 'kill -9: others hardly notice');
    all_spooled($ids, 'kill -9');
    ok($t->wait_until('adoption', sub { status()->{adopted_segments_total} >= 4 }), 'kill -9: its segments are adopted');
    ok($t->wait_until('shipped', sub { my $s = status()->{spool_unsent_records}; !$s->{clicks} && !$s->{conversions} }),
        'kill -9: and shipped');
}

# --- a torn tail, and damage before the tail ----------------------------------------------------------------------------

for my $which (-1, 10) {
    my $name = $which < 0 ? 'torn tail' : 'damaged';
    my (%file, $hit, $last);

    # All of them through one connection, so that they are in one file.
    my $connection = $t->keepalive;
    my @ids = map {
        $connection->send("GET /r/abc HTTP/1.1\r\nHost: x\r\n$browser\r\n\r\n");
        ($connection->response->{headers}{location} =~ /affiliate_click_id=(\w+)/)[0]
    } 1 .. 20;
    $t->redis_kill;
    $t->nginx_kill;
    for my $path (glob $t->path('spool/*')) {
        my $at = index $t->slurp($path), pack 'H*', $t->uuid_of($ids[$which]) =~ s/-//gr;
        next if $at < 0;
        open my $file, '+<:raw', $path or die;
        # The frame's header, 12 bytes, is what is written last.
        seek $file, $which < 0 ? $at - 12 : $at + 6, 0;
        print $file "\0" x 12;
        $hit++;
    }
    is($hit, 1, "$name: a record is not whole");
    $t->redis_restart(wipe => 1);
    $t->link(code => 'abc');
    $t->nginx_start;
    my $out = '';
    $t->wait_until('adoption', sub {
        $out = ($t->cli('dump', '--stream', 'aff:clicks:0'))[1];
        return index($out, $t->uuid_of($ids[0])) >= 0;
    });
    my @there = map { index($out, $t->uuid_of($_)) >= 0 ? 1 : 0 } @ids;
    my $whole = $which < 0 ? 19 : 10;
    is(join('', @there[0 .. $whole - 1]), 1 x $whole, "$name: those before it are sent");
    is($there[$which], 0, "$name: what is not whole is not");
    if ($which < 0) {
        is(status()->{corrupt_frames_total}, 0, "$name: that is no damage");
    } else {
        ok($t->wait_log(qr/\[crit\] .*damaged at \d+, it will be kept aside/), "$name: it is logged");
        is(status()->{corrupt_frames_total}, 1, "$name: and counted");
    }
    is($t->get('/r/abc')->{status}, 302, "$name: and it goes on");
}

# --- QUIT while Redis hangs -------------------------------------------------------------------------------------------------

{
    kill 'STOP', $t->{processes}{redis};
    my $parked = $t->http("GET /r/parked HTTP/1.1\r\nHost: x\r\n$browser\r\n\r\n", read => 0);
    my $start = time;

    sleep 0.1;
    ok($t->nginx_stop('QUIT', 10), 'Redis hangs: QUIT');
    cmp_ok(time - $start, '<', 4, 'Redis hangs: exits promptly');
    is($parked->response->{status}, 503, 'Redis hangs: who waited has an answer');
    kill 'CONT', $t->{processes}{redis};
    $t->nginx_start;
    kill 'STOP', $t->{processes}{redis};
    $parked = $t->http("GET /r/parked HTTP/1.1\r\nHost: x\r\n$browser\r\n\r\n", read => 0);
    sleep 0.1;
    ok($t->nginx_stop('TERM', 10), 'Redis hangs: TERM');
    kill 'CONT', $t->{processes}{redis};
}

# --- worker_shutdown_timeout while connecting -------------------------------------------------------------------------------

{
    # A listener whose queue is full answers no SYN.
    my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $t->port, Listen => 1);
    my @queue = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $listen->sockport, Blocking => 0) } 1 .. 4;

    for my $signal (qw(QUIT HUP)) {
        $t->nginx_start(main => 'worker_shutdown_timeout 10ms;', redis => '127.0.0.1:' . $listen->sockport,
            http => "affiliate_redis_connect_timeout 60s;\naffiliate_lookup_timeout 30s;");
        $t->wait_until('connecting', sub {
            my $port = sprintf '%04X', $listen->sockport;
            return 3 <= grep { /^\s*\d+: \w+:\w+ 0100007F:$port 02 / } split /\n/, $t->slurp('/proc/net/tcp');
        });
        my $parked = $t->http("GET /r/abc HTTP/1.1\r\nHost: x\r\n$browser\r\n\r\n", read => 0);
        my $start = time;
        sleep 0.1;
        if ($signal eq 'HUP') {
            ok($t->nginx_reload, 'shutdown timeout while connecting: reload');
            is($t->get('/status')->{status}, 200, 'shutdown timeout while connecting: goes on');
        }
        ok($t->nginx_stop('QUIT', 10), "shutdown timeout while connecting: ends after $signal");
        cmp_ok(time - $start, '<', 5, 'shutdown timeout while connecting: promptly');
    }
}

# --- beside helper processes --------------------------------------------------------------------------------------------------

{
    $t->nginx_start(workers => 1, http => 'proxy_cache_path %%DIR%%/cache keys_zone=cache:1m;');
    is($t->get('/r/abc')->{status}, 302, 'with a cache manager: redirects');
    ok($t->wait_until('connections', sub { clients() == 4 }), 'helpers: only the worker has connections') or diag clients();
    my %owners;
    for my $fd (glob '/proc/[0-9]*/fd/*') {
        my $file = readlink $fd or next;
        $owners{ (split m{/}, $fd)[2] }++ if index($file, $t->path('spool/')) == 0;
    }
    is(join(' ', keys %owners), join(' ', $t->nginx_workers), 'helpers: only the worker has segments open');
    ok($t->nginx_reload, 'helpers: reload');
    ok($t->nginx_stop, 'helpers: QUIT');
}

# --- a single process --------------------------------------------------------------------------------------------------------

{
    $t->nginx_start(main => 'master_process off;');
    is($t->get('/r/abc')->{status}, 302, 'master_process off: redirects');
    is($t->call($t->api_key, { click_id => $t->click_id, order_id => 'single', status => 'approved', amount => '1', currency => 'NPR' })
        ->{status}, 202, 'master_process off: takes conversions');
    ok($t->wait_until('shipped', sub { !status()->{spool_unsent_records}{conversions} }), 'master_process off: ships');
    ok($t->nginx_stop, 'master_process off: QUIT');
    # No HUP: nginx itself has no connections left after it.
}

done_testing();
