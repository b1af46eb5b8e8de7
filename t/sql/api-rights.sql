-- Rights: every operation that is registered, by whomever, called by everybody who may not; and by those who may, for what is
-- another's. What is added later is tried without a word here.

\ir support/people.psql

select plan(43);

-- ---------------------------------------------------------------------------------------------------------------
-- The wrong caller
-- ---------------------------------------------------------------------------------------------------------------

create temp table try (operation text, who text, outcome text);
create temp table may as
select o.*, array(select distinct unnest(o.actors)) as kinds from affiliate.api_operation o;

select cmp_ok((select count(*) from may), '>=', 60::bigint, 'there are operations');

-- What anybody gets who asks about the first merchant, and all else that is his.
create function pg_temp.attempt(p_who text, p_operation text, p_request jsonb default '{"merchant": "900001"}', p_meta jsonb default '{}')
returns text
language plpgsql
as $$
declare
    outcome text := '';
begin
    begin
        outcome := pg_temp.outcome(p_who, p_operation, p_request, p_meta);
        raise exception using errcode = 'ZZ000';
    exception when sqlstate 'ZZ000' then
        null;
    end;
    return outcome;
end
$$;

-- The rows of a query are those that break the rule.
create function pg_temp.none(p_query text, p_name text) returns text language sql as
$$ select is_empty(p_query, p_name) $$;

select pg_temp.none($$ select operation, o from may, pg_temp.attempt(null, operation) o
    where not 'nobody' = any (actors) and o <> 'AF401 unauthenticated' $$, 'nobody');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('ghost', operation) o
    where not 'nobody' = any (actors) and o <> 'AF401 unauthenticated' $$, 'who shows a session that is none');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('ak_live_none', operation) o
    where not 'nobody' = any (actors) and o <> 'AF401 unauthenticated' $$, 'or a key that is none');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('nobody2', operation) o
    where not actors && '{nobody,person}' and o !~ '^AF40[34] (forbidden|not_found)$' $$, 'a person who is nothing else');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('asha', operation) o
    where not actors && '{nobody,person,affiliate}' and o !~ '^AF40[34] (forbidden|not_found)$' $$, 'an affiliate');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('other', operation) o
    where not actors && '{nobody,person}' and o <> case when 'merchant' = any (actors) then 'AF404 not_found' else 'AF403 forbidden' end $$,
    'the owner of another merchant, to whom this one is not there');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('other', operation, '{"merchant": "1x"}') o
    where 'merchant' = any (actors) and not actors && '{nobody,person}' and o <> 'AF404 not_found' $$, 'a merchant that can be none');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('owner', operation, '{}') o
    where actors = '{merchant}' and o <> 'AF403 forbidden' $$, 'or is not named');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('reader', operation) o
    where actors && '{merchant}' and not actors && '{nobody,person}' and role <> 'read_only' and o <> 'AF403 forbidden' $$, 'a member who may only read');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('manager', operation) o
    where actors && '{merchant}' and not actors && '{nobody,person}' and role = 'owner' and o <> 'AF403 forbidden' $$, 'a manager, where it takes an owner');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('owner', operation) o
    where not actors && '{nobody,person,merchant}' and o <> 'AF403 forbidden' $$, 'an owner, where it takes somebody else');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('admin', operation) o
    where not actors && '{nobody,person,admin}' and o !~ '^AF40[34] (forbidden|not_found)$' $$, 'an admin');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('ak_live_fixture1', operation) o
    where not actors && '{nobody,key}' and o <> 'AF403 forbidden' $$, 'a key');
select pg_temp.none($$ select operation, k, o from may, unnest('{ak_live_fixture2,ak_test_fixture2}'::text[]) k, pg_temp.attempt(k, operation) o
    where 'key' = any (actors) and o <> 'AF404 not_found' $$, 'another merchant''s key');
select pg_temp.none($$ select operation, o from may, pg_temp.attempt('ak_test_fixture1', operation, '{"livemode": "true"}') o
    where 'key' = any (actors) and o <> '22023 livemode: is the key''s own' $$, 'a key that names its mode');

select pg_temp.none($$ select operation, o from may, pg_temp.attempt('ak_test_fixture1', operation) o
    where 'key' = any (actors) and (o = 'AF403 live_key_required') is distinct from (mutates and not by_mode) $$, 'a test key changes what is of its mode');
select pg_temp.none($$ select o.operation from may o where by_mode and operation !~ '^(order|reconciliation|test|webhook)_' $$, 'which is orders, what tests are made of, and who is told of them');

create temp table fit as
select m.operation, m.creates, m.mutates, m.while_suspended, m.approved, w.kind, w.who
  from may m
  join (values ('merchant', 'owner'), ('affiliate', 'asha'), ('admin', 'admin'), ('person', 'nobody2'), ('key', 'ak_live_fixture1'), ('key', 'ak_test_fixture1')) w(kind, who)
    on w.kind = any (m.actors);
select pg_temp.none($$ select f.operation, f.kind, array_agg(o) from fit f, pg_temp.attempt(f.who, f.operation) o
    group by 1, 2 having bool_and(o ~ '^AF40[13] ') $$, 'whoever may is not refused as somebody else, a key in one mode at least');
select pg_temp.none($$ select f.operation, f.who, o from fit f, pg_temp.attempt(f.who, f.operation, '{"merchant": "900001"}', '{"idempotency_key": null}') o
    where f.creates and o not like '400%' and o not in ('AF400 idempotency_key', 'AF403 live_key_required') $$, 'what creates takes an Idempotency-Key');

create function pg_temp.without_csrf(p_who text, p_operation text) returns text language plpgsql as $$
declare
    why text := 'nothing';
begin
    perform affiliate.api_call(jsonb_build_object('session', 'token-' || p_who), p_operation, '{"merchant": "900001"}', '{"idempotency_key": "x"}');
    return why;
exception when others then
    get stacked diagnostics why = pg_exception_hint;
    return why;
end
$$;
select pg_temp.none($$ select f.operation, f.who, o from fit f, pg_temp.without_csrf(f.who, f.operation) o
    where f.mutates and f.kind <> 'key' and o <> 'csrf' $$, 'and what changes anything a CSRF token');

-- Those that were suspended or rejected, at once.
savepoint approved;
select affiliate.merchant_suspend('{"merchant": 900001}') \g /dev/null
select affiliate.affiliate_suspend('{"affiliate": 900011}') \g /dev/null
select pg_temp.none($$ select f.operation, f.who, o from fit f, pg_temp.attempt(f.who, f.operation) o
    where f.kind in ('merchant', 'affiliate', 'key') and (f.mutates or f.kind = 'key') and not f.while_suspended and o <> 'AF403 suspended' $$,
    'who is suspended changes nothing, and his keys do nothing');
select is((select array_agg(revoked) from affiliate.key_projection where key_id like 'ak\__%\_fixture1'), '{t,t}', 'the keys are off');
select is((select array_agg(state) from affiliate.link_projection where code in ('fixture-1', 'fixture-2', 'fixture-4')), '{2,2,2}',
    'so are his links, and those of the affiliate everywhere');
select cmp_ok((select count(*) from affiliate.projection_change where name in ('ak_live_fixture1', 'ak_test_fixture1', 'fixture-4')), '>=', 3::bigint,
    'which is on its way');
rollback to approved;
update affiliate.api_key set revoked_at = now() where key_id = 'ak_live_fixture1';
select pg_temp.none($$ select f.operation, o from fit f, pg_temp.attempt(f.who, f.operation) o
    where f.who = 'ak_live_fixture1' and o <> 'AF401 unauthenticated' $$, 'a key that is revoked is none');
rollback to approved;
update affiliate.merchant set decision = 'rejected' where merchant_id = 900001;
update affiliate.affiliate set decision = 'rejected' where affiliate_id = 900011;
select pg_temp.none($$ select f.operation, f.who, o from fit f, pg_temp.attempt(f.who, f.operation) o
    where f.kind in ('merchant', 'affiliate', 'key') and (f.mutates or f.kind = 'key') and not f.while_suspended and o <> 'AF403 rejected' $$,
    'nor who was rejected');
rollback to approved;
update affiliate.merchant set decision = 'submitted' where merchant_id = 900001;
update affiliate.affiliate set decision = 'submitted' where affiliate_id = 900011;
select pg_temp.none($$ select f.operation, f.who, o from fit f, pg_temp.attempt(f.who, f.operation) o
    where f.kind in ('merchant', 'affiliate', 'key') and (f.approved or f.who like 'ak\_live%') and o <> 'AF403 not_approved' $$,
    'who is not approved has no live keys, and none of what takes an approval');
select is((select array_agg(key_id || revoked order by key_id) from affiliate.key_projection where key_id like 'ak\__%\_fixture1'),
    '{ak_live_fixture1true,ak_test_fixture1false}', 'his test keys work');
rollback to approved;

-- ---------------------------------------------------------------------------------------------------------------
-- The right caller, the wrong tenant's things
-- ---------------------------------------------------------------------------------------------------------------

-- The second merchant and affiliate 900012 have something of everything; what nobody else may see says LEAK.
update affiliate.merchant set name = 'LEAK shop' where merchant_id = 900002;
update affiliate.campaign set name = 'LEAK campaign' where merchant_id = 900002;
insert into affiliate.merchant_profile (merchant_id, legal_name, address) values (900002, 'LEAK Ltd', 'LEAK road');
insert into affiliate.affiliate_profile (affiliate_id, phone, description) values (900012, '+977 LEAK', 'LEAK profile');
insert into affiliate.payout_method (affiliate_id, kind, holder, account, is_default) values (900012, 'esewa', 'LEAK holder', '9800000000', true);
update affiliate.person set name = 'LEAK ' || name, email = 'leak' || user_id || '@LEAK.example' where user_id in (900104, 900106);
insert into affiliate.invitation (merchant_id, email, role, expires_at) values (900002, 'guest@LEAK.example', 'manager', now() + interval '1 day');
insert into affiliate.site_verification (merchant_id, host, method, challenge) values (900002, 'LEAK.example', 'dns', 'LEAKCHALLENGE');
update affiliate.api_key set label = 'LEAK key' where merchant_id = 900002;
insert into affiliate.link (merchant_id, link_id, campaign_id, affiliate_id, livemode, code, url) values
    (900002, 900045, 900023, 900012, true, 'LEAKcode', 'https://other.example/LEAK');
insert into affiliate.link_code (code, merchant_id, link_id) values ('LEAKcode', 900002, 900045);
insert into affiliate.membership (merchant_id, campaign_id, affiliate_id, state, message) values (900002, 900023, 900012, 'applied', 'LEAK message');
insert into affiliate.creative (merchant_id, campaign_id, title, body) values (900002, 900023, 'LEAK text', 'LEAK');
insert into affiliate.product (merchant_id, sku, availability, currency, price_minor, title, url) values
    (900002, 'LEAKsku', 'in_stock', 'USD', 100, 'LEAK product', 'https://other.example/LEAK');
insert into affiliate.product_category (merchant_id, category, name) values (900002, 'theirs', 'LEAK category');
insert into affiliate.import (merchant_id, kind, livemode, dry_run, header, actor_kind) values (900002, 'products', true, false, '{LEAK}', 'LEAK');
insert into affiliate.network_fee (merchant_id, fee_basis_points) values (900002, 1111);
select pg_temp.report(jsonb_build_object('order', 'LEAK-1', 'merchant', 900002, 'status', 'approved', 'amount', 5000, 'currency', 'USD',
    'click', pg_temp.click(7, p_link => 900045), 'at', now() - interval '10 minutes')) \g /dev/null
select affiliate.record(row('system', null, null, 900002, null, 900012, null, true, null)::affiliate.actor, 'LEAK', 'LEAK', 'LEAK', null, '{"x": "LEAK"}');

-- Values of fields that name something, and of others by their name: of the second tenant wherever there is one.
create temp table sample as
select '{"merchant": "900001", "campaign": "900023", "affiliate": "900012", "link": "LEAKcode", "code": "LEAKcode", "order": "LEAK-1",
         "key": "ak_live_fixture2", "role": "manager", "email": "x@people.example", "name": "x", "reason": "x", "host": "x.example",
         "kind": "esewa", "holder": "x", "account": "9841234567", "business_name": "x", "website": "https://x.example/", "url": "https://other.example/",
         "by": "day", "month": "2026-01", "currency": "NPR", "amount": "1.00", "sku": "x", "title": "x", "category": "theirs", "status": "approved",
         "product": "LEAKsku", "price": "1", "body": "x", "rate_percent": "1", "fee_percent": "1",
         "_upload": "1", "_line": 1, "_lines": 1, "_rows": [["x"]], "_header": ["id", "title", "link", "price"], "_bytes": 10, "_user": 900106, "_nonce": "00", "_expires": 1,
         "_password": "$scrypt$x", "_current": "$scrypt$x", "_token": "x", "_csrf": "x", "_secret": "00", "_step": 1, "_codes": ["x"],
         "_recovery": "00", "_key_id": "ak_live_made", "advance": "1 day", "_master_id": "m1"}'::jsonb
       || jsonb_build_object('user', '900104', 'session', (select session_id from affiliate.session where user_id = 900106)::text,
              'invitation', (select invitation_id from affiliate.invitation where email like '%LEAK%')::text,
              'payout_method', (select payout_method_id from affiliate.payout_method where affiliate_id = 900012)::text,
              'creative', (select creative_id from affiliate.creative where title = 'LEAK text')::text,
              'import', (select import_id from affiliate.import where actor_kind = 'LEAK')::text,
              'order_no', (select order_no from affiliate.order_fact where order_id = 'LEAK-1')::text) as fields;

-- Everything that is theirs, and not the caller's as well, whatever table it is in, as one number.
create function pg_temp.theirs(p_kind text) returns text language plpgsql as $$
declare
    part text;
    whole text := '';
    t record;
begin
    for t in
        select c.oid::regclass as name,
               string_agg(format('%I = %s', a.attname, case a.attname when 'merchant_id' then 900002 else 900012 end), ' or ') as mine
          from pg_class c
          join pg_attribute a on a.attrelid = c.oid and a.attname in ('merchant_id', 'affiliate_id') and not a.attisdropped
         where c.relnamespace = 'affiliate'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
           and c.relname <> 'audit_record'
         group by c.oid
         order by c.oid
    loop
        execute format('select md5(string_agg(x::text, E''\n'' order by x::text)) from %s x where (%s)%s', t.name, t.mine,
            case when p_kind = 'affiliate' and t.mine like '%affiliate_id%' then ' and affiliate_id is distinct from 900011'
                 when p_kind <> 'affiliate' and t.mine like '%merchant_id%' then ' and merchant_id is distinct from 900001' end) into part;
        whole := whole || coalesce(part, '-');
    end loop;
    return md5(whole);
end
$$;

-- Calls with the sample's fields: leaves out what the operation does not know, adds what it requires, and undoes all that it did.
create function pg_temp.reach(p_who text, p_kind text, p_operation text, out outcome text, out leaked text, out changed boolean) language plpgsql as $$
declare
    request jsonb := (select fields from sample);
    before text := pg_temp.theirs(p_kind);
    answer jsonb;
    field text;
    rules jsonb;
begin
    for attempt in 1 .. 60 loop
        begin
            answer := pg_temp.call(p_who, p_operation, request);
            changed := pg_temp.theirs(p_kind) <> before;
            raise exception using errcode = 'ZZ000';
        exception when sqlstate 'ZZ000' then
            null;
        end;
        exit when answer ->> 'error' is distinct from '22023';
        rules := case when answer ->> 'fields' like '{%' then (answer ->> 'fields')::jsonb
                      else jsonb_build_object(split_part(answer ->> 'code', ': ', 1), substr(answer ->> 'code', strpos(answer ->> 'code', ': ') + 2)) end;
        for field in select k from jsonb_object_keys(rules) k loop
            if rules ->> field like 'is required%' then
                exit when request ? field;
                request := request || jsonb_build_object(field, coalesce((select fields -> field from sample), '"x"'));
            else
                request := request - field;
            end if;
        end loop;
    end loop;
    outcome := coalesce((answer ->> 'error') || ' ' || (answer ->> 'code'), answer -> 'head' ->> 'status');
    leaked := (regexp_match(answer::text, '[^{}]*LEAK[^{}]*', 'i'))[1];
    -- What was asked may be told: the caller knew it.
    if outcome !~ '^2' and answer ->> 'code' !~ 'LEAK (shop|campaign|road|profile|holder|key|Ltd|message|text|product)' then
        leaked := null;
    end if;
end
$$;

create temp table reached as
select f.operation, f.kind, f.who, r.*
  from (select operation, kind, who from fit where kind in ('merchant', 'affiliate', 'key', 'person')
         union all
        select operation, 'merchant', 'manager' from may where 'merchant' = any (actors) and role <> 'owner') f,
       pg_temp.reach(f.who, f.kind, f.operation) r;
select cmp_ok((select count(*) from reached where outcome ~ '^(2..$|AF4)'), '>', (select count(*) * 3 / 5 from reached),
    'most operations were reached with fields that they take');
\o /dev/stderr
select '# not reached: ' || operation || ': ' || outcome from reached where kind <> 'key' and who <> 'manager' and outcome !~ '^(2..$|AF4)' order by 1;
\o
select pg_temp.none($$ select operation, who, outcome from reached where changed $$, 'nothing of the other tenant''s is changed');
select pg_temp.none($$ select operation, who, leaked from reached where leaked is not null and kind in ('merchant', 'key', 'person') $$,
    'a merchant sees nothing of another''s, nor what is an affiliate''s own');
-- Shops and what they offer are for affiliates to see.
select pg_temp.none($$ select operation, leaked from reached where kind = 'affiliate' and leaked ~* 'LEAK(code|-1|CHALLENGE| road| profile| holder| key| Ltd| message|\.example)' $$,
    'an affiliate sees nothing of another''s, nor what a merchant keeps to himself');
select pg_temp.none($$ select operation, who, outcome from reached where outcome ~ '^(42|XX|P0|22[^0]|2200[0-9]|23)' and outcome !~ '^22023' $$,
    'no request makes SQL fail but by a refusal');

-- ---------------------------------------------------------------------------------------------------------------
-- The fence, behind the rights
-- ---------------------------------------------------------------------------------------------------------------

select pg_temp.none($$ select c.oid::regclass, a.attname
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname in ('merchant_id', 'affiliate_id', 'user_id')
    where c.relnamespace = 'affiliate'::regnamespace and c.relkind in ('r', 'p') and not c.relrowsecurity
      and has_any_column_privilege('affiliate_tenant', c.oid, 'select') $$, 'what operations may read and is somebody''s is behind the fence');
select pg_temp.none($$ select c.oid::regclass from pg_class c
    where c.relnamespace = 'affiliate'::regnamespace and c.relkind = 'v' and has_table_privilege('affiliate_tenant', c.oid, 'select')
      and not coalesce(c.reloptions::text ~ 'security_invoker=(true|on|1)', false) and c.relname <> 'click_seen' $$, 'also through views');
select pg_temp.none($$ select c.oid::regclass from pg_class c, unnest('{insert,update,delete,truncate}'::text[]) p
    where c.relnamespace = 'affiliate'::regnamespace and c.relkind in ('r', 'p', 'v') and has_table_privilege('affiliate_tenant', c.oid, p) $$,
    'operations write nothing themselves');
select pg_temp.none($$ select a.attname from pg_attribute a where a.attrelid in ('affiliate.person'::regclass, 'affiliate.affiliate'::regclass)
    and a.attname in ('password', 'totp', 'totp_pending') and has_column_privilege('affiliate_tenant', a.attrelid, a.attname, 'select') $$,
    'and read no password');
select pg_temp.none($$ select p.oid::regprocedure from pg_proc p
    where p.pronamespace = 'affiliate'::regnamespace and p.prosecdef and has_function_privilege('affiliate_tenant', p.oid, 'execute')
      and p.proowner <> 'affiliate_tenant'::regrole and p.proname <> 'ask_password_reset'
      and coalesce(p.proargtypes[0], 0) not in ('int8'::regtype, 'affiliate.actor'::regtype)
      and not exists (select from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname in ('merchant_id', 'affiliate_id')
                       where c.reltype = p.proargtypes[0]) $$, 'what they may call takes the tenant, or who acts, or a row that has it, first');
select pg_temp.none($$ select p.oid::regprocedure from affiliate.api_operation o
    join pg_proc p on p.pronamespace = 'affiliate'::regnamespace and p.proname = 'api_' || o.operation
    where p.proowner <> 'affiliate_tenant'::regrole or not p.prosecdef or has_function_privilege('public', p.oid, 'execute') $$,
    'and nobody calls them but through api_call()');
select pg_temp.none($$ select c.oid::regclass from pg_class c where c.relnamespace = 'affiliate'::regnamespace and c.relforcerowsecurity $$,
    'the fence is in nobody else''s way');

-- As an operation would that asks for everything.
create temp table fenced (name text, merchants bigint[], affiliates bigint[]);
grant insert on fenced to affiliate_tenant;
select affiliate.raise_fence(row('merchant', 900101, null, 900001, 'owner', null, null, true, null)::affiliate.actor) \g /dev/null
set local role affiliate_tenant;
insert into fenced
select 'merchant', (select array_agg(distinct merchant_id) from affiliate.order_now),
       (select array_agg(affiliate_id order by 1) from affiliate.affiliate where affiliate_id in (900011, 900012, 900013));
select is((select count(*) from affiliate.click_seen), 0::bigint, 'nor are clicks, which have a view');
reset role;
select affiliate.raise_fence(row('affiliate', 900106, null, null, null, 900012, null, true, null)::affiliate.actor) \g /dev/null
set local role affiliate_tenant;
insert into fenced
select 'affiliate', (select array_agg(distinct merchant_id) from affiliate.order_now),
       (select array_agg(distinct coalesce(k.affiliate_id, l.affiliate_id)) from affiliate.link l full join affiliate.click_seen k using (merchant_id, link_id));
reset role;
select affiliate.raise_fence(row('person', 900106, null, null, null, null, null, true, null)::affiliate.actor) \g /dev/null
set local role affiliate_tenant;
insert into fenced
select 'nobody', (select array_agg(distinct merchant_id) from affiliate.merchant), (select array_agg(distinct affiliate_id) from affiliate.link);
reset role;
select results_eq($$ select name, merchants, affiliates from fenced order by name $$,
    $$ values ('affiliate', '{900002}'::bigint[], '{900012}'::bigint[]), ('merchant', null, '{900011,900012}'), ('nobody', null, null) $$,
    'the fence lets each see his own, without the rights');

select * from finish();
rollback;
