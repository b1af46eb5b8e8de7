# What money goes through in batches touches each row a few times, however many affiliates a merchant has: no step of its plans
# meets everything with everything.

use strict;
use warnings;

use Affiliated::Test;
use JSON::PP ();

my $AFFILIATES = 400;

my $t = Affiliated::Test->new;
$t->pg_start(conf => <<'END');
shared_preload_libraries = 'auto_explain'
auto_explain.log_min_duration = -1
auto_explain.log_nested_statements = on
auto_explain.log_analyze = on
auto_explain.log_timing = off
auto_explain.log_format = json
END

# The most rows that any node of the plans of some statements gave or threw away, and the statement.
sub widest
{
    my ($sql) = @_;
    my $before = length $t->slurp($t->path('pg.log'));
    $t->psql("set auto_explain.log_min_duration = 0;\n$sql");
    my $log = substr $t->slurp($t->path('pg.log')), $before;
    my ($most, $where) = (0, '');

    for my $entry (split /^(?=\d{4}-\d\d-\d\d )/m, $log) {
        my ($plan) = $entry =~ /plan:\n(.*)\z/s or next;
        $plan = JSON::PP::decode_json($plan);
        my @nodes = $plan->{Plan};
        while (my $node = shift @nodes) {
            push @nodes, @{ $node->{Plans} || [] };
            for my $rows (map { ($node->{$_} || 0) * ($node->{'Actual Loops'} || 0) } 'Actual Rows', 'Rows Removed by Filter', 'Rows Removed by Join Filter') {
                ($most, $where) = ($rows, $plan->{'Query Text'}) if $rows > $most;
            }
        }
    }
    return ($most, $where);
}

sub narrow
{
    my ($what, $sql) = @_;
    my ($most, $where) = widest($sql);

    cmp_ok($most, '>=', $AFFILIATES, "$what: the plans were seen");
    cmp_ok($most, '<=', 20 * $AFFILIATES, "$what: no step touches more than a few times what there is") or diag substr $where, 0, 500;
}

$t->psql(<<"END");
select affiliate.maintain_partitions(2, 0);
insert into affiliate.merchant (merchant_id, name, hosts) values (901, 'A', '{a.example}');
insert into affiliate.campaign (merchant_id, campaign_id, name, currency) values (901, 921, 'A', 'NPR');
insert into affiliate.terms (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, fee_basis_points, hold, attribution_window)
values (901, 921, 931, '-infinity', 1000, 2000, '0', '720 hours');
insert into affiliate.affiliate (affiliate_id, name) select 2000 + n, 'A' || n from generate_series(1, $AFFILIATES) n;
create table public.clicked as
select n, (lpad(to_hex(extract(epoch from now() - interval '3 hours')::bigint * 1000), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid as id
  from generate_series(1, $AFFILIATES) n;
insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons)
select id, 901, 1, 921, 2000 + n, true, 0, 0 from public.clicked;
END

sub orders
{
    my ($sequence, $status) = @_;
    my $amount = $status == 3 ? 'null, null' : "10000 + n, 'NPR'";

    return "select affiliate.conversion_stage();\nbegin;\nselect affiliate.inbox_accept(2::smallint, '{1}', '{1}', '{$sequence}', '{$AFFILIATES}');\n"
        . "insert into pg_temp.conversion_stage select 1, 1, $sequence, n, 901, true, 1, 0, 'ak_live_x', '$sequence-' || n, 'b', now() - interval '1 hour', null, id, 'O-' || n, "
        . "$status, 0, $amount, null, null, null, null, null, null from public.clicked;\nselect * from affiliate.apply_conversions();\ncommit;\n";
}
narrow('orders', orders(1, 2));
narrow('releases of many affiliates of one merchant', 'select affiliate.release_holds(100000)');
narrow('orders that were released, cancelled', orders(2, 3));
is($t->psql('select * from affiliate.audit()'), '', 'the books are right');

done_testing();
