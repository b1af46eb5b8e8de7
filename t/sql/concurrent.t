# Many sessions at once, on the same orders: conversions applied, holds released, waiting ones resolved, reviews decided, fraud cases
# opened and decided. Nobody deadlocks, nothing is lost or applied twice, and the books are right. The events come from the seed; how
# the sessions interleave does not.

use strict;
use warnings;

use Affiliated::Test;

my ($SESSIONS, $BATCHES, $EVENTS, $ORDERS) = (4, 25, 20, 60);

my $t = Affiliated::Test->new;
$t->pg_start(conf => "deadlock_timeout = 20ms\nlog_lock_waits = off");
$t->psql(<<'END');
select affiliate.maintain_partitions(2, 0);
insert into affiliate.merchant (merchant_id, name, hosts) values (901, 'A', '{a.example}'), (902, 'B', '{b.example}');
insert into affiliate.affiliate (affiliate_id, name) values (911, 'Asha'), (912, 'Bikram');
insert into affiliate.campaign (merchant_id, campaign_id, name, currency) values (901, 921, 'A', 'NPR'), (902, 922, 'B', 'NPR');
insert into affiliate.terms (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, fee_basis_points, hold, attribution_window)
values (901, 921, 931, '-infinity', 1000, 2000, '1 hour', '720 hours'), (902, 922, 932, '-infinity', 333, 1500, '1 hour', '720 hours');
insert into affiliate.person (user_id, email, name, password, verified_at, is_admin) values (951, 'a@people.example', 'A', '$scrypt$x', now(), true);
END

my @status = ((1) x 4, (2) x 6, 3, 4, (5) x 3);
my %key;        # idempotency key => the event's row, as it was first made
my $start = $t->value(q{select (extract(epoch from now() - interval '3 hours') * 1000)::bigint});

# Of two clicks that an order may name, the second is another affiliate's: such an order goes to review.
sub click_id
{
    my ($order, $which) = @_;
    my $hex = sprintf '%012x7%03x8%03x%012x', $start + $order, $which, $order, $order * 2 + $which;
    return join '-', unpack 'A8 A4 A4 A4 A12', $hex;
}

sub merchant { return 901 + $_[0] % 2 }

sub click
{
    my ($order, $which) = @_;
    my $m = merchant($order);
    return sprintf "insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons) "
        . "values ('%s', %d, 1, %d, %d, true, 0, 0);\n", click_id($order, $which), $m, $m + 20, 911 + ($order + $which) % 2;
}

# An event: new, or one that was there before, as it was or, now and then, with another body.
sub event
{
    my @keys = sort keys %key;

    if (@keys && $t->random(8) == 0) {
        my %again = %{ $key{ $keys[ $t->random(scalar @keys) ] } };
        $again{body} = 'other' if $t->random(4) == 0;
        return \%again;
    }
    my $order = $t->random($ORDERS);
    my $status = $status[ $t->random(scalar @status) ];
    my %e = (order => $order, status => $status, key => 'k' . keys %key, body => 'first', ago => 5 + $t->random(120),
        click => click_id($order, $t->random(12) == 0 ? 1 : 0),
        amount => $status == 3 || $status == 4 ? 'null' : $status == 5 ? 1 + $t->random(300) : 1000 + $t->random(100000),
        refund => $status == 5 ? "'r" . $t->random(3) . "'" : 'null');
    return $key{ $e{key} } = \%e;
}

# One transaction of the daemon.
sub batch
{
    my ($session, $sequence) = @_;
    my @events = map { event() } 1 .. $EVENTS;
    my @rows;

    for my $n (0 .. $#events) {
        my $e = $events[$n];
        push @rows, sprintf "(%d, 1, %d, %d, %d, true, 1, 0, 'ak_live_x', '%s', '%s', now() - interval '%d minutes', null, '%s', "
            . "'O-%d', %d, 0, %s, %s, %s, null, null, null, null, null)", $session, $sequence, $n, merchant($e->{order}), $e->{key},
            $e->{body}, $e->{ago}, $e->{click}, $e->{order}, $e->{status}, $e->{amount},
            $e->{amount} eq 'null' ? 'null' : "'NPR'", $e->{refund};
    }
    return "begin;\nselect affiliate.inbox_accept(2::smallint, '{$session}', '{1}', '{$sequence}', '{$EVENTS}');\n"
        . "insert into pg_temp.conversion_stage values\n" . join(",\n", @rows) . ";\nselect * from affiliate.apply_conversions();\ncommit;\n";
}

# What runs beside the batches.
my @beside = (
    sub { 'select affiliate.release_holds(' . (1 + $t->random(9)) . ");\n" },
    sub { "update affiliate.waiting set next_at = now() where conversion_id in (select conversion_id from affiliate.waiting for update "
        . "skip locked);\nselect affiliate.resolve_waiting(" . (1 + $t->random(9)) . ");\n" },
    sub { my $order = $t->random($ORDERS);
        sprintf "select affiliate.order_review(jsonb_build_object('merchant', %d, 'order', '%s', 'decision', '%s', 'reason', 'looked at')) "
            . "from affiliate.order_fact where order_id = 'O-%d' and outcome = 'review';\n",
            merchant($order), "O-$order", $t->random(2) ? 'accept' : 'reject', $order },
    # A case from some time ago on, so that it holds orders that were reported since.
    sub { my $affiliate = 911 + $t->random(2);
        sprintf "begin;\ninsert into affiliate.fraud_case (rule, rule_version, level, shadow, affiliate_id, figures, sentence, opened_at, settled) "
            . "values ('%s', 1, '%s', false, %d, '{}', 'It looks so.', now() - interval '%d minutes', false) on conflict do nothing;\n"
            . "select affiliate.renew_fraud_hold(%d);\ncommit;\nselect affiliate.fraud_settle(%d);\n",
            (qw(order_velocity click_to_order self_referral))[ $t->random(3) ], (qw(review reject))[ $t->random(2) ], $affiliate,
            $t->random(120), $affiliate, 1 + $t->random(20) },
    sub { sprintf "select affiliate.decide_case(row('admin', 951, null, null, null, null, null, true, 'r')::affiliate.actor, c.case_id, '%s', 'looked at') "
            . "from (select case_id from affiliate.fraud_case where state = 'open' order by random() limit 1 for update skip locked) c;\n"
            . "select affiliate.fraud_settle(%d);\n", (qw(dismissed dismissed confirmed))[ $t->random(3) ], 1 + $t->random(20) },
);

my @scripts = map { "select affiliate.conversion_stage();\n" } 1 .. $SESSIONS;
for my $sequence (1 .. $BATCHES) {
    for my $session (1 .. $SESSIONS) {
        $scripts[ $session - 1 ] .= batch($session, $sequence);
        $scripts[ $session - 1 ] .= $beside[ $t->random(scalar @beside) ]->();
    }
}
push @scripts, join '', map { $beside[ $_ % @beside ]->() } 1 .. 3 * $BATCHES;
push @scripts, join '', map { $beside[0]->() } 1 .. 3 * $BATCHES;

# A third of the clicks is there from the beginning; the others arrive meanwhile, some never.
my (@early, @late);
for my $order (0 .. $ORDERS - 1) {
    for my $which (0, 1) {
        my $fate = $t->random(6);
        push @{ $fate < 2 ? \@early : \@late }, click($order, $which) if $fate < 5;
    }
}
$t->psql(join '', @early);
push @scripts, join '', map { $_ . "select pg_sleep(0.02);\n" } @late;

my %running;
for my $n (0 .. $#scripts) {
    my $file = $t->write("session-$n.sql", $scripts[$n]);
    my $pid = fork // die "fork: $!\n";
    if (!$pid) {
        open STDOUT, '>', $t->path("session-$n.out");
        open STDERR, '>&', \*STDOUT;
        exec $t->pg_bin . '/psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-h', $t->{pg_socket}, '-U', 'postgres', '-d', 'affiliate', '-f', $file
            or POSIX::_exit(127);
    }
    $running{$pid} = $n;
}
while (%running) {
    my $pid = wait;
    my $n = delete $running{$pid} // next;
    is($?, 0, "session $n ends without an error") or diag(grep { /ERROR|DETAIL|CONTEXT/ } split /^/, $t->slurp($t->path("session-$n.out")));
}

is($t->value('select count(*) from affiliate.inbox where channel = 2'), $SESSIONS * $BATCHES, 'every batch was accepted');
is($t->value('select count(*) from affiliate.conversion'), scalar keys %key, 'every key is one conversion');
cmp_ok($t->value('select count(*) from affiliate.release_item'), '>', 0, 'holds were released meanwhile');
is($t->psql('select * from affiliate.audit()'), '', 'the books are right');
cmp_ok($t->value(q{select count(*) from affiliate.fraud_case where state = 'dismissed'}), '>', 0, 'cases were decided meanwhile');

# Once all has followed from the cases: an order is held that was reported in the time of one that holds, and no other.
$t->psql(q{update affiliate.fraud_case set opened_at = opened_at - interval '2 hours', decided_at = decided_at - interval '2 hours';
    select affiliate.renew_fraud_hold(a) from unnest('{911,912}'::bigint[]) a});
1 while $t->value('select affiliate.fraud_settle(7)') > 0;
is($t->value('select count(*) from affiliate.fraud_case where not settled and state <> $$open$$'), 0, 'decided cases are settled');
is($t->psql(q{select o.order_id from affiliate.order_fact o where o.fraud_held <> exists (select from affiliate.fraud_case c
    where c.affiliate_id = o.affiliate_id and c.state in ('open', 'confirmed') and o.reported_at >= c.opened_at
      and o.reported_at < coalesce(c.decided_at, 'infinity'))}), '', 'what is held follows from the cases');
is($t->psql(q{select order_id, problem from affiliate.order_fact where problem = 'under_review' and not fraud_held}), '', 'only that is in review for it');
cmp_ok($t->value('select count(*) from affiliate.order_fact where fraud_held'), '>', 0, 'and some is');

$t->psql('update affiliate.waiting set next_at = now(), until = now(); select affiliate.resolve_waiting(100000)');
$t->psql('select affiliate.release_holds(100000)');
is($t->value('select count(*) from affiliate.waiting'), 0, 'nothing waits forever');
is($t->value('select count(*) from affiliate.hold where due_at <= now()'), 0, 'what is due is released');
is($t->psql('select * from affiliate.audit()'), '', 'the books are right in the end');

done_testing();
