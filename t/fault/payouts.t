# Money out while things break: affiliates ask to be paid, admins make, approve and export batches and take answers in, merchants'
# orders are billed and their payments noted, over HTTP, each call repeated with its Idempotency-Key until it is answered; the daemon
# makes the bills of years and tells everybody. Meanwhile the daemon, PostgreSQL and single sessions of it are killed. Then everything
# that was answered is there, once, and nothing else is; who was to be told was told, of nothing else; and the books are right.
#
# AFF_TEST_SECONDS is how long things break.

use Affiliated::Api;
use Affiliated::Hooks;
use Affiliated::Smtp;

use JSON::PP ();

BEGIN { Test::More::plan(skip_all => 'IO::Socket::SSL is not installed') unless Affiliated::Smtp::tls_there() }

my ($AFFILIATES, $ADMINS, $BILLED, $SECONDS) = (3, 3, 12, $ENV{AFF_TEST_SECONDS} || 12);
my @STEPS = qw(requested approved paid failed rejected unknown);

my $t = Affiliated::Api->new;
$t->redis_start;
my $hooks = Affiliated::Hooks->new($t);
$t->api_start(roles => [qw(api partitions webhooks)], conf => { api => { rate => 0, rate_address => 0, threads => 4, statement_timeout => '5s' },
    partitions => { interval => '1s' }, webhooks => { interval => '100ms', timeout => '2s', connect_to => $hooks->address, ca_file => $hooks->ca } });
my @affiliates = map { $t->person } 1 .. $AFFILIATES;
my @admins = map { $t->person(admin => 1) } 1 .. $ADMINS;
my $owner = $t->person;
$t->psql(<<"END");
insert into affiliate.merchant (merchant_id, name, hosts) values (901, 'A', '{a.example}'), (902, 'B', '{b.example}');
insert into affiliate.campaign (merchant_id, campaign_id, name, currency) values (901, 921, 'A', 'NPR'), (902, 922, 'B', 'NPR');
insert into affiliate.terms (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, fee_basis_points, hold, attribution_window)
values (901, 921, 931, '-infinity', 1000, 2000, '0', '720 hours'), (902, 922, 932, '-infinity', 2500, 1500, '0', '720 hours');
update affiliate.payout_policy set minimum_minor = 1, batch_items = 3, cool_off = '0';
insert into affiliate.affiliate (affiliate_id, name, user_id) select 910 + n, 'A' || n, u
  from unnest(array[@{[join ',', map { $_->{user} } @affiliates]}]) with ordinality x(u, n);
insert into affiliate.payout_method (affiliate_id, kind, holder, account, is_default) select 910 + n, 'esewa', 'A' || n, (9841000000 + n)::text, true from generate_series(1, $AFFILIATES) n;
create table public.sold as
select n, 901 + n % 2 as merchant, 911 + n % $AFFILIATES as affiliate, (lpad(to_hex((extract(epoch from now()) - 10000)::bigint * 1000 + n), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid as id
  from generate_series(1, 60) n;
insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons)
select id, merchant, 1, merchant + 20, affiliate, true, 0, 0 from public.sold;
select affiliate.conversion_stage();
begin;
select affiliate.inbox_accept(2::smallint, '{1}', '{1}', '{1}', '{60}');
insert into pg_temp.conversion_stage select 1, 1, 1, n, merchant, true, 1, 0, 'ak_live_x', 'k' || n, 'b', now() - interval '1 hour', null, id, 'O-' || n, 2, 0, 100000 + n * 777, 'NPR',
    null, null, null, null, null, null from public.sold;
select * from affiliate.apply_conversions();
commit;
select affiliate.release_holds(1000);

-- Merchants of ten years, each with one order to be billed.
insert into affiliate.merchant (merchant_id, name, hosts) select 950 + n, 'Old ' || n, '{old.example}' from generate_series(1, $BILLED) n;
insert into affiliate.campaign (merchant_id, campaign_id, name, currency) select 950 + n, 950 + n, 'Old', 'NPR' from generate_series(1, $BILLED) n;
insert into affiliate.terms (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, fee_basis_points, hold, attribution_window)
select 950 + n, 950 + n, 950 + n, '-infinity', 1000, 2000, '0', '720 hours' from generate_series(1, $BILLED) n;
insert into affiliate.member (merchant_id, user_id, role) select merchant_id, $owner->{user}, 'owner' from affiliate.merchant where merchant_id = 901 or merchant_id > 950;
create table public.aged as
select n, 950 + n as merchant, (lpad(to_hex((extract(epoch from now()) - 10000)::bigint * 1000 + n), 12, '0') || '70008000' || lpad(to_hex(1000 + n), 12, '0'))::uuid as id
  from generate_series(1, $BILLED) n;
insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons)
select id, merchant, 1, merchant, 911, true, 0, 0 from public.aged;
select affiliate.conversion_stage();
begin;
select affiliate.inbox_accept(2::smallint, '{2}', '{1}', '{1}', '{$BILLED}');
insert into pg_temp.conversion_stage select 2, 1, 1, n, merchant, true, 1, 0, 'ak_live_x', 'k' || n, 'b', now() - interval '1 hour', null, id, 'O-' || n, 2, 0, 100000 + n * 777, 'NPR',
    null, null, null, null, null, null from public.aged;
select * from affiliate.apply_conversions();
commit;
select affiliate.release_holds(1000);
END

# Who is to be told of what.
for my $told ((map { [$_, '/affiliate/postbacks', { url => 'https://tracker.sites.example/ok?p={event_id}', types => [map { "payout.$_" } @STEPS] }] } @affiliates),
    [$owner, '/merchants/901/webhooks', { url => 'http://shop.example/ok', types => ['bill.issued'], livemode => JSON::PP::false }],
    map { [$owner, '/merchants/' . (950 + $_) . '/webhooks', { url => 'https://shop.sites.example/ok', types => ['bill.issued'] }] } 1 .. $BILLED)
{
    my ($who, @what) = @$told;
    my $r = $who->post(@what);
    is($r->{status}, 201, "$what[0] of $what[1]{url}") or diag $r->{raw};
}

# As if the old ones' orders had stuck two months ago.
$t->psql(<<'END');
set session_replication_role = replica;
update affiliate.transfer set created_at = created_at - interval '65 days' where merchant_id > 950;
update affiliate.account set created_at = created_at - interval '10 years' where merchant_id > 950;
END

# --- clients --------------------------------------------------------------------------------------------------------------------

my $end = time + $SECONDS;
my $today = $t->value('select current_date');
my $number = 0;

# Calls until it is answered; the answer goes into the journal, after the question.
sub ask
{
    my ($journal, $who, $method, $path, $fields, %o) = @_;
    my $key = sprintf 'f-%d-%d', $$, ++$number;
    my $line = sub { print {$journal} JSON::PP->new->canonical->encode({ key => $key, path => $path, @_ }), "\n" };

    $line->() if $method eq 'POST';
    for (1 .. 600) {
        my $r = eval { $who->call($method, $path, $fields, check => 0, timeout => 10, $method eq 'POST' ? (key => $key) : (), %o) };
        my $status = $r ? $r->{status} || 0 : 0;
        if ($status >= 500 || $status == 429 || $status == 0 || ($r->{json} && ref $r->{json} eq 'HASH' && ($r->{json}{code} || '') eq 'in_flight')) {
            select undef, undef, undef, 0.1;
            next;
        }
        $line->(status => $status, code => ref $r->{json} eq 'HASH' ? $r->{json}{code} : undef, answer => $r->{json}) if $method eq 'POST';
        return $r;
    }
    $line->(status => 0);
    return { status => 0 };
}

sub affiliate
{
    my ($journal, $who, $n) = @_;

    while (time < $end) {
        my $amount = sprintf '%d.%02d', 1 + $t->random(60), $t->random(100);
        my $r = ask($journal, $who, 'POST', '/affiliate/payouts', { amount => $amount, currency => 'NPR' });
        next if $r->{status} != 201;
        ask($journal, $who, 'POST', "/affiliate/payouts/$r->{json}{payout}/cancel") if $t->random(5) == 0;
        select undef, undef, undef, 0.05;
    }
}

sub admin
{
    my ($journal, $who, $n) = @_;
    my $b = '/admin/payout-batches';

    while (time < $end) {
        ask($journal, $who, 'POST', $b, { kind => 'esewa', currency => 'NPR' });
        for (@{ (ask($journal, $who, 'GET', "$b?limit=20")->{json} || {})->{data} || [] }) {
            my ($path, $state) = ("$b/$_->{batch}", $_->{state});
            ask($journal, $who, 'POST', "$path/propose") if $state eq 'open';
            ask($journal, $who, 'POST', "$path/approve") if $state eq 'proposed';
            ask($journal, $who, 'POST', "$path/export") if $state eq 'approved';
            next if $state ne 'processing' || $t->random(2);
            my $file = ask($journal, $who, 'GET', "$path/file")->{body} || '';
            my @lines = map { [(split /,/)[0, 3]] } grep { /^AP/ } split /\r\n/, $file;
            ask($journal, $who, 'POST', "$path/results", undef, type => 'text/csv', raw => "Reference,Amount,Status,Transaction Id\r\n"
                . join '', map { join(',', @$_, (qw(paid paid paid failed waits))[ $t->random(5) ], 'B' . $t->random(1_000_000)) . "\r\n" } @lines);
        }
    }
}

# Test orders that stick, and bills of them; payments of some.
sub merchant
{
    my ($journal, $who, $n) = @_;
    my $order = 0;

    while (time < $end) {
        my $id = sprintf '%012x70008000%012x', (time - 7200) * 1000 + ++$order, 2000 + $order;
        # Once, though told as often as it takes.
        my $sql = "insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons) values ('$id', 901, 1, 921, 911, false, 0, 0) on conflict do nothing;\n"
            . "select affiliate.conversion_stage();\nbegin;\n"
            . "insert into pg_temp.conversion_stage select 3, 1, $order, 0, 901, false, 1, 0, 'ak_test_x', 'b-$order', 'b', now() - interval '1 hour', null, '$id', 'B-$order', 2, 0, "
            . (10000 + $t->random(100000)) . ", 'NPR', null, null, null, null, null, null from affiliate.inbox_accept(2::smallint, '{3}', '{1}', '{$order}', '{1}');\nselect * from affiliate.apply_conversions();\ncommit;\nselect affiliate.release_holds(100);\n";
        until (eval { $t->psql($sql); 1 }) {
            select undef, undef, undef, 0.1;
        }
        ask($journal, $who, 'POST', '/merchants/901/bills?livemode=false', { currency => 'NPR' });
        ask($journal, $admins[0], 'POST', '/admin/merchants/901/bill-payments?livemode=false', { amount => sprintf('%d.%02d', $t->random(300), 1 + $t->random(99)), currency => 'NPR',
            paid_on => $today, method => 'cash' }) if $t->random(3) == 0;
    }
}

my %clients;
for my $n (0 .. $AFFILIATES + $ADMINS) {
    my $pid = fork // die "fork: $!\n";
    if (!$pid) {
        srand($t->{seed} + $n);
        open my $journal, '>', $t->path("journal-$n") or POSIX::_exit(1);
        $journal->autoflush(1);
        eval { $n < $AFFILIATES ? affiliate($journal, $affiliates[$n], $n) : $n < $AFFILIATES + $ADMINS ? admin($journal, $admins[ $n - $AFFILIATES ], $n) : merchant($journal, $owner); 1 } or do { print {$journal} "died: $@"; POSIX::_exit(1) };
        POSIX::_exit(0);
    }
    $clients{$pid} = $n;
}

# --- what breaks ------------------------------------------------------------------------------------------------------------------

my %faults;
while (time < $end - 2) {
    select undef, undef, undef, 0.2 + $t->random(80) / 100;
    my $what = (qw(daemon session session backend postgres))[ $t->random(5) ];
    if ($what eq 'daemon') {
        $t->api_kill;
        $t->daemon_start;
    } elsif ($what eq 'session') {
        eval { $t->value("select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'api_login' and state <> 'idle'") };
    } elsif ($what eq 'backend') {
        my $pid = eval { $t->value("select pid from pg_stat_activity where usename = 'api_login' order by random() limit 1") };
        kill 'KILL', $pid if $pid;
    } else {
        $t->pg_stop('immediate');
        $t->pg_start;
    }
    $faults{$what}++;
}
while (%clients) {
    my $pid = wait;
    my $n = delete $clients{$pid} // next;
    is($?, 0, "client $n ends") or diag substr $t->slurp($t->path("journal-$n")), -500;
}
note join ', ', map { "$_ $faults{$_}" } sort keys %faults;
$t->wait_until('PostgreSQL answers', sub { eval { $t->value('select 1') } });

# --- what there is ------------------------------------------------------------------------------------------------------------------

my (%asked, %answered);
for my $n (0 .. $AFFILIATES + $ADMINS) {
    for (split /\n/, $t->slurp($t->path("journal-$n"))) {
        my $line = JSON::PP::decode_json($_);
        exists $line->{status} ? ($answered{ $line->{key} } = $line) : ($asked{ $line->{key} } = $line);
    }
}
is(scalar(grep { !$answered{$_} || !$answered{$_}{status} } keys %asked), 0, 'every call was answered in the end');
my %codes;
$codes{ $_->{path} =~ s/\d+/N/gr . ' ' . ($_->{code} || $_->{status}) }++ for values %answered;
note map { "$_: $codes{$_}\n" } sort keys %codes;

sub done { my ($pattern) = @_; return grep { $_->{status} =~ /^2/ && $_->{path} =~ $pattern } values %answered }
my @made = done(qr{^/affiliate/payouts$});
cmp_ok(scalar @made, '>', 0, 'payouts were asked for');
is(join(' ', sort { $a <=> $b } map { $_->{answer}{payout} } @made), $t->value(q{select coalesce(string_agg(payout_id::text, ' ' order by payout_id), '') from affiliate.payout}),
    'each answered request is a payout, once, and there are no others');
is(scalar(grep { $t->value("select amount_minor from affiliate.payout where payout_id = $_->{answer}{payout}") != int($_->{answer}{amount} * 100 + 0.5) } @made), 0, 'of its amount');
my @batches = done(qr{payout-batches$});
is(join(' ', sort { $a <=> $b } map { $_->{answer}{batch} } @batches), $t->value(q{select coalesce(string_agg(batch_id::text, ' ' order by batch_id), '') from affiliate.payout_batch}), 'so it is with batches');
for (['approve', 'approved_at'], ['export', 'exported_at']) {
    my ($verb, $column) = @$_;
    is(join(' ', sort { $a <=> $b } map { $_->{answer}{batch} } done(qr{/$verb$})), $t->value("select coalesce(string_agg(batch_id::text, ' ' order by batch_id), '') from affiliate.payout_batch where $column is not null"),
        "each answered $verb happened, once");
}
# A file whose answer was lost is read again, and changes nothing then.
{
    my %applied = map { $_->[0] => 1 } $t->rows(q{select result_id from affiliate.payout_result where state = 'applied'});
    is(join(' ', grep { !$applied{$_} } map { $_->{answer}{result} } done(qr{/results$})), '', 'each answered file was applied');
}
is($t->value(q{select count(*) from (select payout_id from affiliate.payout_event where state in ('paid', 'approved', 'processing', 'cancelled') group by payout_id, state having count(*) > 1) x}), 0, 'no step was taken twice');
is($t->value(qq{
    with step as (select 'payout.' || state as type, payout_id::text as subject, count(*) as times from affiliate.payout_event
                   where state in ('@{[join "', '", @STEPS]}') group by 1, 2),
         told as (select type, subject, count(*) as times from affiliate.event where type like 'payout.%' group by 1, 2)
    select count(*) from step full join told using (type, subject) where step.times is distinct from told.times}), 0, 'each step is told of, none is missed or invented');
is($t->value('select count(*) from affiliate.event v where not exists (select from affiliate.delivery d where d.event_id = v.event_id)'), 0, 'and is on its way');
cmp_ok($t->value('select count(*) from affiliate.event'), '>', 0, 'there were some');

# Bills
my @bills = done(qr{^/merchants/901/bills});
cmp_ok(scalar @bills, '>', 0, 'bills were asked for');
is(join(' ', sort { $a <=> $b } map { $_->{answer}{bill} } @bills), $t->value('select string_agg(bill_id::text, $$ $$ order by bill_id) from affiliate.bill where not livemode'),
    'each answered bill is there, once, and there are no others');
is(join(' ', sort { $a <=> $b } map { $_->{answer}{payment} } done(qr{bill-payments})), $t->value('select coalesce(string_agg(payment_id::text, $$ $$ order by payment_id), $$$$) from affiliate.bill_payment'),
    'so it is with payments');
$t->wait_until('the years are billed', sub { $t->value('select count(*) from affiliate.bill_cursor where livemode and merchant_id > 950 and until >= date_trunc($$month$$, now() - interval $$40 days$$)') == $BILLED }, 120);
is($t->value('select count(*) || $$ $$ || count(distinct merchant_id) from affiliate.bill where livemode'), "$BILLED $BILLED", 'the daemon made one of each old merchant');
is($t->value(q{select count(*) from (select number as subject from affiliate.bill) b
    full join (select subject from affiliate.event where type = 'bill.issued') e using (subject) where b.subject is null or e.subject is null}), 0, 'and told of each');

# Notices: everybody whom something concerns was told of it, and of nothing else.
$t->wait_until('all is told', sub {
    $t->psql(q{update affiliate.delivery set next_at = now() where state = 'waiting' and next_at > now() + interval '5 seconds'});
    return $t->value(q{select count(*) from affiliate.delivery where state = 'waiting'}) == 0;
}, 120);
is($t->psql('select state, count(*) from affiliate.delivery where state <> $$delivered$$ group by 1'), '', 'and all of it arrived');
my (%heard, $twice);
for ($hooks->asked) {
    my $id = $_->{headers}{'webhook-id'} // ($_->{path} =~ /[?]p=(\w+)/)[0];
    $twice++ if $heard{$id}++;
}
my %told = map { $_->[0] => 1 } $t->rows('select affiliate.event_name(v) from affiliate.event v');
is(join(' ', grep { !$heard{$_} } keys %told), '', 'each was heard of');
is(join(' ', grep { !$told{$_} } keys %heard), '', 'nothing was invented');
note sprintf '%d heard, %d again', scalar keys %heard, $twice // 0;
my ($code, $out) = $t->cli('audit');
is($code, 0, 'the books are right') or diag $out;

done_testing();
