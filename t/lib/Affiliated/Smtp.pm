package Affiliated::Smtp;

# A small mail server for tests, on 127.0.0.1, and what came to it.
#
#   my $smtp = Affiliated::Smtp->new($t, %o);    # ends with the test
#       tls => 'smtps' or 'starttls' (needs IO::Socket::SSL; see tls_there), auth => [user, password]
#   $smtp->url                  smtp://127.0.0.1:PORT or smtps://localhost:PORT
#   $smtp->mode($mode)          pass; away (connections are closed at once); mail451, mail550 (MAIL is refused)
#   $smtp->kill_after($pid, $seconds)    kill -9 once a "250" for a mail was sent, and that time has passed; once
#   $smtp->mails                what was accepted, in order: {from, to, data, tls, user, connection}
#   $smtp->attempts             all that was tried: recipients
#
# The recipient's name decides, too: rcptNNN@ is refused with that code, dataNNN@ after its text; drop@ gets no answer to its
# text but the end of the connection, hang@ nothing for ever.
#
#   Affiliated::Smtp::tls_there           whether there is IO::Socket::SSL
#   Affiliated::Smtp::authority($t)       a private authority and a certificate for localhost, 127.0.0.1 and *.sites.example:
#                                         {ca, cert, key}: files
#   Affiliated::Smtp::parse($bytes)       a mail as readers see it: {headers => {name => value}, text}; dies if it is none

use strict;
use warnings;

use Fcntl qw(:flock);
use IO::Select ();
use IO::Socket::INET ();
use JSON::PP ();
use MIME::Base64 ();
use MIME::QuotedPrint ();
use POSIX ();
use Time::HiRes qw(sleep);

my $json = JSON::PP->new->canonical->latin1;
my $count = 0;

sub tls_there { return eval { require IO::Socket::SSL; 1 } }

sub authority
{
    my $t = shift;

    return $t->{authority} if $t->{authority};
    my %file = map { $_ => $t->path("authority-$_.pem") } qw(ca cakey cert key csr);
    my @run = (
        [qw(req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=Tests), '-keyout', $file{cakey}, '-out', $file{ca}],
        [qw(req -newkey rsa:2048 -nodes -subj /CN=localhost), '-keyout', $file{key}, '-out', $file{csr}],
        [qw(x509 -req -days 2 -CAcreateserial), '-in', $file{csr}, '-CA', $file{ca}, '-CAkey', $file{cakey}, '-out', $file{cert},
            '-extfile', $t->write('authority.ext', "subjectAltName=DNS:localhost,IP:127.0.0.1,DNS:*.sites.example\n")],
        );
    for my $command (@run) {
        my ($code, $out, $err) = $t->run('openssl', @$command);
        die "openssl @$command: $err" if $code;
    }
    chmod 0644, $file{ca};
    return $t->{authority} = \%file;
}

sub new
{
    my ($class, $t, %o) = @_;
    my $name = 'smtp' . ++$count;
    my $port = $o{port} || $t->port;
    my $self = bless { t => $t, name => $name, port => $port, %o }, $class;
    my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 64, ReuseAddr => 1) or die "smtp: $!\n";

    $self->{authority} = authority($t) if $o{tls};
    $self->mode('pass');
    $self->{log} = $t->write("$name.log", '');
    my $pid = fork;
    die "fork: $!\n" unless defined $pid;
    if (!$pid) {
        setpgrp;
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP);
        $SIG{CHLD} = 'IGNORE';
        close $t->{validator}{in} if $t->{validator};    # it ends when nobody has it open
        $self->_listen($listen);
        POSIX::_exit(0);
    }
    close $listen;
    $t->{processes}{$name} = $pid;
    return $self;
}

sub url
{
    my $self = shift;
    return ($self->{tls} || '') eq 'smtps' ? "smtps://localhost:$self->{port}" : "smtp://localhost:$self->{port}";
}

sub stop { my $self = shift; return $self->{t}->_end($self->{name}, 'KILL') }

sub mode
{
    my ($self, $mode) = @_;
    my $path = $self->{t}->path("$self->{name}.mode");

    $self->{t}->write("$path.new", $mode);
    rename "$path.new", $path;
}

sub kill_after
{
    my ($self, $pid, $seconds) = @_;
    my $path = $self->{t}->path("$self->{name}.kill");

    $self->{t}->write("$path.new", "$pid $seconds");
    rename "$path.new", $path;
}

sub _log { return map { $json->decode($_) } split /\n/, $_[0]{t}->slurp($_[0]{log}) }
sub mails { return grep { $_->{accepted} } $_[0]->_log }
sub attempts { return map { $_->{to} } $_[0]->_log }

# --- the server ------------------------------------------------------------------------------------------------------

sub _listen
{
    my ($self, $listen) = @_;
    my $connection = 0;

    while (my $client = $listen->accept) {
        $connection++;
        if ($self->_mode eq 'away') {
            close $client;
            next;
        }
        my $pid = fork;
        if (defined $pid && !$pid) {
            close $listen;
            eval { $self->_serve($client, $connection) };
            POSIX::_exit(0);
        }
        close $client;
    }
}

sub _mode { return $_[0]{t}->slurp($_[0]{t}->path("$_[0]{name}.mode")) }

sub _say { my ($socket, $text) = @_; print {$socket} "$text\r\n"; $socket->flush }

sub _secure
{
    my ($self, $socket) = @_;

    require IO::Socket::SSL;
    return IO::Socket::SSL->start_SSL($socket, SSL_server => 1, SSL_cert_file => $self->{authority}{cert},
        SSL_key_file => $self->{authority}{key});
}

sub _note
{
    my ($self, %what) = @_;

    open my $log, '>>', $self->{log} or return;
    flock $log, LOCK_EX;
    syswrite $log, $json->encode(\%what) . "\n";
    close $log;
}

sub _serve
{
    my ($self, $socket, $connection) = @_;
    my ($tls, $user, $from, $to) = ('', undef, undef, undef);

    $socket->autoflush(1);
    if (($self->{tls} || '') eq 'smtps') {
        $socket = $self->_secure($socket) or return;
        $tls = 'smtps';
    }
    _say($socket, '220 mail.example ESMTP');
    while (defined(my $line = readline $socket)) {
        $line =~ s/\r?\n\z//;
        if ($line =~ /^EHLO /i) {
            my @can = ('mail.example', 'SIZE 1000000', '8BITMIME');
            push @can, 'STARTTLS' if ($self->{tls} || '') eq 'starttls' && !$tls;
            push @can, 'AUTH PLAIN' if $self->{auth};
            _say($socket, '250' . ($_ == $#can ? ' ' : '-') . $can[$_]) for 0 .. $#can;
        } elsif ($line =~ /^STARTTLS/i) {
            _say($socket, '220 go on');
            $socket = $self->_secure($socket) or return;
            $tls = 'starttls';
        } elsif ($line =~ /^AUTH PLAIN(?: (\S+))?/i) {
            my $text = $1;
            if (!defined $text) {
                _say($socket, '334 ');
                $text = readline $socket;
            }
            my (undef, $who, $password) = split /\0/, MIME::Base64::decode_base64($text);
            if ($who eq $self->{auth}[0] && $password eq $self->{auth}[1]) {
                $user = $who;
                _say($socket, '235 welcome');
            } else {
                _say($socket, '535 5.7.8 wrong password');
            }
        } elsif ($line =~ /^MAIL FROM:<([^>]*)>/i) {
            $from = $1;
            _say($socket, $self->_mode =~ /^mail(\d+)/ ? "$1 4.3.2 not this sender now" : '250 ok');
        } elsif ($line =~ /^RCPT TO:<([^>]*)>/i) {
            $to = $1;
            if ($to =~ /^rcpt(\d+)/) {
                $self->_note(to => $to, connection => $connection);
                _say($socket, "$1-5.1.1 nobody here\r\n$1 has this name");
            } else {
                _say($socket, '250 ok');
            }
        } elsif ($line =~ /^DATA/i) {
            _say($socket, '354 go on');
            my $data = '';
            while (1) {
                my $more = readline $socket;
                return unless defined $more;
                last if $more eq ".\r\n";
                $more =~ s/^\.//;
                $data .= $more;
            }
            $self->_take($socket, { from => $from, to => $to, data => $data, tls => $tls, user => $user, connection => $connection });
        } elsif ($line =~ /^QUIT/i) {
            _say($socket, '221 bye');
            return;
        } else {
            _say($socket, '250 ok');
        }
    }
}

sub _take
{
    my ($self, $socket, $mail) = @_;
    my $kill = $self->{t}->path("$self->{name}.kill");

    if ($mail->{to} =~ /^data(\d+)/) {
        $self->_note(%$mail);
        _say($socket, "$1 5.7.1 this text is not wanted");
    } elsif ($mail->{to} =~ /^drop/) {
        $self->_note(%$mail);
        POSIX::_exit(0);
    } elsif ($mail->{to} =~ /^hang/) {
        $self->_note(%$mail);
        sleep 600;
    } else {
        $self->_note(%$mail, accepted => 1);
        if (rename $kill, "$kill.done") {
            my ($pid, $seconds) = split / /, $self->{t}->slurp("$kill.done");
            _say($socket, '250 2.0.0 taken') if $seconds >= 0;
            sleep $seconds if $seconds > 0;
            kill 'KILL', $pid;
            return;
        }
        _say($socket, '250 2.0.0 taken');
    }
}

# --- mails as readers see them ---------------------------------------------------------------------------------------

sub _words
{
    my $value = shift;

    $value =~ s/(\?=)\s+(=\?)/$1$2/g;
    $value =~ s/=\?UTF-8\?B\?([A-Za-z0-9+\/=]*)\?=/MIME::Base64::decode_base64($1)/ge;
    utf8::decode($value) or die "a header is no UTF-8\n";
    return $value;
}

sub parse
{
    my $bytes = shift;
    my %headers;

    $bytes =~ s/\r\n/\n/g;
    die "a bare CR\n" if $bytes =~ /\r/;
    die "a byte that is none of a mail's\n" if $bytes =~ /[^\n\x20-\x7e]/;
    die "a line of more than 998\n" if grep { length > 998 } split /\n/, $bytes;
    my ($head, $body) = split /\n\n/, $bytes, 2;
    die "no body\n" unless defined $body;
    die "a header's line of more than 78\n" if grep { length > 78 && !/^(?:To|From|Message-ID): <\S*>\z/ } split /\n/, $head;
    for my $line (split /\n(?![ \t])/, $head) {
        my ($name, $value) = $line =~ /\A([A-Za-z-]+): (\S.*)\z/s or die "no header: $line\n";
        die "two headers $name\n" if exists $headers{ lc $name };
        die "an encoded word that is too long: $value\n" if $value =~ /=\?\S{74,}/;
        $value =~ s/\n(?=[ \t])//g;
        $headers{ lc $name } = $value;
    }
    my $encoding = $headers{'content-transfer-encoding'} || '';
    die "encoding $encoding\n" unless $encoding =~ /\A(?:7bit|quoted-printable)\z/;
    die "a quoted line of more than 76\n" if $encoding ne '7bit' && grep { length > 76 } split /\n/, $body;
    my $text = $encoding eq '7bit' ? $body : MIME::QuotedPrint::decode_qp($body);
    utf8::decode($text) or die "the text is no UTF-8\n";
    $headers{$_} = _words($headers{$_}) for grep { exists $headers{$_} } qw(subject from);
    return { headers => \%headers, text => $text };
}

1;
