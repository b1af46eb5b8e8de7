# The role payouts and NPI, as its specification has it: every verdict; tokens that end; requests that are refused, lost, cut or
# answered with nonsense; kill -9 at each step. Whatever happens, a batch goes out once, and what was perhaps sent is asked about.
# (On the sanitized build, which has fault points.)

BEGIN { $ENV{AFFILIATED_BUILD} = 'asan' }

use Affiliated::Test;
use Affiliated::Daemon;
use Affiliated::Npi;

use JSON::PP ();
use Test::More ();

BEGIN { Test::More::plan(skip_all => 'IO::Socket::SSL is not installed') unless Affiliated::Smtp::tls_there() }

my $t = Affiliated::Test->new;
my $json = JSON::PP->new->canonical->allow_nonref;
my $PEOPLE = 9;
my $calls = 0;

$t->pg_start;
$t->redis_start;

sub quote { my $text = shift; $text =~ s/'/''/g; return "'$text'" }

# People who have earned 100000.00 each, and their bank accounts; two admins.
my $world = $t->write('world.sql', "\\ir $Affiliated::Test::TOP/t/sql/support/people.psql\n" . <<"SQL");
insert into affiliate.person (user_id, email, name, password, verified_at, is_admin) select 900200 + n, 'p' || n || '\@people.example', 'p' || n, '\$scrypt\$fixture-p' || n, now(), n > 90
  from generate_series(1, 92) n where n <= $PEOPLE or n > 90;
insert into affiliate.session (user_id, token_hash, csrf_hash, created_at, last_seen_at)
select user_id, 'token-' || name, 'csrf-' || name, now(), now() from affiliate.person where user_id > 900200;
insert into affiliate.affiliate (affiliate_id, name, user_id) select 900300 + n, 'Person ' || n, 900200 + n from generate_series(1, $PEOPLE) n;
insert into affiliate.link (merchant_id, link_id, campaign_id, affiliate_id, livemode, code, url)
select 900001, 900400 + n, 900021, 900300 + n, true, 'npi-' || n, 'https://shop.example/' from generate_series(1, $PEOPLE) n;
insert into affiliate.link_code (code, merchant_id, link_id) select code, merchant_id, link_id from affiliate.link where link_id > 900400;
insert into affiliate.payout_method (affiliate_id, kind, holder, account, bank, branch, is_default)
select 900300 + n, 'bank', 'Person "' || n || '" Größe', '0190001750' || n, '0401', case when n % 2 = 0 then '81' end, true from generate_series(1, $PEOPLE) n;
select pg_temp.report(jsonb_build_object('order', 'N' || n, 'status', 'approved', 'amount', 100000000, 'click', pg_temp.click(n, p_link => 900400 + n)))
  from generate_series(1, $PEOPLE) n;
select affiliate.release_holds(1000);
update affiliate.payout_policy set cool_off = '0';
commit;
SQL
my ($code, undef, $err) = $t->run($t->pg_bin . '/psql', '-XqAt', '-h', $t->{pg_socket}, '-U', 'postgres', '-d', 'affiliate', '-f', $world);
is($code, 0, 'people who have earned something') or die $err;

sub api
{
    my ($who, $operation, $request) = @_;
    my $sql = sprintf q{select r from affiliate.api_call(%s, %s, %s, %s) with ordinality c(r, n) where n = 2}, map { quote(ref $_ ? $json->encode($_) : $_) }
        { session => "token-$who", csrf => "csrf-$who" }, $operation, $request || {}, { request_id => 'r', idempotency_key => 'k' . ++$calls, address => '192.0.2.0/24', body_hash => 'b' };
    my $answer = $t->psql($sql);

    return $answer =~ /\S/ ? $json->decode($answer) : undef;
}

# A batch of payouts to these people, approved: {batch, reference, payouts, instructions}.
my $turn = 0;
sub batch
{
    my @who = @_;
    my @payouts = map { api("p$_", 'payout_create', { amount => '1000.00', currency => 'NPR' })->{payout} } @who;
    my $b = api('p91', 'payout_batch_create', { kind => 'bank', currency => 'NPR', provider => 'npi', payouts => \@payouts });

    api('p91', 'payout_batch_propose', { batch => "$b->{batch}" });
    api('p92', 'payout_batch_approve', { batch => "$b->{batch}" });
    return { %$b, payouts => \@payouts, instructions => [map { "AP$_" } @payouts] };
}

# "approved checking | approved failed"
sub states
{
    my $b = shift;

    return $t->value(qq{select concat_ws(' ', b.state, s.state, '|', (select string_agg(p.state, ' ' order by p.payout_id) from affiliate.payout p where p.payout_id in (@{[join ',', @{ $b->{payouts} }]})))
        from affiliate.payout_batch b left join affiliate.payout_submission s using (batch_id) where b.batch_id = $b->{batch}});
}
sub becomes { my ($b, $wanted, $name) = @_; $t->wait_until($wanted, sub { states($b) eq $wanted }, 60); return is(states($b), $wanted, $name) }
sub why { my $b = shift; return $t->value("select reason from affiliate.payout where payout_id = $b->{payouts}[0]") }
# Pauses are over; what somebody has in hand stays his. What a dead daemon had in hand, once it is dead, is anybody's.
sub now_due { $t->psql("update affiliate.payout_submission set next_at = now() where state <> 'over' and next_at < now() + interval '20 seconds'") }
sub orphaned { $t->psql("update affiliate.payout_submission set next_at = now() where state <> 'over'") }
sub books { my ($code, $out) = $t->cli('audit'); return is($code, 0, "the books hold: $_[0]") || diag $out }

my $npi = Affiliated::Npi->new($t);
my ($now, $later) = ('/api/postcipsbatch', '/api/postnchlipsbatch');

sub posts { my $b = shift; return scalar grep { $_->[0] =~ /post/ && $_->[1] =~ /"$b->{reference}"/ } $npi->asked }
sub restart
{
    my %o = @_;
    $t->daemon_stop if $t->alive('daemon');
    $t->daemon_start(roles => ['payouts'], conf => { npi => { %{ $npi->conf }, %o } });
    return $npi->{pid} = $t->{processes}{daemon};
}
# Of a long table some, others each time, by the seed; with AFF_TEST_ALL=1 all of it.
sub some
{
    my ($n, @all) = @_;
    return @all if $ENV{AFF_TEST_ALL};
    return map { splice @all, $t->random(scalar @all), 1 } 1 .. $n;
}
# Given up by a person: the money is payable again.
sub give_up { my $b = shift; api('p91', 'admin_payout_resolve', { payout => "$_", outcome => 'failed', reason => 'The bank says no.' }) for @{ $b->{payouts} } }

# --- settings ---------------------------------------------------------------------------------------------------------

for my $case (
    [{ url => '' }, qr/set npi\.url/],
    [{ url => 'ftp://npi.example' }, qr/set npi\.url/],
    [{ url => 'https://me:secret@npi.example' }, qr/set npi\.url/],
    [{ url => 'http://npi.example' }, qr{has to begin with https://}],
    [{ url => 'http://npi.example', tls => 'off' }, qr{has to begin with https://}],
    [{ user => '' }, qr/set npi\.user/],
    [{ user => 'a,b' }, qr/set npi\.user/],
    [{ client => '' }, qr/npi\.client and npi\.client_password_file go together/],
    [{ pfx_file => '' }, qr/set npi\.pfx_file/],
    [{ pfx_file => $t->path('npi1.cert') }, qr/npi\.pfx_file: .*: it is no PFX file/],
    [{ pfx_password_file => $t->path('npi1.password') }, qr/npi\.pfx_file: .*: its password is another/],
    [{ debtor_bank => '17' }, qr/npi\.debtor_bank is not/],
    [{ debtor_branch => 'main' }, qr/npi\.debtor_branch and/],
    [{ debtor_account => '1,2' }, qr/npi\.debtor_account is not/],
    [{ debtor_name => '' }, qr/set npi\.debtor_name/],
    [{ purpose => 'cust' }, qr/npi\.purpose is not/],
    [{ ca_file => '' }, qr/npi: NPI: .*certificate/i],
    [{ password_file => $t->path('npi1.client') }, qr/npi: NPI does not let us in: status 400/],
    [{ client_password_file => $t->path('npi1.password') }, qr/npi: NPI does not let us in: status 401/],
    )
{
    my ($conf, $said) = @$case;
    $t->daemon_conf(roles => ['payouts'], conf => { npi => { %{ $npi->conf }, %$conf } });
    my ($code, $out) = $t->cli('check');
    like($out, qr/^FAIL  .*$said/m, 'check says: ' . (($out =~ /^FAIL  (npi.*)/m)[0] // $out));
    unlike($out, qr/secret/, 'and no secret');
}
$t->daemon_conf(roles => ['payouts'], conf => { npi => $npi->conf });
like(($t->cli('check'))[1], qr{^ok    npi: https://localhost:\d+/ lets us in \(live payouts; uncertified\)$}m, 'check logs in');
is_deeply([map { $_->[0] } grep { $_->[0] ne '/oauth/token' } $npi->asked], [], 'and asks for nothing');

$t->daemon_start(roles => ['payouts'], conf => { npi => { interval => '50ms' } });
ok($t->wait_until('up', sub { status($t)->{roles}{payouts}{state} eq 'up' }), 'without npi the role is there, and does nothing');
like(($t->cli('check'))[1], qr/^ok    npi is off/m, 'as check says');
is(eval { batch(1); 1 }, undef, 'no batch is made for NPI');
like($@, qr/no daemon is connected to NPI for live payouts/, 'because nobody is connected');
my $one = $t->value("select payout_id from affiliate.payout where state = 'requested'");
api('p1', 'payout_cancel', { payout => $one });
restart(mode => 'test');
$t->wait_until('seen', sub { $t->value('select count(*) from affiliate.payout_provider') });
is(eval { batch(1); 1 }, undef, 'nor for live payouts while test ones go there');
api('p1', 'payout_cancel', { payout => $t->value("select payout_id from affiliate.payout where state = 'requested'") });

# --- one alone, and several ---------------------------------------------------------------------------------------------

restart();
$t->wait_until('connected', sub { $t->value('select count(*) from affiliate.payout_provider where livemode') });
$npi->forget;
my $b = batch(1);
becomes($b, 'settled over | paid', 'one alone is paid in real time');
is_deeply([map { $_->[0] } grep { $_->[0] ne '/oauth/token' } $npi->asked], ['/api/validatebankaccount', $now], 'its account was looked at, and it went out, once');
my $taken = $npi->batches->{ $b->{reference} };
is("$taken->{real_time} $taken->{amount} $taken->{items}[0]{creditorAccount} $taken->{items}[0]{creditorBranch} $taken->{items}[0]{creditorName}", "1 850.00 01900017501 1 Person \"1\" Gr\x{f6}\x{df}e", 'what NPI got');
is($t->value("select rail_reference from affiliate.payout where payout_id = $b->{payouts}[0]"), '36', 'NPI\'s name of it is kept');

$b = batch(1 .. 4);
$npi->credit($b->{instructions}[3], 'ACTC');
becomes($b, 'processing submitted | processing processing processing processing', 'several go as a deferred batch');
$taken = $npi->batches->{ $b->{reference} };
is("$taken->{real_time} $taken->{amount} " . join(' ', map { $_->{creditorBranch} } @{ $taken->{items} }), '0 3400.00 1 81 1 81', 'what NPI got');
$npi->credit($b->{instructions}[0], 'ACSC', reference => 'FT-9');
$npi->credit($b->{instructions}[1], 'RJCT', reason => 'Account closed');
becomes($b, 'processing submitted | paid failed processing processing', 'each is what its credit is');
is($t->value("select rail_reference from affiliate.payout where payout_id = $b->{payouts}[0]"), 'FT-9', 'paid, as NPI calls it');
is($t->value("select reason from affiliate.payout where payout_id = $b->{payouts}[1]"), 'The credit: RJCT Account closed', 'failed, as NPI says');
$npi->credit($_, 'ACSP') for @{ $b->{instructions} }[2, 3];
sleep 0.3;
is(states($b), 'processing submitted | paid failed processing processing', 'pending is pending');
$npi->credit($b->{instructions}[2], 'ACSC');
becomes($b, 'processing submitted | paid failed paid processing', 'the one that is left of a deferred batch is asked about as one of it');
$npi->credit($b->{instructions}[3], 'ACSC');
becomes($b, 'settled over | paid failed paid paid', 'until the last');
is(posts($b), 1, 'it went out once');
books('batches were paid');

# --- accounts -----------------------------------------------------------------------------------------------------------

$npi->account('01900017501', '999', 81);
$npi->account('01900017502', '999', 82);
$npi->account('01900017503', '999', 80);
$npi->account('01900017504', '523', 40);
$b = batch(1 .. 4);
$npi->credit($_, 'ACSC') for @{ $b->{instructions} };
becomes($b, 'settled over | paid paid failed failed', 'names that match by more than 80 % are paid to, no others');
is(scalar @{ $npi->batches->{ $b->{reference} }{items} }, 2, 'the others were not sent');
like($t->value("select reason from affiliate.payout where payout_id = $b->{payouts}[3]"), qr/^The bank does not confirm this account: 523/, 'why');
$npi->account("0190001750$_", '000') for 1 .. 3;
$b = batch(4);
becomes($b, 'settled over | failed', 'a batch of which nothing is left is over');
is(posts($b), 0, 'and was not sent');
$npi->account('01900017504', '000');
$npi->fail('/api/validatebankaccount', '500', 'garbage', 'drop', 'E007');
$b = batch(1);
becomes($b, 'settled over | paid', 'NPI that can\'t say is asked again');
$npi->account('01900017502', '523', 0);
$b = batch(1, 2);
becomes($b, 'settled over | paid failed', 'one that is left alone goes in real time');
$npi->account('01900017502', '000');
$t->psql("update affiliate.payout_method set bank = '1701' where affiliate_id = 900302");
$b = batch(1, 2);
ok($t->wait_until('held', sub { ($t->value("select reason from affiliate.payout_batch where batch_id = $b->{batch}") || '') =~ /^AP\d+ is to an account at the bank that we pay from: NPI takes it alone/ }), 'an account at our own bank does not go with others');
api('p91', 'payout_batch_reject', { batch => "$b->{batch}", reason => 'One by one' });
is(states($b), 'rejected checking | requested requested', 'a person takes the batch apart');
api("p$_", 'payout_cancel', { payout => $b->{payouts}[ $_ - 1 ] }) for 1, 2;
$b = batch(2);
becomes($b, 'settled over | paid', 'alone it does');
$t->psql("update affiliate.payout_method set bank = '0401' where affiliate_id = 900302");
books('accounts were looked at');

# --- tokens -------------------------------------------------------------------------------------------------------------

$npi->expire('access');
$b = batch(1);
becomes($b, 'settled over | paid', 'an access token that has ended is renewed');
$npi->expire('access');
$npi->expire('refresh');
$npi->forget;
$b = batch(1);
becomes($b, 'settled over | paid', 'so is a refresh token, by user and password');
is(scalar(grep { $_->[0] eq '/oauth/token' } $npi->asked), 3, 'refused, logged in, renewed');
$npi->fail('/oauth/token', '500', 'drop', '503', 'garbage', 'empty');
$npi->expire('access');
$b = batch(1);
becomes($b, 'settled over | paid', 'NPI that gives no token for a while');
is(posts($b), 1, 'after which it went out once');

# --- requests that go wrong ----------------------------------------------------------------------------------------------

# [fault, what is first, how often it is sent in all, what the report ends it with]
for my $case (some(8,
    ['E007', 'approved', 2, 'paid'], ['E004', 'approved', 2, 'paid'], ['E003', 'approved', 2, 'paid'], ['E001', 'approved', 2, 'paid'], ['403', 'approved', 2, 'paid'],
    ['401', '', 2, 'paid'], ['take_401', '', 2, 'paid'],
    ['drop', 'unknown', 1, ''], ['half', '', 1, 'paid'], ['500', 'unknown', 1, ''], ['404', 'unknown', 1, ''], ['301', 'unknown', 1, ''], ['garbage', 'unknown', 1, ''],
    ['endless', 'unknown', 1, ''], ['empty', 'unknown', 1, ''], ['E999', 'unknown', 1, ''], ['99', 'unknown', 1, ''], ['hang', 'unknown', 1, ''],
    map({ ["take_$_", '', 1, 'paid'] } qw(drop half garbage 500 E021 999 other hang)),
    ))
{
    my ($fault, $first, $times, $last) = @$case;
    restart(timeout => '3s') if $fault =~ /hang/;
    for my $who ([1], [1, 2]) {
        my $path = @$who == 1 ? $now : $later;
        $npi->fail($path, $fault);
        my $b = batch(@$who);
        $npi->credit($_, @$who == 1 ? '000' : 'ACSC') for @{ $b->{instructions} };
        my $name = "$fault, " . (@$who == 1 ? 'real time' : 'deferred');
        if ($first eq 'approved') {
            $t->wait_until('again', sub { $t->value("select count(*) from affiliate.payout_event where payout_id = $b->{payouts}[0] and state = 'approved'") > 1 || states($b) =~ /^settled/ });
            cmp_ok($t->value("select count(*) from affiliate.payout_event where payout_id = $b->{payouts}[0] and state = 'approved'"), '==', 2, "$name: nothing was taken; it is approved as before");
        }
        if ($last) {
            becomes($b, 'settled over | ' . join(' ', ('paid') x @$who), "$name: paid in the end");
        } else {
            becomes($b, 'processing unknown | ' . join(' ', ('unknown') x @$who), "$name: unknown");
            my $asked = scalar grep { $_->[0] =~ /txnlistbybatchid/ } $npi->asked;
            $t->wait_until('questions', sub { now_due(); (grep { $_->[0] =~ /txnlistbybatchid/ } $npi->asked) >= $asked + 3 });
            is(states($b), 'processing unknown | ' . join(' ', ('unknown') x @$who), "$name: it stays unknown");
            give_up($b);
            is(states($b) =~ s/ \w+ \|/ |/r, 'settled | ' . join(' ', ('failed') x @$who), "$name: a person ends it");
        }
        is(posts($b), $times, "$name: sent $times times in all");
        # What NPI took and said 401 to is a duplicate the second time, which it does not take.
        cmp_ok(($npi->batches->{ $b->{reference} } || { sent => 0 })->{sent}, '<=', $fault eq 'take_401' ? 2 : 1, "$name: and taken once at most");
    }
    restart() if $fault =~ /hang/;
}
$npi->debit('114');
$b = batch(1, 2);
becomes($b, 'settled over | failed failed', 'a debit that is refused');
is(why($b), 'The debit: 114 Insufficient funds', 'why');
$npi->debit('000');
$npi->fail($now, 'take_drop');
$npi->debit('907');
$b = batch(1);
becomes($b, 'settled over | failed', 'one that is found out later');
like(why($b), qr/^The debit: 907/, 'why');
$npi->debit('000');
books('requests went wrong');

# A report that fails: NPI is away, or has none of this batch; either way it is asked again.
for my $fault (some(3, '500', 'drop', 'half', 'garbage', '400', '404', 'E007')) {
    $npi->fail($now, 'take_drop');
    $npi->fail('/api/getcipstxnlistbybatchid', $fault);
    my $b = batch(1);
    becomes($b, 'settled over | paid', "a report with $fault");
    is(posts($b), 1, 'sent once');
}

# --- credits ----------------------------------------------------------------------------------------------------------------

# In real time: [status, more, state]; then what ends it.
for my $case (some(4,
    ['999', {}, 'unknown', qr/^The credit: 999/], ['114', {}, 'unknown', qr/NPI does not say that the money came back \(no reversal\)/], ['-01', {}, 'unknown', qr/came back/],
    ['114', { reversal => '999' }, 'unknown', qr/came back \(999\)/], ['DEFER', {}, 'processing', undef], ['ENTR', {}, 'processing', undef], ['1000', {}, 'unknown', qr/1000/],
    ['000', { amount => 849.99 }, 'unknown', qr/^NPI has another amount or account/], ['000', { account => '999' }, 'unknown', qr/^NPI has another amount or account/],
    ['000', { gone => 1 }, 'processing', undef],
    ))
{
    my ($status, $more, $state, $why) = @$case;
    $npi->fail($now, 'take_drop');
    my $b = batch(1);
    $npi->credit($b->{instructions}[0], $status, %$more);
    $t->wait_until('questions', sub { now_due(); (() = grep { $_->[0] =~ /getcips/ && $_->[1] =~ /$b->{reference}/ } $npi->asked) > 4 });
    my $name = join ' ', $status, %$more;
    # A connection that was lost makes it unknown, which it stays until it is known.
    like(states($b), qr/^processing \w+ \| unknown$/, "$name: nobody knows");
    like(why($b), $why, "$name: why") if $why;
    if ($status eq '114' && !$more->{reversal}) {
        $npi->credit($b->{instructions}[0], '114', reversal => '000', reason => 'Invalid account number ');
        now_due();
        becomes($b, 'settled over | failed', "$name: it has failed once the money is back");
        like(why($b), qr/^The credit: 114 Invalid account number$/, 'why');
    } else {
        $npi->credit($b->{instructions}[0], '000');
        now_due();
        becomes($b, 'settled over | paid', "$name: until it is paid");
    }
    is(posts($b), 1, "$name: sent once");
}
books('credits');

# --- kill -9 ------------------------------------------------------------------------------------------------------------------

# [path or fault point, how, times it was sent, what becomes of it]
my @points = `readelf -p aff_faults $t->{build}/affiliated 2>/dev/null` =~ /^\s+\[\s*[0-9a-f]+\]\s+(\S+)$/mg;
sub arm
{
    my ($point, $mode) = @_;
    my ($number) = grep { $points[$_] eq $point } 0 .. $#points;
    open my $file, '+<:raw', $t->path('daemon.faults') or die $!;

    die "there is no $point" unless defined $number;
    for my $pair ([8, $mode], [16, 1], [0, $number + 1]) {
        sysseek $file, $pair->[0], 0;
        syswrite $file, pack 'Q', $pair->[1];
    }
}
sub bitten { open my $file, '<:raw', $t->path('daemon.faults') or die $!; sysseek $file, 16, 0; sysread $file, my $left, 8; return unpack('Q', $left) != 1 }
sub disarm { open my $file, '+<:raw', $t->path('daemon.faults') or die $!; syswrite $file, pack 'Q', 0 }

for my $case (some(5,
    ['/oauth/token', 'kill', 1, 'paid'], ['/api/validatebankaccount', 'kill', 1, 'paid'], ['/api/validatebankaccount', 'kill_taken', 1, 'paid'],
    [$now, 'kill', 1, 'unknown'], [$now, 'kill_taken', 1, 'paid'], ['/api/getcipstxnlistbybatchid', 'kill', 1, 'paid'], ['/api/getcipstxnlistbybatchid', 'kill_taken', 1, 'paid'],
    ['payouts.taken', 1, 1, 'paid'], ['payouts.begun', 1, 0, 'unknown'], ['payouts.submitted', 1, 1, 'paid'], ['payouts.answered', 1, 1, 'paid'],
    ['payouts.taken', 2, 1, 'paid'], ['payouts.begun', 2, 0, 'unknown'], ['payouts.submitted', 2, 1, 'paid'], ['payouts.answered', 2, 1, 'paid'],
    ))
{
    my ($where, $how, $times, $last) = @$case;
    my $name = ($how =~ /kill/ ? 'killed at ' : $how == 1 ? 'dies at ' : 'fails at ') . $where . ($how =~ /taken/ ? ', done' : '');
    my $dies = $how eq '2' ? 0 : 1;
    restart();
    $t->wait_until('works', sub { status($t)->{roles}{payouts}{state} eq 'up' });
    if ($how =~ /kill/) {
        $npi->expire('access') if $where eq '/oauth/token';
        $npi->fail($now, 'take_drop') if $where =~ /get/;
        $npi->fail($where, $how);
    } else {
        arm($where, $how);
    }
    my $b = batch(1);
    if ($dies) {
        ok($t->wait_until('the end', sub { !$t->alive('daemon') }, 60), $name);
    } else {
        ok($t->wait_until('the fault', \&bitten, 60), $name);
    }
    disarm();
    like(states($b), qr/^(?:approved(?: checking)?|processing \w+) \| (?:approved|processing|unknown)$/, "$name: in hand") if $dies;
    $t->daemon_stop if $t->alive('daemon');
    orphaned();
    restart();
    $t->wait_until($name, sub { now_due(); states($b) =~ /\| $last$/ }, 60);
    like(states($b), qr/\| $last$/, "$name: $last");
    $t->wait_until('questions', sub { now_due(); (() = grep { $_->[0] =~ /getcips/ && $_->[1] =~ /$b->{reference}/ } $npi->asked) > 2 }) if $last eq 'unknown';
    is(posts($b), $times, "$name: sent $times times");
    give_up($b) if $last eq 'unknown';
}
books('daemons were killed');

# --- two daemons ------------------------------------------------------------------------------------------------------------------

restart();
second($t, 'other', roles => ['payouts'], conf => { npi => $npi->conf });
$t->wait_until('both', sub { $t->slurp($t->path('other.log')) =~ /payouts: works/ });
my @batches = map { batch($_) } 1 .. $PEOPLE;
becomes($_, 'settled over | paid', 'paid') for @batches;
is(join(' ', map { posts($_) } @batches), join(' ', (1) x @batches), 'two daemons hand each batch over once');
$t->_end('other', 'TERM');

is_deeply([$npi->wrong], [], 'nothing was sent that the specification does not allow');
unlike($t->daemon_log . $t->slurp($t->path('other.log')), qr/secret|access-\d|refresh-\d|BEGIN/, 'no secret gets into a log');
books('at the end');
done_testing();
