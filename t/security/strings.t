# Every string that a visitor or a merchant can send, with what SQL, COPY, JSON, Redis, Lua, formats and logs could take for
# their own: it comes to PostgreSQL byte for byte, comes back through the commands, and does nothing.

use Affiliated::Test;
use Affiliated::Daemon;

use JSON::PP ();

my $t = Affiliated::Test->new;

$t->redis_start;
$t->pg_start;
$t->daemon_start;
my $w = $t->world;
$t->wait_until('the projection', sub { $t->redis('EXISTS', "aff:link:$w->{link}", "aff:key:$w->{key}{id}") == 2 });
$t->nginx_start(http => 'affiliate_address_rate off;');
$t->wait_until('the link', sub { $t->get("/r/$w->{link}")->{status} == 302 });

my @nasty = (
    q{'; drop table affiliate.transfer; --}, q{' or '1'='1}, q{'||pg_sleep(9)||'}, q{\\'; select 1; --}, q{$$; rollback; $$}, q{$1}, q{:x},
    q{"; --}, q{\\}, q{\\\\}, q{\\.}, q{\\N}, q{NULL}, q{null}, q{\\x00}, q{\\u0000}, q{{a,b}}, q{"{"a"}"}, q{{}}, q{}.q{[1]}, q{%s%n%x}, q{%00},
    q{*3}, q{$-1}, q{/* */}, q{--}, q{<script>alert(1)</script>}, q{a,b;c|d}, q{${jndi:x}}, q{`id`}, q{$(id)}, q{../../etc/passwd}, q{return redis.call('FLUSHALL')},
    "\x{ca}\x{bc}", "\x{ef}\x{bc}\x{87}", "\xf0\x9f\x9b\x92", "\xe2\x80\xae", 'x' x 60,
);

sub percent { my $text = shift; $text =~ s/([^A-Za-z0-9])/sprintf '%%%02X', ord $1/ge; return $text }

# --- a visitor's --------------------------------------------------------------------------------------------------------------

my @clicks;

for my $text (@nasty) {
    my $query = join '&', map { "sub$_=" . percent($text) } 1 .. 5;
    # A header can't hold more than one line, and Perl's harness sends it as it stands.
    my $r = $t->get("/r/$w->{link}?$query", 'User-Agent', "Mozilla/5.0 (X11) $text", 'Referer', "http://blog.example/$text");
    my ($id) = ($r->{headers}{location} // '') =~ /affiliate_click_id=([0-9a-z]{39})/;

    ok($id, 'a click with ' . percent($text)) or diag $r->{raw};
    push @clicks, $id;
}
$t->wait_until('the clicks', sub { clicks($t) >= @nasty }, 30);

for my $i (0 .. $#nasty) {
    my $uuid = $clicks[$i] ? $t->uuid_of($clicks[$i]) : next;
    my ($row) = $t->rows("select encode(convert_to(array_to_string(sub_ids, E'\\x01'), 'UTF8'), 'hex'), encode(convert_to(user_agent, 'UTF8'), 'hex'),
        encode(convert_to(referrer, 'UTF8'), 'hex') from affiliate.click where id = '$uuid'");

    is(pack('H*', $row->[0]), join("\1", ($nasty[$i]) x 5), 'sub1 to sub5 are in PostgreSQL as they were: ' . percent($nasty[$i]));
    is(pack('H*', $row->[1]), "Mozilla/5.0 (X11) $nasty[$i]", 'and the user agent');
    unlike(pack('H*', $row->[2]), qr/[\x00-\x1f]/, 'and what is kept of the referrer has no control character');
}

# --- a merchant's ----------------------------------------------------------------------------------------------------------------

my @orders;

for my $i (0 .. $#nasty) {
    my $text = $nasty[$i];
    my $key = "k$i-$text" =~ s/[^\x21-\x7e]/_/gr;
    my $raw = sub { my $json = JSON::PP->new->canonical; return $json->encode($_[0]) };
    my $r = $t->call($w->{key}, $raw->({ click_id => $clicks[$i], order_id => "$i$text", status => 'approved', amount => '10.00', currency => 'NPR',
        reason => $text, items => [{ sku => $text, category => $text, quantity => 1, amount => '10.00' }] }) =~ s/\\\//\//gr, idempotency_key => $key);

    # What is refused is refused with the field's name, and is never half taken.
    if ($r->{status} == 422) {
        like($r->{body}, qr{"pointer"}, 'refused by field: ' . percent($text));
        next;
    }
    is($r->{status}, 202, 'an order with ' . percent($text)) or diag $r->{raw};
    push @orders, [$i, $key];
}
cmp_ok(scalar @orders, '>=', @nasty - 4, 'nearly all are strings like others');

# A postback says the same in a query.
{
    my $r = $t->postback($w->{key}, { click_id => $clicks[0], order_id => "pb$nasty[0]", status => 'approved', amount => '10.00', currency => 'NPR',
        reason => $nasty[2] });
    is($r->{status}, 202, 'a postback with them') or diag $r->{raw};
}

drained($t);
$t->wait_until('the orders', sub { conversions($t) == @orders + 1 });
for my $order (@orders) {
    my ($i, $key) = @$order;
    my $hex = unpack 'H*', "$i$nasty[$i]";
    my ($row) = $t->rows("select encode(convert_to(reason, 'UTF8'), 'hex'), encode(convert_to(item_sku[1], 'UTF8'), 'hex'),
        encode(convert_to(item_category[1], 'UTF8'), 'hex'), encode(convert_to(idempotency_key, 'UTF8'), 'hex')
        from affiliate.conversion where order_id = convert_from('\\x$hex', 'UTF8')");

    ok($row, 'its order_id is in PostgreSQL as it was: ' . percent($nasty[$i])) or next;
    is(join(' ', map { percent(pack 'H*', $_) } @$row), join(' ', map { percent($_) } ($nasty[$i]) x 3, $key), 'and reason, sku, category, Idempotency-Key');
}

# And out again: the command takes and prints it.
for my $order (@orders[grep { $_ % 4 == 0 } 0 .. $#orders]) {
    my $id = "$order->[0]$nasty[$order->[0]]";
    my ($code, $out, $err) = $t->cli('order', 'show', '--merchant', $w->{merchant}, '--order', $id, '--json');

    is($code, 0, 'order show of ' . percent($id)) or diag $err;
    is(unpack('H*', eval { my $s = JSON::PP::decode_json($out)->{order}; utf8::encode($s); $s } // ''), unpack('H*', $id), 'names it');
}

# --- nothing happened ---------------------------------------------------------------------------------------------------------------

is($t->value("select count(*) from pg_tables where schemaname = 'affiliate' and tablename = 'transfer'"), 1, 'every table is there');
is_deeply(dead($t), {}, 'nothing became a dead letter');
unlike($t->daemon_log, qr/syntax error|invalid input|malformed/i, 'PostgreSQL had nothing to say about it');
ok($t->redis('EXISTS', "aff:link:$w->{link}"), 'nor did Redis');
books_hold($t);
done_testing();
