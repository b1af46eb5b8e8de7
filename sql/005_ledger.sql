-- From events to money. The one way on which an order's money moves:
--
--   conversions --(values, never arrival)--> facts --(order_problem, position)--> what should stand --(difference)--> transfers
--
-- Everybody takes locks in the same order, so nobody deadlocks: idempotency keys, then orders, then holds, then accounts,
-- each in the order of their keys. Statements work on whole batches. They read the big tables by laterals
-- that can only be index look-ups, and the settings pinned on the functions keep a plan that was made when the tables were
-- small from being a bad one when they have grown.

-- Creates this session's work tables. Returns what was created.
create function affiliate.work_tables()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    if to_regclass('pg_temp.order_touched') is not null then
        return;
    end if;

    create temp table waiting_due (
        place tid, merchant_id bigint, livemode boolean, order_id text collate "C", conversion_id bigint,
        arrived boolean, mine boolean, elsewhere boolean, over boolean,
        link_id bigint, campaign_id bigint, affiliate_id bigint, verdict smallint
    ) on commit delete rows;

    create temp table order_touched (
        merchant_id bigint, livemode boolean, order_id text collate "C",
        events bigint, conversion_id bigint
    ) on commit delete rows;

    create temp table conversion_work (
        like affiliate.conversion,
        refund_id text, dead text, detail text, missing boolean, new boolean
    ) on commit delete rows;
    alter table conversion_work
        alter column merchant_id drop not null, alter column livemode drop not null,
        alter column source drop not null, alter column position drop not null,
        alter column status drop not null, alter column customer drop not null,
        alter column received_at drop not null, alter column effective_at drop not null,
        alter column clicked_at drop not null, alter column click_id drop not null,
        alter column order_id drop not null, alter column idempotency_key drop not null,
        alter column body_hash drop not null, alter column waiting drop not null;

    create temp table conversion_new (conversion_id bigint) on commit delete rows;

    create temp table order_known (
        merchant_id bigint, livemode boolean, order_id text collate "C",
        events bigint, conversion_id bigint, known boolean,
        order_no bigint, revision integer,
        posted_affiliate_id bigint, posted_commission_minor bigint, posted_fee_minor bigint,
        posted_payable boolean, posted_currency text,
        review_decision text, review_reason text, reviewed_at timestamptz
    ) on commit delete rows;

    create temp table order_held (hold tid) on commit delete rows;

    create temp table order_decided (
        like affiliate.order_fact,
        known boolean, old_payable boolean, old_affiliate_id bigint, old_commission_minor bigint,
        old_fee_minor bigint, old_currency text, due_at timestamptz
    ) on commit delete rows;

    create temp table posting (
        merchant_id bigint, cause_id bigint, cause_revision integer, cause_kind smallint, code smallint,
        livemode boolean, currency text, amount_minor bigint,
        debit_owner text, debit_kind text, debit_owner_id bigint,
        credit_owner text, credit_kind text, credit_owner_id bigint
    ) on commit delete rows;

    create temp table posting_account (
        merchant_id bigint, livemode boolean, currency text, owner text, kind text, owner_id bigint,
        account_id bigint
    ) on commit delete rows;

    create temp table hold_over (
        like affiliate.hold
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

-- Has this session's statements planned anew whenever the tables that they look into have doubled: a plan that was made when
-- they were empty can't tell one index from another.
create function affiliate.fresh_plans()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    size text := floor(log(2, 1 + pg_relation_size('affiliate.order_fact') + pg_relation_size('affiliate.conversion')));
begin
    if size is distinct from current_setting('affiliate.planned_size', true) then
        discard plans;
        perform set_config('affiliate.planned_size', size, false);
    end if;
end
$$;

-- Posts pg_temp.posting: brings the accounts up to date, creating them where they are new, and writes the transfers.
create function affiliate.post_transfers()
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
        select p.merchant_id, p.livemode, p.currency, side.owner, side.kind, side.owner_id,
               sum(side.debit), sum(side.credit)
          from pg_temp.posting p
         cross join lateral (values
                   (p.debit_owner, p.debit_kind, p.debit_owner_id, p.amount_minor, 0),
                   (p.credit_owner, p.credit_kind, p.credit_owner_id, 0, p.amount_minor)
               ) as side(owner, kind, owner_id, debit, credit)
         group by 1, 2, 3, 4, 5, 6
         order by 1, 2, 3, 4, 5, 6
            on conflict (merchant_id, livemode, currency, owner, kind, owner_id) do update
           set debits_minor = a.debits_minor + excluded.debits_minor,
               credits_minor = a.credits_minor + excluded.credits_minor
        returning merchant_id, livemode, currency, owner, kind, owner_id, account_id
    )
    insert into pg_temp.posting_account
    select * from changed;

    insert into affiliate.transfer
           (merchant_id, cause_id, cause_revision, cause_kind, code, debit_account, credit_account,
            amount_minor, livemode, currency)
    select p.merchant_id, p.cause_id, p.cause_revision, p.cause_kind, p.code, d.account_id, c.account_id,
           p.amount_minor, p.livemode, p.currency
      from pg_temp.posting p
      join pg_temp.posting_account d
        on d.merchant_id = p.merchant_id and d.livemode = p.livemode and d.currency = p.currency
       and d.owner = p.debit_owner and d.kind = p.debit_kind and d.owner_id = p.debit_owner_id
      join pg_temp.posting_account c
        on c.merchant_id = p.merchant_id and c.livemode = p.livemode and c.currency = p.currency
       and c.owner = p.credit_owner and c.kind = p.credit_kind and c.owner_id = p.credit_owner_id;

    perform affiliate.work_clear('posting', 'posting_account');
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
    refunded_minor bigint, refund_currency boolean)
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
        select e.click_id, e.clicked_at, e.link_id, e.campaign_id, e.affiliate_id, e.verdict, e.click_problem
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
           r.refunded_minor, r.refund_currency
      from merged m
     cross join click c
     cross join refunds r
      left join latest l on true;
end;


-- Locks the orders in pg_temp.order_touched that exist already, and their holds, and fills order_known. The holds are a
-- statement of their own: after waiting for a release in progress, the next statement sees what it did.
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
    perform affiliate.work_clear('order_known', 'order_held', 'order_decided');

    insert into pg_temp.order_known
    select t.merchant_id, t.livemode, t.order_id, t.events, t.conversion_id, o.order_no is not null,
           coalesce(o.order_no, nextval('affiliate.order_no_seq')), o.revision,
           o.posted_affiliate_id, coalesce(o.posted_commission_minor, 0), coalesce(o.posted_fee_minor, 0),
           coalesce(o.posted_payable, false), o.posted_currency,
           o.review_decision, o.review_reason, o.reviewed_at
      from (select *
              from pg_temp.order_touched
             order by merchant_id, livemode, order_id) t
      left join lateral (
               select *
                 from affiliate.order_fact f
                where f.merchant_id = t.merchant_id
                  and f.livemode = t.livemode
                  and f.order_id = t.order_id
                  for update
           ) o on true;

    insert into pg_temp.order_held
    select h.place
      from (select merchant_id, order_no
              from pg_temp.order_known
             where known
             order by merchant_id, order_no) k
     cross join lateral (
               select h.ctid as place
                 from affiliate.hold h
                where h.merchant_id = k.merchant_id
                  and h.order_no = k.order_no
                  for update
           ) h;
end
$$;

-- Decides the orders in pg_temp.order_known: what is known of them, whether they count, what is due. Fills order_decided.
-- An order that is new and has one event in this batch has its facts in that event; all others are merged.
create function affiliate.decide_orders()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_mergejoin = off
set jit = off
as $$
begin
    insert into pg_temp.order_decided
          (merchant_id, livemode, order_id, order_no, revision, known,
           has_report, other_click, refund_currency, verdict, customer,
           reported_at, clicked_at, approved_at, cancelled_at, returned_at,
           click_id, link_id, campaign_id, affiliate_id, terms_id,
           amount_minor, currency, refunded_minor, inactive, click_problem,
           outcome, problem, review_decision, review_reason, reviewed_at,
           item_numerator, item_denominator,
           posted_affiliate_id, posted_commission_minor, posted_fee_minor, posted_payable, posted_currency,
           old_affiliate_id, old_commission_minor, old_fee_minor, old_payable, old_currency, due_at)
    with fact as (
        select k.merchant_id, k.livemode, k.order_id, k.order_no, k.known,
               k.revision, k.posted_affiliate_id, k.posted_commission_minor, k.posted_fee_minor,
               k.posted_payable, k.posted_currency, k.review_decision, k.review_reason, k.reviewed_at,
               f.*
          from pg_temp.order_known k
         cross join lateral affiliate.order_facts(k.merchant_id, k.livemode, k.order_id) f
         where k.known
            or k.events is distinct from 1
        union all
        select k.merchant_id, k.livemode, k.order_id, k.order_no, false,
               null, null, 0, 0,
               false, null, null, null, null,
               w.effective_at, w.status in (1, 2), false, w.customer,
               case w.status when 2 then w.effective_at end,
               case w.status when 3 then w.effective_at end,
               case when w.status in (4, 5) and w.amount_minor is null then w.effective_at end,
               w.click_id, w.clicked_at, w.link_id, w.campaign_id, w.affiliate_id, w.verdict, w.click_problem,
               case when w.status in (1, 2) then w.amount_minor end,
               case when w.status in (1, 2) and w.amount_minor is not null then w.currency end,
               w.item_sku, w.item_category, w.item_quantity, w.item_amount,
               case when w.refund_key is null then 0 else w.amount_minor end,
               false
          from pg_temp.order_known k
          join pg_temp.conversion_work w on w.conversion_id = k.conversion_id
         where not k.known
           and k.events = 1
    ),
    judged as (
        select f.*,
               t.terms_id, t.rate_basis_points, t.rate_flat_minor, t.fee_basis_points, t.fee_flat_minor, t.hold,
               c.currency as campaign_currency,
               f.posted_payable or coalesce(r.released, false) as released,
               i.inactive,
               case when cardinality(f.item_amount) > 0 and t.terms_id is not null
                    then affiliate.item_fraction(
                             t.version, f.amount_minor, f.item_sku, f.item_category, f.item_quantity, f.item_amount)
               end as fraction,
               affiliate.order_problem(
                   f.click_problem, f.verdict, i.inactive, t.terms_id is not null,
                   f.reported_at - f.clicked_at, t.attribution_window, t.minimum_click_to_order,
                   f.currency, c.currency, f.other_click, f.refund_currency,
                   f.has_report and f.approved_at is not null and f.amount_minor is null
                       and t.rate_basis_points is not null,
                   f.review_decision) as problem
          from fact f
          left join lateral (
                   select m.suspended
                     from affiliate.merchant m
                    where m.merchant_id = f.merchant_id
                   offset 0
               ) m on true
          left join lateral (
                   select c.currency, c.suspended
                     from affiliate.campaign c
                    where c.merchant_id = f.merchant_id and c.campaign_id = f.campaign_id
                   offset 0
               ) c on true
          left join lateral (
                   select a.suspended
                     from affiliate.affiliate a
                    where a.affiliate_id = f.affiliate_id
                   offset 0
               ) a on true
          left join lateral (
                   select t.*, t as version
                     from affiliate.terms t
                    where t.merchant_id = f.merchant_id
                      and t.campaign_id = f.campaign_id
                      and t.valid_from <= f.clicked_at
                    order by t.valid_from desc
                    limit 1
               ) t on true
          left join lateral (
                   select true as released
                     from affiliate.release_item r
                    where r.merchant_id = f.merchant_id
                      and r.order_no = f.order_no
                      and r.revision = f.revision
                   offset 0
               ) r on true
         cross join lateral (
                   select case
                              when m.suspended @> f.reported_at then 'inactive_merchant'
                              when c.suspended @> f.reported_at then 'inactive_campaign'
                              when a.suspended @> f.reported_at then 'inactive_affiliate'
                          end as inactive
               ) i
    ),
    weighed as (
        select j.*,
               affiliate.outcome_of(j.problem) as outcome,
               affiliate.order_void(affiliate.outcome_of(j.problem), j.has_report, j.cancelled_at, j.returned_at) as void
          from judged j
        offset 0
    ),
    kept as (
        select w.*,
               w.fraction[1] as numerator,
               w.fraction[2] as denominator,
               affiliate.kept_minor(w.amount_minor, w.refunded_minor, w.void) as kept
          from weighed w
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
    due as (
        select e.*,
               affiliate.fee_minor(
                   e.commission, e.kept, e.amount_minor, e.fee_basis_points, e.fee_flat_minor, e.void) as fee,
               e.released and e.outcome <> 'review' as payable
          from earned e
        offset 0
    )
    select d.merchant_id, d.livemode, d.order_id, d.order_no, coalesce(d.revision + 1, 1), d.known,
           d.has_report, d.other_click, d.refund_currency, d.verdict, d.customer,
           d.reported_at, d.clicked_at, d.approved_at, d.cancelled_at, d.returned_at,
           d.click_id, d.link_id, d.campaign_id, d.affiliate_id, d.terms_id,
           d.amount_minor, d.currency, d.refunded_minor, d.inactive, d.click_problem,
           d.outcome, d.problem, d.review_decision, d.review_reason, d.reviewed_at,
           d.numerator, d.denominator,
           d.affiliate_id, d.commission, d.fee, d.payable, d.campaign_currency,
           d.posted_affiliate_id, d.posted_commission_minor, d.posted_fee_minor, d.released, d.posted_currency,
           case when d.outcome = 'accepted' and not d.payable and d.commission + d.fee > 0
                then d.approved_at + d.hold end
      from due d;
end
$$;

-- Writes what was decided. An order that somebody else created meanwhile is taken out of order_decided and left in
-- order_touched, to be decided again with what is known then. Returns how many those are.
create function affiliate.write_orders()
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
as $$
declare
    fresh bigint;
    written bigint;
begin
    select count(*) into fresh
      from pg_temp.order_decided
     where not known;

    insert into affiliate.order_fact
           (merchant_id, livemode, has_report, other_click, refund_currency, verdict, customer, revision,
            order_no, reported_at, clicked_at, approved_at, cancelled_at, returned_at, click_id, link_id,
            campaign_id, affiliate_id, terms_id, amount_minor, refunded_minor, posted_affiliate_id,
            posted_commission_minor, posted_fee_minor, posted_payable, inactive, click_problem, currency,
            posted_currency, outcome, problem, review_decision, review_reason, reviewed_at, item_numerator,
            item_denominator, order_id)
    select d.merchant_id, d.livemode, d.has_report, d.other_click, d.refund_currency, d.verdict, d.customer,
           d.revision, d.order_no, d.reported_at, d.clicked_at, d.approved_at, d.cancelled_at, d.returned_at,
           d.click_id, d.link_id, d.campaign_id, d.affiliate_id, d.terms_id, d.amount_minor, d.refunded_minor,
           d.posted_affiliate_id, d.posted_commission_minor, d.posted_fee_minor, d.posted_payable, d.inactive,
           d.click_problem, d.currency, d.posted_currency, d.outcome, d.problem, d.review_decision,
           d.review_reason, d.reviewed_at, d.item_numerator, d.item_denominator, d.order_id
      from pg_temp.order_decided d
     where not d.known
     order by d.merchant_id, d.livemode, d.order_id
        on conflict (merchant_id, livemode, order_id) do nothing;
    get diagnostics written = row_count;

    if (select count(*) from pg_temp.order_decided where known) > 0 then
        insert into affiliate.order_fact
           (merchant_id, livemode, has_report, other_click, refund_currency, verdict, customer, revision,
            order_no, reported_at, clicked_at, approved_at, cancelled_at, returned_at, click_id, link_id,
            campaign_id, affiliate_id, terms_id, amount_minor, refunded_minor, posted_affiliate_id,
            posted_commission_minor, posted_fee_minor, posted_payable, inactive, click_problem, currency,
            posted_currency, outcome, problem, review_decision, review_reason, reviewed_at, item_numerator,
            item_denominator, order_id)
        select d.merchant_id, d.livemode, d.has_report, d.other_click, d.refund_currency, d.verdict, d.customer,
           d.revision, d.order_no, d.reported_at, d.clicked_at, d.approved_at, d.cancelled_at, d.returned_at,
           d.click_id, d.link_id, d.campaign_id, d.affiliate_id, d.terms_id, d.amount_minor, d.refunded_minor,
           d.posted_affiliate_id, d.posted_commission_minor, d.posted_fee_minor, d.posted_payable, d.inactive,
           d.click_problem, d.currency, d.posted_currency, d.outcome, d.problem, d.review_decision,
           d.review_reason, d.reviewed_at, d.item_numerator, d.item_denominator, d.order_id
          from pg_temp.order_decided d
         where d.known
         order by d.merchant_id, d.livemode, d.order_id
            on conflict (merchant_id, livemode, order_id) do update
           set (has_report, other_click, refund_currency, verdict, customer, revision, reported_at, clicked_at,
            approved_at, cancelled_at, returned_at, click_id, link_id, campaign_id, affiliate_id, terms_id,
            amount_minor, refunded_minor, posted_affiliate_id, posted_commission_minor, posted_fee_minor,
            posted_payable, inactive, click_problem, currency, posted_currency, outcome, problem,
            review_decision, review_reason, reviewed_at, item_numerator, item_denominator) =
               (excluded.has_report, excluded.other_click, excluded.refund_currency, excluded.verdict,
            excluded.customer, excluded.revision, excluded.reported_at, excluded.clicked_at,
            excluded.approved_at, excluded.cancelled_at, excluded.returned_at, excluded.click_id,
            excluded.link_id, excluded.campaign_id, excluded.affiliate_id, excluded.terms_id,
            excluded.amount_minor, excluded.refunded_minor, excluded.posted_affiliate_id,
            excluded.posted_commission_minor, excluded.posted_fee_minor, excluded.posted_payable,
            excluded.inactive, excluded.click_problem, excluded.currency, excluded.posted_currency,
            excluded.outcome, excluded.problem, excluded.review_decision, excluded.review_reason,
            excluded.reviewed_at, excluded.item_numerator, excluded.item_denominator);
    end if;

    if written = fresh then
        return 0;
    end if;

    delete from pg_temp.order_decided d
     where not d.known
       and not exists (
               select
                 from affiliate.order_fact o
                where o.merchant_id = d.merchant_id
                  and o.order_no = d.order_no
           );
    truncate pg_temp.order_touched;
    insert into pg_temp.order_touched
    select k.merchant_id, k.livemode, k.order_id, null, null
      from pg_temp.order_known k
     where not exists (
               select
                 from pg_temp.order_decided d
                where d.order_no = k.order_no
           );
    return fresh - written;
end
$$;

-- Turns the difference between what stands and what should stand into postings, and sets the holds anew.
create function affiliate.post_orders()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set jit = off
as $$
begin
    perform affiliate.work_clear('posting', 'posting_account');

    insert into pg_temp.posting
    select d.merchant_id, d.order_no, d.revision, 1, leg.code + case when leg.amount < 0 then 2 else 0 end,
           d.livemode, move.currency, abs(leg.amount),
           case when leg.amount > 0 then 'merchant' else leg.owner end,
           case when leg.amount > 0 then leg.merchant_kind else leg.kind end,
           case when leg.amount > 0 then d.merchant_id else leg.owner_id end,
           case when leg.amount < 0 then 'merchant' else leg.owner end,
           case when leg.amount < 0 then leg.merchant_kind else leg.kind end,
           case when leg.amount < 0 then d.merchant_id else leg.owner_id end
      from pg_temp.order_decided d
     cross join lateral (
               -- Same affiliate, stage and currency: only the difference moves. Else everything does.
               select d.posted_affiliate_id as affiliate_id, d.posted_payable as payable, d.posted_currency as currency,
                      d.posted_commission_minor - case when same.place then d.old_commission_minor else 0 end as commission,
                      d.posted_fee_minor - case when same.place then d.old_fee_minor else 0 end as fee
                 from (select (d.posted_affiliate_id, d.posted_payable, d.posted_currency)
                              is not distinct from (d.old_affiliate_id, d.old_payable, d.old_currency) as place) same
                union all
               select d.old_affiliate_id, d.old_payable, d.old_currency,
                      - d.old_commission_minor, - d.old_fee_minor
                where (d.posted_affiliate_id, d.posted_payable, d.posted_currency)
                      is distinct from (d.old_affiliate_id, d.old_payable, d.old_currency)
           ) move
     cross join lateral (values
               (1, move.commission, 'affiliate', case when move.payable then 'payable' else 'pending' end,
                move.affiliate_id, case when move.payable then 'owed' else 'accrued' end),
               (2, move.fee, 'platform', case when move.payable then 'fee_earned' else 'fee_pending' end,
                0, case when move.payable then 'owed' else 'accrued' end)
           ) as leg(code, amount, owner, kind, owner_id, merchant_kind)
     where leg.amount <> 0;

    -- The rows were locked by lock_orders(), so their places have not changed.
    delete from affiliate.hold
     where ctid = any (array(select hold from pg_temp.order_held));

    insert into affiliate.hold
           (merchant_id, order_no, due_at, affiliate_id, commission_minor, fee_minor, revision, livemode, currency)
    select d.merchant_id, d.order_no, d.due_at, d.posted_affiliate_id,
           d.posted_commission_minor, d.posted_fee_minor, d.revision, d.livemode, d.posted_currency
      from pg_temp.order_decided d
     where d.due_at is not null;

    perform affiliate.post_transfers();
end
$$;

-- Settles the orders in pg_temp.order_touched. Leaves in order_decided those of the last round.
create function affiliate.settle_orders(out accepted bigint, out review bigint, out rejected bigint)
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    again bigint;
    part record;
begin
    accepted := 0;
    review := 0;
    rejected := 0;
    perform affiliate.fresh_plans();

    loop
        perform affiliate.lock_orders();
        perform affiliate.decide_orders();
        again := affiliate.write_orders();
        perform affiliate.post_orders();

        select coalesce(sum(coalesce(k.events, 1)) filter (where d.outcome = 'accepted'), 0) as accepted,
               coalesce(sum(coalesce(k.events, 1)) filter (where d.outcome = 'review'), 0) as review,
               coalesce(sum(coalesce(k.events, 1)) filter (where d.outcome = 'rejected'), 0) as rejected
          into part
          from pg_temp.order_decided d
          join pg_temp.order_known k on k.order_no = d.order_no;
        accepted := accepted + part.accepted;
        review := review + part.review;
        rejected := rejected + part.rejected;

        exit when again = 0;
    end loop;
end
$$;
