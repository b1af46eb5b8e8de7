#!/usr/bin/perl

# The soak's machinery: what it calls growing, and that a short run sees what leaks.

use lib 't/lib';
use Affiliated::Soak;
use Affiliated::Test;

# --- verdicts of made-up series ----------------------------------------------------------------------------------------

my %series = (title => 'x', share => 0.05, allow => 10);

sub verdict { my $at = 0; return Affiliated::Soak::verdict(\%series, map { [5 * $at++, $_] } @_) }

is(verdict((1000) x 100)->{grows}, 0, 'what stays is flat');
is(verdict(map { 1000 + 400 * ($_ % 7) } 1 .. 100)->{grows}, 0, 'what goes up and down is flat');
is(verdict((map { 40 * $_ } 1 .. 25), (1000) x 75)->{grows}, 0, 'what grows at the start only is flat');
is(verdict((1000) x 60, (9000) x 10, (1000) x 30)->{grows}, 0, 'a peak is flat');
is(verdict(reverse map { 1000 + 10 * $_ } 1 .. 100)->{grows}, 0, 'what shrinks is flat');

# From the middle of the second quarter to that of the last are 50 samples.
is(verdict(map { 1000 + 1.1 * $_ } 1 .. 100)->{grows}, 0, 'a drift within share and allowance is flat');
is(verdict(map { 1000 + 1.5 * $_ } 1 .. 100)->{grows}, 1, 'a little more of a drift is not');
is(verdict(map { 1000 + 1.5 * $_ + 400 * ($_ % 7) } 1 .. 1400)->{grows}, 1, 'a drift is seen below what goes up and down');
is(verdict((1000) x 70, (1100) x 30)->{grows}, 1, 'a late step grows');

is(sprintf('%.3f', verdict(map { 1000 + $_ } 1 .. 100)->{slope}), '720.000', 'one in five seconds is 720 an hour');
is(sprintf('%.3f', verdict(map { $_ % 10 ? 1000 + $_ : 5000 } 1 .. 1000)->{slope}), '720.000', 'whatever some samples say');
is(verdict((1000) x 11), undef, 'too few tell nothing');

# Each life begins small: only what grows within lives is growth.
sub lives
{
    my ($grows, $kind) = @_;
    my @samples = map { { at => $_, m => { int($_ / 40) => 1000 + $grows * ($_ % 40), $kind ? ("$kind 9" => 500 + $_) : () } } } 0 .. 199;
    return Affiliated::Soak::_lives({ %series, name => 'm' }, @samples);
}

is(lives(0)->{grows} . lives(0)->{lives}, '05', 'five lives of one size');
is(lives(10)->{grows}, 1, 'lives that grow, with a new one each time that it is too much');
is(lives(0, 'other')->{grows} . lives(0, 'other')->{kind}, '1other', 'of several kinds the one that grows');

# --- a short run -------------------------------------------------------------------------------------------------------

my (@leaked, $t);
my $soak = Affiliated::Soak->begin(seconds => 8, interval => 0.5, rate => 200, orders => 50, each => sub {
    my $sample = shift;

    push @leaked, IO::Socket::UNIX->new(Peer => $t->{redis_socket}) || die "Redis: $!\n";
    $sample->{leak} = @leaked;
});
$t = $soak->{t};
$soak->series({ name => 'leak', column => 'leak', share => 0, allow => 4, title => 'leak' });
$soak->run;

is_deeply([$soak->settle], [], 'what was answered is there, once, and the books hold');
my %verdict = map { $_->{series}{name} => $_ } $soak->verdicts;
is($verdict{leak}{grows}, 1, 'what is kept open grows');
is($verdict{redis_clients}{grows}, 1, 'and so do the connections of Redis');
is($verdict{links}{grows}, 0, 'the links do not');
is($verdict{pg_connections}{grows}, 0, 'nor those of PostgreSQL');

my @empty = grep { my $name = $_; !grep { my $v = $_->{$name}; ref $v ? %$v : $v } @{ $soak->{samples} } }
    map { $_->{name} } @{ $soak->{series} };
is_deeply(\@empty, [], 'every series has figures');
cmp_ok($soak->{count_of}{$_} || 0, '>', 0, "$_: it was done") for 'reload', 'worker killed', 'SIGHUP', 'link changed', 'old day';

done_testing();
