#!/usr/bin/perl

# affiliate_status: both forms, what they count, and that Prometheus likes them.

use lib 't/lib';
use Affiliated::Test;

use JSON::PP ();

my $t = Affiliated::Test->new;

$t->redis_start;
$t->nginx_start(workers => 2);

sub status { return JSON::PP::decode_json($t->get('/status')->{body}) }

my $key = $t->api_key(merchant => 7, livemode => 0);
my $event = { click_id => $t->click_id(merchant => 7, livemode => 0), order_id => 'S-1', status => 'approved',
    amount => '1', currency => 'NPR' };

is($t->call($key, $event)->{status}, 202, 'a conversion') for 1 .. 3;
is($t->call($key, '{')->{status}, 400, 'a malformed one');
is($t->call($key, {})->{status}, 422, 'an invalid one');
is($t->call({ %$key, secret => 'x' }, $event)->{status}, 401, 'a forged one');
$t->link(code => 'known', url => 'http://shop.example/');
is($t->get('/r/known')->{status}, 302, 'a redirect');
is($t->get('/r/unknown')->{status}, 404, 'none');

my $r = $t->get('/status');
is($r->{status}, 200, 'status');
is($r->{headers}{'content-type'}, 'application/json', 'is JSON');
is($r->{headers}{'cache-control'}, 'no-store', 'not to be stored');

my $s = status();
is($s->{conversions_total}{accepted}, 3, 'accepted calls of all workers');
is($s->{conversions_total}{bad_request}, 1, 'bad requests');
is($s->{conversions_total}{invalid}, 1, 'invalid events');
is($s->{conversions_total}{bad_signature}, 1, 'bad signatures');
is($s->{recorded_total}{conversions}, 6, 'recorded conversions and refused calls');
is($s->{recorded_total}{clicks}, 1, 'recorded clicks');
is($s->{not_found_total}, 1, 'unknown codes');
is($s->{parked_requests}, 0, 'nobody waits');
is($s->{zone_size_bytes}, 8 * 1048576, 'size of the zone');
is($s->{cache_links} . ' ' . $s->{cache_keys}, '1 1', 'what is cached');
cmp_ok($s->{request_duration_seconds}{count}, '>=', 8, 'requests are timed');
is($s->{request_duration_seconds}{count}, $s->{request_duration_seconds}{buckets}{'+Inf'}, 'all are in a bucket');
ok($t->wait_until('both workers are connected', sub { status()->{redis_connected}{lookup} == 2 }), 'connections');
ok($t->wait_until('the spool ages', sub { status()->{spool_oldest_seconds}{conversions} > 0 }),
    'the oldest record, as nothing acknowledges it');

my $metrics = $t->get('/metrics');
is($metrics->{headers}{'content-type'}, 'text/plain; version=0.0.4; charset=utf-8', 'metrics are text');
like($metrics->{body}, qr/^affiliate_conversions_total\{code="accepted"\} 3$/m, 'with the same numbers');
like($metrics->{body}, qr/^affiliate_redirects_total\{verdict="valid",cache="miss"\} 1$/m, 'by two labels');

SKIP: {
    skip 'promtool is not installed', 1 unless grep { -x "$_/promtool" } split /:/, $ENV{PATH};
    my ($code, $out, $err) = $t->run({ stdin => $metrics->{body} }, 'promtool', 'check', 'metrics');
    is("$code $out$err", '0 ', 'promtool has nothing to say');
}

is($t->head($_)->{status}, 200, "HEAD $_") for '/status', '/metrics';
is($t->request('POST', '/status', body => 'x')->{status}, 405, 'POST');

$t->redis_kill;
ok($t->wait_until('Redis is away', sub { status()->{redis_connected}{ship} == 0 }), 'lost connections');

done_testing();
