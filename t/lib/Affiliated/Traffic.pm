package Affiliated::Traffic;

# Buyers and merchants of t/fault: processes that click on links and report orders, and a journal of what was sent and answered.
#
#   my $world = Affiliated::Traffic::make_world($t);       through the CLI of an Affiliated::Test, before the traffic
#   my $traffic = Affiliated::Traffic->new(dir => ..., ports => [a, b], seed => n, world => $world);
#   $traffic->start;  ...  $traffic->stop;                 stop() goes on until what was begun is answered, 60 s at most
#
# new(%o)              clients => n (4); pace => seconds between two doings of a client (0.01); name => of the journals (traffic);
#                      hasty => the part of requests that are given up soon (0.2), so that a call is told again while it is under way
# make_world($t)       { merchants => { ID => { host } }, affiliates => { ID => {} }, campaigns => { ID => { merchant, currency } },
#                        links => { ID => { code, merchant, campaign, affiliate, livemode, url, param, state } },
#                        keys => [{ id, secret, merchant, livemode }], terms => [...], kept_since }, as Affiliated::Model has them
# nginx_http           what a host's nginx needs in its http section, so that verdicts can be told beforehand
# journals($dir)       their paths
#
# A journal has a line for each thing before it is sent, and one for each answer; fields are separated by tabs, times are
# seconds by the clock of whoever sends, host counts from 0. What a killed process leaves is the truth up to its last line feed.
#   c n time host link class address agent referrer tag sub1 url     a click is sent; class is one of %CLASSES
#   C n time status location                     it was answered; 0: it was not
#   e n key method idempotency expect body       a call is begun; key is its place in the world's keys; expect as in call()
#   t n attempt time host                        it is sent
#   T n attempt time status code replayed results    it was answered; results of a batch: "202,422,..."
#   g n                                          it was given up, unanswered
#   end                                          the process came to its end

use strict;
use warnings;

use Affiliated::Test ();
use Digest::SHA qw(hmac_sha256_hex);
use IO::Socket::INET ();
use JSON::PP ();
use POSIX qw(WNOHANG);
use Socket ();
use Time::HiRes qw(sleep time);

# What a click looks like; its verdict and its reasons follow from the module's documentation. Weights count among 100.
our %CLASSES = (
    human => { weight => 70, verdict => 0, reasons => 0 },
    suspect => { weight => 6, verdict => 2, reasons => 512, headers => "X-Risk: 7\r\n" },
    bot => { weight => 5, verdict => 5, reasons => 1, agent => 'Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)' },
    preview => { weight => 5, verdict => 4, reasons => 2, agent => 'WhatsApp/2.24.21.79 A' },
    prefetch => { weight => 4, verdict => 3, reasons => 8, headers => "Sec-Purpose: prefetch\r\n" },
    head => { weight => 4, verdict => 3, reasons => 4, method => 'HEAD' },
    image => { weight => 3, verdict => 3, reasons => 32, headers => "Sec-Fetch-Dest: image\r\nSec-Fetch-Mode: no-cors\r\n" },
    nobody => { weight => 3, verdict => 5, reasons => 16, agent => '' },
);
my @CLASS = map { my $name = $_; ($name) x $CLASSES{$name}{weight} } sort keys %CLASSES;

our %DECIMALS = (NPR => 2, USD => 2, JPY => 0, KWD => 3);

sub _one { return $_[ rand @_ ] }

sub nginx_http { return "affiliate_address_rate off;\naffiliate_signal risk \$http_x_risk;\n" }

# --- the world -------------------------------------------------------------------------------------------------------

# To the nearest millisecond, as the model takes it.
sub _utc
{
    my $ms = int($_[0] * 1000 + 0.5);
    return POSIX::strftime('%Y-%m-%dT%H:%M:%S', gmtime int($ms / 1000)) . sprintf '.%03dZ', $ms % 1000;
}

# What a version of terms says: as options of the CLI, and as the model has it.
sub _terms
{
    my ($currency, %o) = @_;
    my %t = (rate_basis_points => undef, rate_flat_minor => undef, fee_basis_points => _one(0, 1500, 2000, 3333),
        fee_flat_minor => _one(0, 0, 7, 150), hold => _one(0, 1, 2, 2, 86400 * 30), window => 30 * 86400, minimum => 0, products => {}, %o);
    my $text = sub { _amount($_[0], $currency) };

    rand() < 0.65 ? ($t{rate_basis_points} = 1 + int rand _one(300, 3000, 10000)) : ($t{rate_flat_minor} = 1 + int rand 5000);
    my @options = ((defined $t{rate_flat_minor} ? ('--rate-flat', $text->($t{rate_flat_minor})) : ('--rate-basis-points', $t{rate_basis_points})),
        '--fee-basis-points', $t{fee_basis_points}, '--fee-flat', $text->($t{fee_flat_minor}), '--hold', "$t{hold} seconds",
        '--attribution-window', "$t{window} seconds", '--minimum-click-to-order', "$t{minimum} seconds");
    for my $kind (sort keys %{ $t{products} }) {
        for my $value (sort keys %{ $t{products}{$kind} }) {
            my ($rate, $flat) = @{ $t{products}{$kind}{$value} };
            push @options, defined $rate ? ("--$kind-rate", "$value=$rate") : ("--$kind-flat", "$value=" . $text->($flat));
        }
    }
    $t{$_} *= 1_000_000 for qw(hold window minimum);
    return (\%t, @options);
}

sub _campaign
{
    my ($t, $w, $merchant, $currency, @versions) = @_;
    my $time = 1767225600;    # 2026 begins
    my $campaign;

    for my $version (@versions) {
        # A version that names no product keeps those of the version before.
        my ($terms, @options) = _terms($currency, %$version);
        $terms->{products} = $w->{terms}[-1]{products} if $campaign && !%{ $terms->{products} };
        my $from = sprintf '%.3f', $campaign ? $time : 1735689600;
        push @options, '--valid-from', _utc($from);
        if (!$campaign) {
            $campaign = $t->cli_json('campaign', 'create', '--merchant', $merchant, '--name', "In $currency", '--currency', $currency,
                @options)->{campaign};
            $w->{campaigns}{$campaign} = { merchant => $merchant, currency => $currency };
            ($terms->{terms}) = map { $_->{terms} } @{ $t->cli_json('campaign', 'show', $campaign)->{versions} };
        } else {
            $terms->{terms} = $t->cli_json('campaign', 'terms', $campaign, @options)->{terms};
        }
        push @{ $w->{terms} }, { %$terms, campaign => $campaign, valid_from => int($from * 1000 + 0.5) * 1000 };
        $time = ($time < time() ? time() + 1 : $time) + 1 + int(rand 5000) / 1000;
    }
    return $campaign;
}

sub make_world
{
    my $t = shift;
    my %w = (terms => []);
    my @merchant = map {
        my $host = "shop-$_.example";
        my $id = $t->cli_json('merchant', 'create', '--name', "Shop $_", '--host', $host)->{merchant};
        $w{merchants}{$id} = { host => $host };
        $id;
    } 1, 2;
    my @affiliate = map {
        my $id = $t->cli_json('affiliate', 'create', '--name', "Affiliate $_", '--email', "a$_\@example.com")->{affiliate};
        $w{affiliates}{$id} = {};
        $id;
    } 1 .. 3;
    my %products = (products => { sku => { TEA => [500, undef], CUP => [undef, 250] }, category => { kitchen => [1234, undef] } });
    my %others = (products => { sku => { POT => [undef, 99] }, category => { garden => [1, undef], kitchen => [undef, 7] } });
    my @campaign = (
        _campaign($t, \%w, $merchant[0], 'NPR', { hold => 1 }, { hold => 0 }, { hold => 2 }),
        _campaign($t, \%w, $merchant[0], 'NPR', { hold => 2, %products }, { hold => 1, minimum => 1 }, { %others }),
        _campaign($t, \%w, $merchant[0], 'USD', {}, {}),
        _campaign($t, \%w, $merchant[1], 'JPY', { fee_flat_minor => 7 }, { window => 2 }),
        _campaign($t, \%w, $merchant[1], 'KWD', { hold => 0, %products }, { hold => 2 }),
    );

    for my $n (0 .. $#campaign) {
        my $c = $w{campaigns}{ $campaign[$n] };
        my $url = "http://$w{merchants}{ $c->{merchant} }{host}/" . _one("tea", "tea?size=1", "tea?size=1&from=us#top", "#top");
        for my $link ([$affiliate[$n % 3], 1], [$affiliate[($n + 1) % 3], 1], [$affiliate[rand 3], 0], $n ? () : [$affiliate[0], 1, 'paused']) {
            my @param = rand() < 0.3 ? ('--param', 'ref') : ();
            my $made = $t->cli_json('link', 'create', '--campaign', $campaign[$n], '--affiliate', $link->[0], '--url', $url,
                '--livemode', $link->[1] ? 'true' : 'false', @param);
            $t->cli_json('link', 'pause', $made->{code}) if $link->[2];
            $w{links}{ $made->{link_id} } = { code => $made->{code}, merchant => $c->{merchant}, campaign => $campaign[$n],
                affiliate => $link->[0], livemode => $link->[1], url => $url, param => @param ? 'ref' : 'affiliate_click_id',
                state => $link->[2] || 'active' };
        }
    }
    for my $merchant (@merchant) {
        for my $livemode (1, 0) {
            my $key = $t->cli_json('key', 'create', '--merchant', $merchant, '--livemode', $livemode ? 'true' : 'false');
            push @{ $w{keys} }, { id => $key->{key}, secret => $key->{secret}, merchant => $merchant, livemode => $livemode };
        }
    }
    $w{kept_since} = (int(time() / 86400) - 2) * 86_400_000_000;
    return \%w;
}

# Minor units as a decimal string.
sub _amount
{
    my ($minor, $currency) = @_;
    my $decimals = $DECIMALS{$currency};

    return "$minor" unless $decimals;
    my $text = sprintf '%0*d', $decimals + 1, $minor;
    substr($text, -$decimals, 0) = '.';
    return $text;
}

# --- the processes ---------------------------------------------------------------------------------------------------

sub new
{
    my ($class, %o) = @_;
    return bless { clients => 4, pace => 0.01, hasty => 0.2, name => 'traffic', pids => {}, %o }, $class;
}

sub journals { my ($dir, $name) = @_; return sort glob "$dir/" . ($name || 'traffic') . '-*.journal' }

sub start
{
    my $self = shift;

    for my $n (1 .. $self->{clients}) {
        my $pid = fork;

        die "fork: $!\n" unless defined $pid;
        if (!$pid) {
            $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP);
            srand $self->{seed} * 1000 + $n;
            open my $journal, '>>', "$self->{dir}/$self->{name}-$n.journal" or POSIX::_exit(1);
            $journal->autoflush(1);
            my $client = bless { %$self, client => $n, file => $journal, count => 0, calls => 0, orders => [], clicks => {}, sockets => {} },
                ref $self;
            my $done = eval { $client->_live; 1 };
            print STDERR "# traffic $n: $@" unless $done;
            print $journal "end\n" if $done;
            POSIX::_exit($done ? 0 : 1);
        }
        $self->{pids}{$pid} = $n;
    }
    return $self;
}

# True if all came to their end by themselves.
sub stop
{
    my ($self, $seconds) = @_;
    my $end = time() + ($seconds || 75);
    my $good = 1;

    open my $file, '>', "$self->{dir}/$self->{name}.stop" or die "$self->{name}.stop: $!\n";
    close $file;
    while (%{ $self->{pids} } && time() < $end) {
        for my $pid (keys %{ $self->{pids} }) {
            next unless waitpid($pid, WNOHANG) > 0;
            $good = 0 if $?;
            delete $self->{pids}{$pid};
        }
        sleep 0.05;
    }
    for my $pid (keys %{ $self->{pids} }) {
        kill 'KILL', $pid;
        waitpid $pid, 0;
        $good = 0;
    }
    $self->{pids} = {};
    return $good;
}

sub _note { my ($self, @fields) = @_; print { $self->{file} } join("\t", map { defined $_ ? $_ : '' } @fields), "\n" }

sub _now { return sprintf '%.6f', time() }

sub _live
{
    my $self = shift;
    my @links = map { { id => $_, %{ $self->{world}{links}{$_} } } } sort { $a <=> $b } keys %{ $self->{world}{links} };

    $self->{links} = \@links;
    $self->_click until %{ $self->{clicks} } || -e "$self->{dir}/$self->{name}.stop";
    $self->_misuse($_) for %{ $self->{clicks} } ? (0 .. 4) : ();
    until (-e "$self->{dir}/$self->{name}.stop") {
        my $what = rand;
        if ($what < 0.36 || !%{ $self->{clicks} }) {
            $self->_click;
        } elsif ($what < 0.4) {
            $self->_crowd;
        } elsif ($what < 0.55 && @{ $self->{orders} } < 12) {
            push @{ $self->{orders} }, $self->_order;
        } elsif ($what < 0.58) {
            $self->_misuse(int rand 5);
        } else {
            $self->_report;
        }
        sleep rand 2 * $self->{pace};
    }
    $self->{until} = time() + 60;
    $self->_report while @{ $self->{orders} } && time() < $self->{until};
}

# A connection to a host, from an address of its own: on loopback, all of 127/8 is there. Every third client closes after each.
sub _socket
{
    my ($self, $host) = @_;

    return $self->{sockets}{$host} if $self->{sockets}{$host};
    my $address = join '.', 127, map { 1 + int rand 250 } 1 .. 3;
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{ports}[$host], LocalAddr => $address, Timeout => 5)
        or return;
    binmode $socket;
    setsockopt $socket, Socket::IPPROTO_TCP(), Socket::TCP_NODELAY(), 1;
    my $connection = bless { socket => $socket, buffer => '', address => $address, uses => 0 }, 'Affiliated::Test::Connection';
    return $self->{sockets}{$host} = $connection;
}

# Longer than anything is made to hang; or not.
sub _patience { my $self = shift; return rand() < $self->{hasty} ? 0.1 + rand 0.7 : 12 }

sub _exchange
{
    my ($self, $host, $raw, %o) = @_;
    my $connection = $self->_socket($host) or return { status => 0, headers => {}, body => '' };
    my $r = $connection->send($raw) ? $connection->response(timeout => $self->_patience, %o) : { status => 0, headers => {}, body => '' };

    if (!$r->{status} || $self->{client} % 3 == 0 || ++$connection->{uses} > 60 || ($r->{headers}{connection} || '') eq 'close') {
        $connection->close;
        delete $self->{sockets}{$host};
    }
    return $r;
}

# --- buyers ----------------------------------------------------------------------------------------------------------

sub _agent
{
    return sprintf 'Mozilla/5.0 (Linux; Android %d; SM-%s%d) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.%d.0 Mobile Safari/537.36',
        9 + rand 6, _one('A' .. 'Z'), 100 + rand 900, 100 + rand 40, rand 9999;
}

# Something is clicked: most often by a person, at times once more by the same one.
sub _click
{
    my ($self, $link) = @_;
    my $host = int rand @{ $self->{ports} };
    my $class = $link ? 'human' : _one(@CLASS);
    my %c = (link => $link || _one(@{ $self->{links} }), host => $host, class => $class, agent => $CLASSES{$class}{agent} // _agent(),
        referrer => _one('', '', "https://page.example/post/" . int(rand 1000)), sub1 => _one('', 'summer', 'list-' . int rand 10), url => '');

    $c{url} = 'http://' . _one($self->{world}{merchants}{ $c{link}{merchant} }{host}, 'elsewhere.example') . '/deep-' . int(rand 100)
        if rand() < 0.1;
    if (!$link && $self->{again} && rand() < 0.12 && $self->{sockets}{ $self->{again}{host} }) {
        %c = %{ $self->{again} };
    }
    return $self->_follow(\%c);
}

# Writes down a click that is about to be sent there, and gives its number and its request.
sub _begin_click
{
    my ($self, $c, $connection) = @_;
    my $n = ++$self->{count};
    my $class = $CLASSES{ $c->{class} };
    my $tag = "$self->{name}-$self->{client}-$n";
    my $query = join '&', ($c->{sub1} ne '' ? "sub1=$c->{sub1}" : ()), ($c->{url} ne '' ? 'url=' . Affiliated::Test::_percent($c->{url}) : ()),
        "sub5=$tag";

    $self->_note('c', $n, _now(), $c->{host}, $c->{link}{id}, $c->{class}, $connection->{address}, @$c{qw(agent referrer)}, $tag, @$c{qw(sub1 url)});
    return ($n, ($class->{method} || 'GET') . " /r/$c->{link}{code}?$query HTTP/1.1\r\nHost: go.example\r\n"
        . ($c->{agent} ne '' ? "User-Agent: $c->{agent}\r\n" : '') . ($c->{referrer} ne '' ? "Referer: $c->{referrer}?q=secret\r\n" : '')
        . ($class->{headers} || '') . "\r\n");
}

# What it was answered; a click_id that came is kept for orders.
sub _end_click
{
    my ($self, $c, $n, $r) = @_;

    $self->_note('C', $n, _now(), $r->{status}, $r->{headers}{location});
    my ($id) = ($r->{headers}{location} || '') =~ /[?&]$c->{link}{param}=([0-9a-z]{39})(?:[&#]|\z)/;
    return unless $r->{status} == 302 && $id;
    $self->{again} = $c;
    my $list = $self->{clicks}{"$c->{link}{merchant} $c->{link}{livemode}"} ||= [];
    push @$list, { id => $id, link => $c->{link}, at => time() };
    shift @$list if @$list > 30;
    return $list->[-1];
}

sub _follow
{
    my ($self, $c) = @_;
    my $connection = $self->_socket($c->{host}) or return;
    my ($n, $raw) = $self->_begin_click($c, $connection);

    return $self->_end_click($c, $n, $self->_exchange($c->{host}, $raw, head => $CLASSES{ $c->{class} }{method} ? 1 : 0));
}

# Many at once on one connection: whatever happens then happens in the midst of them.
sub _crowd
{
    my $self = shift;
    my $host = int rand @{ $self->{ports} };
    my $connection = $self->_socket($host) or return;
    my (@begun, $raw);

    for (1 .. 5 + rand 25) {
        my $c = { link => _one(@{ $self->{links} }), host => $host, class => 'human', agent => _agent(), referrer => '', sub1 => '', url => '' };
        my ($n, $request) = $self->_begin_click($c, $connection);
        push @begun, [$c, $n];
        $raw .= $request;
    }
    my $up = $connection->send($raw);
    for my $click (@begun) {
        my $r = $up ? $connection->response(timeout => $self->_patience) : { status => 0, headers => {} };
        $self->_end_click(@$click, $r);
        $up &&= $r->{status};
    }
    $connection->close;
    delete $self->{sockets}{$host};
}

# --- merchants -------------------------------------------------------------------------------------------------------

my @COURSES = (
    [qw(approved)], [qw(pending approved)], [qw(pending approved)], [qw(approved refund)], [qw(pending approved refund refund cancelled)],
    [qw(pending approved refund returned)], [qw(pending refund approved)], [qw(cancelled pending approved)], [qw(pending cancelled)],
    [qw(approved return_part again refund)], [qw(pending changed approved)], [qw(approved other)], [qw(pending other approved)],
    [qw(refund approved)], [qw(approved refund_other)], [qw(wrong approved)], [qw(items)], [qw(items refund)], [qw(items items_changed cancelled)],
    [qw(pending)], [qw(approved all_refunded)],
);

# An order with all that will be told of it, in the order of its happening.
sub _order
{
    my $self = shift;
    my ($mode) = _one(sort keys %{ $self->{clicks} });
    my ($merchant, $livemode) = split / /, $mode;
    my $list = $self->{clicks}{$mode};
    my $click = rand() < 0.8 ? $list->[-1] : _one(@$list);
    my ($key) = grep { $self->{world}{keys}[$_]{merchant} == $merchant && $self->{world}{keys}[$_]{livemode} == $livemode } 0 .. $#{ $self->{world}{keys} };
    my $currency = $self->{world}{campaigns}{ $click->{link}{campaign} }{currency};
    # The same number is an order of its own at each merchant and in each mode.
    my %o = (key => $key, order => "$self->{name}-$self->{client}-" . ($self->{made}{$mode} = ($self->{made}{$mode} || 0) + 1), currency => $currency,
        amount => 1 + int rand _one(100, 5000, 500000), refunds => 0);
    my @events = map { $self->_event(\%o, $click, $_, $list) } @{ _one(@COURSES) };

    my $from = $click->{at};
    my $step = (time() - $from) / (@events + 1);

    if (@events > 1 && $step > 0.002 && rand() < 0.3) {
        # Told late and in any order, each with a time of its own.
        $events[$_]{occurred_at} = _utc($from + $step * ($_ + 0.5)) for 0 .. $#events;
        for my $i (reverse 1 .. $#events) {
            my $j = int rand($i + 1);
            @events[$i, $j] = @events[$j, $i];
        }
    }
    $o{events} = \@events;
    return \%o;
}

sub _event
{
    my ($self, $o, $click, $what, $list) = @_;
    my %e = (click_id => $click->{id}, order_id => $o->{order}, status => $what);
    my $part = sub { @e{qw(amount currency)} = (_amount(1 + int(rand($o->{amount} / 2)), $o->{currency}), $o->{currency}) };

    @e{qw(amount currency)} = (_amount($o->{amount}, $o->{currency}), $o->{currency}) unless $what eq 'cancelled' || $what eq 'returned';
    if ($what eq 'refund' || $what eq 'return_part') {
        $e{status} = $what eq 'refund' ? 'refunded' : 'returned';
        $part->();
        $e{refund_id} = 'R' . ++$o->{refunds} if rand() < 0.7;
        $o->{last} = { %e } if $e{refund_id};
    } elsif ($what eq 'again') {
        # The same refund, told by another call: counted once if it has a name.
        return $o->{last} ? { %{ $o->{last} } } : { %e, status => 'pending' };
    } elsif ($what eq 'changed') {
        $e{status} = 'pending';
        $part->();
    } elsif ($what eq 'other') {
        @e{qw(status click_id)} = (_one('pending', 'approved', 'cancelled'), _one(@$list)->{id});
    } elsif ($what eq 'refund_other') {
        @e{qw(status currency amount refund_id)} = ('refunded', 'EUR', '1.00', 'R9');
        @e{qw(currency amount)} = ('USD', '1.00') if $o->{currency} ne 'USD';
    } elsif ($what eq 'wrong') {
        my $currency = $o->{currency} = $o->{currency} eq 'USD' ? 'NPR' : 'USD';
        @e{qw(status currency amount)} = ('pending', $currency, _amount($o->{amount}, $currency));
    } elsif ($what eq 'all_refunded') {
        delete @e{qw(amount currency)};
        $e{status} = 'refunded';
    } elsif ($what =~ /^items/) {
        $e{status} = $what eq 'items' ? 'approved' : 'pending';
        $e{items} = $self->_items($o);
    }
    $e{reason} = _one('wrong size', "it's late; \"again\"") if $e{status} =~ /^(?:cancel|ret|ref)/ && rand() < 0.3;
    $e{customer} = _one('new', 'returning') if rand() < 0.2;
    return \%e;
}

# Lines of goods whose sum is the amount, less, or more.
sub _items
{
    my ($self, $o) = @_;
    my $share = int($o->{amount} * _one(1, 1, 0.9, 1.2));
    my @items;

    for my $n (1 .. 1 + rand 3) {
        my $part = int rand($share + 1);
        $share -= $part;
        my $named = int rand 3;    # by its sku, its category, or both
        push @items, { amount => _amount($part, $o->{currency}), $named != 1 ? (sku => _one(qw(TEA CUP POT))) : (),
            $named != 0 ? (category => _one(qw(kitchen garden))) : (), rand() < 0.7 ? (quantity => 1 + int rand 4) : () };
    }
    return \@items;
}

# Something of the open orders is told: an event by itself, as a postback, or several of several orders in one call.
sub _report
{
    my $self = shift;
    my $orders = $self->{orders};

    return unless @$orders;
    my $i = int rand @$orders;
    my $key = $orders->[$i]{key};
    my @chosen = ($orders->[$i]);
    if (rand() < 0.3) {
        push @chosen, grep { $_ != $chosen[0] && $_->{key} == $key } @$orders;
    }
    my @events = map { shift @{ $_->{events} } } @chosen;
    @$orders = grep { @{ $_->{events} } } @$orders;
    if (@events > 1 || rand() < 0.05) {
        # What one event of a batch lacks is no harm to the others.
        splice @events, int rand(@events + 1), 0, { %{ $events[0] }, amount => 1250 } if rand() < 0.1;
        $self->call(key => $key, method => 'batch', events => \@events);
    } elsif (!$events[0]{items} && rand() < 0.15) {
        $self->call(key => $key, method => 'postback', events => \@events);
    } else {
        $self->call(key => $key, method => 'single', events => \@events);
    }
}

# What a merchant should not do, and what becomes of it.
sub _misuse
{
    my ($self, $kind) = @_;
    my $order = $self->_order;
    my $event = $order->{events}[0];
    my %call = (key => $order->{key}, method => 'single', events => [$event]);

    if ($kind == 0) {
        # An amount that changes under the same key: refused, or one of the two counts.
        my $idempotency = $self->call(%call);
        my %other = (%$event, status => 'pending', amount => '1', currency => 'JPY');
        delete @other{qw(items refund_id)};
        $self->call(%call, events => [\%other], idempotency => $idempotency, expect => 'reused');
    } elsif ($kind == 1) {
        my $idempotency = $self->call(%call);
        $self->call(%call, idempotency => $idempotency) for 1 .. 1 + rand 2;
    } elsif ($kind == 2) {
        $self->call(%call, events => [{ %$event, amount => 12.5, currency => 'NPR' }], expect => 'validation');
    } elsif ($kind == 3) {
        # A key of the other mode, or of the other merchant.
        my $other = _one(grep { $_ != $order->{key} } 0 .. $#{ $self->{world}{keys} });
        my ($mine, $theirs) = @{ $self->{world}{keys} }[$order->{key}, $other];
        $self->call(%call, key => $other, expect => $mine->{merchant} == $theirs->{merchant} ? 'click_mode' : 'click_unknown');
    } else {
        my $forged = $event->{click_id};
        substr($forged, 30, 1) = substr($forged, 30, 1) eq 'x' ? 'y' : 'x';
        $self->call(%call, events => [{ %$event, click_id => $forged }], expect => 'click_unknown');
    }
}

# One call, repeated as merchants are told to until it is answered; returns its Idempotency-Key. expect names the only refusal
# that may answer it: none (''), reused, validation, click_mode, click_unknown.
sub call
{
    my ($self, %o) = @_;
    my $n = ++$self->{calls};
    my $key = $self->{world}{keys}[ $o{key} ];
    my $json = JSON::PP->new->canonical;
    my $idempotency = $o{idempotency} // "$self->{name}-$self->{client}-$n";
    my $body = $o{method} eq 'batch' ? $json->encode({ events => $o{events} })
        : $o{method} eq 'single' ? $json->encode($o{events}[0])
        : join '&', map { "$_=" . Affiliated::Test::_percent($o{events}[0]{$_}) } sort keys %{ $o{events}[0] };
    my $expect = $o{expect} || '';
    my $end = $self->{until} || time() + 60;

    $self->_note('e', $n, $o{key}, $o{method}, $idempotency, $expect, $body);
    for (my $attempt = 1; time() < $end || $attempt < 3; $attempt++) {
        my $host = int rand @{ $self->{ports} };
        $self->_note('t', $n, $attempt, _now(), $host);
        my $r = $self->_exchange($host, _request($key, $o{method}, $idempotency, $body));
        my $answer = eval { JSON::PP::decode_json($r->{body}) } || {};
        $self->_note('T', $n, $attempt, _now(), $r->{status}, $answer->{code}, $r->{headers}{'idempotent-replayed'} ? 1 : 0,
            ref $answer->{results} ? join(',', map { $_->{status} } @{ $answer->{results} }) : '');
        my $again = !$r->{status} || $r->{status} == 503 || $r->{status} == 429 || ($answer->{code} || '') eq 'clock_skew';
        return $idempotency unless $again;
        sleep 0.05 + rand 0.2;
    }
    $self->_note('g', $n);
    return $idempotency;
}

sub _request
{
    my ($key, $method, $idempotency, $body) = @_;
    my $time = int time();

    if ($method eq 'postback') {
        my $target = "/pb?key=$key->{id}&ts=$time&idempotency=$idempotency&$body";
        return "GET $target&sig=" . hmac_sha256_hex("v1\n$time\nGET\n$target\n$idempotency\n", $key->{secret})
            . " HTTP/1.1\r\nHost: go.example\r\n\r\n";
    }
    my $path = '/v1/conversions' . ($method eq 'batch' ? '/batch' : '');
    return "POST $path HTTP/1.1\r\nHost: go.example\r\nContent-Type: application/json\r\nAffiliate-Key: $key->{id}\r\n"
        . "Affiliate-Timestamp: $time\r\nIdempotency-Key: $idempotency\r\nAffiliate-Signature: v1="
        . hmac_sha256_hex("v1\n$time\nPOST\n$path\n$idempotency\n$body", $key->{secret})
        . "\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
}

1;
