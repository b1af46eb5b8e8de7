# Many sessions at once on the same payouts: affiliates ask and cancel, admins make batches, approve, export, take answers in,
# decide and recall, orders are refunded and released meanwhile, and sessions are killed. Nobody deadlocks, no step is done twice,
# and the books are right. What is tried comes from the seed; how the sessions interleave does not.

use strict;
use warnings;

use Affiliated::Test;

my ($AFFILIATES, $SESSIONS, $SCRIPTS, $STEPS) = (8, 4, 15, 20);

my $t = Affiliated::Test->new;
$t->pg_start(conf => "deadlock_timeout = 20ms\nlog_lock_waits = off");
$t->psql(<<"END");
select affiliate.maintain_partitions(2, 0);
insert into affiliate.merchant (merchant_id, name, hosts) values (901, 'A', '{a.example}'), (902, 'B', '{b.example}');
insert into affiliate.campaign (merchant_id, campaign_id, name, currency) values (901, 921, 'A', 'NPR'), (902, 922, 'B', 'NPR');
insert into affiliate.terms (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, fee_basis_points, hold, attribution_window)
values (901, 921, 931, '-infinity', 1000, 2000, '0', '720 hours'), (902, 922, 932, '-infinity', 2500, 1500, '0', '720 hours');
insert into affiliate.person (user_id, email, name, password, verified_at, is_admin)
select n, 'p' || n || '\@people.example', 'P' || n, '\$scrypt\$x', now(), n <= 3 from generate_series(1, 3 + $AFFILIATES) n;
insert into affiliate.affiliate (affiliate_id, name, user_id) select 10 + n, 'A' || n, 3 + n from generate_series(1, $AFFILIATES) n;
insert into affiliate.session (user_id, token_hash, csrf_hash, created_at, last_seen_at) select user_id, 'token-' || user_id, 'csrf-' || user_id, now(), now() from affiliate.person;
insert into affiliate.payout_method (affiliate_id, kind, holder, account, is_default, changed_at)
select 10 + n, 'esewa', 'A' || n, (9841000000 + n)::text, true, now() - interval '10 days' from generate_series(1, $AFFILIATES) n;
update affiliate.payout_policy set minimum_minor = 1, batch_items = 3;

-- An operation as the API calls it; what is refused for a reason is no error.
create sequence public.key;
create table public.tried (operation text, outcome text);
create function public.try(p_user bigint, p_operation text, p_request jsonb) returns text language plpgsql as \$\$
declare
    outcome text;
    answer jsonb;
    hint text;
begin
    begin
        select r into answer from affiliate.api_call(jsonb_build_object('session', 'token-' || p_user, 'csrf', 'csrf-' || p_user), p_operation, p_request,
            jsonb_build_object('request_id', 'r', 'body_hash', 'b', 'idempotency_key', 'k' || nextval('public.key'), 'address', '192.0.2.0/24')) with ordinality t(r, n)
          order by n desc limit 1;
        outcome := 'done';
    exception when others then
        get stacked diagnostics hint = pg_exception_hint;
        if sqlstate not like 'AF%' and sqlstate <> '22023' then
            raise;
        end if;
        outcome := coalesce(nullif(hint, ''), 'field');
    end;
    insert into public.tried values (p_operation, outcome);
    return answer ->> '_upload';
end
\$\$;
-- An answer of the rail to a batch: some paid, some failed, some unknown, some not there.
create function public.answer(p_user bigint, p_batch bigint, p_words text[] default '{paid,paid,failed,asked}', p_share float default 0.9) returns void language plpgsql as \$\$
declare
    lines jsonb := (select jsonb_agg(jsonb_build_array(affiliate.instruction(p), affiliate.amount_text(p.amount_minor - p.tax_minor, 2::smallint),
                                     p_words[1 + floor(random() * cardinality(p_words))::integer]))
                      from affiliate.payout p where p.batch_id = p_batch and random() < p_share);
    upload text := public.try(p_user, 'payout_result_create', jsonb_build_object('batch', p_batch::text, '_header', '["Reference", "Amount", "Status"]'::jsonb));
begin
    if upload is not null and lines is not null then
        perform public.try(p_user, 'payout_result_create_rows', jsonb_build_object('batch', p_batch::text, '_upload', upload, '_line', 1, '_rows', lines));
        perform public.try(p_user, 'payout_result_create_done', jsonb_build_object('batch', p_batch::text, '_upload', upload, '_lines', jsonb_array_length(lines)));
    end if;
end
\$\$;
END

# Orders that have matured, and refunds of them later.
my $orders = 0;
my $start = $t->value(q{select (extract(epoch from now() - interval '3 hours') * 1000)::bigint});
sub click_id { return join '-', unpack 'A8 A4 A4 A4 A12', sprintf '%012x70008000%012x', $start + $_[0], $_[0] }
my $sequence = 0;
sub conversion
{
    my ($order, $status, $amount, $live) = @_;
    $sequence++;
    return sprintf "select affiliate.conversion_stage();\nbegin;\nselect affiliate.inbox_accept(2::smallint, '{1}', '{1}', '{%d}', '{1}');\n"
        . "insert into pg_temp.conversion_stage values (1, 1, %d, 0, %d, %s, 1, 0, 'ak_x', '%s', 'b', now() - interval '%d seconds', null, '%s', 'O-%d', %d, 0, %s, %s, null, null, null, null, null, null);\n"
        . "select * from affiliate.apply_conversions();\ncommit;\nselect affiliate.release_holds(100);\n",
        $sequence, $sequence, 901 + $order % 2, $live || 'true', "k-$sequence", $status == 2 ? 120 : 60, click_id($order), $order, $status, $amount // 'null', defined $amount ? "'NPR'" : 'null';
}
sub order
{
    my ($affiliate, $live) = @_;
    my $order = ++$orders;
    my $m = 901 + $order % 2;
    return sprintf("insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons) values ('%s', %d, 1, %d, %d, %s, 0, 0);\n",
        click_id($order), $m, $m + 20, $affiliate || 11 + $t->random($AFFILIATES), $live || 'true') . conversion($order, 2, 1000 + $t->random(100000), $live);
}
$t->psql(join '', map { order() } 1 .. 6 * $AFFILIATES);

sub any { my ($what, $where) = @_; return "(select $what from affiliate.payout_batch where state in ($where) order by random() limit 1)" }
sub of_payout { my ($where) = @_; return "(select payout_id from affiliate.payout where state in ($where) order by random() limit 1)" }
my @steps = (
    (sub { my $u = 4 + $t->random($AFFILIATES); sprintf "select public.try(%d, 'payout_create', '{\"amount\": \"%d.%02d\", \"currency\": \"NPR\"}');\n", $u, $t->random(150), 1 + $t->random(99) }) x 4,
    sub { sprintf "select public.try(a.user_id, 'payout_cancel', jsonb_build_object('payout', p.payout_id::text)) from affiliate.payout p join affiliate.affiliate a using (affiliate_id) where p.payout_id = %s;\n", of_payout("'requested','in_review'") },
    (sub { sprintf "select public.try(%d, 'payout_batch_create', '{\"kind\": \"esewa\", \"currency\": \"NPR\"}');\n", 1 + $t->random(3) }) x 2,
    (sub { my ($from, $to) = @{ (['open', 'propose'], (['proposed', 'approve']) x 2, ['approved', 'export'])[ $t->random(4) ] };
        sprintf "select public.try(%d, 'payout_batch_%s', jsonb_build_object('batch', b::text)) from %s x(b);\n", 1 + $t->random(3), $to, any('batch_id', "'$from'") }) x 9,
    sub { sprintf "select public.try(%d, 'payout_batch_reject', jsonb_build_object('batch', b::text, 'reason', 'x')) from %s x(b) where random() < 0.3;\n", 1 + $t->random(3), any('batch_id', "'open','proposed','approved'") },
    sub { sprintf "select public.try(%d, 'payout_batch_remove', jsonb_build_object('batch', p.batch_id::text, 'payout', p.payout_id::text)) from affiliate.payout p where p.payout_id = %s;\n", 1 + $t->random(3), of_payout("'in_review'") },
    sub { sprintf "select public.try(%d, 'admin_payout_reject', jsonb_build_object('payout', %s::text, 'reason', 'x'));\n", 1 + $t->random(3), of_payout("'requested','in_review'") },
    (sub { sprintf "select public.answer(%d, b) from %s x(b);\n", 1 + $t->random(3), any('batch_id', "'processing','settled'") }) x 3,
    sub { sprintf "select public.try(%d, 'admin_payout_resolve', jsonb_build_object('payout', %s::text, 'outcome', '%s', 'reason', 'x'));\n", 1 + $t->random(3), of_payout("'unknown'"), $t->random(2) ? 'paid' : 'failed' },
    sub { sprintf "select public.try(%d, 'admin_payout_recall', jsonb_build_object('payout', %s::text, 'reason', 'x'));\n", 1 + $t->random(3), of_payout("'paid'") },
    (sub { conversion(1 + $t->random($orders), $t->random(2) ? 4 : 3, undef) }),
    sub { order() },
);

my (%running, %ended);
my @queue = map { my $n = $_; join '', map { $steps[ $t->random(scalar @steps) ]->() } 1 .. $STEPS } 1 .. $SESSIONS * $SCRIPTS;
my $killed = 0;
for my $n (0 .. $#queue) {
    my $file = $t->write("session-$n.sql", $queue[$n]);
    my $pid = fork // die "fork: $!\n";
    if (!$pid) {
        open STDOUT, '>', $t->path("session-$n.out");
        open STDERR, '>&', \*STDOUT;
        exec $t->pg_bin . '/psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-h', $t->{pg_socket}, '-U', 'postgres', '-d', 'affiliate', '-f', $file or POSIX::_exit(127);
    }
    $running{$pid} = $n;
    next if keys %running < $SESSIONS && $n < $#queue;
    # Now and then the session that has run longest is killed in the middle of it.
    if ($n % 6 == 5) {
        $killed += $t->value(q{select count(*) from (select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'psql' and state = 'active'
            and pid <> pg_backend_pid() order by backend_start limit 1) k});
    }
    while (%running && (keys %running >= $SESSIONS || $n == $#queue)) {
        my $pid = wait;
        my $which = delete $running{$pid} // next;
        my $out = $t->slurp($t->path("session-$which.out"));
        $ended{ $? == 0 ? 'whole' : $out =~ /terminating connection/ ? 'killed' : 'wrong' }++;
        fail("session $which") || diag(grep { /ERROR|DETAIL|CONTEXT/ } split /^/, $out) if $? && $out !~ /terminating connection/;
    }
}
is($ended{wrong}, undef, 'no session ends with an error');
cmp_ok($ended{whole}, '>', $SESSIONS * $SCRIPTS / 2, 'most end of themselves');
note join ', ', map { "$_ $ended{$_}" } sort keys %ended;
is($t->psql('select * from affiliate.audit()'), '', 'the books are right');

my %did = map { @$_ } $t->rows(q{select operation || ' ' || outcome, count(*) from public.tried group by 1});
note map { "$_: $did{$_}\n" } sort keys %did;
for my $step (qw(payout_create payout_cancel payout_batch_create payout_batch_propose payout_batch_approve payout_batch_export payout_batch_remove payout_result_create_done
    admin_payout_reject)) {
    cmp_ok($did{"$step done"} // 0, '>', 0, "$step happened");
}
is($t->value(q{select count(*) from (select payout_id from affiliate.payout_event where state = 'paid' group by payout_id having count(*) > 1) x}), 0, 'nothing is paid twice');
is($t->value(q{select count(*) from affiliate.payout_batch b join affiliate.payout_event e on e.state = 'approved' and e.user_id = b.maker
    join affiliate.payout p using (payout_id) where p.batch_id = b.batch_id and b.state in ('approved', 'processing', 'settled') and e.user_id <> b.checker and e.at >= b.proposed_at}), 0, 'nobody approves his own');

# What each affiliate has by his orders is what he has by his wallet and payouts.
is($t->psql(q{
    with earned as (select o.affiliate_id, sum(t.amount_minor * case when d.kind = 'payable' then -1 else 1 end) as minor
                      from affiliate.transfer t
                      join affiliate.account d on d.merchant_id = t.merchant_id and d.account_id = t.debit_account
                      join affiliate.account c on c.merchant_id = t.merchant_id and c.account_id = t.credit_account
                      join lateral (select case when d.kind = 'payable' then d.owner_id else c.owner_id end) o(affiliate_id) on true
                     where t.cause_kind in (1, 2) and 'payable' in (d.kind, c.kind) group by 1),
         has as (select a.owner_id as affiliate_id, sum(a.credits_minor - a.debits_minor) as minor from affiliate.account a
                  where a.owner = 'affiliate' and a.kind in ('payable', 'in_payout', 'paid') group by 1),
         tax as (select affiliate_id, sum(tax_minor) as minor from affiliate.payout where state = 'paid' group by 1)
    select affiliate_id, earned.minor, has.minor, tax.minor from earned full join has using (affiliate_id) left join tax using (affiliate_id)
     where coalesce(earned.minor, 0) <> coalesce(has.minor, 0) + coalesce(tax.minor, 0)}), '', 'earned = payable + under way + paid + withheld');

# Whoever asks does not keep others from referring to him: a recall of a live payout needs nothing that he has locked who asks in test mode.
$t->psql(join '', "update affiliate.payout_policy set batch_items = 1000;\n",
    (map { order(11 + $_) . sprintf qq{select public.try(%d, 'payout_create', '{"amount": "0.50", "currency": "NPR"}');\n}, 4 + $_ } 0 .. $AFFILIATES - 1),
    qq{select public.try(1, 'payout_batch_create', '{"kind": "esewa", "currency": "NPR"}');\n});
my $batch = $t->value(q{select max(batch_id) from affiliate.payout_batch});
$t->psql(join '', (map { qq{select public.try($_->[0], 'payout_batch_$_->[1]', '{"batch": "$batch"}');\n} } [1, 'propose'], [2, 'approve'], [1, 'export']), "select public.answer(1, $batch, '{paid}', 2);\n");
my ($payout, $who) = @{ ($t->rows("select payout_id, affiliate_id from affiliate.payout where batch_id = $batch and state = 'paid' limit 1"))[0] };
$t->psql(order($who, 'false'));
my $asking = $t->write('asking.sql', sprintf "begin;\nselect public.try(%d, 'payout_create', '{\"amount\": \"0.50\", \"currency\": \"NPR\", \"livemode\": false}');\nselect pg_sleep(60);\n", $who - 7);
my $asks = fork // die "fork: $!\n";
if (!$asks) {
    open STDOUT, '>', '/dev/null';
    open STDERR, '>&', \*STDOUT;
    exec $t->pg_bin . '/psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-h', $t->{pg_socket}, '-U', 'postgres', '-d', 'affiliate', '-f', $asking or POSIX::_exit(127);
}
my $there = q{from pg_stat_activity a where a.query like 'select pg_sleep(60)%'};
$t->wait_until('somebody asks', sub { $t->value("select count(*) $there") });
cmp_ok($t->value("select count(*) from pg_locks l where l.relation = 'affiliate.payout'::regclass and l.mode = 'RowExclusiveLock' and l.pid = (select pid $there)"), '>', 0, 'and has asked');
$t->psql("set lock_timeout = '10s'; select public.try(1, 'admin_payout_recall', '{\"payout\": \"$payout\", \"reason\": \"x\"}')");
is($t->value("select state from affiliate.payout where payout_id = $payout"), 'recalled', 'meanwhile a payout of his is recalled');
$t->psql("select pg_terminate_backend(pid) $there");
waitpid $asks, 0;
is($t->psql('select * from affiliate.audit()'), '', 'the books are right');

done_testing();
