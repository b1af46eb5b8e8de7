package Affiliated::Redis;

# A Redis client of the tests (RESP2, blocking), binary-safe.

use strict;
use warnings;

use IO::Socket::UNIX;

sub new {
    my ($class, $path) = @_;
    my $s = IO::Socket::UNIX->new(Peer => $path) or die "redis $path: $!\n";
    return bless { s => $s, in => '' }, $class;
}

# The reply: a scalar, undef, or an array; an error reply dies with an object of class Affiliated::Redis::Error.
sub command {
    my ($self, @words) = @_;
    my $text = '*' . @words . "\r\n" . join '', map { my $w = "$_"; '$' . length($w) . "\r\n$w\r\n" } @words;
    my $at = 0;
    local $SIG{PIPE} = 'IGNORE';
    while ($at < length $text) {
        my $n = syswrite $self->{s}, $text, length($text) - $at, $at or die "redis: lost\n";
        $at += $n;
    }
    return $self->reply;
}

sub fill {
    my ($self) = @_;
    sysread $self->{s}, $self->{in}, 65536, length $self->{in} or die "redis: lost\n";
    return;
}

sub line {
    my ($self) = @_;
    my $i;
    $self->fill while ($i = index $self->{in}, "\r\n") < 0;
    my $line = substr $self->{in}, 0, $i;
    substr $self->{in}, 0, $i + 2, '';
    return $line;
}

sub reply {
    my ($self) = @_;
    my ($type, $rest) = $self->line =~ /^(.)(.*)/s;
    return $rest if $type eq '+' || $type eq ':';
    die bless \$rest, 'Affiliated::Redis::Error' if $type eq '-';
    return undef if $rest < 0;
    return [ map { $self->reply } 1 .. $rest ] if $type eq '*';
    $self->fill while length $self->{in} < $rest + 2;
    my $bulk = substr $self->{in}, 0, $rest;
    substr $self->{in}, 0, $rest + 2, '';
    return $bulk;
}

package Affiliated::Redis::Error;

use overload '""' => sub { ${ $_[0] } . "\n" }, fallback => 1;

1;
