# Many sessions at once, on the same orders: signed events, single actions by hand, files, and fixes of a reconciliation, beside
# releases and reviews. Nobody deadlocks, what was judged is what happens, nothing is said twice, and the books are right. The
# events come from the seed; how the sessions interleave does not.

use strict;
use warnings;

use Affiliated::Test;

my ($SESSIONS, $STEPS, $ORDERS) = (4, 30, 40);

my $t = Affiliated::Test->new;
$t->pg_start(conf => "deadlock_timeout = 20ms\nlog_lock_waits = off");
$t->psql(<<'END');
select affiliate.maintain_partitions(2, 0);
insert into affiliate.merchant (merchant_id, name, hosts) values (901, 'A', '{a.example}');
insert into affiliate.affiliate (affiliate_id, name) values (911, 'Asha'), (912, 'Bikram');
insert into affiliate.campaign (merchant_id, campaign_id, name, currency) values (901, 921, 'A', 'NPR');
insert into affiliate.terms (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, fee_basis_points, hold, attribution_window)
values (901, 921, 931, '-infinity', 1000, 2000, '1 second', '720 hours');
END

my $start = $t->value(q{select (extract(epoch from now() - interval '3 hours') * 1000)::bigint});

sub click_id
{
    my $order = shift;
    return join '-', unpack 'A8 A4 A4 A4 A12', sprintf '%012x7%03x8%03x%012x', $start + $order, 1, $order, $order;
}

# What a session calls: refusals are answers, anything else is an error.
my $functions = <<'END';
create function pg_temp.say(p_rows jsonb) returns void language plpgsql as '
begin
    perform affiliate.said_tables();
    perform affiliate.say(1, ''{order_id,status,amount,currency,refund_id,reason}'', p_rows);
    perform affiliate.judge_said(901, true, true);
    perform affiliate.apply_said(901, true, affiliate.system_actor(901), 4::smallint, null, null);
    insert into public.verdict select s.order_id, s.status, s.refund_id, s.verdict, s.amount_minor from pg_temp.order_said s;
end';
select affiliate.conversion_stage();
END
$t->psql('create table public.verdict (order_id text, status smallint, refund_id text, verdict text, amount_minor bigint)');

sub batch
{
    my ($session, $sequence) = @_;
    my @rows = map {
        my $order = $t->random($ORDERS);
        my $status = (1, 1, 2, 2, 5)[ $t->random(5) ];
        sprintf "(%d, 1, %d, %d, 901, true, 1, 0, 'ak_live_x', 's-%d-%d-%d', '', now() - interval '%d minutes', null, '%s', 'O-%d', %d, 0, "
            . "%d, 'NPR', %s, null, null, null, null, null)", $session, $sequence, $_, $session, $sequence, $_, 5 + $t->random(100),
            click_id($order), $order, $status, $status == 5 ? 1 + $t->random(50) : 10000, $status == 5 ? "'s" . $t->random(3) . "'" : 'null';
    } 0 .. 9;

    return "begin;\nselect affiliate.inbox_accept(2::smallint, '{$session}', '{1}', '{$sequence}', '{10}');\n"
        . "insert into pg_temp.conversion_stage values\n" . join(",\n", @rows) . ";\nselect * from affiliate.apply_conversions();\ncommit;\n";
}

sub saying
{
    my @rows = map {
        my $status = ('approved', 'approved', 'cancelled', 'returned', ('refunded') x 8)[ $t->random(12) ];
        my $part = $status eq 'refunded';
        sprintf '["O-%d", "%s", %s, "NPR", %s, "fraud"]', $t->random($ORDERS), $status, $part ? '"30.00"' : 'null',
            $part ? '"r' . $t->random(5) . '"' : 'null';
    } 1 .. $_[0];
    return "select pg_temp.say('[" . join(', ', @rows) . "]');\n";
}

my @steps = (
    sub { batch(@_) },
    sub { saying(1) },
    sub { saying(15) },
    sub { 'select affiliate.release_holds(' . (1 + $t->random(9)) . ");\n" },
    sub { sprintf "select affiliate.reconciliation_apply(901, affiliate.system_actor(901), 1, null, %d::smallint, 'order_update', 5);\n",
        3 + $t->random(3) },
);

# Half of the orders are there from the beginning, and a reconciliation that finds all kinds of differences with them.
$t->psql(join '', map { sprintf "insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons) "
    . "values ('%s', 901, 1, 921, %d, true, 0, 0);\n", click_id($_), 911 + $_ % 2 } 0 .. $ORDERS - 1);
$t->psql("select affiliate.conversion_stage();\nbegin;\nselect affiliate.inbox_accept(2::smallint, '{99}', '{1}', '{1}', '{$ORDERS}');\n"
    . "insert into pg_temp.conversion_stage values\n" . join(",\n", map { sprintf "(99, 1, 1, %d, 901, true, 1, 0, 'ak_live_x', 'first-%d', '', "
    . "now() - interval '2 hours', null, '%s', 'O-%d', 1, 0, 10000, 'NPR', null, null, null, null, null, null)", $_, $_, click_id($_), $_ }
    0 .. $ORDERS - 1) . ";\nselect * from affiliate.apply_conversions();\ncommit;\n");
my $cells = join ', ', map { sprintf '["O-%d", "%s", "%s"]', $_, ('approved', 'cancelled', 'pending', 'returned')[ $_ % 4 ],
    $_ % 4 == 2 ? '80.00' : '100.00' } 0 .. $ORDERS - 6;
$t->psql("insert into affiliate.import (merchant_id, import_id, kind, livemode, dry_run, header, actor_kind) overriding system value "
    . "values (901, 1, 'reconciliation', true, false, '{order_id,status,amount}', 'system');\n"
    . "insert into affiliate.reconciliation (merchant_id, reconciliation_id, livemode, from_at, to_at) "
    . "values (901, 1, true, now() - interval '1 day', now());\n"
    . "select affiliate.reconcile_part(901, i, 1, '[$cells]') from affiliate.import i;\nselect affiliate.reconcile_rest(901, 1);");
is($t->value("select string_agg(distinct class::text, ' ') from affiliate.reconciliation_row"), '3 4 5', 'there are differences');

my %running;
for my $session (1 .. $SESSIONS) {
    my $script = $functions . join '', map { $steps[ $t->random(scalar @steps) ]->($session, $_) } 1 .. $STEPS;
    my $file = $t->write("session-$session.sql", $script);
    my $pid = fork // die "fork: $!\n";
    if (!$pid) {
        open STDOUT, '>', $t->path("session-$session.out");
        open STDERR, '>&', \*STDOUT;
        exec $t->pg_bin . '/psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-h', $t->{pg_socket}, '-U', 'postgres', '-d', 'affiliate', '-f', $file
            or POSIX::_exit(127);
    }
    $running{$pid} = $session;
}
while (%running) {
    my $pid = wait;
    my $session = delete $running{$pid} // next;
    is($?, 0, "session $session ends without an error")
        or diag(grep { /ERROR|DETAIL|CONTEXT/ } split /^/, $t->slurp($t->path("session-$session.out")));
}

cmp_ok($t->value("select count(*) from public.verdict where verdict = '$_'"), '>', 0, "some lines were $_") for qw(applied unchanged refused);
is($t->value("select count(*) from public.verdict where verdict = 'applied'"),
    $t->value('select count(*) from affiliate.conversion where source = 4'), 'each line that was applied is one conversion');
is($t->value("select count(*) from affiliate.reconciliation_row where fix_verdict = 'applied'"),
    $t->value('select count(*) from affiliate.conversion where source = 5'), 'each fix that was applied is one conversion');
is($t->value("select count(*) from affiliate.reconciliation_row r where fix_verdict = 'applied' and not exists (select from affiliate.conversion c "
    . 'where c.spool_id = 0 and c.segment = r.fix_batch and c.order_id = r.order_id)'), 0, 'the one that its row names');
is($t->psql('select order_id, refund_key from affiliate.conversion where source in (4, 5) and refund_key is not null group by 1, 2 having count(*) > 1'),
    '', 'no refund was said twice');
is($t->psql("select order_id from affiliate.conversion where source in (4, 5) and status = 3 group by 1 having count(*) > 1"),
    '', 'nor a cancellation');
is($t->psql('select * from affiliate.audit()'), '', 'the books are right');

done_testing();
