# What is cached, and when it is asked for again: negatives, invalidation by message and by a new subscription, a zone that
# is full.

use Affiliated::Test;

use JSON::PP ();

my $t = Affiliated::Test->new;

sub status { return JSON::PP::decode_json($t->get('/status')->{body}) }
sub target { my $r = $t->get("/r/$_[0]"); return $r->{status} == 302 ? ($r->{headers}{location} =~ m{^http://127\.0\.0\.1/([\w-]+)})[0] : $r->{status} }
sub questions { my ($n) = $t->redis('INFO', 'commandstats') =~ /cmdstat_mget:calls=(\d+)/; return $n || 0 }
sub to { my ($code, $page) = @_; $t->link(code => $code, url => "http://127.0.0.1/$page") }

$t->redis_start;
$t->nginx_start(workers => 2, http => "affiliate_address_rate off;\naffiliate_cache_valid 1h;\naffiliate_cache_negative 1h;");
$t->wait_until('subscription', sub { status()->{redis_connected}{subscribe} == 1 });

# --- no projection yet -------------------------------------------------------------------------------------------------

is(target('early'), 503, 'no epoch: a code is unknown, not absent');
to('early', 'early');
is(target('early'), 'early', 'and is asked for again at once');

# --- negatives ---------------------------------------------------------------------------------------------------------

is(target('none'), 404, 'none');
my $asked = questions();
is(target('none'), 404, 'none') for 1 .. 10;
is(questions(), $asked, 'negatives are cached, for all workers');
is(status()->{cache_negatives}, 1, 'and counted');
to('none', 'made');
is(target('none'), 404, 'still, as nobody told');
$t->redis('PUBLISH', 'aff:invalidate', 'link:none');
ok($t->wait_until('invalidation', sub { target('none') eq 'made' }), 'a message makes the new link known at once');

# --- invalidation by message -------------------------------------------------------------------------------------------

to($_, 'old') for qw(one two);
is(target($_), 'old', "$_ is cached") for qw(one two);
to($_, 'new') for qw(one two);
is(target($_), 'old', "$_ is cached") for qw(one two);
$t->redis('PUBLISH', 'aff:invalidate', 'link:one');
ok($t->wait_until('invalidation', sub { target('one') eq 'new' }), 'a message about one');
is(target('two'), 'old', 'is about that one only');
$t->redis('PUBLISH', 'aff:invalidate', $_) for '', 'link:', 'link', 'some-later-thing:two', 'link:' . 'x' x 5000, "link:\0\xff", 'key:two';
sleep 0.2;
is(target('two'), 'old', 'messages of other kinds are nothing');
$t->redis('PUBLISH', 'aff:invalidate', 'all');
ok($t->wait_until('invalidation', sub { target('two') eq 'new' }), 'a message about all');

# --- revoked key ---------------------------------------------------------------------------------------------------------

{
    my $key = $t->api_key;
    my $call = sub {
        return $t->call($key, { click_id => $t->click_id, order_id => 'C', status => 'approved', amount => '1', currency => 'NPR' })
            ->{status};
    };
    is($call->(), 202, 'a key');
    $t->api_key(%$key, revoked => 1, version => $key->{version} + 1);
    $t->redis('PUBLISH', 'aff:invalidate', "key:$key->{id}");
    ok($t->wait_until('revocation', sub { $call->() == 401 }), 'a revoked key is refused at once');
}

# --- invalidation by epoch: messages may have been missed --------------------------------------------------------------------

to('one', 'newer');
$t->redis('CLIENT', 'KILL', 'TYPE', 'pubsub');
ok($t->wait_until('a new subscription', sub { target('one') eq 'newer' }), 'a new subscription asks for all again');

{
    # Redis gone and back: what changed meanwhile is seen, what is gone from it is not forgotten before it says so.
    $t->redis_kill;
    is(target('one'), 'newer', 'Redis away: still known');
    $t->redis_restart(wipe => 1);
    to('one', 'newest');
    ok($t->wait_until('the new one', sub { target('one') eq 'newest' }), 'Redis back: what changed meanwhile is seen');
    $t->wait_until('subscription', sub { status()->{redis_connected}{subscribe} == 1 });
    ok($t->wait_until('two', sub { target('two') eq '404' }), 'and what is gone, once the projection is complete');
}

# --- a zone that is full -------------------------------------------------------------------------------------------------------

{
    $t->nginx_stop;
    my $out = $t->nginx_start(zone => '32k', fail => 1);
    my ($least) = ref $out ? () : $out =~ /zone "\w+:32k" is too small, it must be (\d+)k at least/;
    ok($least, 'eight pages are too few, and the message tells how many it takes') or diag $out;
    $t->write('error.log', '');
    $t->nginx_start(workers => 2, zone => ($least || 512) . 'k', http => "affiliate_address_rate off;\naffiliate_cache_negative 1h;");
    my %wrong;
    for my $round (1, 2) {
        for my $n (1 .. 200) {
            to("full-$n", "page-$n?" . 'x' x 600) if $round == 1;
            my $to = target("full-$n");
            $wrong{$to}++ if $to ne "page-$n";
        }
    }
    is(join(' ', sort keys %wrong), '', 'a full zone: each link leads to its page');
    my $s = status();
    cmp_ok($s->{cache_links}, '<', 200, 'not all of them fit');
    cmp_ok($s->{cache_evictions_total}, '>', 0, 'the oldest have made room');
    to('hot', 'hot');
    is(target('hot'), 'hot', 'one more');
    for my $n (1 .. 300) {
        target("guess-$n");
        target('hot') if $n % 20 == 0;
    }
    $asked = questions();
    is(target('hot'), 'hot', 'after many guesses of codes');
    is(questions(), $asked, 'a link in use is still cached');
    my $links = status()->{cache_links};
    cmp_ok($links, '>', $s->{cache_links} / 2, 'guesses have a share of their own');
    ok($t->nginx_reload, 'a full zone: reload');
    is(target('hot'), 'hot', 'a full zone: is kept');
}

done_testing();
