package Affiliated::Daemon;

# For t/daemon: batches of made-up records, and what became of them. Every function takes the harness first.
#
# produce($t, %options)     t/lib/produce with these options (a_b => 1 is --a-b=1); what it printed. start_ms is 15 minutes
#                           ago unless given, so that conversions ten minutes later are of the past
# midnight_ms($days)        the UTC midnight that today began with, so many days later
# drained($t, $streams)     waits until every entry of both channels is acknowledged
# clicks($t), conversions($t)    rows that are there
# clicks_are($t, $n, $name)      a test: so many, in so many different ids
# acknowledged($t, $made)   bits that are set for what produce() printed
# dead($t)                  {reason => count}
# status($t), value($t, $role, $name)    from the status socket
# raw($t, $key)             what is in a stream: [id, bytes] of each entry
# second($t, $name, %o)     another daemon, with a configuration of its own; ends with the test
# books_hold($t)            a test: audit finds nothing

use strict;
use warnings;

use Affiliated::Test ();
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
        for qw(produce midnight_ms drained clicks conversions clicks_are acknowledged dead status value raw second books_hold);
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

sub acknowledged
{
    my ($t, $made) = @_;
    my $bits = 0;

    $bits += $t->redis('BITCOUNT', "aff:ack:$made->{spool}:$_") for $made->{first_segment} .. $made->{last_segment};
    return $bits;
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
