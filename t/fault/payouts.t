# Money out while things break: affiliates ask to be paid, admins make, approve and export batches and take answers in, over HTTP, each
# call repeated with its Idempotency-Key until it is answered; meanwhile the daemon, PostgreSQL and single sessions of it are killed.
# Then everything that was answered is there, once, and nothing else is; and the books are right.

use Affiliated::Api;

use JSON::PP ();

my ($AFFILIATES, $ADMINS, $SECONDS) = (3, 3, $ENV{AFF_TEST_SECONDS} || 12);

my $t = Affiliated::Api->new;
$t->redis_start;
$t->api_start(roles => [qw(api partitions)], conf => { api => { rate => 0, rate_address => 0, threads => 4, statement_timeout => '5s' } });
my @affiliates = map { $t->person } 1 .. $AFFILIATES;
my @admins = map { $t->person(admin => 1) } 1 .. $ADMINS;
$t->psql(<<"END");
insert into affiliate.merchant (merchant_id, name, hosts) values (901, 'A', '{a.example}'), (902, 'B', '{b.example}');
insert into affiliate.campaign (merchant_id, campaign_id, name, currency) values (901, 921, 'A', 'NPR'), (902, 922, 'B', 'NPR');
insert into affiliate.terms (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, fee_basis_points, hold, attribution_window)
values (901, 921, 931, '-infinity', 1000, 2000, '0', '720 hours'), (902, 922, 932, '-infinity', 2500, 1500, '0', '720 hours');
update affiliate.payout_policy set minimum_minor = 1, batch_items = 3, cool_off = '0';
insert into affiliate.affiliate (affiliate_id, name, user_id) select 910 + n, 'A' || n, u
  from unnest(array[@{[join ',', map { $_->{user} } @affiliates]}]) with ordinality x(u, n);
insert into affiliate.payout_method (affiliate_id, kind, holder, account, is_default) select 910 + n, 'esewa', 'A' || n, (9841000000 + n)::text, true from generate_series(1, $AFFILIATES) n;
insert into affiliate.endpoint (kind, affiliate_id, livemode, url, types)
select 'postback', 910 + n, true, 'https://tracker.example/?p={event_id}', '{payout.requested,payout.approved,payout.paid,payout.failed,payout.rejected,payout.unknown}' from generate_series(1, $AFFILIATES) n;
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
END

# --- clients --------------------------------------------------------------------------------------------------------------------

my $end = time + $SECONDS;
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

my %clients;
for my $n (0 .. $AFFILIATES + $ADMINS - 1) {
    my $pid = fork // die "fork: $!\n";
    if (!$pid) {
        srand($t->{seed} + $n);
        open my $journal, '>', $t->path("journal-$n") or POSIX::_exit(1);
        $journal->autoflush(1);
        eval { $n < $AFFILIATES ? affiliate($journal, $affiliates[$n], $n) : admin($journal, $admins[ $n - $AFFILIATES ], $n); 1 } or do { print {$journal} "died: $@"; POSIX::_exit(1) };
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
for my $n (0 .. $AFFILIATES + $ADMINS - 1) {
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
is($t->value(q{
    with step as (select 'payout.' || state as type, payout_id::text as subject, count(*) as times from affiliate.payout_event
                   where state in ('requested', 'approved', 'paid', 'failed', 'rejected', 'unknown') group by 1, 2),
         told as (select type, subject, count(*) as times from affiliate.event group by 1, 2)
    select count(*) from step full join told using (type, subject) where step.times is distinct from told.times}), 0, 'each step is told of, none is missed or invented');
is($t->value('select count(*) from affiliate.event v where not exists (select from affiliate.delivery d where d.event_id = v.event_id)'), 0, 'and is on its way');
cmp_ok($t->value('select count(*) from affiliate.event'), '>', 0, 'there were some');
my ($code, $out) = $t->cli('audit');
is($code, 0, 'the books are right') or diag $out;

done_testing();
