-- The proof of the books: a row for each broken invariant, none if all is well.
--
-- Each check is a few passes over whole tables that meet in hashes: its time grows with the rows, whatever the planner
-- knows of them. With p_since, what is checked order by order is checked for the orders that changed since then; sums
-- are always sums over everything. Plans are made for the argument at hand, so that "p_since is null" costs nothing.

-- Both sides of every transfer.
create view affiliate.posting as
select t.merchant_id, t.debit_account as account_id, t.amount_minor as debit_minor, 0::bigint as credit_minor,
       t.cause_kind, t.cause_id, t.cause_revision, t.code, t.livemode, t.currency, t.created_at
  from affiliate.transfer t
union all
select t.merchant_id, t.credit_account, 0, t.amount_minor,
       t.cause_kind, t.cause_id, t.cause_revision, t.code, t.livemode, t.currency, t.created_at
  from affiliate.transfer t;

comment on view affiliate.posting is 'Both sides of every transfer';

-- An order as it stands now: released since it was last decided, or not.
create view affiliate.order_now as
select o.*,
       o.posted_payable or r.order_no is not null as payable,
       r.release_id,
       h.due_at
  from affiliate.order_fact o
  left join affiliate.release_item r
    on r.merchant_id = o.merchant_id and r.order_no = o.order_no and r.revision = o.revision
  left join affiliate.hold h
    on h.due_at = o.hold_until and h.merchant_id = o.merchant_id and h.order_no = o.order_no;

comment on view affiliate.order_now is 'Order facts with what became of them since: payable if released, due_at if held';

-- The orders that changed since: by a batch that was applied, a click that came late, a posting, a release or a review.
-- A click that came late leaves no time behind: conversions count from when they might have begun to wait.
create function affiliate.audit_orders(p_since timestamptz)
returns table (merchant_id bigint, order_no bigint)
language sql stable
begin atomic
    select o.merchant_id, o.order_no
      from affiliate.conversion c
      join affiliate.order_fact o using (merchant_id, livemode, order_id)
      left join affiliate.inbox i
        on i.channel = 2 and i.spool_id = c.spool_id and i.segment = c.segment and i.sequence = c.sequence
     where greatest(c.received_at, i.applied_at) >= p_since - affiliate.waiting_limit()
    union
    select t.merchant_id, t.cause_id
      from affiliate.transfer t
     where t.cause_kind = 1
       and t.created_at >= p_since
    union
    select i.merchant_id, i.order_no
      from affiliate.release_item i
      join affiliate.release r using (merchant_id, release_id)
     where r.released_at >= p_since
    union
    select o.merchant_id, o.order_no
      from affiliate.order_fact o
     where o.reviewed_at >= p_since;
end;

-- Balances: money neither comes from nowhere nor goes there.
create function affiliate.audit_balances(p_since timestamptz default null)
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
    select 'balances sum to zero', a.merchant_id,
           a.currency || case when a.livemode then ' live' else ' test' end,
           'sum of credits - debits is ' || sum(a.credits_minor - a.debits_minor)
      from affiliate.account a
     group by a.merchant_id, a.currency, a.livemode
    having sum(a.credits_minor - a.debits_minor) <> 0
    union all
    select 'account is the sum of its transfers', coalesce(a.merchant_id, t.merchant_id),
           'account ' || coalesce(a.account_id, t.account_id),
           format('counters %s/%s, transfers %s/%s',
                  a.debits_minor, a.credits_minor, coalesce(t.debits, 0), coalesce(t.credits, 0))
      from affiliate.account a
      full join (
               select p.merchant_id, p.account_id, sum(p.debit_minor) as debits, sum(p.credit_minor) as credits
                 from affiliate.posting p
                group by p.merchant_id, p.account_id
           ) t
        on t.merchant_id = a.merchant_id
       and t.account_id = a.account_id
     where a.debits_minor is distinct from coalesce(t.debits, 0)
        or a.credits_minor is distinct from coalesce(t.credits, 0)
    union all
    select 'transfer stays in its mode and currency', p.merchant_id,
           format('transfer %s/%s/%s/%s', p.cause_kind, p.cause_id, p.cause_revision, p.code),
           format('account %s is of another', a.account_id)
      from affiliate.posting p
      join affiliate.account a
        on a.merchant_id = p.merchant_id
       and a.account_id = p.account_id
     where (a.livemode, a.currency) is distinct from (p.livemode, p.currency)
       and (p_since is null or p.created_at >= p_since);
end
$$;

-- Causes: every transfer is one of an order that exists or of a release that adds up.
create function affiliate.audit_causes(p_since timestamptz default null)
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
     where t.cause_kind in (1, 2)
       and r.release_id is null
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
create function affiliate.audit_positions(p_since timestamptz default null)
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
create function affiliate.audit_facts(p_since timestamptz default null)
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
               select case when o.livemode then affiliate.held_problem(w.found, o.fraud_held, o.review_decision)
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

-- Batches: every record of a conversion batch became a conversion, was a duplicate or a refused call, or is a dead letter; and
-- every conversion came with a batch, once. Clicks don't say which batch brought them: that one is applied once rests on the inbox's key,
-- and that a click is there once, on the click's.
create function affiliate.audit_batches(p_since timestamptz default null)
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
    with dead as (
        select d.channel, d.spool_id, d.segment, d.sequence,
               count(distinct d.record) filter (where d.replayed_at is null) as records,
               bool_or(d.record is null or d.reason = 'corrupt_frame') as rest_lost
          from affiliate.dead_letter d
         group by d.channel, d.spool_id, d.segment, d.sequence
    ),
    came as (
        select c.spool_id, c.segment, c.sequence, count(*) as conversions, count(distinct c.record) as records
          from affiliate.conversion c
         group by c.spool_id, c.segment, c.sequence
    )
    select 'batch is accounted for', null::bigint,
           format('batch %s/%s/%s/%s', i.channel, i.spool_id, i.segment, i.sequence),
           format('%s records: %s conversions, %s duplicates, %s refusals, %s dead', i.records, i.conversions, i.duplicates,
                  i.refusals, coalesce(d.records, 0))
      from affiliate.inbox i
      left join dead d using (channel, spool_id, segment, sequence)
     where i.channel = 2
       and case when coalesce(d.rest_lost, false)
                then i.conversions + i.duplicates + i.refusals + d.records > i.records
                else i.conversions + i.duplicates + i.refusals + coalesce(d.records, 0) <> i.records end
    union all
    select 'batch is applied exactly once', null,
           format('batch %s/%s/%s/%s', 2, c.spool_id, c.segment, c.sequence),
           format('inbox says %s conversions, there are %s of %s records', coalesce(i.conversions, 0), c.conversions, c.records)
      from came c
      left join affiliate.inbox i
        on i.channel = 2 and i.spool_id = c.spool_id and i.segment = c.segment and i.sequence = c.sequence
     where c.records <> c.conversions
        or i.conversions <> c.conversions
    union all
    select 'batch is applied exactly once', null,
           format('batch %s/%s/%s/%s', 2, i.spool_id, i.segment, i.sequence),
           format('inbox says %s conversions, there are none', i.conversions)
      from affiliate.inbox i
      left join came c using (spool_id, segment, sequence)
     where i.channel = 2
       and i.conversions > 0
       and c.conversions is null
    union all
    select 'conversion came with a batch', c.merchant_id, 'conversion ' || c.conversion_id,
           format('batch %s/%s/%s is not in the inbox', c.spool_id, c.segment, c.sequence)
      from affiliate.conversion c
      left join affiliate.inbox i
        on i.channel = 2 and i.spool_id = c.spool_id and i.segment = c.segment and i.sequence = c.sequence
     where i.channel is null
       and c.received_at > now() - affiliate.inbox_retention();
end
$$;

-- Every broken invariant, a row each. None: the books are right.
create function affiliate.audit(p_since timestamptz default null)
returns table (invariant text, merchant_id bigint, subject text, detail text)
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return query select * from affiliate.audit_balances(p_since);
    return query select * from affiliate.audit_causes(p_since);
    return query select * from affiliate.audit_positions(p_since);
    return query select * from affiliate.audit_facts(p_since);
    return query select * from affiliate.audit_batches(p_since);
    return query select * from affiliate.audit_payouts(p_since);
    return query select * from affiliate.audit_bills(p_since);
    return query select * from affiliate.audit_npi(p_since);
    return query select * from affiliate.audit_fraud(p_since);
    return query select * from affiliate.audit_rollups(p_since);
end
$$;

-- affiliated audit [--since TIME or SPAN]
create function affiliate.audit_run(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    since timestamptz;
begin
    perform affiliate.check_fields(p_command, '{}', '{since}');
    if p_command ->> 'since' ~ '^\d{4}-' then
        since := affiliate.time_field(p_command, 'since');
    else
        since := now() - affiliate.interval_field(p_command, 'since', '0');
    end if;
    return query
    select to_jsonb(a)
      from affiliate.audit(since) a;
end
$$;
