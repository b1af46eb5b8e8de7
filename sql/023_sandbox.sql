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
return '{unknown_click,foreign_click,expired_click,wrong_livemode,bot_click,preview_click,prefetch_click,inactive_merchant,inactive_campaign,inactive_affiliate,no_terms,outside_attribution_window,too_fast,wrong_currency,review_rejected,above_limit,duplicate_order,suspect_click,refund_currency,missing_amount,under_review}'::text[];

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
