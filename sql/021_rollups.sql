-- Rollups: what reports add up, kept in the transactions of the rows themselves.
--
-- A click is counted when it is written, an order whenever it is decided or released: by the difference, so that at every
-- commit each rollup is the recount of its rows. audit_rollups() recounts.
--
-- Days are UTC: a click's is that inside its id, an order's that of its earliest report.
--
-- Sub-ids come with visitors, who may send what they like. Of each link and day the first so many (sub_id_limit()) are rows of
-- their own, and all later ones together are one row, named by the empty text, which no sub-id can be. What a sub-id
-- got with its first click it keeps for the day: rows are never taken away, so a sub-id is counted wholly by
-- itself or wholly among the others, and a recount needs no memory of the order in which they came.
--
-- Whoever counts takes the rows of a table in the order of its key, and the tables in one order, behind all other locks:
-- click_link_day, click_sub_day, click_day; orders, holds, accounts, order_link_day, order_day, order_sku_day. The row of
-- click_link_day is the lock of its sub-ids, too.

-- ---------------------------------------------------------------------------------------------------------------
-- Clicks
-- ---------------------------------------------------------------------------------------------------------------

-- Of each rollup's indexes its key is the last: while a table seems empty, the planner takes the newest of those that would do.

create table affiliate.click_day (
    merchant_id     bigint not null,
    livemode        boolean not null,
    day             date not null,
    campaign_id     bigint not null,
    affiliate_id    bigint not null,
    valid           bigint not null,
    duplicate       bigint not null,
    suspect         bigint not null,
    prefetch        bigint not null,
    preview         bigint not null,
    bot             bigint not null
) with (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

create index click_day_affiliate on affiliate.click_day (affiliate_id, livemode, day);
alter table affiliate.click_day
    add primary key (merchant_id, livemode, day, campaign_id, affiliate_id);

comment on table affiliate.click_day is 'Clicks of an affiliate for a campaign on a UTC day, by verdict';

create table affiliate.click_link_day (
    merchant_id     bigint not null,
    livemode        boolean not null,
    day             date not null,
    link_id         bigint not null,
    campaign_id     bigint not null,
    affiliate_id    bigint not null,
    valid           bigint not null,
    duplicate       bigint not null,
    suspect         bigint not null,
    prefetch        bigint not null,
    preview         bigint not null,
    bot             bigint not null
) with (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

create index click_link_day_affiliate on affiliate.click_link_day (affiliate_id, livemode, day);
alter table affiliate.click_link_day
    add primary key (merchant_id, livemode, day, link_id, campaign_id, affiliate_id);

comment on table affiliate.click_link_day is 'Clicks of a link on a UTC day, by verdict';

create table affiliate.click_sub_day (
    merchant_id     bigint not null,
    livemode        boolean not null,
    day             date not null,
    link_id         bigint not null,
    campaign_id     bigint not null,
    affiliate_id    bigint not null,
    sub_id          text collate "C" not null,
    valid           bigint not null,
    duplicate       bigint not null,
    suspect         bigint not null,
    prefetch        bigint not null,
    preview         bigint not null,
    bot             bigint not null
) with (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

create index click_sub_day_affiliate on affiliate.click_sub_day (affiliate_id, livemode, day);
alter table affiliate.click_sub_day
    add primary key (merchant_id, livemode, day, link_id, campaign_id, affiliate_id, sub_id);

comment on table affiliate.click_sub_day is 'Clicks of a link on a UTC day that carried a first sub-id, by that and by verdict';
comment on column affiliate.click_sub_day.sub_id is 'One of the first of its link and day; empty: all that came later';

-- How many sub-ids of a link and day are counted by themselves.
create function affiliate.sub_id_limit()
returns bigint
language sql immutable parallel safe
return 50;

-- The UTC day of a time.
create function affiliate.utc_day(p_at timestamptz)
returns date
language sql immutable parallel safe
return (p_at at time zone 'UTC')::date;

-- Counting clicks, for whoever writes them, in their transaction and as late in it as can be: rows are locked from here on. By
-- links, then by sub-ids, then by days. Each place of the arrays is a number of clicks that have all else in common, and what they
-- have in common is at no other place; days are counted from 1970-01-01.
create function affiliate.count_link_clicks(
    p_day integer[], p_merchant bigint[], p_livemode boolean[], p_campaign bigint[], p_affiliate bigint[], p_link bigint[],
    p_valid bigint[], p_duplicate bigint[], p_suspect bigint[], p_prefetch bigint[], p_preview bigint[], p_bot bigint[])
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set plan_cache_mode = force_generic_plan
set work_mem = '64MB'
set jit = off
as $$
begin
    insert into affiliate.click_link_day as t
          (merchant_id, livemode, day, link_id, campaign_id, affiliate_id, valid, duplicate, suspect, prefetch, preview, bot)
    select e.merchant_id, e.livemode, date '1970-01-01' + e.day, e.link_id, e.campaign_id, e.affiliate_id,
           e.valid, e.duplicate, e.suspect, e.prefetch, e.preview, e.bot
      from unnest(p_day, p_merchant, p_livemode, p_campaign, p_affiliate, p_link, p_valid, p_duplicate, p_suspect, p_prefetch,
                  p_preview, p_bot)
           as e(day, merchant_id, livemode, campaign_id, affiliate_id, link_id, valid, duplicate, suspect, prefetch, preview, bot)
     order by e.merchant_id, e.livemode, e.day, e.link_id, e.campaign_id, e.affiliate_id
        on conflict (merchant_id, livemode, day, link_id, campaign_id, affiliate_id) do update
       set valid = t.valid + excluded.valid,
           duplicate = t.duplicate + excluded.duplicate,
           suspect = t.suspect + excluded.suspect,
           prefetch = t.prefetch + excluded.prefetch,
           preview = t.preview + excluded.preview,
           bot = t.bot + excluded.bot;
end
$$;

create function affiliate.count_day_clicks(
    p_day integer[], p_merchant bigint[], p_livemode boolean[], p_campaign bigint[], p_affiliate bigint[],
    p_valid bigint[], p_duplicate bigint[], p_suspect bigint[], p_prefetch bigint[], p_preview bigint[], p_bot bigint[])
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set plan_cache_mode = force_generic_plan
set work_mem = '64MB'
set jit = off
as $$
begin
    insert into affiliate.click_day as t
          (merchant_id, livemode, day, campaign_id, affiliate_id, valid, duplicate, suspect, prefetch, preview, bot)
    select e.merchant_id, e.livemode, date '1970-01-01' + e.day, e.campaign_id, e.affiliate_id,
           e.valid, e.duplicate, e.suspect, e.prefetch, e.preview, e.bot
      from unnest(p_day, p_merchant, p_livemode, p_campaign, p_affiliate, p_valid, p_duplicate, p_suspect, p_prefetch,
                  p_preview, p_bot)
           as e(day, merchant_id, livemode, campaign_id, affiliate_id, valid, duplicate, suspect, prefetch, preview, bot)
     order by e.merchant_id, e.livemode, e.day, e.campaign_id, e.affiliate_id
        on conflict (merchant_id, livemode, day, campaign_id, affiliate_id) do update
       set valid = t.valid + excluded.valid,
           duplicate = t.duplicate + excluded.duplicate,
           suspect = t.suspect + excluded.suspect,
           prefetch = t.prefetch + excluded.prefetch,
           preview = t.preview + excluded.preview,
           bot = t.bot + excluded.bot;
end
$$;

-- Of clicks that have a sub-id. The links' rows are locked, so what is read here of their sub-ids is final: a sub-id that is new
-- gets a row of its own while there is room, in the order of their texts. Here the same sub-id may be at several places: what
-- was no UTF-8 may have become the same text.
create function affiliate.count_sub_clicks(
    p_day integer[], p_merchant bigint[], p_livemode boolean[], p_campaign bigint[], p_affiliate bigint[], p_link bigint[],
    p_sub_id text[], p_valid bigint[], p_duplicate bigint[], p_suspect bigint[], p_prefetch bigint[], p_preview bigint[],
    p_bot bigint[])
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_nestloop = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set work_mem = '64MB'
set jit = off
as $$
begin
    with entry as (
        select e.merchant_id, e.livemode, date '1970-01-01' + e.day as day, e.link_id, e.campaign_id, e.affiliate_id,
               e.sub_id collate "C" as sub_id,
               sum(e.valid) as valid, sum(e.duplicate) as duplicate, sum(e.suspect) as suspect,
               sum(e.prefetch) as prefetch, sum(e.preview) as preview, sum(e.bot) as bot
          from unnest(p_day, p_merchant, p_livemode, p_campaign, p_affiliate, p_link, p_sub_id, p_valid, p_duplicate, p_suspect,
                      p_prefetch, p_preview, p_bot)
               as e(day, merchant_id, livemode, campaign_id, affiliate_id, link_id, sub_id, valid, duplicate, suspect,
                    prefetch, preview, bot)
         group by 1, 2, 3, 4, 5, 6, 7
    ),
    known as materialized (
        select e.*,
               coalesce(s.there, false) as there,
               count(*) filter (where s.there is null) over (
                   partition by e.merchant_id, e.livemode, e.day, e.link_id, e.campaign_id, e.affiliate_id
                   order by e.sub_id) as place
          from entry e
          left join lateral (
                   select true as there
                     from affiliate.click_sub_day s
                    where s.merchant_id = e.merchant_id and s.livemode = e.livemode and s.day = e.day
                      and s.link_id = e.link_id and s.campaign_id = e.campaign_id and s.affiliate_id = e.affiliate_id
                      and s.sub_id = e.sub_id
                   offset 0
               ) s on true
    ),
    room as materialized (
        select k.merchant_id, k.livemode, k.day, k.link_id, k.campaign_id, k.affiliate_id,
               affiliate.sub_id_limit() - s.taken as room
          from (select distinct merchant_id, livemode, day, link_id, campaign_id, affiliate_id
                  from known
                 where not there) k
         cross join lateral (
                   select count(*) as taken
                     from affiliate.click_sub_day s
                    where s.merchant_id = k.merchant_id and s.livemode = k.livemode and s.day = k.day
                      and s.link_id = k.link_id and s.campaign_id = k.campaign_id and s.affiliate_id = k.affiliate_id
                      and s.sub_id <> ''
                   offset 0
               ) s
    ),
    named as (
        select k.merchant_id, k.livemode, k.day, k.link_id, k.campaign_id, k.affiliate_id, k.sub_id,
               k.valid, k.duplicate, k.suspect, k.prefetch, k.preview, k.bot
          from known k
         where k.there
        union all
        select k.merchant_id, k.livemode, k.day, k.link_id, k.campaign_id, k.affiliate_id,
               case when k.place <= r.room then k.sub_id else '' end,
               k.valid, k.duplicate, k.suspect, k.prefetch, k.preview, k.bot
          from known k
          join room r using (merchant_id, livemode, day, link_id, campaign_id, affiliate_id)
         where not k.there
    )
    insert into affiliate.click_sub_day as t
          (merchant_id, livemode, day, link_id, campaign_id, affiliate_id, sub_id,
           valid, duplicate, suspect, prefetch, preview, bot)
    select n.merchant_id, n.livemode, n.day, n.link_id, n.campaign_id, n.affiliate_id, n.sub_id,
           sum(n.valid), sum(n.duplicate), sum(n.suspect), sum(n.prefetch), sum(n.preview), sum(n.bot)
      from named n
     group by 1, 2, 3, 4, 5, 6, 7
     order by 1, 2, 3, 4, 5, 6, 7
        on conflict (merchant_id, livemode, day, link_id, campaign_id, affiliate_id, sub_id) do update
       set valid = t.valid + excluded.valid,
           duplicate = t.duplicate + excluded.duplicate,
           suspect = t.suspect + excluded.suspect,
           prefetch = t.prefetch + excluded.prefetch,
           preview = t.preview + excluded.preview,
           bot = t.bot + excluded.bot;
end
$$;

-- Clicks that are written by a statement on the table: those of a replayed dead letter, of tests. The daemon copies straight
-- into the partitions, where no trigger runs, and counts by itself.
create function affiliate.count_added_clicks()
returns trigger
language plpgsql
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.count_link_clicks(
                array_agg(c.day), array_agg(c.merchant_id), array_agg(c.livemode), array_agg(c.campaign_id), array_agg(c.affiliate_id), array_agg(c.link_id),
                array_agg(c.valid), array_agg(c.duplicate), array_agg(c.suspect), array_agg(c.prefetch), array_agg(c.preview),
                array_agg(c.bot))
       from (select affiliate.utc_day(affiliate.click_time(a.id)) - date '1970-01-01' as day, a.merchant_id, a.livemode, a.campaign_id, a.affiliate_id, a.link_id,
                    count(*) filter (where a.verdict = 0) as valid,
                    count(*) filter (where a.verdict = 1) as duplicate,
                    count(*) filter (where a.verdict = 2) as suspect,
                    count(*) filter (where a.verdict = 3) as prefetch,
                    count(*) filter (where a.verdict = 4) as preview,
                    count(*) filter (where a.verdict = 5) as bot
               from added a
              group by 1, 2, 3, 4, 5, 6) c
     having count(*) > 0;
    perform affiliate.count_sub_clicks(
                array_agg(c.day), array_agg(c.merchant_id), array_agg(c.livemode), array_agg(c.campaign_id), array_agg(c.affiliate_id), array_agg(c.link_id), array_agg(c.sub_id),
                array_agg(c.valid), array_agg(c.duplicate), array_agg(c.suspect), array_agg(c.prefetch), array_agg(c.preview),
                array_agg(c.bot))
       from (select affiliate.utc_day(affiliate.click_time(a.id)) - date '1970-01-01' as day, a.merchant_id, a.livemode, a.campaign_id, a.affiliate_id, a.link_id, a.sub_ids[1] as sub_id,
                    count(*) filter (where a.verdict = 0) as valid,
                    count(*) filter (where a.verdict = 1) as duplicate,
                    count(*) filter (where a.verdict = 2) as suspect,
                    count(*) filter (where a.verdict = 3) as prefetch,
                    count(*) filter (where a.verdict = 4) as preview,
                    count(*) filter (where a.verdict = 5) as bot
               from added a
              where a.sub_ids[1] <> ''
              group by 1, 2, 3, 4, 5, 6, 7) c
     having count(*) > 0;
    perform affiliate.count_day_clicks(
                array_agg(c.day), array_agg(c.merchant_id), array_agg(c.livemode), array_agg(c.campaign_id), array_agg(c.affiliate_id),
                array_agg(c.valid), array_agg(c.duplicate), array_agg(c.suspect), array_agg(c.prefetch), array_agg(c.preview),
                array_agg(c.bot))
       from (select affiliate.utc_day(affiliate.click_time(a.id)) - date '1970-01-01' as day, a.merchant_id, a.livemode, a.campaign_id, a.affiliate_id,
                    count(*) filter (where a.verdict = 0) as valid,
                    count(*) filter (where a.verdict = 1) as duplicate,
                    count(*) filter (where a.verdict = 2) as suspect,
                    count(*) filter (where a.verdict = 3) as prefetch,
                    count(*) filter (where a.verdict = 4) as preview,
                    count(*) filter (where a.verdict = 5) as bot
               from added a
              group by 1, 2, 3, 4, 5) c
     having count(*) > 0;
    return null;
end
$$;

create trigger counted
after insert on affiliate.click
referencing new table as added
for each statement execute function affiliate.count_added_clicks();

-- Counts the clicks of days anew, from the first to the last, from what is there, for an owner who has taken clicks away by
-- hand; by how much the rollups differ, is added to them. Days that retention has dropped are not to be asked for: nothing of
-- them is left to count. Of a link and day those sub-ids come first whose first click was written first.
create function affiliate.recount_clicks(p_first date, p_last date)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set work_mem = '256MB'
set jit = off
as $$
declare
    leaf record;
    verdicts constant text := (select string_agg(format('count(*) filter (where c.verdict = %s) as %I', n - 1, v), ', ' order by n)
                                 from unnest('{valid,duplicate,suspect,prefetch,preview,bot}'::text[]) with ordinality u (v, n));
    counted bigint;
    total bigint := 0;
begin
    -- Whoever has counted and not committed is waited for; whoever has only written counts behind us.
    lock table affiliate.click_link_day, affiliate.click_sub_day, affiliate.click_day in share row exclusive mode;
    delete from affiliate.click_sub_day where day between p_first and p_last;

    -- A day at a time: the memory that it takes is a day's.
    for leaf in
        select p.day, p.relation
          from affiliate.click_partitions() p
         where p.day between p_first and p_last
         order by p.day
    loop
        perform affiliate.correct_rollup('click_link_day',
            format('select c.merchant_id, c.livemode, %L::date as day, c.link_id, c.campaign_id, c.affiliate_id, %s from %s c group by 1, 2, 3, 4, 5, 6',
                   leaf.day, verdicts, leaf.relation),
            leaf.day, leaf.day);
        perform affiliate.correct_rollup('click_day',
            format('select merchant_id, livemode, day, campaign_id, affiliate_id, valid, duplicate, suspect, prefetch, preview, bot '
                   'from affiliate.click_link_days where day = %L', leaf.day),
            leaf.day, leaf.day);

        execute format($sql$
            insert into affiliate.click_sub_day
            select x.merchant_id, x.livemode, %1$L::date, x.link_id, x.campaign_id, x.affiliate_id,
                   case when x.place <= affiliate.sub_id_limit() then x.sub_id else '' end,
                   sum(x.valid), sum(x.duplicate), sum(x.suspect), sum(x.prefetch), sum(x.preview), sum(x.bot)
              from (select c.merchant_id, c.livemode, c.link_id, c.campaign_id, c.affiliate_id, c.sub_ids[1] as sub_id,
                           row_number() over (
                               partition by c.merchant_id, c.livemode, c.link_id, c.campaign_id, c.affiliate_id
                               order by min(c.ctid)) as place,
                           %2$s
                      from %3$s c
                     where c.sub_ids[1] <> ''
                     group by c.merchant_id, c.livemode, c.link_id, c.campaign_id, c.affiliate_id, c.sub_ids[1]) x
             group by 1, 2, 3, 4, 5, 6, 7$sql$,
            leaf.day, verdicts, leaf.relation);

        select coalesce(sum(l.valid + l.duplicate + l.suspect + l.prefetch + l.preview + l.bot), 0) into counted
          from affiliate.click_days l
         where l.day = leaf.day;
        total := total + counted;
    end loop;

    return total;
end
$$;

comment on function affiliate.recount_clicks is 'Counts the clicks of some days anew; returns how many there are';

-- ---------------------------------------------------------------------------------------------------------------
-- Orders
-- ---------------------------------------------------------------------------------------------------------------

-- By state, as order_state() has it. What they are worth is in the currency of the row: of orders without an amount or of
-- none that is paid, that may be null. Commission and fee are as they stand, by where they stand: pending or payable.

create table affiliate.order_day (
    merchant_id                 bigint not null,
    livemode                    boolean not null,
    day                         date not null,
    campaign_id                 bigint,
    affiliate_id                bigint,
    currency                    text collate "C",
    pending                     bigint not null,
    approved                    bigint not null,
    payable                     bigint not null,
    cancelled                   bigint not null,
    refunded                    bigint not null,
    review                      bigint not null,
    rejected                    bigint not null,
    amount_minor                numeric(38, 0) not null,
    kept_minor                  numeric(38, 0) not null,
    commission_pending_minor    numeric(38, 0) not null,
    commission_payable_minor    numeric(38, 0) not null,
    commission_reversed_minor   numeric(38, 0) not null,
    fee_pending_minor           numeric(38, 0) not null,
    fee_payable_minor           numeric(38, 0) not null,
    unique nulls not distinct (merchant_id, livemode, day, campaign_id, affiliate_id, currency)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

create index order_day_affiliate on affiliate.order_day (affiliate_id, livemode, day);

comment on table affiliate.order_day is 'Orders of an affiliate for a campaign, by the UTC day of their earliest report';
comment on column affiliate.order_day.campaign_id is 'Null: its click is none that leads anywhere';
comment on column affiliate.order_day.amount_minor is 'Of all that named one, in whatever state';
comment on column affiliate.order_day.kept_minor is 'What buyers kept of those that are not rejected, cancelled or returned';
comment on column affiliate.order_day.commission_reversed_minor is 'What cancellations, returns and refunds took of what those would have earned';

create table affiliate.order_link_day (
    merchant_id                 bigint not null,
    livemode                    boolean not null,
    day                         date not null,
    link_id                     bigint,
    campaign_id                 bigint,
    affiliate_id                bigint,
    sub_id                      text collate "C",
    currency                    text collate "C",
    pending                     bigint not null,
    approved                    bigint not null,
    payable                     bigint not null,
    cancelled                   bigint not null,
    refunded                    bigint not null,
    review                      bigint not null,
    rejected                    bigint not null,
    amount_minor                numeric(38, 0) not null,
    kept_minor                  numeric(38, 0) not null,
    commission_pending_minor    numeric(38, 0) not null,
    commission_payable_minor    numeric(38, 0) not null,
    commission_reversed_minor   numeric(38, 0) not null,
    fee_pending_minor           numeric(38, 0) not null,
    fee_payable_minor           numeric(38, 0) not null,
    unique nulls not distinct (merchant_id, livemode, day, link_id, campaign_id, affiliate_id, sub_id, currency)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

create index order_link_day_affiliate on affiliate.order_link_day (affiliate_id, livemode, day);

comment on table affiliate.order_link_day is 'Orders of a link and a first sub-id, by the UTC day of their earliest report';
comment on column affiliate.order_link_day.sub_id is 'That its click is counted by in click_sub_day; null: none';

create table affiliate.order_sku_day (
    merchant_id         bigint not null,
    livemode            boolean not null,
    day                 date not null,
    sku                 text collate "C" not null,
    campaign_id         bigint,
    affiliate_id        bigint,
    currency            text collate "C",
    pending             bigint not null,
    approved            bigint not null,
    cancelled           bigint not null,
    refunded            bigint not null,
    review              bigint not null,
    rejected            bigint not null,
    pieces              numeric(38, 0) not null,
    amount_minor        numeric(38, 0) not null,
    unique nulls not distinct (merchant_id, livemode, day, sku, campaign_id, affiliate_id, currency)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

create index order_sku_day_affiliate on affiliate.order_sku_day (affiliate_id, livemode, day);

comment on table affiliate.order_sku_day is 'Orders that named a product, by the UTC day of their earliest report; an order is counted under each of its products';
comment on column affiliate.order_sku_day.approved is 'Payable or on hold: what is released stays what it is here';
comment on column affiliate.order_sku_day.amount_minor is 'Of the lines of that product, as reported';

-- What an order that is not rejected would earn if its buyer had kept all of it, less what it earns: what its cancellation,
-- return or refunds took. Nothing if it was never reported, only cancelled. An order that would be above the limit counts as one at it.
create function affiliate.reversed_minor(
    p_outcome text, p_has_report boolean, p_commission_minor bigint, p_amount_minor bigint,
    p_rate_basis_points integer, p_rate_flat_minor bigint, p_item_numerator numeric, p_item_denominator numeric)
returns bigint
language sql immutable parallel safe
return case
           when p_outcome = 'rejected' or not p_has_report then 0
           else greatest(
                    least(affiliate.commission_minor(
                              p_amount_minor, p_amount_minor, p_rate_basis_points, p_rate_flat_minor,
                              p_item_numerator, p_item_denominator, false),
                          affiliate.worth_limit()) - p_commission_minor, 0)
       end;

-- The name by which a click with this first sub-id is counted.
create function affiliate.counted_sub_id(
    p_merchant_id bigint, p_livemode boolean, p_day date, p_link_id bigint, p_campaign_id bigint, p_affiliate_id bigint,
    p_sub_id text)
returns text
language sql stable
return case
           when p_sub_id <> '' then
               coalesce((select s.sub_id
                           from affiliate.click_sub_day s
                          where s.merchant_id = p_merchant_id and s.livemode = p_livemode and s.day = p_day
                            and s.link_id = p_link_id and s.campaign_id = p_campaign_id and s.affiliate_id = p_affiliate_id
                            and s.sub_id = p_sub_id collate "C"), '')
       end;


-- Counts pg_temp.move: each of its orders, less what it was counted as before, which is in order_known.
create function affiliate.count_orders()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set work_mem = '64MB'
set jit = off
as $$
begin
    perform affiliate.work_clear('order_change');

    insert into pg_temp.order_change
    select c.merchant_id, c.livemode, c.day, c.link_id, c.campaign_id, c.affiliate_id, c.sub_id, c.currency,
           coalesce(sum(c.sign) filter (where c.state = 'pending'), 0),
           coalesce(sum(c.sign) filter (where c.state = 'approved'), 0),
           coalesce(sum(c.sign) filter (where c.state = 'payable'), 0),
           coalesce(sum(c.sign) filter (where c.state = 'cancelled'), 0),
           coalesce(sum(c.sign) filter (where c.state = 'refunded'), 0),
           coalesce(sum(c.sign) filter (where c.state = 'review'), 0),
           coalesce(sum(c.sign) filter (where c.state = 'rejected'), 0),
           coalesce(sum(c.sign * c.amount_minor), 0),
           coalesce(sum(c.sign * c.kept_minor), 0),
           coalesce(sum(c.sign * c.commission_minor) filter (where not c.payable), 0),
           coalesce(sum(c.sign * c.commission_minor) filter (where c.payable), 0),
           coalesce(sum(c.sign * c.reversed_minor), 0),
           coalesce(sum(c.sign * c.fee_minor) filter (where not c.payable), 0),
           coalesce(sum(c.sign * c.fee_minor) filter (where c.payable), 0)
      from (select m.merchant_id, m.livemode, m.day, m.link_id, m.campaign_id, m.affiliate_id, m.sub_id,
                   m.counted_currency as currency, m.state, m.payable, m.amount_minor, m.kept_minor,
                   m.held_commission_minor as commission_minor, m.held_fee_minor as fee_minor, m.reversed_minor, 1 as sign
              from pg_temp.move m
             where m.outcome is not null
            union all
            select k.merchant_id, k.livemode, k.day, k.link_id, k.campaign_id, k.posted_affiliate_id, k.sub_id,
                   k.currency, k.state, k.posted_payable, k.amount_minor, k.kept_minor,
                   k.posted_commission_minor, k.posted_fee_minor, k.reversed_minor, -1
              from pg_temp.order_known k
              join pg_temp.move m
                on m.merchant_id = k.merchant_id and m.order_no = k.order_no and m.outcome is not null
             where k.counted) c
     group by c.merchant_id, c.livemode, c.day, c.link_id, c.campaign_id, c.affiliate_id, c.sub_id, c.currency;

    perform affiliate.count_order_changes();
    if exists (select from pg_temp.move where item_sku is not null)
       or exists (select from pg_temp.order_known where item_sku is not null) then
        perform affiliate.count_skus();
    end if;
end
$$;

-- Adds pg_temp.order_change to the rollups.
create function affiliate.count_order_changes()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set work_mem = '64MB'
set jit = off
as $$
begin
    -- What an order only left to come back to is no change.
    delete from pg_temp.order_change
     where (pending, approved, payable, cancelled, refunded, review, rejected, amount_minor, kept_minor,
            commission_pending_minor, commission_payable_minor, commission_reversed_minor, fee_pending_minor, fee_payable_minor)
           = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);

    insert into affiliate.order_link_day as t
          (merchant_id, livemode, day, link_id, campaign_id, affiliate_id, sub_id, currency,
           pending, approved, payable, cancelled, refunded, review, rejected, amount_minor, kept_minor,
           commission_pending_minor, commission_payable_minor, commission_reversed_minor, fee_pending_minor, fee_payable_minor)
    select c.merchant_id, c.livemode, c.day, c.link_id, c.campaign_id, c.affiliate_id, c.sub_id, c.currency,
           c.pending, c.approved, c.payable, c.cancelled, c.refunded, c.review, c.rejected, c.amount_minor, c.kept_minor,
           c.commission_pending_minor, c.commission_payable_minor, c.commission_reversed_minor, c.fee_pending_minor,
           c.fee_payable_minor
      from pg_temp.order_change c
     order by 1, 2, 3, 4, 5, 6, 7, 8
        on conflict (merchant_id, livemode, day, link_id, campaign_id, affiliate_id, sub_id, currency) do update
       set pending = t.pending + excluded.pending,
           approved = t.approved + excluded.approved,
           payable = t.payable + excluded.payable,
           cancelled = t.cancelled + excluded.cancelled,
           refunded = t.refunded + excluded.refunded,
           review = t.review + excluded.review,
           rejected = t.rejected + excluded.rejected,
           amount_minor = t.amount_minor + excluded.amount_minor,
           kept_minor = t.kept_minor + excluded.kept_minor,
           commission_pending_minor = t.commission_pending_minor + excluded.commission_pending_minor,
           commission_payable_minor = t.commission_payable_minor + excluded.commission_payable_minor,
           commission_reversed_minor = t.commission_reversed_minor + excluded.commission_reversed_minor,
           fee_pending_minor = t.fee_pending_minor + excluded.fee_pending_minor,
           fee_payable_minor = t.fee_payable_minor + excluded.fee_payable_minor;

    insert into affiliate.order_day as t
          (merchant_id, livemode, day, campaign_id, affiliate_id, currency,
           pending, approved, payable, cancelled, refunded, review, rejected, amount_minor, kept_minor,
           commission_pending_minor, commission_payable_minor, commission_reversed_minor, fee_pending_minor, fee_payable_minor)
    select c.merchant_id, c.livemode, c.day, c.campaign_id, c.affiliate_id, c.currency,
           sum(c.pending), sum(c.approved), sum(c.payable), sum(c.cancelled), sum(c.refunded), sum(c.review), sum(c.rejected),
           sum(c.amount_minor), sum(c.kept_minor), sum(c.commission_pending_minor), sum(c.commission_payable_minor),
           sum(c.commission_reversed_minor), sum(c.fee_pending_minor), sum(c.fee_payable_minor)
      from pg_temp.order_change c
     group by 1, 2, 3, 4, 5, 6
     order by 1, 2, 3, 4, 5, 6
        on conflict (merchant_id, livemode, day, campaign_id, affiliate_id, currency) do update
       set pending = t.pending + excluded.pending,
           approved = t.approved + excluded.approved,
           payable = t.payable + excluded.payable,
           cancelled = t.cancelled + excluded.cancelled,
           refunded = t.refunded + excluded.refunded,
           review = t.review + excluded.review,
           rejected = t.rejected + excluded.rejected,
           amount_minor = t.amount_minor + excluded.amount_minor,
           kept_minor = t.kept_minor + excluded.kept_minor,
           commission_pending_minor = t.commission_pending_minor + excluded.commission_pending_minor,
           commission_payable_minor = t.commission_payable_minor + excluded.commission_payable_minor,
           commission_reversed_minor = t.commission_reversed_minor + excluded.commission_reversed_minor,
           fee_pending_minor = t.fee_pending_minor + excluded.fee_pending_minor,
           fee_payable_minor = t.fee_payable_minor + excluded.fee_payable_minor;
end
$$;

-- Counts the products of pg_temp.move, less what they were counted as before.
create function affiliate.count_skus()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set work_mem = '64MB'
set jit = off
as $$
begin
    insert into affiliate.order_sku_day as t
          (merchant_id, livemode, day, sku, campaign_id, affiliate_id, currency,
           pending, approved, cancelled, refunded, review, rejected, pieces, amount_minor)
    select c.merchant_id, c.livemode, c.day, l.sku, c.campaign_id, c.affiliate_id, c.currency,
           coalesce(sum(c.sign) filter (where c.state = 'pending'), 0),
           coalesce(sum(c.sign) filter (where c.state in ('approved', 'payable')), 0),
           coalesce(sum(c.sign) filter (where c.state = 'cancelled'), 0),
           coalesce(sum(c.sign) filter (where c.state = 'refunded'), 0),
           coalesce(sum(c.sign) filter (where c.state = 'review'), 0),
           coalesce(sum(c.sign) filter (where c.state = 'rejected'), 0),
           sum(c.sign * l.pieces),
           sum(c.sign * l.amount_minor)
      from (select m.merchant_id, m.livemode, m.day, m.campaign_id, m.affiliate_id, m.counted_currency as currency,
                   m.state, m.item_sku, m.item_quantity, m.item_amount, 1 as sign
              from pg_temp.move m
             where m.outcome is not null
               and m.item_sku is not null
            union all
            select k.merchant_id, k.livemode, k.day, k.campaign_id, k.posted_affiliate_id, k.currency,
                   k.state, k.item_sku, k.item_quantity, k.item_amount, -1
              from pg_temp.order_known k
              join pg_temp.move m
                on m.merchant_id = k.merchant_id and m.order_no = k.order_no and m.outcome is not null
             where k.counted
               and k.item_sku is not null) c
     cross join lateral affiliate.sku_lines(c.item_sku, c.item_quantity, c.item_amount) l
     group by 1, 2, 3, 4, 5, 6, 7
    having count(*) filter (where c.sign > 0) <> count(*) filter (where c.sign < 0)
        or sum(c.sign * l.pieces) <> 0
        or sum(c.sign * l.amount_minor) <> 0
        or count(distinct c.state) > 1
     order by 1, 2, 3, 4, 5, 6, 7
        on conflict (merchant_id, livemode, day, sku, campaign_id, affiliate_id, currency) do update
       set pending = t.pending + excluded.pending,
           approved = t.approved + excluded.approved,
           cancelled = t.cancelled + excluded.cancelled,
           refunded = t.refunded + excluded.refunded,
           review = t.review + excluded.review,
           rejected = t.rejected + excluded.rejected,
           pieces = t.pieces + excluded.pieces,
           amount_minor = t.amount_minor + excluded.amount_minor;
end
$$;

-- An order's products, each once, however many of its lines name it.
create function affiliate.sku_lines(p_sku text[], p_quantity integer[], p_amounts bigint[])
returns table (sku text, pieces numeric, amount_minor numeric)
language sql immutable parallel safe
begin atomic
    select i.sku, sum(i.quantity::bigint), sum(i.amount)
      from unnest(p_sku, p_quantity, p_amounts) as i(sku, quantity, amount)
     where i.sku <> ''
     group by i.sku;
end;

select affiliate.enter_as_owner(p.oid::regprocedure)
  from pg_catalog.pg_proc p
 where p.pronamespace = 'affiliate'::regnamespace
   and p.proname in ('count_link_clicks', 'count_sub_clicks', 'count_day_clicks', 'count_added_clicks');

-- ---------------------------------------------------------------------------------------------------------------
-- Spans
-- ---------------------------------------------------------------------------------------------------------------

-- The rollups of days that are over, in spans of 1, 4, 16 and 64 days, so that a report over three months adds up a dozen
-- rows of each link, and not ninety.
--
-- Each count stands in one of two places: in the rollup of days, where it was counted, or, once fold_rollups() has moved it, in
-- the spans, and there once in every width. What is counted late, a click that a host had kept for a week, an order of last month
-- that is approved today, is counted in the rollup of days as ever, above or below zero, and moved later. So counting knows
-- nothing of spans, and whoever reads adds both places: by days in the views click_days, click_link_days, order_days,
-- order_link_days and order_sku_days, by periods with spans_of().
--
-- A span begins at a multiple of its width, with days counted from 1970-01-01. Sub-ids' clicks have no spans: their rows are the
-- memory of which sub-ids a link's day tells apart.

create table affiliate.span_kind (
    name        text primary key,
    source      text not null,
    whole       boolean not null,
    keys        text[] not null,
    measures    text[] not null
);

create unique index span_kind_whole on affiliate.span_kind (source) where whole;

comment on table affiliate.span_kind is 'Tables of spans, each with the rollup of days that it is made of';
comment on column affiliate.span_kind.whole is 'It has all the keys of its rollup; others are for reports that need fewer';
comment on column affiliate.span_kind.keys is 'What its rows go by, besides merchant, mode, width and first day';

insert into affiliate.span_kind
select k.name, k.source, k.whole, k.keys,
       case
           when k.source like 'click%' then '{valid,duplicate,suspect,prefetch,preview,bot}'::text[]
           when k.source = 'order_sku_day' then
               '{pending,approved,cancelled,refunded,review,rejected,pieces,amount_minor}'::text[]
           else '{pending,approved,payable,cancelled,refunded,review,rejected,amount_minor,kept_minor,commission_pending_minor,
                  commission_payable_minor,commission_reversed_minor,fee_pending_minor,fee_payable_minor}'::text[]
       end
  from (values
        ('click_span', 'click_day', true, '{campaign_id,affiliate_id}'::text[]),
        ('click_campaign_span', 'click_day', false, '{campaign_id}'),
        ('click_link_span', 'click_link_day', true, '{link_id,campaign_id,affiliate_id}'),
        ('order_span', 'order_day', true, '{campaign_id,affiliate_id,currency}'),
        ('order_campaign_span', 'order_day', false, '{campaign_id,currency}'),
        ('order_sub_span', 'order_link_day', true, '{link_id,campaign_id,affiliate_id,sub_id,currency}'),
        ('order_link_span', 'order_link_day', false, '{link_id,campaign_id,affiliate_id,currency}'),
        ('order_sku_span', 'order_sku_day', true, '{sku,campaign_id,affiliate_id,currency}')) k (name, source, whole, keys);

grant select on affiliate.span_kind to affiliate_tenant;

-- The tables, and a view of each rollup of days that has what was moved, too.
do $$
declare
    k affiliate.span_kind;
begin
    for k in select * from affiliate.span_kind loop
        execute format('create table affiliate.%I as select merchant_id, livemode, 0::smallint as width, day as first_day, %s, %s '
                       'from affiliate.%I with no data',
                       k.name, array_to_string(k.keys, ', '), array_to_string(k.measures, ', '), k.source);
        execute format('alter table affiliate.%I %s', k.name,
                       (select string_agg(format('alter %I set not null', c), ', ')
                          from unnest('{merchant_id,livemode,width,first_day}'::text[] || k.measures) c));
        if k.keys @> '{affiliate_id}' then
            execute format('create index on affiliate.%I (affiliate_id, width, first_day)', k.name);
        end if;
        execute format('alter table affiliate.%I add unique nulls not distinct (width, first_day, merchant_id, livemode, %s)',
                       k.name, array_to_string(k.keys, ', '));
        execute format('comment on table affiliate.%I is %L', k.name, 'What was moved from ' || k.source || ', by spans of days');
        perform affiliate.fence(('affiliate.' || k.name)::regclass,
                                p_affiliate => (select c from unnest(k.keys) c where c = 'affiliate_id'));

        if k.whole then
            execute format('create view affiliate.%1$I with (security_invoker = true) as '
                           'select merchant_id, livemode, day, %2$s from affiliate.%3$I '
                           'union all select merchant_id, livemode, first_day, %2$s from affiliate.%4$I where width = 1',
                           k.source || 's', array_to_string(k.keys || k.measures, ', '), k.source, k.name);
            execute format('comment on view affiliate.%I is %L', k.source || 's',
                           'The counts of days, those that were moved, too: of one key there may be two rows');
            execute format('grant select on affiliate.%I to affiliate_tenant', k.source || 's');
        end if;
    end loop;
end
$$;

-- The first day of the span of a width that has a day in it.
create function affiliate.span_of(p_day date, p_width integer)
returns date
language sql immutable parallel safe
return p_day - (p_day - date '1970-01-01') % p_width;

-- The fewest spans that are a period. One that begins inside it and ends at today or later may reach beyond: of days that are not
-- over nothing was moved.
create function affiliate.spans_of(p_first date, p_last date, p_today date)
returns table (width smallint, first_day date)
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    until date := case when p_last >= p_today then p_last + 63 else p_last end;
begin
    first_day := p_first;
    while first_day <= p_last loop
        width := 64;
        while width > 1 and (affiliate.span_of(first_day, width) <> first_day or first_day + width - 1 > until) loop
            width := width / 4;
        end loop;
        return next;
        first_day := first_day + width;
    end loop;
end
$$;

-- Moves counts of days before yesterday into the spans, up to so many rows of each rollup. Returns how many it moved: as long as
-- that is not 0, there may be more. Rows that somebody is counting in are left for the next time; so is all, if another
-- session is at it.
create function affiliate.fold_rollups(p_rows integer)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set work_mem = '64MB'
set jit = off
as $$
declare
    s record;
    moved bigint;
    total bigint := 0;
begin
    if not pg_try_advisory_xact_lock('affiliate.span_kind'::regclass::integer, 0) then
        return 0;
    end if;

    for s in
        select k.source, max(array_to_string(k.keys, ', ')) filter (where k.whole) as keys,
               string_agg(format(
                   ', %1$I as ('
                   'insert into affiliate.%1$I as t (merchant_id, livemode, width, first_day, %2$s, %3$s) '
                   'select g.merchant_id, g.livemode, w.width, affiliate.span_of(g.day, w.width), %4$s, %5$s '
                   'from gone g cross join (values (1::smallint), (4), (16), (64)) w (width) group by 1, 2, 3, 4, %4$s '
                   'order by 3, 4, 1, 2, %4$s '
                   'on conflict (width, first_day, merchant_id, livemode, %2$s) do update set %6$s)',
                   k.name, array_to_string(k.keys, ', '), array_to_string(k.measures, ', '),
                   (select string_agg('g.' || c, ', ' order by n) from unnest(k.keys) with ordinality u (c, n)),
                   (select string_agg(format('sum(g.%I)', c), ', ' order by n) from unnest(k.measures) with ordinality u (c, n)),
                   (select string_agg(format('%1$I = t.%1$I + excluded.%1$I', c), ', ') from unnest(k.measures) c)),
                   '' order by k.name) as inserts
          from affiliate.span_kind k
         group by k.source
         order by k.source
    loop
        execute format(
            'with gone as (delete from affiliate.%1$I d where d.ctid in ('
            'select e.ctid from affiliate.%1$I e where e.day < $1 limit $2 for update skip locked) returning d.*)'
            '%2$s select count(*) from gone', s.source, s.inserts)
          into moved
         using affiliate.utc_day(now()) - 1, p_rows;
        total := total + moved;
    end loop;

    return total;
end
$$;

comment on function affiliate.fold_rollups is 'Moves the counts of days that are over into spans; returns how many rows it moved';

-- Adds to a rollup of days by how much it, with its spans, differs from what a query counts anew for a period: rows of merchant_id,
-- livemode, day, its keys and its measures. Whoever calls keeps others from counting.
create function affiliate.correct_rollup(p_source text, p_truth text, p_first date, p_last date)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    k affiliate.span_kind;
begin
    select * into strict k from affiliate.span_kind x where x.source = p_source and x.whole;
    execute format(
        'insert into affiliate.%1$I as t (merchant_id, livemode, day, %2$s, %3$s) '
        'select x.merchant_id, x.livemode, x.day, %4$s, %5$s '
        'from (%6$s union all select merchant_id, livemode, day, %2$s, %7$s from affiliate.%8$I where day between $1 and $2) x '
        'group by x.merchant_id, x.livemode, x.day, %4$s having %9$s '
        'on conflict (merchant_id, livemode, day, %2$s) do update set %10$s',
        p_source, array_to_string(k.keys, ', '), array_to_string(k.measures, ', '),
        (select string_agg('x.' || c, ', ' order by n) from unnest(k.keys) with ordinality u (c, n)),
        (select string_agg(format('sum(x.%I)', c), ', ' order by n) from unnest(k.measures) with ordinality u (c, n)),
        p_truth,
        (select string_agg('-' || c, ', ' order by n) from unnest(k.measures) with ordinality u (c, n)),
        p_source || 's',
        (select string_agg(format('sum(x.%I) <> 0', c), ' or ') from unnest(k.measures) c),
        (select string_agg(format('%1$I = t.%1$I + excluded.%1$I', c), ', ') from unnest(k.measures) c))
    using p_first, p_last;
end
$$;

-- Spans: each width has in it what the spans of one day have, those by fewer keys what those by all have.
create function affiliate.audit_spans()
returns table (invariant text, merchant_id bigint, subject text, detail text)
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
set work_mem = '64MB'
set jit = off
as $$
declare
    s record;
begin
    for s in
        select k.name, f.name as finest, k.keys,
               array_to_string(k.keys || k.measures, ', ') as columns,
               array_to_string(k.keys || array(select '-' || c from unnest(k.measures) c), ', ') as negated,
               (select string_agg(format('sum(x.%I) <> 0', c), ' or ') from unnest(k.measures) c) as differs
          from affiliate.span_kind k
          join affiliate.span_kind f on f.source = k.source and f.whole
         order by k.name
    loop
        return query execute format(
            'select %1$L, x.merchant_id, format(''%2$s of %%s days from %%s'', x.width, x.first_day), '
            '       ''differs: '' || jsonb_build_object(%3$s)::text '
            '  from (select merchant_id, livemode, width, first_day, %4$s from affiliate.%2$I '
            '         union all '
            '        select d.merchant_id, d.livemode, w.width, affiliate.span_of(d.first_day, w.width), %5$s '
            '          from affiliate.%6$I d cross join (values (1), (4), (16), (64)) w (width) where d.width = 1) x '
            ' group by x.merchant_id, x.livemode, x.width, x.first_day, %7$s having %8$s',
            'spans are their days', s.name,
            (select string_agg(format('%L, x.%I', c, c), ', ') from unnest(s.keys) c),
            s.columns, s.negated, s.finest,
            (select string_agg('x.' || c, ', ') from unnest(s.keys) c), s.differs);
    end loop;
end
$$;

select affiliate.enter_as_owner('affiliate.fold_rollups(integer)');

-- ---------------------------------------------------------------------------------------------------------------
-- Counting anew
-- ---------------------------------------------------------------------------------------------------------------

-- Every order as it counts now: from its facts, its terms and its release.
create view affiliate.order_counted with (security_invoker = true) as
select o.merchant_id, o.livemode, affiliate.utc_day(o.reported_at) as day, o.link_id, o.campaign_id,
       o.posted_affiliate_id as affiliate_id, o.sub_id, coalesce(o.currency, o.posted_currency) as currency,
       o.order_no, affiliate.order_state(n) as state, n.payable, coalesce(o.amount_minor, 0) as amount_minor,
       coalesce(affiliate.kept_minor(
                    o.amount_minor, o.refunded_minor,
                    affiliate.order_void(o.outcome, o.has_report, o.cancelled_at, o.returned_at)), 0) as kept_minor,
       o.posted_commission_minor as commission_minor, o.posted_fee_minor as fee_minor,
       coalesce(o.reversed_minor, 0) as reversed_minor, o.item_sku, o.item_quantity, o.item_amount
  from affiliate.order_now n
  join affiliate.order_fact o using (merchant_id, order_no);

comment on view affiliate.order_counted is 'Every order by what it is counted by, with what it counts';

-- What the rollups of orders are, counted from the orders.
create view affiliate.order_link_recount with (security_invoker = true) as
select c.merchant_id, c.livemode, c.day, c.link_id, c.campaign_id, c.affiliate_id, c.sub_id, c.currency,
       count(*) filter (where c.state = 'pending') as pending, count(*) filter (where c.state = 'approved') as approved,
       count(*) filter (where c.state = 'payable') as payable, count(*) filter (where c.state = 'cancelled') as cancelled,
       count(*) filter (where c.state = 'refunded') as refunded, count(*) filter (where c.state = 'review') as review,
       count(*) filter (where c.state = 'rejected') as rejected,
       sum(c.amount_minor) as amount_minor, sum(c.kept_minor) as kept_minor,
       coalesce(sum(c.commission_minor) filter (where not c.payable), 0) as commission_pending_minor,
       coalesce(sum(c.commission_minor) filter (where c.payable), 0) as commission_payable_minor,
       sum(c.reversed_minor) as commission_reversed_minor,
       coalesce(sum(c.fee_minor) filter (where not c.payable), 0) as fee_pending_minor,
       coalesce(sum(c.fee_minor) filter (where c.payable), 0) as fee_payable_minor
  from affiliate.order_counted c
 group by c.merchant_id, c.livemode, c.day, c.link_id, c.campaign_id, c.affiliate_id, c.sub_id, c.currency;

create view affiliate.order_sku_recount with (security_invoker = true) as
select c.merchant_id, c.livemode, c.day, l.sku, c.campaign_id, c.affiliate_id, c.currency,
       count(*) filter (where c.state = 'pending') as pending,
       count(*) filter (where c.state in ('approved', 'payable')) as approved,
       count(*) filter (where c.state = 'cancelled') as cancelled, count(*) filter (where c.state = 'refunded') as refunded,
       count(*) filter (where c.state = 'review') as review, count(*) filter (where c.state = 'rejected') as rejected,
       sum(l.pieces) as pieces, sum(l.amount_minor) as amount_minor
  from affiliate.order_counted c
 cross join lateral affiliate.sku_lines(c.item_sku, c.item_quantity, c.item_amount) l
 where c.item_sku is not null
 group by c.merchant_id, c.livemode, c.day, l.sku, c.campaign_id, c.affiliate_id, c.currency;

-- Counts all orders anew, for an owner who has changed some by hand; by how much the rollups differ, is added to them.
create function affiliate.recount_orders()
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set work_mem = '256MB'
set jit = off
as $$
declare
    counted bigint;
begin
    -- Whoever decides an order or releases one counts it in the same transaction, behind what they lock of it.
    lock table affiliate.order_fact, affiliate.hold in share row exclusive mode;
    lock table affiliate.order_link_day, affiliate.order_day, affiliate.order_sku_day in share row exclusive mode;

    perform affiliate.correct_rollup('order_link_day', 'select * from affiliate.order_link_recount', '-infinity', 'infinity');
    perform affiliate.correct_rollup('order_day',
        'select merchant_id, livemode, day, campaign_id, affiliate_id, currency, pending, approved, payable, cancelled, refunded, '
        'review, rejected, amount_minor, kept_minor, commission_pending_minor, commission_payable_minor, '
        'commission_reversed_minor, fee_pending_minor, fee_payable_minor from affiliate.order_link_days',
        '-infinity', 'infinity');
    perform affiliate.correct_rollup('order_sku_day', 'select * from affiliate.order_sku_recount', '-infinity', 'infinity');

    select coalesce(sum(d.pending + d.approved + d.payable + d.cancelled + d.refunded + d.review + d.rejected), 0)
      into counted
      from affiliate.order_days d;
    return counted;
end
$$;

comment on function affiliate.recount_orders is 'Counts all orders anew; returns how many there are';

-- What was taken of each order, by its facts and terms.
create view affiliate.order_reversed with (security_invoker = true) as
select o.merchant_id, o.order_no, o.reversed_minor as remembered_minor,
       affiliate.reversed_minor(
           o.outcome, o.has_report, o.posted_commission_minor, o.amount_minor, t.rate_basis_points, t.rate_flat_minor,
           o.item_numerator, o.item_denominator) as reversed_minor
  from affiliate.order_fact o
  join affiliate.terms t on t.merchant_id = o.merchant_id and t.terms_id = o.terms_id
 where o.cancelled_at is not null
    or o.returned_at is not null
    or o.refunded_minor > 0;

-- ---------------------------------------------------------------------------------------------------------------
-- The proof
-- ---------------------------------------------------------------------------------------------------------------

-- The clicks of the days from p_first on that have a partition, counted anew, beside their rollups.
create function affiliate.audit_click_rollups(p_first date)
returns table (invariant text, merchant_id bigint, subject text, detail text)
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
set plan_cache_mode = force_custom_plan
set enable_nestloop = off
set work_mem = '64MB'
set jit = off
as $$
#variable_conflict use_column
begin
    return query
    with kept as materialized (
        select p.day
          from affiliate.click_partitions() p
         where p.day >= p_first
    ),
    recount as materialized (
        select c.merchant_id, c.livemode, affiliate.utc_day(affiliate.click_time(c.id)) as day, c.link_id, c.campaign_id,
               c.affiliate_id, nullif(c.sub_ids[1], '') collate "C" as sub_id,
               count(*) filter (where c.verdict = 0) as valid,
               count(*) filter (where c.verdict = 1) as duplicate,
               count(*) filter (where c.verdict = 2) as suspect,
               count(*) filter (where c.verdict = 3) as prefetch,
               count(*) filter (where c.verdict = 4) as preview,
               count(*) filter (where c.verdict = 5) as bot
          from affiliate.click c
         where c.id >= affiliate.day_bound(p_first)
         group by 1, 2, 3, 4, 5, 6, 7
    )
    select 'clicks of a link are the recount', coalesce(l.merchant_id, r.merchant_id),
           format('link %s %s %s', coalesce(l.link_id, r.link_id), coalesce(l.day, r.day),
                  case when coalesce(l.livemode, r.livemode) then 'live' else 'test' end),
           format('counted %s, there are %s',
                  (l.valid, l.duplicate, l.suspect, l.prefetch, l.preview, l.bot),
                  (r.valid, r.duplicate, r.suspect, r.prefetch, r.preview, r.bot))
      from (select l.merchant_id, l.livemode, l.day, l.link_id, l.campaign_id, l.affiliate_id,
                   sum(l.valid) as valid, sum(l.duplicate) as duplicate, sum(l.suspect) as suspect,
                   sum(l.prefetch) as prefetch, sum(l.preview) as preview, sum(l.bot) as bot
              from affiliate.click_link_days l
              join kept using (day)
             group by 1, 2, 3, 4, 5, 6) l
      full join (
               select r.merchant_id, r.livemode, r.day, r.link_id, r.campaign_id, r.affiliate_id,
                      sum(r.valid) as valid, sum(r.duplicate) as duplicate, sum(r.suspect) as suspect,
                      sum(r.prefetch) as prefetch, sum(r.preview) as preview, sum(r.bot) as bot
                 from recount r
                group by 1, 2, 3, 4, 5, 6
           ) r using (merchant_id, livemode, day, link_id, campaign_id, affiliate_id)
     where (coalesce(l.valid, 0), coalesce(l.duplicate, 0), coalesce(l.suspect, 0),
            coalesce(l.prefetch, 0), coalesce(l.preview, 0), coalesce(l.bot, 0))
           <> (coalesce(r.valid, 0), coalesce(r.duplicate, 0), coalesce(r.suspect, 0),
               coalesce(r.prefetch, 0), coalesce(r.preview, 0), coalesce(r.bot, 0))
    union all
    select 'clicks of a sub id are the recount', coalesce(s.merchant_id, r.merchant_id),
           format('link %s %s %s %s', coalesce(s.link_id, r.link_id), coalesce(s.day, r.day),
                  case when coalesce(s.livemode, r.livemode) then 'live' else 'test' end,
                  coalesce(nullif(coalesce(s.sub_id, r.sub_id), ''), '(other)')),
           format('counted %s, there are %s',
                  (s.valid, s.duplicate, s.suspect, s.prefetch, s.preview, s.bot),
                  (r.valid, r.duplicate, r.suspect, r.prefetch, r.preview, r.bot))
      from (select s.*
              from affiliate.click_sub_day s
              join kept using (day)) s
      full join (
               -- What has a row of its own is counted there, all else among the others.
               select r.merchant_id, r.livemode, r.day, r.link_id, r.campaign_id, r.affiliate_id,
                      coalesce(n.sub_id, '') as sub_id,
                      sum(r.valid) as valid, sum(r.duplicate) as duplicate, sum(r.suspect) as suspect,
                      sum(r.prefetch) as prefetch, sum(r.preview) as preview, sum(r.bot) as bot
                 from recount r
                 left join affiliate.click_sub_day n
                using (merchant_id, livemode, day, link_id, campaign_id, affiliate_id, sub_id)
                where r.sub_id is not null
                group by 1, 2, 3, 4, 5, 6, 7
           ) r using (merchant_id, livemode, day, link_id, campaign_id, affiliate_id, sub_id)
     where (coalesce(s.valid, 0), coalesce(s.duplicate, 0), coalesce(s.suspect, 0),
            coalesce(s.prefetch, 0), coalesce(s.preview, 0), coalesce(s.bot, 0))
           <> (coalesce(r.valid, 0), coalesce(r.duplicate, 0), coalesce(r.suspect, 0),
               coalesce(r.prefetch, 0), coalesce(r.preview, 0), coalesce(r.bot, 0))
    union all
    select 'conversion is counted as its click is', v.merchant_id, 'conversion ' || v.conversion_id,
           format('counted under %s', coalesce(nullif(v.sub_id, ''), case when v.sub_id = '' then '(other)' else 'none' end))
      from affiliate.conversion v
      join affiliate.click c on c.id = v.click_id and c.merchant_id = v.merchant_id
      left join affiliate.click_sub_day s
        on s.merchant_id = c.merchant_id and s.livemode = c.livemode
       and s.day = affiliate.utc_day(affiliate.click_time(c.id)) and s.link_id = c.link_id
       and s.campaign_id = c.campaign_id and s.affiliate_id = c.affiliate_id and s.sub_id = c.sub_ids[1] collate "C"
     where c.id >= affiliate.day_bound(p_first)
       and v.affiliate_id is not null
       and v.sub_id is distinct from case when c.sub_ids[1] <> '' then coalesce(s.sub_id, '') end;
end
$$;

-- Rollups: each is the recount of its rows. Of clicks, that is of yesterday's and today's, or of all days since
-- p_since if that is longer ago; of orders it is always of all.
create function affiliate.audit_rollups(p_since timestamptz default null)
returns table (invariant text, merchant_id bigint, subject text, detail text)
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
set plan_cache_mode = force_custom_plan
set enable_nestloop = off
set work_mem = '64MB'
set jit = off
as $$
#variable_conflict use_column
begin
    return query
    select *
      from affiliate.audit_click_rollups(least(affiliate.utc_day(p_since), affiliate.utc_day(now()) - 1))
    union all
    select 'clicks of a day are those of its links', coalesce(d.merchant_id, l.merchant_id),
           format('campaign %s affiliate %s %s', coalesce(d.campaign_id, l.campaign_id),
                  coalesce(d.affiliate_id, l.affiliate_id), coalesce(d.day, l.day)),
           format('counted %s, links have %s', (d.valid, d.duplicate, d.suspect, d.prefetch, d.preview, d.bot),
                  (l.valid, l.duplicate, l.suspect, l.prefetch, l.preview, l.bot))
      from (
               select d.merchant_id, d.livemode, d.day, d.campaign_id, d.affiliate_id,
                      sum(d.valid) as valid, sum(d.duplicate) as duplicate, sum(d.suspect) as suspect,
                      sum(d.prefetch) as prefetch, sum(d.preview) as preview, sum(d.bot) as bot
                 from affiliate.click_days d
                group by 1, 2, 3, 4, 5
           ) d
      full join (
               select l.merchant_id, l.livemode, l.day, l.campaign_id, l.affiliate_id,
                      sum(l.valid) as valid, sum(l.duplicate) as duplicate, sum(l.suspect) as suspect,
                      sum(l.prefetch) as prefetch, sum(l.preview) as preview, sum(l.bot) as bot
                 from affiliate.click_link_days l
                group by 1, 2, 3, 4, 5
           ) l using (merchant_id, livemode, day, campaign_id, affiliate_id)
     where (coalesce(d.valid, 0), coalesce(d.duplicate, 0), coalesce(d.suspect, 0),
            coalesce(d.prefetch, 0), coalesce(d.preview, 0), coalesce(d.bot, 0))
           <> (coalesce(l.valid, 0), coalesce(l.duplicate, 0), coalesce(l.suspect, 0),
               coalesce(l.prefetch, 0), coalesce(l.preview, 0), coalesce(l.bot, 0))
    union all
    select 'sub ids of a link are bounded', s.merchant_id, format('link %s %s', s.link_id, s.day),
           format('%s by themselves%s', count(*) filter (where s.sub_id <> ''),
                  case when bool_or(s.sub_id = '') then ' and others' else '' end)
      from affiliate.click_sub_day s
     group by s.merchant_id, s.livemode, s.day, s.link_id, s.campaign_id, s.affiliate_id
    having count(*) filter (where s.sub_id <> '') > affiliate.sub_id_limit()
        or bool_or(s.sub_id = '') and count(*) filter (where s.sub_id <> '') < affiliate.sub_id_limit()
    union all
    select 'orders of a link are the recount', x.merchant_id,
           format('link %s sub-id %s %s %s %s', x.link_id, x.sub_id, x.day, x.currency,
                  case when x.livemode then 'live' else 'test' end),
           format('%s %s are off by %s', case when bool_or(x.sign > 0) then 'counted, recount' else 'recount' end,
                  case when bool_or(x.sign < 0) then 'and rows' else 'without rows' end,
                  (sum(x.sign * x.pending), sum(x.sign * x.approved), sum(x.sign * x.payable), sum(x.sign * x.cancelled),
                   sum(x.sign * x.refunded), sum(x.sign * x.review), sum(x.sign * x.rejected),
                   sum(x.sign * x.amount_minor), sum(x.sign * x.kept_minor),
                   sum(x.sign * x.commission_pending_minor), sum(x.sign * x.commission_payable_minor),
                   sum(x.sign * x.commission_reversed_minor), sum(x.sign * x.fee_pending_minor),
                   sum(x.sign * x.fee_payable_minor)))
      from (
               select l.*, 1 as sign
                 from affiliate.order_link_days l
               union all
               select r.*, -1
                 from affiliate.order_link_recount r
           ) x
     group by x.merchant_id, x.livemode, x.day, x.link_id, x.campaign_id, x.affiliate_id, x.sub_id, x.currency
    having (sum(x.sign * x.pending), sum(x.sign * x.approved), sum(x.sign * x.payable), sum(x.sign * x.cancelled),
            sum(x.sign * x.refunded), sum(x.sign * x.review), sum(x.sign * x.rejected),
            sum(x.sign * x.amount_minor), sum(x.sign * x.kept_minor),
            sum(x.sign * x.commission_pending_minor), sum(x.sign * x.commission_payable_minor),
            sum(x.sign * x.commission_reversed_minor), sum(x.sign * x.fee_pending_minor), sum(x.sign * x.fee_payable_minor))
           <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    union all
    select 'orders of a day are those of its links', x.merchant_id,
           format('campaign %s affiliate %s %s %s', x.campaign_id, x.affiliate_id, x.day, x.currency), 'differ'
      from (
               select d.*, 1 as sign
                 from affiliate.order_days d
               union all
               select l.merchant_id, l.livemode, l.day, l.campaign_id, l.affiliate_id, l.currency,
                      sum(l.pending), sum(l.approved), sum(l.payable), sum(l.cancelled), sum(l.refunded), sum(l.review),
                      sum(l.rejected), sum(l.amount_minor), sum(l.kept_minor), sum(l.commission_pending_minor),
                      sum(l.commission_payable_minor), sum(l.commission_reversed_minor), sum(l.fee_pending_minor),
                      sum(l.fee_payable_minor), -1
                 from affiliate.order_link_days l
                group by 1, 2, 3, 4, 5, 6
           ) x
     group by x.merchant_id, x.livemode, x.day, x.campaign_id, x.affiliate_id, x.currency
    having (sum(x.sign * x.pending), sum(x.sign * x.approved), sum(x.sign * x.payable), sum(x.sign * x.cancelled),
            sum(x.sign * x.refunded), sum(x.sign * x.review), sum(x.sign * x.rejected),
            sum(x.sign * x.amount_minor), sum(x.sign * x.kept_minor),
            sum(x.sign * x.commission_pending_minor), sum(x.sign * x.commission_payable_minor),
            sum(x.sign * x.commission_reversed_minor), sum(x.sign * x.fee_pending_minor), sum(x.sign * x.fee_payable_minor))
           <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    union all
    select 'orders of a product are the recount', x.merchant_id,
           format('sku %s campaign %s affiliate %s %s %s', x.sku, x.campaign_id, x.affiliate_id, x.day, x.currency),
           format('off by %s', (sum(x.sign * x.pending), sum(x.sign * x.approved), sum(x.sign * x.cancelled),
                                sum(x.sign * x.refunded), sum(x.sign * x.review), sum(x.sign * x.rejected),
                                sum(x.sign * x.pieces), sum(x.sign * x.amount_minor)))
      from (
               select s.*, 1 as sign
                 from affiliate.order_sku_days s
               union all
               select r.*, -1
                 from affiliate.order_sku_recount r
           ) x
     group by x.merchant_id, x.livemode, x.day, x.sku, x.campaign_id, x.affiliate_id, x.currency
    having (sum(x.sign * x.pending), sum(x.sign * x.approved), sum(x.sign * x.cancelled), sum(x.sign * x.refunded),
            sum(x.sign * x.review), sum(x.sign * x.rejected), sum(x.sign * x.pieces), sum(x.sign * x.amount_minor))
           <> (0, 0, 0, 0, 0, 0, 0, 0)
    union all
    select 'order remembers what was taken of it', o.merchant_id, 'order_no ' || o.order_no,
           format('remembers %s, it is %s', o.reversed_minor, coalesce(r.reversed_minor, 0))
      from affiliate.order_fact o
      left join affiliate.order_reversed r using (merchant_id, order_no)
     where coalesce(o.reversed_minor, 0) <> coalesce(r.reversed_minor, 0)
    union all
    select 'hold is counted as its order is', h.merchant_id, 'order_no ' || h.order_no,
           format('%s link %s', h.day, h.link_id)
      from affiliate.hold h
      join affiliate.order_fact o using (merchant_id, order_no)
     where (h.day, h.campaign_id, h.link_id, h.sub_id, h.affiliate_id, h.currency)
           is distinct from
           (affiliate.utc_day(o.reported_at), o.campaign_id, o.link_id, o.sub_id, o.posted_affiliate_id,
            coalesce(o.currency, o.posted_currency))
    union all
    select *
      from affiliate.audit_spans();
end
$$;
