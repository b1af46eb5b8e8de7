# What money goes through in batches touches each row a few times, however many affiliates a merchant has: no step of its plans
# meets everything with everything.

use strict;
use warnings;

use Affiliated::Test;
use JSON::PP ();

my $AFFILIATES = 200;

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

    cmp_ok($most, '>=', $AFFILIATES, "$what: the plans were seen") unless $what =~ /propose/;
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

# All of them ask to be paid, and are, in one batch.
$t->psql(<<"END");
insert into affiliate.person (user_id, email, name, password, verified_at, is_admin)
select n, 'p' || n || '\@people.example', 'P', '\$scrypt\$x', now(), n > 2000 + $AFFILIATES from generate_series(2001, 2002 + $AFFILIATES) n;
update affiliate.affiliate set user_id = affiliate_id;
insert into affiliate.session (user_id, token_hash, csrf_hash, created_at, last_seen_at) select user_id, 'token-' || user_id, 'csrf', now(), now() from affiliate.person;
insert into affiliate.payout_method (affiliate_id, kind, holder, account, is_default)
select 2000 + n, 'esewa', 'A' || n, (9841000000 + n)::text, true from generate_series(1, $AFFILIATES) n;
update affiliate.payout_policy set minimum_minor = 1, cool_off = '0';
create function public.call(p_user bigint, p_operation text, p_request jsonb) returns jsonb language sql as \$\$
    select r from affiliate.api_call(jsonb_build_object('session', 'token-' || p_user, 'csrf', 'csrf'), p_operation, p_request,
        jsonb_build_object('request_id', 'r', 'body_hash', 'b', 'idempotency_key', gen_random_uuid(), 'address', '192.0.2.0/24')) with ordinality c(r, n) where n > 1 \$\$;
select count(public.call(2000 + n, 'payout_create', '{"amount": "5.00", "currency": "NPR"}')) from generate_series(1, $AFFILIATES) n;
END
my ($maker, $checker) = (2001 + $AFFILIATES, 2002 + $AFFILIATES);
narrow('a batch is made', "select public.call($maker, 'payout_batch_create', '{\"kind\": \"esewa\", \"currency\": \"NPR\"}')");
narrow("a batch: $_->[1]", "select public.call($_->[0], 'payout_batch_$_->[1]', '{\"batch\": \"1\"}')") for [$maker, 'propose'], [$checker, 'approve'], [$maker, 'export'];
my $upload = $t->value("select public.call($maker, 'payout_result_create', '{\"batch\": \"1\", \"_header\": [\"Reference\", \"Amount\", \"Status\"]}') ->> '_upload'");
narrow('its answer is uploaded', "select public.call($maker, 'payout_result_create_rows', jsonb_build_object('batch', '1', '_upload', '$upload', '_line', 1, '_rows', "
        . "(select jsonb_agg(jsonb_build_array('AP' || payout_id, '4.25', case when payout_id % 10 = 0 then 'failed' else 'paid' end)) from affiliate.payout)))");
narrow('and applied', "select public.call($maker, 'payout_result_create_done', '{\"batch\": \"1\", \"_upload\": \"$upload\", \"_lines\": $AFFILIATES}')");
is($t->value(q{select count(*) from affiliate.payout where state = 'paid'}), $AFFILIATES * 9 / 10, 'they are paid');

# Once more, by NPI, as the role payouts does it.
$t->psql(<<"END");
select affiliate.payout_provider_seen('npi', true, '1 hour');
update affiliate.payout_method set removed_at = now(), is_default = false;
insert into affiliate.payout_method (affiliate_id, kind, holder, bank, account, is_default)
select 2000 + n, 'bank', 'A' || n, '0101', (9841000000 + n)::text, true from generate_series(1, $AFFILIATES) n;
select count(public.call(2000 + n, 'payout_create', '{"amount": "5.00", "currency": "NPR"}')) from generate_series(1, $AFFILIATES) n;
select public.call($maker, 'payout_batch_create', '{"kind": "bank", "currency": "NPR", "provider": "npi"}');
select public.call($maker, 'payout_batch_propose', '{"batch": "2"}');
select public.call($checker, 'payout_batch_approve', '{"batch": "2"}');
END
my $taken;
sub items
{
    my ($verdict) = @_;
    return "(select jsonb_agg(jsonb_build_object('instruction', affiliate.instruction(p), 'verdict', $verdict, 'detail', 'd', 'reference', 'r')) from affiliate.payout p where p.batch_id = 2)";
}
sub mine { return $t->value('select next_at from affiliate.payout_submission') }
narrow('npi: taken', q{select taken from affiliate.payout_submit_take('npi', true, '1 hour')});
narrow('npi: accounts were found', "select affiliate.payout_submit_checked(2, " . items("'accepted'") . ", '" . mine() . "', '1 hour')");
narrow('npi: begun', "select affiliate.payout_submit_begin(2, '" . mine() . "', '1 hour')");
narrow('npi: answered', "select affiliate.payout_submit_done(2, 'submitted', '', " . items("case p.payout_id % 10 when 0 then 'rejected' when 1 then 'unknown' else 'settled' end") . ", '" . mine() . "', '0')");
$t->psql('update affiliate.payout_submission set next_at = now()');
narrow('npi: taken to be asked about', q{select taken from affiliate.payout_submit_take('npi', true, '1 hour')});
narrow('npi: refused', "select affiliate.payout_submit_done(2, 'refused', 'no', '[]', '" . mine() . "', '0')");
is($t->psql(q{select state, count(*) from affiliate.payout where batch_id = 2 group by 1 order by 1}), join("\n", "failed\t" . $AFFILIATES * 2 / 10, "paid\t" . $AFFILIATES * 8 / 10),
    'all are decided');

narrow('orders that were released, cancelled', orders(2, 3));
is($t->psql('select * from affiliate.audit()'), '', 'the books are right');

done_testing();
