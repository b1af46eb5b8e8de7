# Refused calls of known keys reach the merchant's log of calls, with their cause, and never a secret; never in the way of a
# conversion.

use Affiliated::Test;
use Affiliated::Daemon ();

my $t = Affiliated::Test->new;

sub logged
{
    my $where = shift;

    $t->wait_until("a call where $where", sub { $t->value("select count(*) from affiliate.call_log where $where") }) or return {};
    return JSON::PP::decode_json($t->value("select to_jsonb(c) from affiliate.call_log c where $where order by call_id desc limit 1"));
}

$t->redis_start;
$t->pg_start;
$t->daemon_start;
my $w = $t->world(rate => 1000, hold => '2 seconds', url => 'http://127.0.0.1/shop');
$t->nginx_start(server => <<'END');
        location /small { affiliate_conversion; affiliate_conversion_max_body 400; }
        location /rated { affiliate_conversion; affiliate_conversion_rate rate=1r/s; }
END

my ($key, $test) = @$w{qw(key test_key)};
$t->wait_until('the link is known', sub { $t->get("/r/$w->{test_link}")->{status} == 302 });
my ($id) = $t->get("/r/$w->{test_link}")->{headers}{location} =~ /affiliate_click_id=([0-9a-z]+)/;
my $event = { click_id => $id, order_id => 'A-1', status => 'approved', amount => '10.00', currency => 'NPR' };

is($t->call($test, $event, idempotency_key => 'first')->{status}, 202, 'a call is accepted');

# --- each cause ----------------------------------------------------------------------------------------------------

my $r = $t->call({ %$test, secret => 'aks_test_wrong' }, $event, idempotency_key => 'forged', path => '/v1/conversions?a=b');
is($r->{status}, 401, 'a bad signature is refused');
my $c = logged(q{code = 'bad_signature'});
is($c->{key_id}, $test->{id}, 'and in the log of its key');
ok(!$c->{authentic}, 'as nobody\'s in particular');
is($c->{target}, '/v1/conversions?a=b', 'with what the server signed: the target');
like($c->{sent_timestamp}, qr/^\d{10}\z/, 'the timestamp');
is($c->{idempotency_key}, 'forged', 'the idempotency key');
is($c->{request_id}, $r->{json}{request_id}, 'the id that the merchant was told');
is(substr($c->{body_hash}, 2), $r->{json}{body_sha256}, 'and the body as its hash');

is($t->call($test, $event, timestamp => int(time) - 4000)->{status}, 401, 'an old one');
like(logged(q{code = 'clock_skew'})->{detail}, qr/too far from the server's time/, 'is logged');

sleep 1;
is($t->call($test, '{"click_id": "x", nonsense}')->{status}, 400, 'no JSON');
$c = logged(q{code = 'malformed_json'});
ok($c->{authentic}, 'is known to be the merchant\'s');
cmp_ok(length $c->{excerpt}, '<=', 24, 'and no more');
like('{"click_id": "x", nonsense}', qr/\Q$c->{excerpt}\E/, 'of the body');

is($t->call($test, { %$event, amount => 5, currency => 'npr' })->{status}, 422, 'wrong fields');
$c = logged(q{code = 'validation'});
is(join(' ', map { $_->{pointer} } @{ $c->{errors} }), '/currency /amount', 'are named');
is($c->{order_id}, 'A-1', 'and the order');

is($t->call($test, { %$event, click_id => 'x' })->{status}, 422, 'a click_id that is none');
is(logged(q{code = 'malformed_click_id'})->{errors}[0]{pointer}, '/click_id', 'is logged');
is($t->call($test, { %$event, order_id => 'A-2' }, idempotency_key => 'first')->{status}, 422, 'a key used again');
is(logged(q{code = 'idempotency_key_reused'})->{idempotency_key}, 'first', 'is logged');
sleep 1;
is($t->call($test, $event, path => '/small')->{status}, 202, 'a small one');
is($t->call($test, ' ' x 500 . JSON::PP::encode_json($event), path => '/small')->{status}, 413, 'a large one');
is(logged(q{code = 'body_too_large'})->{status}, 413, 'is logged before its headers were read');
is($t->call($test, $event, idempotency_key => 'first')->{status}, 200, 'a call repeated');
is(logged(q{code = 'repeated'})->{status}, 200, 'is noted in test mode');
is($t->value("select count(*) from affiliate.milestone where merchant_id = $w->{merchant} and name = 'retry'"), 1, 'for the checklist');

# --- batches ---------------------------------------------------------------------------------------------------------

sleep 1;
$r = $t->call($test, { events => [{ %$event, order_id => 'B-0' }, { %$event, order_id => 'B-1', amount => '1,5' }] }, path => '/v1/conversions/batch');
is($r->{status}, 202, 'a batch of which one event is refused');
$c = logged(q{source = 2 and status = 422});
is("$c->{position} $c->{order_id} $c->{errors}[0]{pointer}", '1 B-1 /events/1/amount', 'and told which one');
$r = $t->call($test, { events => [map { { %$event, order_id => "C-$_", status => 'x' } } 0 .. 99] }, path => '/v1/conversions/batch');
is($r->{status}, 422, 'a batch of nothing valid');
logged(q{order_id = 'C-0'});
cmp_ok($t->value(q{select count(*) from affiliate.call_log where order_id like 'C-%'}), '<=', 10, 'does not fill the log');

# --- who is not known, and what is nobody's --------------------------------------------------------------------------

is($t->call({ id => 'ak_test_0123456789ABCDEFabcd', secret => 'x' }, $event)->{status}, 401, 'an unknown key');
is($t->call($key, $event)->{status}, 422, 'a live key with a test click');
is(logged(q{code = 'wrong_livemode'})->{livemode}, JSON::PP::true, 'is in the live key\'s log');
is($t->value(q{select count(*) from affiliate.call_log where key_id = 'ak_test_0123456789ABCDEFabcd'}), 0, 'the unknown one in none');
$t->cli('key', 'revoke', '--key', $test->{id});
$t->wait_until('the key is revoked', sub { $t->call($test, {})->{status} == 401 });
like(logged(q{code = 'unknown_key'})->{detail}, qr/revoked/, 'its owner is told that a key was revoked');

# --- what came of it -------------------------------------------------------------------------------------------------

$t->wait_until('the conversions', sub { $t->value('select count(*) from affiliate.conversion') == 3 });
is($t->value('select count(*) from affiliate.conversion'), 3, 'conversions are what was accepted');
is($t->value('select count(*) from affiliate.dead_letter'), 0, 'nothing is dead');
cmp_ok($t->value(q{select last_used_at from affiliate.key_use where key_id = '} . $test->{id} . q{'}), 'gt', '2', 'the key was used');
my $dump = $t->value(q{select jsonb_agg(to_jsonb(c)) from affiliate.call_log c});
unlike($dump, qr/$test->{secret}|$key->{secret}|v1=|127\.0\.0\.1/, 'no secret, no signature, no address');
my ($code, $out) = $t->cli('audit');
is($code, 0, 'the audit counts refused calls among the records of their batches') or diag $out;

done_testing();
