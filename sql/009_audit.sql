-- The proof of the books: a row for each broken invariant, none if all is well.

-- What the transfers say that each order holds, account by account, credits positive; releases broken up by their items.
create view affiliate.order_posting as
select t.merchant_id, t.cause_id as order_no, t.livemode, t.currency,
       a.owner, a.kind, a.owner_id, side.amount_minor
  from affiliate.transfer t
 cross join lateral (values
           (t.debit_account, - t.amount_minor),
           (t.credit_account, t.amount_minor)
       ) as side(account_id, amount_minor)
  join affiliate.account a
    on a.merchant_id = t.merchant_id
   and a.account_id = side.account_id
 where t.cause_kind = 1
union all
select i.merchant_id, i.order_no, r.livemode, r.currency,
       move.owner, move.kind, move.owner_id, move.amount_minor
  from affiliate.release_item i
  join affiliate.release r using (merchant_id, release_id)
 cross join lateral (values
           ('affiliate', 'pending', r.affiliate_id, - i.commission_minor),
           ('affiliate', 'payable', r.affiliate_id, i.commission_minor),
           ('platform', 'fee_pending', 0, - i.fee_minor),
           ('platform', 'fee_earned', 0, i.fee_minor),
           ('merchant', 'accrued', r.merchant_id, i.commission_minor + i.fee_minor),
           ('merchant', 'owed', r.merchant_id, - i.commission_minor - i.fee_minor)
       ) as move(owner, kind, owner_id, amount_minor)
 where move.amount_minor <> 0;

comment on view affiliate.order_posting is 'What was posted for each order';

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

-- Balances: money neither comes from nowhere nor goes there.
create function affiliate.audit_balances()
returns table (invariant text, merchant_id bigint, subject text, detail text)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
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
               select t.merchant_id, side.account_id, sum(side.debit) as debits, sum(side.credit) as credits
                 from affiliate.transfer t
                cross join lateral (values
                          (t.debit_account, t.amount_minor, 0),
                          (t.credit_account, 0, t.amount_minor)
                      ) as side(account_id, debit, credit)
                group by t.merchant_id, side.account_id
           ) t
        on t.merchant_id = a.merchant_id
       and t.account_id = a.account_id
     where a.debits_minor is distinct from coalesce(t.debits, 0)
        or a.credits_minor is distinct from coalesce(t.credits, 0)
    union all
    select 'transfer stays in its mode and currency', t.merchant_id,
           format('transfer %s/%s/%s/%s', t.cause_kind, t.cause_id, t.cause_revision, t.code),
           format('account %s is of another', a.account_id)
      from affiliate.transfer t
      join affiliate.account a
        on a.merchant_id = t.merchant_id
       and a.account_id in (t.debit_account, t.credit_account)
     where (a.livemode, a.currency) is distinct from (t.livemode, t.currency)
$$;

-- Causes: every transfer is one of an order that exists or of a release that adds up.
create function affiliate.audit_causes()
returns table (invariant text, merchant_id bigint, subject text, detail text)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
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
     where coalesce((t.amounts ->> '11')::bigint, 0) <> r.commission_minor
        or coalesce((t.amounts ->> '12')::bigint, 0) <> r.fee_minor
        or coalesce((t.amounts ->> '13')::bigint, 0) <> r.commission_minor + r.fee_minor
    union all
    select 'released only when due', i.merchant_id, 'order_no ' || i.order_no,
           format('due %s, released %s', i.due_at, r.released_at)
      from affiliate.release_item i
      join affiliate.release r using (merchant_id, release_id)
     where r.released_at < i.due_at
    union all
    select 'released item has a release and an order', i.merchant_id, 'order_no ' || i.order_no,
           format('release %s', i.release_id)
      from affiliate.release_item i
      left join affiliate.release r using (merchant_id, release_id)
      left join affiliate.order_fact o using (merchant_id, order_no)
     where r.release_id is null
        or o.order_no is null
        or o.livemode <> r.livemode
$$;

-- The facts with what became of the order since.
create function affiliate.facts_now(p_facts affiliate.order_fact, p_payable boolean)
returns affiliate.order_fact
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    p_facts.posted_payable := p_payable;
    return p_facts;
end
$$;

-- Orders: what is posted is what the facts and the terms say.
create function affiliate.audit_positions()
returns table (invariant text, merchant_id bigint, subject text, detail text)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select 'posted is the position', x.merchant_id, 'order_no ' || x.order_no,
           format('%s.%s of %s: posted %s, should be %s %s', x.owner, x.kind, x.owner_id,
                  sum(x.posted), sum(x.wanted), x.currency)
      from (
               select p.merchant_id, p.order_no, p.livemode, p.currency, p.owner, p.kind, p.owner_id,
                      p.amount_minor as posted, 0::bigint as wanted
                 from affiliate.order_posting p
                union all
               select o.merchant_id, o.order_no, o.livemode, o.posted_currency, p.owner, p.kind, p.owner_id,
                      0, p.amount_minor
                 from affiliate.order_fact o
                 left join affiliate.terms t
                   on t.merchant_id = o.merchant_id and t.terms_id = o.terms_id
                 left join affiliate.release_item r
                   on r.merchant_id = o.merchant_id and r.order_no = o.order_no and r.revision = o.revision
                cross join lateral (
                          select affiliate.facts_now(o, o.posted_payable or r.order_no is not null) as facts
                          offset 0
                      ) n
                cross join lateral affiliate.position(n.facts, t) p
           ) x
     group by x.merchant_id, x.order_no, x.livemode, x.currency, x.owner, x.kind, x.owner_id
    having sum(x.posted) <> sum(x.wanted)
    union all
    select 'order remembers what is posted', o.merchant_id, 'order_no ' || o.order_no,
           format('remembers %s + %s, position is %s + %s', o.posted_commission_minor, o.posted_fee_minor,
                  due.commission, due.fee)
      from affiliate.order_fact o
      left join affiliate.terms t
        on t.merchant_id = o.merchant_id and t.terms_id = o.terms_id
     cross join lateral (
               select coalesce(sum(p.amount_minor) filter (where p.owner = 'affiliate'), 0)::bigint as commission,
                      coalesce(sum(p.amount_minor) filter (where p.owner = 'platform'), 0)::bigint as fee
                 from affiliate.position(o, t) p) due
     where (o.posted_commission_minor, o.posted_fee_minor) is distinct from (due.commission, due.fee)
    union all
    select 'reversed at most what was earned', t.merchant_id, 'order_no ' || t.cause_id,
           format('earned %s + %s, reversed %s + %s',
                  sum(t.amount_minor) filter (where t.code = 1), sum(t.amount_minor) filter (where t.code = 2),
                  sum(t.amount_minor) filter (where t.code = 3), sum(t.amount_minor) filter (where t.code = 4))
      from affiliate.transfer t
     where t.cause_kind = 1
     group by t.merchant_id, t.cause_id
    having coalesce(sum(t.amount_minor) filter (where t.code = 3), 0)
               > coalesce(sum(t.amount_minor) filter (where t.code = 1), 0)
        or coalesce(sum(t.amount_minor) filter (where t.code = 4), 0)
               > coalesce(sum(t.amount_minor) filter (where t.code = 2), 0)
    union all
    select 'held is what waits', coalesce(o.merchant_id, h.merchant_id),
           'order_no ' || coalesce(o.order_no, h.order_no),
           case when h.order_no is null then 'is not held' when o.order_no is null then 'is held and should not be'
                else 'is held with other values' end
      from (
               select o.merchant_id, o.order_no, o.livemode, o.posted_currency, o.posted_affiliate_id, o.revision,
                      o.posted_commission_minor, o.posted_fee_minor, o.approved_at + t.hold as due_at, o.hold_until
                 from affiliate.order_now o
                 join affiliate.terms t
                   on t.merchant_id = o.merchant_id and t.terms_id = o.terms_id
                where o.outcome = 'accepted'
                  and o.approved_at is not null
                  and not o.payable
                  and o.posted_commission_minor + o.posted_fee_minor > 0
           ) o
      full join affiliate.hold h
        on h.merchant_id = o.merchant_id
       and h.order_no = o.order_no
     where (h.livemode, h.currency, h.affiliate_id, h.revision, h.commission_minor, h.fee_minor, h.due_at, h.due_at)
           is distinct from
           (o.livemode, o.posted_currency, o.posted_affiliate_id, o.revision,
            o.posted_commission_minor, o.posted_fee_minor, o.due_at, o.hold_until)
$$;

-- Facts: they are what the conversions say, and so is the outcome.
create function affiliate.audit_facts()
returns table (invariant text, merchant_id bigint, subject text, detail text)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
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
            o.amount_minor, o.currency, o.refunded_minor, o.refund_currency, o.item_numerator, o.item_denominator)
           is distinct from
           (f.reported_at, f.has_report, f.other_click, f.customer, f.approved_at, f.cancelled_at, f.returned_at,
            f.click_id, f.clicked_at, f.link_id, f.campaign_id, f.affiliate_id, f.verdict, f.click_problem,
            f.amount_minor, f.currency, f.refunded_minor, f.refund_currency, n.fraction[1], n.fraction[2])
    union all
    select 'outcome follows from the facts', o.merchant_id, 'order ' || o.order_id,
           format('is %s (%s), should be %s', o.outcome, o.problem, coalesce(p.problem, 'accepted'))
      from affiliate.order_fact o
      left join affiliate.campaign c
        on c.merchant_id = o.merchant_id and c.campaign_id = o.campaign_id
      left join lateral (
               select *
                 from affiliate.terms t
                where t.merchant_id = o.merchant_id
                  and t.campaign_id = o.campaign_id
                  and t.valid_from <= o.clicked_at
                order by t.valid_from desc
                limit 1
           ) t on true
     cross join lateral (
               select affiliate.order_problem(
                          o.click_problem, o.verdict, o.inactive, t.terms_id is not null,
                          o.reported_at - o.clicked_at, t.attribution_window, t.minimum_click_to_order,
                          o.currency, c.currency, o.other_click, o.refund_currency,
                          o.has_report and o.approved_at is not null and o.amount_minor is null
                              and t.rate_basis_points is not null,
                          o.review_decision) as problem
           ) p
     where (o.problem, o.outcome, o.terms_id) is distinct from (p.problem, affiliate.outcome_of(p.problem), t.terms_id)
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
$$;

-- Batches: every record of a conversion batch became a conversion, was a duplicate, or is a dead letter; and every conversion
-- came with a batch, once. Clicks don't say which batch brought them: that one is applied once rests on the inbox's key,
-- and that a click is there once, on the click's.
create function affiliate.audit_batches()
returns table (invariant text, merchant_id bigint, subject text, detail text)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
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
           format('%s records: %s conversions, %s duplicates, %s dead', i.records, i.conversions, i.duplicates,
                  coalesce(d.records, 0))
      from affiliate.inbox i
      left join dead d using (channel, spool_id, segment, sequence)
     where i.channel = 2
       and case when coalesce(d.rest_lost, false)
                then i.conversions + i.duplicates + d.records > i.records
                else i.conversions + i.duplicates + coalesce(d.records, 0) <> i.records end
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
       and c.received_at > now() - affiliate.inbox_retention()
$$;

-- Every broken invariant, a row each. None: the books are right.
create function affiliate.audit()
returns table (invariant text, merchant_id bigint, subject text, detail text)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
begin atomic
    select * from affiliate.audit_balances()
    union all
    select * from affiliate.audit_causes()
    union all
    select * from affiliate.audit_positions()
    union all
    select * from affiliate.audit_facts()
    union all
    select * from affiliate.audit_batches();
end;
