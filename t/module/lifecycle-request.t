# Requests that wait, go away while they wait, come in a row, or meet other directives of nginx.

use Affiliated::Test;

use JSON::PP ();

my $t = Affiliated::Test->new;
my $agent = 'Mozilla/5.0 (X11; Linux x86_64) Chrome/126.0.0.0';
my $h2_port = $t->port;
my ($version) = ($t->run($t->{nginx}, '-v'))[2] =~ m{nginx/(\d+\.\d+\.\d+)};
my $http2 = sprintf('%d%03d%03d', split /\./, $version) >= 1025001
    ? "listen 127.0.0.1:$h2_port; http2 on;" : "listen 127.0.0.1:$h2_port http2;";

sub status { return JSON::PP::decode_json($t->get('/status')->{body}) }
sub parked { my $n = shift; return $t->wait_until("$n wait", sub { status()->{parked_requests} == $n }) }
sub questions { my ($n) = $t->redis('INFO', 'commandstats') =~ /cmdstat_mget:calls=(\d+)/; return $n || 0 }
sub ask { return "GET /r/$_[0] HTTP/1.1\r\nHost: x\r\nUser-Agent: $agent\r\n\r\n" }
sub hang { kill 'STOP', $t->{processes}{redis} }
sub wake { kill 'CONT', $t->{processes}{redis} }

# The log's last line of a path.
sub logged
{
    my $path = shift;
    my $line = '';

    $t->wait_until("$path in the log", sub {
        ($line) = (grep { /^\Q$path\E \|/ } split /\n/, $t->slurp($t->path('vars.log')))[-1];
        return $line;
    });
    return $line;
}

$t->redis_start;
$t->nginx_start(http => <<'END', server => $http2 . <<'END');
    affiliate_redis_timeout 10s;
    affiliate_lookup_timeout 5s;
    affiliate_address_rate off;
    log_format vars '$request_uri |$status|$affiliate_click_id|$affiliate_code|$affiliate_cache_status|$affiliate_verdict|$affiliate_lookup_time|$affiliate_spool_status|';
    access_log %%DIR%%/vars.log vars;
END
        location /short/ { affiliate_redirect; affiliate_lookup_timeout 200ms; }
        location /paged/ { affiliate_redirect; error_page 302 = /page; error_page 404 410 503 /page; }
        location = /page { return 200 "$affiliate_code|$affiliate_cache_status|$affiliate_verdict"; }
        location /next/ { affiliate_redirect; error_page 404 = @next; }
        location @next { affiliate_redirect abc; }
        location /absolute/ { affiliate_redirect; absolute_redirect on; }
        location /relative/ { affiliate_redirect; absolute_redirect off; server_name_in_redirect on; }
        location /expires/ { affiliate_redirect; expires 1d; add_header X-Other yes always; }
END

$t->link(code => $_, url => "http://127.0.0.1/$_")
    for qw(abc close reset h2 h2-close h2-reset three late pipe pipe-2 head);
is($t->get('/r/abc')->{status}, 302, 'a redirect');

# --- the client goes away --------------------------------------------------------------------------------------------

for my $how (qw(close reset)) {
    hang();
    my @all = map { $t->http(ask($how), read => 0) } 1 .. 3;
    ok(parked(3), "$how: three wait");
    $_->$how for @all;
    ok(parked(0), "$how: none waits any more");
    wake();
    like($t->get("/r/$how")->{headers}{location}, qr{^http://127\.0\.0\.1/$how\?}, "$how: the next one is redirected");
}

# --- HTTP/2 ----------------------------------------------------------------------------------------------------------

sub frame { my ($type, $flags, $stream, $payload) = @_; return pack('CnCCN', 0, length $payload, $type, $flags, $stream) . $payload }

# HPACK: :method GET and :scheme http are in the static table, the others literals without Huffman coding.
sub h2_get
{
    my ($stream, $path) = @_;

    return frame(1, 5, $stream, "\x82\x86\x04" . pack('C/a', $path) . "\x01" . pack('C/a', 'localhost')
        . "\x0f\x2b" . pack('C/a', $agent));
}

sub h2_open
{
    my $connection = do { local $t->{port} = $h2_port; $t->keepalive };

    $connection->send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" . frame(4, 0, 0, ''));
    return $connection;
}

# Reads until each of these streams has its headers, or none comes for a while; status by stream.
sub h2_statuses
{
    my ($connection, @streams) = @_;
    my $buffer = \$connection->{buffer};
    my %status;

    while (grep { !$status{$_} } @streams) {
        if (length $$buffer >= 9) {
            my ($high, $low, $type, undef, $id) = unpack 'CnCCN', $$buffer;
            my $size = 9 + $high * 65536 + $low;
            if (length $$buffer >= $size) {
                my $payload = substr substr($$buffer, 0, $size, ''), 9;
                # nginx writes a status that the static table has not as a literal.
                $status{$id} = $payload =~ /^(?:\x20|\x3f..?)?\x48(?:\x03302|\x82\x64\x02)/ ? 302
                    : unpack 'H*', substr $payload, 0, 8
                    if $type == 1;
                next;
            }
        }
        IO::Select->new($connection->{socket})->can_read(5) or last;
        sysread($connection->{socket}, $$buffer, 65536, length $$buffer) or last;
    }
    return join ' ', map { "$_:$status{$_}" } sort { $a <=> $b } keys %status;
}

{
    my $connection = h2_open();
    $connection->send(h2_get(1, '/r/abc'));
    is(h2_statuses($connection, 1), '1:302', 'h2: a redirect');
    hang();
    $connection->send(join '', map { h2_get($_, '/r/h2') } 3, 5, 7);
    ok(parked(3), 'h2: three streams wait');
    $connection->send(frame(3, 0, 5, pack 'N', 8));
    ok(parked(2), 'h2: RST_STREAM of the middle one');
    wake();
    is(h2_statuses($connection, 3, 7), '3:302 7:302', 'h2: the other two are answered');

    for my $how (qw(close reset)) {
        hang();
        $connection = h2_open();
        $connection->send(join '', map { h2_get($_, "/r/h2-$how") } 1, 3);
        ok(parked(2), "h2: two streams wait for $how");
        $connection->$how;
        ok(parked(0), "h2: $how of the connection");
        wake();
        $connection = h2_open();
        $connection->send(h2_get(1, "/r/h2-$how"));
        is(h2_statuses($connection, 1), '1:302', "h2: after $how the next one is redirected");
    }
    $connection->close;
}

# --- one question, however many wait -----------------------------------------------------------------------------------

{
    my $before = questions();
    hang();
    my @all = map { $t->http(ask('three'), read => 0) } 1 .. 3;
    ok(parked(3), 'coalesced: three wait');
    $all[1]->close;
    ok(parked(2), 'coalesced: the middle one leaves');
    wake();
    like($all[$_]->response->{headers}{location}, qr{/three\?affiliate_click_id=}, "coalesced: number $_ is redirected")
        for 0, 2;
    is(questions() - $before, 1, 'coalesced: by one question');
}

# --- a timeout, and the late reply --------------------------------------------------------------------------------------

{
    my $links = status()->{cache_links};
    hang();
    my $r = $t->get('/short/late');
    is($r->{status}, 503, 'timeout: 503');
    ok($r->{headers}{'retry-after'}, 'timeout: come back later');
    ok(parked(0), 'timeout: nobody waits');
    wake();
    ok($t->wait_until('late reply', sub { status()->{cache_links} > $links }), 'timeout: the late reply is kept');
    my $before = questions();
    is($t->get('/short/late')->{status}, 302, 'timeout: for the next one');
    is(questions() - $before, 0, 'timeout: who need not ask again');
}

# --- pipelining ---------------------------------------------------------------------------------------------------------

{
    my $connection = $t->keepalive;
    my @codes = map { ('pipe', 'abc', 'pipe-2', 'none') } 1 .. 5;
    $connection->send(join '', map { ask($_) } @codes);
    my @got = map { my $r = $connection->response; ($r->{headers}{location} || "/$r->{status}") =~ m{/([\w-]+)(?:\?|$)} } @codes;
    is("@got", join(' ', map { $_ eq 'none' ? 404 : $_ } @codes), 'pipelined: each its own answer, in order');
    $connection->send(ask('abc') . "HEAD /r/abc HTTP/1.1\r\nHost: x\r\n\r\n");
    is($connection->response->{status}, 302, 'keepalive: goes on');
    is($connection->response(head => 1)->{status}, 302, 'keepalive: HEAD');
    $connection->close;
    is($t->http("GET /r/abc HTTP/1.0\r\n\r\n")->{status}, 302, 'HTTP/1.0');
}

# --- HEAD ---------------------------------------------------------------------------------------------------------------

for my $cache (qw(MISS HIT)) {
    my $r = $t->head('/r/head');
    is($r->{status}, 302, 'HEAD: redirected');
    is($r->{headers}{location}, 'http://127.0.0.1/head', 'HEAD: without a click_id');
    is($r->{body}, '', 'HEAD: no body');
    like(logged('/r/head'), qr{\|302\|-?\|head\|$cache\|prefetch\|}, "HEAD: its verdict, $cache");
}

# --- error_page ---------------------------------------------------------------------------------------------------------

my $first = $t->get('/paged/abc');
is($first->{body}, 'abc|HIT|duplicate', 'error_page 302: its page knows the variables');
like(logged('/paged/abc'), qr{\|200\|[0-9a-z]{39}\|abc\|HIT\|duplicate\|}, 'error_page 302: and so does the log');
is($t->get('/paged/none')->{body}, 'none|NEGATIVE|', 'error_page 404: its page knows the variables');
like(logged('/paged/none'), qr{\|404\|-?\|none\|NEGATIVE\|-?\|}, 'error_page 404: and so does the log');
like($t->get('/next/none')->{headers}{location}, qr{/abc\?affiliate_click_id=}, 'error_page to another code: it is followed');
like(logged('/next/none'), qr{\|302\|[0-9a-z]{39}\|abc\|HIT\|}, 'error_page to another code: the log has that one');
like(logged('/r/three'), qr{\|[0-9a-z]{39}\|three\|MISS\|\w+\|\d+\.\d{3}\|\w+\|}, 'the time of a lookup is logged');

# --- nginx's own directives about redirects --------------------------------------------------------------------------------

for my $location (qw(absolute relative)) {
    like($t->get("/$location/abc")->{headers}{location}, qr{^http://127\.0\.0\.1/abc\?affiliate_click_id=[0-9a-z]{39}$},
        "absolute_redirect ($location): the shop's URL is left alone");
}

{
    my $r = $t->get('/expires/abc');
    # nginx adds its lifetime, which no-store beats (RFC 9111, section 5.2.2.5).
    is($r->{headers}{'cache-control'}, 'no-store', 'expires 1d: a redirect is not stored');
    is($r->{headers}{'x-other'}, 'yes', 'add_header adds');
    is(scalar(grep { lc $_->[0] eq 'location' } @{ $r->{lines} }), 1, 'one Location');
}

done_testing();
