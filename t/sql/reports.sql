-- Reports, lists, wallets and statements: what they add up to, and who sees what.

\ir support/fixture.psql

select plan(60);

-- As the API calls an operation: behind the fence.
create function pg_temp.call(p_actor affiliate.actor, p_operation text, p_request jsonb default '{}')
returns setof jsonb
language plpgsql
as $$
begin
    perform affiliate.raise_fence(p_actor);
    return query execute format('select r from affiliate.%I($1, $2) r', 'api_' || p_operation) using p_actor, p_request;
end
$$;

create function pg_temp.merchant(p_id bigint default 900001, p_livemode boolean default true)
returns affiliate.actor
language sql
as $$ select row('merchant', 1, 1, p_id, 'read_only', null, null, p_livemode, 'r')::affiliate.actor $$;

create function pg_temp.affiliate(p_id bigint default 900011, p_livemode boolean default true)
returns affiliate.actor
language sql
as $$ select row('affiliate', 1, 1, null, null, p_id, null, p_livemode, 'r')::affiliate.actor $$;

create function pg_temp.admin(p_livemode boolean default true)
returns affiliate.actor
language sql
as $$ select row('admin', 1, 1, null, null, null, null, p_livemode, 'r')::affiliate.actor $$;

create function pg_temp.refusal(p_actor affiliate.actor, p_operation text, p_request jsonb)
returns text
language plpgsql
as $$
begin
    perform pg_temp.call(p_actor, p_operation, p_request);
    return 'none';
exception when others then
    return sqlstate || ' ' || sqlerrm;
end
$$;

create function pg_temp.add(p_first integer, p_last integer, p_link bigint, p_sub text default null, p_verdict integer default 0,
                            p_at timestamptz default now() - interval '3 hours')
returns void
language sql
as $$
    insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons, sub_ids, user_agent)
    select pg_temp.click_id(n, p_at), l.merchant_id, l.link_id, l.campaign_id, l.affiliate_id, true, p_verdict, p_verdict,
           case when p_sub is not null then array[p_sub, 'two'] end, 'Agent/1'
      from generate_series(p_first, p_last) n
      join affiliate.link l on l.link_id = p_link
$$;

create function pg_temp.click_of(p_number integer)
returns uuid
language sql
as $$ select pg_temp.click_id(p_number, now() - interval '3 hours') $$;

-- Clicks of two affiliates for two merchants.
select pg_temp.add(1, 10, 900041), pg_temp.add(11, 13, 900041, p_verdict => 1), pg_temp.add(14, 14, 900041, p_verdict => 5),
       pg_temp.add(21, 25, 900042, 'news'), pg_temp.add(31, 34, 900043), pg_temp.add(41, 42, 900044),
       pg_temp.add(51, 51, 900042, p_at => now() - interval '40 days') from (select affiliate.create_click_partition((now() at time zone 'UTC')::date - 40)) p \g /dev/null

-- Orders: released, held, partly refunded, cancelled after it was released, in review, rejected, in two currencies.
select pg_temp.stage(jsonb_build_object('order', o, 'status', s, 'amount', a, 'click', pg_temp.click_of(c), 'key', o || s, 'at', now() - t::interval) || extra)
  from (values ('released', 'approved', 10000, 1, '2 hours', '{}'::jsonb),
               ('held', 'approved', 20000, 2, '10 minutes', '{"sku": ["tea"], "quantity": [2], "item_amount": [20000]}'),
               ('refunded', 'approved', 10000, 3, '15 minutes', '{}'),
               ('taken', 'approved', 50000, 4, '2 hours', '{}'),
               ('open', 'pending', 3000, 5, '10 minutes', '{"sku": ["tea", "cup"], "quantity": [1, 1], "item_amount": [1000, 2000]}'),
               ('strange', 'pending', 1000, 6, '10 minutes', '{"currency": "USD"}'),
               ('news', 'approved', 7000, 21, '2 hours', '{}'),
               ('flat', 'approved', 100, 31, '2 hours', '{}'),
               ('dollars', 'approved', 10000, 41, '2 hours', '{"merchant": 900002, "currency": "USD"}')) as e(o, s, a, c, t, extra) \g /dev/null
select pg_temp.apply() \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'refunded', 'status', 'refunded', 'amount', 4000, 'click', pg_temp.click_of(3), 'at', now() - interval '5 minutes')) \g /dev/null
select affiliate.release_holds(10) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'taken', 'status', 'cancelled', 'click', pg_temp.click_of(4), 'at', now() - interval '4 minutes')) \g /dev/null
select is_empty($$ select pg_temp.audit() $$, 'the books and the rollups are right');

-- --- a merchant's reports -------------------------------------------------------------------------------------------------

create temp table r as select * from pg_temp.call(pg_temp.merchant(), 'report_list', '{"by": "total"}') as j(j);
select is((select j -> 'clicks' from r), '{"gross": 23, "valid": 19, "duplicate": 3, "suspect": 0, "prefetch": 0, "preview": 0, "bot": 1}'::jsonb,
          'clicks, by verdict');
select is((select j -> 'orders' from r),
          '{"reported": 8, "pending": 1, "approved": 2, "payable": 3, "cancelled": 1, "refunded": 0, "review": 0, "rejected": 1}'::jsonb, 'orders, by state');
select is((select j ->> 'approval_rate' from r), '0.7143', 'of seven decided ones five were approved');
select is((select j ->> 'conversion_rate' from r), '0.4211', 'eight orders of nineteen clicks');
select is((select jsonb_agg(m ->> 'currency') from r, jsonb_array_elements(j -> 'money') m), '["NPR", "USD"]'::jsonb, 'each currency by itself');
select is((select j #> '{money,0}' from r),
          '{"currency": "NPR", "amount": "1001.00", "kept": "461.00", "commission_pending": "29.00", "commission_payable": "67.00",
            "commission_reversed": "54.00", "fee_pending": "5.80", "fee_payable": "3.40", "accrued": "34.80", "owed": "70.40", "epc": "5.0526"}'::jsonb,
          'with what is pending, payable, reversed and owed, and the earnings of a click');
select is((select j #> '{money,0,owed}' from r), (select j -> 'owed' from pg_temp.call(pg_temp.merchant(), 'owed_list') j),
          'what is owed is what the books say');
select is((select j #> '{money,0,accrued}' from r), (select j -> 'accrued' from pg_temp.call(pg_temp.merchant(), 'owed_list') j),
          'so is what is accrued');

select results_eq($$ select j ->> 'affiliate_name', j #>> '{clicks,gross}', j #>> '{orders,reported}' from pg_temp.call(pg_temp.merchant(), 'report_list', '{"by": "affiliate"}') j $$,
    $$ values ('Asha', '18', '7'), ('Bikram', '5', '1') $$, 'the best affiliates first');
select results_eq($$ select j ->> 'campaign_name', j #>> '{clicks,valid}' from pg_temp.call(pg_temp.merchant(), 'report_list', '{"by": "campaign", "sort": "valid"}') j $$,
    $$ values ('Flat', '4'), ('Everything', '15') $$, 'campaigns, by clicks');
select results_eq($$ select j ->> 'code', j #>> '{orders,reported}' from pg_temp.call(pg_temp.merchant(), 'report_list', '{"by": "link", "affiliate": "900011", "sort": "-gross"}') j $$,
    $$ values ('fixture-1', '6'), ('fixture-3', '1') $$, 'links of one affiliate');
select results_eq($$ select j ->> 'kind', j ->> 'sub_id', j #>> '{clicks,valid}', j #>> '{orders,reported}' from pg_temp.call(pg_temp.merchant(), 'report_list', '{"by": "sub_id", "affiliate": "900012"}') j $$,
    $$ values ('one', 'news', '5', '1') $$, 'sub-ids');
select results_eq($$ select j ->> 'kind', j ->> 'sub_id', j #>> '{clicks,valid}', j #>> '{orders,reported}' from pg_temp.call(pg_temp.merchant(), 'report_list', '{"by": "sub_id", "affiliate": "900011"}') j $$,
    $$ values ('none', null, '14', '7') $$, 'and what has none');
select results_eq($$ select j ->> 'sku', j ->> 'pieces', j #>> '{orders,pending}', j #>> '{orders,approved}', j #>> '{money,0,amount}' from pg_temp.call(pg_temp.merchant(), 'report_list', '{"by": "product"}') j $$,
    $$ values ('tea', '3', '1', '1', '210.00'), ('cup', '1', '1', '0', '20.00') $$, 'products');
select results_eq($$ select j #>> '{orders,reported}', j #>> '{money,0,amount}', j #>> '{clicks,gross}' from pg_temp.call(pg_temp.merchant(), 'report_list', '{"by": "total", "currency": "USD"}') j $$,
    $$ values ('1', '10.00', '23') $$, 'one currency only');
select results_eq($$ select j ->> 'day', j #>> '{clicks,gross}' from pg_temp.call(pg_temp.merchant(), 'report_list',
        jsonb_build_object('by', 'day', 'from', ((now() at time zone 'UTC')::date - 45)::text, 'sort', 'key', 'campaign', '900021', 'affiliate', '900012', 'limit', '1')) j limit 1 $$,
    $$ select ((now() - interval '40 days') at time zone 'UTC')::date::text, '1' $$, 'a day long ago');
select is((select count(*) from pg_temp.call(pg_temp.merchant(p_livemode => false), 'report_list', '{"by": "total"}')), 0::bigint, 'nothing in the other mode');
select is((select sum((j #>> '{clicks,gross}')::integer) from pg_temp.call(pg_temp.merchant(900002), 'report_list', '{"by": "day"}') j), 2::bigint, 'another merchant has his own');
select is((select count(*) from pg_temp.call(pg_temp.merchant(900002), 'report_list', '{"by": "affiliate", "affiliate": "900012"}') j), 0::bigint, 'and not another''s');
select is((select count(*) from pg_temp.call(pg_temp.merchant(900002), 'report_list', '{"by": "total", "merchant": "900001"}') j
            where j #>> '{clicks,gross}' = '2'), 1::bigint, 'whatever it asks for');

-- --- pages and refusals -----------------------------------------------------------------------------------------------------

select is((select j ->> 'affiliate_name' from pg_temp.call(pg_temp.merchant(), 'report_list',
              jsonb_build_object('by', 'affiliate', 'after',
                  (select j ->> '_cursor' from pg_temp.call(pg_temp.merchant(), 'report_list', '{"by": "affiliate", "limit": "1"}') j limit 1))) j),
          'Bikram', 'the next page goes on behind the cursor');
select is(pg_temp.refusal(pg_temp.merchant(), 'report_list', '{"by": "sub_id"}'), '22023 affiliate: or link is needed: sub-ids are each affiliate''s own', 'sub-ids of one affiliate or link');
select is(pg_temp.refusal(pg_temp.merchant(), 'report_list', '{"by": "weather"}'), 'AF404 There is no such report; there are total, day, campaign, affiliate, link, sub_id, product.', 'no such report');
select is(pg_temp.refusal(pg_temp.merchant(), 'report_list', '{"by": "day", "from": "2026-02-30"}'), '22023 from: must be a day, like 2026-01-31', 'no such day');
select is(pg_temp.refusal(pg_temp.merchant(), 'report_list', '{"by": "day", "from": "2025-01-01", "to": "2026-02-05"}'), '22023 from: must lie within 400 days before to', 'more than 400 days');
select is(pg_temp.refusal(pg_temp.merchant(), 'report_list', '{"by": "day", "from": "2026-01-02", "to": "2026-01-01"}'), '22023 from: must not lie after to', 'backwards');
select is(pg_temp.refusal(pg_temp.merchant(), 'report_list', '{"by": "link", "sort": "-commission"}'), '22023 sort: by money needs a currency', 'money of several currencies is in no order');
select is(pg_temp.refusal(pg_temp.merchant(), 'report_list', '{"by": "day", "currency": "XXX"}'), '22023 currency: must be an ISO 4217 currency, like NPR', 'no such currency');
select is(pg_temp.refusal(pg_temp.affiliate(), 'affiliate_report_list', '{"by": "affiliate"}'), 'AF404 There is no such report; there are total, day, merchant, campaign, link, sub_id, product.', 'affiliates are not for affiliates to see');

-- --- an affiliate's and an admin's -----------------------------------------------------------------------------------------

select results_eq($$ select j ->> 'merchant_name', j #>> '{clicks,gross}' from pg_temp.call(pg_temp.affiliate(), 'affiliate_report_list', '{"by": "merchant"}') j $$,
    $$ values ('Shop', '18'), ('Other shop', '2') $$, 'an affiliate''s, over all merchants');
select is((select j #> '{money,0}' ?| '{fee_pending,fee_payable,accrued,owed}' from pg_temp.call(pg_temp.affiliate(), 'affiliate_report_list', '{"by": "total"}') j),
          false, 'without the fee and what the merchant owes');
select results_eq($$ select m ->> 'currency', m ->> 'commission_payable' from pg_temp.call(pg_temp.affiliate(), 'affiliate_report_list', '{"by": "total"}') j, jsonb_array_elements(j -> 'money') m $$,
    $$ values ('NPR', '60.00'), ('USD', '5.00') $$, 'currency by currency');
select is((select sum((j #>> '{clicks,gross}')::integer) from pg_temp.call(pg_temp.admin(), 'admin_report_list', '{"by": "merchant"}') j
            where (j ->> 'merchant')::bigint between 900001 and 900002), 25::bigint, 'an admin sees all');

-- --- clicks -----------------------------------------------------------------------------------------------------------------

select is((select count(*) from pg_temp.call(pg_temp.affiliate(), 'affiliate_click_list') j), 20::bigint, 'an affiliate''s clicks');
select is((select array_agg(distinct j ->> 'verdict') from pg_temp.call(pg_temp.affiliate(), 'affiliate_click_list', '{"verdict": "bot"}') j), '{bot}', 'by verdict');
select is((select j -> 'reasons' from pg_temp.call(pg_temp.affiliate(), 'affiliate_click_list', '{"verdict": "bot"}') j), '["bot_agent", "head"]'::jsonb, 'with its reasons');
select is((select bool_or(j ?| '{user_agent,referrer,signals}') from pg_temp.call(pg_temp.affiliate(), 'affiliate_click_list') j), false, 'not with what the visitor used');
select is((select count(*) filter (where j ->> 'user_agent' = 'Agent/1') from pg_temp.call(pg_temp.merchant(), 'click_list', '{"sub_id": "news"}') j), 5::bigint, 'which the merchant sees');
select is((select count(*) from pg_temp.call(pg_temp.affiliate(900012), 'affiliate_click_list', '{"link": "900041"}')), 0::bigint, 'another''s link has no clicks');

-- --- orders -----------------------------------------------------------------------------------------------------------------

select results_eq($$ select j ->> 'state', j ->> 'commission', j ->> 'payable_at' is not null from pg_temp.call(pg_temp.affiliate(), 'affiliate_order_list', '{"merchant": "900001", "sort": "order_no"}') j
                      order by (j ->> 'order_no')::bigint $$,
    $$ select affiliate.order_state(n), affiliate.amount_text(n.posted_commission_minor, 2::smallint), affiliate.order_state(n) in ('approved', 'payable')
         from affiliate.order_now n where n.merchant_id = 900001 and n.affiliate_id = 900011 order by n.order_no $$, 'an affiliate''s orders, and when they become payable');
select is((select bool_or(j ?| '{order,fee,order_id}') from pg_temp.call(pg_temp.affiliate(), 'affiliate_order_list') j), false, 'not the merchant''s name for them, nor the fee');
select is((select j ->> 'sentence' from pg_temp.call(pg_temp.affiliate(), 'affiliate_order_list', '{"state": "rejected"}') j),
          'The order is in another currency than the campaign pays.', 'what was rejected, and why');

create function pg_temp.no(p_order text)
returns text
language sql
as $$ select order_no::text from affiliate.order_fact where merchant_id in (900001, 900002) and order_id = p_order $$;

select is((select jsonb_agg(e ->> 'event') from pg_temp.call(pg_temp.affiliate(), 'affiliate_order_show', jsonb_build_object('order_no', pg_temp.no('taken'))) j,
                  jsonb_array_elements(j -> 'timeline') e), '["click", "approved", "cancelled", "commission", "commission_reversal", "payable"]'::jsonb,
          'the way of an order that was payable and taken back: here all at one time, so in the order of their kinds');
select is((select e from pg_temp.call(pg_temp.affiliate(), 'affiliate_order_show', jsonb_build_object('order_no', pg_temp.no('held'))) j,
                  jsonb_array_elements(j -> 'timeline') with ordinality as t(e, n) order by n desc limit 1) - 'at',
          '{"event": "payable", "amount": "20.00", "currency": "NPR", "expected": true}'::jsonb, 'and what is still to come');
select is((select bool_or(e ?| '{key,idempotency_key,received_at}') from pg_temp.call(pg_temp.affiliate(), 'affiliate_order_show', jsonb_build_object('order_no', pg_temp.no('held'))) j,
                  jsonb_array_elements(j -> 'timeline') e), false, 'nothing of the merchant''s calls');
select is((select array_agg(distinct e ->> 'event') @> '{fee,approved}' and bool_or(e ? 'idempotency_key')
             from affiliate.order_now n, jsonb_array_elements(affiliate.order_story(n, false)) e
            where n.merchant_id = 900001 and n.order_id = 'held'), true, 'which the merchant''s own view has, with the fee');
select is(pg_temp.refusal(pg_temp.affiliate(900012), 'affiliate_order_show', jsonb_build_object('order_no', pg_temp.no('held'))), 'AF404 There is no such thing.', 'another''s order is none');

-- --- pages -----------------------------------------------------------------------------------------------------------------

-- All of a list, page by page of one line.
create function pg_temp.pages(p_actor affiliate.actor, p_operation text, p_request jsonb)
returns jsonb[]
language plpgsql
as $$
declare
    request jsonb := p_request || '{"limit": "1"}';
    got jsonb[];
    found_rows jsonb[] := '{}';
begin
    loop
        got := array(select j from pg_temp.call(p_actor, p_operation, request) j);
        found_rows := found_rows || (got[1] - '_cursor');
        exit when cardinality(got) < 2;
        request := request || jsonb_build_object('after', got[1] ->> '_cursor');
    end loop;
    return array_remove(found_rows, null);
end
$$;

create temp table walked as
select k, s, pg_temp.pages(pg_temp.merchant(), 'report_list', r) as pages,
       array(select j from pg_temp.call(pg_temp.merchant(), 'report_list', r || '{"all": true}') j) as whole
  from (select k, d || s as s, jsonb_build_object('by', k, 'sort', d || s, 'currency', 'NPR')
                               || case when k = 'sub_id' then '{"affiliate": "900011"}'::jsonb else '{}' end as r
          from unnest('{total,day,campaign,affiliate,link,sub_id,product}'::text[]) k,
               unnest('{key,gross,valid,reported,approved,amount,commission}'::text[]) s, unnest('{"",-}'::text[]) d) x;
select is((select count(*) from walked), 98::bigint, 'reports by each kind, in each order');
select is_empty($$ select k, s from walked where pages is distinct from whole $$, 'the pages are the whole');
select cmp_ok((select max(cardinality(whole)) from walked), '>', 2, 'which has several');

-- --- money ------------------------------------------------------------------------------------------------------------------

select results_eq($$ select j ->> 'currency', j ->> 'pending', j ->> 'payable', j ->> 'paid' from pg_temp.call(pg_temp.affiliate(), 'wallet_list') j $$,
    $$ values ('NPR', '29.00', '60.00', '0.00'), ('USD', '0.00', '5.00', '0.00') $$, 'a wallet, currency by currency');
select is((select (j ->> 'next_payable_at')::timestamptz from pg_temp.call(pg_temp.affiliate(), 'wallet_list') j where j ->> 'currency' = 'NPR'),
          now() + interval '45 minutes', 'and when the next of it becomes payable');
select pg_temp.report(jsonb_build_object('order', o, 'status', 'returned', 'click', pg_temp.click_of(c), 'at', now() - interval '1 minute', 'key', 'r' || o))
  from (values ('news', 21)) x(o, c) \g /dev/null
select pg_temp.stage(jsonb_build_object('order', 'more', 'status', 'approved', 'amount', 9000, 'click', pg_temp.click_of(22), 'at', now() - interval '2 hours')) \g /dev/null
select pg_temp.apply(), affiliate.release_holds(10) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'more', 'status', 'cancelled', 'click', pg_temp.click_of(22))) \g /dev/null
select is((select j ->> 'payable' from pg_temp.call(pg_temp.affiliate(900012), 'wallet_list') j), '0.00', 'what was payable was taken back');
select is((select j -> 'orders' -> 0 ->> 'taken' from affiliate.negative_json(900012, 900001, true, 'NPR') j), '9.00', 'and by which orders can be told');

select is((select sum((l ->> 'amount')::numeric) from pg_temp.call(pg_temp.affiliate(), 'affiliate_statement_line_list', jsonb_build_object('month', to_char(now() at time zone 'UTC', 'YYYY-MM'), 'all', 'true')) l
            where l ->> 'account' = 'pending' and l ->> 'currency' = 'NPR'),
          29.00, 'the lines of a statement come to the balance, where there was nothing before');
select is((select j #>> '{accounts,payable,closing}' from pg_temp.call(pg_temp.affiliate(), 'affiliate_statement_list', jsonb_build_object('month', to_char(now() at time zone 'UTC', 'YYYY-MM'))) j
            where j ->> 'currency' = 'NPR'), '60.00', 'which it closes with');
select is((select j #>> '{accounts,owed,closing}' from pg_temp.call(pg_temp.merchant(), 'statement_list', jsonb_build_object('month', to_char(now() at time zone 'UTC', 'YYYY-MM'))) j),
          (select j ->> 'owed' from pg_temp.call(pg_temp.merchant(), 'owed_list') j), 'a merchant''s closes with what is owed');
select is((select j #>> '{accounts,payable,closing}' from pg_temp.call(pg_temp.affiliate(), 'affiliate_statement_list', jsonb_build_object('month', to_char(now() - interval '40 days', 'YYYY-MM'))) j
            where j ->> 'currency' = 'NPR'), '0.00', 'a month before all of it opens and closes with nothing');
select is(pg_temp.refusal(pg_temp.affiliate(), 'affiliate_statement_list', '{"month": "2026-13"}'), '22023 month: must be a month, like 2026-01', 'no such month');

select * from finish();
rollback;
