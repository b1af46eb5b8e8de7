-- Fraud: rules that look at an affiliate's figures, cases for people to decide, and what a case holds meanwhile.
--
--   rollups, order_fact ──rule──▶ fraud_case (open) ──a person──▶ confirmed, dismissed
--                                     │
--                                     └─ of level review or reject, and not in shadow: fraud_hold ──▶ orders under_review
--
-- A rule never rejects anything: it finds figures that a person has to look at. While a case is open, the affiliate's orders that
-- are reported accrue, but don't mature. A case that is dismissed releases them; one that is confirmed leaves them in review, or,
-- at level reject, rejects them, because a person has decided so. No rule looks at addresses: behind one there may be a thousand buyers.
--
-- What is held is kept as spans of time (fraud_hold), made of the cases alone. An order goes by them when it is decided, as it goes
-- by suspensions; orders that were decided by other spans are settled again, some at a time.
--
-- Locks go: case, fraud_hold, then orders as everybody takes them.

-- ---------------------------------------------------------------------------------------------------------------
-- Rules
-- ---------------------------------------------------------------------------------------------------------------

create table affiliate.fraud_rule_kind (
    rule            text primary key check (rule ~ '^[a-z_]+$'),
    place           smallint not null unique,
    sentence        text not null
);

comment on table affiliate.fraud_rule_kind is 'What can be looked for; each has a function fraud_RULE(thresholds, at)';

insert into affiliate.fraud_rule_kind values
    ('self_referral', 1, 'The affiliate earns from a merchant whose people he is one of, or whose address is his.'),
    ('conversion_rate', 2, 'Far more, or far fewer, of an affiliate''s clicks for a campaign lead to orders than is usual.'),
    ('click_to_order', 3, 'Too many orders follow their clicks at once, or all after the same time.'),
    ('order_velocity', 4, 'In one hour an affiliate brings far more orders than in his other hours.'),
    ('duplicate_destination', 5, 'Several affiliates are paid to the same account.'),
    ('reversal_rate', 6, 'Too many of an affiliate''s orders are cancelled, returned or refunded.'),
    ('click_verdicts', 7, 'Too many of an affiliate''s clicks are suspect or come from bots.');

create table affiliate.fraud_threshold (
    rule            text not null references affiliate.fraud_rule_kind,
    name            text not null,
    least           bigint not null,
    most            bigint not null,
    sentence        text not null,
    primary key (rule, name),
    check (least <= most)
);

comment on table affiliate.fraud_threshold is 'The thresholds that each rule has, all of them integers';

insert into affiliate.fraud_threshold values
    ('self_referral', 'days', 1, 90, 'Orders of so many days count'),
    ('self_referral', 'orders', 1, 1000000, 'At least so many orders'),
    ('conversion_rate', 'days', 1, 90, 'Clicks and orders of so many days count'),
    ('conversion_rate', 'clicks', 1, 1000000000, 'At least so many valid clicks'),
    ('conversion_rate', 'orders', 1, 1000000, 'Too many only from so many orders on'),
    ('conversion_rate', 'high_basis_points', 1, 10000, 'Too many: more orders of 10000 clicks'),
    ('conversion_rate', 'low_clicks', 1, 1000000000, 'Too few only from so many valid clicks on'),
    ('conversion_rate', 'low_basis_points', 0, 10000, 'Too few: fewer orders of 10000 clicks'),
    ('click_to_order', 'days', 1, 90, 'Orders of so many days count'),
    ('click_to_order', 'orders', 2, 1000000, 'At least so many orders'),
    ('click_to_order', 'seconds', 1, 86400, 'At once: within fewer seconds of the click'),
    ('click_to_order', 'share_basis_points', 1, 10000, 'At least so many of 10000 orders come at once'),
    ('click_to_order', 'spread_seconds', 0, 86400, 'The same time: the standard deviation is less'),
    ('order_velocity', 'orders', 2, 1000000, 'At least so many orders in an hour'),
    ('order_velocity', 'times', 2, 10000, 'At least so many times the average of the 30 days before'),
    ('duplicate_destination', 'affiliates', 2, 1000, 'At least so many affiliates have the account'),
    ('reversal_rate', 'days', 1, 90, 'Orders of so many days count'),
    ('reversal_rate', 'orders', 1, 1000000, 'At least so many orders that were not rejected'),
    ('reversal_rate', 'share_basis_points', 1, 10000, 'At least so many of 10000 of them were taken back'),
    ('click_verdicts', 'days', 1, 90, 'Clicks of so many days count'),
    ('click_verdicts', 'clicks', 1, 1000000000, 'At least so many clicks, link previews and prefetches left out'),
    ('click_verdicts', 'share_basis_points', 1, 10000, 'At least so many of 10000 of them are suspect or bots''');

create table affiliate.fraud_rule (
    rule            text not null references affiliate.fraud_rule_kind,
    rule_version    integer not null check (rule_version > 0),
    level           text not null check (level in ('record', 'review', 'reject')),
    thresholds      jsonb not null check (jsonb_typeof(thresholds) = 'object'),
    active          boolean not null,
    shadow          boolean not null,
    quiet           interval not null default '30 days' check (quiet > '0'),
    valid_from      timestamptz not null default clock_timestamp(),
    user_id         bigint references affiliate.person,
    reason          text check (length(reason) between 1 and 1000),
    primary key (rule, rule_version)
);

comment on table affiliate.fraud_rule is 'Versions of the rules; the last one is in force. Never updated';
comment on column affiliate.fraud_rule.level is 'record: told only. review: orders are held. reject: held, and rejected if a person confirms the case';
comment on column affiliate.fraud_rule.shadow is 'Cases are found, and nothing follows from them';
comment on column affiliate.fraud_rule.quiet is 'So long after a case the same is not one again; and so long a case that holds nothing stays open';
comment on column affiliate.fraud_rule.user_id is 'Who made it; null: it came with the program';

create trigger immutable before update or delete on affiliate.fraud_rule
    for each row execute function affiliate.refuse_change();

-- In one sentence what is wrong with the thresholds of a rule; null if nothing is.
create function affiliate.threshold_fault(p_rule text, p_thresholds jsonb)
returns text
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select string_agg(f.fault, '; ' order by f.name)
      from (select coalesce(t.name, e.key) as name,
                   case
                       when t.name is null then format('has no %s', e.key)
                       when e.key is null then format('lacks %s', t.name)
                       when jsonb_typeof(e.value) <> 'number' or e.value #>> '{}' !~ '^-?[0-9]{1,18}$'
                         or (e.value #>> '{}')::bigint not between t.least and t.most
                       then format('%s must be an integer from %s to %s', t.name, t.least, t.most)
                   end as fault
              from (select * from affiliate.fraud_threshold where rule = p_rule) t
              full join jsonb_each(p_thresholds) e on e.key = t.name) f
$$;

create function affiliate.check_fraud_rule()
returns trigger
language plpgsql
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    fault text := affiliate.threshold_fault(new.rule, new.thresholds);
begin
    if fault is not null then
        perform affiliate.refuse('thresholds', fault);
    end if;
    return new;
end
$$;

create trigger thresholds before insert on affiliate.fraud_rule
    for each row execute function affiliate.check_fraud_rule();

-- In shadow, so that nobody's orders are held before somebody has looked at what would be.
insert into affiliate.fraud_rule (rule, rule_version, level, thresholds, active, shadow) values
    ('self_referral', 1, 'review', '{"days": 30, "orders": 1}', true, true),
    ('conversion_rate', 1, 'review', '{"days": 15, "clicks": 100, "orders": 10, "high_basis_points": 4000, "low_clicks": 20000, "low_basis_points": 1}', true, true),
    ('click_to_order', 1, 'review', '{"days": 15, "orders": 10, "seconds": 15, "share_basis_points": 3000, "spread_seconds": 5}', true, true),
    ('order_velocity', 1, 'review', '{"orders": 20, "times": 20}', true, true),
    ('duplicate_destination', 1, 'review', '{"affiliates": 2}', true, true),
    ('reversal_rate', 1, 'review', '{"days": 30, "orders": 20, "share_basis_points": 5000}', true, true),
    ('click_verdicts', 1, 'record', '{"days": 15, "clicks": 100, "share_basis_points": 7500}', true, true);

create function affiliate.fraud_rule_now(p_rule text)
returns affiliate.fraud_rule
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select *
      from affiliate.fraud_rule r
     where r.rule = p_rule
     order by r.rule_version desc
     limit 1
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- What each rule finds: of live mode alone, as of a time
-- ---------------------------------------------------------------------------------------------------------------

create type affiliate.fraud_found as (
    affiliate_id bigint, merchant_id bigint, campaign_id bigint, figures jsonb, sentence text
);

-- Basis points as people read them: 3050 is 30.5.
create function affiliate.percent_text(p_part numeric, p_whole numeric)
returns text
language sql immutable parallel safe
return trim_scale(round(100 * p_part / p_whole, 2))::text || ' %';

-- Orders of the days that a rule looks at, by who brought them for what. What was moved is read in spans, as reports do.
create function affiliate.fraud_orders(p_days bigint, p_at timestamptz)
returns table (merchant_id bigint, campaign_id bigint, affiliate_id bigint, counted bigint, reversed bigint)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with place as (
        select s.width, s.first_day
          from affiliate.spans_of(affiliate.utc_day(p_at) - p_days::integer + 1, affiliate.utc_day(p_at), affiliate.utc_day(now())) s
    ),
    count as (
        select o.merchant_id, o.campaign_id, o.affiliate_id, o.pending, o.approved, o.payable, o.cancelled, o.refunded, o.review
          from affiliate.order_day o
         where o.livemode
           and o.affiliate_id is not null
           and o.day between affiliate.utc_day(p_at) - p_days::integer + 1 and affiliate.utc_day(p_at)
        union all
        select o.*
          from place s
         cross join lateral (
                   select o.merchant_id, o.campaign_id, o.affiliate_id, o.pending, o.approved, o.payable, o.cancelled, o.refunded, o.review
                     from affiliate.order_span o
                    where o.width = s.width
                      and o.first_day = s.first_day
                      and o.livemode
                      and o.affiliate_id is not null
                   offset 0
               ) o
    )
    select o.merchant_id, o.campaign_id, o.affiliate_id,
           sum(o.pending + o.approved + o.payable + o.cancelled + o.refunded + o.review)::bigint,
           sum(o.cancelled + o.refunded)::bigint
      from count o
     group by o.merchant_id, o.campaign_id, o.affiliate_id
$$;

create function affiliate.fraud_clicks(p_days bigint, p_at timestamptz)
returns table (merchant_id bigint, campaign_id bigint, affiliate_id bigint, valid bigint, doubtful bigint, counted bigint)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with place as (
        select s.width, s.first_day
          from affiliate.spans_of(affiliate.utc_day(p_at) - p_days::integer + 1, affiliate.utc_day(p_at), affiliate.utc_day(now())) s
    ),
    count as (
        select c.merchant_id, c.campaign_id, c.affiliate_id, c.valid, c.duplicate, c.suspect, c.bot
          from affiliate.click_day c
         where c.livemode
           and c.day between affiliate.utc_day(p_at) - p_days::integer + 1 and affiliate.utc_day(p_at)
        union all
        select c.*
          from place s
         cross join lateral (
                   select c.merchant_id, c.campaign_id, c.affiliate_id, c.valid, c.duplicate, c.suspect, c.bot
                     from affiliate.click_span c
                    where c.width = s.width
                      and c.first_day = s.first_day
                      and c.livemode
                   offset 0
               ) c
    )
    select c.merchant_id, c.campaign_id, c.affiliate_id,
           sum(c.valid)::bigint, sum(c.suspect + c.bot)::bigint, sum(c.valid + c.duplicate + c.suspect + c.bot)::bigint
      from count c
     group by c.merchant_id, c.campaign_id, c.affiliate_id
$$;

create function affiliate.fraud_self_referral(t jsonb, p_at timestamptz)
returns setof affiliate.fraud_found
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with earned as (
        select o.merchant_id, o.affiliate_id, sum(o.counted)::bigint as orders
          from affiliate.fraud_orders((t ->> 'days')::bigint, p_at) o
         group by o.merchant_id, o.affiliate_id
        having sum(o.counted) >= (t ->> 'orders')::bigint
    )
    select e.affiliate_id, e.merchant_id, null::bigint,
           jsonb_build_object('orders', e.orders, 'member', s.member, 'address', s.address),
           format('%s of merchant %s; %s orders in %s days.',
                  concat_ws(' and ', case when s.member then 'The affiliate is one of the people' end,
                            case when s.address then case when s.member then 'has an e-mail address' else 'The affiliate has an e-mail address' end end),
                  e.merchant_id, e.orders, t ->> 'days')
      from earned e
      join affiliate.affiliate a using (affiliate_id)
      left join affiliate.person p on p.user_id = a.user_id
     cross join lateral (
               select exists (select from affiliate.member m where m.merchant_id = e.merchant_id and m.user_id = a.user_id) as member,
                      exists (select
                                from affiliate.merchant_profile f
                               where f.merchant_id = e.merchant_id
                                 and lower(f.contact_email) in (lower(a.email), lower(p.email)))
                      or exists (select
                                   from affiliate.member m
                                   join affiliate.person q using (user_id)
                                  where m.merchant_id = e.merchant_id
                                    and m.user_id is distinct from a.user_id
                                    and q.verified_at is not null
                                    and lower(q.email) in (lower(a.email), lower(p.email))) as address
              offset 0
           ) s
     where s.member or s.address
$$;

create function affiliate.fraud_conversion_rate(t jsonb, p_at timestamptz)
returns setof affiliate.fraud_found
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select c.affiliate_id, c.merchant_id, c.campaign_id,
           jsonb_build_object('clicks', c.valid, 'orders', n.orders),
           format('%s valid clicks in %s days brought %s orders: %s, %s.', c.valid, t ->> 'days', n.orders,
                  affiliate.percent_text(n.orders, c.valid), case when n.high then 'far more than usual' else 'far fewer than usual' end)
      from affiliate.fraud_clicks((t ->> 'days')::bigint, p_at) c
      left join affiliate.fraud_orders((t ->> 'days')::bigint, p_at) o using (merchant_id, campaign_id, affiliate_id)
     cross join lateral (
               select coalesce(o.counted, 0) as orders,
                      c.valid >= (t ->> 'clicks')::bigint
                      and coalesce(o.counted, 0) >= (t ->> 'orders')::bigint
                      and coalesce(o.counted, 0)::numeric * 10000 > c.valid::numeric * (t ->> 'high_basis_points')::bigint as high,
                      c.valid >= (t ->> 'low_clicks')::bigint
                      and coalesce(o.counted, 0)::numeric * 10000 < c.valid::numeric * (t ->> 'low_basis_points')::bigint as low
           ) n
     where n.high or n.low
$$;

-- The orders themselves are looked at only of those who have enough of them.
create function affiliate.fraud_click_to_order(t jsonb, p_at timestamptz)
returns setof affiliate.fraud_found
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with enough as (
        select o.affiliate_id
          from affiliate.fraud_orders((t ->> 'days')::bigint, p_at) o
         group by o.affiliate_id
        having sum(o.counted) >= (t ->> 'orders')::bigint
    )
    select e.affiliate_id, null::bigint, null::bigint,
           jsonb_build_object('orders', s.orders, 'soon', s.soon, 'spread_seconds', s.spread),
           format('%s of %s orders in %s days came within %s seconds of their clicks; the times from click to order spread by %s seconds.',
                  s.soon, s.orders, t ->> 'days', t ->> 'seconds', s.spread)
      from enough e
     cross join lateral (
               select count(*) as orders,
                      count(*) filter (where w.seconds < (t ->> 'seconds')::bigint) as soon,
                      round(stddev_pop(w.seconds), 1) as spread
                 from affiliate.order_fact o
                cross join lateral (select extract(epoch from o.reported_at - o.clicked_at) as seconds) w
                where o.affiliate_id = e.affiliate_id
                  and o.livemode
                  and o.reported_at > p_at - (t ->> 'days')::integer * interval '24 hours'
                  and o.reported_at <= p_at
                  and o.outcome <> 'rejected'
               offset 0
           ) s
     where s.orders >= (t ->> 'orders')::bigint
       and (s.soon * 10000 >= s.orders * (t ->> 'share_basis_points')::bigint
            or s.spread < (t ->> 'spread_seconds')::bigint)
$$;

-- The busiest of the last 24 hours beside the average hour of the 30 days before them.
create function affiliate.fraud_order_velocity(t jsonb, p_at timestamptz)
returns setof affiliate.fraud_found
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with enough as (
        select o.affiliate_id
          from affiliate.fraud_orders(2, p_at) o
         group by o.affiliate_id
        having sum(o.counted) >= (t ->> 'orders')::bigint
    )
    select e.affiliate_id, null::bigint, null::bigint,
           jsonb_build_object('orders', h.orders, 'hour', h.hour, 'usual', round(b.orders / 720.0, 2)),
           format('%s orders in the hour from %s; in the 30 days before it were %s an hour.', h.orders, affiliate.utc_text(h.hour),
                  trim_scale(round(b.orders / 720.0, 2)))
      from enough e
     cross join lateral (
               select date_trunc('hour', o.reported_at) as hour, count(*) as orders
                 from affiliate.order_fact o
                where o.affiliate_id = e.affiliate_id
                  and o.livemode
                  and o.reported_at > p_at - interval '24 hours'
                  and o.reported_at <= p_at
                  and o.outcome <> 'rejected'
                group by date_trunc('hour', o.reported_at)
                order by count(*) desc, date_trunc('hour', o.reported_at)
                limit 1
           ) h
     cross join lateral (
               select coalesce(sum(o.pending + o.approved + o.payable + o.cancelled + o.refunded + o.review), 0) as orders
                 from affiliate.order_days o
                where o.affiliate_id = e.affiliate_id
                  and o.livemode
                  and o.day >= affiliate.utc_day(p_at) - 31
                  and o.day < affiliate.utc_day(p_at) - 1
           ) b
     where h.orders >= (t ->> 'orders')::bigint
       and h.orders * 720 >= b.orders * (t ->> 'times')::bigint
$$;

create function affiliate.fraud_duplicate_destination(t jsonb, p_at timestamptz)
returns setof affiliate.fraud_found
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with shared as (
        select m.kind, m.account, m.bank, array_agg(distinct m.affiliate_id order by m.affiliate_id) as affiliates
          from affiliate.payout_method m
         where m.created_at <= p_at
           and (m.removed_at is null or m.removed_at > p_at)
         group by m.kind, m.account, m.bank
        having count(distinct m.affiliate_id) >= (t ->> 'affiliates')::bigint
    )
    select distinct on (a.affiliate_id)
           a.affiliate_id, null::bigint, null::bigint,
           jsonb_build_object('affiliates', to_jsonb(s.affiliates), 'kind', s.kind, 'account', affiliate.masked(s.account)),
           format('Affiliates %s are paid to the same account, %s %s.', array_to_string(s.affiliates, ', '), s.kind, affiliate.masked(s.account))
      from shared s
     cross join lateral unnest(s.affiliates) as a(affiliate_id)
     order by a.affiliate_id, cardinality(s.affiliates) desc, s.kind, s.account
$$;

create function affiliate.fraud_reversal_rate(t jsonb, p_at timestamptz)
returns setof affiliate.fraud_found
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select o.affiliate_id, o.merchant_id, null::bigint,
           jsonb_build_object('orders', sum(o.counted), 'reversed', sum(o.reversed)),
           format('%s of %s orders of %s days were cancelled, returned or refunded: %s.', sum(o.reversed), sum(o.counted), t ->> 'days',
                  affiliate.percent_text(sum(o.reversed), sum(o.counted)))
      from affiliate.fraud_orders((t ->> 'days')::bigint, p_at) o
     group by o.affiliate_id, o.merchant_id
    having sum(o.counted) >= (t ->> 'orders')::bigint
       and sum(o.reversed) * 10000 >= sum(o.counted) * (t ->> 'share_basis_points')::bigint
$$;

create function affiliate.fraud_click_verdicts(t jsonb, p_at timestamptz)
returns setof affiliate.fraud_found
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select c.affiliate_id, null::bigint, null::bigint,
           jsonb_build_object('clicks', sum(c.counted), 'doubtful', sum(c.doubtful)),
           format('%s of %s clicks of %s days were suspect or bots'': %s.', sum(c.doubtful), sum(c.counted), t ->> 'days',
                  affiliate.percent_text(sum(c.doubtful), sum(c.counted)))
      from affiliate.fraud_clicks((t ->> 'days')::bigint, p_at) c
     group by c.affiliate_id
    having sum(c.counted) >= (t ->> 'clicks')::bigint
       and sum(c.doubtful) * 10000 >= sum(c.counted) * (t ->> 'share_basis_points')::bigint
$$;

create function affiliate.fraud_find(p_rule text, p_thresholds jsonb, p_at timestamptz)
returns setof affiliate.fraud_found
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
set jit = off
as $$
begin
    return query execute format('select * from affiliate.%I($1, $2)', 'fraud_' || p_rule) using p_thresholds, p_at;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Cases, and what they hold
-- ---------------------------------------------------------------------------------------------------------------

create table affiliate.fraud_case (
    case_id         bigint generated always as identity primary key,
    rule            text not null,
    rule_version    integer not null,
    level           text not null check (level in ('record', 'review', 'reject')),
    shadow          boolean not null,
    affiliate_id    bigint not null references affiliate.affiliate,
    merchant_id     bigint references affiliate.merchant,
    campaign_id     bigint,
    figures         jsonb not null,
    sentence        text not null,
    state           text not null default 'open' check (state in ('open', 'confirmed', 'dismissed', 'expired')),
    opened_at       timestamptz not null default now(),
    decided_at      timestamptz,
    user_id         bigint references affiliate.person,
    reason          text check (length(reason) between 1 and 1000),
    settled         boolean not null default true,
    version         bigint not null default 1,
    foreign key (rule, rule_version) references affiliate.fraud_rule,
    check ((state = 'open') = (decided_at is null)),
    check ((state in ('confirmed', 'dismissed')) = (user_id is not null and reason is not null))
);

create trigger fraud_case_version before update on affiliate.fraud_case
    for each row execute function affiliate.count_version();
create trigger kept before delete on affiliate.fraud_case
    for each row execute function affiliate.refuse_change();

create unique index fraud_case_open on affiliate.fraud_case (rule, shadow, affiliate_id, merchant_id, campaign_id) nulls not distinct
    where state = 'open';
create index fraud_case_affiliate on affiliate.fraud_case (affiliate_id, case_id);
create index fraud_case_opened on affiliate.fraud_case (state, opened_at, case_id);
create index fraud_case_unsettled on affiliate.fraud_case (case_id) where not settled;

comment on table affiliate.fraud_case is 'What a rule has found about an affiliate, and what a person decided';
comment on column affiliate.fraud_case.figures is 'What was counted, as of opened_at';
comment on column affiliate.fraud_case.settled is 'False until all orders follow from its decision';

-- True of a case that holds orders, or, decided, has held them and not let them go.
create function affiliate.case_holds(c affiliate.fraud_case)
returns boolean
language sql immutable parallel safe
return c.level <> 'record' and not c.shadow and c.state in ('open', 'confirmed');

-- True of an order that a case of level reject has held, once a person has confirmed it.
create function affiliate.case_rejects(c affiliate.fraud_case, o affiliate.order_fact)
returns boolean
language sql immutable parallel safe
return c.level = 'reject' and c.state = 'confirmed' and not c.shadow
   and o.problem = 'under_review' and o.reported_at >= c.opened_at and o.reported_at < c.decided_at;

create table affiliate.fraud_hold (
    affiliate_id    bigint primary key references affiliate.affiliate,
    held            tstzmultirange not null
);

comment on table affiliate.fraud_hold is 'When an affiliate''s orders were to be reviewed: an order is held if its first report lies inside. Follows from his cases';

create function affiliate.fraud_spans(p_affiliate_id bigint)
returns tstzmultirange
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select coalesce(range_agg(tstzrange(c.opened_at, coalesce(c.decided_at, 'infinity'))), '{}')
      from affiliate.fraud_case c
     where c.affiliate_id = p_affiliate_id
       and affiliate.case_holds(c)
$$;

-- The caller has locked, or made, a case of the affiliate. Two people may decide two of his cases at once: the row is locked before
-- the cases are read.
create function affiliate.renew_fraud_hold(p_affiliate_id bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    insert into affiliate.fraud_hold (affiliate_id, held) values (p_affiliate_id, '{}') on conflict do nothing;
    perform from affiliate.fraud_hold h where h.affiliate_id = p_affiliate_id for update;
    update affiliate.fraud_hold h
       set held = affiliate.fraud_spans(p_affiliate_id)
     where h.affiliate_id = p_affiliate_id;
end
$$;

-- Has orders follow from the cases, or from one of them: up to so many orders, which are settled together, so that they are locked as
-- everybody locks them. Returns how many. A case that is open stays unsettled, and so does one that was decided a moment ago: reports
-- that were under way then come behind it.
create function affiliate.settle_cases(p_max integer, p_case_id bigint default null)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set jit = off
as $$
declare
    c affiliate.fraud_case;
    touched bigint := 0;
    found bigint;
begin
    perform affiliate.work_tables();
    perform affiliate.work_clear('order_touched');
    for c in
        select x.* from affiliate.fraud_case x where not x.settled and x.case_id = coalesce(p_case_id, x.case_id) order by x.case_id
    loop
        insert into pg_temp.order_touched
        select o.merchant_id, o.livemode, o.order_id, null
          from affiliate.order_fact o
         where o.affiliate_id = c.affiliate_id
           and o.livemode
           and o.reported_at >= c.opened_at
           and (o.fraud_held <> coalesce((select h.held @> o.reported_at from affiliate.fraud_hold h where h.affiliate_id = c.affiliate_id), false)
                or affiliate.case_rejects(c, o))
           and not exists (select
                             from pg_temp.order_touched t
                            where t.merchant_id = o.merchant_id and t.livemode = o.livemode and t.order_id = o.order_id)
         order by o.reported_at
         limit p_max - touched;
        get diagnostics found = row_count;
        touched := touched + found;
        exit when touched >= p_max;
        if found = 0 and c.decided_at < now() - interval '1 hour' then
            update affiliate.fraud_case x set settled = true where x.case_id = c.case_id;
        end if;
    end loop;

    if touched > 0 then
        perform from affiliate.order_fact o
           join pg_temp.order_touched t using (merchant_id, livemode, order_id)
          order by o.merchant_id, o.livemode, o.order_id
            for update of o;
        update affiliate.order_fact o
           set review_decision = 'reject', review_reason = d.reason, reviewed_at = now()
          from (select distinct on (t.merchant_id, t.livemode, t.order_id) t.merchant_id, t.livemode, t.order_id, x.reason
                  from pg_temp.order_touched t
                  join affiliate.order_fact f using (merchant_id, livemode, order_id)
                  join affiliate.fraud_case x on x.affiliate_id = f.affiliate_id and not x.settled and affiliate.case_rejects(x, f)
                 where x.case_id = coalesce(p_case_id, x.case_id)
                 order by t.merchant_id, t.livemode, t.order_id, x.case_id) d
         where o.merchant_id = d.merchant_id
           and o.livemode = d.livemode
           and o.order_id = d.order_id;
        perform affiliate.settle_orders();
    end if;
    return touched;
end
$$;

-- Looks for what one rule finds now, and opens its cases: once for the same, until `quiet` after it was decided.
create function affiliate.open_cases(r affiliate.fraud_rule)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    holding bigint[];
    opened bigint;
    a bigint;
begin
    with new as (
        insert into affiliate.fraud_case
              (rule, rule_version, level, shadow, affiliate_id, merchant_id, campaign_id, figures, sentence, settled)
        select r.rule, r.rule_version, r.level, r.shadow, f.affiliate_id, f.merchant_id, f.campaign_id, f.figures, f.sentence,
               r.shadow or r.level = 'record'
          from affiliate.fraud_find(r.rule, r.thresholds, now()) f
         where not exists (select
                             from affiliate.fraud_case c
                            where c.affiliate_id = f.affiliate_id
                              and c.rule = r.rule
                              and (c.merchant_id, c.campaign_id) is not distinct from (f.merchant_id, f.campaign_id)
                              -- What was only looked at in shadow is no reason to overlook it now.
                              and (not c.shadow or r.shadow)
                              and (c.state = 'open' or c.decided_at > now() - r.quiet))
            on conflict do nothing
        returning affiliate_id, settled
    )
    select count(*), array_agg(distinct n.affiliate_id order by n.affiliate_id) filter (where not n.settled)
      into opened, holding
      from new n;
    foreach a in array coalesce(holding, '{}') loop
        perform affiliate.renew_fraud_hold(a);
    end loop;
    return opened;
end
$$;

-- Cases that hold nothing and that nobody has decided end by themselves. What holds money never does.
create function affiliate.expire_cases()
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    expired bigint;
begin
    update affiliate.fraud_case c
       set state = 'expired', decided_at = now()
      from affiliate.fraud_rule r
     where c.state = 'open'
       and (c.level = 'record' or c.shadow)
       and r.rule = c.rule
       and r.rule_version = c.rule_version
       and c.opened_at <= now() - r.quiet;
    get diagnostics expired = row_count;
    return expired;
end
$$;

-- Called by the daemon from time to time, beside others of its kind: one of them works. What the cases hold follows by
-- fraud_settle(), as often as it finds something.
create function affiliate.fraud_run()
returns table (opened bigint, expired bigint)
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    r affiliate.fraud_rule;
begin
    opened := 0;
    expired := 0;
    if pg_try_advisory_xact_lock('affiliate.fraud_case'::regclass::integer, 0) then
        expired := affiliate.expire_cases();
        for r in
            select distinct on (x.rule) x.* from affiliate.fraud_rule x order by x.rule, x.rule_version desc
        loop
            if r.active then
                opened := opened + affiliate.open_cases(r);
            end if;
        end loop;
    end if;
    return next;
end
$$;

create function affiliate.fraud_settle(p_orders integer)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    if pg_try_advisory_xact_lock('affiliate.fraud_case'::regclass::integer, 0) then
        return affiliate.settle_cases(p_orders);
    end if;
    return 0;
end
$$;

-- What speaks against a payout, for the person who looks at it.
create function affiliate.fraud_signals(p_affiliate_id bigint, p_livemode boolean)
returns table (detail text)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select format('case %s (%s) is %s: %s', c.case_id, c.rule, c.state, c.sentence)
      from affiliate.fraud_case c
     where p_livemode
       and c.affiliate_id = p_affiliate_id
       and c.state in ('open', 'confirmed')
       and not c.shadow
     order by c.case_id
$$;

-- What a version of a rule would have held in the last days, had it been in force and not in shadow: as of the end of each day,
-- the affiliates that it finds, and from then on their orders that nothing else spoke against.
create function affiliate.fraud_preview(p_rule text, p_thresholds jsonb, p_days integer)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
set jit = off
as $$
    with found as (
        select f.affiliate_id, min(d.at) as since
          from generate_series(0, p_days - 1) n
         cross join lateral (select now() - n * interval '24 hours' as at) d
         cross join lateral affiliate.fraud_find(p_rule, p_thresholds, d.at) f
         group by f.affiliate_id
    ),
    held as (
        select f.affiliate_id, f.since, o.posted_currency as currency, o.amount_minor, o.posted_commission_minor as commission_minor
          from found f
          left join lateral (
                   select *
                     from affiliate.order_fact o
                    where o.affiliate_id = f.affiliate_id
                      and o.livemode
                      and o.reported_at >= f.since
                      and (o.outcome = 'accepted' or o.problem = 'under_review')
                   offset 0
               ) o on true
    ),
    money as (
        select h.currency, count(*) as orders, sum(h.amount_minor) as amount, sum(h.commission_minor) as commission
          from held h
         where h.currency is not null
         group by h.currency
    )
    select jsonb_build_object(
        'days', p_days,
        'affiliates', (select count(*) from found),
        'orders', (select coalesce(sum(m.orders), 0) from money m),
        'money', (select coalesce(jsonb_agg(jsonb_build_object(
                             'currency', m.currency, 'orders', m.orders,
                             'amount', affiliate.amount_text(coalesce(m.amount, 0), k.decimals),
                             'commission', affiliate.amount_text(m.commission, k.decimals)) order by m.currency), '[]')
                    from money m
                    join affiliate.currency k using (currency)))
$$;

-- A person's decision. Of many orders, the first follow at once, and the others as the daemon comes by.
create function affiliate.decide_case(p_actor affiliate.actor, p_case_id bigint, p_state text, p_reason text)
returns affiliate.fraud_case
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.fraud_case;
    after affiliate.fraud_case;
begin
    select * into before from affiliate.fraud_case c where c.case_id = p_case_id for update;
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such case.');
    end if;
    if before.state <> 'open' then
        perform affiliate.problem(409, 'fraud_case_state', format('The case is %s already.', before.state));
    end if;
    update affiliate.fraud_case c
       set state = p_state, decided_at = now(), user_id = p_actor.user_id, reason = p_reason,
           settled = c.shadow or c.level = 'record'
     where c.case_id = p_case_id
    returning * into after;
    if not after.settled then
        perform affiliate.renew_fraud_hold(after.affiliate_id);
        perform affiliate.settle_cases(1000, after.case_id);
    end if;
    perform affiliate.record(p_actor, case p_state when 'confirmed' then 'fraud_case.confirm' else 'fraud_case.dismiss' end,
        'fraud_case', p_case_id::text, jsonb_build_object('state', before.state), jsonb_build_object('state', after.state), p_reason);
    return after;
end
$$;

-- What is held follows from the cases.
create function affiliate.audit_fraud(p_since timestamptz default null)
returns table (invariant text, merchant_id bigint, subject text, detail text)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select 'what is held follows from the cases', null::bigint, 'affiliate ' || a.affiliate_id,
           format('held %s, cases say %s', coalesce(h.held, '{}'), affiliate.fraud_spans(a.affiliate_id))
      from (select c.affiliate_id from affiliate.fraud_case c union select x.affiliate_id from affiliate.fraud_hold x) a
      left join affiliate.fraud_hold h using (affiliate_id)
     where coalesce(h.held, '{}') <> affiliate.fraud_spans(a.affiliate_id)
$$;

select affiliate.fence(t, p_merchant => null)
  from unnest(array['affiliate.fraud_case', 'affiliate.fraud_rule', 'affiliate.fraud_hold']::regclass[]) t;
grant select on affiliate.fraud_rule_kind, affiliate.fraud_threshold to affiliate_tenant;

-- ---------------------------------------------------------------------------------------------------------------
-- Operations
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.fraud_rule_json(r affiliate.fraud_rule)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'rule', r.rule,
        'sentence', k.sentence,
        'version', r.rule_version,
        'level', r.level,
        'thresholds', r.thresholds,
        'active', r.active,
        'shadow', r.shadow,
        'quiet_days', extract(epoch from r.quiet)::bigint / 86400,
        'valid_from', r.valid_from,
        'user', r.user_id,
        'reason', r.reason)
      from affiliate.fraud_rule_kind k
     where k.rule = r.rule
$$;

create function affiliate.fraud_case_json(c affiliate.fraud_case)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return jsonb_build_object(
        'case', c.case_id,
        'rule', c.rule,
        'rule_version', c.rule_version,
        'level', c.level,
        'shadow', c.shadow,
        'affiliate', c.affiliate_id,
        'affiliate_name', (select a.name from affiliate.affiliate a where a.affiliate_id = c.affiliate_id),
        'merchant', c.merchant_id,
        'campaign', c.campaign_id,
        'figures', c.figures,
        'sentence', c.sentence,
        'state', c.state,
        'opened_at', c.opened_at,
        'decided_at', c.decided_at,
        'user', c.user_id,
        'reason', c.reason,
        'version', c.version);
end
$$;

create function affiliate.find_fraud_rule(p_request jsonb)
returns affiliate.fraud_rule
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    r affiliate.fraud_rule := affiliate.fraud_rule_now(affiliate.text_field(p_request, 'rule', 50));
begin
    if r.rule is null then
        perform affiliate.problem(404, 'not_found', 'There is no such rule.');
    end if;
    return r;
end
$$;

-- The next version of a rule: what the request does not name stays as it is.
create function affiliate.change_fraud_rule(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.fraud_rule;
    after affiliate.fraud_rule;
    days bigint := affiliate.integer_field(p_request, 'quiet_days', 1, 365);
begin
    perform from affiliate.fraud_rule_kind k where k.rule = p_request ->> 'rule' for update;
    before := affiliate.find_fraud_rule(p_request);
    perform affiliate.check_version(p_request, before.rule_version);
    if p_request ? 'thresholds' and jsonb_typeof(p_request -> 'thresholds') <> 'object' then
        perform affiliate.refuse('thresholds', 'must be an object');
    end if;
    insert into affiliate.fraud_rule (rule, rule_version, level, thresholds, active, shadow, quiet, user_id, reason)
    values (before.rule, before.rule_version + 1,
            coalesce(affiliate.form_field(p_request, 'level', 10, '^(record|review|reject)$', 'must be record, review or reject'), before.level),
            coalesce(p_request -> 'thresholds', before.thresholds),
            coalesce(affiliate.boolean_field(p_request, 'active'), before.active),
            coalesce(affiliate.boolean_field(p_request, 'shadow'), before.shadow),
            coalesce(days * interval '24 hours', before.quiet), p_actor.user_id, affiliate.text_field(p_request, 'reason', 1000))
    returning * into after;
    perform affiliate.record(p_actor, 'fraud_rule.update', 'fraud_rule', after.rule, affiliate.fraud_rule_json(before),
                             affiliate.fraud_rule_json(after), after.reason);
    return affiliate.fraud_rule_json(after);
end
$$;

create function affiliate.decide_fraud_case(p_actor affiliate.actor, p_request jsonb, p_state text)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return affiliate.fraud_case_json(affiliate.decide_case(
        p_actor, affiliate.id_field(p_request, 'case'), p_state, affiliate.text_field(p_request, 'reason', 1000)));
end
$$;

-- Of what is asked for, or else of the version in force.
create function affiliate.preview_fraud_rule(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    r affiliate.fraud_rule := affiliate.find_fraud_rule(p_request);
begin
    return jsonb_build_object('rule', r.rule, 'version', r.rule_version)
        || affiliate.fraud_preview(r.rule, r.thresholds, coalesce(affiliate.integer_field(p_request, 'days', 1, 90), 30)::integer);
end
$$;

select affiliate.enter_as_owner('affiliate.fraud_run()', 'affiliate.fraud_settle(integer)');
select affiliate.enter_as_tenant(
    'affiliate.fraud_signals(bigint, boolean)',
    'affiliate.change_fraud_rule(affiliate.actor, jsonb)',
    'affiliate.decide_fraud_case(affiliate.actor, jsonb, text)',
    'affiliate.preview_fraud_rule(affiliate.actor, jsonb)');

create function affiliate.api_fraud_rule_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request,
        'select affiliate.fraud_rule_now(k.rule) as r, k.place, k.rule from affiliate.fraud_rule_kind k',
        'affiliate.fraud_rule_json(x.r)', '{place smallint}', 'rule text');
end
$$;

create function affiliate.api_fraud_rule_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    r affiliate.fraud_rule;
begin
    perform affiliate.check_request(p_request, '{rule}');
    r := affiliate.find_fraud_rule(p_request);
    perform affiliate.answer_version(r.rule_version);
    return next affiliate.fraud_rule_json(r);
end
$$;

create function affiliate.api_fraud_rule_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{rule,reason}', '{level,thresholds,active,shadow,quiet_days}');
    return next affiliate.change_fraud_rule(p_actor, p_request);
end
$$;

create function affiliate.api_fraud_rule_preview(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{rule}', '{days}');
    return next affiliate.preview_fraud_rule(p_actor, p_request);
end
$$;

create function affiliate.api_fraud_case_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{state,rule,level,affiliate,shadow}');
    return query select affiliate.page(p_actor, p_request,
        'select c, c.case_id as "case", c.opened_at from affiliate.fraud_case c where '
        || concat_ws(' and ', 'true',
               'c.state = ' || quote_literal(affiliate.form_field(p_request, 'state', 20, '^(open|confirmed|dismissed|expired)$',
                                                                  'must be open, confirmed, dismissed or expired')),
               'c.level = ' || quote_literal(affiliate.form_field(p_request, 'level', 10, '^(record|review|reject)$',
                                                                  'must be record, review or reject')),
               'c.rule = ' || quote_literal(affiliate.text_field(p_request, 'rule', 50)),
               'c.affiliate_id = ' || affiliate.id_field(p_request, 'affiliate'),
               'c.shadow = ' || quote_literal(affiliate.boolean_field(p_request, 'shadow'))),
        'affiliate.fraud_case_json(x.c)', '{-opened_at timestamptz}', 'case bigint');
end
$$;

create function affiliate.api_fraud_case_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.fraud_case;
begin
    perform affiliate.check_request(p_request, '{case}');
    select * into c from affiliate.fraud_case x where x.case_id = affiliate.id_field(p_request, 'case');
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such case.');
    end if;
    perform affiliate.answer_version(c.version);
    return next affiliate.fraud_case_json(c);
end
$$;

create function affiliate.api_fraud_case_confirm(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{case,reason}');
    return next affiliate.decide_fraud_case(p_actor, p_request, 'confirmed');
end
$$;

create function affiliate.api_fraud_case_dismiss(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{case,reason}');
    return next affiliate.decide_fraud_case(p_actor, p_request, 'dismissed');
end
$$;

select affiliate.operation(o, actors => '{admin}')
  from unnest('{fraud_rule_list,fraud_rule_show,fraud_rule_preview,fraud_case_list,fraud_case_show}'::text[]) o;
select affiliate.operation('fraud_rule_update', actors => '{admin}', mutates => true);
select affiliate.operation(o, actors => '{admin}', creates => true)
  from unnest('{fraud_case_confirm,fraud_case_dismiss}'::text[]) o;

select affiliate.seal_operations();
