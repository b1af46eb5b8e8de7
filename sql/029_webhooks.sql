-- Webhooks to merchants, postbacks to affiliates.
--
-- What happens is written down as an event in the transaction in which it happens, with a delivery for each endpoint that has
-- asked for its type; where none has, nothing is written. So an event is told if, and only if, it came true. The role webhooks
-- takes deliveries that are due and says what became of each; whoever dies between leaves his to be taken again. So an event
-- arrives at least once, always under the same id.
--
-- An endpoint is a merchant's webhook (a signed POST, by Standard Webhooks) or an affiliate's postback (a GET of a template).

create table affiliate.endpoint (
    endpoint_id     bigint generated always as identity primary key,
    kind            text not null check (kind in ('webhook', 'postback')),
    merchant_id     bigint references affiliate.merchant,
    affiliate_id    bigint references affiliate.affiliate,
    campaign_id     bigint,
    livemode        boolean not null,
    url             text not null,
    types           text[] not null check (cardinality(types) > 0),
    active          boolean not null default true,
    secret          text,
    previous_secret text,
    previous_until  timestamptz,
    failing_since   timestamptz,
    disabled_at     timestamptz,
    disabled_reason text check (disabled_reason in ('gone', 'failing')),
    removed_at      timestamptz,
    version         bigint not null default 1,
    created_at      timestamptz not null default now(),
    check ((kind = 'webhook') = (merchant_id is not null)),
    check ((kind = 'postback') = (affiliate_id is not null)),
    check ((kind = 'webhook') = (secret is not null)),
    check (campaign_id is null or kind = 'postback'),
    check (livemode is false or url ~* '^https://'),
    check ((disabled_at is null) = (disabled_reason is null)),
    check (disabled_at is null or not active),
    check (removed_at is null or not active)
);

create index endpoint_merchant on affiliate.endpoint (merchant_id) where removed_at is null;
create index endpoint_affiliate on affiliate.endpoint (affiliate_id) where removed_at is null;

comment on table affiliate.endpoint is 'Where events are told: merchants'' webhooks and affiliates'' postbacks';
comment on column affiliate.endpoint.url is 'Of a postback, with macros in braces';
comment on column affiliate.endpoint.secret is 'Sealed by who shows it, and by who signs with it';
comment on column affiliate.endpoint.previous_secret is 'The one before, which signs beside it until previous_until';
comment on column affiliate.endpoint.failing_since is 'When it first failed since it last worked';
comment on column affiliate.endpoint.disabled_reason is 'Why we stopped: gone (it answered 410), failing (for days)';

create table affiliate.event (
    event_id        bigint generated always as identity primary key,
    public_id       uuid not null default gen_random_uuid(),
    type            text not null,
    at              timestamptz not null default now(),
    merchant_id     bigint,
    affiliate_id    bigint,
    livemode        boolean not null,
    subject         text not null,
    data            jsonb not null
);

create index event_at on affiliate.event (at);

comment on table affiliate.event is 'What happened and somebody asked to be told. Never changed; deleted when it is long over';
comment on column affiliate.event.public_id is 'Names it to receivers, however often it is told';

create trigger immutable before update on affiliate.event
    for each row execute function affiliate.refuse_change();

-- Without a foreign key to endpoint, which are never deleted: money waits for nobody who changes one.
create table affiliate.delivery (
    delivery_id     bigint generated always as identity primary key,
    endpoint_id     bigint not null,
    event_id        bigint not null references affiliate.event on delete cascade,
    state           text not null default 'waiting' check (state in ('waiting', 'delivered', 'failed', 'dropped')),
    tries           integer not null default 0,
    total_tries     integer not null default 0,
    next_at         timestamptz not null default now(),
    taken           boolean not null default false,
    status          integer,
    latency_ms      integer,
    error           text,
    created_at      timestamptz not null default now(),
    delivered_at    timestamptz
) with (fillfactor = 70);

create index delivery_due on affiliate.delivery (endpoint_id, next_at) where state = 'waiting';
create index delivery_taken on affiliate.delivery (endpoint_id) where state = 'waiting' and taken;
create index delivery_endpoint on affiliate.delivery (endpoint_id, created_at, delivery_id);
create index delivery_event on affiliate.delivery (event_id);

comment on table affiliate.delivery is 'An event that is to be told, or was told, to an endpoint';
comment on column affiliate.delivery.tries is 'Since it was last sent for; total_tries counts all';
comment on column affiliate.delivery.next_at is 'When it is tried, or tried again if who has taken it says nothing';
comment on column affiliate.delivery.state is 'failed: every try did; dropped: its endpoint was disabled or removed';

create table affiliate.delivery_attempt (
    delivery_id     bigint not null references affiliate.delivery on delete cascade,
    attempt         integer not null,
    at              timestamptz not null default now(),
    status          integer,
    latency_ms      integer not null,
    error           text,
    answer          text,
    primary key (delivery_id, attempt)
);

comment on table affiliate.delivery_attempt is 'What each try of a delivery came to; it goes with its event';
comment on column affiliate.delivery_attempt.answer is 'How the body began, 1 KiB of it';

create function affiliate.event_types(p_kind text)
returns text[]
language sql immutable parallel safe
return '{order.pending,order.approved,order.payable,order.rejected,order.cancelled,order.refunded,order.review}'::text[]
    || case when p_kind = 'webhook' then '{bill.issued,bill.paid}'::text[]
            else '{payout.requested,payout.approved,payout.paid,payout.failed,payout.rejected,payout.unknown}'::text[] end;

create function affiliate.event_name(v affiliate.event)
returns text
language sql immutable parallel safe
return 'evt_' || replace(v.public_id::text, '-', '');

-- ---------------------------------------------------------------------------------------------------------------
-- What happens
-- ---------------------------------------------------------------------------------------------------------------

-- An event that concerns a merchant, an affiliate or both. For one subject at a time; orders have emit_orders().
create function affiliate.emit(
    p_type text, p_merchant_id bigint, p_affiliate_id bigint, p_livemode boolean, p_subject text, p_data jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    whom bigint[] := array(select e.endpoint_id
                             from affiliate.endpoint e
                            where e.active
                              and e.livemode = p_livemode
                              and p_type = any (e.types)
                              and (e.merchant_id = p_merchant_id
                                   or e.affiliate_id = p_affiliate_id
                                      and (e.campaign_id is null or e.campaign_id = (p_data ->> 'campaign')::bigint)));
    made bigint;
begin
    if whom = '{}' then
        return;
    end if;
    insert into affiliate.event (type, merchant_id, affiliate_id, livemode, subject, data)
    values (p_type, p_merchant_id, p_affiliate_id, p_livemode, p_subject, p_data)
    returning event_id into made;
    insert into affiliate.delivery (endpoint_id, event_id)
    select w, made from unnest(whom) w;
    notify affiliate_webhook;
end
$$;

comment on function affiliate.emit is 'Tells whoever asked for it, once this transaction has committed';

-- Whether anybody asked to be told anything: one look at a small table.
create function affiliate.has_endpoints()
returns boolean
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return exists (select from affiliate.endpoint e where e.active);
end
$$;

-- The orders in pg_temp.move whose state is another than before, which is in order_known.
create function affiliate.emit_orders()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
as $$
begin
    if not affiliate.has_endpoints() then
        return;
    end if;
    perform affiliate.work_clear('order_told');
    insert into pg_temp.order_told
    select m.merchant_id, m.livemode, m.order_no, m.state
      from pg_temp.move m
      left join pg_temp.order_known k on k.counted and k.merchant_id = m.merchant_id and k.order_no = m.order_no
     where m.outcome is not null
       and k.state is distinct from m.state;
    perform affiliate.emit_told();
end
$$;

-- What is told of an order; its state may be newer than its row (a release does not touch that).
create function affiliate.order_event(o affiliate.order_fact, p_state text)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return (
        select jsonb_build_object(
                   'order', o.order_id, 'order_no', o.order_no, 'merchant', o.merchant_id, 'livemode', o.livemode,
                   'state', p_state, 'reason', o.problem,
                   'affiliate', coalesce(o.posted_affiliate_id, o.affiliate_id), 'campaign', o.campaign_id,
                   'click', o.click_id,
                   'sub_ids', coalesce((select to_jsonb(c.sub_ids) from affiliate.click c
                                         where c.id = o.click_id and c.merchant_id = o.merchant_id), '[]'),
                   'amount', affiliate.amount_text(o.amount_minor, k.decimals),
                   'refunded', affiliate.amount_text(o.refunded_minor, k.decimals),
                   'currency', k.currency,
                   'commission', affiliate.amount_text(o.posted_commission_minor, c.decimals),
                   'fee', affiliate.amount_text(o.posted_fee_minor, c.decimals),
                   'commission_currency', c.currency,
                   'reported_at', o.reported_at)
          from (values (1)) as one(row)
          left join affiliate.currency k on k.currency = coalesce(o.currency, o.posted_currency)
          left join affiliate.currency c on c.currency = o.posted_currency);
end
$$;

-- Tells pg_temp.order_told.
create function affiliate.emit_told()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_mergejoin = off
set jit = off
as $$
begin
    with wanted as (
        select t.state, o.fact, o.merchant_id, o.livemode, o.order_no, coalesce(o.posted_affiliate_id, o.affiliate_id) as affiliate_id,
               o.campaign_id,
               array(select e.endpoint_id
                       from affiliate.endpoint e
                      where e.active and e.removed_at is null
                        and e.livemode = o.livemode
                        and 'order.' || t.state = any (e.types)
                        and e.merchant_id = o.merchant_id
                      union all
                     select e.endpoint_id
                       from affiliate.endpoint e
                      where e.active and e.removed_at is null
                        and e.livemode = o.livemode
                        and 'order.' || t.state = any (e.types)
                        and e.affiliate_id = coalesce(o.posted_affiliate_id, o.affiliate_id)
                        and (e.campaign_id is null or e.campaign_id = o.campaign_id)) as whom
          from pg_temp.order_told t
         cross join lateral (
                   select f as fact, f.*
                     from affiliate.order_fact f
                    where f.merchant_id = t.merchant_id
                      and f.order_no = t.order_no
                   offset 0
               ) o
    ),
    numbered as materialized (
        select w.*, nextval('affiliate.event_event_id_seq') as event_id
          from wanted w
         where w.whom <> '{}'
    ),
    made as (
        insert into affiliate.event (event_id, type, merchant_id, affiliate_id, livemode, subject, data)
        overriding system value
        select n.event_id, 'order.' || n.state, n.merchant_id, n.affiliate_id, n.livemode, n.order_no::text,
               affiliate.order_event(n.fact, n.state)
          from numbered n
    )
    insert into affiliate.delivery (endpoint_id, event_id)
    select e, n.event_id
      from numbered n
     cross join lateral unnest(n.whom) e;

    if found then
        notify affiliate_webhook;
    end if;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- The role webhooks
-- ---------------------------------------------------------------------------------------------------------------

-- How many deliveries one endpoint may have under way: a slow one has no more than its share.
create function affiliate.deliveries_at_once()
returns integer
language sql immutable parallel safe
return 8;

-- The pause after so many tries; null after the last. The first try is at once.
create function affiliate.delivery_pause(p_tries integer)
returns interval
language sql immutable parallel safe
return ('{5 s,5 min,30 min,2 h,5 h,10 h,14 h,20 h,24 h}'::interval[])[p_tries];

-- The values of a postback's macros. Of no event, their names alone.
create function affiliate.postback_values(v affiliate.event)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
               'event_id', affiliate.event_name(v),
               'type', v.type,
               'status', split_part(v.type, '.', 2),
               'livemode', v.livemode::text,
               'timestamp', floor(extract(epoch from v.at))::bigint::text,
               'click_id', v.data ->> 'click',
               'sub1', v.data -> 'sub_ids' ->> 0,
               'sub2', v.data -> 'sub_ids' ->> 1,
               'sub3', v.data -> 'sub_ids' ->> 2,
               'sub4', v.data -> 'sub_ids' ->> 3,
               'sub5', v.data -> 'sub_ids' ->> 4,
               'campaign', v.data ->> 'campaign',
               'order', v.data ->> 'order_no',
               'amount', v.data ->> 'amount',
               'amount_currency', v.data ->> 'currency',
               'commission', coalesce(v.data ->> 'commission', v.data ->> 'net'),
               'currency', coalesce(v.data ->> 'commission_currency', v.data ->> 'currency'),
               'payout', v.data ->> 'payout')
$$;

create function affiliate.event_body(v affiliate.event)
returns text
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select format('{"type":%s,"timestamp":"%s","data":%s}', to_json(v.type),
                  to_char(v.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), v.data)
$$;

-- Deliveries that are due, the caller's own until `taken`. Of each endpoint only as many as may be under way at once; the
-- endpoints are found by leaps over the index, however many deliveries wait for one of them.
create function affiliate.webhook_take(p_max integer, p_lease interval)
returns table (delivery_id bigint, taken timestamptz, kind text, livemode boolean, url text, owner bigint, secret text,
               previous_secret text, event text, body text, macros jsonb)
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
declare
    endpoints bigint[];
    due bigint[];
begin
    with recursive waiting(endpoint_id) as (
        (select d.endpoint_id from affiliate.delivery d where d.state = 'waiting' order by d.endpoint_id limit 1)
        union all
        select (select d.endpoint_id from affiliate.delivery d
                 where d.state = 'waiting' and d.endpoint_id > w.endpoint_id
                 order by d.endpoint_id limit 1)
          from waiting w
         where w.endpoint_id is not null
    ),
    mine as (
        select e.endpoint_id
          from affiliate.endpoint e
         where e.endpoint_id in (select w.endpoint_id from waiting w)
           and e.active
           for no key update skip locked
    )
    select array_agg(m.endpoint_id) into endpoints from mine m;

    due := array(
        select c.delivery_id
          from unnest(endpoints) m(endpoint_id)
         cross join lateral (
                   select d.delivery_id, d.next_at
                     from affiliate.delivery d
                    where d.endpoint_id = m.endpoint_id
                      and d.state = 'waiting'
                      and d.next_at <= now()
                    order by d.next_at
                    limit greatest(affiliate.deliveries_at_once()
                                   - (select count(*)
                                        from affiliate.delivery t
                                       where t.endpoint_id = m.endpoint_id
                                         and t.state = 'waiting'
                                         and t.taken
                                         and t.next_at > now()), 0)
                      for update skip locked
               ) c
         order by c.next_at
         limit p_max);

    return query
        with mine as (
            update affiliate.delivery d
               set next_at = now() + p_lease, taken = true
             where d.delivery_id = any (due)
            returning d.*
        )
        select d.delivery_id, d.next_at, e.kind, e.livemode, e.url, coalesce(e.merchant_id, e.affiliate_id), e.secret,
               case when e.previous_until > now() then e.previous_secret end,
               affiliate.event_name(v), case e.kind when 'webhook' then affiliate.event_body(v) end,
               case e.kind when 'postback' then affiliate.postback_values(v) end
          from mine d
          join affiliate.endpoint e using (endpoint_id)
          join affiliate.event v using (event_id);
end
$$;

comment on function affiliate.webhook_take is 'For the role webhooks: deliveries that are due';

-- Stops an endpoint and what waits for it, and tells whose it is.
create function affiliate.disable_endpoint(p_endpoint_id bigint, p_reason text)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint;
begin
    update affiliate.endpoint x
       set active = false, disabled_at = now(), disabled_reason = p_reason, version = x.version + 1
     where x.endpoint_id = p_endpoint_id
       and x.active
    returning * into e;
    if not found then
        return;
    end if;
    update affiliate.delivery d set state = 'dropped', taken = false where d.endpoint_id = p_endpoint_id and d.state = 'waiting';
    perform affiliate.record(affiliate.system_actor(e.merchant_id, e.affiliate_id), e.kind || '.disable', e.kind, p_endpoint_id::text,
                             '{"active": true}', '{"active": false}', p_reason);
    if e.kind = 'webhook' then
        perform affiliate.notify_owners(e.merchant_id, 'webhook_disabled_' || p_reason, jsonb_build_object('url', e.url));
    else
        perform affiliate.notify(a.user_id, 'webhook_disabled_' || p_reason, jsonb_build_object('url', e.url))
           from affiliate.affiliate a
          where a.affiliate_id = e.affiliate_id
            and a.user_id is not null;
    end if;
end
$$;

-- What became of deliveries: [{delivery, taken, ok, gone, status, latency_ms, retry_after, error, answer}]. Returns how many of
-- them are over without having arrived. An endpoint that fails for longer than p_patience is disabled. Who comes too late to say that one failed does not: somebody else has it.
create function affiliate.webhook_done(p_results jsonb, p_patience interval default '5 days')
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    whom bigint[];
    noted bigint[];
    lost bigint;
    stopped record;
begin
    -- Endpoints first, as whoever takes, stops or removes one does.
    whom := array(select e.endpoint_id
                    from affiliate.endpoint e
                   where e.endpoint_id = any (array(select d.endpoint_id
                                                      from jsonb_array_elements(p_results) r
                                                      join affiliate.delivery d on d.delivery_id = (r ->> 'delivery')::bigint))
                   order by e.endpoint_id
                     for no key update);

    with said as materialized (
        select *
          from jsonb_to_recordset(p_results) as r(delivery bigint, taken timestamptz, ok boolean, gone boolean, status integer,
                                                  latency_ms integer, retry_after integer, error text, answer text)
    ),
    changed as (
        update affiliate.delivery d
           set state = case when s.ok then 'delivered'
                            when s.gone or affiliate.delivery_pause(d.tries + 1) is null then 'failed'
                            else 'waiting' end,
               tries = d.tries + 1,
               total_tries = d.total_tries + 1,
               taken = false,
               next_at = now() + greatest(affiliate.delivery_pause(d.tries + 1) * (0.8 + 0.4 * random()),
                                          make_interval(secs => least(coalesce(s.retry_after, 0), 86400))),
               delivered_at = case when s.ok then now() end,
               status = s.status, latency_ms = s.latency_ms, error = left(s.error, 500)
          from said s
         where d.delivery_id = s.delivery
           and d.state = 'waiting'
           and (s.ok or d.next_at = s.taken)
        returning d.delivery_id, d.total_tries, d.state
    ),
    logged as (
        insert into affiliate.delivery_attempt (delivery_id, attempt, status, latency_ms, error, answer)
        select c.delivery_id, c.total_tries, s.status, s.latency_ms, left(s.error, 500), left(s.answer, 1024)
          from changed c
          join said s on s.delivery = c.delivery_id
    )
    select array_agg(c.delivery_id), count(*) filter (where c.state = 'failed') into noted, lost from changed c;

    with said as (
        select d.endpoint_id, bool_or((r ->> 'ok')::boolean) as ok, bool_or((r ->> 'gone')::boolean) as gone
          from jsonb_array_elements(p_results) r
          join affiliate.delivery d on d.delivery_id = (r ->> 'delivery')::bigint
         where d.delivery_id = any (noted)
         group by d.endpoint_id
    )
    update affiliate.endpoint e
       set failing_since = case when not s.ok then now() end
      from said s
     where e.endpoint_id = s.endpoint_id
       and s.ok = (e.failing_since is not null);

    for stopped in
        select d.endpoint_id, bool_or((r ->> 'gone')::boolean) as gone
          from jsonb_array_elements(p_results) r
          join affiliate.delivery d on d.delivery_id = (r ->> 'delivery')::bigint
          join affiliate.endpoint e using (endpoint_id)
         where d.delivery_id = any (noted)
         group by d.endpoint_id
        having bool_or((r ->> 'gone')::boolean) or min(e.failing_since) < now() - p_patience
         order by d.endpoint_id
    loop
        perform affiliate.disable_endpoint(stopped.endpoint_id, case when stopped.gone then 'gone' else 'failing' end);
    end loop;
    return lost;
end
$$;

comment on function affiliate.webhook_done is 'For the role webhooks: what became of deliveries';

create function affiliate.webhook_counts()
returns table (waiting bigint, oldest bigint)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select count(*), coalesce(extract(epoch from now() - min(d.next_at) filter (where not d.taken))::bigint, 0)
      from affiliate.delivery d
      join affiliate.endpoint e using (endpoint_id)
     where d.state = 'waiting'
       and e.active
       and d.next_at <= now()
$$;

comment on function affiliate.webhook_counts is 'For the role webhooks: how many deliveries are due, and since how many seconds the oldest';

-- Takes what is long over out of the database, so many at a time: events none of whose deliveries still waits, with all that is theirs.
create function affiliate.webhook_forget(p_keep interval)
returns bigint
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with gone as (
        delete from affiliate.event v
         where v.event_id = any (array(select x.event_id
                                         from affiliate.event x
                                        where x.at < now() - p_keep
                                          and not exists (select from affiliate.delivery d where d.event_id = x.event_id and d.state = 'waiting')
                                        order by x.at
                                        limit 2000
                                          for update skip locked))
        returning 1)
    select count(*) from gone
$$;

comment on function affiliate.webhook_forget is 'For the role webhooks: removes what is long over';

select affiliate.enter_as_owner(
    'affiliate.webhook_take(integer, interval)', 'affiliate.webhook_done(jsonb, interval)',
    'affiliate.webhook_counts()', 'affiliate.webhook_forget(interval)');

-- ---------------------------------------------------------------------------------------------------------------
-- Endpoints as their owners see them
-- ---------------------------------------------------------------------------------------------------------------

select affiliate.fence('affiliate.endpoint', p_affiliate => 'affiliate_id');
select affiliate.fence('affiliate.delivery', p_merchant => null, p_others =>
    $$exists (select from affiliate.endpoint e where e.endpoint_id = delivery.endpoint_id)$$);
select affiliate.fence('affiliate.delivery_attempt', p_merchant => null, p_others =>
    $$exists (select from affiliate.delivery d where d.delivery_id = delivery_attempt.delivery_id)$$);
select affiliate.fence('affiliate.event', p_merchant => null, p_others =>
    $$exists (select from affiliate.delivery d where d.event_id = event.event_id)$$);

create function affiliate.endpoint_json(e affiliate.endpoint)
returns jsonb
language sql immutable parallel safe
return jsonb_build_object(e.kind, e.endpoint_id, 'livemode', e.livemode, 'url', e.url, 'types', to_jsonb(e.types), 'active', e.active,
                          'failing_since', e.failing_since, 'disabled_at', e.disabled_at, 'disabled_reason', e.disabled_reason,
                          'version', e.version, 'created_at', e.created_at)
       || case e.kind when 'webhook' then jsonb_build_object('previous_secret_until', e.previous_until)
                      else jsonb_build_object('campaign', e.campaign_id) end;

create function affiliate.types_field(p_request jsonb, p_kind text)
returns text[]
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    types text[] := affiliate.list_field(p_request, 'types', 50);
begin
    if not types <@ affiliate.event_types(p_kind) then
        perform affiliate.refuse('types', 'must be of ' || array_to_string(affiliate.event_types(p_kind), ', '));
    end if;
    return array(select distinct t from unnest(types) t order by t);
end
$$;

-- An address that an endpoint may have. What a name leads to is looked at each time that it is asked; what is refused here could
-- never be right.
create function affiliate.endpoint_url_field(p_request jsonb, p_kind text, p_livemode boolean)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    url text := affiliate.text_field(p_request, 'url', 2000);
    bare text := case p_kind when 'postback' then regexp_replace(url, '\{[^{}]*\}', '0', 'g') else url end;
    wrong text;
    port integer;
begin
    if url is null then
        return null;
    end if;
    if p_kind = 'postback' then
        select m[1] into wrong
          from regexp_matches(url, '\{([^{}]*)\}', 'g') m
         where not affiliate.postback_values(null) ? m[1]
         limit 1;
        if wrong is not null then
            perform affiliate.refuse('url', format('has the unknown macro {%s}; there are %s', left(wrong, 50),
                (select string_agg(k, ', ' order by k) from jsonb_object_keys(affiliate.postback_values(null)) k)));
        end if;
        if substring(url from '^[^/]*//[^/?#]*') ~ '[{}]' then
            perform affiliate.refuse('url', 'must not have macros in its host');
        end if;
    end if;
    if affiliate.url_host(bare) is null or affiliate.url_host(bare) !~ '\.[a-z][a-z0-9-]*$' or bare ~ '#' then
        perform affiliate.refuse('url', 'must be an absolute https URL at a name, without userinfo or fragment');
    end if;
    if url !~* '^https://' and p_livemode then
        perform affiliate.refuse('url', 'must be https; http is for test mode alone');
    end if;
    port := substring(bare from '^[^/]*//[^/?#]*:([0-9]+)')::integer;
    if port < 1024 and port not in (80, 443) then
        perform affiliate.refuse('url', 'must have the port 443, 80 or one from 1024');
    end if;
    return url;
end
$$;

-- The endpoint that the request names, locked.
create function affiliate.lock_endpoint(p_actor affiliate.actor, p_request jsonb, p_kind text)
returns affiliate.endpoint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint;
begin
    select * into e
      from affiliate.endpoint x
     where x.endpoint_id = affiliate.id_field(p_request, p_kind)
       and x.kind = p_kind
       and x.removed_at is null
       and (x.merchant_id = p_actor.merchant_id or x.affiliate_id = p_actor.affiliate_id)
       and (p_actor.kind <> 'key' or x.livemode = p_actor.livemode)
       for update;
    if not found then
        perform affiliate.problem(404, 'not_found', format('There is no such %s.', p_kind));
    end if;
    perform affiliate.check_version(p_request, e.version);
    return e;
end
$$;

create function affiliate.campaign_of_postback(p_request jsonb)
returns bigint
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    id bigint := affiliate.id_field(p_request, 'campaign');
begin
    if id is not null and not exists (select from affiliate.campaign c where c.campaign_id = id) then
        perform affiliate.refuse('campaign', 'must be one that there is');
    end if;
    return id;
end
$$;

create function affiliate.create_endpoint(p_actor affiliate.actor, p_request jsonb, p_kind text)
returns affiliate.endpoint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made affiliate.endpoint;
begin
    -- One after the other, so that the count is right.
    perform from affiliate.merchant m where m.merchant_id = p_actor.merchant_id and p_kind = 'webhook' for no key update;
    perform from affiliate.affiliate a where a.affiliate_id = p_actor.affiliate_id and p_kind = 'postback' for no key update;
    if (select count(*) >= 10
          from affiliate.endpoint e
         where (e.merchant_id = p_actor.merchant_id or e.affiliate_id = p_actor.affiliate_id)
           and e.kind = p_kind
           and e.livemode = p_actor.livemode
           and e.removed_at is null) then
        perform affiliate.problem(409, 'limit', format('There are ten %ss of this mode already.', p_kind));
    end if;
    insert into affiliate.endpoint (kind, merchant_id, affiliate_id, campaign_id, livemode, url, types, secret)
    values (p_kind, case p_kind when 'webhook' then p_actor.merchant_id end, case p_kind when 'postback' then p_actor.affiliate_id end,
            affiliate.campaign_of_postback(p_request), p_actor.livemode,
            affiliate.endpoint_url_field(p_request, p_kind, p_actor.livemode), affiliate.types_field(p_request, p_kind),
            p_request ->> '_secret')
    returning * into made;
    perform affiliate.record(p_actor, p_kind || '.create', p_kind, made.endpoint_id::text, null, affiliate.endpoint_json(made));
    return made;
end
$$;

create function affiliate.update_endpoint(p_actor affiliate.actor, p_request jsonb, p_kind text)
returns affiliate.endpoint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.endpoint := affiliate.lock_endpoint(p_actor, p_request, p_kind);
    e affiliate.endpoint;
    works boolean := coalesce(affiliate.boolean_field(p_request, 'active'), before.active);
begin
    update affiliate.endpoint x
       set url = coalesce(affiliate.endpoint_url_field(p_request, p_kind, x.livemode), x.url),
           types = case when p_request ? 'types' then affiliate.types_field(p_request, p_kind) else x.types end,
           campaign_id = case when p_request ? 'campaign' then affiliate.campaign_of_postback(p_request) else x.campaign_id end,
           active = works,
           disabled_at = case when not works then x.disabled_at end,
           disabled_reason = case when not works then x.disabled_reason end,
           failing_since = case when works and not before.active then null else x.failing_since end,
           version = x.version + 1
     where x.endpoint_id = before.endpoint_id
    returning * into e;
    perform affiliate.record(p_actor, p_kind || '.update', p_kind, e.endpoint_id::text, affiliate.endpoint_json(before), affiliate.endpoint_json(e));
    if works and not before.active then
        notify affiliate_webhook;
    end if;
    return e;
end
$$;

create function affiliate.remove_endpoint(p_actor affiliate.actor, p_request jsonb, p_kind text)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint := affiliate.lock_endpoint(p_actor, p_request, p_kind);
begin
    update affiliate.endpoint x
       set active = false, removed_at = now(), version = x.version + 1
     where x.endpoint_id = e.endpoint_id;
    update affiliate.delivery d set state = 'dropped', taken = false where d.endpoint_id = e.endpoint_id and d.state = 'waiting';
    perform affiliate.record(p_actor, p_kind || '.delete', p_kind, e.endpoint_id::text, affiliate.endpoint_json(e), null);
end
$$;

-- Gives it another secret. The one before, and that alone, signs too for a day.
create function affiliate.rotate_secret(p_actor affiliate.actor, p_request jsonb)
returns affiliate.endpoint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.endpoint := affiliate.lock_endpoint(p_actor, p_request, 'webhook');
    e affiliate.endpoint;
begin
    update affiliate.endpoint x
       set previous_secret = x.secret, previous_until = now() + interval '1 day', secret = p_request ->> '_secret', version = x.version + 1
     where x.endpoint_id = before.endpoint_id
    returning * into e;
    perform affiliate.record(p_actor, 'webhook.rotate', 'webhook', e.endpoint_id::text, affiliate.endpoint_json(before), affiliate.endpoint_json(e));
    return e;
end
$$;

create function affiliate.refuse_inactive(e affiliate.endpoint)
returns void
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    if not e.active then
        perform affiliate.problem(409, 'state', format('The %s is not active; nothing is sent to it.', e.kind));
    end if;
end
$$;

-- An event that says nothing, to one endpoint. Gives the delivery.
create function affiliate.ping_endpoint(p_actor affiliate.actor, p_request jsonb, p_kind text)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint := affiliate.lock_endpoint(p_actor, p_request, p_kind);
    made bigint;
begin
    perform affiliate.refuse_inactive(e);
    if (select count(*) >= 100 from affiliate.delivery d where d.endpoint_id = e.endpoint_id and d.state = 'waiting') then
        perform affiliate.problem(409, 'limit', 'A hundred deliveries wait for it already.');
    end if;
    insert into affiliate.event (type, merchant_id, affiliate_id, livemode, subject, data)
    values ('ping', e.merchant_id, e.affiliate_id, e.livemode, e.endpoint_id::text, jsonb_build_object(p_kind, e.endpoint_id))
    returning event_id into made;
    insert into affiliate.delivery (endpoint_id, event_id) values (e.endpoint_id, made) returning delivery_id into made;
    notify affiliate_webhook;
    return made;
end
$$;

-- Sends a delivery again, whatever became of it, with all its tries anew.
create function affiliate.resend_delivery(p_actor affiliate.actor, p_request jsonb, p_kind text)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint;
    d affiliate.delivery;
begin
    select x.* into d from affiliate.delivery x where x.delivery_id = affiliate.id_field(p_request, 'delivery');
    select x.* into e
      from affiliate.endpoint x
     where x.endpoint_id = d.endpoint_id
       and x.kind = p_kind
       and (x.merchant_id = p_actor.merchant_id or x.affiliate_id = p_actor.affiliate_id)
       and (p_actor.kind <> 'key' or x.livemode = p_actor.livemode)
       for update;
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such delivery.');
    end if;
    perform affiliate.refuse_inactive(e);
    update affiliate.delivery x
       set state = 'waiting', tries = 0, next_at = now(), taken = false
     where x.delivery_id = d.delivery_id
       and not (x.state = 'waiting' and x.taken and x.next_at > now());
    perform affiliate.record(p_actor, p_kind || '.resend', p_kind, e.endpoint_id::text, jsonb_build_object('delivery', d.delivery_id, 'state', d.state),
                             jsonb_build_object('delivery', d.delivery_id, 'state', 'waiting'));
    notify affiliate_webhook;
    return d.delivery_id;
end
$$;

select affiliate.enter_as_tenant(
    'affiliate.create_endpoint(affiliate.actor, jsonb, text)',
    'affiliate.update_endpoint(affiliate.actor, jsonb, text)',
    'affiliate.remove_endpoint(affiliate.actor, jsonb, text)',
    'affiliate.rotate_secret(affiliate.actor, jsonb)',
    'affiliate.ping_endpoint(affiliate.actor, jsonb, text)',
    'affiliate.resend_delivery(affiliate.actor, jsonb, text)');

create function affiliate.delivery_json(d affiliate.delivery)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return (
        select jsonb_build_object(
                   'delivery', d.delivery_id, e.kind, d.endpoint_id, 'event', affiliate.event_name(v), 'type', v.type, 'subject', v.subject,
                   'livemode', v.livemode, 'state', d.state, 'tries', d.total_tries, 'next_at', case when d.state = 'waiting' then d.next_at end,
                   'status', d.status, 'latency_ms', d.latency_ms, 'error', d.error, 'created_at', d.created_at, 'delivered_at', d.delivered_at)
          from affiliate.event v
          join affiliate.endpoint e on e.endpoint_id = d.endpoint_id
         where v.event_id = d.event_id);
end
$$;

create function affiliate.delivery_detail(d affiliate.delivery)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return (
        select affiliate.delivery_json(d) || jsonb_build_object(
                   'attempts', coalesce((select jsonb_agg(jsonb_build_object('attempt', a.attempt, 'at', a.at, 'status', a.status,
                                                          'latency_ms', a.latency_ms, 'error', a.error, 'answer', a.answer) order by a.attempt)
                                           from affiliate.delivery_attempt a
                                          where a.delivery_id = d.delivery_id), '[]'))
               || case e.kind when 'webhook' then jsonb_build_object('body', affiliate.event_body(v))
                              else jsonb_build_object('macros', affiliate.postback_values(v)) end
          from affiliate.event v
          join affiliate.endpoint e on e.endpoint_id = d.endpoint_id
         where v.event_id = d.event_id);
end
$$;

create function affiliate.endpoint_page(p_actor affiliate.actor, p_request jsonb, p_kind text)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request,
        format('select e, e.endpoint_id as endpoint, e.created_at from affiliate.endpoint e
                 where e.kind = %L and e.removed_at is null and e.livemode = $1.livemode
                   and (e.merchant_id = $1.merchant_id or e.affiliate_id = $1.affiliate_id)', p_kind),
        'affiliate.endpoint_json(x.e)', '{-created_at timestamptz}', 'endpoint bigint');
end
$$;

create function affiliate.find_endpoint(p_actor affiliate.actor, p_request jsonb, p_kind text)
returns affiliate.endpoint
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint;
begin
    select * into e
      from affiliate.endpoint x
     where x.endpoint_id = affiliate.id_field(p_request, p_kind)
       and x.kind = p_kind
       and x.removed_at is null
       and (x.merchant_id = p_actor.merchant_id or x.affiliate_id = p_actor.affiliate_id)
       and (p_actor.kind <> 'key' or x.livemode = p_actor.livemode);
    if not found then
        perform affiliate.problem(404, 'not_found', format('There is no such %s.', p_kind));
    end if;
    return e;
end
$$;

create function affiliate.delivery_page(p_actor affiliate.actor, p_request jsonb, p_kind text)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    state text := affiliate.form_field(p_request, 'state', 20, '^(waiting|delivered|failed|dropped)$', 'must be waiting, delivered, failed or dropped');
begin
    perform affiliate.check_page(p_request, array[p_kind, 'state', 'type', 'from', 'to']);
    return query select affiliate.page(p_actor, p_request,
        'select d, d.delivery_id as delivery, d.created_at from affiliate.delivery d join affiliate.event v using (event_id) where '
        || concat_ws(' and ',
               format('d.endpoint_id in (select e.endpoint_id from affiliate.endpoint e where e.kind = %L and e.livemode = $1.livemode
                                            and (e.merchant_id = $1.merchant_id or e.affiliate_id = $1.affiliate_id))', p_kind),
               'd.endpoint_id = ' || affiliate.id_field(p_request, p_kind),
               'd.state = ' || quote_literal(state),
               'v.type = ' || quote_literal(affiliate.text_field(p_request, 'type', 50)),
               'd.created_at >= ' || quote_literal(affiliate.time_field(p_request, 'from')),
               'd.created_at < ' || quote_literal(affiliate.time_field(p_request, 'to'))),
        'affiliate.delivery_json(x.d)', '{-created_at timestamptz}', 'delivery bigint');
end
$$;

create function affiliate.find_delivery(p_actor affiliate.actor, p_request jsonb, p_kind text)
returns affiliate.delivery
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    d affiliate.delivery;
begin
    select x.* into d
      from affiliate.delivery x
      join affiliate.endpoint e using (endpoint_id)
     where x.delivery_id = affiliate.id_field(p_request, 'delivery')
       and e.kind = p_kind
       and (e.merchant_id = p_actor.merchant_id or e.affiliate_id = p_actor.affiliate_id)
       and (p_actor.kind <> 'key' or e.livemode = p_actor.livemode);
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such delivery.');
    end if;
    return d;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Operations
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.api_webhook_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return query select affiliate.endpoint_page(p_actor, p_request, 'webhook');
end
$$;

create function affiliate.api_webhook_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint;
begin
    perform affiliate.check_request(p_request, '{url,types,_secret}', '{livemode}');
    e := affiliate.create_endpoint(p_actor, p_request, 'webhook');
    perform affiliate.answer(jsonb_build_object('status', 201, 'location', format('/api/v1/merchants/%s/webhooks/%s', e.merchant_id, e.endpoint_id)));
    perform affiliate.answer_version(e.version);
    return next affiliate.endpoint_json(e) || jsonb_build_object('_secret', e.secret);
end
$$;

create function affiliate.api_webhook_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint;
begin
    perform affiliate.check_request(p_request, '{webhook}');
    e := affiliate.find_endpoint(p_actor, p_request, 'webhook');
    perform affiliate.answer_version(e.version);
    return next affiliate.endpoint_json(e);
end
$$;

create function affiliate.api_webhook_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint;
begin
    perform affiliate.check_request(p_request, '{webhook}', '{url,types,active}');
    e := affiliate.update_endpoint(p_actor, p_request, 'webhook');
    perform affiliate.answer_version(e.version);
    return next affiliate.endpoint_json(e);
end
$$;

create function affiliate.api_webhook_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{webhook}');
    perform affiliate.remove_endpoint(p_actor, p_request, 'webhook');
    perform affiliate.answer('{"status": 204}');
end
$$;

create function affiliate.api_webhook_rotate(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint;
begin
    perform affiliate.check_request(p_request, '{webhook,_secret}');
    e := affiliate.rotate_secret(p_actor, p_request);
    perform affiliate.answer_version(e.version);
    return next affiliate.endpoint_json(e) || jsonb_build_object('_secret', e.secret);
end
$$;

create function affiliate.api_webhook_ping(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made bigint;
begin
    perform affiliate.check_request(p_request, '{webhook}');
    made := affiliate.ping_endpoint(p_actor, p_request, 'webhook');
    perform affiliate.answer('{"status": 202}');
    return query select affiliate.delivery_json(d) from affiliate.delivery d where d.delivery_id = made;
end
$$;

create function affiliate.api_webhook_delivery_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return query select affiliate.delivery_page(p_actor, p_request, 'webhook');
end
$$;

create function affiliate.api_webhook_delivery_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{delivery}');
    return next affiliate.delivery_detail(affiliate.find_delivery(p_actor, p_request, 'webhook'));
end
$$;

create function affiliate.api_webhook_delivery_resend(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    again bigint;
begin
    perform affiliate.check_request(p_request, '{delivery}');
    again := affiliate.resend_delivery(p_actor, p_request, 'webhook');
    perform affiliate.answer('{"status": 202}');
    return query select affiliate.delivery_json(d) from affiliate.delivery d where d.delivery_id = again;
end
$$;

create function affiliate.api_postback_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return query select affiliate.endpoint_page(p_actor, p_request, 'postback');
end
$$;

create function affiliate.api_postback_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint;
begin
    perform affiliate.check_request(p_request, '{url,types}', '{livemode,campaign}');
    e := affiliate.create_endpoint(p_actor, p_request, 'postback');
    perform affiliate.answer(jsonb_build_object('status', 201, 'location', '/api/v1/affiliate/postbacks/' || e.endpoint_id));
    perform affiliate.answer_version(e.version);
    return next affiliate.endpoint_json(e);
end
$$;

create function affiliate.api_postback_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint;
begin
    perform affiliate.check_request(p_request, '{postback}');
    e := affiliate.find_endpoint(p_actor, p_request, 'postback');
    perform affiliate.answer_version(e.version);
    return next affiliate.endpoint_json(e);
end
$$;

create function affiliate.api_postback_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.endpoint;
begin
    perform affiliate.check_request(p_request, '{postback}', '{url,types,active,campaign}');
    e := affiliate.update_endpoint(p_actor, p_request, 'postback');
    perform affiliate.answer_version(e.version);
    return next affiliate.endpoint_json(e);
end
$$;

create function affiliate.api_postback_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{postback}');
    perform affiliate.remove_endpoint(p_actor, p_request, 'postback');
    perform affiliate.answer('{"status": 204}');
end
$$;

create function affiliate.api_postback_ping(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made bigint;
begin
    perform affiliate.check_request(p_request, '{postback}');
    made := affiliate.ping_endpoint(p_actor, p_request, 'postback');
    perform affiliate.answer('{"status": 202}');
    return query select affiliate.delivery_json(d) from affiliate.delivery d where d.delivery_id = made;
end
$$;

create function affiliate.api_postback_delivery_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return query select affiliate.delivery_page(p_actor, p_request, 'postback');
end
$$;

create function affiliate.api_postback_delivery_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{delivery}');
    return next affiliate.delivery_detail(affiliate.find_delivery(p_actor, p_request, 'postback'));
end
$$;

create function affiliate.api_postback_delivery_resend(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    again bigint;
begin
    perform affiliate.check_request(p_request, '{delivery}');
    again := affiliate.resend_delivery(p_actor, p_request, 'postback');
    perform affiliate.answer('{"status": 202}');
    return query select affiliate.delivery_json(d) from affiliate.delivery d where d.delivery_id = again;
end
$$;

select affiliate.operation(o, actors => '{merchant,key,admin}')
  from unnest('{webhook_list,webhook_show,webhook_delivery_list,webhook_delivery_show}'::text[]) o;
select affiliate.operation(o, actors => '{merchant,key}', role => 'manager', by_mode => true, mutates => true, creates => o !~ '_(update|delete)$')
  from unnest('{webhook_create,webhook_update,webhook_delete,webhook_rotate,webhook_ping,webhook_delivery_resend}'::text[]) o;
select affiliate.operation(o, actors => '{affiliate}')
  from unnest('{postback_list,postback_show,postback_delivery_list,postback_delivery_show}'::text[]) o;
select affiliate.operation(o, actors => '{affiliate}', mutates => true, creates => o !~ '_(update|delete)$')
  from unnest('{postback_create,postback_update,postback_delete,postback_ping,postback_delivery_resend}'::text[]) o;

select affiliate.seal_operations();
