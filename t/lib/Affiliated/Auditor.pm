package Affiliated::Auditor;

# What PostgreSQL must hold after Affiliated::Traffic, row by row: predicted from what was sent and answered, by README and design,
# with Affiliated::Model for orders and money.
#
#   my $auditor = Affiliated::Auditor->new(dir => ..., world => $world);
#   my @differences = $auditor->differences($reader);       text; () if all is as predicted
#   my @differences = $auditor->settle($reader, 60);        the same, once nothing changes for the better any more
#   $auditor->counts                                        { clicks_answered, clicks_found, ... }
#
# new(%o)          name => of the journals (traffic); strict => 1 if nothing was broken meanwhile: every request was answered as
#                  the rules say, and nothing had to be told twice
# $reader->($sql)  rows as array references, in an array reference; null may be undef or the empty text
#
# Beside the journals of the traffic the directory may have
#   clocks.journal   "time host seconds": from then on that host's clock was off by so much
#   faults.journal   "time kind detail"; "destroyed click ID [TAG]" and "destroyed event MERCHANT t|f KEY POSITION" in it name records that a
#                    fault destroyed where nothing else held them: these may be missing, or be there
#                    with a kind that begins with spool or fault_point_nginx, redirects may have gone without a click_id
#
# Predicted of a click: everything but its visitor, of which is known only who shares it; its time, within the time that it took. Of
# a conversion: everything but where it was in the spool; received_at within the time that the call took. Of dead letters: which
# calls they stand for. Of orders and accounts: what Affiliated::Model says.
#
# What was not answered may be there or not, each record by itself, but only as it was sent.

use strict;
use warnings;

use Affiliated::Model ();
use Affiliated::Traffic ();
use Digest::SHA qw(sha256_hex);
use JSON::PP ();
use List::Util qw(max min);
use Time::HiRes qw(sleep time);

my $SLACK = 1.5;            # seconds: nginx's cached time, and what a clock's step takes to be seen
my $LINGER = 40;            # a server may work on a request so long after its client has gone
my $WINDOW = 60;            # affiliate_duplicate_window
my %STATUS = (pending => 1, approved => 2, cancelled => 3, returned => 4, refunded => 5);
my %SOURCE = (single => 1, batch => 2, postback => 3);
my %REFUSAL = (reused => 'idempotency_key_reused', validation => 'validation', click_mode => 'wrong_livemode', click_unknown => 'unknown_click_id');

sub new { my ($class, %o) = @_; return bless { name => 'traffic', counts => {}, %o }, $class }

sub counts { return $_[0]{counts} }

# --- the journals ----------------------------------------------------------------------------------------------------

sub _lines
{
    my $path = shift;

    open my $file, '<:raw', $path or return;
    local $/;
    my $text = <$file> // '';
    $text =~ s/[^\n]*\z//;    # a line that its writer did not live to finish
    return split /\n/, $text;
}

sub _uuid
{
    my $text = shift;
    my $bits = join '', map { sprintf '%05b', index '0123456789abcdefghjkmnpqrstvwxyz', $_ } split //, $text;

    return join '-', unpack 'A8 A4 A4 A4 A12', unpack 'H*', pack 'B128', substr $bits, 0, 128;
}

# Milliseconds inside a UUIDv7.
sub _id_ms { my $uuid = shift; return hex(substr $uuid, 0, 8) * 65536 + hex substr $uuid, 9, 4 }

sub _journal
{
    my $self = shift;
    my $j = { clicks => {}, calls => [], unfinished => [], destroyed => {} };

    for my $path (Affiliated::Traffic::journals($self->{dir}, $self->{name})) {
        my (%click, %call);
        my $end = 0;
        for my $line (_lines($path)) {
            my ($what, $n, @f) = split /\t/, $line, -1;
            if ($what eq 'c') {
                my %c;
                @c{qw(sent host link class address agent referrer tag sub1 url)} = @f;
                $click{$n} = $j->{clicks}{ $c{tag} } = \%c;
            } elsif ($what eq 'C') {
                @{ $click{$n} }{qw(answered status location)} = @f;
            } elsif ($what eq 'e') {
                my %e = (attempts => []);
                @e{qw(key method idempotency expect body)} = @f;
                $e{name} = "$n of $path";
                push @{ $j->{calls} }, $call{$n} = \%e;
            } elsif ($what eq 't') {
                push @{ $call{$n}{attempts} }, { sent => $f[1], host => $f[2] };
            } elsif ($what eq 'T') {
                @{ $call{$n}{attempts}[-1] }{qw(answered status code replayed results)} = @f[1 .. 5];
            } elsif ($what eq 'g') {
                $call{$n}{given_up} = 1;
            } elsif ($what eq 'end') {
                $end = 1;
            }
        }
        push @{ $j->{unfinished} }, "$path does not end" unless $end;
    }
    $j->{clocks} = $self->_clocks;
    $self->_faults($j);
    $self->_calls($j);
    return $j;
}

sub _clocks
{
    my $self = shift;
    my %clocks;

    for (_lines("$self->{dir}/clocks.journal")) {
        my ($time, $host, $seconds) = split;
        push @{ $clocks{$host} }, [$time, $seconds];
    }
    return \%clocks;
}

sub _faults
{
    my ($self, $j) = @_;

    for (_lines("$self->{dir}/faults.journal")) {
        my ($time, $kind) = split;
        $j->{may_drop} = 1 if $kind =~ /^(?:spool|fault_point_nginx)/;
        @{ $j->{destroyed} }{lc $1, $2 // ()} = (1, 1) if /destroyed click (\S+)(?: (\S+))?/;
        $j->{destroyed}{"$1/$2/$3/$4"} = 1 if /destroyed event (\S+) (\S+) (\S+) (\S+)/;
    }
}

# Whether a host may have taken this time (in seconds) between two of ours. Ids go on counting from the highest time they had, so
# that of a click may lie as far ahead as the clock ever was.
sub _plausible
{
    my ($self, $time, $host, $from, $to, $is_id) = @_;
    my ($low, $high, $before, $ahead) = (0, 0, 0, 0);
    my @in;

    for my $step (@{ $self->{journal}{clocks}{$host} || [] }) {
        last if $step->[0] > $to + $SLACK;
        $ahead = max $ahead, $step->[1];
        $step->[0] < $from - $SLACK ? ($before = $step->[1]) : push @in, $step->[1];
    }
    ($low, $high) = (min($before, @in), max($before, @in));
    $high = max $high, $ahead if $is_id;
    return $time >= $from + $low - $SLACK && $time <= $to + $high + $SLACK;
}

# --- calls -----------------------------------------------------------------------------------------------------------

sub _unescape { my $text = shift; $text =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ge; return $text }

sub _is_number { return JSON::PP->new->allow_nonref->encode($_[0]) !~ /^"/ }

sub _minor
{
    my ($text, $currency) = @_;
    my ($whole, $part) = split /\./, $text;

    return $whole * 10**$Affiliated::Traffic::DECIMALS{$currency} + (defined $part ? $part : 0) if $currency ne 'EUR';
    return $whole * 100 + $part;
}

sub _time
{
    my $text = shift;
    my @t = $text =~ /^(\d+)-(\d+)-(\d+)T(\d+):(\d+):(\d+)\.(\d{3})Z$/ or die "time: $text\n";

    require Time::Local;
    return Time::Local::timegm(@t[5, 4, 3, 2], $t[1] - 1, $t[0]) * 1_000_000 + $t[6] * 1000;
}

# The events of calls, and what is known of each identity: merchant, mode, key and body.
sub _calls
{
    my ($self, $j) = @_;

    for my $call (@{ $j->{calls} }) {
        my $key = $self->{world}{keys}[ $call->{key} ];
        my $postback = $call->{method} eq 'postback';
        my $json = $postback ? { map { my ($name, $value) = split /=/; $name => _unescape($value) } split /&/, $call->{body} }
            : JSON::PP::decode_json($call->{body});
        my @events = $call->{method} eq 'batch' ? @{ $json->{events} } : $json;
        my $group = join '/', $key->{merchant}, $key->{livemode} ? 't' : 'f', $call->{idempotency};

        $call->{hash} = substr sha256_hex($postback ? "$call->{body}&" : $call->{body}), 0, 32;
        $call->{valid} = [map { !_is_number($_->{amount} // '') } @events];
        my $i = $j->{groups}{$group}{ $call->{hash} } ||= { group => $group, hash => $call->{hash}, key => $key, calls => [],
            method => $call->{method}, events => \@events, valid => $call->{valid} };
        push @{ $i->{calls} }, $call;
        $call->{identity} = $i;
        for my $attempt (@{ $call->{attempts} }) {
            $i->{accepted} ||= $attempt->{status} && $attempt->{status} =~ /^20[02]$/;
        }
        $i->{refusable} = 1 if $call->{expect} =~ /^(?:validation|click)/;
    }
}

# What is wrong with the answers themselves.
sub _answers
{
    my $self = shift;
    my $j = $self->{journal};
    my @wrong = @{ $j->{unfinished} };

    for my $call (@{ $j->{calls} }) {
        push @wrong, "call $call->{name} was never answered" if $call->{given_up};
        push @wrong, map { "call $call->{name}: $_" } map { $self->_answer($call, $_) } @{ $call->{attempts} };
    }
    for my $c (values %{ $j->{clicks} }) {
        my $wrong = $self->_redirect($c);
        push @wrong, "click $c->{tag} on link $c->{link}, $c->{class}: $wrong" if $wrong;
    }
    return @wrong;
}

sub _answer
{
    my ($self, $call, $attempt) = @_;
    my ($status, $expect) = ($attempt->{status}, $call->{expect});

    return if !defined $status;
    my $text = "$status $attempt->{code}";
    if (!$status || $status == 503 || $attempt->{code} eq 'clock_skew') {
        return $self->{strict} ? ("was answered $text, and nothing was broken") : ();
    }
    if ($status == 422) {
        return if $expect && $attempt->{code} eq $REFUSAL{$expect};
        return "was answered $text";
    }
    return "was answered $text" unless $status == 202 || $status == 200;
    return "was answered $text, should be refused: $expect" if $expect && ($expect ne 'reused' || $self->_remembered($call, $attempt));
    return 'is said to be replayed, and was not' if $attempt->{replayed} != ($status == 200);
    if ($status == 200) {
        return 'is said to be replayed, and was never sent before'
            unless grep { $_->{sent} < $attempt->{sent} } map { @{ $_->{attempts} } } @{ $call->{identity}{calls} };
    }
    my $results = $call->{method} eq 'batch' ? join ',', map { $_ ? $status : 422 } @{ $call->{valid} } : '';
    return $attempt->{results} eq $results ? () : "results are $attempt->{results}, should be $results";
}

# Whether a host must know by itself that the key was used with another body. What another host took, it learns from Redis, soon.
sub _remembered
{
    my ($self, $call, $attempt) = @_;
    my $identity = $call->{identity};
    my @others = map { @{ $_->{calls} } } grep { $_ != $identity } values %{ $self->{journal}{groups}{ $identity->{group} } };

    return $self->{strict} && grep { $_->{host} == $attempt->{host} && ($_->{status} || 0) eq '202' && $_->{answered} < $attempt->{sent} }
        map { @{ $_->{attempts} } } @others;
}

# Where the redirect must have led; ID stands for the click_id.
sub _location
{
    my ($self, $c) = @_;
    my $link = $self->{world}{links}{ $c->{link} };
    my $url = $c->{url} =~ m{^http://\Q$self->{world}{merchants}{ $link->{merchant} }{host}\E/} ? $c->{url} : $link->{url};
    my ($base, $fragment) = $url =~ /^([^#]*)(.*)/s;
    my @query = ($c->{sub1} ne '' ? "sub1=$c->{sub1}" : (), "sub5=$c->{tag}",
        $Affiliated::Traffic::CLASSES{ $c->{class} }{verdict} < 3 ? "$link->{param}=ID" : ());

    return $base . ($base =~ /\?/ ? '&' : '?') . join('&', @query) . $fragment;
}

sub _redirect
{
    my ($self, $c) = @_;
    my $status = $c->{status} // 0;
    my $link = $self->{world}{links}{ $c->{link} };

    if (!$status || $status == 503) {
        return $self->{strict} ? "was answered $status, and nothing was broken" : undef;
    }
    return $status == 410 ? undef : "was answered $status, should be 410" if $link->{state} ne 'active';
    return "was answered $status, should be 302" if $status != 302;
    my $is = $c->{location};
    my $want = $self->_location($c);
    $c->{id} = _uuid($1) if $is =~ s/([?&]\Q$link->{param}\E=)([0-9a-z]{39})(?=[&#]|\z)/$1ID/ && $2 =~ /(.*)/;
    return undef if $is eq $want;
    if ($want =~ s/[?&][^=&]*=ID// && $is eq $want) {
        $c->{dropped} = 1;
        return $self->{journal}{may_drop} ? undef : 'got no click_id';
    }
    return "leads to $is, should be $want";
}

# --- clicks ----------------------------------------------------------------------------------------------------------

my $CLICKS = <<'SQL';
select c.id, c.merchant_id, c.link_id, c.campaign_id, c.affiliate_id, left(c.livemode::text, 1), c.verdict, c.reasons,
       c.address_prefix, array_to_string(c.sub_ids, '|', ''), c.signals, c.user_agent, c.referrer, c.visitor
  from affiliate.click c
SQL

my @CLICK = qw(merchant link campaign affiliate livemode verdict reasons address subs signals agent referrer);

sub _clicks
{
    my ($self, $reader) = @_;
    my $j = $self->{journal};
    my (@wrong, %seen, %visitor, %who);

    $self->{found} = {};
    for my $row (@{ $reader->($CLICKS) }) {
        my ($id, @is) = map { $_ // '' } @$row;
        my $visitor = pop @is;
        my ($tag) = $is[8] =~ /([^|]*)\z/;
        my $c = $j->{clicks}{$tag};
        if (!$c) {
            push @wrong, "click $id ($tag) is there, and was never sent";
            next;
        }
        push @wrong, "click $tag is there twice: $id and $seen{$tag}" if $seen{$tag};
        $seen{$tag} = $id;
        push @wrong, "click $tag is there as $id, was answered as $c->{id}" if $c->{id} && $c->{id} ne $id;
        push @wrong, "click $tag is there, and was answered $c->{status}" if $c->{status} && ($c->{status} =~ /^4/ || $c->{dropped});
        $self->{found}{$id} = { link => $c->{link}, verdict => $is[5] };
        push @wrong, map { "click $tag, $id: $_" } $self->_click($c, $id, \@is);

        # Who is whom, for a day.
        my $who = join ' ', $is[0], int(_id_ms($id) / 86_400_000), @$c{qw(address agent)};
        push @wrong, "click $tag, $id: visitor is $visitor, was $visitor{$who}" if ($visitor{$who} //= $visitor) ne $visitor;
        push @wrong, "click $tag, $id: visitor $visitor is also $who{$visitor}" if ($who{$visitor} //= $who) ne $who;
    }
    for my $c (values %{ $j->{clicks} }) {
        next if $seen{ $c->{tag} } || !$c->{status} || $c->{status} != 302 || $c->{dropped};
        next if $j->{destroyed}{ $c->{tag} } || $c->{id} && $j->{destroyed}{ $c->{id} };
        # Where the spool may refuse, nothing is promised of a visitor who got no click_id.
        next if $j->{may_drop} && !$c->{id};
        push @wrong, "click $c->{tag}, " . ($c->{id} || $c->{class}) . ", was answered at $c->{answered} and is missing";
    }
    @{ $self->{counts} }{qw(clicks_sent clicks_answered clicks_found clicks_unanswered_found)} = (scalar keys %{ $j->{clicks} },
        scalar(grep { $_->{id} } values %{ $j->{clicks} }), scalar keys %seen,
        scalar(grep { !$j->{clicks}{$_}{status} } keys %seen));
    return @wrong;
}

# A click that is there, by its request.
sub _click
{
    my ($self, $c, $id, $is) = @_;
    my $link = $self->{world}{links}{ $c->{link} };
    my $class = $Affiliated::Traffic::CLASSES{ $c->{class} };
    my ($verdict, $reasons) = @$class{qw(verdict reasons)};
    my @wrong;

    if ($verdict < 3) {
        my ($may, $must) = $self->_repeated($c);
        if ($must || $may && $is->[6] & 256) {
            $reasons |= 256;
            $verdict ||= 1;
        }
    }
    (my $prefix = $c->{address}) =~ s/\.\d+$/.0\/24/;
    my @want = (@$link{qw(merchant)}, $c->{link}, @$link{qw(campaign affiliate)}, $link->{livemode} ? 't' : 'f', $verdict, $reasons, $prefix,
        join('|', $c->{sub1}, '', '', '', $c->{tag}), $c->{class} eq 'suspect' ? 'risk=7' : '', @$c{qw(agent referrer)});
    push @wrong, map { "$CLICK[$_] is $is->[$_], should be $want[$_]" } grep { $is->[$_] ne $want[$_] } 0 .. $#CLICK;
    my $to = $c->{status} ? $c->{answered} : ($c->{answered} || $c->{sent}) + $LINGER;
    push @wrong, 'its time is ' . _id_ms($id) . ", was sent at $c->{sent} and answered at " . ($c->{answered} || '-')
        unless $self->_plausible(_id_ms($id) / 1000, $c->{host}, $c->{sent}, $to, 1);
    return @wrong;
}

# Whether an earlier click of the same person on the same link, there, may make it a repeated one, and whether it must.
sub _repeated
{
    my ($self, $c) = @_;
    my $by = $self->{journal}{by_person} ||= $self->_by_person;
    my ($may, $must) = (0, 0);

    for my $e (@{ $by->{ join ' ', @$c{qw(host link address agent)} } }) {
        next if $e == $c || $e->{sent} > ($c->{answered} || $e->{sent});
        $may = 1;
        $must ||= $self->{strict} && $e->{answered} < $c->{sent} && $c->{answered} - $e->{sent} < $WINDOW - 1;
    }
    return ($may, $must);
}

sub _by_person
{
    my $self = shift;
    my %by;

    for my $c (values %{ $self->{journal}{clicks} }) {
        push @{ $by{ join ' ', @$c{qw(host link address agent)} } }, $c if $Affiliated::Traffic::CLASSES{ $c->{class} }{verdict} < 3;
    }
    return \%by;
}

# --- conversions -----------------------------------------------------------------------------------------------------

my $CONVERSIONS = <<'SQL';
select concat_ws('/', c.merchant_id, left(c.livemode::text, 1), c.idempotency_key), encode(c.body_hash, 'hex'), c.position,
       (extract(epoch from c.received_at) * 1000000)::bigint,
       c.source, c.key_id, c.status, c.customer, left(c.waiting::text, 1), c.click_id, c.link_id, c.campaign_id, c.affiliate_id, c.verdict,
       c.click_problem, c.amount_minor, c.currency, c.order_id, c.refund_key, c.reason,
       array_to_string(c.item_sku, '|', ''), array_to_string(c.item_category, '|', ''), array_to_string(c.item_quantity, '|'),
       array_to_string(c.item_amount, '|'), (extract(epoch from c.occurred_at) * 1000000)::bigint,
       (extract(epoch from c.effective_at) * 1000000)::bigint, (extract(epoch from c.clicked_at) * 1000000)::bigint
  from affiliate.conversion c
SQL

my @CONVERSION = qw(source key status customer waiting click link campaign affiliate verdict click_problem amount currency order refund
    reason skus categories quantities amounts occurred effective clicked);

sub _conversions
{
    my ($self, $reader) = @_;
    my $j = $self->{journal};
    my (@wrong, %seen, @events);

    for my $row (@{ $reader->($CONVERSIONS) }) {
        my ($group, $hash, $position, $received, @is) = map { $_ // '' } @$row;
        my $i = $j->{groups}{$group}{$hash};
        my $name = "conversion $group/$position";
        if (!$i || $position > $#{ $i->{events} } || !$i->{valid}[$position] || $i->{refusable}) {
            push @wrong, "$name, body $hash, is there, and was never sent so";
            next;
        }
        if ($seen{"$group/$position"}++) {
            push @wrong, "$name is there twice";
            next;
        }
        push @{ $seen{$group} }, $hash;
        my $event = $self->_model_event($i, $position, $received);
        my $want = $self->_conversion($i, $position, $event);
        push @wrong, map { "$name: $_" } map { "$CONVERSION[$_] is $is[$_], should be $want->[$_]" } grep { $is[$_] ne $want->[$_] } 0 .. $#CONVERSION;
        push @wrong, "$name: received at $received, when it was not on its way" unless $self->_received($i, $received / 1_000_000);
        push @events, $event;
    }
    push @wrong, $self->_missing(\%seen, \@events);
    $self->{counts}{events_found} = grep { !ref $seen{$_} } keys %seen;
    $self->{events} = \@events;
    return @wrong;
}

# What was answered must be there; of several bodies under one key one, the others in dead letters.
sub _missing
{
    my ($self, $seen, $events) = @_;
    my $j = $self->{journal};
    my ($answered, @wrong) = 0;

    $j->{conflicts} = {};
    for my $group (sort keys %{ $j->{groups} }) {
        my @accepted = grep { $_->{accepted} } values %{ $j->{groups}{$group} };
        my %stored = map { $_ => 1 } @{ $seen->{$group} || [] };
        push @wrong, "conversions of $group are of " . keys(%stored) . ' bodies' if keys %stored > 1;
        my ($winner) = grep { $stored{ $_->{hash} } } values %{ $j->{groups}{$group} };
        for my $i (values %{ $j->{groups}{$group} }) {
            $j->{conflicts}{$group}{ $i->{hash} } = $i->{accepted} ? 1 : 0 if $winner && $i != $winner;
        }
        ($winner) = @accepted unless $winner;
        next unless $winner && $winner->{accepted};
        for my $position (grep { $winner->{valid}[$_] } 0 .. $#{ $winner->{events} }) {
            $answered++;
            next if $seen->{"$group/$position"} || $j->{destroyed}{"$group/$position"};
            my ($attempt) = grep { ($_->{status} || 0) =~ /^20[02]$/ } map { @{ $_->{attempts} } } @{ $winner->{calls} };
            push @wrong, "conversion $group/$position was answered $attempt->{status} at $attempt->{answered} and is missing";
            push @$events, $self->_model_event($winner, $position, int $attempt->{answered} * 1_000_000);
        }
    }
    $self->{counts}{events_answered} = $answered;
    $self->{counts}{calls_replayed} = grep { ($_->{status} || 0) eq '200' } map { @{ $_->{attempts} } } @{ $j->{calls} };
    $self->{counts}{calls_repeated} = grep { @{ $_->{attempts} } > 1 } @{ $j->{calls} };
    return @wrong;
}

# Whether it may have been received then: while any of the calls with this identity was under way.
sub _received
{
    my ($self, $i, $time) = @_;

    for my $attempt (map { @{ $_->{attempts} } } @{ $i->{calls} }) {
        my $to = $attempt->{status} ? $attempt->{answered} : ($attempt->{answered} || $attempt->{sent}) + $LINGER;
        return 1 if $self->_plausible($time, $attempt->{host}, $attempt->{sent}, $to, 0);
    }
    return 0;
}

# The event as the model takes it.
sub _model_event
{
    my ($self, $i, $position, $received) = @_;
    my $e = $i->{events}[$position];
    my $click = _uuid($e->{click_id});
    my $money = sub { defined $_[0] ? _minor($_[0], $e->{currency}) : undef };

    return { merchant => $i->{key}{merchant}, livemode => $i->{key}{livemode}, key => $i->{group}, position => $position, body => $i->{hash},
        received_us => $received, occurred_us => defined $e->{occurred_at} ? _time($e->{occurred_at}) : undef, click_id => $click,
        clicked_ms => _id_ms($click), order_id => $e->{order_id}, status => $e->{status}, amount => $money->($e->{amount}),
        currency => $e->{currency}, refund_id => $e->{refund_id}, reason => $e->{reason}, customer => $e->{customer},
        items => $e->{items} && [map { { %$_, quantity => $_->{quantity} // 1, amount => $money->($_->{amount}) } } @{ $e->{items} }] };
}

# Its row.
sub _conversion
{
    my ($self, $i, $position, $e) = @_;
    my $click = $self->{found}{ $e->{click_id} };
    my $link = $click && $self->{world}{links}{ $click->{link} };
    my $clicked = $e->{clicked_ms} * 1000;
    my $occurred = $e->{occurred_us};
    my $partial = $STATUS{ $e->{status} } >= 4 && defined $e->{amount};
    my $idempotency = (split /\//, $i->{group}, 3)[2];
    my @items = @{ $e->{items} || [] };
    my $lines = sub { my $name = shift; return join '|', map { $_->{$name} // '' } @items };

    return [map { $_ // '' } $SOURCE{ $i->{method} }, $i->{key}{id}, $STATUS{ $e->{status} },
        $e->{customer} ? ($e->{customer} eq 'new' ? 1 : 2) : 0, $click ? 'f' : 't', $e->{click_id},
        $click ? ($click->{link}, @$link{qw(campaign affiliate)}, $click->{verdict}) : ('', '', '', ''), '', @$e{qw(amount currency order_id)},
        $partial ? (defined $e->{refund_id} ? "r:$e->{refund_id}" : "e:$idempotency:$position") : '', $e->{reason},
        map({ $lines->($_) } qw(sku category quantity amount)), $occurred,
        defined $occurred && $occurred <= $e->{received_us} && $occurred >= $clicked ? $occurred : $e->{received_us}, $clicked];
}

# --- what is beside, and what it comes to ------------------------------------------------------------------------------

my $DEAD = <<'SQL';
select d.dead_letter_id, d.reason, case when d.record is not null and d.reason = 'idempotency_conflict' then
           concat_ws('/', j->>'merchant_id', left(j->>'livemode', 1), j->>'idempotency_key') end,
       case when d.reason = 'idempotency_conflict' then substr(j->>'body_hash', 3) end, d.detail
  from affiliate.dead_letter d
 cross join lateral (select case when d.reason = 'idempotency_conflict' then convert_from(d.payload, 'UTF8')::jsonb end as j) p
SQL

sub _dead_letters
{
    my ($self, $reader) = @_;
    my %expected = %{ $self->{journal}{conflicts} };
    my ($rows, $excused, @wrong) = (0, scalar keys %{ $self->{journal}{destroyed} });
    my %seen;

    for my $row (@{ $reader->($DEAD) }) {
        my ($id, $reason, $group, $hash, $detail) = map { $_ // '' } @$row;
        $rows++;
        if ($reason eq 'idempotency_conflict' && exists $expected{$group} && exists $expected{$group}{$hash}) {
            $seen{"$group $hash"} = 1;
        } elsif ($reason eq 'idempotency_conflict' || $excused-- <= 0) {
            push @wrong, "dead letter $id: $reason, $group $detail";
        }
    }
    for my $group (sort keys %expected) {
        next if grep { m{^\Q$group\E/} } keys %{ $self->{journal}{destroyed} };    # nobody is left to say that it was used
        push @wrong, map { "call $group, body $_, was answered 202, does not count and has no dead letter" }
            grep { $expected{$group}{$_} && !$seen{"$group $_"} } sort keys %{ $expected{$group} };
    }
    $self->{counts}{dead_letters} = $rows;
    return @wrong;
}

sub _money
{
    my ($self, $reader) = @_;
    my $w = $self->{world};
    my $m = Affiliated::Model->new(map { $_ => $w->{$_} } qw(merchants campaigns affiliates links terms kept_since));

    for my $id (keys %{ $self->{found} }) {
        my $click = $self->{found}{$id};
        $m->click({ id => $id, at_ms => _id_ms($id), link => $click->{link}, livemode => $w->{links}{ $click->{link} }{livemode},
            verdict => $click->{verdict} });
    }
    # The model goes by their times, and takes those of one instant as they come: values decide then, the smaller id, the greater amount.
    $m->event($_) for sort { $a->{click_id} cmp $b->{click_id} || ($a->{amount} // -1) <=> ($b->{amount} // -1)
        || $a->{key} cmp $b->{key} || $a->{position} <=> $b->{position} } @{ $self->{events} };
    my ($now) = map { $_->[0] } @{ $reader->('select (extract(epoch from clock_timestamp()) * 1000000)::bigint') };
    my @wrong = Affiliated::Model::compare($m, $reader->($Affiliated::Model::ORDERS), $reader->($Affiliated::Model::ACCOUNTS), $now);
    $self->{counts}{orders} = keys %{ $m->orders };
    for my $o (values %{ $m->orders }) {
        $self->{counts}{"outcome_$o->{outcome}"}++;
        $self->{counts}{"problem_$o->{problem}"}++ if $o->{problem};
        $self->{counts}{payable}++ if $o->{payable};
    }
    return @wrong;
}

sub _waiting
{
    my ($self, $reader) = @_;
    my $want = grep { !$self->{found}{ $_->{click_id} } } @{ $self->{events} };
    my $is = $reader->('select count(*) from affiliate.waiting')->[0][0];

    return $is == $want ? () : "$is conversions wait for their click, should be $want";
}

sub differences
{
    my ($self, $reader) = @_;

    $self->{journal} ||= $self->_journal;
    $self->{counts} = {};
    $self->{answers} ||= [$self->_answers];
    my @wrong = (@{ $self->{answers} }, $self->_clicks($reader), $self->_conversions($reader), $self->_dead_letters($reader),
        $self->_waiting($reader), $self->_money($reader));
    push @wrong, map { 'audit: ' . join ' ', map { $_ // '' } @$_ } @{ $reader->('select * from affiliate.audit()') };
    return @wrong;
}

# Until nothing differs; or for so long.
sub settle
{
    my ($self, $reader, $seconds) = @_;
    my $end = time() + ($seconds || 60);
    my @wrong;

    while (1) {
        @wrong = eval { $self->differences($reader) };
        push @wrong, "audit: $@" if $@;
        return @wrong if !@wrong || time() > $end;
        sleep 0.5;
    }
}

1;
