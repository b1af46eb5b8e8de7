# What somebody who follows links, or guesses them, can and can not do.

use Affiliated::Test;

my $t = Affiliated::Test->new;
my $stub = $t->stub;

$t->nginx_start(redis => $stub->address, http => 'affiliate_address_rate off;');
$t->link(code => 'abc', url => 'http://127.0.0.1/shop', hosts => ['127.0.0.1', '*.himal.example', 'himal.example']);

sub percent { my $text = shift; $text =~ s/([^A-Za-z0-9])/sprintf '%%%02X', ord $1/ge; return $text }

sub host_of { return ($_[0] // '') =~ m{^https?://([^/?#\@\\]+)(?:[/?#]|$)} ? $1 : 'none' }

# --- nowhere but to the merchant's hosts ------------------------------------------------------------------------------------

my @elsewhere = (
    'https://evil.example/', '//evil.example/', '/\\evil.example', 'https:evil.example', 'https:/evil.example', 'https:///evil.example',
    'http://evil.example#.himal.example', 'http://evil.example/.himal.example', 'http://evil.example?himal.example/',
    'http://himal.example@evil.example/', 'http://user:pw@himal.example/', 'http://evil.example\\@himal.example/',
    'http://himal.example\\.evil.example/', 'http://himal.example.evil.example/', 'http://evilhimal.example/', 'http://himal.example:80@evil.example/',
    "http://evil.example\t.himal.example/", "http://evil.example\0.himal.example/", "http://evil.example\r\n.himal.example/",
    'http://evil.example%00.himal.example/', 'http://evil.example%2f.himal.example/', "http://evil.example\xe3\x80\x82himal.example/",
    'http://[::ffff:203.0.113.9]/', 'http://0x7f000001/', 'http://2130706433/', 'http://127.1/', 'http://017700000001/',
    'javascript:alert(1)', 'data:text/html,x', 'ftp://himal.example/', 'http:///himal.example', ' http://evil.example/',
    'http://.himal.example/', 'http://himal.example..evil.example/', 'http://*.himal.example/', 'http://%68imal.evil.example/',
);

for my $url (@elsewhere) {
    my $r = $t->get('/r/abc?url=' . percent($url));

    is("$r->{status} " . host_of($r->{headers}{location}), '302 127.0.0.1', 'url=' . percent($url) . ' leads to the link\'s own page')
        or diag $r->{headers}{location};
}
like($t->get('/r/abc?url=' . percent('https://www.himal.example/tea'))->{headers}{location},
    qr{^https://www\.himal\.example/tea\?affiliate_click_id=}, 'a page of the merchant\'s does get there');
like($t->get('/r/abc?url=' . percent('http://127.0.0.1/a') . '&url=' . percent('https://evil.example/'))->{headers}{location},
    qr{^http://127\.0\.0\.1/}, 'nor does a second one');

# --- no byte of theirs makes a header ---------------------------------------------------------------------------------------------

my $plain = join ' ', map { lc $_->[0] } @{ $t->get('/r/abc')->{lines} };

for my $bytes ("\r\nSet-Cookie: a=b", "\nSet-Cookie: a=b", "\r", "\0", "\r\n\r\n<html>", "\x7f", "\xff\xfe", "\xe5\x98\x8a\xe5\x98\x8d", '"><', "'", '`', "\t",
    "\x{0b}", ' ', '\\', '{}|^')
{
    for my $path ('sub1=', 'sub5=', 'utm_source=', 'url=' . percent('http://127.0.0.1/x?a='), 'affiliate_click_id=') {
        my $r = $t->get("/r/abc?$path" . percent("a$bytes"));
        my $location = $r->{headers}{location} // '';

        is("$r->{status} " . join(' ', map { lc $_->[0] } @{ $r->{lines} }), "302 $plain", "$path" . percent("a$bytes") . ': headers are ours alone');
        is(host_of($location), '127.0.0.1', 'the host, too');
        unlike($location, qr/[^\x21\x23-\x3b\x3d\x3f-\x5b\x5d\x5f\x61-\x7a\x7e]/, 'Location has no byte that a URL has not') or diag percent($location);
        is(scalar(() = $location =~ /[?&]affiliate_click_id=/g), 1, 'and one click_id');
        like($location, qr/[?&]affiliate_click_id=[0-9a-z]{39}(?:[&#]|$)/, 'of ours');
    }
}

# Through the path, which is the code.
for my $code ("abc%0d%0aX: y", 'abc%00', 'abc%ff', '..%2f..%2fstatus', 'abc%20', "abc'", 'abc"', '%24%7bx%7d', 'x' x 65, 'x' x 4000) {
    my $r = $t->get("/r/$code");
    like($r->{status}, qr/^40[04]$/, substr($code, 0, 40) . ' is no code');
    unlike($r->{raw}, qr/^X:/m, 'and no header');
}

# --- a link that somebody wrote into Redis --------------------------------------------------------------------------------------------

sub record { return $t->redis('GET', "aff:link:$_[0]") }

# What somebody without the key can make of a sound record. Each is tried on a link that nobody has asked for yet.
my %poison = (
    'of another code' => sub { $t->link(code => 'sound'); return record('sound') },
    'with another host' => sub { $_[0] =~ s/127\.0\.0\.1/203.0.113.9/gr },
    'with another host as long' => sub { $_[0] =~ s/127\.0\.0\.1/203.0.1.9/gr },
    'with another path' => sub { $_[0] =~ s{/shop}{/evil}r },
    'with a MAC of nought' => sub { substr($_[0], 0, -8) . "\0" x 8 },
    'cut off' => sub { substr $_[0], 0, -1 },
    'with more behind it' => sub { "$_[0]\0" },
    'of text' => sub { 'http://203.0.113.9/' },
    'of nothing' => sub { '' },
    'without end' => sub { 'A' x 7000 },
    map { my $bit = $_; ("with bit $bit turned" => sub { vec($_[0], $bit, 1) ^= 1; $_[0] }) } map { $t->random(8 * 110) } 1 .. 40,
);

my $n = 0;
for my $what ('untouched', sort keys %poison) {
    my $code = sprintf 'fresh%03d', $n++;

    $t->link(code => $code, url => 'http://127.0.0.1/shop');
    my $bytes = record($code);
    cmp_ok(length $bytes, '>=', 110, 'a bit that is in it') if $n == 1;
    if ($what eq 'untouched') {
        is($t->get("/r/$code")->{status}, 302, 'a record as it was made redirects');
        next;
    }
    my $poisoned = $poison{$what}->($bytes);
    isnt($poisoned, record($code), 'it is another record');
    $t->redis('SET', "aff:link:$code", $poisoned);
    my $r = $t->get("/r/$code");
    isnt($r->{status}, 302, "a record $what redirects nobody") or diag $r->{headers}{location};
}

# And in the place of a link that is in use: what was known stays.
my $code = 'fresh000';
for my $bit (map { $t->random(8 * length record($code)) } 1 .. 8) {
    my $bytes = record($code);
    vec($bytes, $bit, 1) ^= 1;
    is($t->get("/r/$code")->{status}, 302, 'the link is known');
    my $kept = record($code);
    $t->redis('SET', "aff:link:$code", $bytes);
    $t->redis('PUBLISH', 'aff:invalidate', "link:$code");
    sleep 0.05;
    my $r = $t->get("/r/$code");
    ok($r->{status} != 302 || $r->{headers}{location} =~ m{^http://127\.0\.0\.1/shop\?}, "with bit $bit turned it leads nowhere else")
        or diag $r->{headers}{location};
    $t->redis('SET', "aff:link:$code", $kept);
    $t->redis('PUBLISH', 'aff:invalidate', "link:$code");
    $t->wait_until('it is sound again', sub { $t->get("/r/$code")->{status} == 302 });
}

# The same of a key: a forged one opens nothing.
{
    my $key = $t->api_key(merchant => 1);
    my $event = { click_id => $t->click_id, order_id => 'x', status => 'approved', amount => '1.00', currency => 'NPR' };
    my $other = $t->api_key(merchant => 2);

    is($t->call($key, $event)->{status}, 202, 'a key that is one');
    $t->redis('SET', "aff:key:$other->{id}", $t->redis('GET', "aff:key:$key->{id}"));
    isnt($t->call($other, $event)->{status}, 202, "another's record in its place opens nothing");
    my $revoked = $t->api_key(merchant => 1, revoked => 1);
    my $bytes = $t->redis('GET', "aff:key:$revoked->{id}");
    for my $at (0 .. length($bytes) - 9) {
        my $turned = $bytes;
        next if (substr($turned, $at, 1) ^ "\1") eq substr $turned, $at, 1;
        substr($turned, $at, 1) ^= "\1";
        $t->redis('SET', "aff:key:$revoked->{id}", $turned);
        my $status = $t->call($revoked, $event)->{status};
        isnt($status, 202, "a revoked key with byte $at turned stays closed") if $status == 202 || $at % 16 == 0;
    }
}

# --- codes that are guessed ---------------------------------------------------------------------------------------------------------------

sub questions { return scalar grep { $_->[0] =~ /^m?get$/i && "@$_" =~ /aff:link:/ } $stub->commands }

my $before = questions();
$t->get('/r/' . ($_ % 2 ? 'x' x (65 + $_) : "bad%2$_.")) for 1 .. 30;
is(questions(), $before, 'what can be no code is not asked for');
$t->get('/r/nothere') for 1 .. 50;
is(questions(), $before + 1, 'one that there is not is asked for once');
my $hot = do { $t->get('/r/abc'); questions() };
$t->get("/r/guess$_") for 1 .. 300;
is(questions(), $hot + 300, 'each guess costs Redis one look-up at most');
$t->get('/r/abc');
is(questions(), $hot + 300, 'and a link in use stays in the cache');

# Redis hangs: so many wait for it, and whoever comes then is told at once.
{
    my $most = 4096;
    my $asked = 0;
    my $conf = $t->nginx_conf(redis => $stub->address, main => 'worker_rlimit_nofile 16384;',
        http => 'affiliate_address_rate off; affiliate_lookup_timeout 10m; affiliate_redis_timeout 10m;');
    my $waits = sub { return !IO::Select->new($_[0]{socket})->can_read(0.2) };
    my $ask = sub { return $t->http("GET /r/wait" . ++$asked . " HTTP/1.1\r\nHost: x\r\n\r\n", read => 0) };

    $t->write($conf, $t->slurp($conf) =~ s/worker_connections 1024/worker_connections 8192/r);
    $t->nginx_reload;
    $t->wait_until('its connection to Redis', sub { $t->get('/r/new' . ++$asked)->{status} == 404 });
    $stub->mode('hang');
    my @waiting = map { $ask->() } 1 .. $most / 2;
    ok($waits->($waiting[-1]), 'half as many wait');
    push @waiting, map { $ask->() } 1 .. $most / 2;
    my $more;
    ok($t->wait_until('one too many', sub { !$waits->($more = $ask->()) }), 'one too many does not') and is($more->response->{status}, 503, 'but is told');
    ok($waits->($waiting[0]), 'those before it still do');
    $_->close for @waiting, $more;
    $stub->mode('pass');
}

done_testing();
