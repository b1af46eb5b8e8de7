# Rules that could be read in two ways, each settled: a history of a few events in a world of one campaign, what the model makes of
# it, and the same from PostgreSQL.

use strict;
use warnings;

use Affiliated::History;
use Affiliated::Test;

my $DAY = 86_400_000_000;
my $t = Affiliated::Test->new;

$t->pg_start(conf => 'fsync = off');
my $base = $t->value('select (extract(epoch from now()) * 1000000)::bigint');
my $serial = 0;

# Events are [status, seconds after the click, amount, currency, refund_id, items]; the click was three days ago.
sub agrees
{
    my ($what, $terms, $events, $expected) = @_;
    my $h = Affiliated::History->new(test => $t, seed => 1000 + ++$serial, base => $base);
    my $at = int(($base - 3 * $DAY) / 1000);
    my $id = sprintf '%08x-%04x-7000-8000-000000000001', $at >> 16, $at & 0xffff;
    my @lines = join "\t", 'C', $id, $at, 111, 1, 0;
    my $n = 0;

    $h->{merchants} = { 1 => {} };
    $h->{affiliates} = { 101 => {} };
    $h->{campaigns} = { 11 => { merchant => 1, currency => 'NPR' } };
    $h->{links} = { 111 => { merchant => 1, campaign => 11, affiliate => 101 } };
    $h->{terms} = [{ terms => 1, campaign => 11, valid_from => $base - 10 * $DAY, rate_basis_points => undef, rate_flat_minor => undef,
        fee_basis_points => 0, fee_flat_minor => 0, hold => 0, window => 10 * $DAY, minimum => 0, products => {}, %$terms }];
    for my $event (@$events) {
        my ($status, $after, $amount, $currency, $refund, $items) = @$event;
        my $received = $at * 1000 + $after * 1_000_000;
        push @lines, join("\t", 'E', 1, 1, 'k' . ++$n, 0, "b$n", $received, '-', $id, $at, 'O-1', $status,
            map { $_ // '-' } $amount, defined $amount ? $currency // 'NPR' : undef, $refund, $items), 'B';
    }
    my @differences = $h->run(\@lines, 1);
    my $o = $h->{model}->orders->{'1/O-1/t'};
    is(join("\n", @differences), '', "$what: the same in both") or return;
    is(join(' ', $o->{problem} // $o->{outcome}, @$o{qw(commission fee)}, $o->{payable} ? 'payable' : 'pending'), $expected, $what);
}

# One half of 1 % of the commission and one half of the flat part: rounded apart, each would be nothing.
agrees('the fee is rounded once, as a whole', { rate_basis_points => 10000, fee_basis_points => 100, fee_flat_minor => 1 },
    [['approved', 60, 100], ['refunded', 90, 50, 'NPR', 'r']], 'accepted 50 1 payable');
agrees('halves go to the even one', { rate_basis_points => 500, fee_basis_points => 5000 }, [['approved', 60, 50]], 'accepted 2 1 payable');
agrees('a refund in another currency is a review', { rate_basis_points => 1000 },
    [['approved', 60, 1000], ['refunded', 90, 300, 'USD', 'r']], 'refund_currency 100 0 pending');
agrees('approved without an amount: a flat rate is paid in full', { rate_flat_minor => 70, fee_basis_points => 1000 },
    [['approved', 60]], 'accepted 70 7 payable');
agrees('approved without an amount: a percentage is a review', { rate_basis_points => 1000 }, [['approved', 60]], 'missing_amount 0 0 pending');
agrees('a flat rate counts for a line of zero', { rate_flat_minor => 70, products => { sku => { TEA => [1000, undef] } } },
    [['approved', 60, 1000, 'NPR', undef, 'TEA::1:1000,POT::1:0']], 'accepted 170 0 payable');
agrees('and not for an order whose lines have rates of their own', { rate_flat_minor => 70, products => { sku => { TEA => [1000, undef] } } },
    [['approved', 60, 1000, 'NPR', undef, 'TEA::1:1000']], 'accepted 100 0 payable');
agrees('an order of nothing earns a flat rate', { rate_flat_minor => 70, fee_flat_minor => 3 }, [['approved', 60, 0]], 'accepted 70 3 payable');
agrees('no hold: payable at once', { rate_basis_points => 1000 }, [['approved', 60, 1000]], 'accepted 100 0 payable');
agrees('a hold that is not over', { rate_basis_points => 1000, hold => 30 * $DAY }, [['approved', 60, 1000]], 'accepted 100 0 pending');
agrees('a refund before the approval', { rate_basis_points => 1000 },
    [['refunded', 50, 300, 'NPR', 'r'], ['approved', 60, 1000]], 'accepted 70 0 payable');
agrees('a refund before any report', { rate_basis_points => 1000 }, [['refunded', 50, 300, 'NPR', 'r']], 'accepted 0 0 pending');
agrees('cancelled first, then approved: cancelled', { rate_basis_points => 1000 },
    [['cancelled', 50], ['approved', 60, 1000]], 'accepted 0 0 pending');
agrees('refunds take no more than there was', { rate_basis_points => 1000 },
    [['approved', 60, 1000], ['refunded', 70, 800, 'NPR', 'a'], ['refunded', 80, 800, 'NPR', 'b']], 'accepted 0 0 pending');
agrees('the most that an order may earn, fee included', { rate_basis_points => 5000, fee_basis_points => 10000 },
    [['approved', 60, '9000000000000']], 'accepted 4500000000000 4500000000000 payable');
agrees('more than that is nothing', { rate_basis_points => 5000, fee_basis_points => 10000 },
    [['approved', 60, '9000000000002']], 'above_limit 0 0 pending');
agrees('the greatest amount, at 100 %, with a fee as great', { rate_basis_points => 10000, fee_basis_points => 10000 },
    [['approved', 60, '99999999999999999']], 'above_limit 0 0 pending');
agrees('what was kept of it counts', { rate_basis_points => 1, fee_basis_points => 3333, fee_flat_minor => 7 },
    [['approved', 60, '99999999999999999'], ['refunded', 70, '33333333333333333', 'NPR', 'r']],
    'accepted 6666666666667 2222000000005 payable');
agrees('refunds beyond the greatest amount', { rate_basis_points => 1000 },
    [['approved', 60, '1000'], map { ['refunded', 70 + $_, '99999999999999999', 'NPR', "r$_"] } 1 .. 3], 'accepted 0 0 pending');
agrees('pieces at a flat rate, beyond any integer', { rate_basis_points => 0, fee_basis_points => 10000, fee_flat_minor => '99999999999999999',
    products => { sku => { TEA => [undef, '99999999999999999'] } } },
    [['approved', 60, 1000, 'NPR', undef, 'TEA::2147483647:1000']], 'above_limit 0 0 pending');
agrees('a discount on lines of the greatest amount', { rate_basis_points => 333, products => { sku => { TEA => [7777, undef] } } },
    [['approved', 60, '9999999999999', 'NPR', undef, 'TEA::1:99999999999999999,POT::1:99999999999999998']],
    'accepted 4055000000000 0 payable');
done_testing();
