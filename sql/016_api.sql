-- The API's way in: one function that knows who calls, what he may, and answers once.
--
-- An operation is a function api_NAME(actor, request) and a row of affiliate.api_operation that says who may call it. Those
-- functions belong to affiliate_tenant, a role that can not log in, and run with its rights: it reads tables through row-level
-- security only, whose policies compare with what api_call() has set for this transaction, and writes by functions of the
-- schema's owner that were opened to it (enter_as_tenant()), whose first argument is the tenant or the actor. So an operation
-- that forgets whose rows it may touch finds none of others.

-- Roles belong to the whole server: another database may have made this one already, and another owner may have to be given it.
do $$
begin
    if to_regrole('affiliate_tenant') is null then
        create role affiliate_tenant nologin;
    end if;
    if not pg_has_role(current_user, 'affiliate_tenant', 'usage') then
        execute format('grant affiliate_tenant to %I', current_user);
    end if;
exception when insufficient_privilege then
    raise exception 'a superuser must do this first: create role affiliate_tenant nologin; grant affiliate_tenant to %;',
        quote_ident(current_user) using errcode = 'insufficient_privilege';
end
$$;

grant usage on schema affiliate to affiliate_tenant;

-- ---------------------------------------------------------------------------------------------------------------
-- Operations and ways in
-- ---------------------------------------------------------------------------------------------------------------

create table affiliate.api_operation (
    operation       text primary key check (operation ~ '^[a-z][a-z0-9_]*$'),
    actors          text[] not null check (
                        actors <@ '{nobody,person,affiliate,merchant,key,admin}' and cardinality(actors) > 0),
    role            text not null check (role in ('owner', 'manager', 'read_only')),
    mutates         boolean not null,
    creates         boolean not null,
    approved        boolean not null,
    while_suspended boolean not null,
    by_mode         boolean not null,
    check (mutates or not creates)
);

comment on table affiliate.api_operation is 'Who may call which operation of the API: rights are data';
comment on column affiliate.api_operation.role is 'The least role of a member';
comment on column affiliate.api_operation.mutates is 'It changes something: a session must show its CSRF token; who is suspended or rejected may not';
comment on column affiliate.api_operation.creates is 'A POST: it takes an Idempotency-Key, and its answer is stored';
comment on column affiliate.api_operation.approved is 'Only for merchants and affiliates that an admin has approved';
comment on column affiliate.api_operation.while_suspended is 'Also for those that are suspended or rejected';
comment on column affiliate.api_operation.by_mode is 'What it changes is live or test: a test key may call it, and changes nothing that is live';

create function affiliate.operation(
    p_operation text, actors text[], role text default 'read_only', mutates boolean default false, creates boolean default false,
    approved boolean default false, while_suspended boolean default false, by_mode boolean default false)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    insert into affiliate.api_operation
    values ($1, $2, $3, $4 or $5, $5, $6, $7, $8)
        on conflict (operation) do update
       set actors = excluded.actors, role = excluded.role, mutates = excluded.mutates, creates = excluded.creates,
           approved = excluded.approved, while_suspended = excluded.while_suspended, by_mode = excluded.by_mode
$$;

comment on function affiliate.operation is 'Registers an operation, or changes who may call it; for migrations';

-- Ways in for the API's login, which are none for the daemon's.
create table affiliate.api_entry (
    name            text primary key
);

comment on table affiliate.api_entry is 'Functions that grant_api_rights() opens to the API''s login';

create function affiliate.enter_as_api(variadic p_functions regprocedure[])
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.enter_as_owner(variadic p_functions);
    insert into affiliate.api_entry (name)
    select p.proname from pg_catalog.pg_proc p where p.oid = any (p_functions::oid[])
        on conflict do nothing
$$;

comment on function affiliate.enter_as_api is 'Makes functions ways in of the API''s login; for migrations';

-- The owner's functions that operations may call. Their first argument says whose rows they may touch.
create function affiliate.enter_as_tenant(variadic p_functions regprocedure[])
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    entry regprocedure;
begin
    perform affiliate.enter_as_owner(variadic p_functions);
    foreach entry in array p_functions loop
        execute format('grant execute on function %s to affiliate_tenant', entry);
    end loop;
end
$$;

comment on function affiliate.enter_as_tenant is 'Opens functions to the operations of the API, to write for a tenant; for migrations';

-- Puts operations behind the fence: their owner is affiliate_tenant, and nobody calls them but api_call(). A migration that adds
-- operations ends with this.
create function affiliate.seal_operations()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    owner name := (select pg_get_userbyid(n.nspowner) from pg_catalog.pg_namespace n where n.nspname = 'affiliate');
    entry regprocedure;
    stray text;
begin
    select string_agg(coalesce(o.operation, p.proname), ', ') into stray
      from affiliate.api_operation o
      full join (select p.proname
                   from pg_catalog.pg_proc p
                  where p.pronamespace = 'affiliate'::regnamespace
                    and p.proname like 'api\_%'
                    and p.proargtypes[0] = 'affiliate.actor'::regtype) p
        on p.proname = 'api_' || o.operation
     where o.operation is null or p.proname is null;
    if stray is not null then
        raise exception 'operations without a function, or the other way round: %', stray;
    end if;

    -- Whom a function is given to must be allowed to create one, at that moment.
    grant create on schema affiliate to affiliate_tenant;
    for entry in
        select p.oid::regprocedure
          from affiliate.api_operation o
          join pg_catalog.pg_proc p
            on p.pronamespace = 'affiliate'::regnamespace and p.proname = 'api_' || o.operation
    loop
        execute format('alter function %s security definer', entry);
        execute format('alter function %s owner to affiliate_tenant', entry);
        execute format('revoke execute on function %s from public', entry);
        execute format('grant execute on function %s to %I', entry, owner);
    end loop;
    revoke create on schema affiliate from affiliate_tenant;
end
$$;

comment on function affiliate.seal_operations is 'Ends a migration that adds operations';

-- The ways in of the daemon and its commands: neither operations, nor what was opened to them, nor the API's own.
create function affiliate.entries()
returns table (entry regprocedure, is_command boolean)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select p.oid::regprocedure,
           p.proargtypes = '3802'::oidvector    -- (jsonb)
           or p.proname in ('create_click_partition', 'dead_letter_replayed')
      from pg_catalog.pg_proc p
     where p.pronamespace = 'affiliate'::regnamespace
       and p.prosecdef
       and not has_function_privilege('affiliate_tenant', p.oid, 'execute')
       and p.proname not in (select e.name from affiliate.api_entry e)
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- The fence
-- ---------------------------------------------------------------------------------------------------------------

-- Whose rows this transaction may see; null if nobody's of that kind.
create function affiliate.fence_merchant()
returns bigint
language sql stable
return nullif(current_setting('affiliate.merchant', true), '')::bigint;

create function affiliate.fence_affiliate()
returns bigint
language sql stable
return nullif(current_setting('affiliate.affiliate', true), '')::bigint;

create function affiliate.fence_open()
returns boolean
language sql stable
return coalesce(current_setting('affiliate.fence', true), '') = 'open';

-- Lets operations read a table, each tenant his own rows: those with its merchant_id, those for which p_affiliate (an
-- expression of the table's columns) is the affiliate's id, and those for which p_others holds. Everybody else who may read or
-- write it still does: the owner, for whom row-level security does not count, and whoever was granted something.
create function affiliate.fence(p_table regclass, p_merchant text default 'merchant_id', p_affiliate text default null, p_others text default null)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    execute format('alter table %s enable row level security', p_table);
    execute format('drop policy if exists tenant on %s', p_table);
    execute format('drop policy if exists others on %s', p_table);
    execute format('create policy tenant on %s for select to affiliate_tenant using (%s)', p_table, concat_ws(' or ',
        '(select affiliate.fence_open())',
        p_merchant || ' = (select affiliate.fence_merchant())',
        p_affiliate || ' = (select affiliate.fence_affiliate())',
        p_others));
    execute format('create policy others on %s using ((select current_user <> ''affiliate_tenant''))', p_table);
    execute format('grant select on %s to affiliate_tenant', p_table);
end
$$;

comment on function affiliate.fence is 'Opens a table to operations, behind row-level security; for migrations';

-- What an affiliate may see of merchants: those that are, or were, at work.
select affiliate.fence('affiliate.merchant', p_others =>
    $$(select affiliate.fence_affiliate()) is not null and decision = 'approved'$$);
select affiliate.fence(t, p_others =>
    $$(select affiliate.fence_affiliate()) is not null and exists (select from affiliate.merchant m where m.merchant_id = $$
    || split_part(t::text, '.', 2) || '.merchant_id)')
  from unnest(array['affiliate.campaign', 'affiliate.terms', 'affiliate.product_rate']::regclass[]) t;

-- A merchant sees the affiliates that have links of his; their addresses nobody does.
select affiliate.fence('affiliate.link', p_affiliate => 'affiliate_id');
select affiliate.fence('affiliate.affiliate', p_merchant => null, p_affiliate => 'affiliate_id', p_others =>
    $$exists (select from affiliate.link l where l.affiliate_id = affiliate.affiliate_id and l.merchant_id = (select affiliate.fence_merchant()))$$);
revoke select on affiliate.affiliate from affiliate_tenant;
grant select (affiliate_id, name, suspended, decision, state, version, created_at) on affiliate.affiliate to affiliate_tenant;

select affiliate.fence('affiliate.api_key');
select affiliate.fence('affiliate.conversion', p_affiliate => 'affiliate_id');
select affiliate.fence('affiliate.waiting');
select affiliate.fence('affiliate.order_fact', p_affiliate => 'coalesce(posted_affiliate_id, affiliate_id)');
select affiliate.fence('affiliate.account', p_affiliate => $$case when owner = 'affiliate' then owner_id end$$);
select affiliate.fence('affiliate.hold', p_affiliate => 'affiliate_id');
select affiliate.fence('affiliate.release', p_affiliate => 'affiliate_id');
select affiliate.fence('affiliate.release_item', p_others =>
    $$(select affiliate.fence_affiliate()) is not null
      and exists (select from affiliate.release r where r.merchant_id = release_item.merchant_id and r.release_id = release_item.release_id)$$);
select affiliate.fence('affiliate.transfer', p_others =>
    $$(select affiliate.fence_affiliate()) is not null
      and exists (select from affiliate.account a
                   where a.merchant_id = transfer.merchant_id and a.account_id in (transfer.debit_account, transfer.credit_account))$$);
select affiliate.fence('affiliate.merchant_profile');
select affiliate.fence('affiliate.affiliate_profile', p_merchant => null, p_affiliate => 'affiliate_id');
select affiliate.fence('affiliate.member');
select affiliate.fence('affiliate.invitation');
select affiliate.fence('affiliate.audit_record', p_affiliate => 'affiliate_id');
grant select on affiliate.currency, affiliate.transfer_code to affiliate_tenant;

-- Views that look at orders do it with the rights of who looks.
alter view affiliate.order_now set (security_invoker = true);
alter view affiliate.posting set (security_invoker = true);
grant select on affiliate.order_now, affiliate.posting to affiliate_tenant;

-- Clicks are loaded by COPY, which PostgreSQL refuses where row-level security holds: operations see them through this.
create view affiliate.click_seen with (security_barrier = true) as
select c.*
  from affiliate.click c
 where (select affiliate.fence_open())
    or c.merchant_id = (select affiliate.fence_merchant())
    or c.affiliate_id = (select affiliate.fence_affiliate());

comment on view affiliate.click_seen is 'Clicks of the tenant: what operations read in place of affiliate.click';

grant select on affiliate.click_seen to affiliate_tenant;

-- ---------------------------------------------------------------------------------------------------------------
-- Who calls, and as what
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.find_operation(p_operation text)
returns affiliate.api_operation
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    o affiliate.api_operation;
begin
    select * into o from affiliate.api_operation x where x.operation = p_operation;
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such operation.');
    end if;
    return o;
end
$$;

-- The session that is alive with this token, used now. Null fields if there is none.
create function affiliate.find_session(p_credential jsonb)
returns affiliate.session
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    s affiliate.session;
begin
    select x.* into s
      from affiliate.session x
      join affiliate.person p using (user_id)
     cross join affiliate.people_policy y
     where x.token_hash = p_credential ->> 'session'
       and x.last_seen_at > now() - y.session_idle
       and x.created_at > now() - y.session_absolute
       and p.suspended_at is null;

    -- A minute is near enough, and whoever holds the row, as a long answer does, is in nobody's way.
    if s.last_seen_at < now() - interval '1 minute' then
        update affiliate.session x
           set last_seen_at = now()
         where x.session_id in (select l.session_id
                                  from affiliate.session l
                                 where l.session_id = s.session_id
                                   for update skip locked);
    end if;
    return s;
end
$$;

create function affiliate.check_csrf(p_session affiliate.session, p_credential jsonb)
returns void
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    if p_session.csrf_hash is distinct from p_credential ->> 'csrf' then
        perform affiliate.problem(403, 'csrf', 'The header X-CSRF-Token is missing, or is not this session''s.');
    end if;
end
$$;

-- Who it is: nobody, a person, or a key with its merchant.
create function affiliate.identify(p_credential jsonb, p_meta jsonb, p_mutates boolean)
returns affiliate.actor
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    actor affiliate.actor;
    s affiliate.session;
begin
    actor.kind := 'nobody';
    actor.request_id := p_meta ->> 'request_id';

    if p_credential ? 'session' then
        s := affiliate.find_session(p_credential);
        if s.session_id is not null then
            if p_mutates then
                perform affiliate.check_csrf(s, p_credential);
            end if;
            actor.kind := 'person';
            actor.user_id := s.user_id;
            actor.session_id := s.session_id;
        end if;
    elsif p_credential ? 'key' then
        select 'key', k.merchant_id, k.key_id, k.livemode
          into actor.kind, actor.merchant_id, actor.key_id, actor.livemode
          from affiliate.api_key_id i
          join affiliate.api_key k using (merchant_id, key_id)
         where i.key_id = p_credential ->> 'key'
           and k.revoked_at is null;
        actor.kind := coalesce(actor.kind, 'nobody');
    end if;
    return actor;
end
$$;

create function affiliate.role_rank(p_role text)
returns integer
language sql immutable parallel safe
return array_position('{read_only,manager,owner}'::text[], p_role);

-- Null if the request names none, 0 if what it names can be none.
create function affiliate.requested_merchant(p_request jsonb)
returns bigint
language sql immutable parallel safe
return case when p_request ->> 'merchant' ~ '^[1-9][0-9]{0,17}$' then (p_request ->> 'merchant')::bigint
            when p_request ? 'merchant' then 0 end;

create function affiliate.refuse_merchant()
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.problem(404, 'not_found', 'There is no such merchant.')
$$;

-- A person, as what the operation wants him to be: a member of the merchant that it is about, an admin, an affiliate, himself.
create function affiliate.admit_person(p_actor affiliate.actor, p_operation affiliate.api_operation, p_merchant_id bigint)
returns affiliate.actor
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    actor affiliate.actor := p_actor;
    admin boolean;
begin
    if 'merchant' = any (p_operation.actors) and p_merchant_id is not null then
        select m.role into actor.role
          from affiliate.member m
         where m.merchant_id = p_merchant_id
           and m.user_id = p_actor.user_id;
        if affiliate.role_rank(actor.role) >= affiliate.role_rank(p_operation.role) then
            actor.kind := 'merchant';
            actor.merchant_id := p_merchant_id;
            return actor;
        end if;
    end if;

    if 'admin' = any (p_operation.actors) then
        select p.is_admin into admin from affiliate.person p where p.user_id = p_actor.user_id;
        if admin then
            if p_merchant_id is not null and not exists (select from affiliate.merchant m where m.merchant_id = p_merchant_id) then
                perform affiliate.refuse_merchant();
            end if;
            actor.kind := 'admin';
            actor.role := null;
            actor.merchant_id := p_merchant_id;
            return actor;
        end if;
    end if;

    if actor.role is not null then
        perform affiliate.problem(403, 'forbidden', format('This is for a member with the role %s.', p_operation.role));
    end if;
    if 'affiliate' = any (p_operation.actors) then
        select a.affiliate_id into actor.affiliate_id from affiliate.affiliate a where a.user_id = p_actor.user_id;
        if found then
            actor.kind := 'affiliate';
            return actor;
        end if;
    end if;
    if 'person' = any (p_operation.actors) then
        return actor;
    end if;
    if 'merchant' = any (p_operation.actors) and p_merchant_id is not null then
        perform affiliate.refuse_merchant();
    end if;
    perform affiliate.problem(403, 'forbidden', 'This is not for you.');
end
$$;

-- What the state of the merchant or affiliate allows.
create function affiliate.check_standing(p_actor affiliate.actor, p_operation affiliate.api_operation)
returns void
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    standing text := case
        when p_actor.kind in ('merchant', 'key') then (select m.state from affiliate.merchant m where m.merchant_id = p_actor.merchant_id)
        when p_actor.kind = 'affiliate' then (select a.state from affiliate.affiliate a where a.affiliate_id = p_actor.affiliate_id)
    end;
begin
    if standing in ('suspended', 'rejected')
       and (p_operation.mutates or p_actor.kind = 'key') and not p_operation.while_suspended then
        perform affiliate.problem(403, standing, format('Your account is %s.', standing));
    end if;
    if standing <> 'approved' and (p_operation.approved or p_actor.kind = 'key' and p_actor.livemode) then
        perform affiliate.problem(403, 'not_approved', 'Your account has not been approved yet.');
    end if;
end
$$;

-- As what the caller may call this operation; or a refusal.
create function affiliate.admit(p_actor affiliate.actor, p_operation affiliate.api_operation, p_request jsonb)
returns affiliate.actor
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    actor affiliate.actor := p_actor;
    merchant bigint := affiliate.requested_merchant(p_request);
begin
    if p_operation.actors = '{nobody}' then
        return row('nobody', null, null, null, null, null, null, true, p_actor.request_id)::affiliate.actor;
    end if;

    case actor.kind
        when 'nobody' then
            if not 'nobody' = any (p_operation.actors) then
                perform affiliate.problem(401, 'unauthenticated', 'Log in, or sign with a key.');
            end if;
        when 'key' then
            if p_request ? 'livemode' then
                perform affiliate.refuse('livemode', 'is the key''s own');
            end if;
            if merchant <> actor.merchant_id then
                perform affiliate.refuse_merchant();
            end if;
            if not 'key' = any (p_operation.actors) then
                perform affiliate.problem(403, 'forbidden', 'This is not for keys.');
            end if;
        else
            actor := affiliate.admit_person(actor, p_operation, merchant);
    end case;

    perform affiliate.check_standing(actor, p_operation);
    if actor.kind = 'key' and not actor.livemode and p_operation.mutates and not p_operation.by_mode then
        perform affiliate.problem(403, 'live_key_required', 'What this changes is not of one mode: sign it with a live key.');
    end if;
    actor.livemode := coalesce(actor.livemode, affiliate.boolean_field(p_request, 'livemode'), true);
    return actor;
end
$$;

create function affiliate.raise_fence(p_actor affiliate.actor)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select set_config('affiliate.merchant', case when p_actor.kind in ('merchant', 'key') then p_actor.merchant_id::text else '' end, true),
           set_config('affiliate.affiliate', case when p_actor.kind = 'affiliate' then p_actor.affiliate_id::text else '' end, true),
           set_config('affiliate.fence', case when p_actor.kind = 'admin' then 'open' else '' end, true),
           set_config('affiliate.answer', '', true)
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- The call
-- ---------------------------------------------------------------------------------------------------------------

-- Adds to the head of the answer, e.g. {"status": 201, "location": "/api/v1/..."}.
create function affiliate.answer(p_head jsonb)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select set_config('affiliate.answer',
                      (coalesce(nullif(current_setting('affiliate.answer', true), '')::jsonb, '{}') || p_head)::text, true)
$$;

comment on function affiliate.answer is 'Says the status and headers of an operation''s answer; without it, it is 200';

create function affiliate.answer_head()
returns jsonb
language sql stable
return '{"status": 200}'::jsonb || coalesce(nullif(current_setting('affiliate.answer', true), '')::jsonb, '{}');

create table affiliate.api_answer (
    scope           text collate "C" not null,
    livemode        boolean not null,
    operation       text not null,
    idempotency_key text collate "C" not null,
    body_hash       text not null,
    head            jsonb not null,
    rows            jsonb[] not null,
    created_at      timestamptz not null default now(),
    primary key (scope, operation, idempotency_key, livemode)
);

create index api_answer_created on affiliate.api_answer (created_at);

comment on table affiliate.api_answer is 'Answers to Idempotency-Keys, each stored in the transaction of its effect';
comment on column affiliate.api_answer.scope is 'Whose key it is: a merchant''s API keys share one, a person has his own';

create function affiliate.idempotency_scope(p_actor affiliate.actor, p_meta jsonb)
returns text
language sql immutable
return case p_actor.kind
           when 'key' then 'merchant ' || p_actor.merchant_id
           when 'nobody' then 'nobody ' || coalesce(p_meta ->> 'address', '')
           else 'person ' || p_actor.user_id || coalesce(' at ' || p_actor.merchant_id, '')
       end;

-- Each new answer makes room of two that are too old, so that they are gone without anybody caring for it.
create function affiliate.forget_answers()
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    delete from affiliate.api_answer
     where ctid = any (array(select a.ctid
                               from affiliate.api_answer a
                              where a.created_at < now() - (select y.answers_for from affiliate.people_policy y)
                              order by a.created_at
                              limit 2
                                for update skip locked))
$$;

-- Runs an operation once a key: again, it gives what it gave.
create function affiliate.call_once(
    p_function text, p_operation text, p_actor affiliate.actor, p_request jsonb, p_meta jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    key text := p_meta ->> 'idempotency_key';
    whose text := affiliate.idempotency_scope(p_actor, p_meta);
    before affiliate.api_answer;
    results jsonb[];
begin
    if coalesce(key, '') = '' or length(key) > 128 then
        perform affiliate.problem(400, 'idempotency_key', 'The header Idempotency-Key is required, of 1 to 128 characters.');
    end if;
    if not pg_try_advisory_xact_lock(hashtextextended(
               format('affiliate.api_answer %s %s %s %s', p_actor.livemode, p_operation, whose, key), 0)) then
        perform affiliate.problem(409, 'in_flight', 'A request with this Idempotency-Key is being answered right now.');
    end if;

    select * into before
      from affiliate.api_answer a
     where a.scope = whose
       and a.operation = p_operation
       and a.idempotency_key = key
       and a.livemode = p_actor.livemode
       and a.created_at >= now() - (select y.answers_for from affiliate.people_policy y);
    if found then
        if before.body_hash <> coalesce(p_meta ->> 'body_hash', '') then
            perform affiliate.problem(422, 'idempotency_conflict', 'This Idempotency-Key was used with another body.');
        end if;
        return next before.head || '{"replayed": true}';
        return query select unnest(before.rows);
        return;
    end if;

    execute format('select array_agg(r) from affiliate.%I($1, $2) r', p_function) into results using p_actor, p_request;
    perform affiliate.forget_answers();
    insert into affiliate.api_answer as a
    values (whose, p_actor.livemode, p_operation, key, coalesce(p_meta ->> 'body_hash', ''), affiliate.answer_head(), coalesce(results, '{}'))
        on conflict (scope, operation, idempotency_key, livemode) do update
       set body_hash = excluded.body_hash, head = excluded.head, rows = excluded.rows, created_at = now();
    return next affiliate.answer_head();
    return query select unnest(results);
end
$$;

create function affiliate.api_call(p_credential jsonb, p_operation text, p_request jsonb, p_meta jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set timezone = 'UTC'
as $$
declare
    o affiliate.api_operation := affiliate.find_operation(p_operation);
    called text := 'api_' || o.operation;
    request jsonb := coalesce(p_request, '{}');
    actor affiliate.actor;
    results jsonb[];
begin
    actor := affiliate.identify(p_credential, p_meta, o.mutates);
    actor := affiliate.admit(actor, o, request);
    perform affiliate.raise_fence(actor);

    request := request - 'livemode' - 'if_match' || coalesce(jsonb_build_object('if_match', nullif(p_meta ->> 'if_match', '')), '{}');
    if request ->> 'if_match' is null then
        request := request - 'if_match';
    end if;

    if o.creates then
        return query select affiliate.call_once(called, o.operation, actor, request, p_meta);
    elsif not o.mutates and request -> 'all' = 'true' then
        -- As long as the table may be: not gathered here first.
        return next '{"status": 200}'::jsonb;
        return query execute format('select r from affiliate.%I($1, $2) r', called) using actor, request;
    else
        execute format('select array_agg(r) from affiliate.%I($1, $2) r', called) into results using actor, request;
        return next affiliate.answer_head();
        return query select unnest(results);
    end if;
end
$$;

comment on function affiliate.api_call is 'Everything that the API does: a head row, then the data';

-- ---------------------------------------------------------------------------------------------------------------
-- Helpers of operations
-- ---------------------------------------------------------------------------------------------------------------

-- As check_fields(), but tells all that is wrong at once. What the path and the headers bring is no field.
create function affiliate.check_request(p_request jsonb, p_required text[] default '{}', p_optional text[] default '{}')
returns void
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    rules jsonb;
begin
    select jsonb_object_agg(field, rule) into rules
      from (select k, 'is not a field of this request'
              from jsonb_object_keys(p_request) k
             where k <> all (p_required || p_optional || '{merchant,if_match}')
             union all
            select f, 'is required'
              from unnest(p_required) f
             where jsonb_typeof(coalesce(p_request -> f, 'null')) = 'null') wrong(field, rule);
    perform affiliate.refuse_fields(rules);
end
$$;

-- The same for a list, by its filters.
create function affiliate.check_page(p_request jsonb, p_filters text[] default '{}')
returns void
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.check_request(p_request, '{}', p_filters || '{after,limit,sort,all}'::text[])
$$;

-- Where the request says which version it changes (If-Match), it must be this one. Sets the ETag, too: the answer's, if
-- nothing changes it.
create function affiliate.check_version(p_request jsonb, p_version bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    tags text := p_request ->> 'if_match';
begin
    if tags is not null and tags <> '*'
       and not format('"%s"', p_version) = any (regexp_split_to_array(tags, '\s*,\s*')) then
        perform affiliate.problem(412, 'precondition_failed', format('It was changed meanwhile: its version is %s.', p_version));
    end if;
end
$$;

-- Sets the answer's ETag.
create function affiliate.answer_version(p_version bigint)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.answer(jsonb_build_object('etag', format('"%s"', p_version)))
$$;

create function affiliate.cursor_text(p_sort text, p_value text, p_key text)
returns text
language sql immutable parallel safe
return rtrim(translate(encode(convert_to(jsonb_build_array(p_sort, p_value, p_key)::text, 'UTF8'), 'base64'), E'+/\n', '-_'), '=');

-- The sort's value and the key in a cursor, as text; null without a cursor. Refused if it is none of this list.
create function affiliate.cursor_values(p_after text, p_sort text, p_value_type text, p_key_type text)
returns text[]
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    parts jsonb;
begin
    if p_after is null then
        return null;
    end if;
    begin
        parts := convert_from(decode(rpad(translate(p_after, '-_', '+/'), (length(p_after) + 3) / 4 * 4, '='), 'base64'), 'UTF8')::jsonb;
        if parts ->> 0 = p_sort and jsonb_array_length(parts) = 3 then
            execute format('select $1::%s, $2::%s', p_value_type, p_key_type) using parts ->> 1, parts ->> 2;
            return array[parts ->> 1, parts ->> 2];
        end if;
    exception when data_exception then
        null;
    end;
    perform affiliate.refuse('after', 'is not a cursor of this list');
end
$$;

-- A page of a list: the rows of p_query, as p_row makes them, in one of the orders p_sorts, with _cursor.
--
--   affiliate.page(p_actor, p_request,
--       'select c, c.campaign_id, c.name, c.created_at from affiliate.campaign c where c.merchant_id = $1.merchant_id
--           and ($2 ->> ''state'' is null or ...)',
--       'affiliate.campaign_json(x.c)', '{-created_at timestamptz, name text}', 'campaign_id bigint')
--
-- $1 is the actor, $2 the request, x a row of the query. Sorts are columns of it, never null, with their types; the first is the
-- default, a - before it means downwards. The key, unique, decides among equals. Its rows are limit + 1, or all.
create function affiliate.page(
    p_actor affiliate.actor, p_request jsonb, p_query text, p_row text, p_sorts text[], p_key text)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    sort text := coalesce(affiliate.text_field(p_request, 'sort', 100), split_part(p_sorts[1], ' ', 1));
    sort_column text := ltrim(sort, '-');
    sort_type text := (select substr(s, strpos(s, ' ') + 1) from unnest(p_sorts) s where ltrim(split_part(s, ' ', 1), '-') = sort_column);
    key_column text := split_part(p_key, ' ', 1);
    key_type text := substr(p_key, strpos(p_key, ' ') + 1);
    up boolean := left(sort, 1) <> '-';
    every boolean := coalesce(affiliate.boolean_field(p_request, 'all'), false);
    rows integer := coalesce(affiliate.integer_field(p_request, 'limit', 1, 200), 50) + 1;
    after text[];
begin
    if sort_type is null or sort !~ '^-?[a-z]' then
        perform affiliate.refuse('sort', 'must be one of '
            || (select string_agg(ltrim(split_part(s, ' ', 1), '-'), ', ') from unnest(p_sorts) s) || ', or with - before it');
    end if;
    after := affiliate.cursor_values(affiliate.text_field(p_request, 'after', 2000), sort, sort_type, key_type);

    return query execute format(
        'select %1$s%2$s from (%3$s) x %4$s order by x.%5$I %6$s, x.%7$I %6$s %8$s',
        p_row,
        case when not every then
            format(' || jsonb_build_object(''_cursor'', affiliate.cursor_text(%L, x.%I::text, x.%I::text))', sort, sort_column, key_column) end,
        p_query,
        case when after is not null then
            format('where (x.%I, x.%I) %s ($3::%s, $4::%s)', sort_column, key_column, case when up then '>' else '<' end, sort_type, key_type) end,
        sort_column,
        case when up then 'asc' else 'desc' end,
        key_column,
        case when not every then format('limit %s', rows) end)
    using p_actor, p_request, after[1], after[2];
end
$$;

comment on function affiliate.page is 'Lists of the API: order, cursor and limit; see its source';

-- ---------------------------------------------------------------------------------------------------------------
-- Operations of people
-- ---------------------------------------------------------------------------------------------------------------

select affiliate.fence('affiliate.person', p_merchant => null);
revoke select on affiliate.person from affiliate_tenant;
grant select (user_id, email, name, verified_at, is_admin, suspended_at, version, created_at) on affiliate.person to affiliate_tenant;
select affiliate.fence('affiliate.site_verification');
select affiliate.fence('affiliate.payout_method', p_merchant => null, p_affiliate => 'affiliate_id');
grant select on affiliate.promotion, affiliate.payout_kind to affiliate_tenant;

-- Members with what is told of them.
create function affiliate.members_of(p_merchant_id bigint)
returns table (user_id bigint, name text, created_at timestamptz, role text, object jsonb)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select m.user_id, p.name, m.created_at, m.role, affiliate.member_json(m)
      from affiliate.member m
      join affiliate.person p using (user_id)
     where m.merchant_id = p_merchant_id
$$;

create function affiliate.sessions_of(p_actor affiliate.actor)
returns table (session_id bigint, created_at timestamptz, object jsonb)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select s.session_id, s.created_at,
           affiliate.session_json(s) || jsonb_build_object('current', s.session_id is not distinct from p_actor.session_id)
      from affiliate.live_sessions(p_actor.user_id) s
$$;

create function affiliate.merchants_of(p_user_id bigint)
returns table (merchant_id bigint, name text, object jsonb)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select x.merchant_id, x.name, affiliate.merchant_json(x) || jsonb_build_object('role', m.role)
      from affiliate.member m
      join affiliate.merchant x using (merchant_id)
     where m.user_id = p_user_id
$$;

create function affiliate.invitation_rows(p_actor affiliate.actor)
returns table (invitation_id bigint, created_at timestamptz, object jsonb)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select i.invitation_id, i.created_at, affiliate.invitation_json(i)
      from affiliate.invitations_of(p_actor) i
$$;

-- Registration, and what is mailed. Whether an address is somebody's changes nothing of the answers.

create function affiliate.answer_accepted(p_row jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.answer('{"status": 202}');
    return next p_row;
end
$$;

create function affiliate.answer_created(p_location text, p_row jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.answer(jsonb_build_object('status', 201, 'location', '/api/v1' || p_location));
    if p_row ? 'version' then
        perform affiliate.answer_version((p_row ->> 'version')::bigint);
    end if;
    return next p_row;
end
$$;

create function affiliate.answer_object(p_row jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    if p_row is null then
        perform affiliate.problem(404, 'not_found', 'There is no such thing.');
    end if;
    if p_row ? 'version' then
        perform affiliate.answer_version((p_row ->> 'version')::bigint);
    end if;
    return next p_row;
end
$$;

-- Nothing to show: 204.
create function affiliate.answer_nothing()
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.answer('{"status": 204}');
end
$$;

create function affiliate.register(p_actor affiliate.actor, p_request jsonb, p_as text)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.text_field(p_request, 'name', 200);
    perform affiliate.address_form(p_request, 'email');
    perform affiliate.check_application(p_as, p_request - '{email,name,_password}'::text[]);
    perform affiliate.register_person(p_actor, p_request,
        jsonb_build_object('as', p_as, 'fields', p_request - '{email,name,_password}'::text[]));
    return query select affiliate.answer_accepted(jsonb_build_object('email', p_request ->> 'email'));
end
$$;

create function affiliate.api_registration_affiliate_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{email,name,_password}', '{display_name,country,phone,description,channels,methods}');
    return query select affiliate.register(p_actor, p_request, 'affiliate');
end
$$;

create function affiliate.api_registration_merchant_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{email,name,_password,business_name,website}',
        '{legal_name,registration_no,tax_no,country,address,phone,contact_email,description}');
    return query select affiliate.register(p_actor, p_request, 'merchant');
end
$$;

create function affiliate.api_registration_person_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{email,name,_password}');
    return query select affiliate.register(p_actor, p_request, 'person');
end
$$;

create function affiliate.api_email_verification_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_user,_nonce,_expires}');
    return next affiliate.verify_person(p_actor, p_request);
end
$$;

create function affiliate.api_password_reset_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{email}');
    perform affiliate.ask_password_reset(affiliate.address_form(p_request, 'email'));
    return query select affiliate.answer_accepted(jsonb_build_object('email', p_request ->> 'email'));
end
$$;

create function affiliate.api_password_reset_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_user,_nonce,_expires,_password}');
    perform affiliate.reset_password(p_actor, p_request);
    return query select affiliate.answer_nothing();
end
$$;

-- A person's own.

create function affiliate.api_session_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request);
    return next affiliate.session_view(p_actor.session_id);
end
$$;

create function affiliate.api_session_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request);
    perform affiliate.revoke_session(p_actor, p_actor.session_id);
    return query select affiliate.answer_nothing();
end
$$;

create function affiliate.api_session_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request, 'select * from affiliate.sessions_of($1)', 'x.object',
                                       '{-created_at timestamptz}', 'session_id bigint');
end
$$;

-- The id in a path; what can be none is not there.
create function affiliate.path_id(p_request jsonb, p_field text)
returns bigint
language sql immutable parallel safe
return case when p_request ->> p_field ~ '^[1-9][0-9]{0,17}$' then (p_request ->> p_field)::bigint else 0 end;

create function affiliate.api_session_revoke(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{session}');
    perform affiliate.revoke_session(p_actor, affiliate.path_id(p_request, 'session'));
    return query select affiliate.answer_nothing();
end
$$;

create function affiliate.api_me_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request);
    return query select affiliate.answer_object(affiliate.person_view(p_actor.user_id));
end
$$;

create function affiliate.api_me_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{}', '{name}');
    return query select affiliate.answer_object(affiliate.change_person(p_actor, p_request));
end
$$;

create function affiliate.api_me_email_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{email,_current}');
    perform affiliate.ask_email_change(p_actor, p_request);
    return query select affiliate.answer_accepted(jsonb_build_object('email', p_request ->> 'email'));
end
$$;

create function affiliate.api_me_password_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_current,_password,_token,_csrf}');
    return next affiliate.change_password(p_actor, p_request);
end
$$;

create function affiliate.api_me_totp_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_current,_secret}');
    perform affiliate.offer_totp(p_actor, p_request);
    perform affiliate.answer('{"status": 201}');
    return next jsonb_build_object('_secret', p_request -> '_secret');
end
$$;

create function affiliate.api_me_totp_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_step,_codes,_recovery}');
    perform affiliate.confirm_totp(p_actor, p_request);
    return next jsonb_build_object('totp', true, '_recovery', p_request -> '_recovery');
end
$$;

create function affiliate.api_me_totp_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_current}');
    perform affiliate.drop_totp(p_actor, p_request);
    return query select affiliate.answer_nothing();
end
$$;

create function affiliate.api_me_recovery_codes_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_current,_codes,_recovery}');
    perform affiliate.renew_recovery_codes(p_actor, p_request);
    perform affiliate.answer('{"status": 201}');
    return next jsonb_build_object('totp', true, '_recovery', p_request -> '_recovery');
end
$$;

create function affiliate.api_invitation_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request, 'select * from affiliate.invitation_rows($1)', 'x.object',
                                       '{-created_at timestamptz}', 'invitation_id bigint');
end
$$;

create function affiliate.api_invitation_accept(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{invitation}');
    return next affiliate.settle_invitation(p_actor, affiliate.path_id(p_request, 'invitation'), true);
end
$$;

create function affiliate.api_invitation_decline(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{invitation}');
    perform affiliate.settle_invitation(p_actor, affiliate.path_id(p_request, 'invitation'), false);
    return query select affiliate.answer_nothing();
end
$$;

create function affiliate.api_merchant_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request, 'select * from affiliate.merchants_of($1.user_id)', 'x.object',
                                       '{name text}', 'merchant_id bigint');
end
$$;

-- Who is a person already applies without registering again.
create function affiliate.api_merchant_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    id bigint;
begin
    perform affiliate.check_request(p_request, '{business_name,website}',
        '{legal_name,registration_no,tax_no,country,address,phone,contact_email,description}');
    perform affiliate.check_application('merchant', p_request);
    id := affiliate.apply_as_merchant(p_actor, p_request);
    return query select affiliate.answer_created('/merchants/' || id, affiliate.merchant_view(id));
end
$$;

create function affiliate.api_affiliate_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    id bigint;
begin
    perform affiliate.check_request(p_request, '{}', '{display_name,country,phone,description,channels,methods}');
    perform affiliate.check_application('affiliate', p_request);
    -- A statement before the one that looks at it, or it would not be seen.
    id := affiliate.apply_as_affiliate(p_actor, p_request);
    return query select affiliate.answer_created('/affiliate', affiliate.affiliate_view(id));
end
$$;

-- An affiliate's.

create function affiliate.api_affiliate_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request);
    return query select affiliate.answer_object(affiliate.affiliate_view(p_actor.affiliate_id));
end
$$;

create function affiliate.api_affiliate_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{}', '{display_name,country,phone,description,channels,methods}');
    return query select affiliate.answer_object(affiliate.change_affiliate(p_actor, p_actor.affiliate_id, p_request));
end
$$;

-- After a rejection, with what was wrong put right.
create function affiliate.api_affiliate_submit(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request);
    return query select affiliate.answer_object(affiliate.decide_affiliate(p_actor, p_actor.affiliate_id, 'submit', null));
end
$$;

create function affiliate.api_payout_method_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request,
        'select p, p.payout_method_id, p.created_at from affiliate.payout_method p where p.affiliate_id = $1.affiliate_id and p.removed_at is null',
        'affiliate.payout_method_json(x.p)', '{created_at timestamptz}', 'payout_method_id bigint');
end
$$;

create function affiliate.api_payout_method_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made jsonb;
begin
    perform affiliate.check_request(p_request, '{kind,holder,account}', '{bank,branch,default}');
    made := affiliate.add_payout_method(p_actor, p_actor.affiliate_id, p_request);
    return query select affiliate.answer_created('/affiliate/payout-methods/' || (made ->> 'payout_method'), made);
end
$$;

create function affiliate.api_payout_method_default(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{payout_method}');
    return query select affiliate.answer_object(affiliate.make_payout_default(p_actor, p_actor.affiliate_id, p_request));
end
$$;

create function affiliate.api_payout_method_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{payout_method}');
    perform affiliate.remove_payout_method(p_actor, p_actor.affiliate_id, p_request);
    return query select affiliate.answer_nothing();
end
$$;

-- A merchant's.

create function affiliate.api_merchant_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request);
    return query select affiliate.answer_object(affiliate.merchant_view(p_actor.merchant_id));
end
$$;

create function affiliate.api_merchant_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{}',
        '{name,hosts,legal_name,registration_no,tax_no,country,address,phone,contact_email,website,description}');
    return query select affiliate.answer_object(affiliate.change_merchant(p_actor, p_actor.merchant_id, p_request));
end
$$;

create function affiliate.api_merchant_submit(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request);
    return query select affiliate.answer_object(affiliate.decide_merchant(p_actor, p_actor.merchant_id, 'submit', null));
end
$$;

create function affiliate.api_site_verification_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request,
        'select s, s.host, s.started_at from affiliate.site_verification s where s.merchant_id = $1.merchant_id',
        'affiliate.site_verification_json(x.s)', '{host text,started_at timestamptz}', 'host text');
end
$$;

create function affiliate.api_site_verification_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    host text;
begin
    perform affiliate.check_request(p_request, '{host}', '{method}');
    host := lower(affiliate.form_field(p_request, 'host', 253,
        '^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9-]{0,61}[A-Za-z0-9]$', 'must be a host name, like shop.example'));
    return query select affiliate.answer_created(format('/merchants/%s/site-verifications', p_actor.merchant_id),
        affiliate.start_site_verification(p_actor, host,
            coalesce(affiliate.form_field(p_request, 'method', 4, '^(dns|file)$', 'must be dns or file'), 'dns')));
end
$$;

create function affiliate.api_member_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{role}');
    return query select affiliate.page(p_actor, p_request,
        'select * from affiliate.members_of($1.merchant_id) m where m.role = coalesce(affiliate.role_field($2), m.role)',
        'x.object', '{created_at timestamptz,name text}', 'user_id bigint');
end
$$;

create function affiliate.api_member_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{user,role}');
    return query select affiliate.answer_object(affiliate.change_member(p_actor, p_actor.merchant_id, affiliate.path_id(p_request, 'user'),
                                                                        affiliate.role_field(p_request), p_request));
end
$$;

create function affiliate.api_member_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{user}');
    perform affiliate.remove_member(p_actor, p_actor.merchant_id, affiliate.path_id(p_request, 'user'));
    return query select affiliate.answer_nothing();
end
$$;

create function affiliate.api_member_invitation_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request,
        'select i, i.invitation_id, i.created_at from affiliate.invitation i where i.merchant_id = $1.merchant_id and i.expires_at > now()',
        'affiliate.invitation_json(x.i)', '{-created_at timestamptz}', 'invitation_id bigint');
end
$$;

create function affiliate.api_member_invitation_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{email,role}');
    return query select affiliate.answer_created(format('/merchants/%s/invitations', p_actor.merchant_id),
        affiliate.invite_member(p_actor, affiliate.address_form(p_request, 'email'), affiliate.role_field(p_request)));
end
$$;

create function affiliate.api_member_invitation_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{invitation}');
    perform affiliate.withdraw_invitation(p_actor, p_actor.merchant_id, affiliate.path_id(p_request, 'invitation'));
    return query select affiliate.answer_nothing();
end
$$;

create function affiliate.audit_record_json(a affiliate.audit_record)
returns jsonb
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'audit_record', a.audit_id,
        'at', a.at,
        'actor', a.actor,
        'user', a.user_id,
        'key', a.key_id,
        'login', a.login,
        'merchant', a.merchant_id,
        'affiliate', a.affiliate_id,
        'request_id', a.request_id,
        'action', a.action,
        'kind', a.kind,
        'id', a.id,
        'from', a."from",
        'to', a."to",
        'reason', a.reason)
$$;

create function affiliate.audit_page(p_actor affiliate.actor, p_request jsonb, p_of text)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.page(p_actor, p_request, format(
        $q$select a, a.audit_id
             from affiliate.audit_record a
            where %s
              and ($2 ->> 'user' is null or a.user_id = affiliate.id_field($2, 'user'))
              and ($2 ->> 'action' is null or a.action = $2 ->> 'action')
              and ($2 ->> 'kind' is null or a.kind = $2 ->> 'kind')
              and ($2 ->> 'id' is null or a.id = $2 ->> 'id')
              and ($2 ->> 'since' is null or a.at >= affiliate.time_field($2, 'since'))
              and ($2 ->> 'until' is null or a.at < affiliate.time_field($2, 'until'))$q$, p_of),
        'affiliate.audit_record_json(x.a)', '{-audit_id bigint}', 'audit_id bigint')
$$;

create function affiliate.api_audit_record_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{user,action,kind,id,since,until}');
    return query select affiliate.audit_page(p_actor, p_request, 'a.merchant_id = $1.merchant_id');
end
$$;

-- An admin's.

create function affiliate.api_admin_audit_record_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{affiliate,user,action,kind,id,since,until}');
    return query select affiliate.audit_page(p_actor, p_request, concat_ws(' and ', 'true',
        case when p_actor.merchant_id is not null then 'a.merchant_id = $1.merchant_id' end,
        case when p_request ? 'affiliate' then 'a.affiliate_id = affiliate.id_field($2, ''affiliate'')' end));
end
$$;

create function affiliate.state_filter(p_request jsonb)
returns text
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.form_field(p_request, 'state', 20, '^(submitted|approved|rejected|suspended)$',
                                'must be submitted, approved, rejected or suspended')
$$;

create function affiliate.api_admin_merchant_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{state,q}');
    return query select affiliate.page(p_actor, p_request,
        $q$select m.merchant_id, m.name, m.created_at
             from affiliate.merchant m
            where m.state = coalesce(affiliate.state_filter($2), m.state)
              and ($2 ->> 'q' is null or strpos(lower(m.name), lower(affiliate.text_field($2, 'q', 200))) > 0)$q$,
        'affiliate.merchant_view(x.merchant_id)', '{-created_at timestamptz,name text}', 'merchant_id bigint');
end
$$;

create function affiliate.api_admin_merchant_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request);
    return query select affiliate.answer_object(affiliate.merchant_view(p_actor.merchant_id));
end
$$;

create function affiliate.admin_merchant_decision(p_actor affiliate.actor, p_request jsonb, p_verb text)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    unproven boolean := coalesce(affiliate.boolean_field(p_request, 'without_verification'), false);
begin
    if p_verb = 'approve' and not unproven
       and not exists (select
                         from affiliate.site_verification s
                        where s.merchant_id = p_actor.merchant_id and s.state = 'verified') then
        perform affiliate.problem(409, 'site_unverified', 'None of its hosts is proven; say without_verification if you know better.');
    end if;
    return query select affiliate.answer_object(
        affiliate.decide_merchant(p_actor, p_actor.merchant_id, p_verb, affiliate.text_field(p_request, 'reason', 500)));
end
$$;

create function affiliate.api_admin_merchant_approve(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{}', '{reason,without_verification}');
    return query select affiliate.admin_merchant_decision(p_actor, p_request, 'approve');
end
$$;

create function affiliate.api_admin_merchant_reject(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{reason}');
    return query select affiliate.admin_merchant_decision(p_actor, p_request, 'reject');
end
$$;

create function affiliate.api_admin_merchant_suspend(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{reason}');
    return query select affiliate.admin_merchant_decision(p_actor, p_request, 'suspend');
end
$$;

create function affiliate.api_admin_merchant_activate(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{}', '{reason}');
    return query select affiliate.admin_merchant_decision(p_actor, p_request, 'activate');
end
$$;

create function affiliate.api_admin_affiliate_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{state,q}');
    return query select affiliate.page(p_actor, p_request,
        $q$select a.affiliate_id, a.name, a.created_at
             from affiliate.affiliate a
            where a.state = coalesce(affiliate.state_filter($2), a.state)
              and ($2 ->> 'q' is null or strpos(lower(a.name), lower(affiliate.text_field($2, 'q', 200))) > 0)$q$,
        'affiliate.affiliate_view(x.affiliate_id)', '{-created_at timestamptz,name text}', 'affiliate_id bigint');
end
$$;

create function affiliate.requested_affiliate(p_request jsonb)
returns bigint
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    id bigint := affiliate.path_id(p_request, 'affiliate');
begin
    if not exists (select from affiliate.affiliate a where a.affiliate_id = id) then
        perform affiliate.problem(404, 'not_found', 'There is no such affiliate.');
    end if;
    return id;
end
$$;

create function affiliate.api_admin_affiliate_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{affiliate}');
    return query select affiliate.answer_object(affiliate.affiliate_view(affiliate.requested_affiliate(p_request)));
end
$$;

create function affiliate.admin_affiliate_decision(p_actor affiliate.actor, p_request jsonb, p_verb text)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    actor affiliate.actor := p_actor;
begin
    actor.affiliate_id := affiliate.requested_affiliate(p_request);
    return query select affiliate.answer_object(
        affiliate.decide_affiliate(actor, actor.affiliate_id, p_verb, affiliate.text_field(p_request, 'reason', 500)));
end
$$;

create function affiliate.api_admin_affiliate_approve(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{affiliate}', '{reason}');
    return query select affiliate.admin_affiliate_decision(p_actor, p_request, 'approve');
end
$$;

create function affiliate.api_admin_affiliate_reject(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{affiliate,reason}');
    return query select affiliate.admin_affiliate_decision(p_actor, p_request, 'reject');
end
$$;

create function affiliate.api_admin_affiliate_suspend(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{affiliate,reason}');
    return query select affiliate.admin_affiliate_decision(p_actor, p_request, 'suspend');
end
$$;

create function affiliate.api_admin_affiliate_activate(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{affiliate}', '{reason}');
    return query select affiliate.admin_affiliate_decision(p_actor, p_request, 'activate');
end
$$;

create function affiliate.api_admin_person_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{email,admin,q}');
    return query select affiliate.page(p_actor, p_request,
        $q$select p.user_id, p.name, p.created_at
             from affiliate.person p
            where ($2 ->> 'email' is null or lower(p.email) = lower(affiliate.text_field($2, 'email', 254)))
              and ($2 ->> 'admin' is null or p.is_admin = affiliate.boolean_field($2, 'admin'))
              and ($2 ->> 'q' is null or strpos(lower(p.name || ' ' || p.email), lower(affiliate.text_field($2, 'q', 200))) > 0)$q$,
        'affiliate.person_view(x.user_id)', '{-created_at timestamptz,name text}', 'user_id bigint');
end
$$;

create function affiliate.requested_person(p_request jsonb)
returns bigint
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    id bigint := affiliate.path_id(p_request, 'user');
begin
    if not exists (select from affiliate.person p where p.user_id = id) then
        perform affiliate.problem(404, 'not_found', 'There is no such person.');
    end if;
    return id;
end
$$;

create function affiliate.api_admin_person_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{user}');
    return query select affiliate.answer_object(affiliate.person_view(affiliate.requested_person(p_request)));
end
$$;

-- Admins are made, and unmade, on the command line; here they can't suspend each other.
create function affiliate.admin_person_switch(p_actor affiliate.actor, p_request jsonb, p_active boolean)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    id bigint := affiliate.requested_person(p_request);
begin
    if (select p.is_admin from affiliate.person p where p.user_id = id) then
        perform affiliate.problem(403, 'forbidden', 'Admins are suspended on the command line only.');
    end if;
    return query select affiliate.answer_object(
        affiliate.set_user_active(p_actor, id, p_active, affiliate.text_field(p_request, 'reason', 500)));
end
$$;

create function affiliate.api_admin_person_suspend(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{user,reason}');
    return query select affiliate.admin_person_switch(p_actor, p_request, false);
end
$$;

create function affiliate.api_admin_person_activate(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{user}', '{reason}');
    return query select affiliate.admin_person_switch(p_actor, p_request, true);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Who may call what
-- ---------------------------------------------------------------------------------------------------------------

select affiliate.operation(o, actors => '{nobody}', mutates => true, creates => o like '%create')
  from unnest('{registration_affiliate_create,registration_merchant_create,registration_person_create,email_verification_create,
                password_reset_create,password_reset_update}'::text[]) o;

select affiliate.operation(o, actors => '{person}')
  from unnest('{session_show,session_list,me_show,invitation_list,merchant_list}'::text[]) o;
select affiliate.operation(o, actors => '{person}', mutates => true, creates => o ~ '_(create|accept|decline)$')
  from unnest('{session_delete,session_revoke,me_update,me_email_update,me_password_update,me_totp_create,me_totp_update,me_totp_delete,
                me_recovery_codes_create,invitation_accept,invitation_decline,merchant_create,affiliate_create}'::text[]) o;

select affiliate.operation(o, actors => '{affiliate}')
  from unnest('{affiliate_show,payout_method_list}'::text[]) o;
select affiliate.operation(o, actors => '{affiliate}', mutates => true, while_suspended => true, creates => o = 'affiliate_submit')
  from unnest('{affiliate_update,affiliate_submit}'::text[]) o;
select affiliate.operation(o, actors => '{affiliate}', mutates => true, creates => o <> 'payout_method_delete')
  from unnest('{payout_method_create,payout_method_default,payout_method_delete}'::text[]) o;

select affiliate.operation('merchant_show', actors => '{merchant,key,admin}');
select affiliate.operation(o, actors => '{merchant,admin}')
  from unnest('{site_verification_list,member_list,member_invitation_list}'::text[]) o;
select affiliate.operation('audit_record_list', actors => '{merchant,admin}', role => 'manager');
select affiliate.operation('merchant_update', actors => '{merchant}', role => 'manager', mutates => true, while_suspended => true);
select affiliate.operation('merchant_submit', actors => '{merchant}', role => 'owner', creates => true, while_suspended => true);
select affiliate.operation('site_verification_create', actors => '{merchant}', role => 'manager', creates => true, while_suspended => true);
select affiliate.operation(o, actors => '{merchant}', role => 'owner', mutates => true, creates => o = 'member_invitation_create')
  from unnest('{member_update,member_delete,member_invitation_create,member_invitation_delete}'::text[]) o;

select affiliate.operation(o, actors => '{admin}')
  from unnest('{admin_merchant_list,admin_merchant_show,admin_affiliate_list,admin_affiliate_show,admin_person_list,admin_person_show,
                admin_audit_record_list}'::text[]) o;
select affiliate.operation(format('admin_%s_%s', k, v), actors => '{admin}', creates => true)
  from unnest('{merchant,affiliate}'::text[]) k,
       unnest('{approve,reject,suspend,activate}'::text[]) v;
select affiliate.operation(o, actors => '{admin}', creates => true)
  from unnest('{admin_person_suspend,admin_person_activate}'::text[]) o;

select affiliate.enter_as_tenant(variadic array(
    select p.oid::regprocedure
      from pg_catalog.pg_proc p
     where p.pronamespace = 'affiliate'::regnamespace
       and p.proname = any ('{record,notify,register_person,verify_person,ask_password_reset,reset_password,session_view,revoke_session,
                              person_view,change_person,ask_email_change,change_password,offer_totp,confirm_totp,drop_totp,
                              renew_recovery_codes,settle_invitation,apply_as_merchant,apply_as_affiliate,change_merchant,change_affiliate,
                              decide_merchant,decide_affiliate,add_payout_method,make_payout_default,remove_payout_method,
                              start_site_verification,change_member,remove_member,invite_member,withdraw_invitation,merchant_view,
                              affiliate_view,set_user_active,members_of,sessions_of,merchants_of,invitation_rows}')));

-- What C needs of a person who changes what his login is made of.
create function affiliate.login_person(p_credential jsonb, p_meta jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    s affiliate.session := affiliate.find_session(p_credential);
begin
    if s.session_id is null then
        perform affiliate.problem(401, 'unauthenticated', 'Log in.');
    end if;
    perform affiliate.check_csrf(s, p_credential);
    return (select jsonb_build_object('user_id', p.user_id, 'email', p.email, 'password', p.password, 'totp', p.totp,
                                      'totp_pending', p.totp_pending, 'totp_step', p.totp_step)
              from affiliate.person p
             where p.user_id = s.user_id);
end
$$;

select affiliate.enter_as_api(
    'affiliate.api_call(jsonb, text, jsonb, jsonb)', 'affiliate.login_begin(jsonb, jsonb)', 'affiliate.login_end(jsonb, jsonb)',
    'affiliate.login_person(jsonb, jsonb)', 'affiliate.key_record(text)');
select affiliate.seal_operations();

-- ---------------------------------------------------------------------------------------------------------------
-- Rights of logins
-- ---------------------------------------------------------------------------------------------------------------

-- Rights mean nothing to who owns all this, or may become who does; and who may make temporary tables could put triggers on them.
create function affiliate.check_grantee(p_role name)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    owner oid := (select n.nspowner from pg_catalog.pg_namespace n where n.nspname = 'affiliate');
begin
    if pg_has_role(p_role, owner, 'member') or pg_has_role(p_role, 'affiliate_tenant', 'member') then
        raise exception '% is a superuser, or the owner of the schema, or may become so: rights would mean nothing', p_role
            using errcode = 'invalid_grant_operation';
    end if;

    execute format('revoke temporary on database %I from public', current_database());
    if has_database_privilege(p_role, current_database(), 'temporary')
        or has_schema_privilege(p_role, 'affiliate', 'create') then
        raise exception '% may create temporary tables in this database, or objects in the schema', p_role
            using errcode = 'invalid_grant_operation',
                  hint = 'The owner of the schema should own the database, too.';
    end if;
end
$$;

-- Gives a login what the role api of the daemon needs, besides what it has: the one way in, and what belongs to logging in.
create function affiliate.grant_api_rights(p_role name)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    way regprocedure;
begin
    perform affiliate.check_grantee(p_role);
    execute format('grant usage on schema affiliate to %I', p_role);
    execute format('grant select on affiliate.schema_version to %I', p_role);
    for way in
        select p.oid::regprocedure
          from affiliate.api_entry e
          join pg_catalog.pg_proc p on p.proname = e.name and p.pronamespace = 'affiliate'::regnamespace
    loop
        execute format('grant execute on function %s to %I', way, p_role);
    end loop;
end
$$;

comment on function affiliate.grant_api_rights is 'Lets a login that owns nothing serve the API';

-- Gives everybody who had them the rights to what migrations have added. `affiliated migrate` ends with it.
create function affiliate.renew_rights()
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select case p.proname
               when 'apply_conversions' then
                   affiliate.grant_rights(r.rolname, has_function_privilege(r.oid, 'affiliate.merchant_create(jsonb)', 'execute'))
               else affiliate.grant_api_rights(r.rolname)
           end
      from pg_catalog.pg_proc p
     cross join lateral pg_catalog.aclexplode(p.proacl) g
      join pg_catalog.pg_roles r on r.oid = g.grantee
     where p.oid in ('affiliate.apply_conversions()'::regprocedure, 'affiliate.api_call(jsonb, text, jsonb, jsonb)'::regprocedure)
       and g.privilege_type = 'EXECUTE'
       and g.grantee <> p.proowner
$$;
