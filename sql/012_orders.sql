-- Orders as people see them: states, sentences, reviews, balances, dead letters.

-- The states of an order: pending, approved (on hold), payable, cancelled, refunded, review or rejected.
create function affiliate.state_of(
    p_outcome text, p_cancelled_at timestamptz, p_returned_at timestamptz, p_refunded_minor bigint, p_amount_minor bigint,
    p_payable boolean, p_approved_at timestamptz)
returns text
language sql immutable parallel safe
return case
           when p_outcome = 'rejected' then 'rejected'
           when p_cancelled_at is not null then 'cancelled'
           when p_returned_at is not null or p_refunded_minor >= nullif(p_amount_minor, 0) then 'refunded'
           when p_outcome = 'review' then 'review'
           when p_payable then 'payable'
           when p_approved_at is not null then 'approved'
           else 'pending'
       end;

create function affiliate.order_state(o affiliate.order_now)
returns text
language sql immutable parallel safe
return affiliate.state_of(
           o.outcome, o.cancelled_at, o.returned_at, o.refunded_minor, o.amount_minor, o.payable, o.approved_at);

-- The state as a sentence a person understands. This and what else is asked for each row of a list is plpgsql, which keeps its plans.
create function affiliate.state_sentence(
    p_state text, p_reason text, p_due_at timestamptz, p_refunded_minor bigint, p_currency text)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return (
        select case p_state
                   when 'waiting' then 'The order was reported; its click has not arrived yet.'
                   when 'pending' then 'The order was reported; the merchant has not approved it yet.'
                   when 'approved' then
                       coalesce('The order is approved; its commission is on hold until '
                                || to_char(p_due_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC.',
                                'The order is approved; there is no commission to hold.')
                   when 'payable' then 'The hold is over; the commission is payable.'
                   when 'cancelled' then 'The merchant cancelled the order; nothing is paid.'
                   when 'refunded' then 'The order was returned or refunded; nothing is paid.'
                   when 'review' then affiliate.reason_sentence(p_reason)
                   when 'rejected' then affiliate.reason_sentence(p_reason)
               end
               || case when p_refunded_minor > 0 and p_state in ('pending', 'approved', 'payable', 'review')
                       then ' ' || affiliate.money_text(p_refunded_minor, p_currency) || ' of it was refunded.'
                       else '' end);
end
$$;

create function affiliate.order_json(o affiliate.order_now)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return (
        select jsonb_build_object(
            'order', o.order_id,
            'order_no', o.order_no,
            'merchant', o.merchant_id,
            'livemode', o.livemode,
            'affiliate', o.affiliate_id,
            'campaign', o.campaign_id,
            'state', affiliate.order_state(o),
            'outcome', o.outcome,
            'reason', o.problem,
            'sentence', affiliate.state_sentence(
                affiliate.order_state(o), o.problem, o.due_at, o.refunded_minor, coalesce(o.currency, o.posted_currency)),
            'amount', affiliate.amount_text(o.amount_minor, k.decimals),
            'refunded', affiliate.amount_text(
                case when o.returned_at is null then o.refunded_minor else o.amount_minor end, k.decimals),
            'currency', coalesce(o.currency, o.posted_currency),
            'commission', affiliate.amount_text(o.posted_commission_minor, c.decimals),
            'fee', affiliate.amount_text(o.posted_fee_minor, c.decimals),
            'commission_currency', o.posted_currency,
            'reported_at', o.reported_at,
            'approved_at', o.approved_at,
            'hold_until', o.due_at)
          from (values (1)) as one(row)
          left join affiliate.currency k on k.currency = coalesce(o.currency, o.posted_currency)
          left join affiliate.currency c on c.currency = o.posted_currency);
end
$$;

create function affiliate.status_name(p_status smallint)
returns text
language sql immutable parallel safe
return (array['pending', 'approved', 'cancelled', 'returned', 'refunded'])[p_status];

-- What was posted for an order: its own transfers and its part of a release.
create function affiliate.order_transfers(p_merchant_id bigint, p_order_no bigint)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with line as (
        select t.created_at as at, t.code, t.cause_revision as revision, t.amount_minor, t.currency,
               d.owner || '.' || d.kind as debit, c.owner || '.' || c.kind as credit
          from affiliate.transfer t
          join affiliate.account d on d.merchant_id = t.merchant_id and d.account_id = t.debit_account
          join affiliate.account c on c.merchant_id = t.merchant_id and c.account_id = t.credit_account
         where t.merchant_id = p_merchant_id
           and t.cause_kind = 1
           and t.cause_id = p_order_no
        union all
        select r.released_at, leg.code, i.revision, leg.amount, r.currency, leg.debit, leg.credit
          from affiliate.release_item i
          join affiliate.release r using (merchant_id, release_id)
         cross join lateral (values
                   (11, i.commission_minor, 'affiliate.pending', 'affiliate.payable'),
                   (12, i.fee_minor, 'platform.fee_pending', 'platform.fee_earned'),
                   (13, i.commission_minor + i.fee_minor, 'merchant.owed', 'merchant.accrued')
               ) as leg(code, amount, debit, credit)
         where i.merchant_id = p_merchant_id
           and i.order_no = p_order_no
           and leg.amount > 0
    )
    select coalesce(jsonb_agg(jsonb_build_object(
               'at', l.at,
               'code', n.name,
               'debit', l.debit,
               'credit', l.credit,
               'amount', affiliate.amount_text(l.amount_minor, k.decimals),
               'currency', l.currency)
               order by l.at, l.revision, l.code), '[]')
      from line l
      join affiliate.transfer_code n using (code)
      join affiliate.currency k using (currency)
$$;

create function affiliate.order_show(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    m affiliate.merchant;
    live boolean;
    wanted text;
    o affiliate.order_now;
    timeline jsonb;
begin
    perform affiliate.check_fields(p_command, '{merchant,order}', '{livemode}');
    m := affiliate.find_merchant(p_command);
    live := coalesce(affiliate.boolean_field(p_command, 'livemode'), true);
    wanted := affiliate.text_field(p_command, 'order', 128);
    timeline := affiliate.order_timeline(m.merchant_id, live, wanted);

    select * into o
      from affiliate.order_now n
     where n.merchant_id = m.merchant_id
       and n.livemode = live
       and n.order_id = wanted;

    if found then
        return next affiliate.order_json(o)
            || jsonb_build_object(
                   'customer', (array['new', 'returning'])[o.customer],
                   'click', o.click_id,
                   'clicked_at', o.clicked_at,
                   'link', (select l.code from affiliate.link l
                             where l.merchant_id = o.merchant_id and l.link_id = o.link_id),
                   'cancelled_at', o.cancelled_at,
                   'returned_at', o.returned_at,
                   'review', case when o.review_decision is not null then jsonb_build_object(
                       'decision', o.review_decision, 'reason', o.review_reason, 'at', o.reviewed_at) end,
                   'terms', (select affiliate.terms_json(t, o.posted_currency)
                               from affiliate.terms t
                              where t.merchant_id = o.merchant_id and t.terms_id = o.terms_id),
                   'timeline', timeline,
                   'transfers', affiliate.order_transfers(o.merchant_id, o.order_no));
    elsif timeline <> '[]' then
        return next jsonb_build_object(
            'order', wanted, 'merchant', m.merchant_id, 'livemode', live, 'state', 'waiting',
            'sentence', affiliate.state_sentence('waiting', null, null, 0, null),
            'timeline', timeline, 'transfers', '[]'::jsonb);
    else
        perform affiliate.refuse('order', format('merchant %s has none with id %s in %s mode',
            m.merchant_id, quote_literal(wanted), case when live then 'live' else 'test' end));
    end if;
end
$$;

create function affiliate.order_list(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    m affiliate.merchant;
    wanted text;
begin
    perform affiliate.check_fields(p_command, '{merchant}', '{affiliate,outcome,livemode,after,limit}');
    m := affiliate.find_merchant(p_command);
    wanted := affiliate.form_field(
        p_command, 'outcome', 20, '^(accepted|review|rejected)$', 'must be accepted, review or rejected');

    return query
    select affiliate.order_json(n)
      from affiliate.order_now n
     where n.merchant_id = m.merchant_id
       and n.order_no > affiliate.after_field(p_command)
       and n.affiliate_id is not distinct from coalesce(affiliate.id_field(p_command, 'affiliate'), n.affiliate_id)
       and n.outcome = coalesce(wanted, n.outcome)
       and n.livemode = coalesce(affiliate.boolean_field(p_command, 'livemode'), n.livemode)
     order by n.order_no
     limit affiliate.limit_field(p_command);
end
$$;

-- Resolves a review: accept lets the order mature, reject takes its commission back. It may be called again
-- to correct a decision, and to reject an order that nothing else spoke against.
create function affiliate.order_review(p_command jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    m affiliate.merchant;
    live boolean;
    wanted text;
    resolution text;
    o affiliate.order_fact;
begin
    perform affiliate.check_fields(p_command, '{merchant,order,decision,reason}', '{livemode}');
    m := affiliate.find_merchant(p_command);
    live := coalesce(affiliate.boolean_field(p_command, 'livemode'), true);
    wanted := affiliate.text_field(p_command, 'order', 128);
    resolution := affiliate.form_field(
        p_command, 'decision', 10, '^(accept|reject)$', 'must be accept or reject');

    select * into o
      from affiliate.order_fact f
     where f.merchant_id = m.merchant_id
       and f.livemode = live
       and f.order_id = wanted
       for update;
    if not found then
        perform affiliate.refuse('order', format('merchant %s has none with id %s in %s mode',
            m.merchant_id, quote_literal(wanted), case when live then 'live' else 'test' end));
    end if;
    if o.outcome = 'rejected' and o.problem <> 'review_rejected' then
        perform affiliate.refuse('order', 'is rejected for a reason that no review changes: '
            || affiliate.reason_sentence(o.problem));
    end if;

    update affiliate.order_fact f
       set review_decision = resolution,
           review_reason = affiliate.text_field(p_command, 'reason', 500),
           reviewed_at = now()
     where f.merchant_id = m.merchant_id
       and f.livemode = live
       and f.order_id = wanted;

    perform affiliate.work_tables();
    perform affiliate.work_clear('order_touched');
    insert into pg_temp.order_touched values (m.merchant_id, live, wanted, null);
    perform affiliate.settle_orders();

    return query
    select affiliate.order_json(n)
      from affiliate.order_now n
     where n.merchant_id = m.merchant_id
       and n.livemode = live
       and n.order_id = wanted;
end
$$;

-- Balances, positive where money is as it should be: an affiliate's and the platform's are what they are owed, a merchant's
-- is what it owes.
create function affiliate.balance_list(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted text;
begin
    perform affiliate.check_list(p_command, '{merchant,affiliate,owner,currency,livemode}');
    wanted := affiliate.form_field(
        p_command, 'owner', 20, '^(affiliate|merchant|platform)$', 'must be affiliate, merchant or platform');

    return query
    select jsonb_build_object(
               'account', a.account_id,
               'merchant', a.merchant_id,
               'owner', a.owner,
               'affiliate', case when a.owner = 'affiliate' then a.owner_id end,
               'kind', a.kind,
               'balance', affiliate.amount_text(
                   case when a.owner = 'merchant' then a.debits_minor - a.credits_minor
                        else a.credits_minor - a.debits_minor end, k.decimals),
               'currency', a.currency,
               'livemode', a.livemode)
      from affiliate.account a
      join affiliate.currency k using (currency)
     where a.account_id > affiliate.after_field(p_command)
       and a.merchant_id = coalesce(affiliate.id_field(p_command, 'merchant'), a.merchant_id)
       and (not p_command ? 'affiliate'
            or (a.owner = 'affiliate' and a.owner_id = affiliate.id_field(p_command, 'affiliate')))
       and a.owner = coalesce(wanted, a.owner)
       and a.currency = coalesce(affiliate.currency_field(p_command, 'currency'), a.currency)
       and a.livemode = coalesce(affiliate.boolean_field(p_command, 'livemode'), a.livemode)
     order by a.account_id
     limit affiliate.limit_field(p_command);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- dead_letter
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.dead_letter_json(d affiliate.dead_letter)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'dead_letter', d.dead_letter_id,
        'at', d.at,
        'channel', case d.channel when 1 then 'clicks' when 2 then 'conversions' else d.channel::text end,
        'spool_id', to_hex(d.spool_id),
        'segment', d.segment,
        'sequence', d.sequence,
        'record', d.record,
        'reason', d.reason,
        'sentence', affiliate.reason_sentence(d.reason),
        'detail', d.detail,
        'bytes', coalesce(octet_length(d.payload), 0),
        'replayed_at', d.replayed_at)
$$;

create function affiliate.find_dead_letter(p_command jsonb)
returns affiliate.dead_letter
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    id bigint := affiliate.id_field(p_command, 'dead_letter');
    found_row affiliate.dead_letter;
begin
    select * into found_row from affiliate.dead_letter d where d.dead_letter_id = id;
    if not found then
        perform affiliate.refuse('dead_letter', format('there is none with id %s', id));
    end if;
    return found_row;
end
$$;

create function affiliate.dead_letter_list(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_list(p_command, '{reason,replayed}');
    return query
    select affiliate.dead_letter_json(d)
      from affiliate.dead_letter d
     where d.dead_letter_id > affiliate.after_field(p_command)
       and d.reason = coalesce(affiliate.text_field(p_command, 'reason', 100), d.reason)
       and (d.replayed_at is not null) = coalesce(affiliate.boolean_field(p_command, 'replayed'), false)
     order by d.dead_letter_id
     limit affiliate.limit_field(p_command);
end
$$;

create function affiliate.dead_letter_show(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    d affiliate.dead_letter;
begin
    perform affiliate.check_fields(p_command, '{dead_letter}', '{}');
    d := affiliate.find_dead_letter(p_command);
    return next affiliate.dead_letter_json(d) || jsonb_build_object('payload', encode(d.payload, 'hex'));
end
$$;

-- Applies a dead letter again, after what stood against it was put right. Those the database refused are kept as JSON and are
-- replayed here; of those the daemon refused, only the daemon can read the bytes.
create function affiliate.dead_letter_replay(p_command jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    d affiliate.dead_letter;
    result record;
begin
    perform affiliate.check_fields(p_command, '{dead_letter}', '{}');
    d := affiliate.find_dead_letter(p_command);
    select * into d
      from affiliate.dead_letter x
     where x.dead_letter_id = d.dead_letter_id
       for update;
    if d.replayed_at is not null then
        perform affiliate.refuse('dead_letter', format('was replayed at %s', d.replayed_at));
    end if;
    if d.channel <> 2 or d.reason not in ('unknown_merchant', 'invalid_record', 'idempotency_conflict') then
        perform affiliate.refuse('dead_letter', format('%s: only the daemon can replay it', d.reason));
    end if;

    perform affiliate.conversion_stage();
    perform affiliate.work_clear('conversion_stage');
    insert into pg_temp.conversion_stage
    select r.*
      from json_populate_record(null::pg_temp.conversion_stage, convert_from(d.payload, 'UTF8')::json) r;
    select * into result from affiliate.apply_conversions();

    if result.dead > 0 then
        perform affiliate.refuse('dead_letter', format('%s still: %s', d.reason, d.detail));
    end if;
    update affiliate.dead_letter x
       set replayed_at = now()
     where x.dead_letter_id = d.dead_letter_id
    returning * into d;
    return next affiliate.dead_letter_json(d);
end
$$;

-- Marks a dead letter that the daemon has replayed.
create function affiliate.dead_letter_replayed(p_dead_letter_id bigint)
returns boolean
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    update affiliate.dead_letter d
       set replayed_at = now()
     where d.dead_letter_id = p_dead_letter_id
       and d.replayed_at is null
    returning true
$$;
