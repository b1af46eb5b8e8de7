package Affiliated::Wire;

# A process that carries TCP connections, and can be told to carry them badly. A line is a listening port and where its
# connections lead; each client of a server gets a line of its own, so that one can be cut off and the other not.
#
#   my $wire = Affiliated::Wire->new(lines => { name => [port, target] });    target: a port, or the path of a unix socket
#   $wire->mode($line, $mode, $ms)    at once, also for connections that are there:
#     pass            as if it were not there; what waited goes on
#     hole            nothing goes through, and nobody is told
#     refuse          connections are reset, new ones too
#     slow            what the server sends arrives so many milliseconds later
#     drop            as soon as the server answers something, the answer is thrown away and the connection reset
#   $wire->target($line, $target)     for new connections; those that are there are reset
#   $wire->cut($line)                 resets those that are there
#   $wire->count($line)               how many connections it reset, without those that an end closed; lost answers among them
#   $wire->pid, $wire->stop
#
# It ends with whoever made it.

use strict;
use warnings;

use IO::Socket::INET ();
use IO::Socket::UNIX ();
use POSIX qw(EAGAIN EINTR);
use Socket qw(SOL_SOCKET SO_LINGER SOCK_STREAM IPPROTO_TCP TCP_NODELAY);
use Time::HiRes qw(time);

my $QUEUE_MAX = 256 * 1024;    # bytes that wait for an end before its peer is read no further

sub new
{
    my ($class, %o) = @_;
    my ($ours, $theirs) = IO::Socket->socketpair(Socket::AF_UNIX, SOCK_STREAM, 0) or die "socketpair: $!\n";
    my $self = bless { lines => {}, ends => {}, control => $ours }, $class;

    for my $name (keys %{ $o{lines} }) {
        my ($port, $target) = @{ $o{lines}{$name} };
        my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 128, ReuseAddr => 1)
            or die "wire: port $port: $!\n";
        $self->{lines}{$name} = { listen => $listen, target => $target, mode => 'pass', ms => 0, resets => 0 };
    }
    $self->{pid} = fork;
    die "fork: $!\n" unless defined $self->{pid};
    if (!$self->{pid}) {
        setpgrp;
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP);
        $SIG{PIPE} = 'IGNORE';
        close $ours;
        eval { $self->_serve($theirs); 1 } or print STDERR "# wire: $@";
        POSIX::_exit(0);
    }
    close $theirs;
    close $_->{listen} for values %{ $self->{lines} };
    return $self;
}

sub pid { return $_[0]{pid} }
sub mode { my ($self, $line, $mode, $ms) = @_; return $self->_ask('mode', $line, $mode, $ms || 0) }
sub target { my ($self, $line, $target) = @_; return $self->_ask('target', $line, $target) }
sub cut { my ($self, $line) = @_; return $self->_ask('cut', $line) }
sub count { my ($self, $line) = @_; return $self->_ask('count', $line) }

sub stop
{
    my $self = shift;

    close $self->{control};
    waitpid $self->{pid}, 0;
}

sub _ask
{
    my ($self, @words) = @_;

    syswrite $self->{control}, join("\t", @words) . "\n";
    my $answer = readline $self->{control};
    die "the wire has ended\n" unless defined $answer;
    chomp $answer;
    die "wire: @words: $answer\n" unless $answer =~ /^\d+$/;
    return $answer;
}

# --- the process -----------------------------------------------------------------------------------------------------

sub _serve
{
    my ($self, $control) = @_;

    $self->{control} = $control;
    while (1) {
        my ($read, $write, $wait) = $self->_interest;
        my $n = select($read, $write, undef, $wait);
        next if $n < 0;
        if (vec $read, fileno($control), 1) {
            $self->_command or return;
        }
        for my $line (values %{ $self->{lines} }) {
            $self->_accept($line) if vec $read, fileno($line->{listen}), 1;
        }
        # Copied, because ends close on the way. A new one may have an old one's bit: it then finds nothing to read.
        my @ends = values %{ $self->{ends} };
        for my $end (@ends) {
            next if $end->{closed};
            $self->_read($end) if vec $read, $end->{fd}, 1;
            $self->_write($end) unless $end->{closed};
        }
    }
}

# What select() is to wait for, and for how long.
sub _interest
{
    my $self = shift;
    my ($read, $write) = ('', '');
    my $wait = 1;
    my $now = time();

    vec($read, fileno($self->{control}), 1) = 1;
    for my $line (values %{ $self->{lines} }) {
        vec($read, fileno($line->{listen}), 1) = 1 if $line->{mode} ne 'hole';
    }
    for my $end (values %{ $self->{ends} }) {
        next if $end->{line}{mode} eq 'hole';
        vec($read, $end->{fd}, 1) = 1 if $end->{peer}{queued} < $QUEUE_MAX;
        my $first = $end->{queue}[0] or next;
        if ($first->[0] <= $now) {
            vec($write, $end->{fd}, 1) = 1;
        } elsif ($first->[0] - $now < $wait) {
            $wait = $first->[0] - $now;
        }
    }
    return ($read, $write, $wait);
}

sub _command
{
    my $self = shift;

    sysread($self->{control}, my $text, 4096) or return 0;
    for my $command (split /\n/, $text) {
        my ($what, $name, @words) = split /\t/, $command;
        my $line = $self->{lines}{$name};
        my $answer = $line ? $self->_obey($what, $line, @words) : 'there is no such line';

        syswrite $self->{control}, "$answer\n";
    }
    return 1;
}

sub _obey
{
    my ($self, $what, $line, @words) = @_;

    return $line->{resets} if $what eq 'count';
    if ($what eq 'mode') {
        @$line{qw(mode ms)} = @words;
        return 0 unless $words[0] eq 'refuse';
    }
    $line->{target} = $words[0] if $what eq 'target';
    my @there = grep { $_->{line} == $line && $_->{client} } values %{ $self->{ends} };
    $self->_reset($_) for @there;
    return scalar @there;
}

sub _connect
{
    my $target = shift;
    my $socket = $target =~ m{^/} ? IO::Socket::UNIX->new(Peer => $target)
        : IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $target);

    return $socket;
}

sub _accept
{
    my ($self, $line) = @_;
    my $client = $line->{listen}->accept or return;
    my $server = $line->{mode} eq 'refuse' ? undef : _connect($line->{target});

    if (!$server) {
        _linger($client);
        $line->{resets}++ if $line->{mode} eq 'refuse';
        return close $client;
    }
    my @ends = map { { socket => $_, fd => fileno $_, line => $line, queue => [], queued => 0 } } $client, $server;
    $ends[0]{client} = 1;
    for my $i (0, 1) {
        my $end = $ends[$i];
        $end->{socket}->blocking(0);
        setsockopt $end->{socket}, IPPROTO_TCP, TCP_NODELAY, 1 unless $end->{socket}->isa('IO::Socket::UNIX');
        $end->{peer} = $ends[1 - $i];
        $self->{ends}{ $end->{fd} } = $end;
    }
}

sub _read
{
    my ($self, $end) = @_;
    my $line = $end->{line};
    my $n = sysread $end->{socket}, my $bytes, 65536;

    return if !defined $n && ($! == EAGAIN || $! == EINTR);
    return $self->_ended($end) unless $n;
    return $self->_reset($end) if $line->{mode} eq 'drop' && !$end->{client};
    my $due = $line->{mode} eq 'slow' && !$end->{client} ? time() + $line->{ms} / 1000 : 0;
    # What comes later may not overtake.
    my $queue = $end->{peer}{queue};
    $due = $queue->[-1][0] if @$queue && $queue->[-1][0] > $due;
    push @$queue, [$due, $bytes];
    $end->{peer}{queued} += $n;
}

sub _write
{
    my ($self, $end) = @_;
    my $now = time();

    return if $end->{line}{mode} eq 'hole';
    while (my $first = $end->{queue}[0]) {
        last if $first->[0] > $now;
        my $n = syswrite $end->{socket}, $first->[1];
        if (!defined $n) {
            return if $! == EAGAIN || $! == EINTR;
            return $self->_close($end);
        }
        $end->{queued} -= $n;
        if ($n < length $first->[1]) {
            substr($first->[1], 0, $n) = '';
            return;
        }
        shift @{ $end->{queue} };
    }
    $self->_close($end) if $end->{ending} && !@{ $end->{queue} };
}

# One side has closed: the other gets what is on its way, then the same.
sub _ended
{
    my ($self, $end) = @_;
    my $peer = $end->{peer};

    return $self->_close($end) unless @{ $peer->{queue} };
    $peer->{ending} = 1;
    delete $self->{ends}{ $end->{fd} };
}

sub _linger { return setsockopt $_[0], SOL_SOCKET, SO_LINGER, pack('ii', 1, 0) }

sub _reset
{
    my ($self, $end) = @_;

    _linger($_->{socket}) for $end, $end->{peer};
    $end->{line}{resets}++;
    $self->_close($end);
}

sub _close
{
    my ($self, $end) = @_;

    for my $side ($end, $end->{peer}) {
        next if $side->{closed}++;
        delete $self->{ends}{ $side->{fd} };
        close $side->{socket};
    }
    # Each holds the other.
    delete $end->{peer}{peer};
    delete $end->{peer};
}

1;
