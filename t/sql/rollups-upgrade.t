# A database that was there before its clicks and orders were counted: the migration counts them, and what comes then goes on from there.

use strict;
use warnings;

use Affiliated::Test;

my $t = Affiliated::Test->new;
my @sql = sort glob "$Affiliated::Test::TOP/sql/*.sql";
my @before = grep { m{/(\d+)_} && $1 < 21 } @sql;
my $fixture = $t->slurp("$Affiliated::Test::TOP/t/sql/support/fixture.psql");

# The fixture's session commands are psql's; what it is begun by, a transaction that is taken back, is not wanted here.
$fixture =~ s/^\\.*$//mg;
$fixture =~ s/^begin;$//m;
$fixture =~ s/^create extension .*$//m;
$fixture =~ s/ \\g \/dev\/null/;/g;

my $events = <<'END';
select pg_temp.click(n) from generate_series(1, 4) n;
insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons, sub_ids)
select pg_temp.click_id(n, now() - interval '3 hours'), 900001, 900042, 900021, 900012, true, n % 6, 0, array['s' || n]
  from generate_series(11, 80) n;
select pg_temp.stage(jsonb_build_object('order', o, 'status', s, 'amount', a, 'key', o || s, 'at', now() - t::interval,
                                        'click', pg_temp.click_id(c, now() - interval '3 hours')) || extra)
  from (values ('released', 'approved', 10000, 1, '2 hours', '{}'::jsonb),
               ('held', 'approved', 20000, 2, '10 minutes', '{"sku": ["tea"], "quantity": [2], "item_amount": [20000]}'),
               ('cancelled', 'cancelled', null, 3, '10 minutes', '{}'),
               ('refunded', 'approved', 5000, 4, '20 minutes', '{}'),
               ('sub', 'approved', 7000, 12, '10 minutes', '{}'),
               ('late', 'pending', 7000, 78, '10 minutes', '{}'),
               ('waits', 'pending', 7000, 99, '10 minutes', '{}')) as e(o, s, a, c, t, extra);
select pg_temp.apply();
select pg_temp.report(jsonb_build_object('order', 'refunded', 'status', 'refunded', 'amount', 1000, 'at', now() - interval '5 minutes',
                                         'click', pg_temp.click_id(4, now() - interval '3 hours')));
select affiliate.release_holds(10);
END

$t->pg_start(empty => 1);
$t->_pg_migrate(@before);
$t->psql("begin;\n$fixture\n$events\ncommit;");
is($t->value('select count(*) from affiliate.order_fact'), 6, 'six orders, and one that waits');

for my $path (grep { m{/(\d+)_} && $1 >= 21 } @sql) {
    $t->psql("begin;\n" . $t->slurp($path) . "\n; commit;");
}

is($t->value("select string_agg(a::text, ', ') from affiliate.audit() a"), '', 'after the migration all rollups are the recount');
is($t->value('select sum(valid + duplicate + suspect + prefetch + preview + bot) from affiliate.click_day'), 74, 'of all clicks');
is($t->value("select count(*) filter (where sub_id <> '') || ' ' || count(*) from affiliate.click_sub_day"), '50 51', 'with as many sub-ids as are told apart');
is($t->value("select sub_id from affiliate.order_fact where order_id = 'sub'"), 's12', 'an order has the sub-id of its click');
is($t->value("select sub_id from affiliate.order_fact where order_id = 'late'"), '', 'or is among the others');
is($t->value("select reversed_minor from affiliate.order_fact where order_id = 'refunded'"), 100, 'with what its refund took');
is($t->value("select sum(approved) || ' ' || sum(payable) || ' ' || sum(cancelled) from affiliate.order_day"), '3 1 1', 'in the state in which it was');

$t->psql(q{select affiliate.order_review('{"merchant": 900001, "order": "sub", "decision": "reject", "reason": "bought twice"}')});
is($t->value("select string_agg(a::text, ', ') from affiliate.audit() a"), '', 'what is decided then is counted by the difference');

done_testing();
