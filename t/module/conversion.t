#!/usr/bin/perl

# affiliate_conversion: the order of checks, every refusal, bodies of every shape, batches, idempotency.

use lib 't/lib';
use Affiliated::Test;
use Affiliated::Daemon ();

use Digest::SHA ();
use JSON::PP ();

my $t = Affiliated::Test->new;

$t->redis_start;
$t->nginx_start(server => <<'END');
        location /small { affiliate_conversion; affiliate_conversion_max_body 400; client_body_buffer_size 64; }
        location /mirrored { mirror /mirror; affiliate_conversion; client_body_buffer_size 100; }
        location = /mirror { internal; return 204; }
        location /rated { affiliate_conversion; affiliate_conversion_rate rate=2r/s; }
        location /few { affiliate_conversion; affiliate_conversion_max_events 2; }
        location /paged { affiliate_conversion; error_page 401 422 = /page; }
        location = /page { return 200 page; }
END

my $key = $t->api_key(merchant => 7, livemode => 0);
my $live = $t->api_key(merchant => 7, livemode => 1);
my $count = 0;

sub event
{
    my %fields = (order_id => 'NP-' . ++$count, status => 'approved', amount => '1250.50', currency => 'NPR', @_);

    $fields{click_id} = $t->click_id(merchant => 7, livemode => 0) unless exists $fields{click_id};
    delete $fields{$_} for grep { !defined $fields{$_} } keys %fields;
    return \%fields;
}

# An event of exactly so many bytes.
sub padded
{
    my $size = shift;
    my $text = JSON::PP::encode_json(event());

    return substr($text, 0, -1) . ' ' x ($size - length $text) . '}';
}

sub refused
{
    my ($r, $status, $code, $name) = @_;

    is($r->{status}, $status, "$name: $status");
    my $json = $r->{json} || eval { JSON::PP::decode_json($r->{body}) } || {};
    is($json->{code}, $code, "$name: $code") or diag($r->{raw});
    is($r->{headers}{'content-type'}, 'application/problem+json', "$name: a problem");
    is($json->{status}, $status, "$name: its status");
    like($json->{request_id}, qr/^[0-9a-f]{32}$/, "$name: the request's id");
    is($r->{headers}{'cache-control'}, 'no-store', "$name: not to be stored");
    unlike($r->{raw}, qr/$key->{secret}|$live->{secret}/, "$name: no secret");
    return $json;
}

sub pointers { return join ' ', map { $_->{pointer} } @{ $_[0]{errors} } }

# --- accepted ------------------------------------------------------------------------------------------------------

my $r = $t->call($key, event(order_id => 'first'));
is($r->{status}, 202, 'an event is accepted') or diag($r->{raw});
is($r->{json}{status}, 'accepted', 'and said to be');
is($r->{json}{order_id}, 'first', 'by its order');
ok(!$r->{json}{livemode}, 'in test mode');
is($t->call($live, event(click_id => $t->click_id(merchant => 7, livemode => 1)))->{status}, 202, 'a live one');
is($t->call($key, event(), path => '/v1/conversions?a=%20b&c')->{status}, 202, 'the query is signed as it stands');

# --- headers -------------------------------------------------------------------------------------------------------

for my $name (qw(Affiliate-Key Affiliate-Timestamp Idempotency-Key Affiliate-Signature)) {
    my $body = JSON::PP::encode_json(event());
    my @headers = ($t->sign($key, body => $body, idempotency_key => "h-$name"), ['Content-Type', 'application/json']);
    my $json = refused($t->request('POST', '/v1/conversions', body => $body,
        headers => [grep { $_->[0] ne $name } @headers]), 400, 'missing_header', "no $name");
    like($json->{detail}, qr/\Q$name/, 'it is named');
    $json = refused($t->request('POST', '/v1/conversions', body => $body,
        headers => [@headers, grep { $_->[0] eq $name } @headers]), 400, 'duplicate_header', "two $name");
    is($json->{errors}[0]{header}, $name, 'it is named');
}

refused($t->call($key, event(), timestamp => 'now'), 400, 'malformed_header', 'timestamp of letters');
refused($t->call($key, event(), idempotency_key => 'a b'), 400, 'malformed_header', 'Idempotency-Key with a space');
refused($t->call($key, event(), idempotency_key => 'x' x 129), 400, 'malformed_header', 'Idempotency-Key of 129');
is($t->call($key, event(), idempotency_key => 'x' x 128)->{status}, 202, 'Idempotency-Key of 128');

# --- key, clock, signature -----------------------------------------------------------------------------------------

my $stranger = { %$key, id => 'ak_test_' . '0' x 20 };
refused($t->call($stranger, event()), 401, 'unknown_key', 'unknown key');
refused($t->call({ %$key, id => 'nokey' }, event()), 401, 'unknown_key', 'key of no form');
refused($t->call($t->api_key(merchant => 7, livemode => 0, revoked => 1), event()), 401, 'unknown_key', 'revoked');
ok($t->call($stranger, event())->{headers}{'www-authenticate'}, '401 has its challenge');
refused($t->call($stranger, event(), timestamp => 1), 401, 'unknown_key', 'the key comes before the clock');

for my $skew (-310, 310) {
    my $json = refused($t->call($key, event(), timestamp => int(time()) + $skew), 401, 'clock_skew', "skew $skew");
    cmp_ok(abs($json->{server_time} - time()), '<', 10, "the server's time is told");
}
is($t->call($key, event(), timestamp => int(time()) - 290)->{status}, 202, '290 seconds are tolerated');

my $json = refused($t->call({ %$key, secret => 'x' }, '{"a":1}', idempotency_key => 'told'),
    401, 'bad_signature', 'wrong secret');
like($json->{string_to_sign}, qr{\Av1\n\d+\nPOST\n/v1/conversions\ntold\n\z}, 'a test key is told what was signed');
is($json->{body_length}, 7, "the body's length");
is($json->{body_sha256}, Digest::SHA::sha256_hex('{"a":1}'), 'and its hash');
$json = refused($t->call({ %$live, secret => 'x' }, event()), 401, 'bad_signature', 'wrong secret of a live key');
ok(!exists $json->{string_to_sign}, 'a live key is not');

{
    my $body = JSON::PP::encode_json(event());
    my @headers = $t->sign($key, body => $body, idempotency_key => 'rotation');
    my $good = $headers[-1][1];
    my $send = sub {
        return $t->request('POST', '/v1/conversions', body => $_[1] || $body, headers => [@headers[0 .. 2],
            ['Affiliate-Signature', $_[0]], ['Content-Type', 'application/json']]);
    };
    refused($send->($good, $body =~ s/1250/1251/r), 401, 'bad_signature', 'tampered body');
    refused($send->(uc $good), 400, 'malformed_header', 'upper-case signature');
    is($send->('v1=' . '0' x 64 . ", $good")->{status}, 202, 'any of several signatures will do');
}

# --- content type, JSON --------------------------------------------------------------------------------------------

for my $type ('text/plain', 'application/jsonx', 'application/json; charset=latin1') {
    my $body = JSON::PP::encode_json(event());
    refused($t->request('POST', '/v1/conversions', body => $body, headers => [
        $t->sign($key, body => $body, idempotency_key => 't'), ['Content-Type', $type]]),
        415, 'unsupported_media_type', $type);
}

my %malformed = (
    'nothing' => '', 'half' => '{"a":', 'something behind' => '{} x', 'NUL' => "{\"a\":\"\0\"}", 'escaped NUL' => '{"a":"\u0000"}',
    'invalid UTF-8' => "{\"a\":\"\xff\"}", 'overlong UTF-8' => "{\"a\":\"\xc0\xaf\"}", 'surrogate' => '{"a":"\ud800"}',
    'a name twice' => '{"order_id":"1","order_id":"2"}', 'nine levels' => '[' x 9 . ']' x 9, 'many levels' => '[' x 100_000,
    'huge number' => '[1e999]',
);
for my $what (sort keys %malformed) {
    refused($t->call($key, $malformed{$what}), 400, 'malformed_json', "JSON with $what");
}
$json = refused($t->call($key, "{\n \"a\":1,}"), 400, 'malformed_json', 'JSON with a comma too many');
is("$json->{line} $json->{offset}", '2 10', 'its place is told');

# --- fields --------------------------------------------------------------------------------------------------------

$json = refused($t->call($key, { amount => 12, x => 1 }), 422, 'validation', 'many faults at once');
is(join(' ', sort split / /, pointers($json)), '/amount /click_id /order_id /status /x', 'each has its pointer');

for my $case (
    ['/amount', amount => '1,250.50'], ['/amount', amount => 1250.5], ['/amount', amount => '-1'], ['/amount', amount => '1.005'],
    ['/amount', amount => undef], ['/amount', currency => undef], ['/currency', currency => 'npr'], ['/status', status => 'paid'],
    ['/order_id', order_id => ''], ['/order_id', order_id => 'x' x 129], ['/occurred_at', occurred_at => '2025-13-01T00:00:00Z'],
    ['/refund_id', refund_id => 'r'], ['/customer', customer => 'old'], ['/items/0/amount', items => [{ sku => 's' }]],
    ['/a~1b', 'a/b' => 1],
) {
    my ($pointer, %fields) = @$case;
    is(pointers(refused($t->call($key, event(%fields)), 422, 'validation', $pointer)), $pointer, "$pointer is named");
}

is($t->call($key, event(customer => 'new', reason => "\xe2\x9c\x93", occurred_at => '2025-11-24T18:30:00.25+05:45',
    items => [{ sku => 's', category => 'c', quantity => 2, amount => '600.25' }]))->{status}, 202, 'every field');
is($t->call($key, event(status => 'cancelled', amount => undef, currency => undef))->{status}, 202, 'no amount');

# --- click_id ------------------------------------------------------------------------------------------------------

my $old = $t->click_id(merchant => 7, livemode => 0, at_ms => (int(time()) - 91 * 86400) * 1000);
refused($t->call($key, event(click_id => 'c_01J9')), 422, 'malformed_click_id', 'click_id of no form');
refused($t->call($key, event(click_id => $t->click_id(merchant => 8, livemode => 0))),
    422, 'unknown_click_id', "another merchant's click_id");
refused($t->call($key, event(click_id => $t->click_id(merchant => 7, livemode => 1))),
    422, 'wrong_livemode', 'live click_id with a test key');
refused($t->call($key, event(click_id => $old)), 422, 'expired_click_id', 'old click_id');
is($t->call($key, event(click_id => $old, status => 'refunded'))->{status}, 202, 'refund of an old click');
is($t->call($key, event(click_id => uc event()->{click_id}))->{status}, 202, 'click_id in upper case');

# --- idempotency ---------------------------------------------------------------------------------------------------

my $again = event();
is($t->call($key, $again, idempotency_key => 'again')->{status}, 202, 'the first time');
$r = $t->call($key, $again, idempotency_key => 'again');
is($r->{status}, 200, 'the second time');
is($r->{headers}{'idempotent-replayed'}, 'true', 'as a replay');
is($r->{json}{status}, 'accepted', 'with the same answer');
refused($t->call($key, event(), idempotency_key => 'again'), 422, 'idempotency_key_reused', 'another body');
is($t->call($live, event(click_id => $t->click_id(merchant => 7, livemode => 1)), idempotency_key => 'again')->{status},
    202, "another key's Idempotency-Key is another one");
refused($t->call($key, event(order_id => ''), idempotency_key => 'later'), 422, 'validation', 'a refusal');
is($t->call($key, event(), idempotency_key => 'later')->{status}, 202, 'is not remembered');

my $name = "aff:idem:$key->{id}:" . substr Digest::SHA::sha256_hex('again'), 0, 32;
$t->wait_until('Redis remembers', sub { $t->redis('GET', $name) });
cmp_ok($t->redis('TTL', $name), '>', 86000, 'for a day');
my $body = JSON::PP::encode_json(event());
my $hash = substr Digest::SHA::sha256_hex($body), 0, 32;
$name = "aff:idem:$key->{id}:" . substr Digest::SHA::sha256_hex('elsewhere'), 0, 32;
$t->redis('SET', $name, $hash . unpack 'H16', pack 'Q<', Affiliated::Daemon::mac($t, 'recall', $name . $hash));
is($t->call($key, $body, idempotency_key => 'elsewhere')->{status}, 200, 'accepted by another nginx');
refused($t->call($key, event(), idempotency_key => 'elsewhere'), 422, 'idempotency_key_reused', 'by another nginx');

# --- methods, sizes, packets ---------------------------------------------------------------------------------------

$r = $t->get('/v1/conversions');
refused($r, 405, 'method_not_allowed', 'GET');
is($r->{headers}{allow}, 'POST', 'POST is allowed');
refused($t->call($key, event(), path => '/v1/conversions/other'), 404, 'not_found', 'another path');
refused($t->request('POST', '/v1/conversions'), 411, 'length_required', 'no body');
is($t->call($key, padded(1048576))->{status}, 202, 'a body at the limit');
refused($t->call($key, padded(1048577)), 413, 'body_too_large', 'a body over the limit');
refused($t->http("POST /v1/conversions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"),
    413, 'body_too_large', 'a body not sent yet');

for my $size (400, 401) {
    for my $how (qw(body chunked split)) {
        my $body = padded($size);
        my @pieces = $how eq 'split' ? unpack('(a150)*', $body) : unpack('(a7)*', $body);
        $r = $t->request('POST', '/small', $how => $how eq 'body' ? $body : \@pieces, pause => 0.002, headers => [
            $t->sign($key, body => $body, path => '/small', idempotency_key => "$size-$how"),
            ['Content-Type', 'application/json']]);
        $size == 400 ? is($r->{status}, 202, "$how at the limit") : refused($r, 413, 'body_too_large', "$how over it");
    }
}

is($t->call($key, padded(5000), path => '/mirrored')->{status}, 202, 'a body that another module put into a file');

for my $pause (0, 0.1) {
    my $head = "POST /v1/conversions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    refused($t->http($pause ? [$head . "1\r\n{\r\n", "zz\r\n"] : $head . "zz\r\n"), 400, 'malformed_body', 'bad chunk');
}

{
    my $connection = $t->keepalive;
    for my $i (1 .. 4) {
        my $body = $i == 2 ? '{' : JSON::PP::encode_json(event());
        $connection->send("POST /v1/conversions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            . join('', map { "$_->[0]: $_->[1]\r\n" } $t->sign($key, body => $body, idempotency_key => "keep-$i"))
            . 'Content-Length: ' . length($body) . "\r\n\r\n$body");
        is($connection->response->{status}, $i == 2 ? 400 : 202, "request $i of a connection");
    }
    $connection->close;
}

is($t->call({ %$key, secret => 'x' }, event(), path => '/paged')->{status}, 401, 'error_page does not get hold of it');

# --- batches -------------------------------------------------------------------------------------------------------

my @batch = (path => '/v1/conversions/batch');
$r = $t->call($key, { events => [map { event(order_id => "b-$_") } 1 .. 3] }, @batch);
is($r->{status}, 202, 'a batch');
is(join(' ', map { "$_->{index} $_->{order_id} $_->{status}" } @{ $r->{json}{results} }),
    '0 b-1 202 1 b-2 202 2 b-3 202', 'a result for each');

my $mixed = { events => [event(), event(amount => 1), 5, event(click_id => 'x')] };
for my $status (202, 200) {
    $r = $t->call($key, $mixed, @batch, idempotency_key => 'mixed');
    is($r->{status}, $status, "a batch with faults: $status");
    is("$r->{json}{status} $r->{json}{accepted} $r->{json}{refused}", 'partial 1 3', 'is said to be partial');
    is(join(' ', map { $_->{status} } @{ $r->{json}{results} }), "$status 422 422 422", 'by event');
    is($r->{json}{results}[1]{errors}[0]{pointer}, '/events/1/amount', 'the pointer begins at the body');
    is($r->{json}{results}[3]{code}, 'malformed_click_id', 'and the code is told');
}

$json = refused($t->call($key, { events => [5] }, @batch), 422, 'validation', 'a batch of nothing valid');
is(scalar @{ $json->{results} }, 1, 'has results, too');
refused($t->call($key, $_, @batch), 422, 'validation', 'no batch')
    for [], {}, { events => [] }, { events => {} }, { events => [event()], x => 1 }, '5';
is($t->call($key, { events => [map { event() } 1 .. 2] }, path => '/few/batch')->{status}, 202, 'as many as allowed');
refused($t->call($key, { events => [map { event() } 1 .. 3] }, path => '/few/batch'), 422, 'validation', 'one more');
{
    my $click = event()->{click_id};
    for my $n (500, 501) {
        $r = $t->call($key, { events => [map { event(click_id => $click) } 1 .. $n] }, @batch);
        is($r->{status}, $n == 500 ? 202 : 422, "$n events");
    }
}

# --- rate ----------------------------------------------------------------------------------------------------------

my @rated = map { $t->call($key, event(), path => '/rated') } 1 .. 8;
my ($limited) = grep { $_->{status} == 429 } @rated;
ok($limited, 'too many calls a second') and refused($limited, 429, 'rate_limited', 'rate');
like($limited->{headers}{'retry-after'}, qr/^[12]$/, 'come back later');

# --- who goes away, and what is away -------------------------------------------------------------------------------

sub parked { return JSON::PP::decode_json($t->get('/status')->{body})->{parked_requests} }

kill 'STOP', $t->{processes}{redis};
my @connections = map {
    my $body = JSON::PP::encode_json(event());
    $t->request('POST', '/v1/conversions', read => 0, body => $body, headers => [
        $t->sign($key, body => $body, idempotency_key => "gone-$_"), ['Content-Type', 'application/json']]);
} 1 .. 10;
$_->close for @connections[0 .. 4];
is($_->response->{status}, 202, 'Redis hangs: accepted when it was waited for long enough') for @connections[5 .. 9];
$r = $t->call($stranger = { %$key, id => 'ak_test_' . '1' x 20 }, event());
refused($r, 503, 'unavailable', 'Redis hangs: a key that can not be looked up');
ok($r->{headers}{'retry-after'}, 'come back later');
kill 'CONT', $t->{processes}{redis};
$t->wait_until('nobody waits', sub { parked() == 0 });

$t->redis_kill;
is($t->call($key, event())->{status}, 202, 'Redis is gone: a known key');
is($t->call($key, $again, idempotency_key => 'again')->{status}, 200, 'Redis is gone: a known Idempotency-Key');

# --- a full spool --------------------------------------------------------------------------------------------------

$t->nginx_stop;
$t->redis_restart(wipe => 1);
$t->run('rm', '-rf', $t->path('spool'));
$t->nginx_start(spool => 'max_size=2m segment=256k');
$key = $t->api_key(merchant => 7, livemode => 0);

# A refusal counts when it stands a moment later, too: the next segment may just not have been ready yet.
sub refusal
{
    my ($body, @options) = @_;
    my $answer;

    for my $tries (1 .. 6000) {
        $answer = $t->call($key, $body, @options);
        next if $answer->{status} == 202;
        sleep 0.5;
        $answer = $t->call($key, $body, @options);
        last if $answer->{status} != 202;
    }
    return $answer;
}

my $click = event()->{click_id};
my $events = [map { event(click_id => $click, reason => 'x' x 200) } 1 .. 400];
$r = refusal({ events => $events }, @batch);
refused($r, 503, 'unavailable', 'a batch that the spool has no room for');
ok($r->{headers}{'retry-after'}, 'come back later');
$r = refusal(event(click_id => $click));
refused($r, 503, 'unavailable', 'an event, neither');
cmp_ok(JSON::PP::decode_json($t->get('/status')->{body})->{dropped_total}{conversions}, '>', 0, 'they are counted');

done_testing();
