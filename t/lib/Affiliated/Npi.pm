package Affiliated::Npi;

# NPI for tests, after its public specification, on 127.0.0.1 by https: tokens that end, accounts, batches whose signature and
# fields are looked at, reports; and the ways in which it may fail. Needs IO::Socket::SSL.
#
#   my $npi = Affiliated::Npi->new($t);         # ends with the test
#   $npi->conf                                  settings of [npi] that reach it
#   $npi->account($number => $code, $match)     what /api/validatebankaccount says of it (000)
#   $npi->credit($instruction => $status, %o)   its credit from now on, as reports have it: reversal, reason, amount, account
#   $npi->debit($code)                          what batches are told from now on (000)
#   $npi->fail($path => @faults)                of the next requests to a path, one each:
#       401 403 500, or any status              nothing was done
#       E007 E003 E001 E004 99                  an error with this code, nothing was done
#       drop hang half garbage endless empty    nothing was done; then no answer, none for long, half of one, no JSON, 40 MB, "null"
#       take_drop take_hang take_half take_garbage take_500 take_E021 take_999 take_other take_401   it was done
#       kill                                    kill -9 of $npi->{pid} before it is done, kill_taken after
#   $npi->expire('access' | 'refresh')          tokens of that kind are worth nothing any more
#   $npi->asked                                 [path, body] of every request, in order
#   $npi->batches                               {batchId => {real_time, items => [...], amount, sent => times}}, as taken
#   $npi->wrong                                 what requests had that the specification does not allow

use strict;
use warnings;

use Affiliated::Smtp ();
use Fcntl qw(:flock);
use IO::Socket::INET ();
use JSON::PP ();
use MIME::Base64 ();
use POSIX ();
use Time::HiRes qw(sleep time);

my $json = JSON::PP->new->canonical->utf8->allow_nonref;
my $count = 0;

sub new
{
    my ($class, $t, %o) = @_;
    my $name = 'npi' . ++$count;
    my $self = bless { t => $t, name => $name, state => $t->path("$name.json"), %o }, $class;
    my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 64) or die "npi: $!\n";

    $self->{authority} = Affiliated::Smtp::authority($t);
    $self->{port} = $listen->sockport;
    $self->_key;
    $t->write("$name.json", $json->encode({ tokens => {}, accounts => {}, credits => {}, faults => {}, batches => {}, asked => [], wrong => [], debit => '000' }));
    my $pid = fork;
    die "fork: $!\n" unless defined $pid;
    if (!$pid) {
        setpgrp;
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP PIPE);
        $SIG{CHLD} = 'IGNORE';
        close $t->{validator}{in} if $t->{validator};
        $self->_listen($listen);
        POSIX::_exit(0);
    }
    close $listen;
    $t->{processes}{$name} = $pid;
    return $self;
}

# The key that orders are signed with, as a PFX file, and its public half.
sub _key
{
    my $self = shift;
    my $t = $self->{t};
    my %file = map { $_ => $t->path("$self->{name}.$_") } qw(key cert pub pfx);

    for my $command (
        [qw(req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=Payer), '-keyout', $file{key}, '-out', $file{cert}],
        [qw(x509 -noout -pubkey -in), $file{cert}, '-out', $file{pub}],
        [qw(pkcs12 -export -passout pass:pfx-secret -inkey), $file{key}, '-in', $file{cert}, '-out', $file{pfx}],
        ) {
        my ($code, $out, $err) = $t->run('openssl', @$command);
        die "openssl @$command: $err" if $code;
        $t->write("$self->{name}.pub", $out) if $command->[0] eq 'x509' && !-s $file{pub};
    }
    $t->write("$self->{name}.$_->[0]", "$_->[1]\n") for [password => 'user-secret'], [client => 'client-secret'], [pfxpass => 'pfx-secret'];
    for my $part (qw(pfx password client pfxpass)) {
        $t->_own($t->path("$self->{name}.$part"), 'postgres');
        chmod 0600, $t->path("$self->{name}.$part");
    }
}

sub conf
{
    my $self = shift;
    my $at = sub { $self->{t}->path("$self->{name}.$_[0]") };

    return { enabled => 'on', mode => 'live', url => "https://localhost:$self->{port}/", ca_file => $self->{authority}{ca}, client => 'shop',
        client_password_file => $at->('client'), user => 'SHOP@1701', password_file => $at->('password'), pfx_file => $at->('pfx'),
        pfx_password_file => $at->('pfxpass'), debtor_bank => '1701', debtor_branch => '1', debtor_account => '0010017001018',
        debtor_name => 'Network Pvt. Ltd.', interval => '50ms', pause => '50ms', timeout => '30s', @_ };
}

# --- state -----------------------------------------------------------------------------------------------------------

# Runs code on the state, which is written back.
sub _with
{
    my ($self, $code) = @_;
    open my $file, '+<', $self->{state} or die "$self->{state}: $!\n";

    flock $file, LOCK_EX;
    my $state = $json->decode(do { local $/; <$file> });
    my @given = $code->($state);
    seek $file, 0, 0;
    truncate $file, 0;
    print $file $json->encode($state);
    close $file;
    return wantarray ? @given : $given[0];
}

sub account { my ($self, $number, $code, $match) = @_; $self->_with(sub { $_[0]{accounts}{$number} = [$code, $match // 100]; return }) }
sub credit { my ($self, $instruction, $status, %o) = @_; $self->_with(sub { $_[0]{credits}{$instruction} = { status => $status, %o }; return }) }
sub debit { my ($self, $code) = @_; $self->_with(sub { $_[0]{debit} = $code; return }) }
sub fail { my ($self, $path, @faults) = @_; $self->_with(sub { $_[0]{faults}{$path} = [map { [$_, $self->{pid}] } @faults]; return }) }
sub expire { my ($self, $kind) = @_; $self->_with(sub { my $s = shift; $_ eq 'none' or $s->{tokens}{$_}{kind} eq $kind && delete $s->{tokens}{$_} for keys %{ $s->{tokens} }; return }) }
sub asked { my $self = shift; return $self->_with(sub { @{ $_[0]{asked} } }) }
sub batches { my $self = shift; return $self->_with(sub { $_[0]{batches} }) }
sub wrong { my $self = shift; return $self->_with(sub { @{ $_[0]{wrong} } }) }
sub forget { my $self = shift; return $self->_with(sub { $_[0]{asked} = []; return }) }

# --- the server ------------------------------------------------------------------------------------------------------

sub _listen
{
    my ($self, $listen) = @_;

    require IO::Socket::SSL;
    while (1) {
        my $client = $listen->accept or next;
        my $pid = fork;
        if (defined $pid && !$pid) {
            $SIG{CHLD} = 'DEFAULT';
            eval { $self->_connection($client) };
            POSIX::_exit(0);
        }
        close $client;
    }
}

# Requests of one connection, as long as the client keeps it.
sub _connection
{
    my ($self, $client) = @_;
    my $tls = IO::Socket::SSL->start_SSL($client, SSL_server => 1, SSL_cert_file => $self->{authority}{cert}, SSL_key_file => $self->{authority}{key}) or return;

    while (defined(my $line = readline $tls)) {
        my ($path) = $line =~ /^POST (\S+) HTTP/ or return;
        my (%headers, $body);
        while (defined(my $header = readline $tls)) {
            last if $header =~ /^\r?\n\z/;
            $headers{ lc $1 } = $2 if $header =~ /^([\w-]+):\s*(.*?)\s*\z/;
        }
        read $tls, $body, $headers{'content-length'} || 0;
        $self->_answer($tls, $path, \%headers, $body);
    }
}

sub _say
{
    my ($self, $tls, $status, $answer, $how) = @_;
    my $body = ref $answer ? $json->encode($answer) : $answer;
    my $head = "HTTP/1.1 $status X\r\nContent-Type: application/json\r\nContent-Length: " . length($body) . "\r\n\r\n";

    if (($how || '') eq 'half') {
        print $tls $head . substr $body, 0, length($body) / 2;
        POSIX::_exit(0);
    }
    print $tls $head . $body;
}

sub _kill { my $pid = shift; kill 'KILL', $pid; sleep 0.2; POSIX::_exit(0) }

sub _answer
{
    my ($self, $tls, $path, $headers, $body) = @_;
    my ($fault, $pid) = $self->_with(sub {
        my $state = shift;
        push @{ $state->{asked} }, [$path, $path eq '/oauth/token' ? 'secret' : $body];
        push @{ $state->{wrong} }, 'Expect' if $headers->{expect};
        return @{ shift @{ $state->{faults}{$path} || [] } || ['', 0] };
    });
    my $does = { '/oauth/token' => \&_token, '/api/validatebankaccount' => \&_validate, '/api/postcipsbatch' => \&_batch,
        '/api/postnchlipsbatch' => \&_batch, '/api/getcipstxnlistbybatchid' => \&_report, '/api/getnchlipstxnlistbybatchid' => \&_report }->{$path}
        or return $self->_say($tls, 404, {});

    _kill($pid) if $fault eq 'kill';
    POSIX::_exit(0) if $fault eq 'drop';
    sleep 600 if $fault eq 'hang';
    return $self->_say($tls, 200, '<html>', 0) if $fault eq 'garbage';
    return $self->_say($tls, 200, 'null', 0) if $fault eq 'empty';
    return $self->_say($tls, 200, '{"x":"' . 'x' x 40_000_000 . '"}') if $fault eq 'endless';
    return $self->_say($tls, $fault, {}) if $fault =~ /^\d\d\d\z/;
    return $self->_say($tls, $fault eq 'E001' ? 403 : 400, { responseCode => $fault, responseDescription => 'AS THE TEST SAYS', fieldErrors => [] }) if $fault =~ /^(?:E\d+|99)\z/;
    if ($path ne '/oauth/token') {
        my ($token) = ($headers->{authorization} || '') =~ /^Bearer (\S+)\z/;
        my $good = $self->_with(sub { my $known = $_[0]{tokens}{ $token // '' }; return $known && $known->{kind} eq 'access' && $known->{until} > time });
        return $self->_say($tls, 401, { error => 'invalid_token' }) unless $good;
    }

    my ($status, $answer) = $does->($self, $path, $headers, $body);
    _kill($pid) if $fault eq 'kill_taken';
    POSIX::_exit(0) if $fault eq 'take_drop';
    sleep 600 if $fault eq 'take_hang';
    return $self->_say($tls, 200, '<html>') if $fault eq 'take_garbage';
    return $self->_say($tls, $1, {}) if $fault =~ /^take_(\d\d\d)\z/ && $fault ne 'take_999';
    return $self->_say($tls, 200, { responseCode => 'E021', responseDescription => 'TRANSACTION TIME OUT' }) if $fault eq 'take_E021';
    $answer->{cipsBatchResponse}{debitStatus} = '999' if $fault eq 'take_999';
    $answer->{cipsBatchResponse}{batchId} = 'ANOTHER' if $fault eq 'take_other';
    return $self->_say($tls, $status, $answer, $fault =~ /half/ ? 'half' : '');
}

sub _form { return map { my $x = $_; $x =~ tr/+/ /; $x =~ s/%(..)/chr hex $1/ge; $x } map { split /=/, $_, 2 } split /&/, $_[0] }

sub _token
{
    my ($self, $path, $headers, $body) = @_;
    my %form = _form($body);
    my $client = MIME::Base64::decode_base64(($headers->{authorization} || '') =~ /^Basic (\S+)/ ? $1 : '');

    return (401, { error => 'unauthorized' }) if $client ne 'shop:client-secret';
    return $self->_with(sub {
        my $state = shift;
        my $n = ++$state->{tokens_made};
        my %answer = (access_token => "access-$n", token_type => 'bearer', expires_in => 299, scope => 'read write trust', customerdetails => undef);

        if ($form{grant_type} eq 'password') {
            return (400, { error => 'invalid_grant', error_description => "Bad credentials: $form{password}" })
                if $form{username} ne 'SHOP@1701' || $form{password} ne 'user-secret';
            # The access token of this step is not to be used.
            $state->{tokens}{"refresh-$n"} = { kind => 'refresh', until => time + 12 * 3600 };
            return (200, { %answer, refresh_token => "refresh-$n" });
        }
        my $known = $state->{tokens}{ $form{refresh_token} || '' };
        return (400, { error => 'invalid_grant' }) unless $form{grant_type} eq 'refresh_token' && $known && $known->{kind} eq 'refresh' && $known->{until} > time;
        $state->{tokens}{"access-$n"} = { kind => 'access', until => time + 300 };
        return (200, { %answer, refresh_token => " $form{refresh_token}" });
    });
}

sub _validate
{
    my ($self, $path, $headers, $body) = @_;
    my $asked = $json->decode($body);
    my $wrong = join ' ', grep { $_ } map { _length($asked, @$_) } ['bankId', 4], ['accountId', 20], ['accountName', 140];
    my ($code, $match) = @{ $self->_with(sub { $_[0]{accounts}{ $asked->{accountId} } }) || ['000', 100] };

    $self->_wrong("validate: $wrong") if $wrong;
    return (200, { bankId => $asked->{bankId}, branchId => '81', accountId => '08********4512', accountName => undef, currency => 'NPR', responseCode => $code,
        responseMessage => $code eq '000' ? 'Account successfully validated.' : 'Beneficiary account name mismatch.',
        ($match % 2 ? 'matchPercentage' : 'matchPercentate') => $match, baseUrl => undef });
}

sub _wrong { my ($self, $what) = @_; $self->_with(sub { push @{ $_[0]{wrong} }, $what; return }); return }

# '' or what is wrong with a text.
sub _length
{
    my ($object, $field, $max, $optional) = @_;
    my $value = $object->{$field};

    return '' if !defined $value && $optional;
    return "$field is missing" if !defined $value || $value eq '';
    return "$field is longer than $max" if length $value > $max;
    return '';
}

sub _check
{
    my ($real_time, $batch, $items, $body) = @_;
    my @wrong = grep { $_ } map { _length($batch, @$_) } ['batchId', 20], ['batchCrncy', 3], ['categoryPurpose', 4], ['debtorAgent', 4], ['debtorBranch', 4],
        ['debtorName', 140], ['debtorAccount', 20];
    my ($sum, %seen) = (0);

    push @wrong, 'batchCount' if $batch->{batchCount} != @$items || $real_time && @$items != 1 || @$items > 10_000;
    push @wrong, 'categoryPurpose of real time' if $real_time && $batch->{categoryPurpose} ne 'ECPG';
    push @wrong, 'a name that is not in the table' if grep { !/^(?:batchId|batchAmount|batchCount|batchCrncy|categoryPurpose|debtor(?:Agent|Branch|Name|Account))\z/ } keys %$batch;
    for my $item (@$items) {
        push @wrong, grep { $_ } map { _length($item, @$_) } ['instructionId', 30], ['endToEndId', 30], ['creditorAgent', 4], ['creditorBranch', 4],
            ['creditorName', 140], ['creditorAccount', 20];
        push @wrong, 'instructionId twice' if $seen{ $item->{instructionId} }++;
        push @wrong, 'off-us only' if !$real_time && $item->{creditorAgent} eq $batch->{debtorAgent};
        $sum += sprintf '%.0f', $item->{amount} * 100;
    }
    push @wrong, 'batchAmount is not the sum' if $sum != sprintf '%.0f', $batch->{batchAmount} * 100;
    push @wrong, 'an amount that is no number with two decimals' if grep { !/^[1-9]\d{0,10}\.\d\d\z|^0\.\d\d\z/ } $body =~ /"(?:batchA|a)mount":([^,}]*)/g;
    return @wrong;
}

sub _verifies
{
    my ($self, $text, $token) = @_;
    my $base = $self->{t}->path("$self->{name}.verify.$$");
    my $write = sub { open my $file, '>:raw', "$base.$_[0]" or die; print $file $_[1]; close $file };

    $write->(text => $text);
    $write->(signature => MIME::Base64::decode_base64($token));
    my $ok = system("openssl dgst -sha256 -verify $self->{t}{dir}/$self->{name}.pub -signature $base.signature $base.text >/dev/null 2>&1") == 0;
    unlink "$base.text", "$base.signature";
    return $ok;
}

sub _batch
{
    my ($self, $path, $headers, $body) = @_;
    my $real_time = $path =~ /postcips/;
    my $said = $json->decode($body);
    my ($batch, $items) = $real_time ? @$said{qw(cipsBatchDetail cipsTransactionDetailList)} : @$said{qw(nchlIpsBatchDetail nchlIpsTransactionDetailList)};
    my @wrong = _check($real_time, $batch, $items, $body);

    if (@wrong) {
        $self->_wrong("batch: @wrong");
        return (400, { responseCode => 'E007', responseDescription => 'TECHNICAL VALIDATION FAILED', fieldErrors => \@wrong });
    }
    my $text = join ',', @$batch{qw(batchId debtorAgent debtorBranch debtorAccount)}, sprintf('%.2f', $batch->{batchAmount}), $batch->{batchCrncy},
        ($real_time ? () : $batch->{categoryPurpose}),
        (map { (@$_{qw(instructionId creditorAgent creditorBranch creditorAccount)}, sprintf '%.2f', $_->{amount}) } @$items), 'SHOP@1701';
    if (!$self->_verifies($text, $said->{token})) {
        $self->_wrong('signature');
        return (400, { responseCode => 'E003', responseDescription => 'INVALID TOKEN' });
    }
    return $self->_with(sub {
        my $state = shift;
        my $known = $state->{batches}{ $batch->{batchId} };
        my $debit = $state->{debit};

        if ($known) {
            $known->{sent}++;
            return (400, { responseCode => '99', responseDescription => 'DUPLICATE BATCH TRANSACTION' });
        }
        $state->{batches}{ $batch->{batchId} } = { real_time => $real_time ? 1 : 0, amount => sprintf('%.2f', $batch->{batchAmount}), items => $items, sent => 1, debit => $debit };
        return (200, {
            cipsBatchResponse => { responseCode => $debit, responseMessage => $debit eq '000' ? 'SUCCESS' : 'Insufficient funds', batchId => " $batch->{batchId}", debitStatus => $debit, id => 42 },
            cipsTxnResponseList => [map {
                my $credit = $debit eq '000' ? _credit($state, $real_time, $_) : '1000';
                { responseCode => $credit, responseMessage => ' SAID', id => 36, instructionId => $_->{instructionId}, creditStatus => $credit }
            } @$items] });
    });
}

sub _credit
{
    my ($state, $real_time, $item) = @_;
    my $set = $state->{credits}{ $item->{instructionId} };
    return $set ? $set->{status} : $real_time ? '000' : 'ENTR';
}

# By batch: the batch's own fields, its transactions in a list.
sub _report
{
    my ($self, $path, $headers, $body) = @_;
    my $real_time = $path =~ /getcips/ ? 1 : 0;
    my $asked = $json->decode($body);

    return $self->_with(sub {
        my $state = shift;
        my $known = $state->{batches}{ $asked->{batchId} };

        return (200, $state->{flat_unknown} ? [] : {}) unless $known && $known->{real_time} == $real_time;
        my @list = map {
            my $set = $state->{credits}{ $_->{instructionId} } || {};
            $set->{gone} ? () : { id => 146, batchId => 89, instructionId => $_->{instructionId}, endToEndId => $_->{endToEndId}, amount => $set->{amount} || $_->{amount} + 0, creditorAccount => $set->{account} || $_->{creditorAccount},
                creditStatus => $known->{debit} ne '000' ? '1000' : _credit($state, $real_time, $_), reasonCode => undef, reversalStatus => $set->{reversal},
                reasonDesc => $set->{reason} || '', ipsTxnId => undef, txnResponse => $set->{reference} // "FT-$_->{instructionId}" }
        } @{ $known->{items} };
        my %batch = (id => 89, batchId => $asked->{batchId}, batchAmount => $known->{amount} + 0, debitStatus => $known->{debit}, debitReasonDesc => $known->{debit} eq '000' ? 'SUCCESS' : 'Insufficient funds', txnResponse => '');
        my $name = $real_time ? 'cips' : 'nchlIps';
        my $form = $state->{form}++ % 3;
        return (200, { %batch, "${name}TransactionDetailList" => \@list }) if $form == 0;
        return (200, [{ "${name}BatchDetail" => \%batch, "${name}TransactionDetailList" => \@list }]) if $form == 1;
        return (200, [map { +{ %$_, "${name}BatchDetail" => \%batch } } @list]);
    });
}

1;
