# What somebody who may read and write every key in Redis can and can not do: acknowledgements, answers, replies of any size.

use Affiliated::Test;
use Affiliated::Daemon;

use Digest::SHA ();
use JSON::PP ();

my $t = Affiliated::Test->new;
my $master = $t->slurp($t->{keys});

sub stats { return JSON::PP::decode_json($t->get('/status')->{body}) }

sub waits { my $s = stats()->{spool_bytes}; return $s->{clicks} + $s->{conversions} }

# --- acknowledgements -----------------------------------------------------------------------------------------------------------

$t->redis_start;
$t->pg_start;
$t->daemon_start;
my $w = $t->world;
$t->wait_until('the projection', sub { $t->redis('EXISTS', "aff:link:$w->{link}", "aff:key:$w->{key}{id}") == 2 });
$t->daemon_stop;
$t->nginx_start(http => 'affiliate_address_rate off;', spool => 'segment=256k');

my %given;
for my $n (1 .. 400) {
    my ($id) = ($t->get("/r/$w->{link}?sub1=" . 'y' x 100)->{headers}{location} // '') =~ /affiliate_click_id=(\w+)/;
    $given{$id} = 1 if $id;
}
my ($click) = sort keys %given;
is($t->call($w->{key}, { click_id => $click, order_id => 'O-1', status => 'approved', amount => '10.00', currency => 'NPR' })->{status}, 202, 'an order');

# Of each batch that waits: channel, spool, segment, sequence.
sub batches
{
    return map {
        my ($channel, $spool, $segment, $sequence) = unpack 'x4 L< Q< Q< L<', $_->[1];
        [$channel, sprintf('%016x', $spool), $segment, $sequence]
    } map { raw($t, $_) } 'aff:clicks:0', 'aff:conversions:0';
}

# The gauges lag behind: what the spool must hold is what is in the streams, to the byte.
sub shipped
{
    my ($records, $bytes) = (0, 0);

    for my $entry (map { raw($t, $_) } 'aff:clicks:0', 'aff:conversions:0') {
        $records += unpack 'x28 L<', $entry->[1];
        $bytes += length($entry->[1]) - 48;
    }
    return ($records, $bytes);
}

$t->wait_until('all of it in Redis', sub { my ($records, $bytes) = shipped(); $records == 401 && waits() == $bytes });
my @batches = batches();
cmp_ok(scalar @batches, '>', 2, 'batches wait');
my (undef, $waiting) = shipped();

my %forged = (
    'all bits, as of an acknowledgement without a MAC' => sub { ("aff:ack:$_[1]:$_[2]", "\xff" x 64) },
    'all bits' => sub { ("aff:acked:$_[1]:$_[2]", "\xff" x 4096) },
    'ones' => sub { ("aff:acked:$_[1]:$_[2]", "\1\0\0\0\0\0\0\0" x 512) },
    'the MACs of the batches themselves' => sub {
        my @macs = map { substr $_->[1], 40, 8 } raw($t, $_[0] == 1 ? 'aff:clicks:0' : 'aff:conversions:0');
        return ("aff:acked:$_[1]:$_[2]", join '', @macs);
    },
    'seals under another master key' => sub {
        $t->write($t->{keys}, 'k1 ' . 'ab' x 32 . "\n");
        my $seals = pack 'Q<*', map { seal($t, $_[0], $_[1], $_[2], $_) } 0 .. 63;
        $t->write($t->{keys}, $master);
        return ("aff:acked:$_[1]:$_[2]", $seals);
    },
    "another sequence's seals" => sub { ("aff:acked:$_[1]:$_[2]", pack 'Q<*', map { seal($t, $_[0], $_[1], $_[2], $_ + 1) } 0 .. 63) },
    "another segment's" => sub { ("aff:acked:$_[1]:$_[2]", pack 'Q<*', map { seal($t, $_[0], $_[1], $_[2] + 1, $_) } 0 .. 63) },
    "another spool's" => sub { ("aff:acked:$_[1]:$_[2]", pack 'Q<*', map { seal($t, $_[0], '0123456789abcdef', $_[2], $_) } 0 .. 63) },
    "another channel's" => sub { ("aff:acked:$_[1]:$_[2]", pack 'Q<*', map { seal($t, 3 - $_[0], $_[1], $_[2], $_) } 0 .. 63) },
    'half a seal' => sub { ("aff:acked:$_[1]:$_[2]", substr pack('Q<', seal($t, $_[0], $_[1], $_[2], 0)), 0, 7) },
);

# Every segment is asked about again within two seconds; that it was, Redis tells.
sub asked
{
    my ($n) = $t->redis('INFO', 'commandstats') =~ /cmdstat_getrange:calls=(\d+)/;
    return $n // 0;
}

for my $what (sort keys %forged) {
    my %keys = map { $forged{$what}->(@$_) } @batches;
    $t->redis('SET', $_, $keys{$_}) for sort keys %keys;
    my $before = asked();
    my $names = keys %{ { map { ("$_->[1]:$_->[2]" => 1) } @batches } };
    $t->wait_until('nginx has asked twice', sub { asked() >= $before + 2 * $names });
    is(waits(), $waiting, "$what: the spool keeps everything");
    $t->redis('DEL', sort keys %keys);
}
like($t->error_log, qr/acknowledgement of batch \d+ in Redis' "aff:acked:[0-9a-f]{16}:\d+" was not made with a known key/, 'and it is said');

# One genuine seal releases one batch and no more.
{
    my ($channel, $spool, $segment, $sequence) = @{ $batches[0] };
    $t->redis('SETRANGE', "aff:acked:$spool:$segment", 8 * $sequence, pack 'Q<', seal($t, @{ $batches[0] }));
    my ($first) = raw($t, $channel == 1 ? 'aff:clicks:0' : 'aff:conversions:0');
    my $left = $waiting - (length($first->[1]) - 48);
    $t->wait_until('one batch less', sub { waits() < $waiting });
    is(waits(), $left, 'and only that one');
    $t->redis('DEL', "aff:acked:$spool:$segment");
}

# After all that, everything gets to PostgreSQL.
$t->daemon_start;
$t->wait_until('PostgreSQL has all of it', sub { $t->value('select count(*) from affiliate.click') >= keys %given && conversions($t) == 1 });
$t->wait_until('and the spool lets it go', sub { waits() == 0 });
unlike($t->daemon_log, qr/\bERROR\b/, 'no error in the daemon');

# --- a master key that is rotated: the daemon knows the new one first, then nginx alone --------------------------------------------

{
    my $new = 'k2 ' . 'cd' x 32 . "\n";
    $t->daemon_stop;
    $t->get("/r/$w->{link}") for 1 .. 20;
    $t->wait_until('clicks wait', sub { waits() > 0 });
    $t->write($t->{keys}, $new . $master);
    $t->daemon_start;
    $t->wait_until('the daemon has the new key, nginx has not: the spool lets go', sub { waits() == 0 });
    $t->nginx_reload;
    $t->get("/r/$w->{link}") for 1 .. 20;
    $t->wait_until('both have it', sub { waits() == 0 && $t->redis('XLEN', 'aff:clicks:0') > 0 });
}

# --- a call that was never taken is not answered as a replay -----------------------------------------------------------------------

sub name { return "aff:idem:$w->{key}{id}:" . substr Digest::SHA::sha256_hex($_[0]), 0, 32 }

my $n = 0;
my %answer = (
    'a hash without a MAC' => sub { $_[1] },
    'another hash' => sub { 'a' x 32 },
    'a MAC of zeros' => sub { $_[1] . '0' x 16 },
    'a MAC for another Idempotency-Key' => sub { $_[1] . unpack 'H16', pack 'Q<', mac($t, 'recall', name('x') . $_[1]) },
    'a MAC for another body' => sub { $_[1] . unpack 'H16', pack 'Q<', mac($t, 'recall', $_[0] . 'b' x 32) },
    'a MAC under another label' => sub { $_[1] . unpack 'H16', pack 'Q<', mac($t, 'ack', $_[0] . $_[1]) },
    'nothing' => sub { '' },
    'much' => sub { 'f' x 100_000 },
);
for my $what (sort keys %answer) {
    my $order = 'R-' . ++$n;
    my $body = JSON::PP::encode_json({ click_id => $click, order_id => $order, status => 'approved', amount => '10.00', currency => 'NPR' });
    $t->redis('SET', name($order), $answer{$what}->(name($order), substr Digest::SHA::sha256_hex($body), 0, 32));
    my $r = $t->call($w->{key}, $body, idempotency_key => $order);
    is($r->{status}, 202, "$what: the call is taken");
    ok(!$r->{headers}{'idempotent-replayed'}, 'and no replay');
}
$t->wait_until('their orders', sub { $t->value("select count(*) from affiliate.order_fact where order_id like 'R-%'") == $n });

done_testing();
