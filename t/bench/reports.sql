-- What reports are measured on: 90 days of clicks of 10 000 links, few of which have most of the clicks, 20 sub-ids, and an order
-- for every 50 clicks. Merchant 1 has half of it. Clicks are written into their partitions, counted, and moved into spans day by
-- day, as the daemon does.
--
--   psql -Xq -v clicks=20000000 -f t/bench/reports.sql

\set ON_ERROR_STOP on
set synchronous_commit = off;
set work_mem = '256MB';

insert into affiliate.merchant (merchant_id, name, hosts)
select n, 'Merchant ' || n, '{shop.example}' from generate_series(1, 100) n;
insert into affiliate.affiliate (affiliate_id, name)
select n, 'Affiliate ' || n from generate_series(1, 2000) n;
insert into affiliate.campaign (merchant_id, campaign_id, name, currency)
select n / 10 + 1, n + 1, 'Campaign ' || n, 'NPR' from generate_series(0, 999) n;

create table public.bench_link as
select n as link_id, m as merchant_id, (m - 1) * 10 + n % 3 + 1 as campaign_id, n % 2000 + 1 as affiliate_id
  from generate_series(1, 10000) n,
       lateral (select case when n % 2 = 0 then 1 else 2 + n % 99 end as m) x;
alter table public.bench_link add primary key (link_id);
insert into affiliate.link (merchant_id, link_id, campaign_id, affiliate_id, livemode, code, url)
select merchant_id, link_id, campaign_id, affiliate_id, true, 'bench' || link_id, 'https://shop.example/'
  from public.bench_link;

select set_config('bench.clicks', :'clicks', false) \g /dev/null

do $$
declare
    clicks integer := current_setting('bench.clicks')::integer / 90;
    today date := affiliate.utc_day(now());
    d date;
begin
    perform setseed(0.5);
    for d in select today - n from generate_series(89, 0, -1) n loop
        perform affiliate.create_click_partition(d);
        -- Ids as they are made: milliseconds of the day, then what is random.
        execute format($sql$
            insert into affiliate.%I (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons, visitor, sub_ids)
            select (lpad(to_hex(%s::bigint * 86400000 + (n - 1) * 86400000::bigint / %s), 12, '0') || '70008'
                        || lpad(to_hex(n * 2654435761::bigint %% 1152921504606846976), 15, '0'))::uuid,
                   l.merchant_id, l.link_id, l.campaign_id, l.affiliate_id, true, (array[0,0,0,0,0,0,0,0,1,1,2,3,4,5,5,5])[n %% 16 + 1], 0, n,
                   case when n %% 10 < 3 then array['s' || n * 7919::bigint %% 20] end
              from (select n, 1 + floor(power(random(), 2.5) * 10000)::integer as link_id from generate_series(1, %s) n) c
              join public.bench_link l using (link_id)$sql$,
            'click_' || to_char(d, 'YYYYMMDD'), d - date '1970-01-01', clicks, clicks);
        perform affiliate.recount_clicks(d, d);
        commit;
        while affiliate.fold_rollups(100000) > 0 loop
            commit;
        end loop;
    end loop;
end
$$;

insert into affiliate.order_fact
      (merchant_id, livemode, has_report, other_click, refund_currency, verdict, customer, revision, order_no, reported_at, clicked_at,
       approved_at, click_id, link_id, campaign_id, affiliate_id, amount_minor, refunded_minor, posted_affiliate_id,
       posted_commission_minor, posted_fee_minor, posted_payable, currency, posted_currency, outcome, order_id, sub_id)
select l.merchant_id, true, true, false, false, 0, 0, 1, n, now() - random() * interval '89 days', now() - interval '90 days',
       case when n % 3 > 0 then now() end, gen_random_uuid(), l.link_id, l.campaign_id, l.affiliate_id, 100000 + n % 1000, 0,
       l.affiliate_id, 10000, 2000, n % 3 = 2, 'NPR', 'NPR', case when n % 20 = 0 then 'rejected' else 'accepted' end, 'o' || n,
       case when n % 10 < 3 then 's' || n % 20 end
  from (select n, 1 + floor(power(random(), 2.5) * 10000)::integer as link_id from generate_series(1, :clicks / 50) n) c
  join public.bench_link l using (link_id);
select affiliate.recount_orders() \g /dev/null
do $$
begin
    while affiliate.fold_rollups(20000) > 0 loop
        commit;
    end loop;
end
$$;
vacuum (full, analyze) affiliate.order_day, affiliate.order_link_day, affiliate.click_day, affiliate.click_link_day;
vacuum analyze;
