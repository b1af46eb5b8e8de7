package Affiliated::Hooks;

# An endpoint for tests, on 127.0.0.1, that does what the path says.
#
#   my $hooks = Affiliated::Hooks->new($t);      # ends with the test
#   $hooks->address                              127.0.0.1:PORT
#   $hooks->asked                                what was asked so far: {host, method, path, headers => {...}, body, at}
#   $hooks->forget
#   $hooks->ca                                   file of the authority that it shows a certificate of for https, of *.sites.example; needs
#                                                IO::Socket::SSL, see Affiliated::Smtp::tls_there
#
# Paths: /ok, /status/NNN, /retry/NNN/SECONDS (Retry-After), /leads (a redirect to /ok), /slow (no answer), /close, /reset,
# /huge (200, without an end), /headers (so are its headers), /interim (100 again and again), /garbage, /binary, /late (200, whose body never comes), /once/NNN/NAME (that status once, then 200).

use strict;
use warnings;

use Affiliated::Smtp ();
use Fcntl qw(:flock);
use IO::Socket::INET ();
use JSON::PP ();
use POSIX ();
use Socket qw(MSG_PEEK SOL_SOCKET SO_LINGER);
use Time::HiRes qw(sleep time);

my $json = JSON::PP->new->canonical->latin1;

sub new
{
    my ($class, $t) = @_;
    my $self = bless { t => $t }, $class;
    my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 256) or die "hooks: $!\n";

    $self->{address} = '127.0.0.1:' . $socket->sockport;
    $self->{log} = $t->write('hooks.log', '');
    $self->{authority} = Affiliated::Smtp::authority($t) if Affiliated::Smtp::tls_there();
    my $pid = fork;
    die "fork: $!\n" unless defined $pid;
    if (!$pid) {
        setpgrp;
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP);
        $SIG{CHLD} = 'IGNORE';
        $SIG{PIPE} = 'IGNORE';
        while (1) {
            my $peer = $socket->accept or next;
            my $child = fork;
            next if $child;
            eval { $self->_serve($self->_tls($peer)) };
            POSIX::_exit(0);
        }
    }
    $t->{processes}{hooks} = $pid;
    return $self;
}

sub ca { return $_[0]{authority}{ca} }
sub address { return $_[0]{address} }
sub asked { my $self = shift; return map { $json->decode($_) } split /\n/, $self->{t}->slurp($self->{log}) }
sub forget { my $self = shift; return truncate $self->{log}, 0 }

sub _note
{
    my ($self, $what) = @_;

    open my $log, '>>', $self->{log} or return;
    flock $log, LOCK_EX;
    syswrite $log, $json->encode($what) . "\n";
    return close $log;
}

# Whoever begins with a handshake gets one.
sub _tls
{
    my ($self, $peer) = @_;

    recv $peer, my $first, 1, MSG_PEEK;
    return $peer if ($first // '') ne "\x16";
    return IO::Socket::SSL->start_SSL($peer, SSL_server => 1, SSL_cert_file => $self->{authority}{cert}, SSL_key_file => $self->{authority}{key}) || die "no handshake\n";
}

# Requests on one connection, until it ends.
sub _serve
{
    my ($self, $peer) = @_;
    my $bytes = '';

    while (1) {
        while ($bytes !~ /\r\n\r\n/) {
            return unless sysread $peer, $bytes, 65536, length $bytes;
        }
        my ($head, $body) = split /\r\n\r\n/, $bytes, 2;
        my ($first, @lines) = split /\r\n/, $head;
        my ($method, $path) = split / /, $first;
        my %headers;
        for (@lines) {
            my ($name, $value) = /^([^:]+):\s*(.*)$/;
            $headers{ lc $name } = $value;
        }
        while (length $body < ($headers{'content-length'} || 0)) {
            return unless sysread $peer, $body, 65536, length $body;
        }
        $bytes = substr $body, $headers{'content-length'} || 0, length $body, '';
        $self->_note({ host => $headers{host}, method => $method, path => $path, headers => \%headers, body => $body, at => time });
        return unless $self->_answer($peer, $path);
    }
}

sub _say
{
    my ($peer, $status, $body, @more) = @_;
    return syswrite $peer, join "\r\n", "HTTP/1.1 $status X", 'Content-Length: ' . length $body, @more, '', $body;
}

# True if the connection stays.
sub _answer
{
    my ($self, $peer, $path) = @_;

    return _say($peer, $1, "it is $1") if $path =~ m{^/status/(\d+)};
    return _say($peer, $1, 'later', "Retry-After: $2") if $path =~ m{^/retry/(\d+)/([^/?]+)};
    return _say($peer, 302, '', "Location: http://$self->{address}/ok/led") if $path =~ m{^/leads};
    return _say($peer, 200, "\xff\x00\x1b[31m\xe0\xa4") if $path =~ m{^/binary};
    if ($path =~ m{^/once/(\d+)/(\w+)}) {
        my ($status, $mark) = ($1, $self->{t}->path("once-$2"));
        return _say($peer, 200, 'now') if -e $mark;
        open my $file, '>', $mark or return;
        close $file;
        return _say($peer, $status, 'not yet');
    }
    if ($path =~ m{^/slow}) {
        sleep 1 while sysread $peer, my $more, 1;
        return 0;
    }
    if ($path =~ m{^/late}) {
        syswrite $peer, "HTTP/1.1 200 X\r\nContent-Length: 10\r\n\r\nhalf";
        sleep 1 while sysread $peer, my $more, 1;
        return 0;
    }
    if ($path =~ m{^/huge}) {
        syswrite $peer, "HTTP/1.1 200 X\r\n\r\n";
        1 while syswrite $peer, 'x' x 65536;
        return 0;
    }
    if ($path =~ m{^/headers}) {
        syswrite $peer, "HTTP/1.1 200 X\r\n";
        1 while syswrite $peer, "X-More: " . "y" x 100 . "\r\n";
        return 0;
    }
    if ($path =~ m{^/interim}) {
        1 while syswrite $peer, "HTTP/1.1 100 X\r\n\r\n" x 1000;
        return 0;
    }
    if ($path =~ m{^/garbage}) {
        syswrite $peer, "\x00\x01 what?\r\n\r\n\r\n";
        return 0;
    }
    if ($path =~ m{^/reset}) {
        setsockopt $peer, SOL_SOCKET, SO_LINGER, pack 'll', 1, 0;
        return 0;
    }
    return 0 if $path =~ m{^/close};
    return _say($peer, 200, 'thanks');
}

1;
