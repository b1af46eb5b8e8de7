# Messages on the subscription that are none: hiredis asserts what they look like, which must not be the worker's end, and
# takes in what never ends.

use Affiliated::Test;

use JSON::PP ();

my $t = Affiliated::Test->new;

sub bulk { return '$' . length($_[0]) . "\r\n$_[0]\r\n" }

my $good = "*3\r\n" . bulk('subscribe') . bulk('aff:invalidate') . ":1\r\n";
my @bad = (
    # A megabyte of a bulk string that is to have more of them. It is the first, as only the first is logged.
    $good . "\$900000000\r\n" . 'x' x 1_200_000,
    $good . "*0\r\n",
    $good . "*1\r\n" . bulk('message'),
    $good . "*2\r\n" . bulk('message') . bulk('aff:invalidate'),
    $good . "*2\r\n" . bulk('unsubscribe') . bulk('aff:invalidate'),
    $good . "*3\r\n:1\r\n" . bulk('aff:invalidate') . bulk('all'),
    $good . "*3\r\n\$-1\r\n" . bulk('aff:invalidate') . bulk('all'),
    $good . "*3\r\n*0\r\n" . bulk('aff:invalidate') . bulk('all'),
    $good . "*3\r\n" . bulk('message') . ":1\r\n" . bulk('all'),
    $good . "*3\r\n" . bulk('message') . "\$-1\r\n" . bulk('all'),
    $good . "*3\r\n+message\r\n" . bulk('aff:invalidate') . bulk('all'),
    $good . "*3\r\n" . bulk('unsubscribe') . bulk('aff:invalidate') . bulk('all'),
    $good . "*3\r\n" . bulk('unsubscribe') . bulk('aff:invalidate') . ":0\r\n",
    $good . "*3\r\n" . bulk('subscribe') . bulk('aff:other') . ":1\r\n",
    $good . "*3\r\n" . bulk('message') . bulk('aff:other') . bulk('all'),
    $good . "*4\r\n" . bulk('pmessage') . bulk('aff:*') . bulk('aff:invalidate') . bulk('all'),
    $good . "*3\r\n" . bulk('') . bulk('') . bulk(''),
    $good . ":1\r\n",
    $good . "+OK\r\n",
    $good . "\$-1\r\n",
    $good . "-ERR\r\n",
    "*-1\r\n",
    "*3\r\n" . bulk('message') . "*1\r\n" . bulk('aff:invalidate') . bulk('all'),
);
my $subscribed = 0;
my $stub = $t->stub(reply => sub { return $_[0][0] eq 'SUBSCRIBE' ? $bad[$subscribed++] : undef });

$t->nginx_start(redis => $stub->address, http => 'affiliate_redis_reconnect 5ms 20ms; affiliate_address_rate off;');
my $worker = $t->wait_until('a worker', sub { ($t->nginx_workers)[0] });

ok($t->wait_until('a good subscription', sub { @bad < grep { $_->[0] eq 'SUBSCRIBE' } $stub->commands }, 60), 'each is the end of its connection, and the next one comes');
is(join(' ', $t->nginx_workers), $worker, 'the worker lives');
like($t->error_log, qr/affiliate subscribe: lost redis \S+ too large a reply/, 'what does not end is ended');
$t->wait_until('it is in force', sub { JSON::PP::decode_json($t->get('/status')->{body})->{redis_connected}{subscribe} });
$t->link(code => 'abc', url => 'http://127.0.0.1/one');
$t->wait_until('the link', sub { ($t->get('/r/abc')->{headers}{location} // '') =~ m{/one\?} });
$t->link(code => 'abc', url => 'http://127.0.0.1/two');
$t->redis('PUBLISH', 'aff:invalidate', 'link:abc');
ok($t->wait_until('the other', sub { ($t->get('/r/abc')->{headers}{location} // '') =~ m{/two\?} }), 'and real messages are heard');

# Its PING fails, and more comes in the same breath: nothing is subscribed to yet, and nobody waits for it.
my $pings = 0;
my $rude = $t->stub(reply => sub { return $_[0][0] eq 'PING' && $pings++ < 12 ? "-ERR no\r\n+OK\r\n*0\r\n" : undef });

$t->nginx_reload(redis => $rude->address, http => 'affiliate_redis_reconnect 5ms 20ms; affiliate_address_rate off;');
($worker) = $t->nginx_workers;
ok($t->wait_until('a good one', sub { grep { $_->[0] eq 'SUBSCRIBE' } $rude->commands }), 'after a PING that fails, and more');
is(join(' ', $t->nginx_workers), $worker, 'the worker lives');

done_testing();
