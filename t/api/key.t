# Merchants' programs: signed calls to the API, with the codes that the conversion location has.

use Affiliated::Api;

my $t = Affiliated::Api->new;

$t->api_start;

my $merchant = $t->cli_json(qw(merchant create --name Shop --host localhost))->{merchant};
my %key;
for my $livemode (qw(true false)) {
    my $made = $t->cli_json('key', 'create', '--merchant', $merchant, '--livemode', $livemode);
    $key{$livemode} = { id => $made->{key}, secret => $made->{secret} };
}
my $program = $t->client(key => $key{true});
my $test = $t->client(key => $key{false});

is($program->get('/time')->{status}, 200, 'a signed call');
is($program->get('/time?x=%20a+b')->{status}, 200, 'its query is signed as it stands');
is(problem($program->get('/me')), '403 forbidden', 'a key is no person');
is(problem($program->get('/time', undef, sign_path => '/api/v1/health')), '401 bad_signature', 'signed for another path');
is(problem($program->get('/time?x=1', undef, sign_path => '/api/v1/time')), '401 bad_signature', 'without its query');
is(problem($program->call('HEAD', '/time', undef)), 200, 'HEAD is signed as HEAD');
is(problem($program->get('/time', undef, timestamp => int(time) - 301)), '401 clock_skew', 'an old one');
is(problem($program->get('/time', undef, timestamp => int(time) + 302)), '401 clock_skew', 'one of the future');

{
    my $r = $program->get('/time', undef, timestamp => 1);
    ok(abs($r->{json}{server_time} - time) <= 2 && $r->{json}{tolerance} == 300, 'which tells the time');
    is($r->{headers}{'www-authenticate'}, 'Affiliate-Signature', 'and how it is done');

    $r = $test->get('/time?a=b', undef, signature => 'v1=' . '0' x 64);
    is(problem($r), '401 bad_signature', 'a wrong signature');
    like($r->{json}{string_to_sign}, qr{^v1\n\d+\nGET\n/api/v1/time\?a=b\n\n$}, 'with a test key: what was signed');
    is($r->{json}{body_length}, 0, 'the body\'s length');
    is($r->{json}{body_sha256}, Digest::SHA::sha256_hex(''), 'and hash');
    $r = $program->get('/time?a=b', undef, signature => 'v1=' . '0' x 64);
    ok(!exists $r->{json}{string_to_sign}, 'with a live key: nothing');
}

# Two secrets at once, as while rotating.
{
    my $now = int(time);
    my ($signature) = map { $_->[1] } grep { $_->[0] eq 'Affiliate-Signature' }
        $t->sign($key{true}, method => 'GET', path => '/api/v1/time', timestamp => $now);
    is(problem($program->get('/time', undef, timestamp => $now, signature => 'v1=' . '0' x 64 . ", $signature")), 200, 'one of two signatures');
}

for my $missing (qw(Affiliate-Key Affiliate-Timestamp Affiliate-Signature)) {
    my @headers = grep { $_->[0] ne $missing } $t->sign($key{true}, method => 'GET', path => '/api/v1/time');
    is(problem($t->client->get('/time', undef, headers => \@headers)), '400 missing_header', "without $missing");
}
is(problem($program->get('/time', undef, signature => 'v2=x')), '400 malformed_header', 'a signature of another scheme alone');
is(problem($t->client(key => { id => 'ak_live_' . 'x' x 20, secret => 'y' })->get('/time')), '401 unknown_key', 'a key that is not there');
is(problem($t->client(key => { id => 'nonsense', secret => 'y' })->get('/time')), '401 unknown_key', 'nor can be');
is(problem($t->client(key => { %{ $key{true} }, secret => $key{false}{secret} })->get('/time')), '401 bad_signature', 'the secret of another');

{
    my $both = $t->person;
    my @headers = $t->sign($key{true}, method => 'GET', path => '/api/v1/time');
    is(problem($both->get('/time', undef, headers => \@headers)), '400 malformed_header', 'a key and a session at once');
}

# A key that is revoked is none, at once.
$t->cli_json('key', 'revoke', '--key', $key{true}{id});
is(problem($program->get('/time')), '401 unknown_key', 'a revoked key');
is($test->get('/time')->{status}, 200, 'the other one is not');

# Master keys: secrets made by the one before go on until it leaves the file.
my $keys = $t->slurp($t->{keys});
$t->write('keys', 'new ' . 'ab' x 32 . "\n$keys");
$t->daemon_signal('HUP');
$t->wait_until('the new configuration', sub { $t->daemon_log =~ /new configuration in force/ });
is($test->get('/time')->{status}, 200, 'after a rotation');
$t->write('keys', 'new ' . 'ab' x 32 . "\n");
$t->daemon_signal('HUP');
$t->wait_until('the old key is gone', sub { problem($test->get('/time')) eq '401 unknown_key' });

unlike($t->daemon_log, qr/$key{$_}{secret}/, "the log has no secret of $_") for sort keys %key;

done_testing();
