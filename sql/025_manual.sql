-- What a merchant says of its orders by hand or by file.
--
-- It becomes conversions, as signed events do: facts, ledger and audit have no second rule. What differs comes before: a signed
-- event is taken whatever it says, and merged; by hand, what makes no sense is refused with a sentence, and what is so already
-- changes nothing. For that the orders are locked, and what is said of them is judged line by line, each line after those before
-- it of the same order; then everything that was accepted is one batch of conversions, with the orders' own clicks.
--
--   order_said --(order_stand, said_problem)--> verdicts --(apply_said)--> conversions
--
-- Its batches are those of spool 0, which is no nginx's, numbered by hand_batch, which tells who said it.

create table affiliate.order_reason (
    code            text primary key,
    place           smallint not null unique,
    needs_text      boolean not null default false,
    sentence        text not null
);

comment on table affiliate.order_reason is 'Why a merchant cancels, returns or refunds an order, or changes its amount';
comment on column affiliate.order_reason.needs_text is 'True if the merchant must say it in words, too';

insert into affiliate.order_reason (code, place, needs_text, sentence) values
    ('item_returned', 1, false, 'The buyer returned the goods or refused their delivery.'),
    ('order_error', 2, false, 'The order was made or reported by mistake: a duplicate, a wrong price, goods that are not there.'),
    ('order_update', 3, false, 'The order was changed after it was reported: goods added or left out, another price.'),
    ('fraud', 4, false, 'The order was fraudulent: a stolen card, a false name, a buyer who never meant to pay.'),
    ('test_action', 5, false, 'The order was a test.'),
    ('terms_violation', 6, false, 'The order came about against the campaign''s terms.'),
    ('other', 7, true, 'Another reason, told in words.');

create sequence affiliate.hand_batch_seq;

create table affiliate.hand_batch (
    merchant_id         bigint not null,
    batch_id            bigint not null,
    livemode            boolean not null,
    source              smallint not null check (source in (4, 5)),
    events              integer not null check (events > 0),
    actor_kind          text not null,
    user_id             bigint,
    key_id              text collate "C",
    request_id          text,
    import_id           bigint,
    reconciliation_id   bigint,
    at                  timestamptz not null default now(),
    primary key (merchant_id, batch_id)
);

comment on table affiliate.hand_batch is 'Who reported a batch of conversions by hand or by file: theirs have spool_id 0 and segment batch_id';
comment on column affiliate.hand_batch.source is '4 by hand, 5 by file; as in conversion';

comment on column affiliate.conversion.source is '1 signed call, 2 of a batch call, 3 postback, 4 by hand, 5 by file';

-- ---------------------------------------------------------------------------------------------------------------
-- Judging
-- ---------------------------------------------------------------------------------------------------------------

-- An order as far as it matters for what is said of it.
create type affiliate.order_stand as (
    order_id text collate "C", known boolean, waits boolean, outcome text, problem text, click_id uuid,
    clicked_at timestamptz, reported_at timestamptz, approved_at timestamptz, cancelled_at timestamptz, returned_at timestamptz,
    amount_minor bigint, currency text, decimals smallint, priced boolean, refunded_minor bigint, amount_at timestamptz,
    refunds jsonb
);

comment on type affiliate.order_stand is 'An order before a line is said of it: waits if only its click is missing, priced if a commission needs its amount, amount_at when that was reported, refunds by their ids';

-- A line. Its amount is still text, as only the order's currency tells its minor units; at is when it would count; again marks
-- a line that was judged before and is repeated only for what it leads to.
create type affiliate.order_said as (
    line bigint, order_id text collate "C", status smallint, amount text, currency text, refund_id text collate "C",
    reason text, occurred_at timestamptz, again boolean, turn integer, at timestamptz, verdict text, code text, detail text,
    amount_minor bigint
);

create function affiliate.said_tables()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.conversion_stage();
    if to_regclass('pg_temp.order_said') is null then
        create temp table order_said of affiliate.order_said on commit delete rows;
        create temp table order_stand of affiliate.order_stand on commit delete rows;
    end if;
    perform affiliate.work_clear('order_said', 'order_stand');
end
$$;

-- Decimal text to minor units; null if it has too many decimals or digits.
create function affiliate.minor_of(p_amount text, p_decimals smallint)
returns bigint
language sql immutable parallel safe
return case when length(split_part(p_amount, '.', 2)) <= p_decimals
             and p_amount::numeric * power(10::numeric, p_decimals::numeric) <= 99999999999999999
            then (p_amount::numeric * power(10::numeric, p_decimals::numeric))::bigint end;

-- What stands against a line, in one word; null if nothing does, and 'same' if it is so already. The first that holds.
create function affiliate.said_problem(
    o affiliate.order_stand, s affiliate.order_said, p_minor bigint, p_now timestamptz)
returns text
language sql immutable parallel safe
return case
           when not o.known and o.waits then 'waiting'
           when not o.known then 'unknown'
           when s.amount is not null and s.currency <> o.currency then 'currency'
           when s.amount is not null and p_minor is null and o.decimals is not null then 'decimals'
           -- Is it so already?
           when s.status = 3 and o.cancelled_at is not null then 'same'
           when s.status in (4, 5) and s.amount is null
            and (o.returned_at is not null or o.refunded_minor >= nullif(o.amount_minor, 0)) then 'same'
           when s.status in (4, 5) and (o.refunds ->> s.refund_id)::bigint = p_minor then 'same'
           when s.status in (4, 5) and s.amount is not null and o.refunds ? s.refund_id then 'refund'
           -- May anything be said of it at all?
           when o.cancelled_at is not null then 'cancelled'
           when o.returned_at is not null or o.refunded_minor >= nullif(o.amount_minor, 0) then 'returned'
           when o.outcome = 'rejected'
            and (o.problem not in ('review_rejected', 'above_limit') or s.status in (1, 2))
            and (o.problem <> 'above_limit' or s.amount is null) then 'rejected'
           when s.status in (1, 2) and coalesce(p_minor, o.amount_minor) is not distinct from o.amount_minor
            and (s.status = 1 or o.approved_at is not null) then 'same'
           -- And this?
           when s.occurred_at > p_now then 'future'
           when s.at < o.reported_at then 'early'
           when s.status in (1, 2) and p_minor <> o.amount_minor and s.at <= o.amount_at then 'late'
           when s.status = 2 and s.amount is null and o.amount_minor is null and o.priced then 'unpriced'
           when s.status in (1, 2) and p_minor < o.refunded_minor then 'below'
           when s.status in (4, 5) and s.amount is not null and o.amount_minor is null then 'whole'
           when s.status in (4, 5) and p_minor = 0 then 'nothing'
           when s.status in (4, 5) and p_minor > o.amount_minor - o.refunded_minor then 'rest'
       end;

create function affiliate.utc_text(p_at timestamptz)
returns text
language sql immutable parallel safe
return to_char(p_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC';

-- The word as a sentence.
create function affiliate.said_sentence(p_code text, o affiliate.order_stand, s affiliate.order_said)
returns text
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select case p_code
               when 'unknown' then 'No order with this id has been reported in this mode; only a call with a click_id can do so.'
               when 'waiting' then 'The order was reported, but its click has not arrived yet; nothing can be said of it before.'
               when 'currency' then 'The order is in ' || o.currency || '.'
               when 'decimals' then 'An amount in ' || o.currency || ' has at most ' || o.decimals || ' decimals and 17 digits.'
               when 'refund' then 'The refund ' || quote_literal(s.refund_id) || ' was told with '
                   || coalesce(affiliate.money_text((o.refunds ->> s.refund_id)::bigint, o.currency), 'another currency')
                   || '; another refund needs another id.'
               when 'cancelled' then 'The order was cancelled on ' || affiliate.utc_text(o.cancelled_at) || ', which is final.'
               when 'returned' then 'The whole order was returned or refunded already.'
               when 'rejected' then 'The order is rejected, and this does not change it: ' || affiliate.reason_sentence(o.problem)
               when 'future' then 'That time is still to come.'
               when 'early' then 'The order was reported on ' || affiliate.utc_text(o.reported_at) || '; this can''t have been before.'
               when 'late' then 'A later report, of ' || affiliate.utc_text(o.amount_at) || ', tells another amount: '
                   || affiliate.money_text(o.amount_minor, o.currency) || '.'
               when 'unpriced' then 'The amount of the order is not known; its approval has to tell it.'
               when 'below' then affiliate.money_text(o.refunded_minor, o.currency)
                   || ' of the order was refunded already; its amount can''t be less.'
               when 'whole' then 'The amount of the order is not known; it can only be returned or refunded whole.'
               when 'nothing' then 'A refund of nothing is none.'
               when 'rest' then 'Only ' || affiliate.money_text(o.amount_minor - o.refunded_minor, o.currency)
                   || ' of the order is left.'
           end
$$;

-- Locks the orders that are named in pg_temp.order_said, in the order in which everybody does.
create function affiliate.lock_said(p_merchant_id bigint, p_livemode boolean)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
begin
    perform o.order_no
       from (select distinct s.order_id
               from pg_temp.order_said s
              where s.verdict is null
              order by s.order_id) d
      cross join lateral (
                select f.order_no
                  from affiliate.order_fact f
                 where f.merchant_id = p_merchant_id
                   and f.livemode = p_livemode
                   and f.order_id = d.order_id
                   for update
            ) o;
end
$$;

-- Fills pg_temp.order_stand with the orders that are named in pg_temp.order_said.
create function affiliate.read_stands(p_merchant_id bigint, p_livemode boolean)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
    insert into pg_temp.order_stand
    select d.order_id, o.order_no is not null, e.waits, o.outcome, o.problem, o.click_id,
           o.clicked_at, o.reported_at, o.approved_at, o.cancelled_at, o.returned_at,
           o.amount_minor, k.currency, k.decimals, coalesce(t.rate_basis_points is not null, false), o.refunded_minor,
           e.amount_at, coalesce(e.refunds, '{}')
      from (select distinct s.order_id
              from pg_temp.order_said s
             where s.verdict is null) d
      left join lateral (
               select f.*
                 from affiliate.order_fact f
                where f.merchant_id = p_merchant_id
                  and f.livemode = p_livemode
                  and f.order_id = d.order_id
               offset 0
           ) o on true
      left join lateral (
               select k.currency, k.decimals
                 from affiliate.currency k
                where k.currency = coalesce(o.currency, o.posted_currency)
               offset 0
           ) k on true
      left join lateral (
               select t.rate_basis_points
                 from affiliate.terms t
                where t.merchant_id = o.merchant_id
                  and t.terms_id = o.terms_id
               offset 0
           ) t on true
     cross join lateral (
               select bool_or(c.waiting) as waits,
                      max(c.effective_at) filter (where c.status in (1, 2) and c.amount_minor is not null
                                                    and not c.waiting) as amount_at,
                      jsonb_object_agg(substr(c.refund_key, 3), case when c.currency is null or c.currency = k.currency then c.amount_minor end
                                       order by c.effective_at, c.amount_minor, c.currency)
                          filter (where c.refund_key like 'r:%' and not c.waiting) as refunds
                 from affiliate.conversion c
                where c.merchant_id = p_merchant_id
                  and c.livemode = p_livemode
                  and c.order_id = d.order_id
               offset 0
           ) e;
end
$$;

-- Judges the lines of pg_temp.order_said that have no verdict yet, each as if those before it had come true: the first lines of
-- all orders at once, then the second ones, and so on. Unless p_lock, nothing is meant to follow from it.
create function affiliate.judge_said(p_merchant_id bigint, p_livemode boolean, p_lock boolean)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
    -- After the locks: nobody else says anything of these orders between this time and the end.
    moment timestamptz;
    turns integer;
begin
    if p_lock then
        perform affiliate.lock_said(p_merchant_id, p_livemode);
    end if;
    moment := clock_timestamp();
    perform affiliate.read_stands(p_merchant_id, p_livemode);

    update pg_temp.order_said s
       set turn = n.turn,
           at = affiliate.test_time(p_merchant_id, p_livemode, coalesce(s.occurred_at, moment + n.nth * interval '1 microsecond'))
      from (select d.line, row_number() over (partition by d.order_id order by d.line) as turn,
                   row_number() over (order by d.line) as nth
              from pg_temp.order_said d
             where d.verdict is null) n
     where n.line = s.line;
    select max(s.turn) into turns from pg_temp.order_said s;

    for n in 1 .. coalesce(turns, 0) loop
        perform affiliate.judge_turn(n, moment);
    end loop;
end
$$;

create function affiliate.judge_turn(p_turn integer, p_now timestamptz)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
    with judged as materialized (
        select s.line, m.minor, v.code,
               case when v.code <> 'same' then affiliate.said_sentence(v.code, o, s) end as sentence
          from pg_temp.order_said s
          join pg_temp.order_stand o using (order_id)
         cross join lateral (select affiliate.minor_of(s.amount, o.decimals) as minor offset 0) m
         cross join lateral (select affiliate.said_problem(o, s, m.minor, p_now) as code offset 0) v
         where s.turn = p_turn
    )
    update pg_temp.order_said s
       set amount_minor = j.minor,
           verdict = case when j.code is null then 'applied' when j.code = 'same' then 'unchanged' else 'refused' end,
           code = nullif(j.code, 'same'),
           detail = j.sentence
      from judged j
     where j.line = s.line;

    -- Of pending and approved, an amount that the order has anyhow is none: it must not outlive a later one.
    update pg_temp.order_said s
       set amount_minor = null
      from pg_temp.order_stand o
     where s.turn = p_turn
       and s.status in (1, 2)
       and o.order_id = s.order_id
       and o.amount_minor = s.amount_minor;

    update pg_temp.order_stand o
       set approved_at = case when s.status = 2 then least(o.approved_at, s.at) else o.approved_at end,
           cancelled_at = case when s.status = 3 then s.at else o.cancelled_at end,
           returned_at = case when s.status in (4, 5) and s.amount is null
                              then s.at else o.returned_at end,
           refunded_minor = o.refunded_minor + case when s.status in (4, 5) then coalesce(s.amount_minor, 0) else 0 end,
           refunds = o.refunds || case when s.status in (4, 5) and s.amount is not null
                                       then jsonb_build_object(s.refund_id, s.amount_minor) else '{}' end,
           amount_at = case when s.status in (1, 2) and s.amount_minor is not null
                            then s.at else o.amount_at end,
           amount_minor = case when s.status in (1, 2) then coalesce(s.amount_minor, o.amount_minor) else o.amount_minor end
      from pg_temp.order_said s
     where s.turn = p_turn
       and s.verdict = 'applied'
       and s.order_id = o.order_id;
end
$$;

-- Makes conversions of the lines that were judged 'applied', as one batch; returns its number, null if there is none. The orders
-- are locked. Each event is a microsecond later than the one before: they count in the order in which they were said.
create function affiliate.apply_said(
    p_merchant_id bigint, p_livemode boolean, p_actor affiliate.actor, p_source smallint, p_import_id bigint,
    p_reconciliation_id bigint)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
as $$
declare
    batch bigint;
    count integer;
    call text := 'hand:' || gen_random_uuid();
    moment timestamptz := clock_timestamp();
    result record;
begin
    select count(*) into count from pg_temp.order_said s where s.verdict = 'applied';
    if count = 0 then
        return null;
    end if;
    batch := nextval('affiliate.hand_batch_seq');

    insert into affiliate.hand_batch
          (merchant_id, batch_id, livemode, source, events, actor_kind, user_id, key_id, request_id, import_id, reconciliation_id)
    values (p_merchant_id, batch, p_livemode, p_source, count, p_actor.kind, p_actor.user_id, p_actor.key_id, p_actor.request_id,
            p_import_id, p_reconciliation_id);

    perform affiliate.work_clear('conversion_stage');
    insert into pg_temp.conversion_stage
          (spool_id, segment, sequence, record, merchant_id, livemode, source, position, key_id, idempotency_key, body_hash,
           received_at, occurred_at, click_id, order_id, status, customer, amount_minor, currency, refund_id, reason)
    select 0, batch, 0, s.record, p_merchant_id, p_livemode, p_source, s.record, p_actor.key_id, call,
           sha256(convert_to(call || ':' || s.record, 'UTF8')),
           moment + s.record * interval '1 microsecond', s.occurred_at, o.click_id, s.order_id, s.status, 0,
           s.amount_minor, case when s.amount_minor is not null then o.currency end, s.refund_id, s.reason
      from (select d.*, (row_number() over (order by d.line) - 1)::integer as record
              from pg_temp.order_said d
             where d.verdict = 'applied') s
      join pg_temp.order_stand o using (order_id);

    perform affiliate.inbox_accept(2::smallint, '{0}', array[batch], '{0}', array[count]);
    select * into result from affiliate.apply_conversions();
    perform affiliate.work_clear('conversion_stage');
    -- Their clicks have been there before, and their keys can't have been.
    if result.applied <> count then
        raise exception 'of % events by hand, % were applied, % wait, % are repeated, % are refused',
            count, result.applied, result.waiting, result.duplicates, result.dead;
    end if;
    return batch;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Reading
-- ---------------------------------------------------------------------------------------------------------------

-- Null if it is no time.
create function affiliate.time_of(p_text text)
returns timestamptz
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
set timezone = 'UTC'
as $$
begin
    if p_text ~ '^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:?\d\d)?)?$' then
        return p_text::timestamptz;
    end if;
    return null;
exception when data_exception then
    return null;
end
$$;

-- What is wrong with a line by itself, as "column: rule"; null if nothing is.
create function affiliate.line_problem(
    p_cells integer, p_columns integer, p_order_id text, p_status smallint, p_amount text, p_currency text, p_refund_id text, p_reason text, p_reason_known boolean,
    p_reason_needs_text boolean, p_occurred_text text, p_occurred_at timestamptz)
returns text
language sql immutable parallel safe
return case
           when p_cells <> p_columns then format('row: has %s cells, the header has %s', p_cells, p_columns)
           when p_order_id is null then 'order_id: is required'
           when length(p_order_id) > 128 or p_order_id ~ '[[:cntrl:]]' then
               'order_id: must have 1 to 128 characters, and no control characters'
           when p_status is null then 'status: must be pending, approved, cancelled, returned or refunded'
           when p_amount !~ '^(0|[1-9][0-9]{0,16})(\.[0-9]{1,17})?$' then 'amount: must be a decimal amount, like 1250.50'
           when p_currency !~ '^[A-Z]{3}$' then 'currency: must be an ISO 4217 currency, like NPR'
           when length(p_refund_id) > 128 or p_refund_id ~ '[[:cntrl:]]' then
               'refund_id: must have 1 to 128 characters, and no control characters'
           when p_status in (4, 5) and p_amount is not null and p_refund_id is null then
               'refund_id: is required with an amount, so that a refund that is told twice counts once'
           when p_status in (3, 4, 5) and p_reason is null then
               'reason: is required where an order is cancelled, returned or refunded'
           when length(p_reason) > 256 or p_reason ~ '[[:cntrl:]]' then
               'reason: must have 1 to 256 characters, and no control characters'
           when p_reason is not null and not p_reason_known then
               'reason: must be one of the reasons'' codes, or a code, a colon and a text'
           when p_reason_needs_text then 'reason: must be told in words, too'
           when p_occurred_text is not null and p_occurred_at is null then
               'occurred_at: must be a time, like 2026-01-31T12:00:00Z'
       end;

-- Puts rows of cells into pg_temp.order_said, the first as line p_first; empty ones are not there. What is wrong by itself has its
-- verdict at once.
create function affiliate.say(p_first bigint, p_columns text[], p_rows jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
as $$
begin
    insert into pg_temp.order_said
    select t.line, t.order_id, t.status, case when t.status <> 3 then t.amount end, t.currency, t.refund_id, t.reason,
           t.occurred_at, false, null, null,
           case when t.problem is not null then 'refused' end,
           case when t.problem is not null then 'invalid' end,
           t.problem
      from (select c.*,
                   affiliate.line_problem(
                       c.cells, cardinality(p_columns), c.order_id, c.status, c.amount, c.currency, c.refund_id, c.reason, r.code is not null,
                       r.needs_text and strpos(c.reason, ':') = 0, c.occurred_text, c.occurred_at) as problem
              from (select p_first + e.n - 1 as line,
                           jsonb_array_length(e.cells) as cells,
                           nullif(btrim(e.cells ->> (array_position(p_columns, 'order_id') - 1)), '') as order_id,
                           array_position('{pending,approved,cancelled,returned,refunded}'::text[],
                                          btrim(e.cells ->> (array_position(p_columns, 'status') - 1)))::smallint as status,
                           nullif(btrim(e.cells ->> (array_position(p_columns, 'amount') - 1)), '') as amount,
                           nullif(btrim(e.cells ->> (array_position(p_columns, 'currency') - 1)), '') as currency,
                           nullif(btrim(e.cells ->> (array_position(p_columns, 'refund_id') - 1)), '') as refund_id,
                           nullif(btrim(e.cells ->> (array_position(p_columns, 'reason') - 1)), '') as reason,
                           o.occurred_text,
                           affiliate.time_of(o.occurred_text) as occurred_at
                      from jsonb_array_elements(p_rows) with ordinality as e(cells, n)
                     cross join lateral (
                               select nullif(btrim(e.cells ->> (array_position(p_columns, 'occurred_at') - 1)), '') as occurred_text
                              offset 0
                           ) o
                    offset 0) c
              left join affiliate.order_reason r on r.code = split_part(c.reason, ':', 1)
            offset 0) t;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- By hand
-- ---------------------------------------------------------------------------------------------------------------

-- The field of a request that a verdict is about; null if it is about the order.
create function affiliate.said_field(p_code text)
returns text
language sql immutable parallel safe
return (array['currency', 'amount', 'occurred_at', 'refund_id'])[case
           when p_code = 'currency' then 1
           when p_code in ('decimals', 'nothing', 'rest', 'below', 'unpriced', 'whole') then 2
           when p_code in ('future', 'early', 'late') then 3
           when p_code = 'refund' then 4
       end];

create function affiliate.find_order_now(p_merchant_id bigint, p_livemode boolean, p_order_id text)
returns affiliate.order_now
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select n
      from affiliate.order_now n
     where n.merchant_id = p_merchant_id
       and n.livemode = p_livemode
       and n.order_id = p_order_id
$$;

-- Reports one event of an order by hand; p_request has its fields as they came. True if something changed by it.
create function affiliate.order_report(p_merchant_id bigint, p_actor affiliate.actor, p_action text, p_status text, p_request jsonb)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted text := p_request ->> 'order';
    why text := p_request ->> 'reason' || coalesce(': ' || nullif(btrim(p_request ->> 'note'), ''), '');
    s affiliate.order_said;
    before jsonb;
begin
    if jsonb_typeof(p_request -> 'amount') not in ('string', 'null') then
        perform affiliate.refuse('amount', 'must be a text, like "1250.50"');
    end if;
    perform affiliate.said_tables();
    perform affiliate.say(1, '{order_id,status,amount,currency,refund_id,reason,occurred_at}', jsonb_build_array(jsonb_build_array(
        wanted, p_status, p_request -> 'amount', p_request ->> 'currency', p_request ->> 'refund_id', why,
        p_request ->> 'occurred_at')));
    select * into s from pg_temp.order_said;
    if s.verdict = 'refused' then
        perform affiliate.refuse(replace(split_part(s.detail, ': ', 1), 'order_id', 'order'), substr(s.detail, strpos(s.detail, ': ') + 2));
    end if;

    perform affiliate.judge_said(p_merchant_id, p_actor.livemode, true);
    select * into s from pg_temp.order_said;
    if s.code = 'unknown' then
        perform affiliate.problem(404, 'not_found', s.detail);
    elsif affiliate.said_field(s.code) is not null then
        perform affiliate.refuse(affiliate.said_field(s.code), s.detail);
    elsif s.code is not null then
        perform affiliate.problem(409, 'order_' || s.code, s.detail);
    end if;
    if s.verdict = 'unchanged' then
        return false;
    end if;

    before := affiliate.order_json(affiliate.find_order_now(p_merchant_id, p_actor.livemode, wanted));
    perform affiliate.apply_said(p_merchant_id, p_actor.livemode, p_actor, 4::smallint, null, null);
    perform affiliate.record(p_actor, 'order.' || p_action, 'order', wanted, before,
        affiliate.order_json(affiliate.find_order_now(p_merchant_id, p_actor.livemode, wanted))
            || jsonb_build_object('reported', p_status, 'reported_amount', p_request -> 'amount', 'refund_id', p_request -> 'refund_id'),
        why);
    return true;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Looking
-- ---------------------------------------------------------------------------------------------------------------

-- Who said what was said by hand. Of those who run the network, not their names.
create function affiliate.hand_json(p_merchant_id bigint, p_batch_id bigint)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_strip_nulls(jsonb_build_object(
               'kind', b.actor_kind,
               'user', case when b.actor_kind = 'merchant' then b.user_id end,
               'name', case when b.actor_kind = 'merchant' then p.name end,
               'key', b.key_id,
               'import', b.import_id,
               'reconciliation', b.reconciliation_id))
      from affiliate.hand_batch b
      left join affiliate.person p using (user_id)
     where b.merchant_id = p_merchant_id
       and b.batch_id = p_batch_id
$$;

create function affiliate.order_timeline(p_merchant_id bigint, p_livemode boolean, p_order_id text)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
               'conversion', c.conversion_id,
               'status', affiliate.status_name(c.status),
               'at', c.effective_at,
               'received_at', c.received_at,
               'occurred_at', c.occurred_at,
               'amount', affiliate.amount_text(c.amount_minor, k.decimals),
               'currency', c.currency,
               'refund_id', case when left(c.refund_key, 2) = 'r:' then substr(c.refund_key, 3) end,
               'reason', c.reason,
               'reason_sentence', r.sentence,
               'click', c.click_id,
               'click_problem', c.click_problem,
               'waiting', nullif(c.waiting, false),
               'source', (array['call', 'batch', 'postback', 'hand', 'file'])[c.source],
               'by', case when c.source in (4, 5) then affiliate.hand_json(c.merchant_id, c.segment) end,
               'idempotency_key', case when c.source not in (4, 5) then c.idempotency_key end,
               'key', c.key_id))
               order by c.effective_at, c.conversion_id), '[]')
      from affiliate.conversion c
      left join affiliate.currency k on k.currency = c.currency
      left join affiliate.order_reason r on c.source in (4, 5) and r.code = split_part(c.reason, ':', 1)
     where c.merchant_id = p_merchant_id
       and c.livemode = p_livemode
       and c.order_id = p_order_id
$$;

-- The states of order_state(), as conditions on a row n of order_now that an index can answer.
create function affiliate.state_condition(p_state text)
returns text
language sql immutable parallel safe
return case p_state
           when 'rejected' then $$ n.outcome = 'rejected' $$
           when 'cancelled' then $$ n.cancelled_at is not null and n.outcome <> 'rejected' $$
           when 'refunded' then $$ (n.returned_at is not null or n.refunded_minor > 0) and n.cancelled_at is null
               and (n.returned_at is not null or n.refunded_minor >= nullif(n.amount_minor, 0)) and n.outcome <> 'rejected' $$
           else case p_state
                    when 'review' then $$ n.outcome = 'review' $$
                    when 'payable' then $$ n.outcome = 'accepted' and n.payable $$
                    when 'approved' then $$ n.outcome = 'accepted' and n.approved_at is not null and not n.payable $$
                    when 'pending' then $$ n.outcome = 'accepted' and n.approved_at is null and not n.payable $$
                end
                || $$ and n.cancelled_at is null and n.returned_at is null
                      and (n.refunded_minor >= nullif(n.amount_minor, 0)) is not true $$
       end;

-- What the filters of a list of orders mean, as conditions on n.
create function affiliate.order_conditions(p_request jsonb)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    state text := affiliate.form_field(
        p_request, 'state', 20, '^(pending|approved|payable|cancelled|refunded|review|rejected)$',
        'must be pending, approved, payable, cancelled, refunded, review or rejected');
    outcome text := affiliate.form_field(
        p_request, 'outcome', 20, '^(accepted|review|rejected)$', 'must be accepted, review or rejected');
    customer text := affiliate.form_field(p_request, 'customer', 20, '^(new|returning)$', 'must be new or returning');
    start text := affiliate.text_field(p_request, 'order', 128);
    currency text := affiliate.currency_field(p_request, 'currency');
begin
    if currency is null and (p_request ? 'amount_from' or p_request ? 'amount_to') then
        perform affiliate.refuse('currency', 'is required with an amount');
    end if;
    return concat_ws(' and ',
        affiliate.state_condition(state),
        'n.outcome = ' || quote_literal(outcome),
        'n.campaign_id = ' || affiliate.id_field(p_request, 'campaign'),
        'n.affiliate_id = ' || affiliate.id_field(p_request, 'affiliate'),
        'n.problem = ' || quote_literal(affiliate.text_field(p_request, 'reason', 64)),
        'n.customer = ' || array_position('{new,returning}'::text[], customer),
        'n.reported_at >= ' || quote_literal(affiliate.time_field(p_request, 'reported_from')),
        'n.reported_at < ' || quote_literal(affiliate.time_field(p_request, 'reported_to')),
        'coalesce(n.currency, n.posted_currency) = ' || quote_literal(currency),
        'n.amount_minor >= ' || affiliate.amount_field(p_request, 'amount_from', currency),
        'n.amount_minor <= ' || affiliate.amount_field(p_request, 'amount_to', currency),
        -- In the order of the bytes, what begins with it lies between it and it with the last character there is.
        'n.order_id >= ' || quote_literal(start) || ' and n.order_id < ' || quote_literal(start || chr(1114111)));
end
$$;

-- An order in a list.
create function affiliate.order_row(o affiliate.order_now)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return (
        select affiliate.order_json(o) || jsonb_build_object(
            'affiliate_name', (select a.name from affiliate.affiliate a where a.affiliate_id = o.affiliate_id),
            'campaign_name', (select c.name from affiliate.campaign c
                               where c.merchant_id = o.merchant_id and c.campaign_id = o.campaign_id),
            'customer', (array['new', 'returning'])[o.customer],
            'click', o.click_id,
            'clicked_at', o.clicked_at,
            'cancelled_at', o.cancelled_at,
            'returned_at', o.returned_at));
end
$$;

-- A page of the orders for which p_conditions hold.
create function affiliate.order_page(p_actor affiliate.actor, p_request jsonb, p_sorts text[], variadic p_conditions text[])
returns setof jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.page(p_actor, p_request,
               'select n as o, n.order_no, n.reported_at, n.order_id as "order" from affiliate.order_now n where '
               || array_to_string(p_conditions || format('n.livemode = %L', p_actor.livemode)
                                               || nullif(affiliate.order_conditions(p_request), ''), ' and '),
               'affiliate.order_row(x.o)', p_sorts, 'order_no bigint')
$$;

create function affiliate.order_filters()
returns text[]
language sql immutable parallel safe
return '{state,outcome,campaign,affiliate,reason,reported_from,reported_to,amount_from,amount_to,currency,customer,order}'::text[];

-- An order with everything that happened to it; null if there is none.
create function affiliate.order_detail(p_merchant_id bigint, p_livemode boolean, p_order_id text)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    o affiliate.order_now := affiliate.find_order_now(p_merchant_id, p_livemode, p_order_id);
    detail jsonb;
begin
    if o.order_no is null and affiliate.order_timeline(p_merchant_id, p_livemode, p_order_id) = '[]' then
        return null;
    end if;
    detail := affiliate.order_show(jsonb_build_object('merchant', p_merchant_id, 'livemode', p_livemode, 'order', p_order_id));
    if o.order_no is null then
        return detail;
    end if;
    -- The command line's terms are in the units that commands take; here they are as campaigns show them.
    return detail || affiliate.order_row(o) || jsonb_build_object(
        'terms', (select affiliate.terms_view(t, k.currency, false)
                         || jsonb_build_object('product_rates', affiliate.product_rates_json(t, k.decimals))
                    from affiliate.terms t
                    join affiliate.currency k on k.currency = o.posted_currency
                   where t.merchant_id = o.merchant_id and t.terms_id = o.terms_id),
        'verdict', (select affiliate.verdict_name(c.verdict) from affiliate.click_seen c where c.id = o.click_id),
        'click_reasons', coalesce((select affiliate.verdict_reasons(c.reasons) from affiliate.click_seen c where c.id = o.click_id), '[]'));
end
$$;

-- Decides the review of an order.
create function affiliate.order_decide(p_merchant_id bigint, p_actor affiliate.actor, p_request jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted text := p_request ->> 'order';
    o affiliate.order_now := affiliate.find_order_now(p_merchant_id, p_actor.livemode, wanted);
begin
    if o.order_no is null then
        perform affiliate.refuse_order(wanted);
    end if;
    if o.outcome = 'rejected' and o.problem <> 'review_rejected' then
        perform affiliate.problem(409, 'order_rejected', 'No review changes this: ' || affiliate.reason_sentence(o.problem));
    end if;
    perform affiliate.order_review(jsonb_build_object('merchant', p_merchant_id, 'livemode', p_actor.livemode, 'order', wanted,
        'decision', p_request -> 'decision', 'reason', p_request -> 'reason'));
    perform affiliate.record(p_actor, 'order.review', 'order', wanted,
        affiliate.order_json(o) || jsonb_build_object('decision', o.review_decision),
        affiliate.order_json(affiliate.find_order_now(p_merchant_id, p_actor.livemode, wanted))
            || jsonb_build_object('decision', p_request -> 'decision'),
        p_request ->> 'reason');
end
$$;

create function affiliate.refuse_order(p_order_id text)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.problem(404, 'not_found', format('There is no order %s in this mode.', quote_literal(p_order_id)))
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Operations
-- ---------------------------------------------------------------------------------------------------------------

select affiliate.fence('affiliate.hand_batch');
grant select on affiliate.order_reason to affiliate_tenant;
select affiliate.enter_as_tenant(
    'affiliate.order_report(bigint, affiliate.actor, text, text, jsonb)',
    'affiliate.order_decide(bigint, affiliate.actor, jsonb)',
    'affiliate.order_detail(bigint, boolean, text)');

select affiliate.operation('order_reason_list', actors => '{person,affiliate,merchant,key,admin}');

create function affiliate.api_order_reason_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query
    select affiliate.page(p_actor, p_request, 'select r, r.place, r.code from affiliate.order_reason r',
        $row$jsonb_build_object('code', (x.r).code, 'needs_text', (x.r).needs_text, 'sentence', (x.r).sentence)$row$,
        '{place smallint}', 'code text');
end
$$;

select affiliate.operation('order_list', actors => '{merchant,key,admin}');

create function affiliate.api_order_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, affiliate.order_filters());
    return query
    select affiliate.order_page(p_actor, p_request, '{-reported_at timestamptz, order text}',
        format('n.merchant_id = %s', p_actor.merchant_id));
end
$$;

select affiliate.operation('order_show', actors => '{merchant,key,admin}');

create function affiliate.api_order_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    found_order jsonb;
begin
    perform affiliate.check_request(p_request, '{order}');
    found_order := affiliate.order_detail(p_actor.merchant_id, p_actor.livemode, p_request ->> 'order');
    if found_order is null then
        perform affiliate.refuse_order(p_request ->> 'order');
    end if;
    return next found_order;
end
$$;

-- What all that is done by hand answers: the order as it is now, and whether that is new.
create function affiliate.order_action(p_actor affiliate.actor, p_request jsonb, p_action text, p_status text)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    changed boolean := affiliate.order_report(p_actor.merchant_id, p_actor, p_action, p_status, p_request);
begin
    return next affiliate.order_detail(p_actor.merchant_id, p_actor.livemode, p_request ->> 'order')
        || jsonb_build_object('changed', changed);
end
$$;

select affiliate.operation('order_approve', actors => '{merchant,key,admin}', role => 'manager', creates => true, by_mode => true);

create function affiliate.api_order_approve(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{order}', '{amount,currency,reason,note,occurred_at}');
    return query select affiliate.order_action(p_actor, p_request, 'approve', 'approved');
end
$$;

select affiliate.operation('order_cancel', actors => '{merchant,key,admin}', role => 'manager', creates => true, by_mode => true);

create function affiliate.api_order_cancel(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{order,reason}', '{note,occurred_at}');
    return query select affiliate.order_action(p_actor, p_request, 'cancel', 'cancelled');
end
$$;

select affiliate.operation('order_refund', actors => '{merchant,key,admin}', role => 'manager', creates => true, by_mode => true);

create function affiliate.api_order_refund(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{order,reason}', '{amount,currency,refund_id,note,occurred_at}');
    return query select affiliate.order_action(p_actor, p_request, 'refund', 'refunded');
end
$$;

select affiliate.operation('order_return', actors => '{merchant,key,admin}', role => 'manager', creates => true, by_mode => true);

create function affiliate.api_order_return(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{order,reason}', '{amount,currency,refund_id,note,occurred_at}');
    return query select affiliate.order_action(p_actor, p_request, 'return', 'returned');
end
$$;

select affiliate.operation('admin_order_list', actors => '{admin}');

create function affiliate.api_admin_order_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, affiliate.order_filters());
    if p_actor.merchant_id is null and not p_request ? 'affiliate' then
        perform affiliate.refuse('merchant', 'or affiliate is required');
    end if;
    return query
    select affiliate.order_page(p_actor, p_request, '{-reported_at timestamptz, order text}',
        coalesce('n.merchant_id = ' || p_actor.merchant_id, 'true'));
end
$$;

-- The longest waiting first.
select affiliate.operation('review_list', actors => '{admin}');

create function affiliate.api_review_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{campaign,affiliate,reason,reported_from,reported_to,customer}');
    return query
    select affiliate.order_page(p_actor, p_request, '{reported_at timestamptz}', 'n.outcome = ''review''',
        coalesce('n.merchant_id = ' || p_actor.merchant_id, 'true'));
end
$$;

select affiliate.operation('review_decide', actors => '{admin}', creates => true);

create function affiliate.api_review_decide(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{merchant,order,decision,reason}');
    perform affiliate.order_decide(p_actor.merchant_id, p_actor, p_request);
    return next affiliate.order_detail(p_actor.merchant_id, p_actor.livemode, p_request ->> 'order');
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- By file
-- ---------------------------------------------------------------------------------------------------------------

create table affiliate.order_import_row (
    merchant_id     bigint not null,
    import_id       bigint not null,
    line            bigint not null,
    status          smallint,
    occurred_at     timestamptz,
    batch_id        bigint,
    verdict         text not null check (verdict in ('applied', 'unchanged', 'refused')),
    code            text,
    order_id        text collate "C",
    amount          text,
    currency        text,
    refund_id       text collate "C",
    reason          text,
    detail          text,
    primary key (merchant_id, import_id, line)
);

create index order_import_row_order on affiliate.order_import_row (merchant_id, import_id, order_id);
create index order_import_row_refused on affiliate.order_import_row (merchant_id, import_id, line) where verdict = 'refused';

comment on table affiliate.order_import_row is 'What became of each row of a file of orders; in a dry run, what would';

-- The columns of a file, in lower case; refused if it has others or lacks one.
create function affiliate.file_columns(p_header text[], p_required text[], p_optional text[])
returns text[]
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    columns text[] := (select array_agg(lower(btrim(h)) order by n) from unnest(p_header) with ordinality as t(h, n));
    stray text := (select string_agg(quote_literal(h), ', ') from unnest(columns) h where h <> all (p_required || p_optional));
    lacking text := (select string_agg(r, ', ') from unnest(p_required) r where r <> all (columns));
begin
    if stray is not null then
        perform affiliate.refuse('header', format('has columns that are none here: %s; there are %s', stray,
            array_to_string(p_required || p_optional, ', ')));
    end if;
    if lacking is not null then
        perform affiliate.refuse('header', 'lacks the column ' || lacking);
    end if;
    if cardinality(columns) <> (select count(distinct h) from unnest(columns) h) then
        perform affiliate.refuse('header', 'has a column twice');
    end if;
    return columns;
end
$$;

-- Adds the lines before these that would have been applied, of the same orders.
create function affiliate.say_again(p_merchant_id bigint, p_import_id bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
    insert into pg_temp.order_said (line, order_id, status, amount, currency, refund_id, reason, occurred_at, again)
    select r.line, r.order_id, r.status, r.amount, r.currency, r.refund_id, r.reason, r.occurred_at, true
      from (select distinct s.order_id from pg_temp.order_said s where s.verdict is null) d
     cross join lateral (
               select *
                 from affiliate.order_import_row i
                where i.merchant_id = p_merchant_id
                  and i.import_id = p_import_id
                  and i.order_id = d.order_id
                  and i.verdict = 'applied'
               offset 0
           ) r;
end
$$;

-- Takes a part of a file: its rows from line p_first on. Each is judged after all before it of its order, and so also in a dry
-- run, where these have not come true: there they are judged again.
create function affiliate.order_import_part(p_merchant_id bigint, p_import affiliate.import, p_first bigint, p_rows jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    batch bigint;
    counts record;
begin
    perform affiliate.said_tables();
    perform affiliate.say(p_first, affiliate.order_columns(p_import.header), p_rows);

    if p_import.dry_run then
        perform affiliate.say_again(p_merchant_id, p_import.import_id);
    end if;

    perform affiliate.judge_said(p_merchant_id, p_import.livemode, not p_import.dry_run);
    if not p_import.dry_run then
        batch := affiliate.apply_said(p_merchant_id, p_import.livemode, affiliate.import_actor(p_import), 5::smallint,
            p_import.import_id, null);
    end if;

    insert into affiliate.order_import_row
          (merchant_id, import_id, line, status, occurred_at, batch_id, verdict, code, order_id, amount, currency, refund_id,
           reason, detail)
    select p_merchant_id, p_import.import_id, s.line, s.status, s.occurred_at, case when s.verdict = 'applied' then batch end,
           s.verdict, s.code, s.order_id, s.amount, s.currency, s.refund_id, s.reason, s.detail
      from pg_temp.order_said s
     where not s.again
     order by s.line;

    select count(*) filter (where s.verdict = 'applied') as changed,
           count(*) filter (where s.verdict = 'unchanged') as unchanged,
           count(*) filter (where s.verdict = 'refused') as refused
      into counts
      from pg_temp.order_said s
     where not s.again;
    perform affiliate.import_count(p_merchant_id, p_import.import_id, 0, counts.changed, counts.unchanged, counts.refused);
end
$$;

-- Who made an import, as an actor.
create function affiliate.import_actor(i affiliate.import)
returns affiliate.actor
language sql immutable parallel safe
return row(i.actor_kind, i.user_id, null, i.merchant_id, null, null, i.key_id, i.livemode, i.request_id)::affiliate.actor;

create function affiliate.find_import(p_merchant_id bigint, p_livemode boolean, p_kind text, p_import_id bigint)
returns affiliate.import
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    i affiliate.import;
begin
    select * into i
      from affiliate.import x
     where x.merchant_id = p_merchant_id
       and x.import_id = p_import_id
       and x.kind = p_kind
       and x.livemode = p_livemode;
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such import in this mode.');
    end if;
    return i;
end
$$;

-- The three steps of an upload: it begins, brings rows, and ends. Returns its number, then the line that is wanted next.
create function affiliate.order_import_begin(p_merchant_id bigint, p_actor affiliate.actor, p_request jsonb)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.order_columns(affiliate.header_field(p_request));
    return (affiliate.import_begin(p_merchant_id, p_actor, 'orders', p_request, '{}')).import_id;
end
$$;

-- What of a part of a file has not come before; null if nothing is left of it.
create function affiliate.import_rest(p_merchant_id bigint, p_import_id bigint, p_kind text, p_first bigint, p_rows jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    rows integer := jsonb_array_length(p_rows);
    known integer;
begin
    if rows is null or rows not between 1 and 10000 then
        perform affiliate.problem(422, 'invalid_csv', 'A part must have 1 to 10000 rows.');
    end if;
    known := affiliate.import_accept(p_merchant_id, p_import_id, p_kind, p_first, rows);
    if known >= rows then
        return null;
    end if;
    return jsonb_path_query_array(p_rows, '$[$known to last]', jsonb_build_object('known', known));
end
$$;

-- Refuses to end an import whose file has not come as a whole.
create function affiliate.check_whole(p_merchant_id bigint, p_import_id bigint, p_kind text, p_lines bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted bigint;
begin
    perform affiliate.import_accept(p_merchant_id, p_import_id, p_kind, p_lines + 1, 0);
    select i.next_line into wanted
      from affiliate.import i
     where i.merchant_id = p_merchant_id
       and i.import_id = p_import_id;
    if wanted <> p_lines + 1 then
        perform affiliate.problem(409, 'conflict', format('The next row has to be %s.', wanted));
    end if;
end
$$;

create function affiliate.order_import_rows(
    p_merchant_id bigint, p_actor affiliate.actor, p_import_id bigint, p_first bigint, p_rows jsonb)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    i affiliate.import := affiliate.find_import(p_merchant_id, p_actor.livemode, 'orders', p_import_id);
    rest jsonb := affiliate.import_rest(p_merchant_id, p_import_id, 'orders', p_first, p_rows);
begin
    if rest is not null then
        perform affiliate.order_import_part(
            p_merchant_id, i, p_first + jsonb_array_length(p_rows) - jsonb_array_length(rest), rest);
    end if;
    return (affiliate.find_import(p_merchant_id, p_actor.livemode, 'orders', p_import_id)).next_line;
end
$$;

create function affiliate.order_import_end(p_merchant_id bigint, p_actor affiliate.actor, p_import_id bigint, p_lines bigint)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.import := affiliate.find_import(p_merchant_id, p_actor.livemode, 'orders', p_import_id);
    i affiliate.import;
begin
    perform affiliate.check_whole(p_merchant_id, p_import_id, 'orders', p_lines);
    i := affiliate.import_end(p_merchant_id, p_import_id);
    if before.state = 'open' and not i.dry_run then
        perform affiliate.record(p_actor, 'order_import.apply', 'import', p_import_id::text, null, affiliate.order_import_json(i));
    end if;
    return affiliate.order_import_json(i);
end
$$;

create function affiliate.header_field(p_request jsonb)
returns text[]
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select array_agg(h order by n) from jsonb_array_elements_text(p_request -> '_header') with ordinality as t(h, n)
$$;

create function affiliate.order_columns(p_header text[])
returns text[]
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.file_columns(p_header, '{order_id,status}', '{amount,currency,refund_id,reason,occurred_at}')
$$;

create function affiliate.order_import_json(i affiliate.import)
returns jsonb
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'import', i.import_id,
        'livemode', i.livemode,
        'dry_run', i.dry_run,
        'state', i.state,
        'lines', i.next_line - 1,
        'applied', i.changed,
        'unchanged', i.unchanged,
        'refused', i.refused,
        'by', jsonb_strip_nulls(jsonb_build_object('kind', i.actor_kind, 'user', i.user_id, 'key', i.key_id)),
        'created_at', i.created_at,
        'finished_at', i.finished_at)
$$;

create function affiliate.order_import_row_json(r affiliate.order_import_row)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        -- As a spreadsheet counts: the header is 1.
        'line', r.line + 1,
        'order', r.order_id,
        'status', affiliate.status_name(r.status),
        'amount', r.amount,
        'currency', r.currency,
        'refund_id', r.refund_id,
        'reason', r.reason,
        'occurred_at', r.occurred_at,
        'verdict', r.verdict,
        'code', r.code,
        'detail', r.detail)
$$;

select affiliate.fence('affiliate.order_import_row');
select affiliate.enter_as_tenant(
    'affiliate.order_import_begin(bigint, affiliate.actor, jsonb)',
    'affiliate.order_import_rows(bigint, affiliate.actor, bigint, bigint, jsonb)',
    'affiliate.order_import_end(bigint, affiliate.actor, bigint, bigint)');

select affiliate.operation('order_import_create', actors => '{merchant,key,admin}', role => 'manager', creates => true, by_mode => true);

create function affiliate.api_order_import_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_header}', '{_bytes,dry_run}');
    return next jsonb_build_object('_upload', affiliate.order_import_begin(p_actor.merchant_id, p_actor, p_request)::text);
end
$$;

select affiliate.operation('order_import_create_rows', actors => '{merchant,key,admin}', role => 'manager', mutates => true, by_mode => true);

create function affiliate.api_order_import_create_rows(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_upload,_line,_rows}', '{dry_run}');
    return next jsonb_build_object('_line', affiliate.order_import_rows(
        p_actor.merchant_id, p_actor, affiliate.id_field(p_request, '_upload'), affiliate.id_field(p_request, '_line'),
        p_request -> '_rows'));
end
$$;

select affiliate.operation('order_import_create_done', actors => '{merchant,key,admin}', role => 'manager', mutates => true, by_mode => true);

create function affiliate.api_order_import_create_done(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    upload bigint := affiliate.id_field(p_request, '_upload');
begin
    perform affiliate.check_request(p_request, '{_upload,_lines}', '{dry_run}');
    perform affiliate.answer(jsonb_build_object('status', 201, 'location',
        format('/api/v1/merchants/%s/order-imports/%s', p_actor.merchant_id, upload)));
    return next affiliate.order_import_end(p_actor.merchant_id, p_actor, upload, (p_request ->> '_lines')::bigint);
end
$$;

select affiliate.operation('order_import_list', actors => '{merchant,key,admin}');

create function affiliate.api_order_import_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query
    select affiliate.page(p_actor, p_request,
        format('select i, i.import_id as import, i.created_at from affiliate.import i
                 where i.merchant_id = %s and i.kind = ''orders'' and i.livemode = %L', p_actor.merchant_id, p_actor.livemode),
        'affiliate.order_import_json(x.i)', '{-created_at timestamptz}', 'import bigint');
end
$$;

select affiliate.operation('order_import_show', actors => '{merchant,key,admin}');

create function affiliate.api_order_import_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{import}');
    return next affiliate.order_import_json(affiliate.find_import(
        p_actor.merchant_id, p_actor.livemode, 'orders', affiliate.id_field(p_request, 'import')));
end
$$;

select affiliate.operation('order_import_row_list', actors => '{merchant,key,admin}');

create function affiliate.api_order_import_row_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    i affiliate.import;
begin
    perform affiliate.check_page(p_request, '{import,verdict,order}');
    i := affiliate.find_import(p_actor.merchant_id, p_actor.livemode, 'orders', affiliate.id_field(p_request, 'import'));
    return query
    select affiliate.page(p_actor, p_request,
        concat_ws(' and ',
            format('select r, r.line from affiliate.order_import_row r where r.merchant_id = %s and r.import_id = %s',
                   i.merchant_id, i.import_id),
            'r.verdict = ' || quote_literal(affiliate.form_field(
                p_request, 'verdict', 20, '^(applied|unchanged|refused)$', 'must be applied, unchanged or refused')),
            'r.order_id = ' || quote_literal(affiliate.text_field(p_request, 'order', 128))),
        'affiliate.order_import_row_json(x.r)', '{line bigint}', 'line bigint');
end
$$;

select affiliate.seal_operations();
