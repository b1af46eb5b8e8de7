package Affiliated::Model;

# The auditor: a second model of the rules, which predicts what PostgreSQL must hold of every order and account. It is written
# from the design (events become facts by their values, facts and terms become a position), not from the functions in sql/: where
# both agree, two independent readings of the rules do.
#
#   my $m = Affiliated::Model->new(
#       merchants  => { ID => { suspended => [[from, to], ...] } },
#       campaigns  => { ID => { merchant, currency, suspended } },
#       affiliates => { ID => { suspended } },
#       links      => { ID => { merchant, campaign, affiliate } },
#       terms      => [{ terms, campaign, valid_from, rate_basis_points | rate_flat_minor, fee_basis_points, fee_flat_minor,
#                        hold, window, minimum, products => { sku => { VALUE => [bp, flat] }, category => {...} } }],
#       kept_since => the beginning of the oldest day whose clicks are kept);
#   $m->click({ id, at_ms, link | merchant campaign affiliate, livemode, verdict });     a click that PostgreSQL has now
#   $m->event({ merchant, livemode, key, position, body, received_us | received_ms, occurred_us, click_id, clicked_ms, order_id,
#               status, amount, currency, refund_id, items => [{ sku, category, quantity, amount }] });
#                                    what becomes of an accepted event: applied, waiting, duplicate or dead
#   $m->resolve($give_up)            conversions whose click has come count; with true, all that wait do, without a click
#   $m->by_hand({ merchant, livemode, order_id, status, amount, currency, refund_id, occurred_us })
#                                    what becomes of it: applied, unchanged or refused
#   $m->review(merchant, order_id, livemode, 'accept' | 'reject')
#   $m->pay(merchant, affiliate, currency, livemode)      how much was payable: it is paid now
#   $m->orders                       { "merchant/order/t or f" => facts and what follows }
#   $m->accounts($now)               { "merchant/owner/id/kind/currency/t or f" => balance, those that are not zero }
#   $m->touched                      the orders that an event named or the clock released since this was last asked
#   compare($m, $orders, $accounts, $now, $keys)      every row that differs, as text: rows of $ORDERS and $ACCOUNTS, of all orders
#                                    that the model knows or those in $keys; what the clock released is always among these
#
# Times are microseconds since 1970, spans microseconds, amounts minor units. A verdict is its number in affiliate.click.
# Accounts are those after release_holds() has released all that is due at that time.
#
# Where the design is silent, these were read from the README, the comments of the schema, the sentences of the reasons, and
# the expectations of t/sql:
#   read from the tests: an event counts at occurred_at, or at its reception if occurred_at lies after that or before the click.
#   read from the tests: a click of the other mode or of another merchant is told at once, one before the oldest kept day, too;
#       only an id that could still arrive makes its event wait.
#   read from the tests: which bytes a key stood for first decides: the same again is a duplicate, others are a dead letter, also
#       at another position of the key. Each mode has keys of its own.
#   read from the tests: of a refund told twice with two amounts, the later report counts; without refund_id each key is one.
#   read from the tests: the last instant of the window counts; so does the first after the minimum.
#   read from the tests: a SKU's rate goes before its category's and that before the campaign's; a flat product rate counts by
#       piece; what the amount has beyond the lines earns the campaign's rate; a discount scales percentages, not flat rates.
#   read from the schema's comments: a campaign's flat rate counts once, if any part of an order with items falls to it, be it
#       worth nothing; the flat part of the fee shrinks with what was kept; refunds never take more than there was; an order of
#       unknown amount earns a flat rate only.
#   read from the differences that it found, as the design can be read both ways: the fee is rounded once, as the commission is; a
#       refund in another currency can't be taken from the amount, so it makes a review and is left out of the sum.
#   read from the reasons: which problem wins: the order of the sentences.
#   read from the tests: a review accrues and doesn't mature; its decision settles what was doubtful, not what is rejected by rule.
#   read from the schema's comments: what would earn more than $LIMIT, fee included, is rejected, whoever reviewed it; what is rejected
#       already keeps its reason. Refunds are summed to the greatest amount there is.
#   read from the tests: approved without an amount is a review, where the rate needs one; what was only cancelled or
#       refunded so far earns nothing.

#   read from the sentences of refusals by hand: what is so already changes nothing; cancelled, returned and refunded whole are final;
#       what is rejected by rule stays so, but a rejected review can come to nothing, too, and one above the limit be put right;
#       nothing is before the first report, and no other amount before the last one; a refund's id stands for one amount.

use strict;
use warnings;

use Exporter 'import';
use List::Util qw(max);
use Math::BigInt;

our @EXPORT_OK = qw($ACCOUNTS $ORDERS compare half_even order_key);

my @VERDICT = (undef, undef, 'suspect_click', 'prefetch_click', 'preview_click', 'bot_click');
my $LIMIT = 9_000_000_000_000;
my $GREATEST = 99_999_999_999_999_999;    # amount of an event
my %IS_REVIEW = map { $_ => 1 } qw(duplicate_order suspect_click refund_currency missing_amount);

sub new
{
    my ($class, %o) = @_;
    my %terms;

    push @{ $terms{ $_->{campaign} } }, $_ for sort { $a->{valid_from} <=> $b->{valid_from} } @{ $o{terms} };
    return bless { %o, terms => \%terms, click => {}, key => {}, order => {}, waiting => {}, due => {}, clock => 0, balance => {},
        touched => {}, counts => {} }, $class;
}

sub order_key { my ($merchant, $order, $livemode) = @_; return join '/', $merchant, $order, $livemode ? 't' : 'f' }

# numerator / denominator to the nearest integer, halves to the even one; each is a list of factors.
sub half_even
{
    my ($n, $d) = @_;
    my ($estimate_n, $estimate_d) = (1, 1);

    $estimate_n *= $_ for @$n;
    $estimate_d *= $_ for @$d;
    if ($estimate_n < 2**52 && $estimate_d < 2**52) {
        my $rest = $estimate_n % $estimate_d;
        my $whole = ($estimate_n - $rest) / $estimate_d;
        $whole += 2 * $rest > $estimate_d || 2 * $rest == $estimate_d && $whole % 2 ? 1 : 0;
        return ref $whole ? $whole->numify : $whole;
    }
    my ($whole, $bottom) = map { my $p = Math::BigInt->bone; $p->bmul($_) for @$_; $p } $n, $d;
    (undef, my $rest) = $whole->bdiv($bottom);    # in list context the quotient stays in $whole
    my $half = $rest->bmul(2)->bcmp($bottom);
    $whole->binc if $half > 0 || $half == 0 && $whole->is_odd;
    return $whole->numify;
}

# --- what happened -----------------------------------------------------------------------------------------------------

sub click
{
    my ($self, $c) = @_;
    my $link = $c->{link} ? $self->{links}{ $c->{link} } : $c;

    $self->{click}{ $c->{id} } = { merchant => $link->{merchant}, campaign => $link->{campaign}, affiliate => $link->{affiliate},
        livemode => $c->{livemode} ? 1 : 0, verdict => $c->{verdict} };
}

sub event
{
    my ($self, $e) = @_;
    my $call = join '/', $e->{merchant}, $e->{livemode} ? 't' : 'f', $e->{key};
    my $position = $e->{position} || 0;

    $self->{touched}{ order_key(@$e{qw(merchant order_id livemode)}) } = 1;
    return 'dead' unless $self->{merchants}{ $e->{merchant} };
    my $known = $self->{key}{$call} ||= { body => $e->{body}, taken => {} };
    return 'dead' if $known->{body} ne $e->{body};
    return 'duplicate' if $known->{taken}{$position}++;

    my $received = $e->{received_us} // $e->{received_ms} * 1000;
    my $clicked = $e->{clicked_ms} * 1000;
    my $occurred = $e->{occurred_us};
    my $believed = defined $occurred && $occurred <= $received && $occurred >= $clicked;
    my %c = (at => $believed ? $occurred : $received, clicked => $clicked, click_id => $e->{click_id}, status => $e->{status},
        amount => $e->{amount}, currency => $e->{currency}, items => $e->{items}, merchant => $e->{merchant},
        livemode => $e->{livemode} ? 1 : 0, order => order_key(@$e{qw(merchant order_id livemode)}));
    if (($e->{status} eq 'refunded' || $e->{status} eq 'returned') && defined $e->{amount}) {
        $c{refund} = defined $e->{refund_id} ? "r:$e->{refund_id}" : "e:$e->{key}:$position";
    }

    if (!$self->{click}{ $c{click_id} } && $clicked >= $self->{kept_since}) {
        push @{ $self->{waiting}{ $c{click_id} } }, \%c;
        return 'waiting';
    }
    $self->_take(\%c);
    return 'applied';
}

# A conversion with its click becomes part of its order.
sub _take
{
    my ($self, $c) = @_;
    my $click = $self->{click}{ $c->{click_id} };

    $c->{problem} =
          !$click ? ($c->{clicked} < $self->{kept_since} ? 'expired_click' : 'unknown_click')
        : $click->{merchant} != $c->{merchant} ? 'foreign_click'
        : $click->{livemode} != $c->{livemode} ? 'wrong_livemode'
        : undef;
    $c->{click} = $click unless $c->{problem};
    my $events = $self->{order}{ $c->{order} }{events} ||= [];
    $self->{counts}{"status: $c->{status}" . (defined $c->{refund} ? ', in part' : '')}++;
    $self->{counts}{'came after a later one'}++ if grep { $_->{at} > $c->{at} } @$events;
    push @$events, $c;
    $self->_decide($c->{order});
}

sub resolve
{
    my ($self, $give_up) = @_;
    my $settled = 0;

    for my $id (keys %{ $self->{waiting} }) {
        next unless $give_up || $self->{click}{$id};
        my $list = delete $self->{waiting}{$id};
        $self->_take($_) for @$list;
        $settled += @$list;
    }
    return $settled;
}

# Said by hand or by file of an order that is known: an event like any other, with the order's own click, unless it makes no sense.
sub by_hand
{
    my ($self, $e) = @_;
    my $key = order_key(@$e{qw(merchant order_id livemode)});
    my $o = $self->{order}{$key} or return 'refused';
    my $sense = _sense($o, $e, $self->_terms_of($o));
    my $first = $o->{facts}{first};
    my $report = $e->{status} eq 'pending' || $e->{status} eq 'approved';
    my %c = (at => $e->{occurred_us}, map { $_ => $e->{$_} } qw(status merchant amount));

    return $sense if $sense ne 'applied';
    delete $c{amount} if $e->{status} eq 'cancelled' || $report && defined $e->{amount} && $e->{amount} eq ($o->{facts}{amount} // '');
    $c{refund} = "r:$e->{refund_id}" if !$report && defined $c{amount};
    $c{currency} = $e->{currency} if defined $c{amount};
    @c{qw(clicked click_id livemode order)} = ($first->{clicked}, $first->{click_id}, $e->{livemode} ? 1 : 0, $key);
    $self->_take(\%c);
    return 'applied';
}

sub _terms_of { my ($self, $o) = @_; my ($t) = grep { defined $o->{terms} && $_->{terms} == $o->{terms} } map { @$_ } values %{ $self->{terms} }; return $t }

sub _sense
{
    my ($o, $e, $terms) = @_;
    my ($f, $status, $amount, $at) = ($o->{facts}, @$e{qw(status amount occurred_us)});
    my $report = $status eq 'pending' || $status eq 'approved';
    my $refund = $status eq 'refunded' || $status eq 'returned';
    my $currency = $f->{currency} // $o->{money};
    my $gone = defined $f->{returned} || $f->{amount} && $f->{refunded} >= $f->{amount};

    undef $amount if $status eq 'cancelled';
    return 'refused' if defined $amount && defined $currency && $e->{currency} ne $currency;
    return 'unchanged' if $status eq 'cancelled' && defined $f->{cancelled} || $refund && !defined $amount && $gone;
    if ($refund && defined $amount) {
        my @told = sort { $a->{at} <=> $b->{at} || $a->{amount} <=> $b->{amount} || $a->{currency} cmp $b->{currency} }
            grep { ($_->{refund} // '') eq "r:$e->{refund_id}" } @{ $o->{events} };
        return $told[-1]{amount} == $amount && $told[-1]{currency} eq $currency ? 'unchanged' : 'refused' if @told;
    }
    return 'refused' if defined $f->{cancelled} || $gone;
    if ($o->{outcome} eq 'rejected') {
        my $lifted = $o->{problem} eq 'review_rejected' ? !$report : $o->{problem} eq 'above_limit' ? !$report || defined $amount : 0;
        return 'refused' unless $lifted;
    }
    my $other = $report && defined $amount && $amount != ($f->{amount} // -1);
    return 'unchanged' if $report && !$other && ($status eq 'pending' || defined $f->{approved});
    return 'refused' if $at < $f->{first}{at};
    if ($report) {
        return 'refused' if $other && defined $f->{amount}
            && grep { defined $_->{amount} && ($_->{status} eq 'pending' || $_->{status} eq 'approved') && $_->{at} >= $at } @{ $o->{events} };
        return 'refused' if $status eq 'approved' && !defined $amount && !defined $f->{amount} && defined $terms->{rate_basis_points};
        return 'refused' if $other && $amount < $f->{refunded};
    } elsif ($refund && defined $amount) {
        return 'refused' if !defined $f->{amount} || !$amount || $amount > $f->{amount} - $f->{refunded};
    }
    return 'applied';
}

sub review
{
    my ($self, $merchant, $order, $livemode, $decision) = @_;
    my $key = order_key($merchant, $order, $livemode);

    $self->{order}{$key}{decision} = $decision;
    $self->_decide($key);
}

# --- what it means -----------------------------------------------------------------------------------------------------

# Of amounts. List::Util's would add text as floats, exact to 2^53 only.
sub _sum { my $sum = 0; $sum += $_->{amount} for @_; return $sum }

sub facts
{
    my ($events, $decision) = @_;
    my %f = (decision => $decision, refunded => 0);
    my %refund;

    for my $e (sort { $a->{at} <=> $b->{at} } @$events) {
        my $status = $e->{status};
        $f{first} ||= $e;
        $f{other_click} = 1 if $e->{click_id} ne $f{first}{click_id};
        if ($status eq 'pending' || $status eq 'approved') {
            $f{has_report} = 1;
            @f{qw(amount currency items)} = @$e{qw(amount currency items)} if defined $e->{amount};
            $f{approved} //= $e->{at} if $status eq 'approved';
        } elsif ($status eq 'cancelled') {
            $f{cancelled} //= $e->{at};
        } elsif (defined $e->{refund}) {
            $refund{ $e->{refund} } = $e;
        } else {
            $f{returned} //= $e->{at};
        }
    }
    my @other = grep { defined $f{currency} && $_->{currency} ne $f{currency} } values %refund;
    $f{refund_currency} = @other ? 1 : 0;
    $f{refunded} = _sum(values %refund) - _sum(@other);
    $f{refunded} = $GREATEST if $f{refunded} > $GREATEST;
    return \%f;
}

sub _within { my ($at, $ranges) = @_; return scalar grep { $at >= $_->[0] && $at < $_->[1] } @{ $ranges || [] } }

sub _terms_at
{
    my ($self, $campaign, $at) = @_;
    my $found;

    for my $terms (@{ $self->{terms}{$campaign} || [] }) {
        last if $terms->{valid_from} > $at;
        $found = $terms;
    }
    return $found;
}

# The first that holds. Those of %IS_REVIEW are doubts; the others reject.
sub _problem
{
    my ($self, $f, $terms) = @_;
    my $e = $f->{first};
    my $click = $e->{click} or return $e->{problem};
    my $campaign = $self->{campaigns}{ $click->{campaign} };
    my $elapsed = $e->{at} - $e->{clicked};

    return $VERDICT[ $click->{verdict} ] if $click->{verdict} > 2;
    return 'inactive_merchant' if _within($e->{at}, $self->{merchants}{ $click->{merchant} }{suspended});
    return 'inactive_campaign' if _within($e->{at}, $campaign->{suspended});
    return 'inactive_affiliate' if _within($e->{at}, $self->{affiliates}{ $click->{affiliate} }{suspended});
    return 'no_terms' unless $terms;
    return 'outside_attribution_window' if $elapsed > $terms->{window};
    return 'too_fast' if $elapsed < $terms->{minimum};
    return 'wrong_currency' if defined $f->{currency} && $f->{currency} ne $campaign->{currency};
    return $f->{decision} eq 'accept' ? undef : 'review_rejected' if $f->{decision};
    return 'duplicate_order' if $f->{other_click};
    return 'suspect_click' if $click->{verdict} == 2;
    return 'refund_currency' if $f->{refund_currency};
    return 'missing_amount' if defined $f->{approved} && !defined $f->{amount} && !defined $terms->{rate_flat_minor};
    return undef;
}

# Exact, however large.
sub _product { my ($x, $y) = @_; return $x * $y < 2**53 ? $x * $y : Math::BigInt->new($x)->bmul($y) }

# Commission of the items before refunds, as numerator and denominator.
sub _items
{
    my ($f, $t) = @_;
    my ($by_rate, $flat, $lines, $campaigns) = (0, 0, 0, 0);    # in 1/10000, then in minor units
    my $falls = $f->{amount} > _sum(@{ $f->{items} });    # some part to the campaign's rate

    for my $item (@{ $f->{items} }) {
        my $own = (defined $item->{sku} && $t->{products}{sku}{ $item->{sku} })
            || (defined $item->{category} && $t->{products}{category}{ $item->{category} });
        $lines += $item->{amount};
        if (!$own) {
            $campaigns += $item->{amount};
            $falls = 1;
        } elsif (defined $own->[0]) {
            $by_rate += _product($own->[0], $item->{amount});
        } else {
            $flat += _product($own->[1], $item->{quantity});
        }
    }
    $campaigns += $f->{amount} - $lines if $f->{amount} > $lines;
    if (defined $t->{rate_basis_points}) {
        $by_rate += _product($t->{rate_basis_points}, $campaigns);
    } elsif ($falls) {
        $flat += $t->{rate_flat_minor};
    }
    return ($by_rate + _product(10000, $flat), 10000) if $lines <= $f->{amount};
    my ($n, $m) = map { Math::BigInt->new($_) } $by_rate, _product(10000, $flat);
    return ($n->bmul($f->{amount})->badd($m->bmul($lines)), _product(10000, $lines));
}

# Commission and fee of what was kept.
sub worth
{
    my ($f, $t) = @_;

    return (0, 0) unless $f->{has_report};
    return (0, 0) if defined $f->{cancelled} || defined $f->{returned};
    my $amount = $f->{amount};
    my $kept = defined $amount ? max(0, $amount - $f->{refunded}) : undef;
    # An order of nothing has nothing to shrink: what is flat is whole.
    my @share = $amount ? ([$kept], [$amount]) : ([1], [1]);
    my $commission;

    if (defined $amount && $f->{items} && @{ $f->{items} }) {
        my ($n, $d) = _items($f, $t);
        $commission = half_even([$n, @{ $share[0] }], [$d, @{ $share[1] }]);
    } elsif (defined $t->{rate_flat_minor}) {
        $commission = half_even([$t->{rate_flat_minor}, @{ $share[0] }], $share[1]);
    } else {
        $commission = defined $kept ? half_even([$t->{rate_basis_points}, $kept], [10000]) : 0;
    }
    return ($commission, _fee($t, $commission, $share[0][0], $share[1][0]));
}

# On top of the commission, rounded once.
sub _fee
{
    my ($t, $commission, $kept, $amount) = @_;
    my ($rate, $flat) = @$t{qw(fee_basis_points fee_flat_minor)};

    return half_even([$rate, $commission], [10000]) unless $flat;
    my $sum = Math::BigInt->new($rate)->bmul($commission)->bmul($amount);
    return half_even([$sum->badd(Math::BigInt->new(10000)->bmul($flat)->bmul($kept))], [10000, $amount]);
}

# Everything that follows from an order's events; its part of the balances is replaced.
sub _decide
{
    my ($self, $key) = @_;
    my $o = $self->{order}{$key};
    my $f = facts($o->{events}, $o->{decision});
    my $e = $f->{first};
    my $click = $e->{click};
    my $terms = $click && $self->_terms_at($click->{campaign}, $e->{clicked});
    my $problem = $self->_problem($f, $terms);

    $self->{touched}{$key} = 1;
    $self->{counts}{'other terms'}++ if $terms && defined $o->{terms} && $o->{terms} != $terms->{terms};
    $self->_book($o, -1);
    $o->{facts} = $f;
    $o->{problem} = $problem;
    $o->{outcome} = !$problem ? 'accepted' : $IS_REVIEW{$problem} ? 'review' : 'rejected';
    $o->{terms} = $terms ? $terms->{terms} : undef;
    ($o->{commission}, $o->{fee}) = $o->{outcome} eq 'rejected' ? (0, 0) : worth($f, $terms);
    @$o{qw(problem outcome commission fee)} = ('above_limit', 'rejected', 0, 0) if $o->{commission} + $o->{fee} > $LIMIT;
    ($o->{merchant}, undef, $o->{mode}) = $key =~ m{^(\d+)/(.*)/([tf])$}s;
    $o->{affiliate} = $click ? $click->{affiliate} : undef;
    $o->{money} = $click ? $self->{campaigns}{ $click->{campaign} }{currency} : undef;
    my $due = $o->{outcome} eq 'accepted' && defined $f->{approved} && $o->{commission} + $o->{fee} > 0
        ? $f->{approved} + $terms->{hold} : undef;
    delete $self->{due}{$key};
    my $payable = defined $due && $due <= $self->{clock} ? 1 : 0;
    $self->{counts}{ $o->{outcome} eq 'accepted' && defined $due ? 'held again' : 'payable taken back' }++ if $o->{payable} && !$payable;
    $o->{payable} = $payable;
    $self->{due}{$key} = $due if defined $due && !$o->{payable};
    $self->_book($o, 1);
}

# The affiliate gets what is payable, if that is something; gives how much.
sub pay
{
    my ($self, $merchant, $affiliate, $currency, $livemode) = @_;
    my ($head, $tail) = ("$merchant/affiliate/$affiliate", "$currency/" . ($livemode ? 't' : 'f'));
    my $amount = $self->{balance}{"$head/payable/$tail"};

    return 0 if ($amount // 0) <= 0;
    $self->{balance}{"$head/payable/$tail"} = 0;
    $self->{balance}{"$head/paid/$tail"} += $amount;
    return $amount;
}

sub _book
{
    my ($self, $o, $sign) = @_;
    my ($commission, $fee) = map { $sign * ($_ || 0) } @$o{qw(commission fee)};

    return unless $commission || $fee;
    my $p = $o->{payable};
    my ($b, $m, $tail) = ($self->{balance}, $o->{merchant}, "$o->{money}/$o->{mode}");
    $b->{"$m/affiliate/$o->{affiliate}/" . ($p ? 'payable' : 'pending') . "/$tail"} += $commission;
    $b->{"$m/platform/0/" . ($p ? 'fee_earned' : 'fee_pending') . "/$tail"} += $fee;
    $b->{"$m/merchant/$m/" . ($p ? 'owed' : 'accrued') . "/$tail"} -= $commission + $fee;
}

# The clock goes on: what is due has become payable.
sub _mature
{
    my ($self, $now) = @_;

    $self->{clock} = $now;
    for my $key (grep { $self->{due}{$_} <= $now } keys %{ $self->{due} }) {
        my $o = $self->{order}{$key};
        delete $self->{due}{$key};
        $self->{touched}{$key} = 1;
        $self->_book($o, -1);
        $o->{payable} = 1;
        $self->{counts}{'hold ended'}++;
        $self->_book($o, 1);
    }
}

# --- what PostgreSQL must hold -------------------------------------------------------------------------------------------

sub orders { return $_[0]{order} }

sub touched
{
    my $self = shift;
    my @keys = sort keys %{ $self->{touched} };

    $self->{touched} = {};
    return @keys;
}

sub accounts
{
    my ($self, $now) = @_;
    my $b = $self->{balance};

    $self->_mature($now);
    return { map { $_ => $b->{$_} } grep { $b->{$_} } keys %$b };
}

my @COLUMNS = qw(outcome problem amount currency refunded reported approved cancelled returned click_id affiliate terms
    commission fee payable);

our $ORDERS = <<'END';
select concat_ws('/', o.merchant_id, o.order_id, left(o.livemode::text, 1)), o.outcome, o.problem, o.amount_minor, o.currency,
       o.refunded_minor, (extract(epoch from o.reported_at) * 1000000)::bigint, (extract(epoch from o.approved_at) * 1000000)::bigint,
       (extract(epoch from o.cancelled_at) * 1000000)::bigint, (extract(epoch from o.returned_at) * 1000000)::bigint,
       o.click_id, o.affiliate_id, o.terms_id, o.posted_commission_minor, o.posted_fee_minor,
       ((o.posted_payable or exists (select 1 from affiliate.release_item r
                                      where (r.merchant_id, r.order_no, r.revision) = (o.merchant_id, o.order_no, o.revision)))
        and o.posted_commission_minor + o.posted_fee_minor > 0)::integer
  from affiliate.order_fact o
END

our $ACCOUNTS = <<'END';
select concat_ws('/', merchant_id, owner, owner_id, kind, currency, left(livemode::text, 1)), credits_minor - debits_minor
  from affiliate.account
 where credits_minor <> debits_minor
END

sub _row
{
    my $o = shift;
    my $f = $o->{facts};

    return [@$o{qw(outcome problem)}, @$f{qw(amount currency refunded)}, $f->{first}{at}, @$f{qw(approved cancelled returned)},
        $f->{first}{click_id}, @$o{qw(affiliate terms commission fee payable)}];
}

sub compare
{
    my ($m, $orders, $accounts, $now, $keys) = @_;
    my $wanted = $m->accounts($now);
    my %expected = map { $_ => 1 } $keys ? (@$keys, $m->touched) : keys %{ $m->{order} };
    my @differences;

    for my $row (@$orders) {
        my ($key, @got) = @$row;
        my $o = $m->{order}{$key};
        push @differences, !$o ? "order $key: is there, and should not be" : _order_differs($key, $o, \@got);
        push @differences, "order $key: is there twice, or was not touched" unless delete $expected{$key};
    }
    push @differences, "order $_: is missing, or was not released" for grep { $m->{order}{$_} } sort keys %expected;

    $m->{counts}{'payable below zero, after a step'} += grep { m{/payable/} && $wanted->{$_} < 0 } keys %$wanted;
    my %got = map { @$_ } @$accounts;
    for my $key (sort keys %{ { %got, %$wanted } }) {
        my ($is, $should) = ($got{$key} // 0, $wanted->{$key} // 0);
        push @differences, "account $key: balance is $is, should be $should" if $is ne $should;
    }
    return @differences;
}

sub _order_differs
{
    my ($key, $o, $got) = @_;
    my $want = _row($o);
    my @wrong = grep { ($got->[$_] // '') ne ($want->[$_] // '') } 0 .. $#COLUMNS;

    return @wrong ? "order $key: " . join ', ', map { "$COLUMNS[$_] is " . ($got->[$_] // 'null') . ', should be '
        . ($want->[$_] // 'null') } @wrong : ();
}

1;
