-- Reconciliation: a merchant's orders as its own books have them, beside ours.
--
-- The file is taken part by part, each row compared at once with the order as it stands then; what we have and the file has not
-- is known at its end. The report stays as it was; what is fixed from it is noted row by row.
--
-- Both sides are compared as facts: pending, approved, or void (cancelled, returned, refunded whole), and what is left of the
-- amount after refunds in part. What we make of an order, payable or rejected, is not the merchant's matter.

create table affiliate.reconciliation (
    merchant_id         bigint not null,
    reconciliation_id   bigint not null,
    livemode            boolean not null,
    from_at             timestamptz,
    to_at               timestamptz,
    created_at          timestamptz not null default now(),
    finished_at         timestamptz,
    primary key (merchant_id, reconciliation_id)
);

comment on table affiliate.reconciliation is 'Comparisons of a merchant''s orders with ours; its id is that of the import that brought them';
comment on column affiliate.reconciliation.from_at is 'Ours that were reported from here on to to_at, and are not in the file, are missing there';

create table affiliate.reconciliation_row (
    merchant_id         bigint not null,
    reconciliation_id   bigint not null,
    row_no              bigint not null,
    class               smallint not null check (class between 1 and 5),
    their_status        smallint,
    our_status          smallint,
    their_minor         bigint,
    our_minor           bigint,
    their_at            timestamptz,
    our_at              timestamptz,
    their_currency      text,
    our_currency        text,
    our_outcome         text,
    hint                text,
    fix_verdict         text,
    fix_batch           bigint,
    fixed_at            timestamptz,
    fix_detail          text,
    order_id            text collate "C" not null,
    primary key (merchant_id, reconciliation_id, row_no)
);

create unique index reconciliation_row_order on affiliate.reconciliation_row (merchant_id, reconciliation_id, order_id);
create index reconciliation_row_class on affiliate.reconciliation_row (merchant_id, reconciliation_id, class, row_no);

comment on table affiliate.reconciliation_row is 'An order as both sides have it, as of when it was compared; row_no is its line in the file, or goes on behind the last';
comment on column affiliate.reconciliation_row.class is '1 matched, 2 missing_here, 3 missing_there, 4 amount_differs, 5 status_differs';
comment on column affiliate.reconciliation_row.our_minor is 'What is left of its amount after refunds; 0 if it is void';
comment on column affiliate.reconciliation_row.hint is 'What there is of an order that is missing here: waiting, or mode if it is known in the other one';
comment on column affiliate.reconciliation_row.fix_batch is 'The hand_batch of its fix';

create table affiliate.reconciliation_count (
    merchant_id         bigint not null,
    reconciliation_id   bigint not null,
    class               smallint not null,
    currency            text not null,
    orders              bigint not null,
    their_minor         numeric not null,
    our_minor           numeric not null,
    primary key (merchant_id, reconciliation_id, class, currency)
);

comment on table affiliate.reconciliation_count is 'Rows of a reconciliation by class, with the sums of both sides; currency is empty where neither tells one';

create function affiliate.class_names()
returns text[]
language sql immutable parallel safe
return '{matched,missing_here,missing_there,amount_differs,status_differs}'::text[];

-- ---------------------------------------------------------------------------------------------------------------
-- Comparing
-- ---------------------------------------------------------------------------------------------------------------

-- What has been said of an order, as a status: 3 and 4 are void.
create function affiliate.fact_status(o affiliate.order_fact)
returns smallint
language sql immutable parallel safe
return case
           when o.cancelled_at is not null then 3
           when o.returned_at is not null or o.refunded_minor >= nullif(o.amount_minor, 0) then 4
           when o.approved_at is not null then 2
           else 1
       end::smallint;

create function affiliate.fact_left(o affiliate.order_fact)
returns bigint
language sql immutable parallel safe
return affiliate.kept_minor(o.amount_minor, o.refunded_minor, affiliate.fact_status(o) in (3, 4));

-- Neither side's silence differs from anything.
create function affiliate.difference(
    p_their_status smallint, p_our_status smallint, p_their_minor bigint, p_our_minor bigint, p_their_currency text, p_our_currency text)
returns smallint
language sql immutable parallel safe
return case
           when p_our_status is null then 2
           when p_their_status is not null and least(p_their_status, 3) <> least(p_our_status, 3) then 5
           when p_our_status >= 3 then 1
           when p_their_minor is not null and p_their_currency <> p_our_currency then 4
           when p_their_minor is not null and p_their_minor is distinct from p_our_minor then 4
           else 1
       end::smallint;

-- What would bring our side to theirs: approve, cancel, return, refund (whole), part (a refund of the difference), amount (another
-- amount). Null if nothing does.
create function affiliate.fix_of(
    p_class smallint, p_their_status smallint, p_our_status smallint, p_their_minor bigint, p_our_minor bigint,
    p_their_currency text, p_our_currency text)
returns text
language sql immutable parallel safe
return case
           when p_class = 3 then 'cancel'
           when p_class = 4 and p_their_currency <> p_our_currency then null
           when p_class = 4 and p_their_minor < p_our_minor then 'part'
           when p_class = 4 then 'amount'
           when p_class <> 5 or p_our_status >= 3 then null
           when p_their_status = 2 then 'approve'
           when p_their_status >= 3 then (array['cancel', 'return', 'refund'])[p_their_status - 2]
       end;

-- The class as a sentence, with what can be done.
create function affiliate.row_sentence(r affiliate.reconciliation_row)
returns text
language sql immutable parallel safe
return case
           when r.class = 1 then 'Both sides agree.'
           when r.class = 2 and r.hint = 'waiting' then
               'The order was reported, but its click has not arrived yet; it will be here once it has, or was waited for long enough.'
           when r.class = 2 and r.hint = 'mode' then
               'The order was reported in the other mode: test and live never meet.'
           when r.class = 2 then
               'No event of this order has been taken, so its click is not known, and nobody can be paid for it. Only a signed call with its click_id can report it.'
           when r.class = 3 then 'The order was reported to us and is not in the file; if it is none, it can be cancelled.'
           when r.class = 4 and r.their_currency <> r.our_currency then
               'The currencies differ; that can''t be put right from here.'
           when r.class = 4 and r.their_minor < r.our_minor then
               'Less is left of the order than we know; the difference can be refunded.'
           when r.class = 4 then 'The order is worth more than we know; its amount can be corrected.'
           when r.our_status >= 3 then 'What was cancelled, returned or refunded whole stays so.'
           when r.their_status = 1 then 'An approval is not taken back; an order that comes to nothing can be cancelled.'
           when r.their_status = 2 then 'The order can be approved.'
           else 'The order can be cancelled, returned or refunded, as the file says.'
       end;

-- Reads rows of cells into pg_temp.reconciled, and compares each with the order as it stands.
create function affiliate.compare_part(
    p_merchant_id bigint, p_reconciliation_id bigint, p_livemode boolean, p_first bigint, p_columns text[], p_rows jsonb)
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
    if to_regclass('pg_temp.reconciled') is null then
        create temp table reconciled (
            line bigint, problem text, value text, status smallint, amount text, currency text, at timestamptz, minor bigint,
            our affiliate.order_fact, our_currency text, hint text, order_id text collate "C"
        ) on commit delete rows;
    end if;
    perform affiliate.work_clear('reconciled');

    insert into pg_temp.reconciled (line, problem, status, amount, currency, at, our, our_currency, hint, order_id)
    select t.line,
           case
               when t.problem is not null then t.problem
               when before.row_no is not null or t.nth > 1 then 'order_id: is in the file more than once'
           end,
           t.status, t.amount, t.currency, t.at, o.f, coalesce((o.f).currency, (o.f).posted_currency),
           case when (o.f).order_no is not null then null when e.waits then 'waiting' when e.other then 'mode' end,
           t.order_id
      from (select c.*,
                   row_number() over (partition by c.order_id order by c.line) as nth,
                   case
                       when c.cells <> cardinality(p_columns)
                           then format('row: has %s cells, the header has %s', c.cells, cardinality(p_columns))
                       when c.status_text is not null and c.status is null
                           then 'status: must be pending, approved, cancelled, returned or refunded'
                       when c.date_text is not null and c.at is null
                           then 'date: must be a time, like 2026-01-31 or 2026-01-31T12:00:00Z'
                       else affiliate.line_problem(
                                1, 1, c.order_id, 1::smallint, c.amount, c.currency, null, null, false, false, null, null)
                   end as problem
              from (select p_first + e.n - 1 as line, jsonb_array_length(e.cells) as cells, e.order_id, e.status_text,
                           array_position('{pending,approved,cancelled,returned,refunded}'::text[], e.status_text)::smallint as status,
                           e.amount, e.currency, e.date_text, affiliate.time_of(e.date_text) as at
                      from (select r.n, r.cells,
                                   nullif(btrim(r.cells ->> (array_position(p_columns, 'order_id') - 1)), '') as order_id,
                                   nullif(btrim(r.cells ->> (array_position(p_columns, 'status') - 1)), '') as status_text,
                                   nullif(btrim(r.cells ->> (array_position(p_columns, 'amount') - 1)), '') as amount,
                                   nullif(btrim(r.cells ->> (array_position(p_columns, 'currency') - 1)), '') as currency,
                                   nullif(btrim(r.cells ->> (array_position(p_columns, 'date') - 1)), '') as date_text
                              from jsonb_array_elements(p_rows) with ordinality as r(cells, n)
                            offset 0) e
                    offset 0) c
            offset 0) t
      left join lateral (
               select x.row_no
                 from affiliate.reconciliation_row x
                where x.merchant_id = p_merchant_id
                  and x.reconciliation_id = p_reconciliation_id
                  and x.order_id = t.order_id
               offset 0
           ) before on true
      left join lateral (
               select f
                 from affiliate.order_fact f
                where f.merchant_id = p_merchant_id
                  and f.livemode = p_livemode
                  and f.order_id = t.order_id
               offset 0
           ) o on true
      left join lateral (
               select bool_or(c.livemode = p_livemode) as waits, bool_or(c.livemode <> p_livemode) as other
                 from affiliate.conversion c
                where (o.f).order_no is null
                  and c.merchant_id = p_merchant_id
                  and c.order_id = t.order_id
               offset 0
           ) e on true;

    update pg_temp.reconciled r
       set minor = affiliate.minor_of(r.amount, k.decimals),
           problem = case when r.amount is not null and affiliate.minor_of(r.amount, k.decimals) is null
                          then 'amount: must have at most ' || k.decimals || ' decimals' end
      from affiliate.currency k
     where r.problem is null
       and k.currency = coalesce(r.currency, r.our_currency);
    update pg_temp.reconciled r
       set problem = 'currency: must be an ISO 4217 currency, like NPR'
     where r.problem is null
       and r.currency is not null
       and not exists (select from affiliate.currency k where k.currency = r.currency);
end
$$;

-- Adds the rows that compare_part() has left, and counts them. A row that can't be read is only counted, with its rule.
create function affiliate.reconcile_part(p_merchant_id bigint, p_import affiliate.import, p_first bigint, p_rows jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    matched bigint;
    differing bigint;
    refused bigint;
begin
    perform affiliate.compare_part(p_merchant_id, p_import.import_id, p_import.livemode, p_first,
        affiliate.reconciliation_columns(p_import.header), p_rows);

    insert into affiliate.reconciliation_row
          (merchant_id, reconciliation_id, row_no, class, their_status, our_status, their_minor, our_minor, their_at, our_at,
           their_currency, our_currency, our_outcome, hint, order_id)
    select p_merchant_id, p_import.import_id, r.line,
           affiliate.difference(r.status, r.our_status, r.minor, r.our_minor, coalesce(r.currency, r.our_currency), r.our_currency),
           r.status, r.our_status, r.minor, r.our_minor, r.at, r.our_at,
           case when r.minor is not null then coalesce(r.currency, r.our_currency) end, r.our_currency, r.our_outcome, r.hint, r.order_id
      from (select d.*,
                   case when (d.our).order_no is not null then affiliate.fact_status(d.our) end as our_status,
                   affiliate.fact_left(d.our) as our_minor, (d.our).reported_at as our_at, (d.our).outcome as our_outcome
              from pg_temp.reconciled d
             where d.problem is null
            offset 0) r
     order by r.line;

    perform affiliate.count_rows(p_merchant_id, p_import.import_id, p_first, p_first + jsonb_array_length(p_rows) - 1);
    perform affiliate.import_report(p_merchant_id, p_import.import_id, jsonb_agg(jsonb_build_object(
                'line', r.line + 1, 'column', split_part(r.problem, ': ', 1), 'value', r.order_id,
                'rule', substr(r.problem, strpos(r.problem, ': ') + 2)) order by r.line))
       from pg_temp.reconciled r
      where r.problem is not null
     having count(*) > 0;

    select count(*) filter (where r.problem is not null) into refused from pg_temp.reconciled r;
    select count(*) filter (where x.class = 1), count(*) filter (where x.class <> 1) into matched, differing
      from affiliate.reconciliation_row x
     where x.merchant_id = p_merchant_id
       and x.reconciliation_id = p_import.import_id
       and x.row_no between p_first and p_first + jsonb_array_length(p_rows) - 1;
    perform affiliate.import_count(p_merchant_id, p_import.import_id, 0, differing, matched, refused);
end
$$;

create function affiliate.reconciliation_columns(p_header text[])
returns text[]
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.file_columns(p_header, '{order_id}', '{status,amount,currency,date}')
$$;

-- Adds the rows from p_first to p_last to the counts.
create function affiliate.count_rows(p_merchant_id bigint, p_reconciliation_id bigint, p_first bigint, p_last bigint)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    insert into affiliate.reconciliation_count as c
          (merchant_id, reconciliation_id, class, currency, orders, their_minor, our_minor)
    select p_merchant_id, p_reconciliation_id, r.class, coalesce(r.our_currency, r.their_currency, ''), count(*),
           coalesce(sum(r.their_minor), 0), coalesce(sum(r.our_minor), 0)
      from affiliate.reconciliation_row r
     where r.merchant_id = p_merchant_id
       and r.reconciliation_id = p_reconciliation_id
       and r.row_no between p_first and p_last
     group by 3, 4
        on conflict (merchant_id, reconciliation_id, class, currency) do update
       set orders = c.orders + excluded.orders,
           their_minor = c.their_minor + excluded.their_minor,
           our_minor = c.our_minor + excluded.our_minor
$$;

-- At the end of the file: ours of that time that it has not, if they would be paid. Without a time given, it is that of the
-- file's dates, in whole UTC days; without dates, none is looked for.
create function affiliate.reconcile_rest(p_merchant_id bigint, p_reconciliation_id bigint)
returns affiliate.reconciliation
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set timezone = 'UTC'
set work_mem = '64MB'
set jit = off
as $$
declare
    c affiliate.reconciliation;
    last bigint;
    first_date timestamptz;
    last_date timestamptz;
begin
    select coalesce(max(r.row_no), 0), min(r.their_at), max(r.their_at) into last, first_date, last_date
      from affiliate.reconciliation_row r
     where r.merchant_id = p_merchant_id
       and r.reconciliation_id = p_reconciliation_id;
    update affiliate.reconciliation r
       set from_at = coalesce(r.from_at, date_trunc('day', first_date)),
           to_at = coalesce(r.to_at, date_trunc('day', last_date) + interval '1 day'),
           finished_at = now()
     where r.merchant_id = p_merchant_id
       and r.reconciliation_id = p_reconciliation_id
    returning * into c;

    insert into affiliate.reconciliation_row
          (merchant_id, reconciliation_id, row_no, class, our_status, our_minor, our_at, our_currency, our_outcome, order_id)
    select p_merchant_id, p_reconciliation_id, last + row_number() over (order by f.reported_at, f.order_no), 3,
           affiliate.fact_status(f), affiliate.fact_left(f), f.reported_at, coalesce(f.currency, f.posted_currency), f.outcome, f.order_id
      from affiliate.order_fact f
     where f.merchant_id = p_merchant_id
       and f.livemode = c.livemode
       and f.reported_at >= c.from_at
       and f.reported_at < c.to_at
       and f.has_report
       and f.outcome <> 'rejected'
       and affiliate.fact_status(f) < 3
       and not exists (
               select
                 from affiliate.reconciliation_row r
                where r.merchant_id = p_merchant_id
                  and r.reconciliation_id = p_reconciliation_id
                  and r.order_id = f.order_id
           );
    perform affiliate.count_rows(p_merchant_id, p_reconciliation_id, last + 1, 9223372036854775807);
    return c;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Fixing
-- ---------------------------------------------------------------------------------------------------------------

-- The rows of a fix, into pg_temp.order_said: those named, or all of a class that were not tried yet, up to p_max.
create function affiliate.choose_rows(p_merchant_id bigint, p_reconciliation_id bigint, p_rows bigint[], p_class smallint, p_max integer)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    insert into pg_temp.order_said (line, order_id, again)
    select r.row_no, r.order_id, false
      from affiliate.reconciliation_row r
     where r.merchant_id = p_merchant_id
       and r.reconciliation_id = p_reconciliation_id
       and (r.row_no = any (p_rows)
            and r.fix_verdict is distinct from 'applied'
            or p_rows is null
            and r.class = p_class
            and r.fix_verdict is null
            and affiliate.fix_of(r.class, r.their_status, r.our_status, r.their_minor, r.our_minor, r.their_currency, r.our_currency)
                is not null)
     order by r.row_no
     limit p_max;
end
$$;

-- Says of each order in pg_temp.order_said what brings it to what the file has, as it stands now. They are locked.
create function affiliate.say_fixes(p_merchant_id bigint, p_reconciliation affiliate.reconciliation, p_reason text)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
begin
    with known as materialized (
        select s.line, r.class, r.their_status, r.their_minor, coalesce(r.their_currency, k.currency) as their_currency,
               affiliate.row_sentence(r) as sentence, (o.fact).refunded_minor, affiliate.fact_status(o.fact) as our_status,
               affiliate.fact_left(o.fact) as our_minor, k.currency as our_currency, k.decimals
          from pg_temp.order_said s
          join affiliate.reconciliation_row r
            on r.merchant_id = p_merchant_id and r.reconciliation_id = p_reconciliation.reconciliation_id and r.row_no = s.line
         cross join lateral (
                   select f as fact
                     from affiliate.order_fact f
                    where f.merchant_id = p_merchant_id
                      and f.livemode = p_reconciliation.livemode
                      and f.order_id = s.order_id
                   offset 0
               ) o
          left join affiliate.currency k on k.currency = coalesce((o.fact).currency, (o.fact).posted_currency)
        offset 0
    ),
    meant as (
        select n.*,
               affiliate.fix_of(n.differs, n.their_status, n.our_status, n.their_minor, n.our_minor, n.their_currency, n.our_currency)
                   as fix
          from (select k.*,
                       -- What the file has not, it has not, whatever was said of it meanwhile.
                       case when k.class = 3 and k.our_status < 3 then 3
                            when k.class = 3 then 1
                            else affiliate.difference(k.their_status, k.our_status, k.their_minor, k.our_minor,
                                                      k.their_currency, k.our_currency)
                       end::smallint as differs
                  from known k
                offset 0) n
        offset 0
    )
    update pg_temp.order_said s
       set status = case m.fix
                        when 'approve' then 2
                        when 'cancel' then 3
                        when 'return' then 4
                        when 'refund' then 5
                        when 'part' then 5
                        when 'amount' then m.our_status
                    end,
           amount = case
                        when m.fix = 'part' then affiliate.amount_text(m.our_minor - m.their_minor, m.decimals)
                        when m.fix = 'amount' or m.fix = 'approve' and m.their_minor <> m.our_minor
                            then affiliate.amount_text(m.their_minor + m.refunded_minor, m.decimals)
                    end,
           currency = m.their_currency,
           refund_id = case when m.fix = 'part'
                            then format('reconciliation-%s-%s', p_reconciliation.reconciliation_id, m.line) end,
           reason = p_reason,
           verdict = case when m.differs = 1 then 'unchanged' when m.fix is null then 'refused' end,
           detail = case when m.differs <> 1 and m.fix is null then m.sentence end
      from meant m
     where m.line = s.line;

    update pg_temp.order_said s
       set verdict = 'refused',
           detail = affiliate.row_sentence(r)
      from affiliate.reconciliation_row r
     where s.verdict is null
       and s.status is null
       and r.merchant_id = p_merchant_id
       and r.reconciliation_id = p_reconciliation.reconciliation_id
       and r.row_no = s.line;
end
$$;

-- Fixes rows, each once; what it says is judged and applied like everything that is said by hand.
create function affiliate.reconciliation_apply(
    p_merchant_id bigint, p_actor affiliate.actor, p_reconciliation_id bigint, p_rows bigint[], p_class smallint, p_reason text,
    p_max integer)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.reconciliation;
    batch bigint;
    result jsonb;
begin
    select * into c
      from affiliate.reconciliation r
     where r.merchant_id = p_merchant_id
       and r.reconciliation_id = p_reconciliation_id
       and r.livemode = p_actor.livemode
       for update;
    if c.finished_at is null then
        perform affiliate.problem(409, 'unfinished', 'The file has not been read to its end yet.');
    end if;

    perform affiliate.said_tables();
    perform affiliate.choose_rows(p_merchant_id, p_reconciliation_id, p_rows, p_class, p_max);
    perform affiliate.lock_said(p_merchant_id, c.livemode);
    perform affiliate.say_fixes(p_merchant_id, c, p_reason);
    perform affiliate.judge_said(p_merchant_id, c.livemode, true);
    batch := affiliate.apply_said(p_merchant_id, c.livemode, p_actor, 5::smallint, null, p_reconciliation_id);

    update affiliate.reconciliation_row r
       set fix_verdict = s.verdict,
           fix_batch = case when s.verdict = 'applied' then batch end,
           fix_detail = s.detail,
           fixed_at = now()
      from pg_temp.order_said s
     where r.merchant_id = p_merchant_id
       and r.reconciliation_id = p_reconciliation_id
       and r.row_no = s.line;

    select jsonb_build_object(
               'reconciliation', p_reconciliation_id,
               'applied', count(*) filter (where s.verdict = 'applied'),
               'unchanged', count(*) filter (where s.verdict = 'unchanged'),
               'refused', count(*) filter (where s.verdict = 'refused'))
      into result
      from pg_temp.order_said s;
    perform affiliate.record(p_actor, 'reconciliation.fix', 'reconciliation', p_reconciliation_id::text, null,
        result || jsonb_build_object('batch', batch), p_reason);
    return result || jsonb_build_object(
        'rows', (select coalesce(jsonb_agg(jsonb_build_object(
                            'row', s.line, 'order', s.order_id, 'verdict', s.verdict, 'detail', s.detail) order by s.line), '[]')
                   from pg_temp.order_said s));
end
$$;

-- The reason of a request, as it is kept: a code, or a code, a colon and a text.
create function affiliate.reason_field(p_request jsonb, p_default text)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted text := coalesce(affiliate.text_field(p_request, 'reason', 64), p_default);
    note text := affiliate.text_field(p_request, 'note', 200);
    r affiliate.order_reason;
begin
    select * into r from affiliate.order_reason x where x.code = wanted;
    if not found then
        perform affiliate.refuse('reason', 'must be one of '
            || (select string_agg(x.code, ', ' order by x.place) from affiliate.order_reason x));
    end if;
    if r.needs_text and note is null then
        perform affiliate.refuse('note', 'is required with this reason');
    end if;
    return wanted || coalesce(': ' || note, '');
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Looking
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.class_field(p_request jsonb)
returns smallint
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select array_position(affiliate.class_names(), affiliate.form_field(
               p_request, 'class', 20, '^(' || array_to_string(affiliate.class_names(), '|') || ')$',
               'must be one of ' || array_to_string(affiliate.class_names(), ', ')))::smallint
$$;

create function affiliate.reconciliation_json(c affiliate.reconciliation)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'reconciliation', c.reconciliation_id,
        'livemode', c.livemode,
        'state', case when c.finished_at is null then 'open' else 'done' end,
        'from', c.from_at,
        'to', c.to_at,
        'created_at', c.created_at,
        'finished_at', c.finished_at,
        'lines', i.next_line - 1,
        'refused', i.refused,
        'problems', affiliate.import_detail(i) -> 'problems',
        'classes', (select coalesce(jsonb_agg(jsonb_build_object(
                               'class', (affiliate.class_names())[n.class],
                               'currency', nullif(n.currency, ''),
                               'orders', n.orders,
                               'theirs', affiliate.amount_text(n.their_minor, k.decimals),
                               'ours', affiliate.amount_text(n.our_minor, k.decimals))
                               order by n.class, n.currency), '[]')
                      from affiliate.reconciliation_count n
                      left join affiliate.currency k using (currency)
                     where n.merchant_id = c.merchant_id
                       and n.reconciliation_id = c.reconciliation_id))
      from affiliate.import i
     where i.merchant_id = c.merchant_id
       and i.import_id = c.reconciliation_id
$$;

create function affiliate.reconciliation_row_json(r affiliate.reconciliation_row)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'row', r.row_no,
        'line', case when r.class <> 3 then r.row_no + 1 end,
        'order', r.order_id,
        'class', (affiliate.class_names())[r.class],
        'sentence', affiliate.row_sentence(r),
        'their_status', affiliate.status_name(r.their_status),
        'our_status', affiliate.status_name(r.our_status),
        'their_amount', affiliate.amount_text(r.their_minor, t.decimals),
        'our_amount', affiliate.amount_text(r.our_minor, o.decimals),
        'their_currency', r.their_currency,
        'our_currency', r.our_currency,
        'their_date', r.their_at,
        'our_date', r.our_at,
        'our_outcome', r.our_outcome,
        'fix', affiliate.fix_of(r.class, r.their_status, r.our_status, r.their_minor, r.our_minor, r.their_currency, r.our_currency),
        'fix_verdict', r.fix_verdict,
        'fix_detail', r.fix_detail,
        'fixed_at', r.fixed_at)
      from (values (1)) as one(row)
      left join affiliate.currency t on t.currency = r.their_currency
      left join affiliate.currency o on o.currency = r.our_currency
$$;

-- The lowest UUIDv7 of a time.
create function affiliate.time_bound(p_at timestamptz)
returns uuid
language sql immutable parallel safe
return rpad(lpad(to_hex((extract(epoch from p_at) * 1000)::bigint), 12, '0'), 32, '0')::uuid;

-- What there is of an order that is missing here: events that wait or were refused, and the latest clicks of the day before it.
create function affiliate.missing_offers(p_merchant_id bigint, p_livemode boolean, p_order_id text, p_at timestamptz)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'events', affiliate.order_timeline(p_merchant_id, p_livemode, p_order_id),
        'in_other_mode', exists (select from affiliate.conversion c
                                  where c.merchant_id = p_merchant_id
                                    and c.livemode <> p_livemode
                                    and c.order_id = p_order_id),
        'refused', (select coalesce(jsonb_agg(jsonb_build_object(
                               'at', d.at, 'reason', d.reason, 'sentence', affiliate.reason_sentence(d.reason), 'detail', d.detail)
                               order by d.dead_letter_id), '[]')
                      from (select x.*, convert_from(x.payload, 'UTF8')::jsonb as told
                              from affiliate.dead_letter x
                             where x.replayed_at is null
                               and x.reason in ('invalid_record', 'idempotency_conflict')
                             order by x.dead_letter_id desc
                             limit 10000) d
                     where (d.told ->> 'merchant_id')::bigint = p_merchant_id
                       and (d.told ->> 'livemode')::boolean = p_livemode
                       and d.told ->> 'order_id' = p_order_id),
        'clicks', (select coalesce(jsonb_agg(jsonb_build_object(
                               'click', k.id, 'at', affiliate.click_time(k.id), 'affiliate', k.affiliate_id,
                               'affiliate_name', a.name, 'campaign', k.campaign_id) order by k.id desc), '[]')
                     from (select c.*
                             from affiliate.click c
                            where c.merchant_id = p_merchant_id
                              and c.livemode = p_livemode
                              and c.verdict in (0, 1, 2)
                              and c.id >= affiliate.time_bound(p_at - interval '1 day')
                              and c.id < affiliate.time_bound(case when p_at = date_trunc('day', p_at, 'UTC')
                                                                   then p_at + interval '1 day' else p_at end)
                            order by c.id desc
                            limit 20) k
                     left join affiliate.affiliate a using (affiliate_id)))
$$;

create function affiliate.find_reconciliation(p_actor affiliate.actor, p_request jsonb)
returns affiliate.reconciliation
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.reconciliation;
begin
    select * into c
      from affiliate.reconciliation r
     where r.merchant_id = p_actor.merchant_id
       and r.reconciliation_id = affiliate.id_field(p_request, 'reconciliation')
       and r.livemode = p_actor.livemode;
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such reconciliation in this mode.');
    end if;
    return c;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Operations
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.reconciliation_begin(p_merchant_id bigint, p_actor affiliate.actor, p_request jsonb)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    from_at timestamptz := affiliate.time_field(p_request, 'from');
    to_at timestamptz := affiliate.time_field(p_request, 'to');
    i affiliate.import;
begin
    perform affiliate.reconciliation_columns(affiliate.header_field(p_request));
    if num_nonnulls(from_at, to_at) = 1 or from_at >= to_at then
        perform affiliate.refuse('to', 'must be after from; both are given or neither');
    end if;
    i := affiliate.import_begin(p_merchant_id, p_actor, 'reconciliation', p_request,
        jsonb_build_object('from', from_at, 'to', to_at));
    insert into affiliate.reconciliation (merchant_id, reconciliation_id, livemode, from_at, to_at)
    values (p_merchant_id, i.import_id, i.livemode, from_at, to_at)
        on conflict do nothing;
    return i.import_id;
end
$$;

create function affiliate.reconciliation_rows(
    p_merchant_id bigint, p_actor affiliate.actor, p_import_id bigint, p_first bigint, p_rows jsonb)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    i affiliate.import := affiliate.find_import(p_merchant_id, p_actor.livemode, 'reconciliation', p_import_id);
    rest jsonb := affiliate.import_rest(p_merchant_id, p_import_id, 'reconciliation', p_first, p_rows);
begin
    if rest is not null then
        perform affiliate.reconcile_part(
            p_merchant_id, i, p_first + jsonb_array_length(p_rows) - jsonb_array_length(rest), rest);
    end if;
    return (affiliate.find_import(p_merchant_id, p_actor.livemode, 'reconciliation', p_import_id)).next_line;
end
$$;

create function affiliate.reconciliation_end(p_merchant_id bigint, p_actor affiliate.actor, p_import_id bigint, p_lines bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    i affiliate.import := affiliate.find_import(p_merchant_id, p_actor.livemode, 'reconciliation', p_import_id);
begin
    perform affiliate.check_whole(p_merchant_id, p_import_id, 'reconciliation', p_lines);
    perform affiliate.import_end(p_merchant_id, p_import_id);
    if i.state = 'open' then
        perform affiliate.record(p_actor, 'reconciliation.create', 'reconciliation', p_import_id::text, null,
            affiliate.reconciliation_json(affiliate.reconcile_rest(p_merchant_id, p_import_id)));
    end if;
end
$$;

select affiliate.fence('affiliate.reconciliation');
select affiliate.fence('affiliate.reconciliation_row');
select affiliate.fence('affiliate.reconciliation_count');
select affiliate.enter_as_tenant(
    'affiliate.reconciliation_begin(bigint, affiliate.actor, jsonb)',
    'affiliate.reconciliation_rows(bigint, affiliate.actor, bigint, bigint, jsonb)',
    'affiliate.reconciliation_end(bigint, affiliate.actor, bigint, bigint)',
    'affiliate.reconciliation_apply(bigint, affiliate.actor, bigint, bigint[], smallint, text, integer)',
    'affiliate.missing_offers(bigint, boolean, text, timestamptz)');

select affiliate.operation('reconciliation_create', actors => '{merchant,key,admin}', role => 'manager', creates => true, by_mode => true);

create function affiliate.api_reconciliation_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_header}', '{_bytes,from,to}');
    return next jsonb_build_object('_upload', affiliate.reconciliation_begin(p_actor.merchant_id, p_actor, p_request)::text);
end
$$;

select affiliate.operation('reconciliation_create_rows', actors => '{merchant,key,admin}', role => 'manager', mutates => true, by_mode => true);

create function affiliate.api_reconciliation_create_rows(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_upload,_line,_rows}', '{from,to}');
    return next jsonb_build_object('_line', affiliate.reconciliation_rows(
        p_actor.merchant_id, p_actor, affiliate.id_field(p_request, '_upload'), affiliate.id_field(p_request, '_line'),
        p_request -> '_rows'));
end
$$;

select affiliate.operation('reconciliation_create_done', actors => '{merchant,key,admin}', role => 'manager', mutates => true, by_mode => true);

create function affiliate.api_reconciliation_create_done(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    upload bigint := affiliate.id_field(p_request, '_upload');
begin
    perform affiliate.check_request(p_request, '{_upload,_lines}', '{from,to}');
    perform affiliate.reconciliation_end(p_actor.merchant_id, p_actor, upload, (p_request ->> '_lines')::bigint);
    perform affiliate.answer(jsonb_build_object('status', 201, 'location',
        format('/api/v1/merchants/%s/reconciliations/%s', p_actor.merchant_id, upload)));
    return next affiliate.reconciliation_json(affiliate.find_reconciliation(p_actor, jsonb_build_object('reconciliation', upload)));
end
$$;

select affiliate.operation('reconciliation_list', actors => '{merchant,key,admin}');

create function affiliate.api_reconciliation_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query
    select affiliate.page(p_actor, p_request,
        format('select r, r.reconciliation_id as reconciliation, r.created_at from affiliate.reconciliation r
                 where r.merchant_id = %s and r.livemode = %L', p_actor.merchant_id, p_actor.livemode),
        'affiliate.reconciliation_json(x.r)', '{-created_at timestamptz}', 'reconciliation bigint');
end
$$;

select affiliate.operation('reconciliation_show', actors => '{merchant,key,admin}');

create function affiliate.api_reconciliation_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{reconciliation}');
    return next affiliate.reconciliation_json(affiliate.find_reconciliation(p_actor, p_request));
end
$$;

select affiliate.operation('reconciliation_row_list', actors => '{merchant,key,admin}');

create function affiliate.api_reconciliation_row_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.reconciliation;
begin
    perform affiliate.check_page(p_request, '{reconciliation,class,order}');
    c := affiliate.find_reconciliation(p_actor, p_request);
    return query
    select affiliate.page(p_actor, p_request,
        concat_ws(' and ',
            format('select r, r.row_no as "row" from affiliate.reconciliation_row r where r.merchant_id = %s and r.reconciliation_id = %s',
                   c.merchant_id, c.reconciliation_id),
            'r.class = ' || affiliate.class_field(p_request),
            'r.order_id = ' || quote_literal(affiliate.text_field(p_request, 'order', 128))),
        'affiliate.reconciliation_row_json(x.r)', '{row bigint}', 'row bigint');
end
$$;

select affiliate.operation('reconciliation_row_show', actors => '{merchant,key,admin}');

create function affiliate.api_reconciliation_row_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.reconciliation;
    r affiliate.reconciliation_row;
begin
    perform affiliate.check_request(p_request, '{reconciliation,row}');
    c := affiliate.find_reconciliation(p_actor, p_request);
    select * into r
      from affiliate.reconciliation_row x
     where x.merchant_id = c.merchant_id
       and x.reconciliation_id = c.reconciliation_id
       and x.row_no = affiliate.id_field(p_request, 'row');
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such row.');
    end if;
    return next affiliate.reconciliation_row_json(r) || case when r.class = 2 then
        jsonb_build_object('offers', affiliate.missing_offers(r.merchant_id, c.livemode, r.order_id, r.their_at)) else '{}' end;
end
$$;

-- Fixes the rows that are named, or the next of a class; of a class it may have to be called again, until nothing is left.
select affiliate.operation('reconciliation_fix', actors => '{merchant,key,admin}', role => 'manager', creates => true, by_mode => true);

create function affiliate.api_reconciliation_fix(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    most constant integer := 2000;
    c affiliate.reconciliation;
    rows bigint[];
    class smallint;
    result jsonb;
begin
    perform affiliate.check_request(p_request, '{reconciliation}', '{rows,class,reason,note}');
    c := affiliate.find_reconciliation(p_actor, p_request);
    class := affiliate.class_field(p_request);
    if p_request ? 'rows' then
        if jsonb_typeof(p_request -> 'rows') <> 'array' or jsonb_array_length(p_request -> 'rows') not between 1 and most
           or jsonb_path_exists(p_request -> 'rows', '$[*] ? (@.type() != "number" || @ < 1 || @ > 1000000000000 || @ != @.floor())') then
            perform affiliate.refuse('rows', format('must be 1 to %s numbers of rows', most));
        end if;
        rows := (select array_agg(n::bigint) from jsonb_array_elements_text(p_request -> 'rows') n);
    end if;
    if num_nonnulls(rows, class) <> 1 then
        perform affiliate.refuse('rows', 'or class is required, not both');
    end if;
    result := affiliate.reconciliation_apply(p_actor.merchant_id, p_actor, c.reconciliation_id, rows, class,
        affiliate.reason_field(p_request, 'order_update'), most);
    return next result || jsonb_build_object('more', jsonb_array_length(result -> 'rows') = most);
end
$$;

select affiliate.seal_operations();
