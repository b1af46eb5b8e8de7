# How fast somebody may call, and that it is told.

use Affiliated::Api;

my $t = Affiliated::Api->new;

$t->api_start(conf => { api => { rate => 30, rate_address => 12, rate_login => 4 } });

my $first = $t->person(login => 0);
my $second = $t->person(login => 0);
my $nobody = $t->client;

{
    my $r = $first->login($first->{email}, $t->{password});
    is($r->{status}, 201, 'a login');
    is($r->{headers}{'ratelimit-policy'}, '"login";q=4;w=600', 'the tightest limit is told');
    like($r->{headers}{ratelimit}, qr/^"login";r=3;t=\d+$/, 'and what is left of it');
    is($first->login($first->{email}, $t->{password})->{status}, 201, 'another') for 1 .. 2;
    is($second->login($second->{email}, $t->{password})->{status}, 201, 'and of somebody else, from the same address');
    $r = $t->client->login($second->{email}, $t->{password});
    is(problem($r), '429 rate_limited', 'that was too often');
    cmp_ok($r->{headers}{'retry-after'}, '>', 100, 'it may be tried later');
}

{
    my @r = map { $first->get('/me') } 1 .. 40;
    is(scalar(grep { $_->{status} == 200 } @r), 30, 'a session has its own limit');
    is($r[0]{headers}{'ratelimit-policy'}, '"credential";q=30;w=60', 'that is told');
    is(problem($r[39]), '429 rate_limited', 'as is its end');
    cmp_ok($r[39]{headers}{'retry-after'}, '<=', 2, 'which is soon over');
    is($second->get('/me')->{status}, 200, 'other sessions have theirs');
}

{
    my @r = map { $nobody->get('/time') } 1 .. 12;
    is(problem($r[-1]), '429 rate_limited', 'nobody has the address\'s');
    is($second->get('/me')->{status}, 200, 'sessions are not in it');
}

# Who tries sessions and keys that are none is stopped before they are looked up.
{
    my @r = map { $nobody->get('/me', undef, headers => [['Cookie', '__Host-affiliate=' . sprintf '%042dA', $_]]) } 1 .. 16;
    is(problem($r[0]), '401 unauthenticated', 'a session that is none');
    is(problem($r[-1]), '429 rate_limited', 'and many of them');
    is($second->get('/me')->{status}, 200, 'which is no harm to others at that address');
}

my ($code, $out) = $t->cli('status', '--json');
my $roles = JSON::PP::decode_json($out)->{roles};
my %sum;
for my $role (grep { /^api/ } keys %$roles) {
    $sum{$_} += $roles->{$role}{$_} // 0 for qw(requests_total limited_requests_total logins_total requests_within_500ms_total refused_requests_total);
}
is($sum{logins_total}, 4, 'status counts logins');
cmp_ok($sum{limited_requests_total}, '>=', 10, 'what was too fast');
cmp_ok($sum{requests_total}, '>=', 70, 'and all');
cmp_ok($sum{requests_within_500ms_total}, '>', 0, 'by how long they took');

done_testing();
