-- The sandbox: what lets a merchant try everything before it counts, through the very code that counts.
--
-- Test orders live in test time: the real one, and what the merchant has moved its clock ahead by. A conversion of test mode is
-- stored with its times in test time, by where the clock stood then; what is due is compared with where it stands now.
-- Live orders know nothing of it.

-- ---------------------------------------------------------------------------------------------------------------
-- The test clock
-- ---------------------------------------------------------------------------------------------------------------

create table affiliate.test_clock (
    merchant_id     bigint not null references affiliate.merchant,
    at              timestamptz not null,
    ahead           interval not null check (ahead > '0'),
    primary key (merchant_id, at)
);

comment on table affiliate.test_clock is 'How far a merchant''s test mode is ahead, and since when; only ever further. A function of time, so that what was due can be proved later';
comment on column affiliate.test_clock.at is 'Real time; never that of a transaction''s beginning, which others may have passed already';

create trigger immutable
before update or delete or truncate on affiliate.test_clock
for each statement execute function affiliate.refuse_change();

-- A real time as a merchant's test mode sees it. Never earlier, and never back.
create function affiliate.test_time(p_merchant_id bigint, p_at timestamptz)
returns timestamptz
language sql stable parallel safe
begin atomic
    select p_at + coalesce((select c.ahead
                              from affiliate.test_clock c
                             where c.merchant_id = p_merchant_id
                               and c.at <= p_at
                             order by c.at desc
                             limit 1), '0');
end;

-- The same in either mode; inlined, so that live mode takes no call.
create function affiliate.test_time(p_merchant_id bigint, p_livemode boolean, p_at timestamptz)
returns timestamptz
language sql stable parallel safe
return case when p_livemode then p_at else affiliate.test_time(p_merchant_id, p_at) end;

-- The time of a click that terms are looked up by: the real one. In test time, a version made later could lie before it.
create function affiliate.click_day(p_livemode boolean, p_clicked_at timestamptz, p_click_id uuid)
returns timestamptz
language sql immutable parallel safe
return case when p_livemode then p_clicked_at else affiliate.click_time(p_click_id) end;

-- Whoever reports it, a test conversion is stored in test time.
create function affiliate.conversion_test_time()
returns trigger
language plpgsql
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    new.clicked_at := affiliate.test_time(new.merchant_id, new.clicked_at);
    new.effective_at := affiliate.test_time(new.merchant_id, new.effective_at);
    return new;
end
$$;

create trigger test_time before insert on affiliate.conversion
    for each row when (not new.livemode) execute function affiliate.conversion_test_time();

create index hold_test on affiliate.hold (merchant_id, due_at) where not livemode;

-- Holds that are over by their merchants' test clocks, and not by the real one; locked.
create function affiliate.test_holds_due(p_max bigint)
returns setof tid
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set jit = off
as $$
    select h.place
      from (select distinct c.merchant_id
              from affiliate.test_clock c) m
     cross join lateral (
               select h.ctid as place
                 from affiliate.hold h
                where h.merchant_id = m.merchant_id
                  and not h.livemode
                  and h.due_at > now()
                  and h.due_at <= affiliate.test_time(m.merchant_id, now())
                order by h.due_at
                limit p_max
                  for update skip locked
           ) h
     limit p_max
$$;

-- Moves a merchant's test clock ahead, and returns the time that it shows now. Orders mature with the daemon's next look;
-- who waits for a click has that much less time left.
create function affiliate.advance_test_clock(p_merchant_id bigint, p_by interval)
returns timestamptz
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    last affiliate.test_clock;
    shown timestamptz;
begin
    perform from affiliate.merchant m where m.merchant_id = p_merchant_id for no key update;

    select * into last
      from affiliate.test_clock c
     where c.merchant_id = p_merchant_id
     order by c.at desc
     limit 1;

    if p_by <= '0' then
        perform affiliate.refuse('advance', 'must be more than nothing: the clock goes forward only');
    end if;
    if coalesce(last.ahead, '0') + p_by > interval '87600 hours' then
        perform affiliate.refuse('advance', 'must not lead more than 3650 days ahead of the real time');
    end if;

    insert into affiliate.test_clock as c (merchant_id, at, ahead)
    values (p_merchant_id, greatest(clock_timestamp(), last.at + interval '1 microsecond'), coalesce(last.ahead, '0') + p_by)
    returning c.at + c.ahead into shown;

    update affiliate.waiting w
       set until = w.until - p_by,
           next_at = now()
     where w.merchant_id = p_merchant_id
       and not w.livemode;

    return shown;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Magic order ids
-- ---------------------------------------------------------------------------------------------------------------

-- Every problem that an order can have.
create function affiliate.order_problems()
returns text[]
language sql immutable parallel safe
return '{unknown_click,foreign_click,expired_click,wrong_livemode,bot_click,preview_click,prefetch_click,inactive_merchant,inactive_campaign,inactive_affiliate,no_terms,outside_attribution_window,too_fast,wrong_currency,review_rejected,above_limit,duplicate_order,suspect_click,refund_currency,missing_amount}'::text[];

-- What an order id in test mode asks for; null if it is no magic one. Each may go on with a dash and anything:
--
--   TEST-ACCEPTED            no review, whatever there is to doubt
--   TEST-DUPLICATE           review: it was reported with more than one click
--   TEST-REVIEW              review: its click looked suspicious
--   TEST-REVIEW-REASON       review for one of the reasons that are for review, in upper case
--   TEST-REJECTED            rejected by a review
--   TEST-REJECTED-REASON     rejected for any other reason, such as TEST-REJECTED-BOT_CLICK
create function affiliate.magic_problem(p_order_id text)
returns text
language sql immutable parallel safe
return case substring(p_order_id from '^TEST-([A-Z]+)(?:-|$)')
           when 'ACCEPTED' then 'accepted'
           when 'DUPLICATE' then 'duplicate_order'
           when 'REVIEW' then
               coalesce((select p
                           from unnest(affiliate.order_problems()) p
                          where p = lower(substring(p_order_id from '^TEST-REVIEW-([A-Z_]+)(?:-|$)'))
                            and affiliate.outcome_of(p) = 'review'), 'suspect_click')
           when 'REJECTED' then
               coalesce((select p
                           from unnest(affiliate.order_problems()) p
                          where p = lower(substring(p_order_id from '^TEST-REJECTED-([A-Z_]+)(?:-|$)'))
                            and affiliate.outcome_of(p) = 'rejected'), 'review_rejected')
       end;

-- The problem of an order in test mode: what was found, unless its id asks for another. What it is rejected for is never lifted:
-- another reason may stand behind it. A review of what its id brought there decides as of any other.
create function affiliate.test_problem(p_order_id text, p_found text, p_review_decision text)
returns text
language sql immutable parallel safe
return case
           when left(p_order_id, 5) <> 'TEST-' then p_found
           when affiliate.magic_problem(p_order_id) is null then p_found
           when affiliate.magic_problem(p_order_id) = 'accepted' then
               case when affiliate.outcome_of(p_found) = 'review' then null else p_found end
           when affiliate.outcome_of(affiliate.magic_problem(p_order_id)) = 'rejected' then affiliate.magic_problem(p_order_id)
           when affiliate.outcome_of(p_found) = 'rejected' or p_review_decision = 'accept' then p_found
           else affiliate.magic_problem(p_order_id)
       end;

-- ---------------------------------------------------------------------------------------------------------------
-- Where time and magic decide: as before, but for orders in test mode
-- ---------------------------------------------------------------------------------------------------------------

-- Decides what is known of each order, whether it counts, and what is due; writes that to order_fact, and what follows for the
-- ledger to pg_temp.move. Of the orders in order_known (p_known), merged from all their conversions; else of those in
-- pg_temp.conversion_new that are new, by their one event. Of these, one that has several events (order_touched) is partial:
-- inserted, but worth nothing until it is decided as a known one.
create or replace function affiliate.decide_orders(p_known boolean)
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
               m.suspended as merchant_suspended, c.suspended as campaign_suspended, a.suspended as affiliate_suspended,
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
               end as inactive
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
               case when w.livemode then w.found
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
               e.has_report, e.other_click, e.refund_currency, e.verdict, e.customer,
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
               has_report, other_click, refund_currency, verdict, customer,
               reported_at, clicked_at, approved_at, cancelled_at, returned_at,
               click_id, link_id, campaign_id, affiliate_id, terms_id,
               amount_minor, currency, refunded_minor, inactive, click_problem,
               outcome, problem, review_decision, review_reason, reviewed_at,
               item_numerator, item_denominator,
               posted_affiliate_id, posted_commission_minor, posted_fee_minor, posted_payable, posted_currency, hold_until,
               reversed_minor, sub_id, item_sku, item_quantity, item_amount)
        select d.merchant_id, d.livemode, d.order_id,
               coalesce(d.order_no, nextval('affiliate.order_no_seq')), d.revision + 1,
               d.has_report, d.other_click, d.refund_currency, d.verdict, d.customer,
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
           set (revision, has_report, other_click, refund_currency, verdict, customer, reported_at, clicked_at,
                approved_at, cancelled_at, returned_at, click_id, link_id, campaign_id, affiliate_id, terms_id,
                amount_minor, currency, refunded_minor, inactive, click_problem, outcome, problem,
                item_numerator, item_denominator, posted_affiliate_id, posted_commission_minor, posted_fee_minor,
                posted_payable, posted_currency, hold_until,
                reversed_minor, sub_id, item_sku, item_quantity, item_amount) =
               row (excluded.revision, excluded.has_report, excluded.other_click, excluded.refund_currency, excluded.verdict,
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

-- Releases up to p_max orders whose hold is over, and returns how many. Orders are taken by due time from an index, rows
-- that somebody else works on are skipped, so any number of daemons may call it. Where a test clock is ahead, so is what is due. However many orders one affiliate
-- has among them, they are one release with three transfers; release_item tells which orders it was made of.
create or replace function affiliate.release_holds(p_max integer)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_nestloop = off
set enable_mergejoin = off
set work_mem = '64MB'
set jit = off
as $$
declare
    -- Of orders at the limit, so many sum up to a bigint.
    most bigint := least(p_max, 9223372036854775807 / affiliate.worth_limit());
    due tid[];
    count bigint;
begin
    perform affiliate.work_tables();
    perform affiliate.work_clear('released', 'account_change', 'account_changed', 'order_change');

    due := array(
        select h.ctid
          from affiliate.hold h
         where h.due_at <= now()
         order by h.due_at
         limit most
           for update skip locked);
    if cardinality(due) < most then
        due := due || array(select affiliate.test_holds_due(most - cardinality(due)));
    end if;

    with over as (
        delete from affiliate.hold
         where ctid = any (due)
        returning *
    ),
    grouped as materialized (
        select h.merchant_id, nextval('affiliate.release_id_seq') as release_id, h.affiliate_id, h.livemode, h.currency,
               count(*) as orders, sum(h.commission_minor) as commission, sum(h.fee_minor) as fee
          from over h
         group by h.merchant_id, h.affiliate_id, h.livemode, h.currency
    ),
    itemized as (
        -- Sorted, because the pages of the index are then touched one after the other.
        insert into affiliate.release_item
              (merchant_id, order_no, release_id, commission_minor, fee_minor, due_at, revision)
        select h.merchant_id, h.order_no, g.release_id, h.commission_minor, h.fee_minor, h.due_at, h.revision
          from over h
          join grouped g using (merchant_id, affiliate_id, livemode, currency)
         order by h.merchant_id, h.order_no
    ),
    counted as (
        insert into pg_temp.order_change
        select h.merchant_id, h.livemode, h.day, h.link_id, h.campaign_id, h.affiliate_id, h.sub_id, h.currency,
               0, - count(*), count(*), 0, 0, 0, 0, 0, 0,
               - sum(h.commission_minor), sum(h.commission_minor), 0, - sum(h.fee_minor), sum(h.fee_minor)
          from over h
         group by h.merchant_id, h.livemode, h.day, h.link_id, h.campaign_id, h.affiliate_id, h.sub_id, h.currency
    ),
    made as (
        insert into affiliate.release
              (merchant_id, release_id, affiliate_id, livemode, currency, orders, commission_minor, fee_minor)
        select g.merchant_id, g.release_id, g.affiliate_id, g.livemode, g.currency, g.orders, g.commission, g.fee
          from grouped g
        returning *
    )
    insert into pg_temp.released
    select *
      from made;

    select coalesce(sum(r.orders), 0) into count
      from pg_temp.released r;
    if count > 0 then
        perform affiliate.post_releases();
        perform affiliate.count_order_changes();
    end if;
    return count;
end
$$;

-- Replacing it made it one that runs as whoever calls it.
select affiliate.enter_as_owner('affiliate.release_holds(integer)');

-- Causes: every transfer is one of an order that exists or of a release that adds up.
create or replace function affiliate.audit_causes(p_since timestamptz default null)
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
    select 'transfer has a cause', t.merchant_id,
           format('transfer %s/%s/%s/%s', t.cause_kind, t.cause_id, t.cause_revision, t.code),
           'there is no such order, revision or release'
      from affiliate.transfer t
      left join affiliate.order_fact o
        on t.cause_kind = 1 and o.merchant_id = t.merchant_id and o.order_no = t.cause_id
      left join affiliate.release r
        on t.cause_kind = 2 and r.merchant_id = t.merchant_id and r.release_id = t.cause_id
     where r.release_id is null
       and (o.order_no is null or t.cause_revision > o.revision or t.livemode <> o.livemode)
       and (p_since is null or t.created_at >= p_since)
    union all
    select 'release is the sum of its orders', r.merchant_id, 'release ' || r.release_id,
           format('says %s orders %s + %s, items say %s orders %s + %s', r.orders, r.commission_minor, r.fee_minor,
                  coalesce(i.orders, 0), coalesce(i.commission, 0), coalesce(i.fee, 0))
      from affiliate.release r
      left join (
               select i.merchant_id, i.release_id, count(*) as orders,
                      sum(i.commission_minor) as commission, sum(i.fee_minor) as fee
                 from affiliate.release_item i
                group by i.merchant_id, i.release_id
           ) i using (merchant_id, release_id)
     where (r.orders, r.commission_minor, r.fee_minor) is distinct from (i.orders, i.commission, i.fee)
       and (p_since is null or r.released_at >= p_since)
    union all
    select 'release is posted', r.merchant_id, 'release ' || r.release_id,
           format('should move %s + %s, moved %s', r.commission_minor, r.fee_minor, coalesce(t.amounts, '{}'))
      from affiliate.release r
      left join (
               select t.merchant_id, t.cause_id, jsonb_object_agg(t.code, t.amount_minor) as amounts
                 from affiliate.transfer t
                where t.cause_kind = 2
                group by t.merchant_id, t.cause_id
           ) t on t.merchant_id = r.merchant_id and t.cause_id = r.release_id
     where (p_since is null or r.released_at >= p_since)
       and (coalesce((t.amounts ->> '11')::bigint, 0) <> r.commission_minor
            or coalesce((t.amounts ->> '12')::bigint, 0) <> r.fee_minor
            or coalesce((t.amounts ->> '13')::bigint, 0) <> r.commission_minor + r.fee_minor)
    union all
    select 'released only when due', i.merchant_id, 'order_no ' || i.order_no,
           format('due %s, released %s', i.due_at, r.released_at)
      from affiliate.release_item i
      join affiliate.release r using (merchant_id, release_id)
     where r.released_at < i.due_at
       and (r.livemode or affiliate.test_time(r.merchant_id, r.released_at) < i.due_at)
       and (p_since is null or r.released_at >= p_since)
    union all
    select 'released item has a release and an order', i.merchant_id, 'order_no ' || i.order_no,
           format('release %s', i.release_id)
      from affiliate.release_item i
      left join affiliate.release r using (merchant_id, release_id)
      left join affiliate.order_fact o using (merchant_id, order_no)
     where (r.release_id is null or o.order_no is null or o.livemode <> r.livemode)
       and (p_since is null or r.release_id is null or r.released_at >= p_since);
end
$$;

-- Orders: what is posted is what the facts and the terms say. An order that was released since it was last decided is taken
-- apart: its own transfers and its older releases come to its position as of then, and this release moved just that.
create or replace function affiliate.audit_positions(p_since timestamptz default null)
returns table (invariant text, merchant_id bigint, subject text, detail text)
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
set plan_cache_mode = force_custom_plan
set work_mem = '64MB'
set jit = off
as $$
#variable_conflict use_column
begin
    return query
    with changed as materialized (
        select *
          from affiliate.audit_orders(p_since)
    ),
    due as (
        select o.merchant_id, o.order_no, o.livemode, o.revision, o.posted_currency as currency, o.posted_affiliate_id,
               o.posted_commission_minor, o.posted_fee_minor, p.owner, p.kind, p.owner_id, p.amount_minor
          from affiliate.order_fact o
          left join affiliate.terms t
            on t.merchant_id = o.merchant_id and t.terms_id = o.terms_id
          left join lateral affiliate.position(o, t) p on true
         where p_since is null
            or (o.merchant_id, o.order_no) in (select * from changed)
    ),
    total as (
        select d.merchant_id, d.order_no, d.livemode, d.revision, d.currency, d.posted_affiliate_id,
               d.posted_commission_minor, d.posted_fee_minor,
               coalesce(sum(d.amount_minor) filter (where d.owner = 'affiliate'), 0)::bigint as commission,
               coalesce(sum(d.amount_minor) filter (where d.owner = 'platform'), 0)::bigint as fee
          from due d
         group by d.merchant_id, d.order_no, d.livemode, d.revision, d.currency, d.posted_affiliate_id,
                  d.posted_commission_minor, d.posted_fee_minor
    ),
    released as (
        select i.merchant_id, i.order_no, i.revision, i.release_id, i.commission_minor, i.fee_minor,
               r.affiliate_id, r.livemode, r.currency, o.revision as order_revision
          from affiliate.release_item i
          join affiliate.release r using (merchant_id, release_id)
          join total o using (merchant_id, order_no)
    ),
    named as (
        select d.merchant_id, d.order_no, d.livemode, d.currency, d.owner, d.kind, d.owner_id,
               0 as posted, d.amount_minor as wanted
          from due d
         where d.amount_minor is not null
         union all
        select r.merchant_id, r.order_no, r.livemode, r.currency, move.owner, move.kind, move.owner_id,
               move.amount_minor, 0
          from released r
         cross join lateral (values
                   ('affiliate', 'pending', r.affiliate_id, - r.commission_minor),
                   ('affiliate', 'payable', r.affiliate_id, r.commission_minor),
                   ('platform', 'fee_pending', 0, - r.fee_minor),
                   ('platform', 'fee_earned', 0, r.fee_minor),
                   ('merchant', 'accrued', r.merchant_id, r.commission_minor + r.fee_minor),
                   ('merchant', 'owed', r.merchant_id, - r.commission_minor - r.fee_minor)
               ) as move(owner, kind, owner_id, amount_minor)
         where r.revision <> r.order_revision
           and move.amount_minor <> 0
        offset 0
    )
    select 'posted is the position', x.merchant_id, 'order_no ' || x.order_no,
           format('%s: posted %s, should be %s %s', coalesce(a.owner || '.' || a.kind || ' of ' || a.owner_id, x.missing),
                  x.posted, x.wanted, x.currency)
      from (
               select e.merchant_id, e.order_no, e.account_id, e.missing, max(e.currency) as currency,
                      sum(e.posted) as posted, sum(e.wanted) as wanted
                 from (
                          select p.merchant_id, p.cause_id as order_no, p.account_id, null as missing, p.currency,
                                 p.credit_minor - p.debit_minor as posted, 0 as wanted
                            from affiliate.posting p
                           where p.cause_kind = 1
                             and (p_since is null
                                  or (p.merchant_id, p.cause_id) in (select * from changed))
                           union all
                          select n.merchant_id, n.order_no, a.account_id,
                                 case when a.account_id is null then n.owner || '.' || n.kind || ' of ' || n.owner_id end,
                                 n.currency, n.posted, n.wanted
                            from named n
                            left join affiliate.account a
                              on a.merchant_id = n.merchant_id and a.livemode = n.livemode and a.currency = n.currency
                             and a.owner = n.owner and a.kind = n.kind and a.owner_id = n.owner_id
                      ) e
                group by e.merchant_id, e.order_no, e.account_id, e.missing
               having sum(e.posted) <> sum(e.wanted)
           ) x
      left join affiliate.account a
        on a.merchant_id = x.merchant_id and a.account_id = x.account_id
    union all
    select 'posted is the position', o.merchant_id, 'order_no ' || o.order_no,
           format('release %s moved %s + %s %s of affiliate %s, position is %s + %s %s of %s', r.release_id,
                  r.commission_minor, r.fee_minor, r.currency, r.affiliate_id,
                  o.commission, o.fee, o.currency, o.posted_affiliate_id)
      from total o
      join released r using (merchant_id, order_no, revision)
     where (r.commission_minor, r.fee_minor, r.affiliate_id, r.livemode, r.currency)
           is distinct from (o.commission, o.fee, o.posted_affiliate_id, o.livemode, o.currency)
    union all
    select 'order remembers what is posted', o.merchant_id, 'order_no ' || o.order_no,
           format('remembers %s + %s, position is %s + %s', o.posted_commission_minor, o.posted_fee_minor,
                  o.commission, o.fee)
      from total o
     where (o.posted_commission_minor, o.posted_fee_minor) is distinct from (o.commission, o.fee)
    union all
    select 'reversed at most what was earned', t.merchant_id, 'order_no ' || t.cause_id,
           format('earned %s + %s, reversed %s + %s',
                  sum(t.amount_minor) filter (where t.code = 1), sum(t.amount_minor) filter (where t.code = 2),
                  sum(t.amount_minor) filter (where t.code = 3), sum(t.amount_minor) filter (where t.code = 4))
      from affiliate.transfer t
     where t.cause_kind = 1
       and (p_since is null or (t.merchant_id, t.cause_id) in (select * from changed))
     group by t.merchant_id, t.cause_id
    having coalesce(sum(t.amount_minor) filter (where t.code = 3), 0)
               > coalesce(sum(t.amount_minor) filter (where t.code = 1), 0)
        or coalesce(sum(t.amount_minor) filter (where t.code = 4), 0)
               > coalesce(sum(t.amount_minor) filter (where t.code = 2), 0)
    union all
    select 'payable is what is due', o.merchant_id, 'order_no ' || o.order_no,
           format('is payable, but %s, approved %s, on hold for %s', o.outcome, o.approved_at, t.hold)
      from affiliate.order_fact o
      left join affiliate.terms t
        on t.merchant_id = o.merchant_id and t.terms_id = o.terms_id
     where o.posted_payable
       -- clock_timestamp(): a release may have begun and ended since this transaction began.
       and (o.outcome = 'accepted'
            and o.approved_at + t.hold <= case when o.livemode then clock_timestamp()
                                               else affiliate.test_time(o.merchant_id, clock_timestamp()) end) is not true
       and (p_since is null or (o.merchant_id, o.order_no) in (select * from changed))
    union all
    select 'held is what waits', coalesce(o.merchant_id, h.merchant_id),
           'order_no ' || coalesce(o.order_no, h.order_no),
           case when h.order_no is null then 'is not held' when o.order_no is null then 'is held and should not be'
                else 'is held with other values' end
      from (
               select o.merchant_id, o.order_no, o.livemode, o.posted_currency, o.posted_affiliate_id, o.revision,
                      o.posted_commission_minor, o.posted_fee_minor, o.approved_at + t.hold as due_at, o.hold_until
                 from affiliate.order_fact o
                 join affiliate.terms t
                   on t.merchant_id = o.merchant_id and t.terms_id = o.terms_id
                 left join affiliate.release_item r
                   on r.merchant_id = o.merchant_id and r.order_no = o.order_no and r.revision = o.revision
                where o.outcome = 'accepted'
                  and o.approved_at is not null
                  and not o.posted_payable
                  and r.order_no is null
                  and o.posted_commission_minor + o.posted_fee_minor > 0
                  and (p_since is null
                       or (o.merchant_id, o.order_no) in (select * from changed))
           ) o
      full join (
               select *
                 from affiliate.hold h
                where p_since is null
                   or (h.merchant_id, h.order_no) in (select * from changed)
           ) h
        on h.merchant_id = o.merchant_id
       and h.order_no = o.order_no
     where (h.livemode, h.currency, h.affiliate_id, h.revision, h.commission_minor, h.fee_minor, h.due_at, h.due_at)
           is distinct from
           (o.livemode, o.posted_currency, o.posted_affiliate_id, o.revision,
            o.posted_commission_minor, o.posted_fee_minor, o.due_at, o.hold_until);
end
$$;

-- Facts: they are what the conversions say, and so is the outcome.
create or replace function affiliate.audit_facts(p_since timestamptz default null)
returns table (invariant text, merchant_id bigint, subject text, detail text)
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
set plan_cache_mode = force_custom_plan
set work_mem = '64MB'
set jit = off
as $$
#variable_conflict use_column
begin
    return query
    with changed as materialized (
        select *
          from affiliate.audit_orders(p_since)
    )
    select 'facts are what the conversions say', o.merchant_id, 'order ' || o.order_id,
           case when f.reported_at is null then 'has no conversion' else 'differ from its conversions' end
      from affiliate.order_fact o
      left join affiliate.terms t
        on t.merchant_id = o.merchant_id and t.terms_id = o.terms_id
      left join lateral affiliate.order_facts(o.merchant_id, o.livemode, o.order_id) f on true
     cross join lateral (
               select case when cardinality(f.item_amount) > 0 and t.terms_id is not null
                           then affiliate.item_fraction(
                                    t, f.amount_minor, f.item_sku, f.item_category, f.item_quantity, f.item_amount)
                      end as fraction
              offset 0
           ) n
     where (o.reported_at, o.has_report, o.other_click, o.customer, o.approved_at, o.cancelled_at, o.returned_at,
            o.click_id, o.clicked_at, o.link_id, o.campaign_id, o.affiliate_id, o.verdict, o.click_problem,
            o.amount_minor, o.currency, o.refunded_minor, o.refund_currency, o.item_numerator, o.item_denominator,
            o.sub_id, o.item_sku, o.item_quantity, o.item_amount)
           is distinct from
           (f.reported_at, f.has_report, f.other_click, f.customer, f.approved_at, f.cancelled_at, f.returned_at,
            f.click_id, f.clicked_at, f.link_id, f.campaign_id, f.affiliate_id, f.verdict, f.click_problem,
            f.amount_minor, f.currency, f.refunded_minor, f.refund_currency, n.fraction[1], n.fraction[2],
            f.sub_id, f.item_sku, f.item_quantity, f.item_amount)
       and (p_since is null or (o.merchant_id, o.order_no) in (select * from changed))
    union all
    select 'outcome follows from the facts', o.merchant_id, 'order ' || o.order_id,
           format('is %s (%s), should be %s', o.outcome, o.problem, coalesce(l.problem, 'accepted'))
      from affiliate.order_fact o
      left join affiliate.campaign c
        on c.merchant_id = o.merchant_id and c.campaign_id = o.campaign_id
      left join (
               select t.*,
                      lead(t.valid_from, 1, 'infinity') over (
                          partition by t.merchant_id, t.campaign_id order by t.valid_from) as valid_until
                 from affiliate.terms t
           ) t
        on t.merchant_id = o.merchant_id and t.campaign_id = o.campaign_id
       and affiliate.click_day(o.livemode, o.clicked_at, o.click_id) >= t.valid_from
       and affiliate.click_day(o.livemode, o.clicked_at, o.click_id) < t.valid_until
     cross join lateral (
               select affiliate.order_problem(
                          o.click_problem, o.verdict, o.inactive, t.terms_id is not null,
                          o.reported_at - o.clicked_at, t.attribution_window, t.minimum_click_to_order,
                          o.currency, c.currency, o.other_click, o.refund_currency,
                          o.has_report and o.approved_at is not null and o.amount_minor is null
                              and t.rate_basis_points is not null,
                          o.review_decision) as found
              offset 0
           ) w
     cross join lateral (
               select case when o.livemode then w.found
                           else affiliate.test_problem(o.order_id, w.found, o.review_decision) end as problem
              offset 0
           ) p
     cross join lateral (
               select affiliate.order_void(affiliate.outcome_of(p.problem), o.has_report, o.cancelled_at, o.returned_at) as void
              offset 0
           ) v
     cross join lateral (
               select affiliate.kept_minor(o.amount_minor, o.refunded_minor, v.void) as kept
              offset 0
           ) k
     cross join lateral (
               select affiliate.commission_minor(
                          k.kept, o.amount_minor, t.rate_basis_points, t.rate_flat_minor,
                          o.item_numerator, o.item_denominator, v.void) as commission
              offset 0
           ) e
     cross join lateral (
               select case when e.commission + affiliate.fee_minor(
                                   e.commission, k.kept, o.amount_minor, t.fee_basis_points, t.fee_flat_minor, v.void)
                                > affiliate.worth_limit()
                           then 'above_limit' else p.problem end as problem
              offset 0
           ) l
     where (o.problem, o.outcome, o.terms_id) is distinct from (l.problem, affiliate.outcome_of(l.problem), t.terms_id)
       and (p_since is null or (o.merchant_id, o.order_no) in (select * from changed))
    union all
    select 'conversion belongs to an order', c.merchant_id, 'conversion ' || c.conversion_id, 'order ' || c.order_id
      from affiliate.conversion c
      left join affiliate.order_fact o using (merchant_id, livemode, order_id)
     where not c.waiting
       and o.order_no is null
    union all
    select 'waiting conversion is waited for', coalesce(c.merchant_id, w.merchant_id),
           'conversion ' || coalesce(c.conversion_id, w.conversion_id),
           case when w.conversion_id is null then 'nobody waits for its click' else 'is not waiting' end
      from (select * from affiliate.conversion where waiting) c
      full join affiliate.waiting w
        on w.merchant_id = c.merchant_id and w.conversion_id = c.conversion_id
     where c.conversion_id is null
        or w.conversion_id is null
    union all
    select 'livemode never mixes', c.merchant_id, 'conversion ' || c.conversion_id,
           'its click is of another mode or merchant'
      from affiliate.conversion c
      join affiliate.click k on k.id = c.click_id
     where c.affiliate_id is not null
       and (k.livemode, k.merchant_id) is distinct from (c.livemode, c.merchant_id)
       and (p_since is null or c.received_at >= p_since - affiliate.waiting_limit());
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- The dry run
-- ---------------------------------------------------------------------------------------------------------------

-- What would become of an event: the real functions decide it, in a subtransaction that is undone. What it locks for that
-- moment is the order's own row. p_event has the fields of the stage; p_merchant_id and p_livemode are whose it is.
create function affiliate.dry_run(p_merchant_id bigint, p_livemode boolean, p_event jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    result jsonb;
begin
    -- Outside, so that they are made once a session.
    perform affiliate.conversion_stage();
    begin
        perform affiliate.work_clear('conversion_stage', 'conversion_new', 'record_left', 'order_touched', 'order_held', 'move');
        insert into pg_temp.conversion_stage
        select r.*
          from jsonb_populate_record(null::pg_temp.conversion_stage, p_event || jsonb_build_object(
                   'merchant_id', p_merchant_id, 'livemode', p_livemode, 'source', 1, 'position', 0,
                   'spool_id', 0, 'segment', 0, 'sequence', 0, 'record', 0, 'received_at', clock_timestamp())) r;
        perform affiliate.insert_conversions();
        result := affiliate.dry_run_result(p_merchant_id, p_livemode, p_event);
        raise exception using errcode = 'AF000';
    exception when sqlstate 'AF000' then
        return result;
    end;
end
$$;

-- Within the subtransaction: the verdict of what insert_conversions() made of the stage.
create function affiliate.dry_run_result(p_merchant_id bigint, p_livemode boolean, p_event jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made record;
    same boolean;
    o affiliate.order_now;
begin
    select * into made from pg_temp.conversion_new;
    if not found then
        select c.body_hash = (p_event ->> 'body_hash')::bytea into same
          from affiliate.conversion c
         where c.merchant_id = p_merchant_id
           and c.livemode = p_livemode
           and c.idempotency_key = p_event ->> 'idempotency_key'
           and c.position = 0;
        return jsonb_build_object('result', case when same then 'repeated' when same is null then 'refused' else 'conflict' end);
    end if;
    if made.waiting then
        return jsonb_build_object('result', 'waits');
    end if;

    insert into pg_temp.order_touched values (p_merchant_id, p_livemode, made.order_id, null);
    perform affiliate.insert_touched();
    perform affiliate.lock_orders();
    perform affiliate.decide_orders(true);

    select * into o
      from affiliate.order_now n
     where n.merchant_id = p_merchant_id
       and n.livemode = p_livemode
       and n.order_id = made.order_id;
    return affiliate.dry_run_order(o);
end
$$;

create function affiliate.dry_run_order(o affiliate.order_now)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
               'result', 'decided',
               'order', o.order_id,
               'livemode', o.livemode,
               'state', affiliate.order_state(o),
               'outcome', o.outcome,
               'reason', o.problem,
               'sentence', affiliate.state_sentence(
                   affiliate.order_state(o), o.problem, o.hold_until, o.refunded_minor, coalesce(o.currency, o.posted_currency)),
               'affiliate', o.affiliate_id,
               'campaign', o.campaign_id,
               'amount', affiliate.amount_text(o.amount_minor, k.decimals),
               'refunded', affiliate.amount_text(case when o.returned_at is null then o.refunded_minor else o.amount_minor end, k.decimals),
               'currency', coalesce(o.currency, o.posted_currency),
               'commission', affiliate.amount_text(o.posted_commission_minor, c.decimals),
               'fee', affiliate.amount_text(o.posted_fee_minor, c.decimals),
               'commission_currency', o.posted_currency,
               'click_to_order_seconds', extract(epoch from o.reported_at - o.clicked_at)::bigint,
               'payable_at', o.hold_until)
      from (values (1)) as one(row)
      left join affiliate.currency k on k.currency = coalesce(o.currency, o.posted_currency)
      left join affiliate.currency c on c.currency = o.posted_currency
$$;

-- The checks that the database makes, in their order: which was the one that failed, if one did.
create function affiliate.dry_run_checks(p_result jsonb)
returns jsonb
language sql immutable strict
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_agg(jsonb_build_object(
               'check', c.name,
               'verdict', case
                   when c.n < w.failed then 'passed'
                   when c.n > w.failed then 'skipped'
                   when p_result ->> 'result' in ('repeated', 'waits') then 'passed'
                   when p_result ->> 'outcome' = 'review' then 'review'
                   else 'failed' end,
               'detail', case when c.n = w.failed then w.detail end) order by c.n)
      from unnest('{idempotency_key,click,merchant,campaign_terms,attribution_window,currency,review,amount}'::text[])
           with ordinality as c(name, n)
     cross join (
               select case
                          when p_result ->> 'result' in ('repeated', 'conflict') then 1
                          when p_result ->> 'result' in ('waits', 'refused') then 2
                          when p_result ->> 'reason' in ('unknown_click', 'foreign_click', 'expired_click', 'wrong_livemode',
                                                         'bot_click', 'preview_click', 'prefetch_click') then 2
                          when p_result ->> 'reason' in ('inactive_merchant', 'inactive_campaign', 'inactive_affiliate') then 3
                          when p_result ->> 'reason' = 'no_terms' then 4
                          when p_result ->> 'reason' in ('outside_attribution_window', 'too_fast') then 5
                          when p_result ->> 'reason' in ('wrong_currency', 'refund_currency') then 6
                          when p_result ->> 'reason' in ('review_rejected', 'duplicate_order', 'suspect_click') then 7
                          when p_result ->> 'reason' is not null then 8
                          else 9
                      end as failed,
                      case p_result ->> 'result'
                          when 'repeated' then 'This Idempotency-Key was used with the same body: the call would be answered like the first, and count once.'
                          when 'conflict' then 'This Idempotency-Key was used with another body: the call would be refused.'
                          when 'waits' then 'The click has not arrived yet: the order would wait for it, for as long as seven days.'
                          when 'refused' then 'The database would refuse the event.'
                          else affiliate.reason_sentence(p_result ->> 'reason')
                      end as detail
           ) w
$$;

-- What comes from outside was checked where signed calls are: _event is an event that passed, _checks what was found on the way.
create function affiliate.run_dry(p_actor affiliate.actor, p_event jsonb)
returns jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.dry_run(p_actor.merchant_id, p_actor.livemode, p_event)
$$;

create function affiliate.api_dry_run_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    result jsonb;
begin
    perform affiliate.check_request(p_request, '{_checks,body}', '{_event,key,method,path,timestamp,idempotency_key,signature}');
    if p_request -> '_event' is not null then
        result := affiliate.run_dry(p_actor, p_request -> '_event');
    end if;
    return next jsonb_build_object(
        'accepted', result is not null and result ->> 'result' not in ('conflict', 'refused'),
        'checks', (p_request -> '_checks') || coalesce(affiliate.dry_run_checks(result), '[]'),
        'order', case when result ->> 'result' = 'decided' then result - 'result' end);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Operations
-- ---------------------------------------------------------------------------------------------------------------

select affiliate.fence('affiliate.test_clock');

create function affiliate.test_clock_json(p_merchant_id bigint)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'now', clock_timestamp() + c.ahead,
        'ahead_seconds', extract(epoch from c.ahead)::bigint,
        'moved_at', c.at)
      from (values (1)) as one(row)
     cross join lateral (
               select coalesce(max(x.ahead), '0') as ahead, max(x.at) as at
                 from affiliate.test_clock x
                where x.merchant_id = p_merchant_id
           ) c
$$;

create function affiliate.move_test_clock(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before jsonb := affiliate.test_clock_json(p_actor.merchant_id) - 'now';
    target timestamptz := affiliate.time_field(p_request, 'to');
    span interval := affiliate.interval_field(p_request, 'advance', '1 second');
begin
    if num_nonnulls(target, span) <> 1 then
        perform affiliate.refuse('advance', 'or "to" is required, not both');
    end if;
    if target is not null then
        span := make_interval(secs => ceil(extract(epoch from
            target - affiliate.test_time(p_actor.merchant_id, clock_timestamp())))::double precision);
        if span <= '0' then
            perform affiliate.refuse('to', 'must be later than what the clock shows: it goes forward only');
        end if;
    end if;
    perform affiliate.advance_test_clock(p_actor.merchant_id, span);
    perform affiliate.record(p_actor, 'test_clock_advance', 'test_clock', p_actor.merchant_id::text,
        before, affiliate.test_clock_json(p_actor.merchant_id) - 'now');
    return affiliate.test_clock_json(p_actor.merchant_id);
end
$$;

create function affiliate.api_test_clock_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request);
    return next affiliate.test_clock_json(p_actor.merchant_id);
end
$$;

-- A live key has no business with it; for people there is but one.
create function affiliate.api_test_clock_advance(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{}', '{advance,to}');
    if p_actor.kind = 'key' and p_actor.livemode then
        perform affiliate.problem(403, 'forbidden', 'The test clock is for test keys.');
    end if;
    return next affiliate.move_test_clock(p_actor, p_request);
end
$$;

-- The order ids that force an outcome, and what each gives.
create function affiliate.api_magic_order_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query
    select * from affiliate.page(p_actor, p_request,
        $query$
        select m.order_id, affiliate.magic_problem(m.order_id) as problem
          from (select unnest('{TEST-ACCEPTED,TEST-DUPLICATE,TEST-REVIEW,TEST-REJECTED}'::text[])
                union all
                select 'TEST-' || case affiliate.outcome_of(p) when 'review' then 'REVIEW-' else 'REJECTED-' end || upper(p)
                  from unnest(affiliate.order_problems()) p) as m(order_id)
        $query$,
        $row$jsonb_build_object(
                 'order', x.order_id,
                 'outcome', case x.problem when 'accepted' then x.problem else affiliate.outcome_of(x.problem) end,
                 'reason', nullif(x.problem, 'accepted'),
                 'sentence', case x.problem when 'accepted' then 'The order is accepted, whatever there is to doubt.'
                                            else affiliate.reason_sentence(x.problem) end)$row$,
        '{order_id text}', 'order_id text');
end
$$;

select affiliate.enter_as_tenant(
    'affiliate.run_dry(affiliate.actor, jsonb)',
    'affiliate.move_test_clock(affiliate.actor, jsonb)');

select affiliate.operation('dry_run_create', actors => '{merchant,key,admin}'),
       affiliate.operation('test_clock_show', actors => '{merchant,key,admin}'),
       affiliate.operation('test_clock_advance', actors => '{merchant,key,admin}', role => 'manager', creates => true, by_mode => true),
       affiliate.operation('magic_order_list', actors => '{merchant,key,admin}');
select affiliate.seal_operations();
