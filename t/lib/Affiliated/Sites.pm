package Affiliated::Sites;

# A name server and an https server for tests, on 127.0.0.1, that know what they are told.
#
#   my $sites = Affiliated::Sites->new($t);      # ends with the test; https needs IO::Socket::SSL
#   $sites->dns, $sites->https                   127.0.0.1:PORT of each
#   $sites->txt($name => [$text, ...])           its TXT records; a text over 255 bytes is several strings
#   $sites->txt($name => 'nxdomain')             or servfail, silent (no answer), garbage, short (half an answer)
#   $sites->file($host => {status, body, headers => {...}, hang, endless, flood})    what GET answers, if the host is asked
#   $sites->asked                                what was asked of both: "TXT name", "GET host path"

use strict;
use warnings;

use Affiliated::Smtp ();
use Fcntl qw(:flock);
use IO::Socket::INET ();
use JSON::PP ();
use POSIX ();
use Time::HiRes qw(sleep);

my $json = JSON::PP->new->canonical->latin1;

sub new
{
    my ($class, $t) = @_;
    my $self = bless { t => $t, known => { txt => {}, file => {} } }, $class;
    my $udp = IO::Socket::INET->new(Proto => 'udp', LocalAddr => '127.0.0.1', LocalPort => 0) or die "dns: $!\n";

    $self->{dns} = '127.0.0.1:' . $udp->sockport;
    $self->{log} = $t->write('sites.log', '');
    $self->{authority} = Affiliated::Smtp::authority($t);
    $self->_save;
    $self->_fork('sites-dns', sub { $self->_names($udp) });
    if (Affiliated::Smtp::tls_there()) {
        my $tcp = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 64) or die "https: $!\n";
        $self->{https} = '127.0.0.1:' . $tcp->sockport;
        $self->_fork('sites-https', sub { $self->_pages($tcp) });
    }
    return $self;
}

sub dns { return $_[0]{dns} }
sub https { return $_[0]{https} }

sub _fork
{
    my ($self, $name, $code) = @_;
    my $pid = fork;

    die "fork: $!\n" unless defined $pid;
    if (!$pid) {
        setpgrp;
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP);
        $SIG{CHLD} = 'IGNORE';
        $code->();
        POSIX::_exit(0);
    }
    $self->{t}{processes}{$name} = $pid;
}

sub _save
{
    my $self = shift;
    my $path = $self->{t}->path('sites.json');

    $self->{t}->write("$path.new", $json->encode($self->{known}));
    rename "$path.new", $path;
}

sub _known { my $self = shift; return $json->decode($self->{t}->slurp($self->{t}->path('sites.json'))) }
sub txt { my ($self, $name, $what) = @_; $self->{known}{txt}{$name} = $what; $self->_save }
sub file { my ($self, $host, $what) = @_; $self->{known}{file}{$host} = $what; $self->_save }
sub asked { return split /\n/, $_[0]{t}->slurp($_[0]{log}) }

sub _note
{
    my ($self, $what) = @_;

    open my $log, '>>', $self->{log} or return;
    flock $log, LOCK_EX;
    syswrite $log, "$what\n";
    close $log;
}

sub _names
{
    my ($self, $udp) = @_;

    while (1) {
        my $from = $udp->recv(my $query, 4096) // next;
        my ($id, undef, undef) = unpack 'nnn', $query;
        my ($pos, @labels) = (12);
        while ((my $len = ord substr $query, $pos, 1) > 0) {
            push @labels, substr $query, $pos + 1, $len;
            $pos += $len + 1;
        }
        my $question = substr $query, 12, $pos + 5 - 12;
        my $name = join '.', @labels;
        my $what = $self->_known->{txt}{ lc $name } // 'nxdomain';
        $self->_note("TXT $name");
        my %code = (nxdomain => 3, servfail => 2);
        my $answer;
        if (!ref $what && exists $code{$what}) {
            $answer = pack('nnnnnn', $id, 0x8180 | $code{$what}, 1, 0, 0, 0) . $question;
        } elsif (!ref $what && $what eq 'silent') {
            next;
        } elsif (!ref $what && $what eq 'garbage') {
            $answer = pack('nnnnnn', $id, 0x8180, 1, 9, 0, 0) . $question . "\xc0\x0c" . ("\xff" x 20);
        } else {
            $answer = pack('nnnnnn', $id, 0x8180, 1, scalar @$what, 0, 0) . $question;
            for my $text (@$what) {
                my $data = join '', map { chr(length) . $_ } $text =~ /(.{1,255})/gs;
                $answer .= pack 'nnnNn/a*', 0xc00c, 16, 1, 60, $data;
            }
        }
        $udp->send($answer, 0, $from);
    }
}

sub _pages
{
    my ($self, $tcp) = @_;

    require IO::Socket::SSL;
    while (my $client = $tcp->accept) {
        my $pid = fork;
        if (defined $pid && !$pid) {
            eval { $self->_page($client) };
            POSIX::_exit(0);
        }
        close $client;
    }
}

sub _page
{
    my ($self, $client) = @_;
    my $tls = IO::Socket::SSL->start_SSL($client, SSL_server => 1, SSL_cert_file => $self->{authority}{cert},
        SSL_key_file => $self->{authority}{key}) or return;
    my ($path, $host) = ('', '');

    while (defined(my $line = readline $tls)) {
        $path = $1 if $line =~ /^GET (\S+)/;
        $host = $1 if $line =~ /^Host: (\S+)/i;
        last if $line =~ /^\r?\n\z/;
    }
    $self->_note("GET $host $path");
    my $what = $self->_known->{file}{$host} || { status => 404, body => 'nothing' };
    sleep 600 if $what->{hang};
    if ($what->{flood}) {
        print $tls "HTTP/1.1 200 X\r\n";
        print {$tls} "X-More: " . "y" x 100 . "\r\n" or last for 1 .. 10000;
        return;
    }
    my %headers = (($what->{endless} ? () : ('Content-Length' => length $what->{body})), %{ $what->{headers} || {} });
    print $tls join '', "HTTP/1.1 $what->{status} X\r\n", map({ "$_: $headers{$_}\r\n" } sort keys %headers), "Connection: close\r\n\r\n";
    if ($what->{endless}) {
        print {$tls} 'x' x 4096 or last for 1 .. 10000;
    }
    print $tls $what->{body};
    close $tls;
}

1;
