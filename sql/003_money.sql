-- What an order is worth, and whether it counts: pure functions of values. Their bodies are bound when they are
-- created, so no search_path can lead them elsewhere, and the planner can inline them.

-- The time inside a UUIDv7.
create function affiliate.click_time(p_id uuid)
returns timestamptz
language sql immutable strict parallel safe
return to_timestamp(('x' || translate(left(p_id::text, 13), '-', ''))::bit(48)::bigint / 1000.0::double precision);

-- The lowest UUID of a UTC day, as a bound of a partition.
create function affiliate.day_bound(p_day date)
returns uuid
language sql immutable strict parallel safe
return (rpad(lpad(to_hex((p_day - date '1970-01-01')::bigint * 86400000), 12, '0'), 32, '0'))::uuid;

-- When an event counts. The merchant's own time, unless that can't be: after the event was received, or before
-- its click; then the time of the nginx that received it.
create function affiliate.effective_time(p_occurred_at timestamptz, p_received_at timestamptz, p_clicked_at timestamptz)
returns timestamptz
language sql immutable parallel safe
return case
           when p_occurred_at is null then p_received_at
           when p_occurred_at > p_received_at then p_received_at
           when p_occurred_at < p_clicked_at then p_received_at
           else p_occurred_at
       end;

-- None of these is strict: the planner can't inline a strict function whose body is a CASE.

-- The most that one order may earn, commission and fee together, in minor units: an order above it is rejected. Its amount or its
-- rate is a mistake, and a million such orders in one release still sum up to a bigint.
create function affiliate.worth_limit()
returns bigint
language sql immutable parallel safe
return 9000000000000;

-- numerator / denominator, both not negative, rounded to the nearest integer, halves to the even one. What is far above
-- worth_limit() is as good as any other such: it stops where commission + fee and their products by basis points fit a bigint.
create function affiliate.half_even(p_numerator numeric, p_denominator numeric)
returns bigint
language sql immutable parallel safe
return least(div(p_numerator, p_denominator)
             + case sign(2 * mod(p_numerator, p_denominator) - p_denominator)
                   when 1 then 1
                   when 0 then mod(div(p_numerator, p_denominator), 2)
                   else 0
               end,
             1000000000000000000)::bigint;

-- Basis points (0 to 10000) of an amount, half-even. The amount is taken apart into 10000 * a + b, so that no product leaves
-- bigint: a * basis points has at most the digits of the amount, b * basis points at most nine. The last line adds one
-- if the remainder is over one half, or one half of an odd quotient.
create function affiliate.basis_points_of(p_amount_minor bigint, p_basis_points integer)
returns bigint
language sql immutable parallel safe
return p_amount_minor / 10000 * p_basis_points + p_amount_minor % 10000 * p_basis_points / 10000
       + case when p_amount_minor % 10000 * p_basis_points % 10000
                   + ((p_amount_minor / 10000 * p_basis_points + p_amount_minor % 10000 * p_basis_points / 10000) & 1)
                   > 5000
              then 1 else 0 end;

-- What the buyer kept of an order. All refunds together can't take more than there was.
create function affiliate.kept_minor(
    p_amount_minor bigint, p_refunded_minor bigint, p_void boolean)
returns bigint
language sql immutable parallel safe
return case when p_void then 0 else greatest(p_amount_minor - p_refunded_minor, 0) end;

-- Commission for the kept part of an order, in minor units. The rate is, in this order: the items' fraction (already
-- for the whole order), basis points of the amount, or a flat sum per order. It is rounded once, at the end, so a
-- refund is a recomputation that never drifts, and never more is reversed than was earned. An order whose
-- amount is not known earns a flat rate only, all of it until it is void.
create function affiliate.commission_minor(
    p_kept_minor bigint, p_amount_minor bigint, p_rate_basis_points integer, p_rate_flat_minor bigint,
    p_item_numerator numeric, p_item_denominator numeric, p_void boolean)
returns bigint
language sql immutable parallel safe
return case
           when p_void then 0
           when p_item_numerator is not null and p_amount_minor > 0 then
               affiliate.half_even(p_item_numerator * p_kept_minor, p_item_denominator * p_amount_minor)
           when p_item_numerator is not null then
               affiliate.half_even(p_item_numerator, p_item_denominator)
           when p_rate_basis_points is not null then
               affiliate.basis_points_of(coalesce(p_kept_minor, 0), p_rate_basis_points)
           when p_amount_minor > 0 then
               affiliate.half_even(p_rate_flat_minor::numeric * p_kept_minor, p_amount_minor)
           else
               coalesce(p_rate_flat_minor, 0)
       end;

-- Network fee on top of a commission: basis points of it, plus the flat part in proportion to what was kept.
create function affiliate.fee_minor(
    p_commission_minor bigint, p_kept_minor bigint, p_amount_minor bigint,
    p_fee_basis_points integer, p_fee_flat_minor bigint, p_void boolean)
returns bigint
language sql immutable parallel safe
return case
           when p_void then 0
           when p_fee_flat_minor = 0 then
               affiliate.basis_points_of(p_commission_minor, p_fee_basis_points)
           when p_amount_minor > 0 then
               affiliate.half_even(
                   p_commission_minor::numeric * p_fee_basis_points * p_amount_minor
                   + p_fee_flat_minor::numeric * p_kept_minor * 10000,
                   10000 * p_amount_minor::numeric)
           else
               affiliate.basis_points_of(p_commission_minor, p_fee_basis_points) + p_fee_flat_minor
       end;

-- Commission of an order's items before refunds, as {numerator, denominator}. Each line earns by its SKU's rate, else
-- its category's, else the campaign's; what the amount has beyond the lines (delivery) earns the campaign's. If the lines are worth
-- more than the order (a discount), percentages count in proportion. A campaign's flat rate counts once per order, if any
-- part of the order falls to it.
create function affiliate.item_fraction(
    p_terms affiliate.terms, p_amount_minor bigint,
    p_sku text[], p_category text[], p_quantity integer[], p_amounts bigint[])
returns numeric[]
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with line as (
        select i.amount,
               i.quantity,
               coalesce(s.rate_basis_points, c.rate_basis_points) as rate_basis_points,
               coalesce(s.rate_flat_minor, c.rate_flat_minor) as rate_flat_minor,
               coalesce(s.kind, c.kind) is null as by_campaign
          from unnest(p_sku, p_category, p_quantity, p_amounts) as i(sku, category, quantity, amount)
          left join affiliate.product_rate s
            on s.merchant_id = p_terms.merchant_id and s.terms_id = p_terms.terms_id
           and s.kind = 'sku' and s.value = i.sku
          left join affiliate.product_rate c
            on s.kind is null
           and c.merchant_id = p_terms.merchant_id and c.terms_id = p_terms.terms_id
           and c.kind = 'category' and c.value = i.category
    ),
    total as (
        select coalesce(sum(amount), 0) as lines,
               coalesce(sum(amount::numeric * coalesce(rate_basis_points, 0)) filter (where not by_campaign), 0) as percentages,
               coalesce(sum(quantity::numeric * coalesce(rate_flat_minor, 0)) filter (where not by_campaign), 0) as pieces,
               coalesce(sum(amount) filter (where by_campaign), 0) as campaign,
               coalesce(bool_or(by_campaign), false) as any_campaign
          from line
    ),
    share as (
        select percentages + campaign * coalesce(p_terms.rate_basis_points, 0) as scaled,
               (pieces + case when any_campaign or coalesce(p_amount_minor, 0) > lines
                              then coalesce(p_terms.rate_flat_minor, 0) else 0 end) * 10000 as whole,
               greatest(coalesce(p_amount_minor, 0) - lines, 0) * coalesce(p_terms.rate_basis_points, 0) as rest,
               lines
          from total
    )
    select case when lines > p_amount_minor
                then array[scaled * p_amount_minor + whole * lines, 10000 * lines]
                else array[scaled + whole + rest, 10000] end
      from share
$$;

-- Why an order is not simply accepted; null if it is. The first that holds, in this order. What is not rejected by these is
-- weighed then, and rejected as above_limit if it would earn more than worth_limit(): no review lifts that.
create function affiliate.order_problem(
    p_click_problem text, p_verdict smallint, p_inactive text, p_has_terms boolean,
    p_waited interval, p_attribution_window interval, p_minimum_click_to_order interval,
    p_currency text, p_campaign_currency text, p_other_click boolean, p_refund_currency boolean,
    p_missing_amount boolean, p_review_decision text)
returns text
language sql immutable parallel safe
return case
           when p_click_problem is not null then p_click_problem
           when p_verdict = 5 then 'bot_click'
           when p_verdict = 4 then 'preview_click'
           when p_verdict = 3 then 'prefetch_click'
           when p_inactive is not null then p_inactive
           when not p_has_terms then 'no_terms'
           when p_waited > p_attribution_window then 'outside_attribution_window'
           when p_waited < p_minimum_click_to_order then 'too_fast'
           when p_currency <> p_campaign_currency then 'wrong_currency'
           when p_review_decision = 'reject' then 'review_rejected'
           when p_review_decision = 'accept' then null
           when p_other_click then 'duplicate_order'
           when p_verdict = 2 then 'suspect_click'
           when p_refund_currency then 'refund_currency'
           when p_missing_amount then 'missing_amount'
       end;

-- What holds an affiliate's orders while a case of fraud is open holds only what nothing else speaks against, and a review lifts it.
-- The word tells nobody of the case.
create function affiliate.held_problem(p_found text, p_held boolean, p_review_decision text)
returns text
language sql immutable parallel safe
return case when p_found is null and p_held and p_review_decision is null then 'under_review' else p_found end;

-- accepted, review or rejected.
create function affiliate.outcome_of(p_problem text)
returns text
language sql immutable parallel safe
return case
           when p_problem is null then 'accepted'
           when p_problem in ('duplicate_order', 'suspect_click', 'refund_currency', 'missing_amount', 'under_review') then 'review'
           else 'rejected'
       end;

-- True if nothing of the order is to be paid, whatever it is worth.
create function affiliate.order_void(
    p_outcome text, p_has_report boolean, p_cancelled_at timestamptz, p_returned_at timestamptz)
returns boolean
language sql immutable parallel safe
return p_outcome = 'rejected' or not p_has_report or p_cancelled_at is not null or p_returned_at is not null;

-- What the ledger should hold for an order, credits positive: a function of what is known of it and of its terms alone.
-- Its stage, too, follows from these and the clock: posted_payable says that its hold was over, and it released, as of when it
-- was last decided. See audit_positions().
create function affiliate.position(p_facts affiliate.order_fact, p_terms affiliate.terms)
returns table (owner text, kind text, owner_id bigint, amount_minor bigint)
language sql immutable
rows 3
begin atomic
    with void as (
        select affiliate.order_void(p_facts.outcome, p_facts.has_report, p_facts.cancelled_at, p_facts.returned_at)
                   or p_terms.terms_id is null as void
        offset 0
    ),
    kept as (
        select v.void,
               affiliate.kept_minor(p_facts.amount_minor, p_facts.refunded_minor, v.void) as kept
          from void v
        offset 0
    ),
    earned as (
        select k.void,
               k.kept,
               affiliate.commission_minor(
                   k.kept, p_facts.amount_minor, p_terms.rate_basis_points, p_terms.rate_flat_minor,
                   p_facts.item_numerator, p_facts.item_denominator, k.void) as commission
          from kept k
        offset 0
    ),
    due as (
        select e.commission,
               affiliate.fee_minor(
                   e.commission, e.kept, p_facts.amount_minor,
                   p_terms.fee_basis_points, p_terms.fee_flat_minor, e.void) as fee
          from earned e
        offset 0
    )
    select side.owner, side.kind, side.owner_id, side.amount
      from due
     cross join lateral (values
               ('affiliate', case when p_facts.posted_payable then 'payable' else 'pending' end,
                p_facts.affiliate_id, due.commission),
               ('merchant', case when p_facts.posted_payable then 'owed' else 'accrued' end,
                p_facts.merchant_id, - due.commission - due.fee),
               ('platform', case when p_facts.posted_payable then 'fee_earned' else 'fee_pending' end,
                0::bigint, due.fee)
           ) as side(owner, kind, owner_id, amount)
     where side.amount <> 0;
end;

comment on function affiliate.position(affiliate.order_fact, affiliate.terms)
    is 'What the ledger should hold for an order, account by account; credits positive';

-- Minor units as decimal text: 125050 with 2 decimals is 1250.50.
create function affiliate.amount_text(p_minor numeric, p_decimals smallint)
returns text
language sql immutable parallel safe
return round(p_minor / ('{1,10,100,1000,10000,100000,1000000,10000000,100000000}'::numeric[])[p_decimals + 1], p_decimals::integer)::text;

create function affiliate.money_text(p_minor bigint, p_currency text)
returns text
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.amount_text(p_minor, c.decimals) || ' ' || c.currency
      from affiliate.currency c
     where c.currency = p_currency
$$;

-- One sentence a person understands, for each reason that a conversion or an order can have.
create function affiliate.reason_sentence(p_reason text)
returns text
language sql immutable parallel safe
return case p_reason
           when 'unknown_click' then 'No click with this id has ever arrived.'
           when 'foreign_click' then 'The click belongs to another merchant.'
           when 'expired_click' then 'The click is so old that it is no longer kept.'
           when 'wrong_livemode' then 'The click was made in the other mode: test and live never meet.'
           when 'bot_click' then 'The click came from a declared bot.'
           when 'preview_click' then 'The click was a messenger''s link preview, not a person.'
           when 'prefetch_click' then 'The click was a browser''s prefetch, not a visit.'
           when 'inactive_merchant' then 'The merchant was suspended when the order was reported.'
           when 'inactive_campaign' then 'The campaign was suspended when the order was reported.'
           when 'inactive_affiliate' then 'The affiliate was suspended when the order was reported.'
           when 'no_terms' then 'The campaign had no terms in force at the time of the click.'
           when 'outside_attribution_window' then 'The order came later after the click than the campaign''s terms allow.'
           when 'too_fast' then 'The order came sooner after the click than a person could have ordered.'
           when 'wrong_currency' then 'The order is in another currency than the campaign pays.'
           when 'review_rejected' then 'The order was reviewed and rejected.'
           when 'above_limit' then
               'The order would earn, fee included, more than ' || affiliate.worth_limit() || ' minor units, the most that one order may; its amount or its rate must be wrong.'
           when 'duplicate_order' then 'The order was reported with more than one click; it has to be reviewed.'
           when 'suspect_click' then 'The click looked suspicious; the order has to be reviewed.'
           when 'refund_currency' then 'A refund is in another currency than the order; it has to be reviewed.'
           when 'missing_amount' then 'The order was approved without an amount; it has to be reviewed.'
           when 'under_review' then 'The order has to be reviewed before its commission can become payable.'
           when 'unknown_merchant' then 'There is no merchant with this id.'
           when 'idempotency_conflict' then 'The idempotency key was used before with another body.'
           when 'invalid_record' then 'A field of the record is missing or out of its range.'
           when 'malformed_record' then 'The record could not be read.'
           when 'corrupt_frame' then 'The record was damaged on its way; the rest of its batch is lost with it.'
           when 'refused' then 'The database refused the record; the detail says why.'
           when 'malformed_batch' then 'The entry could not be read as a batch.'
           when 'forged_batch' then 'The batch was signed with none of the master keys.'
           when 'wrong_channel' then 'The batch came in on another channel than it was made for.'
           when 'no_partition' then 'There is no partition for the day of the click.'
           else p_reason
       end;
