# The role api as HTTP: what is found, what is refused before anybody is asked, and in which form it is answered.

use Affiliated::Api;

my $t = Affiliated::Api->new;

$t->api_start(conf => { api => { max_body => '2k' } });
my $nobody = $t->client;

# --- answers ---------------------------------------------------------------------------------------------------------------

{
    my $r = $nobody->get('/health');
    is($r->{status}, 200, 'it works');
    is($r->{json}{status}, 'ok', 'and says so');
    like($r->{headers}{'x-request-id'}, qr/^[0-9a-f]{32}$/, 'each answer has the id of its request');
    is($r->{headers}{'cache-control'}, 'no-store', 'no answer is kept');
    is($r->{headers}{'x-content-type-options'}, 'nosniff', 'nor guessed at');
    like($t->daemon_log, qr/ $r->{headers}{'x-request-id'} GET health_show 200 nobody /, 'the log has it');

    $r = $nobody->get('/time');
    ok(abs($r->{json}{unix} - time) <= 2, 'the time');
    $r = $nobody->head('/time');
    is("$r->{status}$r->{body}", 200, 'HEAD is GET without the body');
    cmp_ok($r->{headers}{'content-length'}, '>', 40, 'but with its length');
}

# --- what there is not -------------------------------------------------------------------------------------------------------

for my $path ('/api/v1', '/api/v1/', '/api/v1/nothing', '/api/v1/me/', '/api/v2/me', '/api/v1/%6de', '/api/v1/sessions/1/2', '/api/v1//me') {
    is(problem($nobody->get($path)), '404 not_found', "$path is not there");
}
{
    my $r = $nobody->post('/me', {});
    is(problem($r), '405 method_not_allowed', 'a method that is not');
    is($r->{headers}{allow}, 'GET, HEAD, PATCH', 'and those that are');
    like($r->{json}{instance}, qr/^urn:uuid:/, 'a problem has a name of its own');
    is($r->{json}{request_id}, $r->{headers}{'x-request-id'}, 'and the id');
    is(problem($nobody->call('BREW', '/me', undef)), '405 method_not_allowed', 'an unknown method');
}

# --- forms of requests ---------------------------------------------------------------------------------------------------------

my %login = (email => 'a@example.com', password => 'x' x 12);

is(problem($nobody->post('/session', undef, raw => '{"email":')), '400 malformed_json', 'half an object');
is(problem($nobody->post('/session', undef, raw => '[]')), '400 malformed_json', 'no object');
is(problem($nobody->post('/session', undef, raw => '{"email":"a","email":"b"}')), '400 malformed_json', 'a field twice');
is(problem($nobody->post('/session', undef, raw => "{\"email\":\"\xff\"}")), '400 malformed_json', 'no UTF-8');
is(problem($nobody->post('/session', undef, raw => '{"email":"a\u0000"}')), '400 malformed_json', 'NUL');
is(problem($nobody->post('/session', undef, raw => '{"a":' . '[' x 20 . ']' x 20 . '}')), '400 malformed_json', 'too deep');
is(problem($nobody->post('/session', \%login, type => 'text/plain')), '415 unsupported_media_type', 'as plain text, as a form of another site could');
is(problem($nobody->post('/session', { %login, x => 'y' x 3000 })), '413 body_too_large', 'too large');
is(problem($nobody->post('/session', { %login, _token => 1 })), '422 invalid_field', 'a field that is ours');
is(problem($nobody->post('/session?email=b', \%login)), '400 duplicate_parameter', 'in the query and the body');
is(problem($nobody->get('/time?a=1&a=2')), '400 duplicate_parameter', 'twice in the query');
is(problem($nobody->get('/time?a=%00')), '400 malformed_parameter', 'NUL in the query');
is(problem($nobody->get('/time?all=true')), '422 invalid_field', 'all is not for clients');
is(problem($nobody->get('/time?' . 'x' x 7900)), '400 malformed_parameter', 'a name without end');
is(problem($nobody->call('GET', '/time', undef, raw => '{}')), '400 malformed_body', 'a body where none is');

is(problem($nobody->post('/nothing', undef, raw => 'x' x 3_000_000)), '404 not_found', 'a large body for what is not there');
is(problem($nobody->post('/session', undef, raw => 'x' x 3_000_000)), '413 body_too_large', 'and for what is');

{
    my $r = $nobody->post('/session', { email => 'a@example.com' });
    is(problem($r), '422 invalid_field', 'a field is missing');
    is_deeply($r->{json}{errors}, [{ pointer => '/password', detail => 'is required' }], 'which is said');
}

is(problem($nobody->get('/time', undef, headers => [['Accept', 'text/html']])), '406 not_acceptable', 'as HTML');
is(problem($nobody->get('/time', undef, headers => [['Accept', 'text/csv']])), '406 not_acceptable', 'no list is no CSV');
is(problem($nobody->get('/time?format=csv')), '406 not_acceptable', 'nor by its query');
is(problem($nobody->get('/time?format=json', undef, headers => [['Accept', 'text/csv']])), 200, 'the query says more than the header');
is(problem($nobody->get('/time', undef, headers => [['Accept', 'text/csv, */*;q=0.1']])), 200, 'anything will do');

# --- headers --------------------------------------------------------------------------------------------------------------------

# Since 1.23 nginx makes one of the two, with a comma between.
like(problem($nobody->get('/me', undef, headers => [['Idempotency-Key', 'a'], ['Idempotency-Key', 'b']])), qr/^400 (?:duplicate|malformed)_header$/, 'a header twice');
is(problem($nobody->get('/me', undef, headers => [['Idempotency-Key', "a b"]])), '400 malformed_header', 'a blank in a key');
is(problem($nobody->get('/me', undef, headers => [['Idempotency-Key', 'a' x 129]])), '400 malformed_header', 'a long key');
is(problem($nobody->get('/me')), '401 unauthenticated', 'nobody is nobody');
is(problem($nobody->get('/me', undef, headers => [['Cookie', '__Host-affiliate=' . 'A' x 43]])), '401 unauthenticated', 'nor with a session that is none');
is(problem($nobody->get('/me', undef, headers => [['Cookie', '__Host-affiliate=x']])), '401 unauthenticated', 'nor with what can be none');

# --- nothing of it is a secret that was told ----------------------------------------------------------------------------------

unlike($t->daemon_log, qr/x{12}|a\@example\.com|AAAAAAAA/, 'the log has no password, address or token');

# --- clients that are none -------------------------------------------------------------------------------------------------------

sub raw
{
    my $bytes = shift;
    my $socket = IO::Socket::UNIX->new(Peer => $t->path('state/api.sock')) or die "connect: $!";
    syswrite $socket, $bytes;
    shutdown $socket, 1;
    local $/;
    my $answer = readline $socket;
    return $answer // '';
}

like(raw("GET / HTTP/1.1\r\n\r\n"), qr/^Status: 400 /, 'HTTP is no SCGI');
like(raw('99999:'), qr/^Status: 431 /, 'a head without end');
is(raw('10:CONTENT'), '', 'half a head gets no answer');
is(raw(''), '', 'nor does none');
my $head = "CONTENT_LENGTH\0" . "0\0SCGI\0" . "1\0REQUEST_METHOD\0PUT\0";
like(raw(length($head) . ":$head,"), qr/^Status: 400 .*"request_id":"[0-9a-f]{32}"/s, 'no path');
is($nobody->get('/health')->{status}, 200, 'and it works as before');

done_testing();
