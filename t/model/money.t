# Random histories of orders through the real SQL: the books are those that the model predicts, after every batch.

use strict;
use warnings;

use Affiliated::History;
use Affiliated::Test;

my ($HISTORIES, $EVENTS) = (3, 800);

my $t = Affiliated::Test->new;
my $base;

$t->pg_start(conf => 'fsync = off');
$base = $t->value('select (extract(epoch from now()) * 1000000)::bigint');
for my $seed (map { $t->{seed} + $_ } 1 .. $HISTORIES) {
    my $h = Affiliated::History->new(test => $t, seed => $seed, base => $base);
    my @lines = $h->generate($EVENTS);
    my @differences = $h->run(\@lines, 10);

    splice @differences, 20 if @differences > 20;
    is(join("\n", @differences), '', "history $seed") or diag("make model SEED=$seed EVENTS=$EVENTS HISTORY=$EVENTS shrinks it");
}

# A machine that can't see a difference shows nothing: here it has to see three.
{
    my $h = Affiliated::History->new(test => $t, seed => $t->{seed}, base => $base, again => 1);
    my @lines = $h->generate(200);
    my %made = (
        'a fee of another rate' => sub { $_->{fee_basis_points} += 100 for @{ $h->{terms} } },
        'a window that is shorter' => sub { $_->{window} = 1 for @{ $h->{terms} } },
        'a hold that is longer' => sub { $_->{hold} += 400 * 86_400_000_000 for @{ $h->{terms} } },
    );

    for my $what (sort keys %made) {
        my @kept = map { {%$_} } @{ $h->{terms} };
        $h->_open;
        $made{$what}->();
        ok(scalar $h->run(\@lines), "found: $what");
        $h->{terms} = \@kept;
    }
}
done_testing();
