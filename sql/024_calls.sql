-- What became of merchants' calls: refusals, as nginx reports them among the conversions; keys and when they were used; and the
-- checklist of an integration, which all of this ticks off.

-- ---------------------------------------------------------------------------------------------------------------
-- The log of calls
-- ---------------------------------------------------------------------------------------------------------------

create sequence affiliate.call_id_seq;

create table affiliate.call_log (
    merchant_id     bigint not null,
    key_id          text collate "C" not null,
    call_id         bigint not null default nextval('affiliate.call_id_seq'),
    livemode        boolean not null,
    authentic       boolean not null,
    source          smallint not null,
    status          smallint not null,
    position        integer not null,
    at              timestamptz not null,
    body_bytes      bigint not null,
    body_hash       bytea,
    code            text,
    detail          text,
    errors          jsonb not null,
    idempotency_key text,
    order_id        text,
    sent_timestamp  text,
    target          text,
    request_id      text,
    excerpt         text,
    primary key (merchant_id, key_id, call_id)
);

create index call_log_at on affiliate.call_log (at);

comment on table affiliate.call_log is 'The last calls of each API key that left no conversion, and some of a live key''s that did; so many of each, for so long';
comment on column affiliate.call_log.authentic is 'Its signature was right. Others come from who knows the key''s public id: they have a share of the log of their own';
comment on column affiliate.call_log.body_hash is 'SHA-256 of the body; the body itself is never kept';
comment on column affiliate.call_log.excerpt is 'Of a body that is no JSON, the few bytes at the fault';

create function affiliate.calls_kept()
returns integer
language sql immutable parallel safe
return 200;

create function affiliate.calls_kept_for()
returns interval
language sql immutable parallel safe
return interval '30 days';

create table affiliate.key_use (
    merchant_id     bigint not null,
    key_id          text collate "C" not null,
    last_used_at    timestamptz not null,
    primary key (merchant_id, key_id)
) with (fillfactor = 50);

comment on table affiliate.key_use is 'When an API key last had a call accepted, to the minute: so it is hardly ever written';

-- What a merchant has done once, and nothing else tells: the answers of nginx leave no trace.
create table affiliate.milestone (
    merchant_id     bigint not null,
    name            text not null check (name in ('retry')),
    at              timestamptz not null,
    primary key (merchant_id, name)
);

comment on table affiliate.milestone is 'Steps of an integration that no row of another table proves for ever';

-- The calls that a test key had accepted, newest first; live ones pay nothing for it.
create index conversion_test on affiliate.conversion (merchant_id, received_at) where not livemode;

-- Creates pg_temp.call_stage, which the daemon fills by COPY; once a session.
create function affiliate.call_stage()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    if to_regclass('pg_temp.call_stage') is not null then
        return;
    end if;

    create temp table call_stage (
        spool_id bigint, segment bigint, sequence integer, record integer,
        merchant_id bigint, livemode boolean, authentic boolean, source smallint, status smallint, position integer,
        at timestamptz, body_bytes bigint, body_hash bytea, key_id text collate "C",
        code text, detail text, idempotency_key text, order_id text, sent_timestamp text, target text, request_id text, excerpt text,
        pointers text[], rules text[]
    ) on commit delete rows;

    -- current_user is the owner here; this is who called.
    execute format('grant insert on pg_temp.call_stage to %I', coalesce(nullif(current_setting('role'), 'none'), session_user));
end
$$;

-- Takes what is over the limits out of the log: of the keys on the stage, and of all what is too old.
create function affiliate.trim_calls()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    delete from affiliate.call_log c
     using (select k.merchant_id, k.key_id, k.authentic, e.call_id
              from (select distinct s.merchant_id, s.key_id, s.authentic
                      from pg_temp.call_stage s) k
             cross join lateral (
                       select l.call_id
                         from affiliate.call_log l
                        where l.merchant_id = k.merchant_id
                          and l.key_id = k.key_id
                          and l.authentic = k.authentic
                        order by l.call_id desc
                       offset affiliate.calls_kept()
                        limit 1
                   ) e) over
     where c.merchant_id = over.merchant_id
       and c.key_id = over.key_id
       and c.authentic = over.authentic
       and c.call_id <= over.call_id;

    delete from affiliate.call_log
     where ctid = any (array(
               select c.ctid
                 from affiliate.call_log c
                where c.at < now() - affiliate.calls_kept_for()
                order by c.at
                limit 1000
                  for update skip locked));
end
$$;

-- Applies and empties pg_temp.call_stage. Never raises for data: a call of a key that is not known here is forgotten.
create function affiliate.apply_calls()
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set jit = off
as $$
declare
    taken bigint;
begin
    insert into affiliate.inbox as i (channel, spool_id, segment, sequence, records, refusals)
    select 2, s.spool_id, s.segment, s.sequence, count(*), count(*)
      from pg_temp.call_stage s
     group by s.spool_id, s.segment, s.sequence
     order by s.spool_id, s.segment, s.sequence
        on conflict (channel, spool_id, segment, sequence) do update
       set refusals = i.refusals + excluded.refusals;

    insert into affiliate.call_log
          (merchant_id, key_id, livemode, authentic, source, status, position, at, body_bytes, body_hash, code, detail, errors,
           idempotency_key, order_id, sent_timestamp, target, request_id, excerpt)
    select k.merchant_id, k.key_id, k.livemode, s.authentic, s.source, s.status, s.position, s.at, s.body_bytes,
           nullif(s.body_hash, decode(repeat('00', 32), 'hex')), s.code, s.detail,
           coalesce((select jsonb_agg(jsonb_build_object('pointer', e.pointer, 'detail', e.rule) order by e.n)
                       from unnest(s.pointers, s.rules) with ordinality as e(pointer, rule, n)), '[]'),
           s.idempotency_key, s.order_id, s.sent_timestamp, s.target, s.request_id, s.excerpt
      from pg_temp.call_stage s
      join affiliate.api_key k on k.merchant_id = s.merchant_id and k.key_id = s.key_id
     order by s.at, s.spool_id, s.segment, s.sequence, s.record;
    get diagnostics taken = row_count;

    insert into affiliate.milestone (merchant_id, name, at)
    select s.merchant_id, 'retry', min(s.at)
      from pg_temp.call_stage s
      join affiliate.api_key k on k.merchant_id = s.merchant_id and k.key_id = s.key_id
     where s.status < 300
       and s.authentic
     group by s.merchant_id
     order by s.merchant_id
        on conflict do nothing;

    perform affiliate.trim_calls();
    delete from pg_temp.call_stage;
    return taken;
end
$$;

-- Notes which keys the conversions on the stage were reported with, each once a minute; and then, of a live key, one of the calls.
-- After all that they do to orders, so that nobody waits here for who waits there.
create function affiliate.note_key_use()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set jit = off
as $$
begin
    with used as (
        insert into affiliate.key_use as u (merchant_id, key_id, last_used_at)
        select s.merchant_id, s.key_id, s.at
          from (select s.merchant_id, s.key_id, max(s.received_at) as at
                  from pg_temp.conversion_stage s
                 group by s.merchant_id, s.key_id) s
          left join affiliate.key_use before using (merchant_id, key_id)
         where s.at >= coalesce(before.last_used_at + interval '1 minute', '-infinity')
           and exists (select from affiliate.api_key k where k.merchant_id = s.merchant_id and k.key_id = s.key_id)
         order by s.merchant_id, s.key_id
            on conflict (merchant_id, key_id) do update
           set last_used_at = greatest(u.last_used_at, excluded.last_used_at)
        returning merchant_id, key_id, last_used_at
    )
    insert into affiliate.call_log
          (merchant_id, key_id, livemode, authentic, source, status, position, at, body_bytes, errors, idempotency_key, order_id)
    select distinct on (u.merchant_id, u.key_id)
           u.merchant_id, u.key_id, true, true, s.source, 202, s.position, s.received_at, 0, '[]', s.idempotency_key, s.order_id
      from used u
      join pg_temp.conversion_stage s
        on s.merchant_id = u.merchant_id and s.key_id = u.key_id and s.received_at = u.last_used_at
     where s.livemode
     order by u.merchant_id, u.key_id, s.position;
end
$$;

select affiliate.enter_as_owner(
    'affiliate.call_stage()', 'affiliate.apply_calls()', 'affiliate.note_key_use()');

-- ---------------------------------------------------------------------------------------------------------------
-- Keys
-- ---------------------------------------------------------------------------------------------------------------

select affiliate.fence(t)
  from unnest(array['affiliate.call_log', 'affiliate.key_use', 'affiliate.milestone']::regclass[]) t;

create function affiliate.merchant_key_json(k affiliate.api_key, p_last_used_at timestamptz)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.key_json(k) - 'merchant' - 'master_id'
           || jsonb_build_object('last_used_at', p_last_used_at, 'version', k.version)
$$;

create function affiliate.merchant_key(p_merchant_id bigint, p_request jsonb)
returns affiliate.api_key
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    k affiliate.api_key;
begin
    select * into k
      from affiliate.api_key x
     where x.merchant_id = p_merchant_id
       and x.key_id = affiliate.text_field(p_request, 'key', 64);
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such key.');
    end if;
    return k;
end
$$;

-- At most two keys of a mode are active: the one in use, and the one that is to take its place.
create function affiliate.create_key(p_actor affiliate.actor, p_request jsonb)
returns affiliate.api_key
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    m affiliate.merchant;
    made affiliate.api_key;
begin
    select * into m from affiliate.merchant x where x.merchant_id = p_actor.merchant_id for no key update;
    if p_actor.livemode and m.state <> 'approved' then
        perform affiliate.problem(403, 'not_approved', 'Live keys can be made once the merchant is approved; test keys, before.');
    end if;
    if (select count(*) >= 2
          from affiliate.api_key k
         where k.merchant_id = m.merchant_id and k.livemode = p_actor.livemode and k.revoked_at is null) then
        perform affiliate.problem(409, 'too_many_keys', format('There are two active %s keys already: revoke one first.',
            case when p_actor.livemode then 'live' else 'test' end));
    end if;

    perform affiliate.key_create(jsonb_strip_nulls(jsonb_build_object(
        'merchant', m.merchant_id, 'livemode', p_actor.livemode, 'key_id', p_request -> '_key_id',
        'master_id', p_request -> '_master_id', 'label', p_request -> 'label')));
    made := affiliate.merchant_key(m.merchant_id, jsonb_build_object('key', p_request -> '_key_id'));
    perform affiliate.record(p_actor, 'key_create', 'key', made.key_id, null, affiliate.merchant_key_json(made, null));
    return made;
end
$$;

create function affiliate.update_key(p_actor affiliate.actor, p_request jsonb)
returns affiliate.api_key
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.api_key := affiliate.merchant_key(p_actor.merchant_id, p_request);
    k affiliate.api_key;
begin
    select * into before
      from affiliate.api_key x
     where x.merchant_id = before.merchant_id and x.key_id = before.key_id
       for update;
    perform affiliate.check_version(p_request, before.version);
    update affiliate.api_key x
       set label = affiliate.text_field(p_request, 'label', 200)
     where x.merchant_id = before.merchant_id and x.key_id = before.key_id
    returning * into k;
    perform affiliate.record(p_actor, 'key_update', 'key', k.key_id,
        affiliate.merchant_key_json(before, null), affiliate.merchant_key_json(k, null));
    return k;
end
$$;

-- Revoking works at once, and for ever; again, it changes nothing.
create function affiliate.revoke_key(p_actor affiliate.actor, p_request jsonb)
returns affiliate.api_key
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.api_key := affiliate.merchant_key(p_actor.merchant_id, p_request);
    k affiliate.api_key;
begin
    select * into before
      from affiliate.api_key x
     where x.merchant_id = before.merchant_id and x.key_id = before.key_id
       for update;
    perform affiliate.check_version(p_request, before.version);
    if before.revoked_at is not null then
        return before;
    end if;
    update affiliate.api_key x
       set revoked_at = now()
     where x.merchant_id = before.merchant_id and x.key_id = before.key_id
    returning * into k;
    perform affiliate.record(p_actor, 'key_revoke', 'key', k.key_id,
        affiliate.merchant_key_json(before, null), affiliate.merchant_key_json(k, null));
    return k;
end
$$;

select affiliate.enter_as_tenant(
    'affiliate.create_key(affiliate.actor, jsonb)',
    'affiliate.update_key(affiliate.actor, jsonb)',
    'affiliate.revoke_key(affiliate.actor, jsonb)');

-- The secret is made, and shown, by who calls: it is derived from the id, and never here.
create function affiliate.api_key_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    k affiliate.api_key;
begin
    perform affiliate.check_request(p_request, '{_key_id,_master_id}', '{label}');
    k := affiliate.create_key(p_actor, p_request);
    perform affiliate.answer(jsonb_build_object(
        'status', 201, 'location', format('/api/v1/merchants/%s/keys/%s', k.merchant_id, k.key_id)));
    return next affiliate.merchant_key_json(k, null) || jsonb_build_object('_master_id', k.master_id);
end
$$;

create function affiliate.api_key_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query
    select * from affiliate.page(p_actor, p_request,
        'select k, k.key_id, k.created_at, u.last_used_at
           from affiliate.api_key k
           left join affiliate.key_use u using (merchant_id, key_id)
          where k.merchant_id = $1.merchant_id and k.livemode = $1.livemode',
        'affiliate.merchant_key_json(x.k, x.last_used_at)', '{-created_at timestamptz}', 'key_id text');
end
$$;

create function affiliate.api_key_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    k affiliate.api_key;
begin
    perform affiliate.check_request(p_request, '{key}');
    k := affiliate.merchant_key(p_actor.merchant_id, p_request);
    perform affiliate.answer_version(k.version);
    return query
    select affiliate.merchant_key_json(k, (select u.last_used_at
                                             from affiliate.key_use u
                                            where u.merchant_id = k.merchant_id and u.key_id = k.key_id));
end
$$;

create function affiliate.api_key_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    k affiliate.api_key;
begin
    perform affiliate.check_request(p_request, '{key}', '{label}');
    k := affiliate.update_key(p_actor, p_request);
    perform affiliate.answer_version(k.version);
    return next affiliate.merchant_key_json(k, null);
end
$$;

create function affiliate.api_key_revoke(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    k affiliate.api_key;
begin
    perform affiliate.check_request(p_request, '{key}');
    k := affiliate.revoke_key(p_actor, p_request);
    perform affiliate.answer_version(k.version);
    return next affiliate.merchant_key_json(k, null);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Calls of a key
-- ---------------------------------------------------------------------------------------------------------------

-- Each code in a sentence: what to do about it. What nginx says of the call itself is its detail.
create function affiliate.call_hint(p_code text)
returns text
language sql immutable parallel safe
return case p_code
           when 'bad_signature' then 'Give what your program signed to the signature check: it says which line differs.'
           when 'clock_skew' then 'Set the clock of your server by NTP, and take the timestamp when you sign.'
           when 'unknown_key' then 'The key was revoked, or its master key was withdrawn: use another one.'
           when 'missing_header' then 'Send all of Affiliate-Key, Affiliate-Timestamp, Idempotency-Key and Affiliate-Signature.'
           when 'malformed_json' then 'Let a library write the JSON, and sign the very bytes that you send.'
           when 'unsupported_media_type' then 'Send Content-Type: application/json.'
           when 'body_too_large' then 'Send fewer events in one call.'
           when 'rate_limited' then 'Send events in batches, and wait as long as Retry-After says.'
           when 'unknown_click_id' then 'Report the affiliate_click_id of the landing page, of this merchant and unchanged.'
           when 'wrong_livemode' then 'Report clicks of test links with a test key, those of live links with a live one.'
           when 'expired_click_id' then 'The click is too old to be rewarded: don''t report it.'
           when 'idempotency_key_reused' then 'Use a new Idempotency-Key for each event, and the same only to repeat the same body.'
           when 'repeated' then 'All is well: a repeated call is answered like the first one, and counts once.'
       end;

create function affiliate.call_json(c affiliate.call_log)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'at', c.at,
        'status', c.status,
        'code', c.code,
        'detail', c.detail,
        'hint', affiliate.call_hint(c.code),
        'errors', c.errors,
        'kind', (array['single', 'batch', 'postback'])[c.source],
        'index', case when c.source = 2 then c.position end,
        'signature_valid', c.authentic,
        'order', c.order_id,
        'idempotency_key', c.idempotency_key,
        'timestamp', c.sent_timestamp,
        'target', c.target,
        'body_bytes', c.body_bytes,
        'body_sha256', encode(c.body_hash, 'hex'),
        'excerpt', c.excerpt,
        'request_id', c.request_id)
$$;

-- Accepted calls are their conversions; of those of a test key the last thousand.
create function affiliate.api_key_call_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{key,result}');
    perform affiliate.merchant_key(p_actor.merchant_id, p_request);
    perform affiliate.form_field(p_request, 'result', 20, '^(accepted|refused)$', 'must be accepted or refused');

    return query
    select * from affiliate.page(p_actor, p_request,
        $query$
        select c, 'c' || c.call_id as call, c.at
          from affiliate.call_log c
         where c.merchant_id = $1.merchant_id
           and c.key_id = $2 ->> 'key'
           and c.at > now() - affiliate.calls_kept_for()
           and ($2 ->> 'result' is null or (c.status < 300) = ($2 ->> 'result' = 'accepted'))
        union all
        (select row(v.merchant_id, v.key_id, 0, v.livemode, true, v.source, 202, v.position, v.received_at, 0, null, null, null, '[]',
                    v.idempotency_key, v.order_id, null, null, null, null)::affiliate.call_log,
                'e' || v.conversion_id, v.received_at
           from affiliate.conversion v
          where v.merchant_id = $1.merchant_id
            and not v.livemode
            and v.key_id = $2 ->> 'key'
            and coalesce($2 ->> 'result', 'accepted') = 'accepted'
          order by v.received_at desc
          limit 1000)
        $query$,
        'affiliate.call_json(x.c)', '{-at timestamptz}', 'call text');
end
$$;

-- What was signed instead of the call is found where the secret can be derived; here, whether who asks may know.
create function affiliate.api_signature_check(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_result,key,body}',
        '{method,path,timestamp,idempotency_key,signature,string_to_sign}');
    perform affiliate.merchant_key(p_actor.merchant_id, p_request);
    return next p_request -> '_result';
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- The checklist
-- ---------------------------------------------------------------------------------------------------------------

-- The steps of an integration and when each was first seen, null if it was not.
create function affiliate.checklist(p_merchant_id bigint)
returns table (place integer, item text, at timestamptz, title text, hint text)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with report as (
        select min(c.received_at) as first,
               min(c.received_at) filter (where c.status = 2) as approved,
               min(c.received_at) filter (where c.status in (4, 5)) as refunded,
               min(c.clicked_at) filter (where c.affiliate_id is not null) as clicked
          from affiliate.conversion c
         where c.merchant_id = p_merchant_id
           and not c.livemode
    )
    select s.*
      from report r
     cross join lateral (values
        (1, 'site_verified',
            (select min(v.verified_at) from affiliate.site_verification v where v.merchant_id = p_merchant_id and v.state = 'verified'),
            'Your site is yours',
            'Put the TXT record or the file where the verification of your site says.'),
        (2, 'test_key_made',
            (select min(k.created_at) from affiliate.api_key k where k.merchant_id = p_merchant_id and not k.livemode),
            'A test key was made',
            'Make a test key, and keep its secret where your shop keeps such: it is shown once.'),
        (3, 'test_link_followed',
            least(r.clicked,
                  (select min(d.day)::timestamptz from affiliate.click_days d
                    where d.merchant_id = p_merchant_id and not d.livemode and d.valid + d.duplicate + d.suspect > 0)),
            'A test link was followed',
            'Open a test link in a browser; your landing page must keep the affiliate_click_id that comes with it until the order.'),
        (4, 'signed_call_accepted', r.first,
            'A signed call was accepted',
            'Report an order with your test key. If it is refused, the log of the key''s calls says why.'),
        (5, 'approval_seen', r.approved,
            'An order was approved',
            'Report status "approved" when an order is delivered and its time to return is over: the hold begins then.'),
        (6, 'refund_seen', r.refunded,
            'An order was refunded',
            'Report status "refunded" or "returned", with an amount if it is a part, when you give money back.'),
        (7, 'retry_seen',
            (select m.at from affiliate.milestone m where m.merchant_id = p_merchant_id and m.name = 'retry'),
            'A call was repeated',
            'Send a call again with the same Idempotency-Key and body, as after a timeout: it is answered 200, and counts once.'),
        (8, 'live_key_made',
            (select min(k.created_at) from affiliate.api_key k
              where k.merchant_id = p_merchant_id and k.livemode and k.revoked_at is null),
            'A live key was made',
            'Once you are approved and all above is done, make a live key and use it in place of the test key.')
           ) as s(place, item, at, title, hint)
$$;

create function affiliate.api_checklist_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request);
    return query
    select jsonb_build_object(
               'done', bool_and(c.at is not null),
               'items', jsonb_agg(jsonb_build_object(
                            'item', c.item, 'title', c.title, 'done', c.at is not null, 'at', c.at,
                            'hint', case when c.at is null then c.hint end) order by c.place))
      from affiliate.checklist(p_actor.merchant_id) c;
end
$$;

select affiliate.operation('key_create', actors => '{merchant,admin}', role => 'manager', creates => true),
       affiliate.operation('key_list', actors => '{merchant,admin}'),
       affiliate.operation('key_show', actors => '{merchant,admin}'),
       affiliate.operation('key_update', actors => '{merchant,admin}', role => 'manager', mutates => true),
       affiliate.operation('key_revoke', actors => '{merchant,admin}', role => 'manager', creates => true, while_suspended => true),
       affiliate.operation('key_call_list', actors => '{merchant,key,admin}'),
       affiliate.operation('signature_check', actors => '{merchant,key,admin}'),
       affiliate.operation('checklist_show', actors => '{merchant,key,admin}');
select affiliate.seal_operations();
