package Affiliated::Daemon;

# For t/daemon: batches of made-up records, and what became of them. Every function takes the harness first.
#
# produce($t, %options)     t/lib/produce with these options (a_b => 1 is --a-b=1); what it printed. start_ms is 15 minutes
#                           ago unless given, so that conversions ten minutes later are of the past
# midnight_ms($days)        the UTC midnight that today began with, so many days later
# drained($t, $streams)     waits until every entry of both channels is acknowledged
# clicks($t), conversions($t)    rows that are there
# clicks_are($t, $n, $name)      a test: so many, in so many different ids
# acknowledged($t, $made)   batches of what produce() printed that have their seal
# mac($t, $label, $message) by the key file's first key, computed here; a number
# seal($t, $channel, $spool, $segment, $sequence)    what says that PostgreSQL has this batch
# dead($t)                  {reason => count}
# status($t), value($t, $role, $name)    from the status socket
# raw($t, $key)             what is in a stream: [id, bytes] of each entry
# second($t, $name, %o)     another daemon, with a configuration of its own; ends with the test
# books_hold($t)            a test: audit finds nothing

use strict;
use warnings;

use Affiliated::Test ();
use Digest::SHA ();
use JSON::PP ();
use Test::More ();
use Time::HiRes qw(sleep time);

sub import
{
    my $caller = caller;

    strict->import;
    warnings->import;
    no strict 'refs';
    *{"${caller}::$_"} = \&$_
        for qw(produce midnight_ms drained clicks conversions clicks_are acknowledged mac seal dead status value raw second books_hold);
}

sub _options
{
    my ($t, %o) = @_;

    %o = (key_file => $t->{keys}, redis => "unix:$t->{redis_socket}", start_ms => int(time() * 1000) - 900_000, %o);
    return map { (my $name = $_) =~ tr/_/-/; defined $o{$_} ? "--$name=$o{$_}" : "--$name" } sort keys %o;
}

sub produce
{
    my ($t, %o) = @_;
    my ($code, $out, $err) = $t->run("$t->{tools}/produce", _options($t, %o));

    die "produce: $err" if $code;
    return JSON::PP::decode_json($out);
}

sub midnight_ms { my $days = shift || 0; return (int(time() / 86400) + $days) * 86_400_000 }

sub _pending
{
    my ($t, $streams) = @_;
    my $left = 0;

    for my $channel (qw(clicks conversions)) {
        for my $n (0 .. ($streams || 1) - 1) {
            my $key = "aff:$channel:$n";
            next unless $t->redis('EXISTS', $key);
            my $groups = $t->redis('XINFO', 'GROUPS', $key);
            return 1 unless @$groups;
            my %group = @{ $groups->[0] };
            my $last = $t->redis('XREVRANGE', $key, '+', '-', 'COUNT', 1);
            $left += $group{pending};
            $left++ if @$last && $last->[0][0] ne $group{'last-delivered-id'};
        }
    }
    return $left;
}

sub drained
{
    my ($t, $streams, $seconds) = @_;
    return $t->wait_until('the streams are drained', sub { !_pending($t, $streams) }, $seconds || 25);
}

sub clicks { return $_[0]->value('select count(*) from affiliate.click') }
sub conversions { return $_[0]->value('select count(*) from affiliate.conversion') }

sub clicks_are
{
    my ($t, $n, $name) = @_;
    return Test::More::is($t->value("select count(*) || ' ' || count(distinct id) from affiliate.click"), "$n $n", $name);
}

# SipHash-2-4 of a message, as a number.
sub _siphash
{
    my ($key, $message) = @_;
    my ($k0, $k1) = unpack 'Q<2', $key;
    no warnings 'portable';
    my @v = ($k0 ^ 0x736f6d6570736575, $k1 ^ 0x646f72616e646f6d, $k0 ^ 0x6c7967656e657261, $k1 ^ 0x7465646279746573);
    my $length = length $message;
    my $add = sub { use integer; my ($i, $j) = @_; $v[$i] += $v[$j] };
    my $turn = sub { my ($i, $n) = @_; $v[$i] = $v[$i] << $n | $v[$i] >> 64 - $n };
    my $round = sub {
        for (1 .. $_[0]) {
            $add->(0, 1); $turn->(1, 13); $v[1] ^= $v[0]; $turn->(0, 32);
            $add->(2, 3); $turn->(3, 16); $v[3] ^= $v[2];
            $add->(0, 3); $turn->(3, 21); $v[3] ^= $v[0];
            $add->(2, 1); $turn->(1, 17); $v[1] ^= $v[2]; $turn->(2, 32);
        }
    };

    $message .= "\0" x (7 - $length % 8) . chr($length & 255);
    for my $word (unpack 'Q<*', $message) {
        $v[3] ^= $word;
        $round->(2);
        $v[0] ^= $word;
    }
    $v[2] ^= 255;
    $round->(4);
    return $v[0] ^ $v[1] ^ $v[2] ^ $v[3];
}

sub mac
{
    my ($t, $label, $message) = @_;
    my ($hex) = $t->slurp($t->{keys}) =~ /^\w+[ \t]+([0-9a-fA-F]{64})/m;
    my $key = substr Digest::SHA::hmac_sha256("$label\1", Digest::SHA::hmac_sha256(pack('H*', $hex), "\0" x 32)), 0, 16;

    return _siphash($key, $message);
}

sub seal
{
    my ($t, $channel, $spool, $segment, $sequence) = @_;
    my $id = reverse pack 'H16', $spool;

    return mac($t, 'ack', pack('L<L<', $channel, $sequence) . $id . pack('Q<', $segment));
}

sub acknowledged
{
    my ($t, $made) = @_;
    my $channel = $made->{channel} eq 'clicks' ? 1 : 2;
    my $count = 0;

    for my $segment ($made->{first_segment} .. $made->{last_segment}) {
        my @seals = unpack 'Q<*', $t->redis('GET', "aff:acked:$made->{spool}:$segment") // '';

        for my $n (0 .. $#seals) {
            next unless $seals[$n];
            $seals[$n] == seal($t, $channel, $made->{spool}, $segment, $n) ? $count++
                : Test::More::fail("the seal of batch $n of $made->{spool}:$segment is not its own");
        }
    }
    return $count;
}

sub dead { return { map { $_->[0] => $_->[1] } $_[0]->rows('select reason, count(*) from affiliate.dead_letter group by 1') } }

sub status
{
    my $t = shift;
    my ($code, $out) = $t->cli('status', '--json');

    return eval { JSON::PP::decode_json($out) } || { roles => {} };
}

sub value { my ($t, $role, $name) = @_; return status($t)->{roles}{$role}{$name} || 0 }

sub raw
{
    my ($t, $key) = @_;
    return map { [$_->[0], $_->[1][1]] } @{ $t->redis('XRANGE', $key, '-', '+') };
}

sub second
{
    my ($t, $name, %o) = @_;
    my $socket = $t->path("state/$name.sock");
    my $path = $t->path("$name.conf");

    $o{conf}{run} = { consumer => $name, status_socket => $socket, claim_idle => '10s', %{ $o{conf}{run} || {} } };
    rename $t->daemon_conf(%o), $path or die "$path: $!\n";
    unlink $socket;
    $t->_spawn($name, { user => 'postgres', env => $t->_sanitizer_env(0), log => $t->path("$name.log") },
        $t->_affiliated, '-c', $path, 'run');
    $t->wait_until("the daemon $name", sub { -S $socket });
    return $name;
}

sub books_hold
{
    my ($t, $name) = @_;
    my ($code, $out, $err) = $t->cli('audit');

    return Test::More::is($code, 0, $name || 'the books hold') || Test::More::diag("$out$err");
}

1;
