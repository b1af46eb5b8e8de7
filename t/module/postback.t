#!/usr/bin/perl

# affiliate_postback: the call as a signed GET.

use lib 't/lib';
use Affiliated::Test;

use JSON::PP ();

my $t = Affiliated::Test->new;

$t->redis_start;
$t->nginx_start;

my $key = $t->api_key(merchant => 7, livemode => 0);
my $count = 0;

sub event
{
    my %fields = (click_id => $t->click_id(merchant => 7, livemode => 0), order_id => 'P-' . ++$count,
        status => 'approved', amount => '12.50', currency => 'NPR', @_);

    delete $fields{$_} for grep { !defined $fields{$_} } keys %fields;
    return \%fields;
}

sub postback { my ($fields, %o) = @_; return $t->postback($o{key} || $key, $fields, %o) }

sub refused
{
    my ($r, $status, $code, $name) = @_;

    is($r->{status}, $status, "$name: $status") or diag($r->{raw});
    is((eval { JSON::PP::decode_json($r->{body}) } || {})->{code}, $code, "$name: $code");
    is($r->{headers}{'content-type'}, 'application/problem+json', "$name: a problem");
}

my $r = postback(event(order_id => 'a b', reason => 'x+y'));
is($r->{status}, 202, 'accepted') or diag($r->{raw});
is($r->{json}{order_id}, 'a b', 'percent-encoded');
$r = postback('click_id=' . event()->{click_id} . '&order_id=c+d&status=approved&amount=12.50&currency=NPR');
is($r->{json}{order_id}, 'c d', 'plus for space') or diag($r->{raw});
is(postback(event(), form => '%s')->{status}, 202, 'signature without its scheme');
is(postback(event(), form => 'v1%%3D%s')->{status}, 202, 'signature that was encoded');
is(postback(event(), form => '0' x 64 . ',%s')->{status}, 202, 'any of several signatures');

my $event = event();
is(postback($event)->{status}, 202, 'the first time');
$r = postback($event, ts => int(time()) - 60);
is($r->{status}, 200, 'the second time, with another timestamp');
is($r->{headers}{'idempotent-replayed'}, 'true', 'as a replay');
refused(postback({ %$event, amount => '9.00' }), 422, 'idempotency_key_reused', 'the same order and status, another amount');
is(postback({ %$event, amount => '9.00' }, idempotency => 'own')->{status}, 202, 'with a key of its own');
is(postback({ %$event, status => 'cancelled' })->{status}, 202, 'another status');
$event = event(order_id => 'o' x 128, status => 'refunded', refund_id => 'r' x 128);
is(postback($event)->{status}, $_, "identity longer than a key: $_") for 202, 200;

refused($t->get('/pb'), 400, 'missing_parameter', 'nothing');
refused($t->get('/pb?sig=' . '0' x 64), 400, 'missing_parameter', 'a signature alone');
refused($t->get("/pb?key=$key->{id}&ts=1"), 400, 'missing_parameter', 'no signature');
refused(postback(event(), tail => '&reason=x'), 400, 'malformed_parameter', 'something behind the signature');
refused(postback('amount=1&amount=2'), 400, 'duplicate_parameter', 'an amount twice');
refused(postback("key=$key->{id}"), 400, 'duplicate_parameter', 'a key twice');
refused(postback('amount=%zz'), 400, 'malformed_parameter', 'bad encoding');
refused(postback('amount=%4'), 400, 'malformed_parameter', 'half an encoding');
refused(postback('reason=%ff'), 400, 'malformed_parameter', 'no UTF-8');
refused(postback(event(), idempotency => 'x' x 129), 400, 'malformed_parameter', 'a key of 129 characters');
refused(postback(event(), ts => 1000), 401, 'clock_skew', 'an old timestamp');
refused(postback(event(), key => { %$key, id => 'ak_test_' . '0' x 20 }), 401, 'unknown_key', 'an unknown key');
refused(postback(event(), key => { %$key, secret => 'x' }), 401, 'bad_signature', 'a wrong secret');
refused(postback(event(reason => "a\0b")), 422, 'validation', 'NUL');
refused(postback(event(sub9 => 'x')), 422, 'validation', 'an unknown parameter');
refused(postback(event(items => '[]')), 422, 'validation', 'items');
refused(postback(event(click_id => 'x')), 422, 'malformed_click_id', 'a bad click_id');

$r = $t->request('POST', '/pb', body => '{}');
refused($r, 405, 'method_not_allowed', 'POST');
is($r->{headers}{allow}, 'GET', 'GET is allowed');
is($t->request('HEAD', '/pb?order_id=P-1')->{status}, 405, 'HEAD has no effect');
is($t->request('GET', '/pb', body => 'x' x 100)->{status}, 400, 'a body is passed over');

done_testing();
