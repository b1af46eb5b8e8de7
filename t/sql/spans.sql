-- Spans: counts move once, reports are the same before and after, and what comes late is counted.

\ir support/fixture.psql

select plan(19);

-- As the API calls an operation: behind the fence.
create function pg_temp.report(p_actor affiliate.actor, p_operation text, p_request jsonb)
returns jsonb
language plpgsql
as $$
declare
    found jsonb;
begin
    perform affiliate.raise_fence(p_actor);
    execute format('select jsonb_agg(r order by r ->> ''_cursor'') from affiliate.%I($1, $2) r', 'api_' || p_operation)
       into found using p_actor, p_request || '{"limit": "200"}';
    return found;
end
$$;

-- Every report of a merchant, an affiliate and the network, over some periods.
create function pg_temp.reports()
returns setof text
language sql
as $$
    select concat_ws(' ', o.operation, b.by, p.days, f.filter,
                     pg_temp.report(o.actor, o.operation, f.filter || jsonb_build_object(
                         'by', b.by, 'from', affiliate.utc_day(now()) - p.days, 'to', affiliate.utc_day(now()) - p.until)))
      from (values ('report_list', row('merchant', 1, 1, 900001, 'read_only', null, null, true, 'r')::affiliate.actor),
                   ('affiliate_report_list', row('affiliate', 1, 1, null, null, 900011, null, true, 'r')::affiliate.actor),
                   ('admin_report_list', row('admin', 1, 1, null, null, null, null, true, 'r')::affiliate.actor)) o (operation, actor)
     cross join (values ('total'), ('day'), ('campaign'), ('affiliate'), ('link'), ('sub_id'), ('product')) b (by)
     cross join (values (90, 0), (77, 3), (20, 20), (5, 1), (1, 0)) p (days, until)
     cross join (values ('{}'::jsonb), ('{"campaign": "900031"}'), ('{"link": "900041"}')) f (filter)
     where (o.operation <> 'affiliate_report_list' or b.by <> 'affiliate')
       and (b.by <> 'product' or f.filter = '{}')
       and (b.by <> 'sub_id' or o.operation = 'affiliate_report_list' or f.filter ? 'link')
     order by 1
$$;

create function pg_temp.clicks(p_days integer, p_count integer, p_link bigint, p_sub text default null)
returns void
language plpgsql
as $$
begin
    if not exists (select from affiliate.click_partitions() c where c.day = affiliate.utc_day(now()) - p_days) then
        perform affiliate.create_click_partition(affiliate.utc_day(now()) - p_days);
    end if;
    insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons, sub_ids)
    select pg_temp.click_id(p_days * 1000 + n, date_trunc('day', now(), 'UTC') - p_days * interval '1 day'), l.merchant_id, l.link_id,
           l.campaign_id, l.affiliate_id, true, n % 6, 0, case when p_sub is not null then array[p_sub] end
      from generate_series(1, p_count) n
      join affiliate.link l on l.link_id = p_link;
end
$$;

create function pg_temp.fold()
returns bigint
language plpgsql
as $$
declare
    moved bigint := 0;
    rows bigint;
begin
    loop
        rows := affiliate.fold_rollups(3);
        exit when rows = 0;
        moved := moved + rows;
    end loop;
    return moved;
end
$$;

-- --- a period as spans ---

select results_eq(
    $$ select width, first_day from affiliate.spans_of('1970-01-02', '1970-03-10', '2026-01-01') order by first_day $$,
    $$ values (1::smallint, date '1970-01-02'), (1::smallint, '1970-01-03'), (1::smallint, '1970-01-04'),
              (4::smallint, '1970-01-05'), (4::smallint, '1970-01-09'), (4::smallint, '1970-01-13'), (16::smallint, '1970-01-17'),
              (16::smallint, '1970-02-02'), (16::smallint, '1970-02-18'), (4::smallint, '1970-03-06'), (1::smallint, '1970-03-10') $$,
    'a period, in the widest spans that are in it');
select is_empty($$
    select n, m
      from generate_series(0, 130, 7) n
     cross join generate_series(0, 200, 3) m
     where array(select generate_series(date '2026-01-01' + n, date '2026-01-01' + n + m, '1 day')::date)
           <> array(select d::date from affiliate.spans_of(date '2026-01-01' + n, date '2026-01-01' + n + m, '2027-01-01') s
                   cross join lateral generate_series(s.first_day, s.first_day + s.width - 1, '1 day') d order by 1) $$,
    'each of its days once, and no other');
select is((select max(s.first_day + s.width) from affiliate.spans_of('2026-01-05', '2026-03-01', '2026-03-01') s) > date '2026-03-01', true,
    'what ends today may reach into days that are not over');
select cmp_ok((select count(*) from affiliate.spans_of(affiliate.utc_day(now()) - 89, affiliate.utc_day(now()), affiliate.utc_day(now()))),
    '<', 14::bigint, 'ninety days are a dozen spans');

-- --- moving ---

select pg_temp.clicks(80, 30, 900041), pg_temp.clicks(79, 13, 900042, 'news'), pg_temp.clicks(20, 25, 900041, 'mail'),
       pg_temp.clicks(7, 12, 900042), pg_temp.clicks(4, 18, 900041), pg_temp.clicks(1, 6, 900041), pg_temp.clicks(0, 12, 900042) \g /dev/null
select pg_temp.stage(jsonb_build_object('order', 'old', 'key', 'k1', 'status', 'approved', 'amount', 100000,
           'click', pg_temp.click_id(20001, date_trunc('day', now(), 'UTC') - interval '20 days'))),
       pg_temp.stage(jsonb_build_object('order', 'new', 'key', 'k2', 'status', 'approved', 'amount', 50000,
           'click', pg_temp.click_id(4001, date_trunc('day', now(), 'UTC') - interval '4 days'))) \g /dev/null
select pg_temp.apply() \g /dev/null
-- As if it had been reported then: what it is counted by moves with it.
update affiliate.conversion set effective_at = effective_at - interval '10 days' where order_id = 'old';
update affiliate.order_fact set reported_at = reported_at - interval '10 days', approved_at = approved_at - interval '10 days' where order_id = 'old';
update affiliate.hold set day = day - 10 where order_no = (select order_no from affiliate.order_fact where order_id = 'old');
select affiliate.recount_orders() \g /dev/null
delete from affiliate.order_day where (pending, approved, payable, cancelled, refunded, review, rejected) = (0, 0, 0, 0, 0, 0, 0);
select is_empty($$ select * from affiliate.audit_rollups(now() - interval '90 days') $$, 'all is counted');

create temp table before as select r, row_number() over () as n from pg_temp.reports() r;
select cmp_ok((select count(*) from before where r like '%clicks%'), '>', 100::bigint, 'reports say something');
select cmp_ok(pg_temp.fold(), '>=', 5::bigint, 'counts of days that are over move, a few at a time');
select is((select min(day) from affiliate.click_day), affiliate.utc_day(now()) - 1, 'yesterday''s and today''s stay');
select is((select count(distinct width) from affiliate.click_link_span), 4::bigint, 'into spans of four widths');
select is_empty($$ select * from affiliate.audit_rollups(now() - interval '90 days') $$, 'and all is still counted');
select results_eq('select r from pg_temp.reports() r', 'select r from before order by n', 'every report is what it was');
select is(pg_temp.fold(), 0::bigint, 'what was moved is not moved again');

-- --- late ---

select pg_temp.clicks(21, 6, 900041) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'old', 'key', 'k3', 'status', 'cancelled', 'at', now() - interval '1 hour',
           'click', pg_temp.click_id(20001, date_trunc('day', now(), 'UTC') - interval '20 days'))) \g /dev/null
select is((select string_agg(concat_ws(' ', day, approved, cancelled), ', ') from affiliate.order_day where day < affiliate.utc_day(now()) - 1),
    concat_ws(' ', affiliate.utc_day(now()) - 10, -1, 1), 'an order of a day that was moved is counted below zero there');
select is_empty($$ select * from affiliate.audit_rollups(now() - interval '90 days') $$, 'which with its span is right');
delete from before;
insert into before select r, row_number() over () from pg_temp.reports() r;
select cmp_ok(pg_temp.fold(), '>', 0::bigint, 'late counts move, too');
select results_eq('select r from pg_temp.reports() r', 'select r from before order by n', 'and every report stays what it was');
select is_empty($$ select * from affiliate.audit_rollups(now() - interval '90 days') $$, 'all is counted, once');
select is(affiliate.recount_clicks(affiliate.utc_day(now()) - 90, affiliate.utc_day(now())),
    (select count(*) from affiliate.click), 'a recount finds all');
select is((select count(*) from affiliate.click_link_day where day < affiliate.utc_day(now()) - 1)
    + (select count(*) from affiliate.click_day where day < affiliate.utc_day(now()) - 1), 0::bigint, 'and has nothing to correct');

select * from finish();
rollback;
