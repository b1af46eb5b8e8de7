package Affiliated::History;

# Random histories of orders, run through the real SQL beside the model of Affiliated::Model; a history that ends in different
# books is shrunk to its shortest form.
#
#   my $h = Affiliated::History->new(test => $t, seed => n, base => microseconds);
#                                            again => 1 keeps the world, which makes each run after the first one quicker
#   my @lines = $h->generate($events);       the history, as text
#   my @differences = $h->run(\@lines);      () if PostgreSQL and the model agree after every batch
#   my $shortest = $h->shrink(\@lines, \@differences);      also differs
#   $h->counts                               how often each outcome and problem was met
#
# A line is a step, its fields separated by tabs, "-" for none:
#   C  id at_ms link livemode verdict               a click arrives
#   E  merchant livemode key position body received_us occurred_us click_id clicked_ms order status amount currency refund_id items
#                                                   an event of the batch that is being made
#   B                                               the batch is applied, holds are released, the books compared
#   R                                               conversions whose click has come are settled; G those that waited too long, too
#   H  merchant livemode order status amount currency refund_id occurred_us      something is said of an order by hand
#   V  merchant order livemode decision             a review is decided, if the order's state lets it
#   P  merchant affiliate currency livemode         what is payable is paid

use strict;
use warnings;

use IPC::Open2;
use POSIX ();

use Affiliated::Model qw($ACCOUNTS $ORDERS compare order_key);

my ($SECOND, $DAY, $DAYS) = (1_000_000, 86_400_000_000, 45);
my @STATUS = ('pending', 'approved', 'cancelled', 'returned', 'refunded');
my %STATUS = map { $STATUS[$_] => $_ + 1 } 0 .. $#STATUS;
my $PART = "\\echo ----\n";
my $INVARIANTS = join '', map { "execute $_;\n" } 'sums', 'broken', 'positions';

# A session's own: the orders that a step touches; each account's sum of transfers, kept up to date by what a step adds, so that
# one without a cause is missed in it; and the invariants of the design that are about these.
my $SESSION = <<"END";
create temp table touched (merchant_id bigint, order_id text collate "C", livemode boolean);
create temp table paid (merchant_id bigint, cause_id bigint);
create temp table summed (merchant_id bigint, account_id bigint, debits numeric, credits numeric, primary key (merchant_id, account_id));
create function pg_temp.pay(p_merchant bigint, p_affiliate bigint, p_currency text, p_livemode boolean, p_amount numeric)
returns void
language sql
as '
    with place as (
        insert into affiliate.account as a (merchant_id, livemode, currency, owner, kind, owner_id, debits_minor, credits_minor)
        values (p_merchant, p_livemode, p_currency, ''affiliate'', ''payable'', p_affiliate, p_amount, 0),
               (p_merchant, p_livemode, p_currency, ''affiliate'', ''paid'', p_affiliate, 0, p_amount)
            on conflict (merchant_id, livemode, currency, owner, kind, owner_id) do update
           set debits_minor = a.debits_minor + excluded.debits_minor, credits_minor = a.credits_minor + excluded.credits_minor
        returning kind, account_id
    ),
    cause as (
        insert into pg_temp.paid values (p_merchant, - nextval(''affiliate.release_id_seq''))
        returning cause_id
    )
    insert into affiliate.transfer (merchant_id, cause_id, cause_revision, cause_kind, code, debit_account, credit_account,
                                    amount_minor, livemode, currency)
    select p_merchant, x.cause_id, 1, 2, 99, d.account_id, c.account_id, p_amount, p_livemode, p_currency
      from place d, place c, cause x
     where d.kind = ''payable'' and c.kind = ''paid''';

create function pg_temp.said(p_merchant bigint, p_livemode boolean, p_cells jsonb)
returns text
language plpgsql
as '
begin
    perform affiliate.said_tables();
    perform affiliate.say(1, ''{order_id,status,amount,currency,refund_id,reason,occurred_at}'', jsonb_build_array(p_cells));
    perform affiliate.judge_said(p_merchant, p_livemode, true);
    perform affiliate.apply_said(p_merchant, p_livemode, affiliate.system_actor(p_merchant), 4::smallint, null, null);
    return (select verdict from pg_temp.order_said);
end';

prepare now as select (extract(epoch from now()) * 1000000)::bigint;
prepare due as
insert into pg_temp.touched
select o.merchant_id, o.order_id, o.livemode
  from affiliate.hold h
  join affiliate.order_fact o using (merchant_id, order_no)
 where h.due_at <= now()
except
select * from pg_temp.touched;

prepare orders as $ORDERS
  join pg_temp.touched using (merchant_id, livemode, order_id);

prepare sums as
with made as (
    select t.*
      from pg_temp.touched
      join affiliate.order_fact o using (merchant_id, livemode, order_id)
      join affiliate.transfer t on t.merchant_id = o.merchant_id and t.cause_id = o.order_no and t.cause_kind = 1
     where t.created_at = now()
     union all
    select t.*
      from affiliate.release r
      join affiliate.transfer t on t.merchant_id = r.merchant_id and t.cause_id = r.release_id and t.cause_kind = 2
     where r.released_at = now()
     union all
    select t.*
      from pg_temp.paid p
      join affiliate.transfer t on t.merchant_id = p.merchant_id and t.cause_id = p.cause_id and t.cause_kind = 2
     where t.created_at = now()
)
insert into pg_temp.summed as s
select p.merchant_id, p.account_id, sum(p.debit), sum(p.credit)
  from (select merchant_id, debit_account as account_id, amount_minor as debit, 0 as credit from made
         union all
        select merchant_id, credit_account, 0, amount_minor from made) p
 group by 1, 2
    on conflict (merchant_id, account_id) do update
   set debits = s.debits + excluded.debits, credits = s.credits + excluded.credits;

prepare broken as
select 'account is the sum of its transfers', coalesce(a.merchant_id, s.merchant_id), coalesce(a.account_id, s.account_id),
       concat_ws(' ', a.debits_minor, a.credits_minor, s.debits, s.credits)
  from affiliate.account a
  full join pg_temp.summed s using (merchant_id, account_id)
 where (a.debits_minor, a.credits_minor) is distinct from (s.debits, s.credits)
union all
select 'balances sum to zero', null, null, concat_ws(' ', currency, livemode, sum(credits_minor - debits_minor))
  from affiliate.account
 group by currency, livemode
having sum(credits_minor - debits_minor) <> 0;

prepare positions as
select 'posted is the position', o.merchant_id, o.order_id, x.off
  from pg_temp.touched
  join affiliate.order_fact o using (merchant_id, livemode, order_id)
  left join affiliate.terms t on t.merchant_id = o.merchant_id and t.terms_id = o.terms_id
 cross join lateral (
           select string_agg(concat_ws(' ', owner, kind, owner_id, currency, livemode, amount), ', ') as off
             from (select owner, kind, owner_id, currency, livemode, sum(amount) as amount
                     from (select a.owner, a.kind, a.owner_id, a.currency, a.livemode, s.amount
                             from (select credit_account as account_id, amount_minor as amount
                                     from affiliate.transfer
                                    where merchant_id = o.merchant_id and cause_id = o.order_no and cause_kind = 1
                                    union all
                                   select debit_account, - amount_minor
                                     from affiliate.transfer
                                    where merchant_id = o.merchant_id and cause_id = o.order_no and cause_kind = 1) s
                             join affiliate.account a on a.merchant_id = o.merchant_id and a.account_id = s.account_id
                            union all
                           select move.owner, move.kind, move.owner_id, r.currency, r.livemode, move.amount
                             from affiliate.release_item i
                             join affiliate.release r using (merchant_id, release_id)
                            cross join lateral (values
                                      ('affiliate', 'pending', r.affiliate_id, - i.commission_minor),
                                      ('affiliate', 'payable', r.affiliate_id, i.commission_minor),
                                      ('platform', 'fee_pending', 0, - i.fee_minor),
                                      ('platform', 'fee_earned', 0, i.fee_minor),
                                      ('merchant', 'accrued', r.merchant_id, i.commission_minor + i.fee_minor),
                                      ('merchant', 'owed', r.merchant_id, - i.commission_minor - i.fee_minor)
                                  ) as move(owner, kind, owner_id, amount)
                            where i.merchant_id = o.merchant_id and i.order_no = o.order_no and i.revision <> o.revision
                            union all
                           select p.owner, p.kind, p.owner_id, o.posted_currency, o.livemode, - p.amount_minor
                             from affiliate.position(o, t) p) e
                    group by owner, kind, owner_id, currency, livemode
                   having sum(amount) <> 0) d) x
 where x.off is not null;

select affiliate.conversion_stage();
END

sub new
{
    my ($class, %o) = @_;
    my $self = bless { %o, databases => 0, counts => {} }, $class;

    srand($o{seed});
    $self->{kept_since} = int($o{base} / $DAY) * $DAY - $DAYS * $DAY;
    $self->_world;
    return $self;
}

sub counts { return $_[0]{counts} }

sub _one { return $_[ rand @_ ] }

# --- the world: who takes part, and by which terms ----------------------------------------------------------------------

sub _suspension
{
    my $self = shift;
    my $from = $self->{base} - int(rand($DAYS * $DAY));

    return rand() < 0.25 ? [[$from, $from + int(rand(6 * $DAY))]] : [];
}

sub _rate { return rand() < 0.6 ? [int(rand(_one(200, 3000, 10001))), undef] : [undef, int(rand(_one(100, 5000, 200000)))] }

sub _terms
{
    my ($self, $campaign, $from) = @_;
    my $rate = _rate();
    my %products;

    if (rand() < 0.5) {
        $products{sku}{$_} = _rate() for grep { rand() < 0.5 } 'TEA', 'CUP', 'POT';
        $products{category}{$_} = _rate() for grep { rand() < 0.5 } 'kitchen', 'garden';
    }
    return { terms => 1 + @{ $self->{terms} }, campaign => $campaign, valid_from => $from, rate_basis_points => $rate->[0],
        rate_flat_minor => $rate->[1], fee_basis_points => _one(0, 1500, 2000, 3333, 10000), fee_flat_minor => _one(0, 0, 7, 500),
        hold => _one(0, 60, 3600, 86400 * 7, 86400 * 30) * $SECOND, window => _one(3600, 86400 * 7, 86400 * 30) * $SECOND,
        minimum => _one(0, 0, 2, 30) * $SECOND, products => \%products };
}

sub _world
{
    my $self = shift;

    $self->{terms} = [];
    for my $m (1 .. 4) {
        $self->{merchants}{$m} = { suspended => $self->_suspension };
        $self->{affiliates}{ 100 + $_ } ||= { suspended => $self->_suspension } for 1 .. 6;
        for my $n (1 .. 3) {
            my $id = 10 * $m + $n;
            $self->{campaigns}{$id} = { merchant => $m, currency => _one('NPR', 'NPR', 'USD', 'JPY', 'KWD'),
                suspended => $self->_suspension };
            my $from = $self->{base} - 40 * $DAY - int(rand(20 * $DAY));
            for (1 .. 1 + rand 4) {
                push @{ $self->{terms} }, $self->_terms($id, $from);
                $from += 1 + int(rand(15 * $DAY));
            }
            $self->{links}{ 10 * $id + $_ } = { merchant => $m, campaign => $id, affiliate => 100 + 1 + int(rand 6) } for 1 .. 3;
        }
    }
    $self->{link_of} = { map { my $m = $_; $m => [grep { $self->{links}{$_}{merchant} == $m } sort keys %{ $self->{links} }] }
        1 .. 4 };
}

sub _time
{
    my $us = shift;
    my $second = POSIX::floor($us / $SECOND);

    return POSIX::strftime('%Y-%m-%d %H:%M:%S', gmtime $second) . sprintf '.%06d+00', $us - $second * $SECOND;
}

sub _sql { my $value = shift; return defined $value ? $value : 'null' }

sub _ranges { return "'{" . join(',', map { '[' . join(',', map { '"' . _time($_) . '"' } @$_) . ')' } @{ $_[0] }) . "}'" }

sub _world_sql
{
    my $self = shift;
    my @sql = map { sprintf "select affiliate.create_click_partition('%s');\n", substr _time($self->{kept_since} + $_ * $DAY), 0, 10 }
        0 .. $DAYS + 1;

    push @sql, map { "insert into affiliate.merchant (merchant_id, name, hosts, suspended) values ($_, 'Shop $_', '{shop.example}', "
        . _ranges($self->{merchants}{$_}{suspended}) . ");\n" } sort keys %{ $self->{merchants} };
    push @sql, map { "insert into affiliate.affiliate (affiliate_id, name, suspended) values ($_, 'Affiliate $_', "
        . _ranges($self->{affiliates}{$_}{suspended}) . ");\n" } sort keys %{ $self->{affiliates} };
    for my $id (sort keys %{ $self->{campaigns} }) {
        my $c = $self->{campaigns}{$id};
        push @sql, "insert into affiliate.campaign (merchant_id, campaign_id, name, currency, suspended) values ($c->{merchant}, $id, "
            . "'Campaign $id', '$c->{currency}', " . _ranges($c->{suspended}) . ");\n";
    }
    for my $t (@{ $self->{terms} }) {
        my $m = $self->{campaigns}{ $t->{campaign} }{merchant};
        push @sql, sprintf "insert into affiliate.terms (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, rate_flat_minor, "
            . "fee_basis_points, fee_flat_minor, hold, attribution_window, minimum_click_to_order) values (%d, %d, %d, '%s', %s, %s, %d, %d, "
            . "'%d seconds', '%d seconds', '%d seconds');\n", $m, $t->{campaign}, $t->{terms}, _time($t->{valid_from}),
            _sql($t->{rate_basis_points}), _sql($t->{rate_flat_minor}), $t->{fee_basis_points}, $t->{fee_flat_minor},
            map { $_ / $SECOND } @$t{qw(hold window minimum)};
        for my $kind (sort keys %{ $t->{products} }) {
            for my $value (sort keys %{ $t->{products}{$kind} }) {
                push @sql, sprintf "insert into affiliate.product_rate values (%d, %d, '%s', '%s', %s, %s);\n", $m, $t->{terms}, $kind,
                    $value, map { _sql($_) } @{ $t->{products}{$kind}{$value} };
            }
        }
    }
    return join '', @sql;
}

# --- the history ------------------------------------------------------------------------------------------------------------

sub generate
{
    my ($self, $events) = @_;
    my %g = (lines => [], orders => [], calls => [], clicks => 0, keys => 0, late => []);
    my $left = $self->_batch_size($events);

    for my $n (1 .. $events) {
        my $redo = rand() < 0.1 && @{ $g{calls} };
        push @{ $g{lines} }, $redo ? $self->_again(\%g) : $self->_event(\%g);
        next if --$left > 0 && $n < $events;
        push @{ $g{lines} }, 'B';
        $left = $self->_batch_size($events);
        $self->_beside(\%g);
    }
    push @{ $g{lines} }, splice(@{ $g{late} }), 'G', 'B';
    return @{ $g{lines} };
}

sub _batch_size { my ($self, $events) = @_; return 1 + int(rand(_one(1, 10, 100, $events / 10))) }

# Between batches: late clicks arrive, waiting is over, reviews are decided.
sub _beside
{
    my ($self, $g) = @_;

    if (rand() < 0.5) {
        my @still;
        push @{ rand() < 0.6 ? $g->{lines} : \@still }, $_ for @{ $g->{late} };
        $g->{late} = \@still;
        push @{ $g->{lines} }, 'R';
    } elsif (rand() < 0.1) {
        # Clicks that nobody waits for any longer never arrive.
        $g->{late} = [];
        push @{ $g->{lines} }, 'G';
    }
    push @{ $g->{lines} }, $self->_saying(_one(@{ $g->{orders} })) for 1 .. rand 9;
    for (1 .. rand 2) {
        my $o = _one(@{ $g->{orders} });
        push @{ $g->{lines} }, join "\t", 'V', $o->{merchant}, $o->{id}, $o->{livemode}, _one('accept', 'accept', 'reject');
    }
    if (rand() < 0.3) {
        my $link = $self->{links}{ _one(sort keys %{ $self->{links} }) };
        push @{ $g->{lines} }, join "\t", 'P', $link->{merchant}, $link->{affiliate}, $self->{campaigns}{ $link->{campaign} }{currency},
            rand() < 0.7 ? 1 : 0;
    }
}

# Something said by hand, whether it makes sense or not.
sub _saying
{
    my ($self, $o) = @_;
    my $status = _one('approved', 'approved', 'pending', 'cancelled', 'returned', 'refunded', 'refunded', 'refunded');
    my $at = $o->{start} + int(rand(_one(1, 86400, 86400 * 20)) * $SECOND) - (rand() < 0.1 ? 3600 * $SECOND : 0);
    my ($amount, $refund);

    $at = $self->{base} - int(rand($SECOND)) if $at > $self->{base} || rand() < 0.3;
    if ($status eq 'refunded' || $status eq 'returned') {
        ($amount, $refund) = (int(rand(1 + $o->{amount} / _one(1, 3, 10))), 'r' . int rand 4) if rand() < 0.8;
    } elsif (rand() < 0.6) {
        $amount = rand() < 0.5 ? $o->{amount} : int(rand(2 * $o->{amount} + 1));
    }
    return join "\t", 'H', $o->{merchant}, $o->{livemode}, $o->{id}, $status, map { $_ // '-' } $amount,
        defined $amount ? (rand() < 0.95 ? $o->{currency} : 'EUR') : undef, $refund, $at;
}

# An order with its click; the click may be late, unknown, another merchant's, of the other mode, or too old.
sub _order
{
    my ($self, $g) = @_;
    my $merchant = 1 + int(rand 4);
    my $livemode = rand() < 0.7 ? 1 : 0;
    my $o = { merchant => $merchant, livemode => $livemode, id => 'O-' . int(rand(2 + 2 * @{ $g->{orders} })),
        fate => rand() < 0.6 ? 'kept' : 'any' };

    ($o->{click}, $o->{clicked}, $o->{link}) = $self->_click($g, $merchant, $livemode);
    $o->{currency} = rand() < 0.97 ? $self->{campaigns}{ $self->{links}{ $o->{link} }{campaign} }{currency} : _one('USD', 'EUR', 'JPY');
    $o->{amount} = 1 + int(rand(_one(100, 20000, 1000000, 1e12, 1e14)));
    $o->{amount} = 0 if rand() < 0.01;
    $o->{start} = $o->{clicked} * 1000 + $self->_delay;
    push @{ $g->{orders} }, $o;
    return $o;
}

sub _delay
{
    my $kind = rand;

    return int(rand(3 * $SECOND)) if $kind < 0.04;
    return int(rand(40 * $DAY)) if $kind < 0.08;
    return int(rand(60 * $SECOND)) if $kind < 0.15;
    return 30 * $SECOND + int(rand(3600 * $SECOND));
}

sub _click
{
    my ($self, $g, $merchant, $livemode) = @_;
    my $at = int(($self->{base} - int(rand((rand() < 0.02 ? 60 : $DAYS - 1) * $DAY))) / 1000);
    my $id = sprintf '%012x7%03x8%03x%012x', $at, int(rand 4096), int(rand 4096), ++$g->{clicks};
    my $owner = rand() < 0.02 ? 1 + int(rand 4) : $merchant;
    my $link = _one(@{ $self->{link_of}{$owner} });
    my $line;

    $id = join '-', unpack 'A8 A4 A4 A4 A12', $id;
    $livemode = 1 - $livemode if rand() < 0.02;
    $line = join "\t", 'C', $id, $at, $link, $livemode, rand() < 0.85 ? 0 : int(rand 6);
    if ($at * 1000 >= $self->{kept_since}) {
        my $when = rand;
        push @{ $when < 0.9 ? $g->{lines} : $g->{late} }, $line if $when < 0.97;
    }
    return ($id, $at, $link);
}

sub _event
{
    my ($self, $g) = @_;
    my $orders = $g->{orders};
    my $o = @$orders < 3 || rand() < 0.2 ? $self->_order($g) : $orders->[ rand() < 0.8 ? -1 - int(rand(@$orders < 50 ? @$orders : 50)) : rand @$orders ];
    my $status = $o->{fate} eq 'kept' ? _one('pending', 'approved', 'approved', 'refunded') : _one(@STATUS, 'pending', 'approved', 'refunded');
    my $part = ($status eq 'refunded' || $status eq 'returned') && rand() < ($o->{fate} eq 'kept' ? 1 : 0.7);
    my $at = $o->{start} + int(rand(_one(600, 86400, 86400 * 10)) * $SECOND);
    my ($click, $clicked) = @$o{qw(click clicked)};
    my ($received, $occurred) = ($at, undef);
    my ($amount, $refund, $items);

    # Some holds end while the history runs.
    $received = $self->{base} - _one(0, 60, 3600, 86400 * 7) * $SECOND + int(rand(40 * $SECOND)) if $status eq 'approved' && rand() < 0.1;
    ($click, $clicked) = $self->_click($g, $o->{merchant}, $o->{livemode}) if rand() < 0.02;
    if (rand() < 0.2) {
        $occurred = $received - int(rand(10000 * $SECOND));
        $occurred = $received + int(rand($DAY)) if rand() < 0.2;
    }
    if ($part) {
        $amount = 1 + int(rand($o->{amount} / _one(1, 5, 20)));
        $refund = 'r' . int(rand 4) if rand() < 0.7;
    } elsif ($status eq 'pending' || $status eq 'approved') {
        $amount = rand() < 0.8 ? $o->{amount} : int(rand(2 * $o->{amount} + 1));
        undef $amount if rand() < 0.01;
        $items = _items($amount) if defined $amount && rand() < 0.25;
    }
    my $currency = defined $amount ? ($part && rand() < 0.02 ? 'EUR' : $o->{currency}) : undef;
    my @e = ($o->{merchant}, $o->{livemode}, 'k' . ++$g->{keys}, 0, 'b' . int(rand 1e9), $received, $occurred, $click, $clicked, $o->{id},
        $status, $amount, $currency, $refund, $items);
    push @{ $g->{calls} }, \@e;
    return _line(@e);
}

sub _line { return join "\t", 'E', map { defined $_ ? $_ : '-' } @_ }

# Lines of goods whose sum is the amount, or less (delivery), or more (a discount).
sub _items
{
    my $amount = shift;
    my $share = int($amount * _one(1, 1, 0.9, 1.2));
    my @items;

    for my $n (1 .. 1 + rand 3) {
        my $part = int(rand($share + 1));
        push @items, join ':', _one('TEA', 'CUP', 'POT', 'PAN', ''), _one('kitchen', 'garden', 'shed', ''), 1 + int(rand 4), $part;
        $share -= $part;
    }
    return join ',', @items;
}

# A call that was made before: the same, with another body, at another position of the same key, or with a key of its own.
sub _again
{
    my ($self, $g) = @_;
    my @e = @{ _one(@{ $g->{calls} }) };
    my $kind = rand;

    if ($kind < 0.1) {
        $e[4] = 'another';
    } elsif ($kind < 0.2) {
        $e[3] = 1 + int(rand 3);
    } elsif ($kind < 0.6) {
        $e[2] = 'k' . ++$g->{keys};
    }
    return _line(@e);
}

# --- a run ---------------------------------------------------------------------------------------------------------------------

sub model
{
    my $self = shift;
    return Affiliated::Model->new(map { $_ => $self->{$_} } qw(merchants campaigns affiliates links terms kept_since));
}

# A database of its own, with the world in it, and a session. Only who shrinks needs the world again and again.
sub _open
{
    my $self = shift;
    my $t = $self->{test};

    if ($self->{again} && !$self->{world}) {
        $self->{world} = "world_$self->{seed}";
        $t->psql("create database $self->{world} template affiliate", db => 'postgres');
        $t->psql($self->_world_sql, db => $self->{world});
    }
    $self->_close;
    $self->{database} = sprintf 'run_%d_%d', $self->{seed}, ++$self->{databases};
    $t->psql("create database $self->{database} template " . ($self->{world} || 'affiliate'), db => 'postgres');
    $self->{errors} = $t->path("session.$self->{seed}.err");
    open my $errors, '>', $self->{errors} or die "$self->{errors}: $!\n";
    open my $kept, '>&', \*STDERR;
    open STDERR, '>&', $errors;
    $self->{pid} = open2($self->{out}, $self->{in}, $t->pg_bin . '/psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-F', "\t", '-P', 'null=\N',
        '-h', $t->{pg_socket}, '-U', 'postgres', '-d', $self->{database});
    open STDERR, '>&', $kept;
    $self->sql('set client_min_messages = warning; ' . ($self->{world} ? '' : $self->_world_sql) . $SESSION);
}

sub _close
{
    my $self = shift;

    if ($self->{pid}) {
        $self->{cpu} += eval { $self->sql(q{select split_part(pg_read_file('/proc/self/schedstat', 0, 100), ' ', 1)})->[0][0] / 1e9 } || 0;
        close $self->{in};
        close $self->{out};
        waitpid delete $self->{pid}, 0;
    }
    $self->{test}->psql('drop database ' . delete $self->{database}, db => 'postgres') if $self->{database};
}

# What the session answers: a list of rows for each part of the text; parts end with $PART.
sub parts
{
    my ($self, $text) = @_;
    my ($in, $out) = @$self{qw(in out)};
    my @parts = [];

    print $in "$text\n;\n\\echo ====\n";
    $in->flush;
    while (my $line = <$out>) {
        chomp $line;
        return @parts if $line eq '====';
        if ($line eq '----') {
            push @parts, [];
        } elsif (length $line) {
            push @{ $parts[-1] }, [map { $_ eq '\N' ? undef : $_ } split /\t/, $line, -1];
        }
    }
    die "psql: " . $self->{test}->slurp($self->{errors}) . substr($text, -500) . "\n";
}

sub sql { my ($self, $text) = @_; return ($self->parts($text))[0] }

sub run
{
    my ($self, $lines, $audit_every) = @_;
    my $model = $self->{model} = $self->model;
    my %run = (model => $model, batch => 0, clicks => [], events => [], audit_every => $audit_every || 0);
    my @differences;

    $self->_open;
    for my $line (@$lines) {
        my ($kind, @f) = map { $_ eq '-' ? undef : $_ } split /\t/, $line;
        if ($kind eq 'C') {
            push @{ $run{clicks} }, \@f;
        } elsif ($kind eq 'E') {
            push @{ $run{events} }, \@f;
        } elsif ($kind eq 'B') {
            @differences = $self->_batch(\%run);
        } elsif ($kind eq 'V') {
            @differences = $self->_review(\%run, @f);
        } elsif ($kind eq 'P') {
            @differences = $self->_pay(\%run, @f);
        } elsif ($kind eq 'H') {
            @differences = $self->_by_hand(\%run, @f);
        } else {
            @differences = $self->_resolve(\%run, $kind eq 'G');
        }
        last if @differences;
    }
    push @differences, $self->_whole($model) unless @differences;
    $self->{counts}{ 'order: ' . ($_->{problem} // $_->{outcome}) }++ for values %{ $model->orders };
    $self->{counts}{$_} += $model->{counts}{$_} for keys %{ $model->{counts} };
    $self->_close;
    return @differences;
}

sub _clicks
{
    my ($self, $run) = @_;
    my @rows;

    for my $c (splice @{ $run->{clicks} }) {
        my ($id, $at, $link, $livemode, $verdict) = @$c;
        my $l = $self->{links}{$link};
        $run->{model}->click({ id => $id, at_ms => $at, link => $link, livemode => $livemode, verdict => $verdict });
        push @rows, join "\t", $id, $l->{merchant}, $link, $l->{campaign}, $l->{affiliate}, $livemode ? 't' : 'f', $verdict, 0;
    }
    return @rows ? "copy affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons) from stdin;\n"
        . join("\n", @rows) . "\n\\.\n" : '';
}

sub _stage_row
{
    my ($e, $batch, $record) = @_;
    my ($merchant, $livemode, $key, $position, $body, $received, $occurred, $click, $clicked, $order, $status, $amount, $currency,
        $refund, $items) = @$e;
    my @items = map { [split /:/, $_, -1] } split /,/, $items // '';
    my @columns = map { my $n = $_; @items ? '{' . join(',', map { length $_->[$n] ? $_->[$n] : 'NULL' } @items) . '}' : undef } 0 .. 3;

    return join "\t", map { $_ // '\N' } 1, 1, $batch, $record, $merchant, $livemode ? 't' : 'f', 1, $position, 'ak_live_model', $key,
        '\\\\x' . unpack('H*', $body), _time($received), defined $occurred ? _time($occurred) : undef, $click, $order, $STATUS{$status}, 0,
        $amount, $currency, $refund, undef, @columns;
}

sub _model_event
{
    my ($model, $e) = @_;
    my %e;

    @e{qw(merchant livemode key position body received_us occurred_us click_id clicked_ms order_id status amount currency refund_id
        items)} = @$e;
    $e{items} = [map { my %i; @i{qw(sku category quantity amount)} = map { length $_ ? $_ : undef } split /:/, $_, -1; \%i }
        split /,/, $e{items}] if defined $e{items};
    return $model->event(\%e);
}

# A transaction, then one that releases what is due; whether an invariant is broken after either, and how PostgreSQL and the
# model differ then in what was touched. $text gives $want, a row; $clicks come before it.
sub _step
{
    my ($self, $run, $text, $want, $clicks) = @_;
    my @keys = $run->{model}->touched;
    my ($answer, $broken, $now, $orders, $accounts, $broken_too) = $self->parts(($clicks // '') . "truncate pg_temp.touched;\n"
        . "copy pg_temp.touched from stdin;\n" . join('', map { join("\t", split m{/}) . "\n" } @keys) . "\\.\nbegin;\n$text;\n$PART"
        . "${INVARIANTS}commit;\n$PART"
        . "begin;\nexecute due;\nselect affiliate.release_holds(100000) \\g /dev/null\nexecute now;\n$PART"
        . "execute orders;\n$PART${ACCOUNTS};\n$PART${INVARIANTS}commit");
    my $got = join ' ', map { $_ // '' } @{ $answer->[-1] || [] };

    return (defined $want && $got ne $want ? "answered $got, should be $want" : (),
        compare($run->{model}, $orders, $accounts, $now->[0][0], \@keys),
        map { 'audit: ' . join ' ', map { $_ // '' } @$_ } @$broken, @$broken_too);
}

# What was staged is applied as one batch.
sub _batch
{
    my ($self, $run) = @_;
    my @events = splice @{ $run->{events} } or return;
    my $clicks = $self->_clicks($run);
    my $batch = $run->{batch}++;
    my %expected = (applied => 0, waiting => 0, duplicate => 0, dead => 0);
    my $text = sprintf "select count(*) from affiliate.inbox_accept(2::smallint, '{1}', '{1}', '{%d}', '{%d}') \\g /dev/null\n"
        . "copy pg_temp.conversion_stage from stdin;\n", $batch, scalar @events;
    my @differences;

    for my $n (0 .. $#events) {
        $text .= _stage_row($events[$n], $batch, $n) . "\n";
        $expected{ _model_event($run->{model}, $events[$n]) }++;
    }
    $text .= "\\.\nselect applied, waiting, duplicates, dead from affiliate.apply_conversions()";
    $self->{counts}{"event: $_"} += $expected{$_} for keys %expected;
    @differences = $self->_step($run, $text, join(' ', @expected{qw(applied waiting duplicate dead)}), $clicks);
    push @differences, $self->_whole($run->{model}) if !@differences && $run->{audit_every} && $run->{batch} % $run->{audit_every} == 0;
    return @differences;
}

sub _resolve
{
    my ($self, $run, $give_up) = @_;
    my $want = 0;

    $self->sql($self->_clicks($run) . 'update affiliate.waiting set next_at = now()' . ($give_up ? ', until = now()' : ''));
    $want = $run->{model}->resolve($give_up);
    return $self->_step($run, 'select affiliate.resolve_waiting(100000)', $want);
}

# By the rules of the command: no review changes what is rejected for another reason.
sub _review
{
    my ($self, $run, $merchant, $order, $livemode, $decision) = @_;
    my $o = $run->{model}->orders->{ order_key($merchant, $order, $livemode) };

    return if !$o || ($o->{outcome} eq 'rejected' && $o->{problem} ne 'review_rejected');
    $run->{model}->review($merchant, $order, $livemode, $decision);
    $self->{counts}{"review: $decision"}++;
    my $json = sprintf '{"merchant": %d, "order": "%s", "livemode": %s, "decision": "%s", "reason": "looked at"}',
        $merchant, $order, $livemode ? 'true' : 'false', $decision;
    return $self->_step($run, "select affiliate.order_review('$json') is null");
}

sub _by_hand
{
    my ($self, $run, $merchant, $livemode, $order, $status, $amount, $currency, $refund, $occurred) = @_;
    my $places = { JPY => 0, KWD => 3 }->{ $currency // '' } // 2;
    my $text = defined $amount ? $places ? sprintf('%d.%0*d', int($amount / 10**$places), $places, $amount % 10**$places) : $amount : undef;
    my $verdict = $run->{model}->by_hand({ merchant => $merchant, livemode => $livemode, order_id => $order, status => $status,
        amount => $amount, currency => $currency, refund_id => $refund, occurred_us => $occurred });
    my $at = _time($occurred) =~ s/ /T/r =~ s/\+00$/Z/r;

    $self->{counts}{"by hand: $verdict"}++;
    return $self->_step($run, sprintf("select pg_temp.said(%d, %s, '[%s]')", $merchant, $livemode ? 'true' : 'false',
        join ', ', map { defined $_ ? qq("$_") : 'null' } $order, $status, $text, $currency, $refund, 'order_update', $at), $verdict);
}

# What is payable is paid, by hand: there is no other way yet. Its transfers have a cause that nobody knows.
sub _pay
{
    my ($self, $run, $merchant, $affiliate, $currency, $livemode) = @_;
    my $amount = $run->{model}->pay($merchant, $affiliate, $currency, $livemode) or return;
    my $mode = $livemode ? 'true' : 'false';

    $self->{counts}{'paid out'}++;
    return $self->_step($run, sprintf(q{select pg_temp.pay(%s, %s, '%s', %s, %s) }, $merchant, $affiliate, $currency, $mode, $amount));
}

# Everything, whether it was touched or not; what is paid by hand excepted.
sub _whole
{
    my ($self, $model) = @_;
    my ($now, $orders, $accounts, $broken) = $self->parts("begin;\nselect affiliate.release_holds(100000) \\g /dev/null\n"
        . "execute now;\n$PART$ORDERS;\n$PART$ACCOUNTS;\n${PART}commit;\n"
        . "select * from affiliate.audit() where not (invariant = 'transfer has a cause' and subject like 'transfer 2/-%')");

    return (compare($model, $orders, $accounts, $now->[0][0]), map { 'audit: ' . join ' ', map { $_ // '' } @$_ } @$broken);
}

# --- shrinking -------------------------------------------------------------------------------------------------------------------

# What concerns the orders that the differences name: these, and their clicks.
sub _about
{
    my ($lines, $differences) = @_;
    my %order = map { m{^order (\d+/.*?/[tf]):} ? ($1 => 1) : () } @$differences;
    my (%click, @left);

    for my $line (reverse @$lines) {
        my ($kind, @f) = split /\t/, $line;
        my $about = $kind eq 'E' ? $order{ order_key(@f[0, 9, 1]) } : $kind eq 'V' ? $order{ order_key(@f[0, 1, 2]) }
            : $kind eq 'H' ? $order{ order_key(@f[0, 2, 1]) }
            : $kind eq 'C' ? $click{ $f[0] } : $kind ne 'P';
        next unless $about;
        $click{ $f[7] } = 1 if $kind eq 'E';
        push @left, $line;
    }
    return reverse @left;
}

# Delta debugging: leaves out what is not needed for the books to differ, large parts first.
sub shrink
{
    my ($self, $lines, $differences, $tries) = @_;
    my @left = @$lines;
    $self->{again} = 1;
    my $fails = sub { return $tries-- > 0 && do { my @d = eval { $self->run([@_, 'B'], 1) }; @d || $@ ? 1 : 0 } };
    my @about = _about($lines, $differences);

    $tries ||= 400;
    @left = @about if @about < @left && $fails->(@about);
    for (my $size = int(@left / 2) || 1; $size >= 1; $size = int($size / 2)) {
        for (my $at = 0; $at < @left;) {
            my @fewer = @left;
            splice @fewer, $at, $size;
            if (@fewer && $fails->(@fewer)) {
                @left = @fewer;
            } else {
                $at += $size;
            }
        }
    }
    return [@left, 'B'];
}

1;
