-- Reports, and what affiliates and merchants see of clicks, orders and money.
--
-- Reports read rollups only, so their time goes with days, links and affiliates, not with clicks. Clicks are of any currency;
-- money is told currency by currency, and nothing here adds up two of them. Lists, wallets and statements read the books.

select affiliate.fence(t, p_affiliate => 'affiliate_id')
  from unnest(array['affiliate.click_day', 'affiliate.click_link_day', 'affiliate.click_sub_day', 'affiliate.order_day',
                    'affiliate.order_link_day', 'affiliate.order_sku_day']::regclass[]) t;

-- What of an affiliate's orders matures when.
create index hold_affiliate on affiliate.hold (affiliate_id, due_at);
create index release_affiliate on affiliate.release (affiliate_id, released_at);

-- What a report by campaigns or links names its lines by. (The ids of all merchants come from one sequence.)
create index campaign_id on affiliate.campaign (campaign_id);
create index link_id on affiliate.link (link_id);

-- Of transfers, only those of a month: they were written in the order of their time, so this takes a page or two.
create index transfer_created on affiliate.transfer using brin (created_at) with (pages_per_range = 32);

-- ---------------------------------------------------------------------------------------------------------------
-- What requests say
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.date_field(p_request jsonb, p_field text)
returns date
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    rule constant text := 'must be a day, like 2026-01-31';
begin
    return make_date(left(v, 4)::integer, substr(v, 6, 2)::integer, substr(v, 9, 2)::integer)
      from affiliate.form_field(p_request, p_field, 100, '^[1-9]\d{3}-\d\d-\d\d$', rule) v;
exception when datetime_field_overflow then
    perform affiliate.refuse(p_field, rule);
end
$$;

-- The days that a request is about, both included: the last p_days unless it says otherwise, never more than p_most.
create function affiliate.period_field(p_request jsonb, p_days integer, p_most integer, out first date, out last date)
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    last := coalesce(affiliate.date_field(p_request, 'to'), affiliate.utc_day(now()));
    first := coalesce(affiliate.date_field(p_request, 'from'), last - (p_days - 1));
    if first > last then
        perform affiliate.refuse('from', 'must not lie after to');
    end if;
    if last - first >= p_most then
        perform affiliate.refuse('from', format('must lie within %s days before to', p_most));
    end if;
end
$$;

-- A UTC month, as its first moment and the next one's.
create function affiliate.month_field(p_request jsonb, p_field text, out since timestamptz, out until timestamptz)
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := p_request ->> p_field;
begin
    if value is null or value !~ '^[1-9]\d{3}-(0[1-9]|1[0-2])$' then
        perform affiliate.refuse(p_field, 'must be a month, like 2026-01');
    end if;
    since := (value || '-01')::timestamp at time zone 'UTC';
    until := ((value || '-01')::timestamp + interval '1 month') at time zone 'UTC';
    if since > now() then
        perform affiliate.refuse(p_field, 'has not begun');
    end if;
end
$$;

-- A part of a whole as text with four decimals; null of nothing.
create function affiliate.ratio_text(p_part numeric, p_whole numeric)
returns text
language sql immutable parallel safe
return round(p_part / nullif(p_whole, 0), 4)::text;

-- ---------------------------------------------------------------------------------------------------------------
-- Reports
-- ---------------------------------------------------------------------------------------------------------------

-- What a line comes to in one currency, in its minor units.
create type affiliate.report_money as (
    currency            text,
    amount              numeric,
    kept                numeric,
    commission_pending  numeric,
    commission_payable  numeric,
    commission_reversed numeric,
    fee_pending         numeric,
    fee_payable         numeric
);

create type affiliate.report_row as (
    key                 text,
    id                  bigint,
    gross               bigint,
    valid               bigint,
    duplicate           bigint,
    suspect             bigint,
    prefetch            bigint,
    preview             bigint,
    bot                 bigint,
    reported            bigint,
    pending             bigint,
    approved            bigint,
    payable             bigint,
    cancelled           bigint,
    refunded            bigint,
    review              bigint,
    rejected            bigint,
    pieces              numeric,
    amount_minor        numeric,
    commission_minor    numeric,
    money               affiliate.report_money[]
);

comment on type affiliate.report_row is 'One line of a report. id is its key where that is a number. amount_minor and commission_minor are of all currencies of the line: good for sorting where that is one';

-- What each report goes by: the rollups that have it, and what names a line there. A line of no campaign or affiliate has 0. Of
-- sub-ids: n for none, o for those that came too late for a row of their own, s and the sub-id.
create table affiliate.report_kind (
    name            text primary key,
    clicks          text,
    orders          text not null,
    click_key       text,
    order_key       text not null,
    sort            text not null,
    by_id           boolean not null,
    members         text not null
);

comment on table affiliate.report_kind is 'What reports go by, and where they take it from';
comment on column affiliate.report_kind.by_id is 'Its key is a number';
comment on column affiliate.report_kind.members is 'What a line is about, as SQL of its key: evaluated for the lines of the page only';

insert into affiliate.report_kind values
    ('total', 'click_day', 'order_day', '''all''', '''all''', 'key', false,
     $$ '{}'::jsonb $$),
    ('day', 'click_day', 'order_day', 'day', 'day', '-key', false,
     $$ jsonb_build_object('day', x.key) $$),
    ('merchant', 'click_day', 'order_day', 'merchant_id', 'merchant_id', '-reported', true,
     $$ jsonb_build_object('merchant', x.id,
                           'merchant_name', (select m.name from affiliate.merchant m where m.merchant_id = x.id)) $$),
    ('campaign', 'click_day', 'order_day', 'campaign_id', 'coalesce(campaign_id, 0)', '-reported', true,
     $$ jsonb_build_object('campaign', nullif(x.id, 0),
                           'campaign_name', (select c.name from affiliate.campaign c where c.campaign_id = x.id limit 1)) $$),
    ('affiliate', 'click_day', 'order_day', 'affiliate_id', 'coalesce(affiliate_id, 0)', '-reported', true,
     $$ jsonb_build_object('affiliate', nullif(x.id, 0),
                           'affiliate_name', (select a.name from affiliate.affiliate a where a.affiliate_id = x.id)) $$),
    ('link', 'click_link_day', 'order_link_day', 'link_id', 'coalesce(link_id, 0)', '-reported', true,
     $$ jsonb_build_object('link', nullif(x.id, 0),
                           'code', (select l.code from affiliate.link l where l.link_id = x.id limit 1)) $$),
    ('sub_id', 'click_sub_day', 'order_link_day', 'case when sub_id = '''' then ''o'' else ''s'' || sub_id end',
     'case when sub_id is null then ''n'' when sub_id = '''' then ''o'' else ''s'' || sub_id end', '-reported', false,
     $$ jsonb_build_object('sub_id', case when left(x.key, 1) = 's' then substr(x.key, 2) end,
                           'kind', case left(x.key, 1) when 's' then 'one' when 'o' then 'others' else 'none' end) $$),
    ('product', null, 'order_sku_day', null, 'sku', '-reported', false,
     $$ jsonb_build_object('sku', x.key) $$);

grant select on affiliate.report_kind to affiliate_tenant;

-- What a report reads of a rollup of days and its spans, as SQL: only numbers, days and truths come into it, and texts
-- quoted. p_select is what it takes of a row, whose `day` is a span's first; only a report by days asks for that.
create function affiliate.report_source(p_actor affiliate.actor, p_request jsonb, p_source text, p_select text)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    period record;
    today date := affiliate.utc_day(now());
    asked_affiliate text := case when p_actor.kind = 'affiliate' then p_actor.affiliate_id
                                 else affiliate.id_field(p_request, 'affiliate') end;
    conditions text;
    spans text;
    span_table text;
begin
    select * into period from affiliate.period_field(p_request, 30, 400);
    conditions := concat_ws(' and ',
        format('livemode = %L', p_actor.livemode),
        'merchant_id = ' || case when p_actor.kind in ('merchant', 'key') then p_actor.merchant_id
                                 else affiliate.id_field(p_request, 'merchant') end,
        'affiliate_id = ' || asked_affiliate,
        'campaign_id = ' || affiliate.id_field(p_request, 'campaign'),
        'link_id = ' || affiliate.id_field(p_request, 'link'),
        case when p_source like 'order%' then 'currency = ' || quote_literal(affiliate.currency_field(p_request, 'currency')) end);

    select k.name into span_table
      from affiliate.span_kind k
     where k.source = p_source
       and (k.keys @> '{affiliate_id}' or asked_affiliate is null and p_request ->> 'by' <> 'affiliate')
       and (k.whole or p_request ->> 'by' <> 'sub_id')
     order by cardinality(k.keys)
     limit 1;
    -- Written so that each width is a place in an index: of a list of pairs the planner makes a join, and reads the whole table.
    if p_request ->> 'by' = 'day' then
        spans := format('width = 1 and first_day between %L and %L', period.first, least(period.last, today));
    else
        select string_agg(format('width = %s and first_day = any (%L)', s.width, s.days), ' or ') into spans
          from (select x.width, array_agg(x.first_day) as days
                  from affiliate.spans_of(period.first, period.last, today) x
                 group by x.width) s;
    end if;

    return format('select %s from affiliate.%I where %s and day between %L and %L',
                  p_select, p_source, conditions, period.first, period.last)
           || case when span_table is null or spans is null then ''
                   else format(' union all select %s from (select *, first_day as day from affiliate.%I) s '
                               'where %s and (%s)', p_select, span_table, conditions, spans) end;
end
$$;

-- A kind, as the request wants it: with a link, all of them go by links.
create function affiliate.asked_report(p_request jsonb)
returns affiliate.report_kind
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    kind affiliate.report_kind;
begin
    select * into kind from affiliate.report_kind k where k.name = p_request ->> 'by';
    if p_request ? 'link' and kind.clicks = 'click_day' then
        kind.clicks := 'click_link_day';
        kind.orders := 'order_link_day';
    end if;
    return kind;
end
$$;

-- What the report may be of, each with what it is sorted by: far less than its lines have. Without clicks, only what has orders.
create function affiliate.report_keys(p_actor affiliate.actor, p_request jsonb, p_clicks boolean)
returns table (key text, gross bigint, valid bigint, reported bigint, approved bigint, amount numeric, commission numeric)
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
set work_mem = '64MB'
set jit = off
as $$
declare
    kind affiliate.report_kind := affiliate.asked_report(p_request);
    sort text := ltrim(p_request ->> 'sort', '-');
    clicked constant text := 'valid + duplicate + suspect + prefetch + preview + bot';
    reported text := 'pending + approved + payable + cancelled + refunded + review + rejected';
    by_click text;
    by_order text;
    source text;
begin
    if kind.name = 'product' then
        reported := replace(reported, ' + payable', '');
    end if;
    by_click := case sort when 'gross' then clicked when 'valid' then 'valid' else '0' end;
    by_order := case sort
                    when 'reported' then reported
                    when 'approved' then case when kind.name = 'product' then 'approved' else 'approved + payable' end
                    when 'amount' then 'coalesce(amount_minor, 0)'
                    when 'commission' then case when kind.name = 'product' then '0' else 'commission_pending_minor + commission_payable_minor' end
                    else '0' end;

    source := affiliate.report_source(p_actor, p_request, kind.orders, format('%s as key, %s as v, 0 as c, %s as o', kind.order_key, by_order, reported));
    if kind.clicks is not null and p_clicks then
        source := source || ' union all '
            || affiliate.report_source(p_actor, p_request, kind.clicks, format('%s, %s, %s, 0', kind.click_key, by_click, clicked));
    end if;
    if kind.name = 'sub_id' and p_clicks then
        source := concat_ws(' union all ', source,
            affiliate.report_source(p_actor, p_request, 'click_link_day', format('''n'', %s, %s, 0', by_click, clicked)),
            affiliate.report_source(p_actor, p_request, 'click_sub_day', format('''n'', -(%s), -(%s), 0', by_click, clicked)));
    end if;
    return query execute format(
        'select key::text, %1$s, %1$s, %1$s, %1$s, %2$s, %2$s from (select key, sum(v) as v from (%3$s) s group by key '
        'having sum(c) <> 0 or sum(o) <> 0) k', 'v::bigint', 'v::numeric', source);
end
$$;

-- The lines of a report, in no order.
create function affiliate.report_rows(p_actor affiliate.actor, p_request jsonb)
returns setof affiliate.report_row
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
set work_mem = '64MB'
set jit = off
as $$
declare
    kind affiliate.report_kind := affiliate.asked_report(p_request);
    is_product boolean := p_request ->> 'by' = 'product';
    verdicts constant text := 'valid, duplicate, suspect, prefetch, preview, bot';
    source text;
begin
    if is_product then
        source := 'select null::text as key, null::bigint as valid, null::bigint as duplicate, null::bigint as suspect, '
                  'null::bigint as prefetch, null::bigint as preview, null::bigint as bot where false';
    else
        source := affiliate.report_source(p_actor, p_request, kind.clicks, format('%s as key, %s', kind.click_key, verdicts));
    end if;
    if kind.name = 'sub_id' then
        -- Clicks without a sub-id are those of the links less those that have one.
        source := concat_ws(' union all ', source,
            affiliate.report_source(p_actor, p_request, 'click_link_day', format('''n'', %s', verdicts)),
            affiliate.report_source(p_actor, p_request, 'click_sub_day', '''n'', -valid, -duplicate, -suspect, -prefetch, -preview, -bot'));
    end if;

    -- Keys are looked for among the rows, not in the indexes, which would be searched for each.
    return query execute format($sql$
        with c as (
            select key, sum(valid) as valid, sum(duplicate) as duplicate, sum(suspect) as suspect,
                   sum(prefetch) as prefetch, sum(preview) as preview, sum(bot) as bot
              from (%1$s offset 0) s
             where %6$s
             group by key
        ),
        o as (
            select key, currency,
                   sum(pending) as pending, sum(approved) as approved, %3$s as payable, sum(cancelled) as cancelled,
                   sum(refunded) as refunded, sum(review) as review, sum(rejected) as rejected,
                   %4$s, sum(amount_minor) as amount
              from (%2$s offset 0) s
             where %6$s
             group by key, currency
        ),
        m as (
            select o.key, sum(o.pending) as pending, sum(o.approved) as approved, sum(o.payable) as payable,
                   sum(o.cancelled) as cancelled, sum(o.refunded) as refunded, sum(o.review) as review, sum(o.rejected) as rejected,
                   sum(o.pieces) as pieces, sum(o.amount) as amount, sum(o.commission_pending + o.commission_payable) as commission,
                   array_agg(row(o.currency, o.amount, o.kept, o.commission_pending, o.commission_payable, o.commission_reversed,
                                 o.fee_pending, o.fee_payable)::affiliate.report_money)
                       filter (where o.currency is not null) as money
              from o
             group by o.key
        )
        select coalesce(c.key::text, m.key::text), %5$s,
               coalesce(c.valid + c.duplicate + c.suspect + c.prefetch + c.preview + c.bot, 0)::bigint,
               coalesce(c.valid, 0)::bigint, coalesce(c.duplicate, 0)::bigint, coalesce(c.suspect, 0)::bigint,
               coalesce(c.prefetch, 0)::bigint, coalesce(c.preview, 0)::bigint, coalesce(c.bot, 0)::bigint,
               coalesce(m.pending + m.approved + m.payable + m.cancelled + m.refunded + m.review + m.rejected, 0)::bigint,
               coalesce(m.pending, 0)::bigint, coalesce(m.approved, 0)::bigint, coalesce(m.payable, 0)::bigint,
               coalesce(m.cancelled, 0)::bigint, coalesce(m.refunded, 0)::bigint, coalesce(m.review, 0)::bigint,
               coalesce(m.rejected, 0)::bigint,
               coalesce(m.pieces, 0), coalesce(m.amount, 0), coalesce(m.commission, 0), m.money
          from c
          full join m on m.key::text = c.key::text
         where coalesce(c.valid + c.duplicate + c.suspect + c.prefetch + c.preview + c.bot, 0) <> 0
            or coalesce(m.pending + m.approved + m.payable + m.cancelled + m.refunded + m.review + m.rejected, 0) <> 0$sql$,
        source,
        affiliate.report_source(p_actor, p_request, kind.orders,
            format('%s as key, currency, %s', kind.order_key,
                   (select array_to_string(k.measures, ', ') from affiliate.span_kind k
                     where k.source = kind.orders and k.whole))),
        case when is_product then '0::numeric' else 'sum(payable)' end,
        case when is_product then
            'sum(pieces) as pieces, 0::numeric as kept, 0::numeric as commission_pending, 0::numeric as commission_payable, '
            '0::numeric as commission_reversed, 0::numeric as fee_pending, 0::numeric as fee_payable'
        else
            '0::numeric as pieces, sum(kept_minor) as kept, sum(commission_pending_minor) as commission_pending, '
            'sum(commission_payable_minor) as commission_payable, sum(commission_reversed_minor) as commission_reversed, '
            'sum(fee_pending_minor) as fee_pending, sum(fee_payable_minor) as fee_payable'
        end,
        case when kind.by_id then 'coalesce(c.key, m.key)' else 'null::bigint' end,
        case when not p_request ? '_keys' then 'true'
             else format('key = any (%L::%s[])', array(select jsonb_array_elements_text(p_request -> '_keys')),
                         case when kind.by_id then 'bigint' else 'text' end) end);
end
$$;

-- A line's numbers. The fee and what the merchant owes are not the affiliate's. plpgsql keeps its plan; one of sql that is called
-- for each row would be planned for each.
create function affiliate.report_json(p_by text, p_affiliate boolean, r affiliate.report_row)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    product boolean := p_by = 'product';
begin
    return (
        select case when product then jsonb_build_object('pieces', r.pieces) else jsonb_build_object(
                      'clicks', jsonb_build_object(
                          'gross', r.gross, 'valid', r.valid, 'duplicate', r.duplicate, 'suspect', r.suspect,
                          'prefetch', r.prefetch, 'preview', r.preview, 'bot', r.bot),
                      'conversion_rate', affiliate.ratio_text(r.reported, r.valid)) end
               || jsonb_build_object(
                      'orders', jsonb_build_object(
                          'reported', r.reported, 'pending', r.pending, 'approved', r.approved, 'payable', r.payable,
                          'cancelled', r.cancelled, 'refunded', r.refunded, 'review', r.review, 'rejected', r.rejected),
                      'approval_rate', affiliate.ratio_text(r.approved + r.payable, r.reported - r.pending - r.review),
                      'money', coalesce(
                          jsonb_agg(
                              jsonb_build_object('currency', k.currency, 'amount', affiliate.amount_text(m.amount, k.decimals))
                              || case when product then '{}' else jsonb_build_object(
                                     'kept', affiliate.amount_text(m.kept, k.decimals),
                                     'commission_pending', affiliate.amount_text(m.commission_pending, k.decimals),
                                     'commission_payable', affiliate.amount_text(m.commission_payable, k.decimals),
                                     'commission_reversed', affiliate.amount_text(m.commission_reversed, k.decimals),
                                     'epc', affiliate.amount_text(
                                                (m.commission_pending + m.commission_payable) * 100 / nullif(r.valid, 0),
                                                (k.decimals + 2)::smallint)) end
                              || case when product or p_affiliate then '{}' else jsonb_build_object(
                                     'fee_pending', affiliate.amount_text(m.fee_pending, k.decimals),
                                     'fee_payable', affiliate.amount_text(m.fee_payable, k.decimals),
                                     'accrued', affiliate.amount_text(m.commission_pending + m.fee_pending, k.decimals),
                                     'owed', affiliate.amount_text(m.commission_payable + m.fee_payable, k.decimals)) end
                              order by m.currency),
                          '[]'))
          from unnest(r.money) m
          join affiliate.currency k using (currency));
end
$$;

create function affiliate.report_sorts()
returns text[]
language sql immutable parallel safe
return '{key text,gross bigint,valid bigint,reported bigint,approved bigint,amount numeric,commission numeric}'::text[];

-- The keys of a page, and of one line more. Sorted by what orders brought, downwards, those that have any come first: as long as
-- they fill the page, clicks need not be looked at.
create function affiliate.page_of_report(p_actor affiliate.actor, p_request jsonb)
returns text[]
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    by_orders text := substring(p_request ->> 'sort' from '^-(reported|approved|amount|commission)$');
    found_keys text[];
begin
    if by_orders is not null then
        found_keys := array(
            select k ->> 'key'
              from affiliate.page(p_actor, p_request, format('select * from affiliate.report_keys($1, $2, false) r where r.%I > 0', by_orders),
                                  'jsonb_build_object(''key'', x.key)', affiliate.report_sorts(), 'key text') k);
        if cardinality(found_keys) > coalesce(affiliate.integer_field(p_request, 'limit', 1, 200), 50) then
            return found_keys;
        end if;
    end if;
    return array(
        select k ->> 'key'
          from affiliate.page(p_actor, p_request, 'select * from affiliate.report_keys($1, $2, true)',
                              'jsonb_build_object(''key'', x.key)', affiliate.report_sorts(), 'key text') k);
end
$$;

-- A report for whoever may have it. p_kinds are what it may go by. _keys, in the request, is what its page has: only that is added
-- up in full.
create function affiliate.report(p_actor affiliate.actor, p_request jsonb, p_kinds text[], p_filters text[])
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted text := p_request ->> 'by';
    kind affiliate.report_kind;
    sort text := ltrim(p_request ->> 'sort', '-');
begin
    perform affiliate.check_page(p_request, p_filters || '{by,from,to,campaign,link,currency}'::text[]);
    if wanted is null or wanted <> all (p_kinds) then
        perform affiliate.problem(404, 'not_found', 'There is no such report; there are ' || array_to_string(p_kinds, ', ') || '.');
    end if;
    if wanted = 'product' and p_request ? 'link' then
        perform affiliate.refuse('link', 'is no filter of products');
    end if;
    if wanted = 'sub_id' and p_actor.kind <> 'affiliate' and not p_request ?| '{affiliate,link}' then
        perform affiliate.refuse('affiliate', 'or link is needed: sub-ids are each affiliate''s own');
    end if;
    if sort in ('amount', 'commission') and not p_request ? 'currency' then
        perform affiliate.refuse('sort', 'by money needs a currency');
    end if;

    select * into kind from affiliate.report_kind k where k.name = wanted;
    -- Unless it says otherwise, as the kind has it.
    p_request := jsonb_build_object('sort', kind.sort) || p_request;
    if kind.name not in ('total', 'day') and not p_request ? 'all' then
        p_request := p_request || jsonb_build_object('_keys', affiliate.page_of_report(p_actor, p_request));
    end if;
    return query select affiliate.page(p_actor, p_request,
        'select r, r.key, r.id, r.gross, r.valid, r.reported, r.approved + r.payable as approved, r.amount_minor as amount,
                r.commission_minor as commission
           from affiliate.report_rows($1, $2) r',
        format('%s || affiliate.report_json(%L, %L, x.r)', kind.members, wanted, p_actor.kind = 'affiliate'),
        affiliate.report_sorts(), 'key text');
end
$$;

select affiliate.operation('affiliate_report_list', actors => '{affiliate}', while_suspended => true);

create function affiliate.api_affiliate_report_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.report(p_actor, p_request, '{total,day,merchant,campaign,link,sub_id,product}', '{}')
$$;

select affiliate.operation('report_list', actors => '{merchant,key,admin}');

create function affiliate.api_report_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.report(p_actor, p_request, '{total,day,campaign,affiliate,link,sub_id,product}', '{affiliate}')
$$;

select affiliate.operation('admin_report_list', actors => '{admin}');

create function affiliate.api_admin_report_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.report(p_actor, p_request, '{total,day,merchant,campaign,affiliate,link,sub_id,product}', '{affiliate}')
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Clicks
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.verdict_name(p_verdict smallint)
returns text
language sql immutable parallel safe
return (array['valid', 'duplicate', 'suspect', 'prefetch', 'preview', 'bot'])[p_verdict + 1];

-- The reasons of a verdict, by the names that protocol/click.c has for the bits.
create function affiliate.verdict_reasons(p_reasons integer)
returns jsonb
language sql immutable parallel safe
return (select coalesce(jsonb_agg(name order by bit), '[]')
          from unnest(array['bot_agent', 'preview_agent', 'head', 'prefetch', 'empty_agent', 'not_navigation', 'address_rate',
                            'link_rate', 'repeated', 'signal']) with ordinality as r(name, bit)
         where p_reasons & (1 << (bit::integer - 1)) <> 0);

-- Of the visitor an affiliate is told no more than that he came; a merchant, with what.
create function affiliate.click_json(c affiliate.click_seen, p_affiliate boolean)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return (
        select jsonb_build_object(
                   'click', c.id,
                   'at', affiliate.click_time(c.id),
                   'merchant', c.merchant_id,
                   'campaign', c.campaign_id,
                   'link', c.link_id,
                   'code', (select l.code from affiliate.link l where l.merchant_id = c.merchant_id and l.link_id = c.link_id),
                   'livemode', c.livemode,
                   'verdict', affiliate.verdict_name(c.verdict),
                   'reasons', affiliate.verdict_reasons(c.reasons),
                   'sub_ids', coalesce(to_jsonb(c.sub_ids), '[]'))
               || case when p_affiliate then '{}' else jsonb_build_object(
                   'affiliate', c.affiliate_id,
                   'user_agent', c.user_agent,
                   'referrer', c.referrer,
                   'signals', c.signals) end);
end
$$;

-- The clicks of a page, by their ids in order: the index brings no more of them than are wanted, which behind the fence it could
-- not. Null stands for all merchants, affiliates and so on; p_after is the last one of the page before.
create function affiliate.page_of_clicks(
    p_merchant_id bigint, p_affiliate_id bigint, p_livemode boolean, p_campaign_id bigint, p_link_id bigint, p_verdict integer, p_sub_id text,
    p_low uuid, p_high uuid, p_after uuid, p_up boolean, p_rows integer)
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    found_ids uuid[];
begin
    execute format('select array(select c.id from affiliate.click c where %s order by c.id %s limit %s)',
        concat_ws(' and ',
            format('c.id >= %L and c.id < %L and c.livemode = %L', p_low, p_high, p_livemode),
            'c.merchant_id = ' || p_merchant_id, 'c.affiliate_id = ' || p_affiliate_id, 'c.campaign_id = ' || p_campaign_id,
            'c.link_id = ' || p_link_id, 'c.verdict = ' || p_verdict, 'c.sub_ids[1] = ' || quote_literal(p_sub_id),
            case when p_up then 'c.id > ' else 'c.id < ' end || quote_literal(p_after)),
        case when p_up then 'asc' else 'desc' end, p_rows)
       into found_ids;
    return found_ids;
end
$$;

select affiliate.enter_as_tenant(
    'affiliate.page_of_clicks(bigint, bigint, boolean, bigint, bigint, integer, text, uuid, uuid, uuid, boolean, integer)');

-- Clicks, the newest first, of no more than 31 days. Clicks have no index but their time: the rollups say on which days there are
-- any, and only those are looked through.
create function affiliate.click_rows(p_actor affiliate.actor, p_request jsonb, p_filters text[])
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    period record;
    verdict text := affiliate.form_field(p_request, 'verdict', 20, '^(valid|duplicate|suspect|prefetch|preview|bot)$',
                                         'must be valid, duplicate, suspect, prefetch, preview or bot');
    verdict_no integer := array_position('{valid,duplicate,suspect,prefetch,preview,bot}'::text[], verdict) - 1;
    sub_id text := affiliate.text_field(p_request, 'sub_id', 128);
    sort text := coalesce(p_request ->> 'sort', '-id');
    conditions text;
    days record;
begin
    perform affiliate.check_page(p_request, p_filters || '{from,to,campaign,link,verdict,sub_id}'::text[]);
    select * into period from affiliate.period_field(p_request, 7, 31);
    conditions := concat_ws(' and ', format('livemode = %L', p_actor.livemode),
        'merchant_id = ' || case when p_actor.kind in ('merchant', 'key') then p_actor.merchant_id
                                 else affiliate.id_field(p_request, 'merchant') end,
        'affiliate_id = ' || case when p_actor.kind = 'affiliate' then p_actor.affiliate_id
                                  else affiliate.id_field(p_request, 'affiliate') end,
        'campaign_id = ' || affiliate.id_field(p_request, 'campaign'),
        'link_id = ' || affiliate.id_field(p_request, 'link'));
    execute format('select min(day) as first, max(day) as last from affiliate.%I where %s and day between %L and %L',
                   (array['click_days', 'click_link_days'])[1 + (p_request ? 'link')::integer], conditions, period.first, period.last)
       into days;
    if days.first is null then
        return;
    end if;

    if not p_request ? 'all' and sort in ('id', '-id') then
        conditions := conditions || format(' and id = any (%L)', affiliate.page_of_clicks(
            case when p_actor.kind in ('merchant', 'key') then p_actor.merchant_id else affiliate.id_field(p_request, 'merchant') end,
            case when p_actor.kind = 'affiliate' then p_actor.affiliate_id else affiliate.id_field(p_request, 'affiliate') end,
            p_actor.livemode, affiliate.id_field(p_request, 'campaign'), affiliate.id_field(p_request, 'link'), verdict_no, sub_id,
            affiliate.day_bound(days.first), affiliate.day_bound(days.last + 1),
            (affiliate.cursor_values(affiliate.text_field(p_request, 'after', 2000), sort, 'uuid', 'uuid'))[2]::uuid, sort = 'id',
            coalesce(affiliate.integer_field(p_request, 'limit', 1, 200), 50) + 1));
    end if;
    return query select affiliate.page(p_actor, p_request,
        format('select c, c.id from affiliate.click_seen c where c.id >= %L and c.id < %L and %s',
               affiliate.day_bound(days.first), affiliate.day_bound(days.last + 1),
               concat_ws(' and ', conditions, 'verdict = ' || verdict_no, 'sub_ids[1] = ' || quote_literal(sub_id))),
        format('affiliate.click_json(x.c, %L)', p_actor.kind = 'affiliate'), '{-id uuid}', 'id uuid');
end
$$;

select affiliate.operation('affiliate_click_list', actors => '{affiliate}', while_suspended => true);

create function affiliate.api_affiliate_click_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.click_rows(p_actor, p_request, '{}')
$$;

select affiliate.operation('click_list', actors => '{merchant,key,admin}');

create function affiliate.api_click_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.click_rows(p_actor, p_request, '{affiliate}')
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- An affiliate's orders
-- ---------------------------------------------------------------------------------------------------------------

-- When the commission becomes payable, or did; null while nobody knows, or never.
create function affiliate.payable_at(o affiliate.order_now)
returns timestamptz
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return (
        select case affiliate.order_state(o)
                   when 'approved' then o.due_at
                   when 'payable' then
                       (select max(r.released_at)
                          from affiliate.release_item i
                          join affiliate.release r using (merchant_id, release_id)
                         where i.merchant_id = o.merchant_id
                           and i.order_no = o.order_no)
               end);
end
$$;

-- What an affiliate is told of an order: not the merchant's name for it, nor what the network earns.
create function affiliate.affiliate_order_json(o affiliate.order_now)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return (
        select jsonb_build_object(
                   'order_no', o.order_no,
                   'merchant', o.merchant_id,
                   'merchant_name', (select m.name from affiliate.merchant m where m.merchant_id = o.merchant_id),
                   'campaign', o.campaign_id,
                   'link', o.link_id,
                   'code', (select l.code from affiliate.link l where l.merchant_id = o.merchant_id and l.link_id = o.link_id),
                   'livemode', o.livemode,
                   'state', affiliate.order_state(o),
                   'reason', o.problem,
                   'sentence', affiliate.state_sentence(
                       affiliate.order_state(o), o.problem, o.due_at, o.refunded_minor, coalesce(o.currency, o.posted_currency)),
                   'amount', affiliate.amount_text(o.amount_minor, k.decimals),
                   'refunded', affiliate.amount_text(
                       case when o.returned_at is null then o.refunded_minor else o.amount_minor end, k.decimals),
                   'currency', coalesce(o.currency, o.posted_currency),
                   'commission', affiliate.amount_text(o.posted_commission_minor, c.decimals),
                   'commission_currency', o.posted_currency,
                   'clicked_at', o.clicked_at,
                   'reported_at', o.reported_at,
                   'approved_at', o.approved_at,
                   'payable_at', affiliate.payable_at(o))
          from (values (1)) as one(row)
          left join affiliate.currency k on k.currency = coalesce(o.currency, o.posted_currency)
          left join affiliate.currency c on c.currency = o.posted_currency);
end
$$;

-- The way of an order from its click to its payout, event by event. An affiliate sees his part of it: no names of calls and keys,
-- and of the money his commission.
create function affiliate.order_story(o affiliate.order_now, p_affiliate boolean)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with event as (
        select o.clicked_at as at, 1 as place, 0::bigint as step, 'click' as event,
               jsonb_build_object('verdict', affiliate.verdict_name(o.verdict)) as detail
         where o.link_id is not null
        union all
        select c.effective_at, 2, c.conversion_id, affiliate.status_name(c.status),
               jsonb_build_object('amount', affiliate.amount_text(c.amount_minor, k.decimals), 'currency', c.currency,
                                  'reason', c.reason)
               || case when p_affiliate then '{}' else jsonb_build_object(
                      'received_at', c.received_at, 'key', c.key_id, 'idempotency_key', c.idempotency_key,
                      'click', c.click_id, 'click_problem', c.click_problem) end
          from affiliate.conversion c
          left join affiliate.currency k on k.currency = c.currency
         where c.merchant_id = o.merchant_id
           and c.livemode = o.livemode
           and c.order_id = o.order_id
           and not c.waiting
        union all
        select f.reviewed_at, 3, 0, 'review', jsonb_build_object('decision', f.review_decision, 'reason', f.review_reason)
          from affiliate.order_fact f
         where f.merchant_id = o.merchant_id
           and f.order_no = o.order_no
           and f.reviewed_at is not null
        union all
        select t.created_at, 4, t.cause_revision, n.name,
               jsonb_build_object('amount', affiliate.amount_text(t.amount_minor, k.decimals), 'currency', t.currency)
          from affiliate.transfer t
          join affiliate.transfer_code n using (code)
          join affiliate.currency k using (currency)
         where t.merchant_id = o.merchant_id
           and t.cause_kind = 1
           and t.cause_id = o.order_no
           and (not p_affiliate or t.code in (1, 3))
        union all
        select r.released_at, 5, i.revision, 'payable',
               jsonb_build_object('amount', affiliate.amount_text(i.commission_minor, k.decimals), 'currency', r.currency)
          from affiliate.release_item i
          join affiliate.release r using (merchant_id, release_id)
          join affiliate.currency k using (currency)
         where i.merchant_id = o.merchant_id
           and i.order_no = o.order_no
        union all
        select o.due_at, 5, 0, 'payable',
               jsonb_build_object('amount', affiliate.amount_text(o.posted_commission_minor, k.decimals),
                                  'currency', o.posted_currency, 'expected', true)
          from affiliate.currency k
         where k.currency = o.posted_currency
           and o.due_at is not null
    )
    select coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object('at', e.at, 'event', e.event) || e.detail)
                              order by e.at, e.place, e.step), '[]')
      from event e
$$;

select affiliate.operation('affiliate_order_list', actors => '{affiliate}', while_suspended => true);

create function affiliate.api_affiliate_order_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{merchant,campaign,link,state,currency,from,to}');
    perform affiliate.form_field(p_request, 'state', 20, '^(pending|approved|payable|cancelled|refunded|review|rejected)$',
                                 'must be pending, approved, payable, cancelled, refunded, review or rejected');
    return query select affiliate.page(p_actor, p_request,
        format('select n, n.order_no, n.reported_at from affiliate.order_now n where %s', concat_ws(' and ',
            format('n.affiliate_id = %s and n.livemode = %L', p_actor.affiliate_id, p_actor.livemode),
            'n.merchant_id = ' || affiliate.id_field(p_request, 'merchant'),
            'n.campaign_id = ' || affiliate.id_field(p_request, 'campaign'),
            'n.link_id = ' || affiliate.id_field(p_request, 'link'),
            'affiliate.order_state(n) = ' || quote_literal(p_request ->> 'state'),
            'coalesce(n.currency, n.posted_currency) = ' || quote_literal(affiliate.currency_field(p_request, 'currency')),
            'affiliate.utc_day(n.reported_at) >= ' || quote_literal(affiliate.date_field(p_request, 'from')),
            'affiliate.utc_day(n.reported_at) <= ' || quote_literal(affiliate.date_field(p_request, 'to')))),
        'affiliate.affiliate_order_json(x.n)', '{-reported_at timestamptz,order_no bigint}', 'order_no bigint');
end
$$;

select affiliate.operation('affiliate_order_show', actors => '{affiliate}', while_suspended => true);

create function affiliate.api_affiliate_order_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{order_no}');
    return query select affiliate.answer_object(
        (select affiliate.affiliate_order_json(n)
                || jsonb_build_object(
                       'sub_ids', coalesce((select to_jsonb(c.sub_ids) from affiliate.click_seen c
                                             where c.id = n.click_id and c.merchant_id = n.merchant_id), '[]'),
                       'timeline', affiliate.order_story(n, true))
           from affiliate.order_now n
          where n.affiliate_id = p_actor.affiliate_id
            and n.livemode = p_actor.livemode
            and n.order_no = affiliate.path_id(p_request, 'order_no')));
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Balances
-- ---------------------------------------------------------------------------------------------------------------

-- Why an affiliate's payable balance at a merchant is below zero: the latest orders whose commission was payable and was taken back.
create function affiliate.negative_json(p_affiliate_id bigint, p_merchant_id bigint, p_livemode boolean, p_currency text)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
               'sentence', 'More commission was taken back than was payable: it is set off against what you earn next at this merchant.',
               'orders', coalesce((
                   select jsonb_agg(jsonb_build_object(
                              'order_no', x.order_no, 'state', x.state, 'taken', affiliate.amount_text(x.taken, k.decimals))
                              order by x.order_no desc)
                     from (select n.order_no, affiliate.order_state(n) as state, i.commission_minor - n.posted_commission_minor as taken
                             from affiliate.order_now n
                            cross join lateral (
                                      select max(i.commission_minor) as commission_minor
                                        from affiliate.release_item i
                                       where i.merchant_id = n.merchant_id and i.order_no = n.order_no
                                  ) i
                            where n.affiliate_id = p_affiliate_id
                              and n.merchant_id = p_merchant_id
                              and n.livemode = p_livemode
                              and n.posted_currency = p_currency
                              and i.commission_minor > n.posted_commission_minor
                            order by n.order_no desc
                            limit 10) x), '[]'))
      from affiliate.currency k
     where k.currency = p_currency
$$;

-- What an affiliate has at merchants, currency by currency: a row of the currency with each merchant's part.
create function affiliate.wallet_rows(p_affiliate_id bigint, p_livemode boolean)
returns setof jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with part as (
        select a.merchant_id, a.currency, k.decimals,
               coalesce(sum(a.credits_minor - a.debits_minor) filter (where a.kind = 'pending'), 0) as pending,
               coalesce(sum(a.credits_minor - a.debits_minor) filter (where a.kind = 'payable'), 0) as payable,
               coalesce(sum(a.credits_minor - a.debits_minor) filter (where a.kind = 'in_payout'), 0) as in_payout,
               coalesce(sum(a.credits_minor - a.debits_minor) filter (where a.kind = 'paid'), 0) as paid
          from affiliate.account a
          join affiliate.currency k using (currency)
         where a.owner = 'affiliate'
           and a.owner_id = p_affiliate_id
           and a.livemode = p_livemode
         group by a.merchant_id, a.currency, k.decimals
    ),
    due as (
        select h.currency, affiliate.utc_day(h.due_at) as day, count(*) as orders, sum(h.commission_minor) as commission
          from affiliate.hold h
         where h.affiliate_id = p_affiliate_id
           and h.livemode = p_livemode
           and h.due_at < now() + interval '31 days'
         group by 1, 2
    )
    select jsonb_build_object(
               'currency', p.currency,
               'livemode', p_livemode,
               'pending', affiliate.amount_text(sum(p.pending), p.decimals),
               'payable', affiliate.amount_text(sum(p.payable), p.decimals),
               'in_payout', affiliate.amount_text(sum(p.in_payout), p.decimals),
               'paid', affiliate.amount_text(sum(p.paid), p.decimals),
               'negative', affiliate.amount_text(coalesce(sum(p.payable) filter (where p.payable < 0), 0), p.decimals),
               'next_payable_at', (select min(h.due_at) from affiliate.hold h
                                    where h.affiliate_id = p_affiliate_id and h.livemode = p_livemode and h.currency = p.currency),
               'maturing', coalesce((select jsonb_agg(jsonb_build_object(
                                                'day', d.day, 'orders', d.orders,
                                                'commission', affiliate.amount_text(d.commission, p.decimals)) order by d.day)
                                       from due d
                                      where d.currency = p.currency), '[]'),
               'merchants', jsonb_agg(jsonb_build_object(
                   'merchant', p.merchant_id,
                   'merchant_name', (select m.name from affiliate.merchant m where m.merchant_id = p.merchant_id),
                   'pending', affiliate.amount_text(p.pending, p.decimals),
                   'payable', affiliate.amount_text(p.payable, p.decimals),
                   'in_payout', affiliate.amount_text(p.in_payout, p.decimals),
                   'paid', affiliate.amount_text(p.paid, p.decimals),
                   'negative', case when p.payable < 0
                                    then affiliate.negative_json(p_affiliate_id, p.merchant_id, p_livemode, p.currency) end)
                   order by p.merchant_id))
      from part p
     group by p.currency, p.decimals
     order by p.currency
$$;

select affiliate.operation('wallet_list', actors => '{affiliate}', while_suspended => true);

create function affiliate.api_wallet_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request,
        'select w, w ->> ''currency'' as currency from affiliate.wallet_rows($1.affiliate_id, $1.livemode) w', 'x.w',
        '{currency text}', 'currency text');
end
$$;

-- What a merchant owes, and what it will if nothing is cancelled, currency by currency.
create function affiliate.owed_rows(p_merchant_id bigint, p_livemode boolean)
returns setof jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
               'currency', a.currency,
               'livemode', p_livemode,
               'accrued', affiliate.amount_text(
                   coalesce(sum(a.debits_minor - a.credits_minor) filter (where a.owner = 'merchant' and a.kind = 'accrued'), 0), k.decimals),
               'owed', affiliate.amount_text(
                   coalesce(sum(a.debits_minor - a.credits_minor) filter (where a.owner = 'merchant' and a.kind = 'owed'), 0), k.decimals),
               'commission_pending', affiliate.amount_text(
                   coalesce(sum(a.credits_minor - a.debits_minor) filter (where a.owner = 'affiliate' and a.kind = 'pending'), 0), k.decimals),
               'commission_payable', affiliate.amount_text(
                   coalesce(sum(a.credits_minor - a.debits_minor) filter (where a.owner = 'affiliate' and a.kind = 'payable'), 0), k.decimals),
               'fee_pending', affiliate.amount_text(
                   coalesce(sum(a.credits_minor - a.debits_minor) filter (where a.kind = 'fee_pending'), 0), k.decimals),
               'fee_earned', affiliate.amount_text(
                   coalesce(sum(a.credits_minor - a.debits_minor) filter (where a.kind = 'fee_earned'), 0), k.decimals))
      from affiliate.account a
      join affiliate.currency k using (currency)
     where a.merchant_id = p_merchant_id
       and a.livemode = p_livemode
     group by a.currency, k.decimals
     order by a.currency
$$;

select affiliate.operation('owed_list', actors => '{merchant,key,admin}');

create function affiliate.api_owed_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request,
        'select w, w ->> ''currency'' as currency from affiliate.owed_rows($1.merchant_id, $1.livemode) w', 'x.w',
        '{currency text}', 'currency text');
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Statements
-- ---------------------------------------------------------------------------------------------------------------

-- The accounts that a statement is about: an affiliate's at all merchants, or the merchant's own. What it shows is positive where
-- money is as it should be: an affiliate's is what it is owed, a merchant's what it owes.
create function affiliate.statement_accounts(p_actor affiliate.actor)
returns table (merchant_id bigint, account_id bigint, currency text, kind text, sign integer, balance numeric)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select a.merchant_id, a.account_id, a.currency, a.kind,
           case when a.owner = 'merchant' then -1 else 1 end,
           (a.credits_minor - a.debits_minor) * case when a.owner = 'merchant' then -1 else 1 end
      from affiliate.account a
     where a.livemode = p_actor.livemode
       and case when p_actor.kind = 'affiliate' then a.owner = 'affiliate' and a.owner_id = p_actor.affiliate_id
                else a.owner = 'merchant' and a.merchant_id = p_actor.merchant_id end
$$;

-- What moved on these accounts since a time.
create function affiliate.statement_postings(p_actor affiliate.actor, p_since timestamptz)
returns table (merchant_id bigint, cause_kind smallint, cause_id bigint, cause_revision integer, code smallint, created_at timestamptz,
               currency text, kind text, amount numeric)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
set work_mem = '64MB'
set jit = off
as $$
    select t.merchant_id, t.cause_kind, t.cause_id, t.cause_revision, t.code, t.created_at, a.currency, a.kind,
           a.sign * case when t.credit_account = a.account_id then t.amount_minor else - t.amount_minor end::numeric
      from affiliate.statement_accounts(p_actor) a
      join affiliate.transfer t
        on t.merchant_id = a.merchant_id
       and a.account_id in (t.debit_account, t.credit_account)
     where t.created_at >= p_since
$$;

-- A month's statement, currency by currency and account by account: what there was, what moved for what, what there is then.
-- What there was is what there is now less all that moved since: the ledger itself, to the last unit.
create function affiliate.statement_rows(p_actor affiliate.actor, p_since timestamptz, p_until timestamptz)
returns setof jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with posting as materialized (
        select *
          from affiliate.statement_postings(p_actor, p_since)
    ),
    account as (
        select a.currency, a.kind, sum(a.balance) as balance
          from affiliate.statement_accounts(p_actor) a
         group by a.currency, a.kind
    ),
    moved as (
        select p.currency, p.kind, sum(p.amount) as since,
               coalesce(sum(p.amount) filter (where p.created_at < p_until), 0) as amount
          from posting p
         group by p.currency, p.kind
    ),
    by_code as (
        select p.currency, p.kind, p.code, count(*) as lines, sum(p.amount) as amount
          from posting p
         where p.created_at < p_until
         group by p.currency, p.kind, p.code
    )
    select jsonb_build_object(
               'currency', a.currency,
               'livemode', p_actor.livemode,
               'from', p_since,
               'until', p_until,
               -- Postings carry the time at which their transaction began.
               'final', now() > p_until + interval '1 hour',
               'accounts', jsonb_object_agg(a.kind, jsonb_build_object(
                   'opening', affiliate.amount_text(a.balance - coalesce(m.since, 0), k.decimals),
                   'moved', affiliate.amount_text(coalesce(m.amount, 0), k.decimals),
                   'closing', affiliate.amount_text(a.balance - coalesce(m.since, 0) + coalesce(m.amount, 0), k.decimals),
                   'by', coalesce((select jsonb_agg(jsonb_build_object(
                                              'code', n.name, 'sentence', n.sentence, 'lines', c.lines,
                                              'amount', affiliate.amount_text(c.amount, k.decimals)) order by c.code)
                                     from by_code c
                                     join affiliate.transfer_code n using (code)
                                    where c.currency = a.currency and c.kind = a.kind), '[]'))))
      from account a
      join affiliate.currency k using (currency)
      left join moved m using (currency, kind)
     group by a.currency
     order by a.currency
$$;

-- The lines of a month's statement, one a posting. A release is one line, however many orders it was of.
create function affiliate.statement_lines(p_actor affiliate.actor, p_since timestamptz, p_until timestamptz)
returns table (line text, at timestamptz, object jsonb)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select format('%s-%s-%s-%s-%s-%s', p.merchant_id, p.cause_kind, p.cause_id, p.cause_revision, p.code, p.kind),
           p.created_at,
           jsonb_build_object(
               'at', p.created_at,
               'merchant', p.merchant_id,
               'code', n.name,
               'sentence', n.sentence,
               'account', p.kind,
               'amount', affiliate.amount_text(p.amount, k.decimals),
               'currency', p.currency,
               'order_no', case when p.cause_kind = 1 then p.cause_id end,
               'release', case when p.cause_kind = 2 then p.cause_id end,
               'payout', case when p.cause_kind = 3 then p.cause_id end)
           || case when p_actor.kind = 'affiliate' then '{}' else jsonb_build_object(
               'order', (select o.order_id from affiliate.order_fact o
                          where p.cause_kind = 1 and o.merchant_id = p.merchant_id and o.order_no = p.cause_id),
               'payment', case when p.cause_kind = 4 then p.cause_id end,
               'bill', case when p.cause_kind = 5 then p.cause_id end) end
      from affiliate.statement_postings(p_actor, p_since) p
      join affiliate.transfer_code n using (code)
      join affiliate.currency k using (currency)
     where p.created_at < p_until
$$;

create function affiliate.statement(p_actor affiliate.actor, p_request jsonb, p_lines boolean)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    month record;
begin
    perform affiliate.check_page(p_request, '{month}');
    select * into month from affiliate.month_field(p_request, 'month');
    return query select affiliate.page(p_actor, p_request,
        case when p_lines then format('select l.* from affiliate.statement_lines($1, %L, %L) l', month.since, month.until)
             else format('select s as object, s ->> ''currency'' as line from affiliate.statement_rows($1, %L, %L) s', month.since, month.until) end,
        'x.object', case when p_lines then '{at timestamptz}'::text[] else '{line text}' end, 'line text');
end
$$;

select affiliate.operation(o, actors => '{affiliate}', while_suspended => true)
  from unnest('{affiliate_statement_list,affiliate_statement_line_list}'::text[]) o;
select affiliate.operation(o, actors => '{merchant,key,admin}')
  from unnest('{statement_list,statement_line_list}'::text[]) o;

create function affiliate.api_affiliate_statement_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.statement(p_actor, p_request, false)
$$;

create function affiliate.api_affiliate_statement_line_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.statement(p_actor, p_request, true)
$$;

create function affiliate.api_statement_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.statement(p_actor, p_request, false)
$$;

create function affiliate.api_statement_line_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.statement(p_actor, p_request, true)
$$;

select affiliate.seal_operations();
