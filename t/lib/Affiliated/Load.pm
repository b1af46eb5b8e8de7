package Affiliated::Load;

# Continuous load of buyers and merchants, what it was answered, and an auditor that compares this with PostgreSQL.
#
#   my $load = Affiliated::Load->begin;                   # the whole system and its world, ready
#   $load->ordeal(12, [worker => sub { ... }], ...);      # load for 12 seconds, each fault somewhere in its share of them
#   is_deeply([$load->settle], [], 'everything is there, once');
#
# Buyers follow the link; merchants report orders of several courses, one event or a batch a call, and repeat a call under
# the same Idempotency-Key until it is answered, as they are told to. Every answer is written down before the next
# request. The auditor knows the courses and computes by itself what the orders must come to.
#
# begin(%o)         nginx => {...} for nginx_start, pg => {...}, daemon => {...}, clients => n, daemonized => 1 starts nginx as a daemon of
#                   its own (binary upgrade needs that), connection => 'close' for a connection a request
#                   may_drop => 1: a spool that refuses now and then is no problem
# start, stop       the load, without faults
# ordeal($s, [name, code] ...)    the schedule comes from the seed, and is printed
# settle($seconds)  waits until nothing is wrong; what is still wrong, as text
# journal           {clicks => {id => n}, lost => n, events => {key => {...}}, odd => [...]}
# nginx_daemon, nginx_upgrade, nginx_daemon_stop    nginx as a daemon; USR2, then QUIT to the old master
#
# A test that fails leaves its directory, with the journals in it.

use Affiliated::Test ();
use strict;
use warnings;

use JSON::PP ();
use POSIX ();
use Test::More ();
use Time::HiRes qw(sleep time);

my $owner = $$;
my @groups;

END {
    if ($$ == $owner) {
        my $code = $?;

        kill 'KILL', -$_ for @groups;
        $ENV{AFFILIATED_KEEP} = 1 if $code || !Test::More->builder->is_passing;
        $? = $code;
    }
}

sub begin
{
    my ($class, %o) = @_;
    my $t = Affiliated::Test->new;
    my $self = bless { t => $t, clients => $o{clients} || 3, connection => $o{connection} || 'keep-alive',
        may_drop => $o{may_drop} }, $class;
    my %nginx = (workers => 2, http => 'affiliate_address_rate off;', log_level => 'notice', %{ $o{nginx} || {} });

    $t->redis_start;
    $t->pg_start(%{ $o{pg} || {} });
    $t->daemon_start(%{ $o{daemon} || {} });
    $self->{world} = $t->world(hold => '1 second', rate => 1000, fee => 2000);
    $t->wait_until('the projection', sub {
        $t->redis('EXISTS', "aff:link:$self->{world}{link}", "aff:key:$self->{world}{key}{id}") == 2;
    }) or die "the projection does not come up\n";
    if ($o{daemonized}) {
        $t->nginx_conf(%nginx);
        $self->nginx_daemon;
    } else {
        $t->nginx_start(%nginx);
    }
    $t->wait_until('the link is known', sub { $t->get("/r/$self->{world}{link}")->{status} == 302 })
        or die "the system does not come up\n";
    $self->{before} = 1;
    return $self;
}

# --- load ----------------------------------------------------------------------------------------------------------

sub start
{
    my $self = shift;
    my $t = $self->{t};

    $self->{round}++;
    for my $n (1 .. $self->{clients}) {
        my $name = "load-$self->{round}-$n";
        my $pid = fork;

        die "fork: $!\n" unless defined $pid;
        if (!$pid) {
            setpgrp;
            $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP);
            srand $t->{seed} + $self->{round} * 100 + $n;
            open my $journal, '>>', $t->path("$name.journal") or POSIX::_exit(1);
            $journal->autoflush(1);
            my $client = bless { %$self, n => "$self->{round}-$n", file => $journal, count => 0 }, ref $self;
            eval { $client->_client; 1 } or print $journal "odd\t$@";
            print $journal "end\n";
            POSIX::_exit(0);
        }
        $t->{processes}{$name} = $pid;
    }
}

# Clients go on until what they began is answered.
sub stop
{
    my $self = shift;
    my $t = $self->{t};
    my @names = grep { /^load-/ } keys %{ $t->{processes} };

    $t->write("stop-$self->{round}", '');
    Test::More::ok($t->wait_until('clients', sub { !grep { $t->alive($_) } @names }, 60), 'every call was answered in the end');
}

sub ordeal
{
    my ($self, $seconds, @faults) = @_;
    my $t = $self->{t};
    my $start = time();
    my @schedule = map {
        [$seconds * ($_ + 0.15 + rand(0.8)) / @faults, @{ $faults[$_] }]
    } 0 .. $#faults;

    Test::More::note("AFF_TEST_SEED=$t->{seed}: ", join ', ', map { sprintf '%.2f s %s', @$_[0, 1] } @schedule);
    $self->start;
    for my $fault (@schedule) {
        my $left = $start + $fault->[0] - time();
        sleep $left if $left > 0;
        Test::More::note(sprintf '%.2f s: %s', time() - $start, $fault->[1]);
        $fault->[2]->($t);
    }
    my $left = $start + $seconds - time();
    sleep($left > 0.5 ? $left : 0.5);
    $self->stop;
}

sub _client
{
    my $self = shift;
    my $t = $self->{t};
    my @courses = (qw(approved later refund cancelled batch batch));

    until (-e $t->path("stop-$self->{round}")) {
        my @clicks;
        for (1 .. 4) {
            my $id = $self->_click;
            push @clicks, $id if $id;
            sleep 0.004;
        }
        my $course = $courses[rand @courses];
        $self->_order($course, @clicks) if @clicks;
    }
}

sub _click
{
    my $self = shift;
    my $agent = sprintf 'Mozilla/5.0 (Linux; Android %d) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.0.0 Mobile '
        . 'Safari/537.36', 9 + rand 6, 100 + rand 40;
    my $r = $self->_send("GET /r/$self->{world}{link} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: $agent\r\n"
        . "Connection: $self->{connection}\r\n\r\n");

    if ($r->{status} == 302) {
        my ($id) = $r->{headers}{location} =~ /affiliate_click_id=([0-9a-z]{39})/;
        $self->_note($id ? "click\t$id" : $self->{may_drop} ? 'dropped' : "odd\tno click_id: $r->{headers}{location}");
        return $id;
    }
    $self->_note($r->{status} == 0 ? 'lost' : $r->{status} == 503 ? 'refused' : "odd\tclick: $r->{status}");
    sleep 0.05;
    return;
}

sub _order
{
    my ($self, $course, @clicks) = @_;
    my $amount = (100 + int rand 9900) . '.00';
    my $order = "O-$self->{n}-" . ++$self->{count};
    my %event = (click_id => $clicks[0], order_id => $order, currency => 'NPR');

    if ($course eq 'batch') {
        my $n = 0;
        $self->_call(map { { %event, click_id => $_, order_id => $order . '-' . ++$n, status => 'approved', amount => $amount } }
            @clicks, @clicks);
        return;
    }
    $self->_call({ %event, status => 'pending', amount => $amount }) if $course ne 'approved';
    $self->_call({ %event, status => $course eq 'cancelled' ? 'cancelled' : 'approved', amount => $amount });
    $self->_call({ %event, status => 'refunded', amount => '10.00', refund_id => "R-$order" }) if $course eq 'refund';
}

# One event or a batch, until it is answered.
sub _call
{
    my ($self, @events) = @_;
    my $key = "K-$self->{n}-" . ++$self->{calls};
    my $path = '/v1/conversions' . (@events > 1 ? '/batch' : '');
    my $body = JSON::PP->new->canonical->encode(@events > 1 ? { events => \@events } : $events[0]);
    my $end = time() + 45;

    while (time() < $end) {
        my $head = join '', map { "$_->[0]: $_->[1]\r\n" }
            $self->{t}->sign($self->{world}{key}, path => $path, body => $body, idempotency_key => $key);
        my $r = $self->_send("POST $path HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n$head"
            . 'Content-Length: ' . length($body) . "\r\nConnection: $self->{connection}\r\n\r\n$body");

        if ($r->{status} == 202 || $r->{status} == 200) {
            my $json = eval { JSON::PP::decode_json($r->{body}) };
            my @results = @events > 1 ? @{ $json->{results} || [] } : $json || {};
            my @bad = grep { ($results[$_]{order_id} || '') ne $events[$_]{order_id}
                || @events > 1 && $results[$_]{status} !~ /^20[02]$/ } 0 .. $#events;
            $self->_note("odd\tanswer to $key: $r->{body}") if @bad;
            $self->_note(join "\t", 'event', $key, $_, @{ $events[$_] }{qw(order_id status amount click_id)}, $r->{status})
                for 0 .. $#events;
            return;
        }
        $self->_note($r->{status} == 0 ? 'lost' : $r->{status} == 503 ? 'refused' : "odd\t$key: $r->{status} $r->{body}");
        sleep 0.1;
    }
    $self->_note("odd\t$key was never answered");
}

sub _send
{
    my ($self, $raw) = @_;
    my $r;

    $self->{socket} ||= eval { $self->{t}->keepalive } || return { status => 0 };
    $r = $self->{socket}->send($raw) ? $self->{socket}->response(timeout => 15) : { status => 0 };
    if (!$r->{status} || $self->{connection} eq 'close' || ($r->{headers}{connection} || '') eq 'close') {
        $self->{socket}->close;
        delete $self->{socket};
    }
    return $r;
}

sub _note { my ($self, $line) = @_; print { $self->{file} } "$line\n" }

# --- the auditor ---------------------------------------------------------------------------------------------------

sub journal
{
    my $self = shift;
    my $t = $self->{t};
    my %j = (clicks => {}, events => {}, odd => [], lost => 0, refused => 0, files => 0);

    for my $path (glob $t->path('load-*.journal')) {
        my $text = $t->slurp($path);

        push @{ $j{odd} }, "$path does not end" unless $text =~ /^end\n\z/m;
        for my $line (split /\n/, $text) {
            my ($what, @rest) = split /\t/, $line;
            if ($what eq 'click') {
                $j{clicks}{ $t->uuid_of($rest[0]) }++;
            } elsif ($what eq 'event') {
                my %event;
                @event{qw(key position order status amount click answer)} = @rest;
                $event{click} = $t->uuid_of($event{click});
                $event{minor} = $event{amount} * 100;
                $j{events}{"$rest[0] $rest[1]"} = \%event;
            } elsif ($what eq 'odd') {
                push @{ $j{odd} }, "@rest";
            } elsif ($what ne 'end') {
                $j{$what}++;
            }
        }
    }
    return \%j;
}

# What the orders must come to, by what was reported of them.
sub _expected
{
    my $journal = shift;
    my %orders;

    for my $event (values %{ $journal->{events} }) {
        my $order = $orders{ $event->{order} } ||= { click => $event->{click}, amount => 0, refunded => 0, seen => {} };
        $order->{seen}{ $event->{status} } = 1;
        $event->{status} eq 'refunded' ? ($order->{refunded} += $event->{minor}) : ($order->{amount} = $event->{minor});
    }
    for my $order (values %orders) {
        $order->{state} = $order->{seen}{cancelled} ? 'cancelled' : $order->{seen}{approved} ? 'payable' : 'pending';
        $order->{commission} = $order->{state} eq 'cancelled' ? 0 : ($order->{amount} - $order->{refunded}) / 10;
    }
    return \%orders;
}

sub problems
{
    my $self = shift;
    my $t = $self->{t};
    my $journal = $self->journal;
    my @problems = map { "odd: $_" } @{ $journal->{odd} };

    push @problems, $self->_click_problems($journal), $self->_event_problems($journal), $self->_order_problems($journal);
    my ($code, $out, $err) = $t->cli('audit');
    push @problems, "audit: $code $out$err" if $code;
    ($code, $out, $err) = $t->cli('dead-letters', 'list', '--json');
    push @problems, "dead letters: $code $out$err" if $code || $out ne '';
    push @problems, $self->_spool_problems;
    return @problems;
}

sub _click_problems
{
    my ($self, $journal) = @_;
    my %rows = map { $_->[0] => $_->[1] } $self->{t}->rows('select id, count(*) from affiliate.click group by id');
    my @problems;

    for my $id (sort keys %{ $journal->{clicks} }) {
        my $n = delete $rows{$id} || 0;
        push @problems, "click $id was given to $journal->{clicks}{$id}" if $journal->{clicks}{$id} != 1;
        push @problems, "click $id is there $n times" if $n != 1;
    }
    # What was recorded, but whose answer did not get through; and the click of begin().
    my $more = keys(%rows) - $self->{before};
    push @problems, "$more clicks more than were asked for" if $more > $journal->{lost};
    return @problems;
}

sub _event_problems
{
    my ($self, $journal) = @_;
    my %want = %{ $journal->{events} };
    my @problems;
    my $names = '(array[\'pending\', \'approved\', \'cancelled\', \'returned\', \'refunded\'])[status]';

    for my $row ($self->{t}->rows("select idempotency_key || ' ' || position, order_id, $names, amount_minor, click_id, waiting, "
        . 'count(*) over (partition by idempotency_key, position) from affiliate.conversion'))
    {
        my $event = delete $want{ $row->[0] };
        if (!$event) {
            push @problems, "conversion $row->[0] that nobody was told of";
        } elsif ("@$row[1 .. 6]" ne "$event->{order} $event->{status} $event->{minor} $event->{click} f 1") {
            push @problems, "conversion @$row, expected $event->{order} $event->{status} $event->{minor} $event->{click}";
        }
    }
    push @problems, map { "event $_ ($want{$_}{answer}) is not there" } sort keys %want;
    return @problems;
}

sub _order_problems
{
    my ($self, $journal) = @_;
    my $orders = _expected($journal);
    my ($payable, @problems) = (0);

    $payable += $_->{state} eq 'payable' ? $_->{commission} : 0 for values %$orders;
    for my $row ($self->{t}->rows('select o.order_id, affiliate.order_state(o), o.click_id, o.refunded_minor, '
        . 'o.posted_commission_minor, o.outcome, o.problem from affiliate.order_now o'))
    {
        my $order = delete $orders->{ $row->[0] } or push(@problems, "order $row->[0] was never reported"), next;
        my $want = "$order->{state} $order->{click} $order->{refunded} $order->{commission} accepted ";
        push @problems, "order @$row, expected $want" if "@$row[1 .. 6]" ne $want;
    }
    push @problems, map { "order $_ is not there" } sort keys %$orders;
    my $balance = $self->{t}->value("select coalesce(sum(credits_minor - debits_minor), 0) from affiliate.account "
        . "where owner = 'affiliate' and kind = 'payable'");
    push @problems, "payable is $balance, expected $payable" if $balance != $payable;
    return @problems;
}

sub _spool_problems
{
    my $self = shift;
    my $status = eval { JSON::PP::decode_json($self->{t}->get('/status')->{body}) } or return 'no status';
    my @problems;

    for my $name (qw(spool_bytes spool_unsent_records spool_oldest_seconds spool_full), $self->{may_drop} ? () : 'dropped_total') {
        for my $channel (qw(clicks conversions)) {
            push @problems, "$name of $channel is $status->{$name}{$channel}" if $status->{$name}{$channel} != 0;
        }
    }
    push @problems, "$status->{corrupt_frames_total} corrupt frames" if $status->{corrupt_frames_total};
    return @problems;
}

sub settle
{
    my ($self, $seconds) = @_;
    my $end = time() + ($seconds || 40);
    my $start = time();
    my @problems;

    while (1) {
        @problems = $self->problems;
        last if !@problems || time() > $end;
        sleep 0.5;
    }
    my $journal = $self->journal;
    Test::More::note(sprintf '%d clicks and %d events answered, %d requests lost, %d refused; settled in %.1f s',
        scalar keys %{ $journal->{clicks} }, scalar keys %{ $journal->{events} }, $journal->{lost}, $journal->{refused},
        time() - $start);
    push @problems, 'hardly any load' if keys %{ $journal->{clicks} } < 100 || keys %{ $journal->{events} } < 30;
    my $more = @problems - 12;
    splice @problems, 12, $more, "and $more more" if $more > 0;
    return @problems;
}

# --- nginx as a daemon ---------------------------------------------------------------------------------------------

# With "daemon off" nginx ignores USR2.
sub nginx_daemon
{
    my $self = shift;
    my $t = $self->{t};
    my ($code, $out, $err) = $t->run({ env => $t->_sanitizer_env(1) }, $t->_nginx_command);

    die "nginx does not start: $out$err" if $code;
    $t->{nginx_count}++;
    $t->wait_until('nginx', sub { -s $t->path('nginx.pid') && $t->_connect }) or die "nginx does not start\n";
    push @groups, $t->nginx_pid;
}

sub _gone
{
    my ($self, $pid) = @_;
    my $stat = $self->{t}->slurp("/proc/$pid/stat");

    return $stat eq '' || $stat =~ /^\d+ \(.*\) Z/s;
}

sub nginx_upgrade
{
    my $self = shift;
    my $t = $self->{t};
    my $old = $t->nginx_pid;

    kill 'USR2', $old;
    $t->wait_until('the new master', sub {
        my $now = $t->nginx_pid;
        return $now && $now ne $old && (my @workers = $t->nginx_workers($now));
    });
    kill 'QUIT', $old;
    return Test::More::ok($t->wait_until('the old master ends', sub { $self->_gone($old) }, 30), 'the old master is gone');
}

sub nginx_daemon_stop
{
    my $self = shift;
    my $pid = $self->{t}->nginx_pid;

    kill 'QUIT', $pid;
    return $self->{t}->wait_until('nginx ends', sub { $self->_gone($pid) }, 30);
}

1;
