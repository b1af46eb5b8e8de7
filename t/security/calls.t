# What somebody who listens to, repeats, bends or forges a merchant's calls can and can not do, up to the order.

use Affiliated::Test;
use Affiliated::Daemon;

use Digest::SHA ();
use JSON::PP ();

my $t = Affiliated::Test->new;

$t->redis_start;
$t->pg_start;
$t->daemon_start;
my $w = $t->world;
$t->wait_until('the projection', sub { $t->redis('EXISTS', "aff:link:$w->{link}", "aff:key:$w->{key}{id}", "aff:link:$w->{test_link}") == 3 });
$t->nginx_start(http => 'affiliate_address_rate off; client_body_timeout 1s;');

sub click
{
    my $link = shift || $w->{link};
    my $id;

    $t->wait_until('a click', sub { ($id) = ($t->get("/r/$link")->{headers}{location} // '') =~ /affiliate_click_id=([0-9a-z]{39})/ });
    return $id;
}

my $click = click();
my $count = 0;

sub event { return { click_id => $click, order_id => 'O-' . ++$count, status => 'approved', amount => '100.00', currency => 'NPR', @_ } }

sub told { my $r = shift; return "$r->{status} " . (eval { JSON::PP::decode_json($r->{body})->{code} } // '') }

# --- replayed ----------------------------------------------------------------------------------------------------------------

my $body = JSON::PP->new->canonical->encode(event());
my @headers = ($t->sign($w->{key}, body => $body, idempotency_key => 'once'), ['Content-Type', 'application/json']);

sub again { my ($body, @headers) = @_; return $t->request('POST', '/v1/conversions', headers => \@headers, body => $body) }

is(again($body, @headers)->{status}, 202, 'a call');
is(again($body, @headers)->{status}, 200, 'the same bytes again are the same call') for 1 .. 3;

my %bent = (
    'to another path' => sub { $t->request('POST', '/v1/conversions/batch', headers => \@headers, body => $body) },
    'with a query' => sub { $t->request('POST', '/v1/conversions?x=1', headers => \@headers, body => $body) },
    'under another Idempotency-Key' => sub { again($body, map { $_->[0] eq 'Idempotency-Key' ? ['Idempotency-Key', 'twice'] : $_ } @headers) },
    'at another time' => sub { again($body, map { $_->[0] eq 'Affiliate-Timestamp' ? [$_->[0], $_->[1] + 1] : $_ } @headers) },
    'by another key' => sub { again($body, map { $_->[0] eq 'Affiliate-Key' ? [$_->[0], $w->{test_key}{id}] : $_ } @headers) },
    'with another amount' => sub { again($body =~ s/100\.00/900.00/r, @headers) },
    'with a byte more' => sub { again("$body ", @headers) },
    'with another signature' => sub { again($body, map { $_->[0] eq 'Affiliate-Signature' ? [$_->[0], 'v1=' . '0' x 64] : $_ } @headers) },
    'with half a signature' => sub { again($body, map { $_->[0] eq 'Affiliate-Signature' ? [$_->[0], substr $_->[1], 0, 35] : $_ } @headers) },
);
for my $how (sort keys %bent) {
    like(told($bent{$how}->()), qr/^(?:401 bad_signature|400 malformed_header)$/, "a call that was heard, sent $how, is refused");
}

# A signature that is old is one no more, even for the very call that it was made for.
is(told($t->call($w->{key}, event(), timestamp => int(time()) - 400)), '401 clock_skew', 'an old signature');
is(told($t->call($w->{key}, event(), timestamp => int(time()) + 400)), '401 clock_skew', 'one of the future');

# --- what a postback signs is no call, and the other way round -----------------------------------------------------------------------

{
    my $fields = event();
    my $r = $t->postback($w->{key}, $fields);
    is($r->{status}, 202, 'a postback') or diag $r->{raw};
    like(told($t->postback({ %{ $w->{key} }, secret => $w->{test_key}{secret} }, event())), qr/^401 bad_signature/, 'with the secret of another key');
    my $text = join "\n", 'v1', int(time()), 'POST', '/pb', '', '';
    like(told($t->postback($w->{key}, event(), form => 'v1=' . Digest::SHA::hmac_sha256_hex($text, $w->{key}{secret}) . '%.0s')),
        qr/^401 bad_signature/, 'a signature of another method');
}

# --- click_ids ------------------------------------------------------------------------------------------------------------------------

my $other = $t->cli_json(qw(merchant create --name Other --host localhost))->{merchant};
my $alphabet = '0123456789abcdefghjkmnpqrstvwxyz';
my %forged = (
    'of another merchant' => $t->click_id(merchant => $other),
    'of test mode' => click($w->{test_link}),
    'of a test link' => $t->click_id(merchant => $w->{merchant}, livemode => 0),
    'expired' => $t->click_id(merchant => $w->{merchant}, at_ms => (int(time()) - 91 * 86400) * 1000),
    'made up' => join('', map { substr $alphabet, $t->random(32), 1 } 1 .. 39),
    'of noughts' => '0' x 39,
);
for my $at (0 .. 38) {
    my $bent = $click;
    substr($bent, $at, 1) = substr $alphabet, (index($alphabet, substr $click, $at, 1) ^ ($at == 38 ? 8 : 1)), 1;
    $forged{"with character $at changed"} = $bent;
}
for my $what (sort keys %forged) {
    like(told($t->call($w->{key}, event(click_id => $forged{$what}))), qr/^422 (?:unknown|malformed|expired|wrong)_\w+$/, "a click_id $what");
}

# --- bodies that lie about their length --------------------------------------------------------------------------------------------------

sub bytes
{
    my ($body, $lengths, %o) = @_;
    my @headers = $t->sign($w->{key}, body => $o{signed} // $body, idempotency_key => 'raw-' . ++$count);

    return $t->http(join '', "POST /v1/conversions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n",
        (map { "$_->[0]: $_->[1]\r\n" } @headers), $lengths, "\r\n", $body);
}

my $true = JSON::PP->new->canonical->encode(event());
my $length = length $true;
my $smuggled = "GET /r/$w->{link} HTTP/1.1\r\nHost: x\r\n\r\n";
my %lies = (
    'longer than it is' => sub { bytes($true, 'Content-Length: ' . ($length + 50) . "\r\n") },
    'shorter than it is' => sub { bytes($true, 'Content-Length: ' . ($length - 5) . "\r\n") },
    'negative' => sub { bytes($true, "Content-Length: -1\r\n") },
    'huge' => sub { bytes($true, "Content-Length: 18446744073709551616\r\n") },
    'signed' => sub { bytes($true, "Content-Length: +$length\r\n") },
    'told twice' => sub { bytes($true, "Content-Length: $length\r\nContent-Length: 5\r\n") },
    'told in both ways' => sub { bytes("0\r\n\r\n$smuggled", "Content-Length: $length\r\nTransfer-Encoding: chunked\r\n", signed => $true) },
    'in chunks that are none' => sub { bytes("zz\r\n$true\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n", signed => $true) },
    'in a chunk without end' => sub { bytes(sprintf("%x\r\n%s", $length + 9, $true), "Transfer-Encoding: chunked\r\n", signed => $true) },
    'in an unknown coding' => sub { bytes($true, "Transfer-Encoding: gzip\r\n") },
);
for my $how (sort keys %lies) {
    my $r = $lies{$how}->();
    unlike($r->{status}, qr/^2/, "a body whose length is $how is not taken") or diag $r->{raw};
}
is(bytes($true, "Content-Length: $length\r\n")->{status}, 202, 'the same one with its own is');

# --- all of it together ----------------------------------------------------------------------------------------------------------------------

drained($t);
$t->wait_until('three orders', sub { $t->value('select count(*) from affiliate.order_fact') == 3 });
is($t->value('select count(*) from affiliate.conversion'), 3, 'of all this three events were taken: the call, the postback, the body that told the truth');
is($t->value("select string_agg(distinct amount_minor::text, ' ') from affiliate.conversion"), '10000', 'of what was signed');
books_hold($t);
done_testing();
