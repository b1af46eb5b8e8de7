-- Rollups follow their rows: clicks by verdict, mode, day and sub-id; orders through their states, amounts and buckets.

\ir support/fixture.psql

select plan(40);

-- Clicks with a first sub-id, numbers p_first to p_last, written by one statement.
create function pg_temp.clicks(p_first integer, p_last integer, p_sub text, p_verdict integer default 0, p_link bigint default 900041,
                               p_at timestamptz default now() - interval '3 hours')
returns void
language sql
as $$
    insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons, sub_ids)
    select pg_temp.click_id(n, p_at), l.merchant_id, l.link_id, l.campaign_id, l.affiliate_id, true, p_verdict, 0,
           case when p_sub is not null then array[replace(p_sub, '#', n::text), 'second'] end
      from generate_series(p_first, p_last) n
      join affiliate.link l on l.link_id = p_link
$$;

create function pg_temp.link_clicks(p_link bigint default 900041)
returns text
language sql
as $$
    select format('%s %s %s %s %s %s', sum(valid), sum(duplicate), sum(suspect), sum(prefetch), sum(preview), sum(bot))
      from affiliate.click_link_day
     where merchant_id = 900001 and livemode and link_id = p_link
$$;

-- "state: n" of a link's buckets that count any, with their money: sub, day, states, amount, kept, commission by where it stands.
create function pg_temp.bucket(p_link bigint default 900041, p_currency text default 'NPR')
returns setof text
language sql
as $$
    select concat_ws(' ', coalesce(sub_id, '-'), concat_ws(',',
               nullif(pending, 0) || ' pending', nullif(approved, 0) || ' approved', nullif(payable, 0) || ' payable',
               nullif(cancelled, 0) || ' cancelled', nullif(refunded, 0) || ' refunded', nullif(review, 0) || ' review',
               nullif(rejected, 0) || ' rejected'),
           amount_minor, kept_minor, commission_pending_minor, commission_payable_minor, commission_reversed_minor,
           fee_pending_minor, fee_payable_minor)
      from affiliate.order_link_day
     where merchant_id = 900001
       and link_id is not distinct from p_link
       and currency is not distinct from p_currency
       and (pending, approved, payable, cancelled, refunded, review, rejected) <> (0, 0, 0, 0, 0, 0, 0)
     order by 1
$$;

create function pg_temp.click_of(p_number integer)
returns uuid
language sql
as $$ select pg_temp.click_id(p_number, now() - interval '3 hours') $$;

-- --- clicks ---

select pg_temp.clicks(1, 3, null), pg_temp.clicks(4, 5, null, 1), pg_temp.clicks(6, 6, null, 2), pg_temp.clicks(7, 10, null, 3),
       pg_temp.clicks(11, 11, null, 4), pg_temp.clicks(12, 16, null, 5) \g /dev/null
select is(pg_temp.link_clicks(), '3 2 1 4 1 5', 'by verdict');
select pg_temp.click(17, p_livemode => false) \g /dev/null
select is(pg_temp.link_clicks(), '3 2 1 4 1 5', 'not those of the other mode');
select is((select sum(valid) from affiliate.click_link_day where link_id = 900041 and not livemode), 1::numeric, 'which are counted apart');
select pg_temp.clicks(18, 19, null, p_at => date_trunc('day', now(), 'UTC') - interval '1 millisecond'),
       pg_temp.clicks(20, 20, null, p_at => date_trunc('day', now(), 'UTC')) \g /dev/null
select is((select valid from affiliate.click_link_day where link_id = 900041 and livemode and day = (now() at time zone 'UTC')::date),
          (select count(*) from affiliate.click where link_id = 900041 and livemode and verdict = 0
              and id >= affiliate.day_bound((now() at time zone 'UTC')::date)),
          'a day begins at midnight UTC');
select is((select count(*) from affiliate.click_sub_day where merchant_id = 900001), 0::bigint, 'no sub-id, no row of sub-ids');

select throws_ok($$ insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons)
                    values (pg_temp.click_of(1), 900001, 900041, 900021, 900011, true, 0, 0) $$, '23505', null, 'a click that is there is refused');
select is(pg_temp.link_clicks(), '6 2 1 4 1 5', 'and not counted');

-- --- sub-ids ---

select pg_temp.clicks(1001, 1003, 'news', p_link => 900042), pg_temp.clicks(1004, 1004, 'news', 5, 900042),
       pg_temp.clicks(1005, 1005, '', p_link => 900042), pg_temp.clicks(1006, 1006, '(other)', p_link => 900042) \g /dev/null
select results_eq($$ select sub_id collate "default", valid, bot from affiliate.click_sub_day where link_id = 900042 order by 1 $$,
                  $$ values ('(other)', 1::bigint, 0::bigint), ('news', 3, 1) $$, 'by the first sub-id; an empty one is none');
select pg_temp.clicks(1101, 1200, 's#', p_link => 900042) \g /dev/null
select is((select count(*) from affiliate.click_sub_day where link_id = 900042 and sub_id <> ''), affiliate.sub_id_limit(),
          'no more rows than the limit');
select is((select valid from affiliate.click_sub_day where link_id = 900042 and sub_id = ''), 102 - affiliate.sub_id_limit(),
          'all others are one row, told from a sub-id that is named so');
select pg_temp.clicks(1201, 1203, 'news', p_link => 900042), pg_temp.clicks(1204, 1207, 's1200', p_link => 900042),
       pg_temp.clicks(1208, 1208, 'late', p_link => 900042) \g /dev/null
select is((select valid from affiliate.click_sub_day where link_id = 900042 and sub_id = 'news'), 6::bigint, 'what has a row keeps it');
select is((select valid from affiliate.click_sub_day where link_id = 900042 and sub_id = ''), 107 - affiliate.sub_id_limit(),
          'what has none gets none');
select pg_temp.clicks(1301, 1301, 's1200', p_link => 900043) \g /dev/null
select is((select valid from affiliate.click_sub_day where link_id = 900043 and sub_id = 's1200'), 1::bigint, 'each link has its own');
select is((select sum(valid) from affiliate.click_day where merchant_id = 900001 and livemode),
          (select count(*)::numeric from affiliate.click where merchant_id = 900001 and livemode and verdict = 0), 'days are the sum of all');
select is_empty($$ select pg_temp.audit() $$, 'all of it is the recount');

create temp table counted as
select 1 as t, to_jsonb(x) as row from affiliate.click_link_day x union all select 2, to_jsonb(x) from affiliate.click_day x;
select is(affiliate.recount_clicks((now() at time zone 'UTC')::date - 2, (now() at time zone 'UTC')::date),
          (select count(*) from affiliate.click), 'counting anew counts all clicks');
select is_empty($$ (select 1, to_jsonb(x) from affiliate.click_link_day x union all select 2, to_jsonb(x) from affiliate.click_day x)
                   except select * from counted $$, 'and comes to the same');
select is_empty($$ select pg_temp.audit() $$, 'so do the sub-ids, as many as the limit');

-- --- orders ---

select pg_temp.report(jsonb_build_object('order', 'A', 'status', 'pending', 'amount', 10000, 'click', pg_temp.click_of(1))) \g /dev/null
select results_eq('select pg_temp.bucket()', $$ values ('- 1 pending 10000 10000 1000 0 0 200 0') $$, 'pending');
select pg_temp.report(jsonb_build_object('order', 'A', 'status', 'pending', 'amount', 20000, 'click', pg_temp.click_of(1),
                                         'at', now() - interval '119 minutes')) \g /dev/null
select results_eq('select pg_temp.bucket()', $$ values ('- 1 pending 20000 20000 2000 0 0 400 0') $$, 'with another amount');
select pg_temp.report(jsonb_build_object('order', 'A', 'status', 'approved', 'amount', 20000, 'click', pg_temp.click_of(1),
                                         'at', now() - interval '118 minutes')) \g /dev/null
select results_eq('select pg_temp.bucket()', $$ values ('- 1 approved 20000 20000 2000 0 0 400 0') $$, 'approved');
select pg_temp.report(jsonb_build_object('order', 'A', 'status', 'refunded', 'amount', 5000, 'click', pg_temp.click_of(1))) \g /dev/null
select results_eq('select pg_temp.bucket()', $$ values ('- 1 approved 20000 15000 1500 0 500 300 0') $$, 'partly refunded');
select affiliate.release_holds(10) \g /dev/null
select results_eq('select pg_temp.bucket()', $$ values ('- 1 payable 20000 15000 0 1500 500 0 300') $$, 'released');
select is_empty($$ select pg_temp.audit() $$, 'the recount agrees');
select pg_temp.report(jsonb_build_object('order', 'A', 'status', 'cancelled', 'click', pg_temp.click_of(1))) \g /dev/null
select results_eq('select pg_temp.bucket()', $$ values ('- 1 cancelled 20000 0 0 0 2000 0 0') $$, 'cancelled after it was payable');

-- An earlier report with a click of another link takes the order along.
select pg_temp.stage(jsonb_build_object('order', 'B', 'status', 'approved', 'amount', 1000, 'click', pg_temp.click_of(2), 'at', now() - interval '30 minutes')),
       pg_temp.stage(jsonb_build_object('order', 'B', 'status', 'pending', 'amount', 900, 'click', pg_temp.click_of(2), 'at', now() - interval '40 minutes')),
       pg_temp.stage(jsonb_build_object('order', 'C', 'status', 'approved', 'amount', 1000, 'click', pg_temp.click_of(1001), 'at', now() - interval '30 minutes')) \g /dev/null
select pg_temp.apply() \g /dev/null
select results_eq('select pg_temp.bucket()', $$ values ('- 1 approved,1 cancelled 21000 1000 100 0 2000 20 0') $$, 'several events of one order are one');
select results_eq('select pg_temp.bucket(900042)', $$ values ('news 1 approved 1000 1000 100 0 0 20 0') $$, 'by the sub-id of the click');
select pg_temp.report(jsonb_build_object('order', 'B', 'status', 'pending', 'amount', 900, 'click', pg_temp.click_of(1200), 'at', now() - interval '2 hours')) \g /dev/null
select results_eq('select pg_temp.bucket()', $$ values ('- 1 cancelled 20000 0 0 0 2000 0 0') $$, 'an order leaves its link');
select results_eq('select pg_temp.bucket(900042)', format($$ values ('%s 1 review 1000 1000 100 0 0 20 0'), ('news 1 approved 1000 1000 100 0 0 20 0') $$,
    (select coalesce((select sub_id from affiliate.click_sub_day where link_id = 900042 and sub_id = 's1200'), ''))),
    'for that of its first click, where it goes to review');
select affiliate.order_review('{"merchant": 900001, "order": "B", "decision": "reject", "reason": "bought twice"}') \g /dev/null
select is((select sum(rejected) from affiliate.order_link_day where link_id = 900042), 1::numeric, 'a review that rejects');

select pg_temp.report(jsonb_build_object('order', 'D', 'status', 'approved', 'amount', 1000, 'currency', 'USD', 'click', pg_temp.click_of(3))) \g /dev/null
select results_eq($$ select pg_temp.bucket(900041, 'USD') $$, $$ values ('- 1 rejected 1000 0 0 0 0 0 0') $$, 'another currency is another row');
select pg_temp.report(jsonb_build_object('order', 'E', 'status', 'pending', 'amount', 1000, 'click', pg_temp.click_id(900, now() - interval '90 minutes'))) \g /dev/null
select is_empty($$ select pg_temp.bucket(null) $$, 'an order that waits for its click is not counted');
select pg_temp.clicks(900, 900, 'slow', p_at => now() - interval '90 minutes') \g /dev/null
select affiliate.resolve_waiting(10) \g /dev/null
select ok((select pending = 0 and sum_of = 1 from (select sum(pending) as pending, count(*) as sum_of from affiliate.order_link_day
            where link_id = 900041 and sub_id = 'slow' and rejected = 1) x), 'once it has come, it is, by that click''s sub-id');
select is_empty($$ select pg_temp.audit() $$, 'the recount agrees with all');

-- --- products ---

select pg_temp.report(jsonb_build_object('order', 'F', 'status', 'pending', 'amount', 3000, 'click', pg_temp.click_of(3), 'key', 'f1',
    'sku', '["tea", "cup", "tea"]'::jsonb, 'quantity', '[1, 2, 3]'::jsonb, 'item_amount', '[1000, 500, 1500]'::jsonb)) \g /dev/null
select results_eq($$ select sku collate "default", pending, approved, pieces, amount_minor from affiliate.order_sku_day where merchant_id = 900001 order by 1 $$,
    $$ values ('cup', 1::bigint, 0::bigint, 2::numeric, 500::numeric), ('tea', 1, 0, 4, 2500) $$, 'a product is counted once an order');
select pg_temp.report(jsonb_build_object('order', 'F', 'status', 'approved', 'amount', 2500, 'click', pg_temp.click_of(3), 'key', 'f2',
    'at', now() - interval '100 minutes', 'sku', '["tea"]'::jsonb, 'quantity', '[5]'::jsonb, 'item_amount', '[2500]'::jsonb)) \g /dev/null
select results_eq($$ select sku collate "default", pending, approved, pieces, amount_minor from affiliate.order_sku_day
                      where merchant_id = 900001 and pieces <> 0 $$,
    $$ values ('tea', 0::bigint, 1::bigint, 5::numeric, 2500::numeric) $$, 'by the latest report');
select is_empty($$ select pg_temp.audit() $$, 'the recount agrees with products');

create temp table orders_counted as
select 1 as t, to_jsonb(x) as row from affiliate.order_link_day x union all select 2, to_jsonb(x) from affiliate.order_day x
union all select 3, to_jsonb(x) from affiliate.order_sku_day x;
select is(affiliate.recount_orders(), (select count(*) from affiliate.order_fact), 'counting anew counts all orders');
select is_empty($$ (select 1, to_jsonb(x) from affiliate.order_link_day x union all select 2, to_jsonb(x) from affiliate.order_day x
                    union all select 3, to_jsonb(x) from affiliate.order_sku_day x) except select * from orders_counted $$, 'and comes to the same');
select is_empty($$ select * from affiliate.audit_rollups() $$, 'which the audit finds right');

select * from finish();
rollback;
