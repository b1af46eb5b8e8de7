-- From events to money. The one way on which an order's money moves:
--
--   conversions --(values, never arrival)--> facts --(order_problem, position)--> what should stand --(difference)--> transfers
--
-- Most orders are new and have one event in their batch: that event is their facts, and they are inserted, decided, in
-- one pass. All others are locked first, and their facts are merged from all their conversions.
--
-- Everybody takes locks in the same order, so nobody deadlocks: idempotency keys, orders that are inserted, orders that are
-- there, holds, accounts, each in the order of their keys and in one statement. All orders are inserted before any is locked:
-- whoever locks has every order of its batch, its own or committed, and never has to go back.
--
-- Statements work on whole batches. They read the big tables by laterals that can only be index look-ups, join what is
-- in the batch by hashes, and the settings pinned on the functions keep a plan that was made when the tables were small
-- from being a bad one when they have grown. What is sorted has the keys in front, where comparing finds them at once. Where a subquery ends in offset 0, the next level sees columns instead of
-- expressions: then the functions of money are inlined, which costs a tenth of calling them.

-- Creates this session's work tables.
create function affiliate.work_tables()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    if to_regclass('pg_temp.order_touched') is not null then
        return;
    end if;

    -- A batch's work tables fit, so that they are never written out. Only a session's first use of a temporary table may say so.
    begin
        perform set_config('temp_buffers', '64MB', false);
    exception when invalid_parameter_value then
        null;
    end;

    create temp table waiting_due (
        place tid, merchant_id bigint, livemode boolean, order_id text collate "C", conversion_id bigint,
        arrived boolean, mine boolean, elsewhere boolean, over boolean,
        link_id bigint, campaign_id bigint, affiliate_id bigint, verdict smallint, sub_id text collate "C"
    ) on commit delete rows;

    -- Conversions that a batch has added, and records of it that were none.
    create temp table conversion_new (
        merchant_id bigint, livemode boolean, order_id text collate "C", status smallint, customer smallint,
        waiting boolean, refunding boolean, record integer, sequence integer, spool_id bigint, segment bigint,
        conversion_id bigint, effective_at timestamptz, clicked_at timestamptz, click_id uuid, verdict smallint,
        link_id bigint, campaign_id bigint, affiliate_id bigint, amount_minor bigint, click_problem text, currency text,
        sub_id text collate "C",
        item_sku text[], item_category text[], item_quantity integer[], item_amount bigint[]
    ) on commit delete rows;

    create temp table record_left (
        spool_id bigint, segment bigint, sequence integer, record integer, dead text, detail text
    ) on commit delete rows;

    create temp table order_touched (
        merchant_id bigint, livemode boolean, order_id text collate "C", events bigint
    ) on commit delete rows;

    create temp table order_known (
        merchant_id bigint, livemode boolean, order_id text collate "C",
        order_no bigint, revision integer, hold_until timestamptz,
        posted_affiliate_id bigint, posted_commission_minor bigint, posted_fee_minor bigint,
        posted_payable boolean, posted_currency text,
        review_decision text, review_reason text, reviewed_at timestamptz,
        counted boolean, state text, day date, campaign_id bigint, link_id bigint, sub_id text collate "C",
        currency text collate "C", amount_minor bigint, kept_minor bigint, reversed_minor bigint,
        item_sku text[], item_quantity integer[], item_amount bigint[]
    ) on commit delete rows;

    create temp table order_held (hold tid) on commit delete rows;

    -- What each decided order means for the ledger: by how much its money differs from what is posted, and what is to be held.
    create temp table move (
        merchant_id bigint, order_no bigint, affiliate_id bigint, commission_minor bigint, fee_minor bigint,
        held_commission_minor bigint, held_fee_minor bigint, revision integer, livemode boolean, payable boolean,
        hold_until timestamptz, currency text, outcome text, order_id text collate "C",
        state text, day date, campaign_id bigint, link_id bigint, sub_id text collate "C",
        counted_currency text collate "C", amount_minor bigint, kept_minor bigint, reversed_minor bigint,
        item_sku text[], item_quantity integer[], item_amount bigint[]
    ) on commit delete rows;

    create temp table account_change (
        merchant_id bigint, livemode boolean, currency text, owner text, kind text, owner_id bigint,
        debit_minor numeric, credit_minor numeric
    ) on commit delete rows;

    create temp table account_changed (
        merchant_id bigint, livemode boolean, currency text, owner text, kind text, owner_id bigint,
        account_id bigint
    ) on commit delete rows;

    -- By how much the rollups of orders change.
    create temp table order_change (
        merchant_id bigint, livemode boolean, day date, link_id bigint, campaign_id bigint, affiliate_id bigint,
        sub_id text collate "C", currency text collate "C",
        pending bigint, approved bigint, payable bigint, cancelled bigint, refunded bigint, review bigint, rejected bigint,
        amount_minor numeric, kept_minor numeric, commission_pending_minor numeric, commission_payable_minor numeric,
        commission_reversed_minor numeric, fee_pending_minor numeric, fee_payable_minor numeric
    ) on commit delete rows;

    create temp table released (
        like affiliate.release
    ) on commit delete rows;

    -- Orders whose new state is to be told.
    create temp table order_told (
        merchant_id bigint, livemode boolean, order_no bigint, state text
    ) on commit delete rows;
end
$$;

-- Empties a work table that an earlier call in the same transaction has left filled.
create function affiliate.work_clear(variadic p_tables text[])
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    name text;
    filled boolean;
begin
    foreach name in array p_tables loop
        execute format('select exists (select from pg_temp.%I)', name) into filled;
        if filled then
            execute format('truncate pg_temp.%I', name);
        end if;
    end loop;
end
$$;

-- Has this session's statements planned anew whenever one of the tables that they look into has doubled: a plan that was made
-- when it was empty can't tell one of its indexes from another. Each table counts by itself: a large one beside it would hide it.
create function affiliate.fresh_plans()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    sizes text := (select string_agg(floor(log(2, 1 + pg_relation_size(t.name)))::text, ' ' order by t.place)
                     from unnest('{affiliate.order_fact,affiliate.conversion,affiliate.waiting,affiliate.release_item}'::regclass[])
                          with ordinality as t(name, place));
begin
    if sizes is distinct from current_setting('affiliate.planned_sizes', true) then
        discard plans;
        perform set_config('affiliate.planned_sizes', sizes, false);
    end if;
end
$$;

-- Brings the accounts in pg_temp.account_change up to date, creating those that are new, and gives their ids in account_changed.
create function affiliate.post_accounts()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
as $$
begin
    -- In the order of the key: that is the order of the locks.
    with changed as (
        insert into affiliate.account as a
               (merchant_id, livemode, currency, owner, kind, owner_id, debits_minor, credits_minor)
        select c.merchant_id, c.livemode, c.currency, c.owner, c.kind, c.owner_id,
               sum(c.debit_minor), sum(c.credit_minor)
          from pg_temp.account_change c
         group by 1, 2, 3, 4, 5, 6
         order by 1, 2, 3, 4, 5, 6
            on conflict (merchant_id, livemode, currency, owner, kind, owner_id) do update
           set debits_minor = a.debits_minor + excluded.debits_minor,
               credits_minor = a.credits_minor + excluded.credits_minor
        returning merchant_id, livemode, currency, owner, kind, owner_id, account_id
    )
    insert into pg_temp.account_changed
    select * from changed;
end
$$;

-- The facts of one order, merged from its conversions. Nothing here looks at the order of arrival: where two reports tie
-- in time, their values decide.
create function affiliate.order_facts(p_merchant_id bigint, p_livemode boolean, p_order_id text)
returns table (
    reported_at timestamptz, has_report boolean, other_click boolean, customer smallint,
    approved_at timestamptz, cancelled_at timestamptz, returned_at timestamptz,
    click_id uuid, clicked_at timestamptz, link_id bigint, campaign_id bigint, affiliate_id bigint,
    verdict smallint, click_problem text,
    amount_minor bigint, currency text,
    item_sku text[], item_category text[], item_quantity integer[], item_amount bigint[],
    refunded_minor bigint, refund_currency boolean, sub_id text)
language sql stable
begin atomic
    with event as (
        select *
          from affiliate.conversion c
         where c.merchant_id = p_merchant_id
           and c.livemode = p_livemode
           and c.order_id = p_order_id
           and not c.waiting
    ),
    merged as (
        select min(e.effective_at) as reported_at,
               bool_or(e.status in (1, 2)) as has_report,
               count(distinct e.click_id) > 1 as other_click,
               max(e.customer) as customer,
               min(e.effective_at) filter (where e.status = 2) as approved_at,
               min(e.effective_at) filter (where e.status = 3) as cancelled_at,
               min(e.effective_at) filter (where e.status in (4, 5) and e.amount_minor is null) as returned_at
          from event e
    ),
    first as (
        select e.click_id
          from event e
         order by e.effective_at, e.click_id
         limit 1
    ),
    click as (
        -- A click that came too late for one event may have come in time for the next.
        select e.click_id, e.clicked_at, e.link_id, e.campaign_id, e.affiliate_id, e.verdict, e.click_problem, e.sub_id
          from event e
          join first f using (click_id)
         order by e.click_problem nulls first
         limit 1
    ),
    latest as (
        select e.amount_minor, e.currency, e.item_sku, e.item_category, e.item_quantity, e.item_amount
          from event e
         where e.status in (1, 2)
           and e.amount_minor is not null
         order by e.effective_at desc, e.amount_minor desc, e.currency collate "C" desc,
                  e.item_sku desc, e.item_category desc, e.item_quantity desc, e.item_amount desc
         limit 1
    ),
    refund as (
        -- The same refund told twice with different amounts: the later report counts; at the same time, the greater.
        select distinct on (e.refund_key)
               e.amount_minor, e.currency
          from event e
         where e.refund_key is not null
         order by e.refund_key, e.effective_at desc, e.amount_minor desc, e.currency collate "C" desc
    ),
    refunds as (
        select least(coalesce(sum(r.amount_minor) filter (where r.currency is not distinct from coalesce(l.currency, r.currency)
                                                             or r.currency is null), 0),
                     99999999999999999)::bigint as refunded_minor,
               coalesce(bool_or(r.currency <> l.currency), false) as refund_currency
          from refund r
          left join latest l on true
    )
    select m.reported_at, m.has_report, m.other_click, m.customer,
           m.approved_at, m.cancelled_at, m.returned_at,
           c.click_id, c.clicked_at, c.link_id, c.campaign_id, c.affiliate_id, c.verdict, c.click_problem,
           l.amount_minor, l.currency, l.item_sku, l.item_category, l.item_quantity, l.item_amount,
           r.refunded_minor, r.refund_currency, c.sub_id
      from merged m
     cross join click c
     cross join refunds r
      left join latest l on true;
end;

-- Inserts the orders in pg_temp.order_touched that are not there yet, empty: they are decided once they are locked.
create function affiliate.insert_touched()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
begin
    insert into affiliate.order_fact
           (merchant_id, livemode, has_report, other_click, refund_currency, customer, revision, order_no, reported_at,
            clicked_at, click_id, refunded_minor, posted_commission_minor, posted_fee_minor, posted_payable,
            outcome, order_id)
    select t.merchant_id, t.livemode, false, false, false, 0, 0, nextval('affiliate.order_no_seq'), now(),
           now(), '00000000-0000-0000-0000-000000000000', 0, 0, 0, false,
           'rejected', t.order_id
      from (select t.merchant_id, t.livemode, t.order_id
              from pg_temp.order_touched t
              left join lateral (
                       select true as known
                         from affiliate.order_fact o
                        where o.merchant_id = t.merchant_id
                          and o.livemode = t.livemode
                          and o.order_id = t.order_id
                       offset 0
                   ) o on true
             where o.known is null
             order by t.merchant_id, t.livemode, t.order_id) t
        on conflict (merchant_id, livemode, order_id) do nothing;
end
$$;

-- Locks the orders in pg_temp.order_touched and their holds, and fills order_known. The holds are a statement of their
-- own: after waiting for a release in progress, the next statement sees what it did, and that the money is payable by it.
create function affiliate.lock_orders()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
begin
    perform affiliate.work_clear('order_known', 'order_held');

    insert into pg_temp.order_known
    select t.merchant_id, t.livemode, t.order_id,
           o.order_no, o.revision, o.hold_until,
           o.posted_affiliate_id, o.posted_commission_minor, o.posted_fee_minor,
           o.posted_payable, o.posted_currency,
           o.review_decision, o.review_reason, o.reviewed_at,
           o.revision > 0,
           affiliate.state_of(
               o.outcome, o.cancelled_at, o.returned_at, o.refunded_minor, o.amount_minor, o.posted_payable, o.approved_at),
           affiliate.utc_day(o.reported_at), o.campaign_id, o.link_id, o.sub_id,
           coalesce(o.currency, o.posted_currency), o.amount_minor,
           affiliate.kept_minor(
               o.amount_minor, o.refunded_minor,
               affiliate.order_void(o.outcome, o.has_report, o.cancelled_at, o.returned_at)),
           o.reversed_minor, o.item_sku, o.item_quantity, o.item_amount
      from (select *
              from pg_temp.order_touched
             order by merchant_id, livemode, order_id) t
     cross join lateral (
               select f.*
                 from affiliate.order_fact f
                where f.merchant_id = t.merchant_id
                  and f.livemode = t.livemode
                  and f.order_id = t.order_id
                  for update
           ) o;

    insert into pg_temp.order_held
    select h.place
      from (select merchant_id, order_no, hold_until
              from pg_temp.order_known
             where hold_until is not null
             order by merchant_id, order_no) k
     cross join lateral (
               select h.ctid as place
                 from affiliate.hold h
                where h.due_at = k.hold_until
                  and h.merchant_id = k.merchant_id
                  and h.order_no = k.order_no
                  for update
           ) h;

    update pg_temp.order_known k
       set posted_payable = true,
           state = 'payable'
     where (select true
              from affiliate.release_item r
             where r.merchant_id = k.merchant_id
               and r.order_no = k.order_no
               and r.revision = k.revision
             limit 1);
end
$$;

-- Decides what is known of each order, whether it counts, and what is due; writes that to order_fact, and what follows for the
-- ledger to pg_temp.move. Of the orders in order_known (p_known), merged from all their conversions; else of those in
-- pg_temp.conversion_new that are new, by their one event. Of these, one that has several events (order_touched) is partial:
-- inserted, but worth nothing until it is decided as a known one.
create function affiliate.decide_orders(p_known boolean)
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
    with merged as materialized (
        select k.merchant_id, k.livemode, k.order_id, k.order_no, false as partial, k.revision, k.posted_payable,
               k.review_decision, k.review_reason, k.reviewed_at,
               coalesce(f.campaign_id, 0) as campaign_key, coalesce(f.affiliate_id, 0) as affiliate_key,
               f.*
          from pg_temp.order_known k
         cross join lateral affiliate.order_facts(k.merchant_id, k.livemode, k.order_id) f
         where p_known
    ),
    fact as (
        select *
          from merged
        union all
        select e.merchant_id, e.livemode, e.order_id, null, t.events is not null,
               case when t.events is null then 0 else -1 end,
               false, null, null, null,
               coalesce(e.campaign_id, 0), coalesce(e.affiliate_id, 0),
               e.effective_at, e.status in (1, 2), false, e.customer,
               case e.status when 2 then e.effective_at end,
               case e.status when 3 then e.effective_at end,
               case when e.status in (4, 5) and e.amount_minor is null then e.effective_at end,
               e.click_id, e.clicked_at, e.link_id, e.campaign_id, e.affiliate_id, e.verdict, e.click_problem,
               case when e.status in (1, 2) then e.amount_minor end,
               case when e.status in (1, 2) and e.amount_minor is not null then e.currency end,
               case when i.named then e.item_sku end, case when i.named then e.item_category end,
               case when i.named then e.item_quantity end, case when i.named then e.item_amount end,
               case when e.refunding then e.amount_minor else 0 end,
               false,
               e.sub_id
          from pg_temp.conversion_new e
         cross join lateral (select e.status in (1, 2) and e.amount_minor is not null as named) i
          left join lateral (
                   select true as known
                     from affiliate.order_fact o
                    where o.merchant_id = e.merchant_id
                      and o.livemode = e.livemode
                      and o.order_id = e.order_id
                   offset 0
               ) o on true
          left join pg_temp.order_touched t
            on t.merchant_id = e.merchant_id and t.livemode = e.livemode and t.order_id = e.order_id
         where not p_known
           and not e.waiting
           and not coalesce(o.known, false)
    ),
    -- Who and what the orders are about, once each; with every version of the terms. The first one's time begins with all time:
    -- who clicked before it was valid has no terms, but a campaign.
    ground as (
        select p.merchant_id, p.campaign_key, p.affiliate_key,
               m.suspended as merchant_suspended, c.suspended as campaign_suspended, a.suspended as affiliate_suspended, h.held,
               c.currency as campaign_currency,
               t.terms_id, t.rate_basis_points, t.rate_flat_minor, t.fee_basis_points, t.fee_flat_minor, t.hold,
               t.attribution_window, t.minimum_click_to_order, t.version, t.valid_from,
               case when lag(t.valid_from) over versions is null then '-infinity' else t.valid_from end as applies_from,
               lead(t.valid_from, 1, 'infinity') over versions as applies_until
          from (select f.merchant_id, f.campaign_key, f.affiliate_key
                  from merged f
                 union
                select e.merchant_id, coalesce(e.campaign_id, 0), coalesce(e.affiliate_id, 0)
                  from pg_temp.conversion_new e
                 where not p_known) p
          left join lateral (
                   select m.suspended
                     from affiliate.merchant m
                    where m.merchant_id = p.merchant_id
                   offset 0
               ) m on true
          left join lateral (
                   select c.currency, c.suspended
                     from affiliate.campaign c
                    where c.merchant_id = p.merchant_id and c.campaign_id = p.campaign_key
                   offset 0
               ) c on true
          left join lateral (
                   select a.suspended
                     from affiliate.affiliate a
                    where a.affiliate_id = p.affiliate_key
                   offset 0
               ) a on true
          left join lateral (
                   select h.held
                     from affiliate.fraud_hold h
                    where h.affiliate_id = p.affiliate_key
                   offset 0
               ) h on true
          left join lateral (
                   select t.*, t as version
                     from affiliate.terms t
                    where t.merchant_id = p.merchant_id and t.campaign_id = p.campaign_key
                   offset 0
               ) t on true
        window versions as (partition by p.merchant_id, p.campaign_key, p.affiliate_key order by t.valid_from)
    ),
    judged as (
        select f.*,
               case when affiliate.click_day(f.livemode, f.clicked_at, f.click_id) >= g.valid_from then g.terms_id end as terms_id,
               g.rate_basis_points, g.rate_flat_minor, g.fee_basis_points, g.fee_flat_minor, g.hold,
               g.attribution_window, g.minimum_click_to_order, g.version, g.campaign_currency,
               case
                   when g.merchant_suspended @> f.reported_at then 'inactive_merchant'
                   when g.campaign_suspended @> f.reported_at then 'inactive_campaign'
                   when g.affiliate_suspended @> f.reported_at then 'inactive_affiliate'
               end as inactive,
               coalesce(f.livemode and g.held @> f.reported_at, false) as fraud_held
          from fact f
          join ground g
            on g.merchant_id = f.merchant_id and g.campaign_key = f.campaign_key
           and g.affiliate_key = f.affiliate_key
           and affiliate.click_day(f.livemode, f.clicked_at, f.click_id) >= g.applies_from
           and affiliate.click_day(f.livemode, f.clicked_at, f.click_id) < g.applies_until
        offset 0
    ),
    weighed as (
        select j.*,
               case when cardinality(j.item_amount) > 0 and j.terms_id is not null
                    then affiliate.item_fraction(
                             j.version, j.amount_minor, j.item_sku, j.item_category, j.item_quantity, j.item_amount)
               end as fraction,
               affiliate.order_problem(
                   j.click_problem, j.verdict, j.inactive, j.terms_id is not null,
                   j.reported_at - j.clicked_at, j.attribution_window, j.minimum_click_to_order,
                   j.currency, j.campaign_currency, j.other_click, j.refund_currency,
                   j.has_report and j.approved_at is not null and j.amount_minor is null
                       and j.rate_basis_points is not null,
                   j.review_decision) as found
          from judged j
        offset 0
    ),
    forced as (
        select w.*,
               case when w.livemode then affiliate.held_problem(w.found, w.fraud_held, w.review_decision)
                    else affiliate.test_problem(w.order_id, w.found, w.review_decision) end as problem
          from weighed w
        offset 0
    ),
    counted as (
        select w.*,
               affiliate.outcome_of(w.problem) as outcome,
               w.partial or affiliate.order_void(
                   affiliate.outcome_of(w.problem), w.has_report, w.cancelled_at, w.returned_at) as void
          from forced w
        offset 0
    ),
    kept as (
        select c.*,
               c.fraction[1] as numerator,
               c.fraction[2] as denominator,
               affiliate.kept_minor(c.amount_minor, c.refunded_minor, c.void) as kept
          from counted c
        offset 0
    ),
    earned as (
        select k.*,
               affiliate.commission_minor(
                   k.kept, k.amount_minor, k.rate_basis_points, k.rate_flat_minor,
                   k.numerator, k.denominator, k.void) as commission
          from kept k
        offset 0
    ),
    charged as (
        select e.*,
               affiliate.fee_minor(
                   e.commission, e.kept, e.amount_minor, e.fee_basis_points, e.fee_flat_minor, e.void) as fee
          from earned e
        offset 0
    ),
    limited as (
        select c.*,
               c.commission + c.fee > affiliate.worth_limit() as above,
               case
                   when c.partial or not c.void and c.refunded_minor = 0 then 0
                   else affiliate.reversed_minor(
                            c.outcome, c.has_report, c.commission, c.amount_minor, c.rate_basis_points, c.rate_flat_minor,
                            c.numerator, c.denominator)
               end as reversed
          from charged c
        offset 0
    ),
    due as (
        select distinct on (e.merchant_id, e.livemode, e.order_id)
               e.merchant_id, e.livemode, e.order_id, e.order_no, e.revision,
               e.has_report, e.other_click, e.refund_currency, e.fraud_held, e.verdict, e.customer,
               e.reported_at, e.clicked_at, e.approved_at, e.cancelled_at, e.returned_at,
               e.click_id, e.link_id, e.campaign_id, e.affiliate_id, e.terms_id,
               e.amount_minor, e.currency, e.refunded_minor, e.inactive, e.click_problem,
               e.review_decision, e.review_reason, e.reviewed_at,
               e.numerator, e.denominator, e.hold, e.campaign_currency,
               e.sub_id, e.item_sku, e.item_quantity, e.item_amount,
               case when not e.above then nullif(e.reversed, 0) end as reversed,
               case when e.above then 'rejected' else e.outcome end as outcome,
               case when e.above then 'above_limit' else e.problem end as problem,
               case when e.above then 0 else e.commission end as commission,
               case when e.above then 0 else e.fee end as fee,
               -- What was released stays so only while it still is due: an earlier report may bring other terms, with a longer hold.
               coalesce(e.posted_payable and e.outcome = 'accepted' and not e.above
                        and e.approved_at + e.hold <= affiliate.test_time(e.merchant_id, e.livemode, now()), false)
                   as payable
          from limited e
         order by e.merchant_id, e.livemode, e.order_id
    ),
    decided as (
        insert into affiliate.order_fact
              (merchant_id, livemode, order_id, order_no, revision,
               has_report, other_click, refund_currency, fraud_held, verdict, customer,
               reported_at, clicked_at, approved_at, cancelled_at, returned_at,
               click_id, link_id, campaign_id, affiliate_id, terms_id,
               amount_minor, currency, refunded_minor, inactive, click_problem,
               outcome, problem, review_decision, review_reason, reviewed_at,
               item_numerator, item_denominator,
               posted_affiliate_id, posted_commission_minor, posted_fee_minor, posted_payable, posted_currency, hold_until,
               reversed_minor, sub_id, item_sku, item_quantity, item_amount)
        select d.merchant_id, d.livemode, d.order_id,
               coalesce(d.order_no, nextval('affiliate.order_no_seq')), d.revision + 1,
               d.has_report, d.other_click, d.refund_currency, d.fraud_held, d.verdict, d.customer,
               d.reported_at, d.clicked_at, d.approved_at, d.cancelled_at, d.returned_at,
               d.click_id, d.link_id, d.campaign_id, d.affiliate_id, d.terms_id,
               d.amount_minor, d.currency, d.refunded_minor, d.inactive, d.click_problem,
               d.outcome, d.problem, d.review_decision, d.review_reason, d.reviewed_at,
               d.numerator, d.denominator,
               d.affiliate_id, d.commission, d.fee, d.payable, d.campaign_currency,
               case when d.outcome = 'accepted' and not d.payable and d.commission + d.fee > 0
                    then d.approved_at + d.hold end,
               d.reversed, d.sub_id, d.item_sku, d.item_quantity, d.item_amount
          from due d
            -- By its number, which only a known order has already: that one is locked. A new order that somebody else inserts
            -- meanwhile is no such conflict but an error, and is not locked: whoever waits for an insert must hold no order.
            on conflict (merchant_id, order_no) do update
           set (revision, has_report, other_click, refund_currency, fraud_held, verdict, customer, reported_at, clicked_at,
                approved_at, cancelled_at, returned_at, click_id, link_id, campaign_id, affiliate_id, terms_id,
                amount_minor, currency, refunded_minor, inactive, click_problem, outcome, problem,
                item_numerator, item_denominator, posted_affiliate_id, posted_commission_minor, posted_fee_minor,
                posted_payable, posted_currency, hold_until,
                reversed_minor, sub_id, item_sku, item_quantity, item_amount) =
               row (excluded.revision, excluded.has_report, excluded.other_click, excluded.refund_currency, excluded.fraud_held,
                excluded.verdict,
                excluded.customer, excluded.reported_at, excluded.clicked_at, excluded.approved_at, excluded.cancelled_at,
                excluded.returned_at, excluded.click_id, excluded.link_id, excluded.campaign_id, excluded.affiliate_id,
                excluded.terms_id, excluded.amount_minor, excluded.currency, excluded.refunded_minor, excluded.inactive,
                excluded.click_problem, excluded.outcome, excluded.problem, excluded.item_numerator,
                excluded.item_denominator, excluded.posted_affiliate_id, excluded.posted_commission_minor,
                excluded.posted_fee_minor, excluded.posted_payable, excluded.posted_currency, excluded.hold_until,
                excluded.reversed_minor, excluded.sub_id, excluded.item_sku, excluded.item_quantity, excluded.item_amount)
        returning merchant_id, livemode, order_id, order_no, revision, posted_affiliate_id, posted_commission_minor,
                  posted_fee_minor, posted_payable, posted_currency, hold_until, outcome,
                  affiliate.state_of(
                      outcome, cancelled_at, returned_at, refunded_minor, amount_minor, posted_payable, approved_at) as state,
                  affiliate.utc_day(reported_at) as day, campaign_id, link_id, sub_id,
                  coalesce(currency, posted_currency) as counted_currency, amount_minor,
                  affiliate.kept_minor(
                      amount_minor, refunded_minor,
                      affiliate.order_void(outcome, has_report, cancelled_at, returned_at)) as kept_minor,
                  reversed_minor, item_sku, item_quantity, item_amount
    ),
    -- Same affiliate, stage and currency: only the difference moves. Else everything does, back from where it was.
    moved as (
        select d.*, k.posted_commission_minor as old_commission_minor, k.posted_fee_minor as old_fee_minor
          from decided d
          left join pg_temp.order_known k
            on p_known and k.merchant_id = d.merchant_id and k.order_no = d.order_no
           and (k.posted_affiliate_id, k.posted_payable, k.posted_currency)
               is not distinct from (d.posted_affiliate_id, d.posted_payable, d.posted_currency)
         where d.revision > 0
    )
    insert into pg_temp.move
          (merchant_id, order_no, affiliate_id, commission_minor, fee_minor, held_commission_minor, held_fee_minor,
           revision, livemode, payable, hold_until, currency, outcome, order_id,
           state, day, campaign_id, link_id, sub_id, counted_currency, amount_minor, kept_minor, reversed_minor,
           item_sku, item_quantity, item_amount)
    select m.merchant_id, m.order_no, m.posted_affiliate_id,
           m.posted_commission_minor - coalesce(m.old_commission_minor, 0),
           m.posted_fee_minor - coalesce(m.old_fee_minor, 0),
           m.posted_commission_minor, m.posted_fee_minor,
           m.revision, m.livemode, m.posted_payable, m.hold_until, m.posted_currency, m.outcome, m.order_id,
           m.state, m.day, m.campaign_id, m.link_id, m.sub_id, m.counted_currency, m.amount_minor, m.kept_minor,
           m.reversed_minor, m.item_sku, m.item_quantity, m.item_amount
      from moved m
    union all
    select d.merchant_id, d.order_no, k.posted_affiliate_id, - k.posted_commission_minor, - k.posted_fee_minor, 0, 0,
           d.revision, d.livemode, k.posted_payable, null, k.posted_currency, null, d.order_id,
           null, null, null, null, null, null, null, null, null, null, null, null
      from decided d
      join pg_temp.order_known k
        on k.merchant_id = d.merchant_id and k.order_no = d.order_no
     where p_known
       and (k.posted_affiliate_id, k.posted_payable, k.posted_currency)
           is distinct from (d.posted_affiliate_id, d.posted_payable, d.posted_currency)
       and (k.posted_commission_minor <> 0 or k.posted_fee_minor <> 0);
exception
    -- It is committed now. All that was inserted here is undone; the next look finds it among those that are known.
    when unique_violation then
        if p_known or current_setting('transaction_isolation') <> 'read committed' then
            raise;
        end if;
        perform affiliate.decide_orders(false);
end
$$;

-- Posts pg_temp.move, sets the holds anew, counts, and tells who asked to be told.
create function affiliate.post_orders()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set work_mem = '64MB'
set jit = off
as $$
begin
    perform affiliate.work_clear('account_change', 'account_changed');
    perform affiliate.post_moves();

    -- The rows were locked by lock_orders(), so their places have not changed.
    delete from affiliate.hold
     where ctid = any (array(select hold from pg_temp.order_held));
    perform affiliate.work_clear('order_held');

    insert into affiliate.hold
           (merchant_id, order_no, due_at, affiliate_id, commission_minor, fee_minor, revision, livemode, currency,
            day, campaign_id, link_id, sub_id)
    select m.merchant_id, m.order_no, m.hold_until, m.affiliate_id,
           m.held_commission_minor, m.held_fee_minor, m.revision, m.livemode, m.currency,
           m.day, m.campaign_id, m.link_id, m.sub_id
      from pg_temp.move m
     where m.hold_until is not null;

    perform affiliate.count_orders();
    perform affiliate.emit_orders();
end
$$;

-- Posts pg_temp.move: sums per account first, then a transfer for each order's commission and fee.
create function affiliate.post_moves()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set work_mem = '64MB'
set jit = off
as $$
begin
    insert into pg_temp.account_change
    select g.merchant_id, g.livemode, g.currency, side.owner, side.kind, side.owner_id, side.debit, side.credit
      from (select m.merchant_id, m.livemode, m.currency, m.payable, m.affiliate_id,
                   sum(greatest(m.commission_minor, 0)) as commission,
                   sum(greatest(m.fee_minor, 0)) as fee,
                   sum(greatest(- m.commission_minor, 0)) as commission_back,
                   sum(greatest(- m.fee_minor, 0)) as fee_back
              from pg_temp.move m
             group by m.merchant_id, m.livemode, m.currency, m.payable, m.affiliate_id) g
     cross join lateral (values
               ('affiliate', case when g.payable then 'payable' else 'pending' end, g.affiliate_id,
                g.commission_back, g.commission),
               ('platform', case when g.payable then 'fee_earned' else 'fee_pending' end, 0,
                g.fee_back, g.fee),
               ('merchant', case when g.payable then 'owed' else 'accrued' end, g.merchant_id,
                g.commission + g.fee, g.commission_back + g.fee_back)
           ) as side(owner, kind, owner_id, debit, credit)
     where side.debit + side.credit > 0;

    perform affiliate.post_accounts();

    -- The three accounts of each move, found once for all that share them.
    with place as materialized (
        select g.merchant_id, g.livemode, g.currency, g.payable, g.affiliate_id,
               a.account_id as affiliate, f.account_id as fee, m.account_id as merchant
          from (select distinct merchant_id, livemode, currency, payable, affiliate_id
                  from pg_temp.move) g
          join pg_temp.account_changed m
            on m.merchant_id = g.merchant_id and m.livemode = g.livemode and m.currency = g.currency
           and m.kind = case when g.payable then 'owed' else 'accrued' end
          left join pg_temp.account_changed a
            on a.merchant_id = g.merchant_id and a.livemode = g.livemode and a.currency = g.currency
           and a.owner_id = g.affiliate_id
           and a.kind = case when g.payable then 'payable' else 'pending' end
          left join pg_temp.account_changed f
            on f.merchant_id = g.merchant_id and f.livemode = g.livemode and f.currency = g.currency
           and f.kind = case when g.payable then 'fee_earned' else 'fee_pending' end
    )
    insert into affiliate.transfer
           (merchant_id, cause_id, cause_revision, cause_kind, code, debit_account, credit_account,
            amount_minor, livemode, currency)
    select m.merchant_id, m.order_no, m.revision, 1, case when leg.amount > 0 then leg.code else leg.code + 2 end,
           case when leg.amount > 0 then p.merchant else leg.account_id end,
           case when leg.amount > 0 then leg.account_id else p.merchant end,
           abs(leg.amount), m.livemode, m.currency
      from pg_temp.move m
      join place p
        on p.merchant_id = m.merchant_id and p.affiliate_id = m.affiliate_id and p.payable = m.payable
       and p.livemode = m.livemode and p.currency = m.currency
     cross join lateral (values (1, p.affiliate, m.commission_minor), (2, p.fee, m.fee_minor))
           as leg(code, account_id, amount)
     where leg.amount <> 0;
end
$$;

-- Settles the orders in pg_temp.order_touched, all of their conversions considered.
create function affiliate.settle_orders()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.work_clear('move');
    perform affiliate.insert_touched();
    perform affiliate.lock_orders();
    perform affiliate.decide_orders(true);
    perform affiliate.post_orders();
end
$$;
