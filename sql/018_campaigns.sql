-- Campaigns as merchants run them and affiliates find them: states, who may join, who has, and what they may say.
--
-- Pausing and closing a campaign stop its links, not its orders: what was clicked before still pays. Suspending, which an admin
-- does, stops both. An affiliate's links lead on while its membership is approved.

create table affiliate.catalogue_policy (
    fee_basis_points    integer not null check (fee_basis_points between 0 and 10000),
    short_url           text not null check (octet_length(short_url) <= 200),
    code_length         integer not null check (code_length between 8 and 32),
    alias_shortest      integer not null check (alias_shortest >= 3),
    alias_longest       integer not null check (alias_longest between alias_shortest and 64),
    links_most          integer not null check (links_most > 0),
    report_rows         integer not null check (report_rows between 1 and 100000),
    only_row            boolean primary key default true check (only_row)
);

insert into affiliate.catalogue_policy values (2000, '/r/', 10, 4, 32, 10000, 1000);

comment on table affiliate.catalogue_policy is 'What holds for all campaigns, links and imports; for the owner to change';
comment on column affiliate.catalogue_policy.fee_basis_points is 'The network''s fee where network_fee has no other, in 1/10000 of the commission';
comment on column affiliate.catalogue_policy.short_url is 'What stands before a link''s code: the redirect''s location, or a whole https://host/';
comment on column affiliate.catalogue_policy.code_length is 'Characters of a random code, of 31';
comment on column affiliate.catalogue_policy.links_most is 'Links of an affiliate in a campaign, removed ones apart';
comment on column affiliate.catalogue_policy.report_rows is 'How many refused cells of an import are told one by one';

grant select on affiliate.catalogue_policy to affiliate_tenant;

create table affiliate.network_fee (
    merchant_id         bigint primary key references affiliate.merchant,
    fee_basis_points    integer not null check (fee_basis_points between 0 and 10000),
    version             bigint not null default 1
);

create trigger network_fee_version before update on affiliate.network_fee
    for each row execute function affiliate.count_version();

comment on table affiliate.network_fee is 'What was agreed with a merchant; new versions of terms take it';

create table affiliate.topic (
    topic               text primary key check (topic ~ '^[a-z][a-z_]{0,31}$'),
    name                text not null
);

insert into affiliate.topic values
    ('beauty', 'Beauty and health'), ('books', 'Books and stationery'), ('education', 'Education'),
    ('electronics', 'Phones and electronics'), ('fashion', 'Fashion'), ('finance', 'Finance and insurance'),
    ('food', 'Food and groceries'), ('games', 'Games and toys'), ('home', 'Home and kitchen'),
    ('kids', 'Babies and children'), ('other', 'Everything else'), ('services', 'Services'),
    ('sports', 'Sports and outdoors'), ('travel', 'Travel'), ('vehicles', 'Vehicles');

comment on table affiliate.topic is 'Categories that campaigns are found by';

grant select on affiliate.topic to affiliate_tenant;

create table affiliate.membership (
    merchant_id         bigint not null,
    campaign_id         bigint not null,
    affiliate_id        bigint not null references affiliate.affiliate,
    state               text not null check (state in ('applied', 'approved', 'rejected', 'removed', 'left')),
    message             text check (length(message) <= 2000),
    reason              text check (length(reason) <= 1000),
    decided_at          timestamptz,
    decided_by          bigint references affiliate.person,
    version             bigint not null default 1,
    created_at          timestamptz not null default now(),
    primary key (merchant_id, campaign_id, affiliate_id),
    foreign key (merchant_id, campaign_id) references affiliate.campaign
);

create index membership_affiliate on affiliate.membership (affiliate_id, created_at, campaign_id);

comment on table affiliate.membership is 'Affiliates that joined a campaign, or asked to; never deleted. Links made on the command line need none';
comment on column affiliate.membership.message is 'What the affiliate says to be taken';
comment on column affiliate.membership.reason is 'Why it was rejected or removed';
comment on column affiliate.membership.decided_by is 'Null if it was open to all, or a key or the command line decided';

create table affiliate.creative (
    merchant_id         bigint not null,
    creative_id         bigint generated always as identity,
    campaign_id         bigint not null,
    title               text not null check (length(title) between 1 and 200),
    body                text not null check (length(body) between 1 and 5000),
    language            text check (language ~ '^[a-z]{2,3}(-[A-Z]{2})?$'),
    version             bigint not null default 1,
    created_at          timestamptz not null default now(),
    primary key (merchant_id, creative_id),
    foreign key (merchant_id, campaign_id) references affiliate.campaign
);

create index creative_campaign on affiliate.creative (merchant_id, campaign_id);

comment on table affiliate.creative is 'Words that a merchant offers to affiliates for a campaign';

create trigger membership_version before update on affiliate.membership
    for each row execute function affiliate.count_version();
create trigger creative_version before update on affiliate.creative
    for each row execute function affiliate.count_version();

-- ---------------------------------------------------------------------------------------------------------------
-- What the redirect has to know of it
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.note_membership()
returns trigger
language plpgsql
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    insert into affiliate.projection_change (kind, name)
    select 'link', l.code
      from affiliate.link l
     where l.merchant_id = new.merchant_id
       and l.campaign_id = new.campaign_id
       and l.affiliate_id = new.affiliate_id;
    if found then
        notify affiliate_projection;
    end if;
    return null;
end
$$;

create trigger membership_projection after insert or update on affiliate.membership
    for each row execute function affiliate.note_membership();

-- Why a link leads nowhere although its affiliate wants it to; null if it does. One rule for the redirect and for people.
create function affiliate.link_stopped(
    p_livemode boolean, m affiliate.merchant, c affiliate.campaign, a affiliate.affiliate, p_membership text)
returns text
language sql immutable parallel safe
return case
           when m.suspended @> 'infinity'::timestamptz then 'The merchant is suspended.'
           when c.suspended @> 'infinity'::timestamptz then 'The campaign is suspended.'
           when a.suspended @> 'infinity'::timestamptz then 'The affiliate is suspended.'
           when m.decision = 'rejected' or p_livemode and m.decision <> 'approved' then 'The merchant has not been approved.'
           when a.decision = 'rejected' or p_livemode and a.decision <> 'approved' then 'The affiliate has not been approved.'
           when not p_livemode then null
           when c.state = 'draft' then 'The campaign has not begun.'
           when c.state = 'paused' then 'The campaign is paused.'
           when c.state = 'closed' then 'The campaign is over.'
           when p_membership = 'left' then 'The affiliate has left the campaign.'
           when p_membership <> 'approved' then 'The affiliate is not a member of the campaign.'
       end;

create view affiliate.link_projection as
select l.code,
       l.version + c.version + m.version + a.version + coalesce(j.version, 0) as version,
       l.link_id,
       l.merchant_id,
       l.campaign_id,
       l.affiliate_id,
       coalesce((extract(epoch from l.expires_at) * 1000)::bigint, 0) as expires_ms,
       case
           when l.state = 'removed' then 3
           when l.state = 'paused' or affiliate.link_stopped(l.livemode, m, c, a, j.state) is not null then 2
           else 1
       end::smallint as state,
       l.livemode,
       l.url,
       coalesce(l.param, '') as param,
       coalesce(l.fallback, '') as fallback,
       m.hosts
  from affiliate.link l
  join affiliate.campaign c using (merchant_id, campaign_id)
  join affiliate.merchant m using (merchant_id)
  join affiliate.affiliate a using (affiliate_id)
  left join affiliate.membership j using (merchant_id, campaign_id, affiliate_id);

comment on view affiliate.link_projection is 'Links as protocol/projection.h wants them; state 1 active 2 paused 3 removed';

-- ---------------------------------------------------------------------------------------------------------------
-- Fences
-- ---------------------------------------------------------------------------------------------------------------

-- An affiliate sees the campaigns of merchants that it may see, but no drafts; and all that it has joined.
select affiliate.fence('affiliate.membership', p_affiliate => 'affiliate_id');
select affiliate.fence('affiliate.campaign', p_others =>
    $$(select affiliate.fence_affiliate()) is not null and state <> 'draft'
      and merchant_id in (select m.merchant_id from affiliate.merchant m)$$);
select affiliate.fence(t, p_others =>
    $$(select affiliate.fence_affiliate()) is not null
      and exists (select from affiliate.campaign c where c.merchant_id = $$ || split_part(t::text, '.', 2)
    || $$.merchant_id and c.campaign_id = $$ || split_part(t::text, '.', 2) || '.campaign_id)')
  from unnest(array['affiliate.terms', 'affiliate.creative']::regclass[]) t;
select affiliate.fence('affiliate.network_fee');

-- Whether an affiliate has joined a merchant, wants to, or has links of it. Its plans are kept: a report asks for each of its lines.
create function affiliate.knows_affiliate(p_merchant_id bigint, p_affiliate_id bigint)
returns boolean
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return exists (select from affiliate.membership j where j.affiliate_id = p_affiliate_id and j.merchant_id = p_merchant_id)
        or exists (select from affiliate.link l where l.affiliate_id = p_affiliate_id and l.merchant_id = p_merchant_id);
end
$$;

select affiliate.enter_as_tenant('affiliate.knows_affiliate(bigint, bigint)');

-- A merchant sees those.
select affiliate.fence('affiliate.affiliate', p_merchant => null, p_affiliate => 'affiliate_id', p_others =>
    $$(select affiliate.fence_merchant()) is not null and affiliate.knows_affiliate((select affiliate.fence_merchant()), affiliate_id)$$);
revoke select on affiliate.affiliate from affiliate_tenant;
grant select (affiliate_id, name, suspended, decision, state, version, created_at) on affiliate.affiliate to affiliate_tenant;

-- ---------------------------------------------------------------------------------------------------------------
-- Fields of requests
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.refuse_missing(p_what text)
returns void
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.problem(404, 'not_found', format('There is no such %s.', p_what))
$$;

-- Text of several lines; null and '' take it away.
create function affiliate.prose_field(p_request jsonb, p_field text, p_max integer)
returns text
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := btrim(replace(p_request ->> p_field, E'\r\n', E'\n'), E' \n\t');
begin
    if jsonb_typeof(p_request -> p_field) not in ('string', 'null') then
        perform affiliate.refuse(p_field, 'must be a text');
    end if;
    if length(value) > p_max then
        perform affiliate.refuse(p_field, format('must have at most %s characters', p_max));
    end if;
    if value ~ '[^[:print:]\n\t\u200c\u200d\ufe0f]' and translate(value, E'\n\t', '') ~ '[[:cntrl:]]' then
        perform affiliate.refuse(p_field, 'must not have control characters');
    end if;
    return nullif(value, '');
end
$$;

-- Percent with two decimals at most, as basis points.
create function affiliate.percent_field(p_request jsonb, p_field text)
returns integer
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    rule constant text := 'must be a percentage from 0 to 100 with at most two decimals, like 7.5';
    value numeric := affiliate.form_field(p_request, p_field, 100, '^(0|[1-9][0-9]{0,2})(\.[0-9]{1,2})?$', rule)::numeric;
begin
    if value > 100 then
        perform affiliate.refuse(p_field, rule);
    end if;
    return (value * 100)::integer;
end
$$;

create function affiliate.percent_text(p_basis_points integer)
returns text
language sql immutable parallel safe
return (p_basis_points / 100.0)::numeric(6, 2)::text;

create function affiliate.choice_field(p_request jsonb, p_field text, p_choices text[])
returns text
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := affiliate.text_field(p_request, p_field, 100);
begin
    if value <> all (p_choices) then
        perform affiliate.refuse(p_field, 'must be one of ' || array_to_string(p_choices, ', '));
    end if;
    return value;
end
$$;

create function affiliate.topics_field(p_request jsonb)
returns text[]
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    list text[];
begin
    if p_request -> 'categories' = '[]' then
        return '{}';
    end if;
    list := affiliate.list_field(p_request, 'categories', 5);
    if exists (select from unnest(list) x where not exists (select from affiliate.topic t where t.topic = x)) then
        perform affiliate.refuse('categories', 'must be of ' || (select string_agg(t.topic, ', ' order by t.topic) from affiliate.topic t));
    end if;
    return (select array_agg(distinct x order by x) from unnest(list) x);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Terms
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.rate_json(p_basis_points integer, p_flat_minor bigint, p_decimals smallint)
returns jsonb
language sql immutable parallel safe
return jsonb_strip_nulls(jsonb_build_object(
           'rate_percent', affiliate.percent_text(p_basis_points),
           'rate_flat', affiliate.amount_text(p_flat_minor, p_decimals)));

create function affiliate.product_rates_json(t affiliate.terms, p_decimals smallint)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select coalesce(jsonb_agg(jsonb_build_object(p.kind, p.value)
                              || affiliate.rate_json(p.rate_basis_points, p.rate_flat_minor, p_decimals)
                              order by p.kind desc, p.value), '[]')
      from affiliate.product_rate p
     where p.merchant_id = t.merchant_id
       and p.terms_id = t.terms_id
$$;

-- A version of terms for people. The network's fee is between network and merchant.
create function affiliate.terms_view(t affiliate.terms, p_currency text, p_for_affiliate boolean)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
               'terms', t.terms_id,
               'valid_from', t.valid_from,
               'currency', c.currency,
               'hold_days', round(extract(epoch from t.hold) / 86400, 5)::double precision,
               'attribution_days', round(extract(epoch from t.attribution_window) / 86400, 5)::double precision,
               'minimum_payout', affiliate.amount_text(t.minimum_payout_minor, c.decimals))
        || affiliate.rate_json(t.rate_basis_points, t.rate_flat_minor, c.decimals)
        || case when p_for_affiliate then '{}' else jsonb_build_object(
               'fee_percent', affiliate.percent_text(t.fee_basis_points),
               'fee_flat', affiliate.amount_text(t.fee_flat_minor, c.decimals),
               'minimum_click_to_order_seconds', extract(epoch from t.minimum_click_to_order)::bigint) end
      from affiliate.currency c
     where c.currency = p_currency
$$;

create function affiliate.terms_now(c affiliate.campaign)
returns affiliate.terms
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select t
      from affiliate.terms t
     where t.merchant_id = c.merchant_id
       and t.campaign_id = c.campaign_id
       and t.valid_from <= now()
     order by t.valid_from desc
     limit 1
$$;

-- [{"sku": "TEA", "rate_percent": "5"}, {"category": "Books", "rate_flat": "10.00"}] as add_terms() takes them.
create function affiliate.product_rates_command(p_request jsonb, p_currency text)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    list jsonb := p_request -> 'product_rates';
    command jsonb := '{"sku_rate": null}';
    item jsonb;
    kind text;
    name text;
    field text;
    rate text;
    seen text[] := '{}';
begin
    if jsonb_typeof(list) <> 'array' or jsonb_array_length(list) > 1000 then
        perform affiliate.refuse('product_rates', 'must be a list of at most 1000 rates');
    end if;
    for item in select e from jsonb_array_elements(list) e loop
        if jsonb_typeof(item) <> 'object' or item - '{sku,category,rate_percent,rate_flat}'::text[] <> '{}'
           or (item ? 'sku') = (item ? 'category') or (item ? 'rate_percent') = (item ? 'rate_flat') then
            perform affiliate.refuse('product_rates', 'each must have sku or category, and rate_percent or rate_flat');
        end if;
        kind := case when item ? 'sku' then 'sku' else 'category' end;
        name := affiliate.text_field(item, kind, 64);
        if name is null then
            perform affiliate.refuse('product_rates', 'each must have sku or category, and rate_percent or rate_flat');
        end if;
        if kind || ' ' || name = any (seen) then
            perform affiliate.refuse('product_rates', format('%s %s has a rate already', kind, quote_literal(name)));
        end if;
        seen := seen || (kind || ' ' || name);

        if item ? 'rate_percent' then
            field := kind || '_rate';
            rate := affiliate.percent_field(item, 'rate_percent');
        else
            field := kind || '_flat';
            rate := item ->> 'rate_flat';
            perform affiliate.amount_minor('product_rates', rate, p_currency);
        end if;
        if rate is null then
            perform affiliate.refuse('product_rates', 'each must have sku or category, and rate_percent or rate_flat');
        end if;
        command := jsonb_set(command, array[field], coalesce(nullif(command -> field, 'null'), '[]') || to_jsonb(name || '=' || rate));
    end loop;
    return command;
end
$$;

create function affiliate.terms_fields()
returns text[]
language sql immutable parallel safe
return '{valid_from,rate_percent,rate_flat,hold_days,attribution_days,minimum_click_to_order_seconds,minimum_payout,
         product_rates,fee_percent,fee_flat}'::text[];

-- A version of terms from the fields that people give. What isn't named stays as before. The fee is the network's to say.
create function affiliate.add_terms_view(p_actor affiliate.actor, p_campaign affiliate.campaign, p_request jsonb)
returns affiliate.terms
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    command jsonb := p_request - affiliate.terms_fields();
    days integer;
begin
    if p_actor.kind <> 'admin' and p_request ?| '{fee_percent,fee_flat}' then
        perform affiliate.refuse('fee_' || case when p_request ? 'fee_flat' then 'flat' else 'percent' end, 'is agreed with the network');
    end if;
    if p_request ->> 'rate_percent' is not null and p_request ->> 'rate_flat' is not null then
        perform affiliate.refuse('rate_flat', 'can''t stand beside rate_percent');
    end if;

    command := jsonb_strip_nulls(jsonb_build_object(
        'valid_from', p_request -> 'valid_from',
        'rate_basis_points', affiliate.percent_field(p_request, 'rate_percent'),
        'rate_flat', p_request -> 'rate_flat',
        'fee_basis_points', coalesce(
            affiliate.percent_field(p_request, 'fee_percent'),
            (select f.fee_basis_points from affiliate.network_fee f where f.merchant_id = p_campaign.merchant_id),
            (select y.fee_basis_points from affiliate.catalogue_policy y)),
        'fee_flat', p_request -> 'fee_flat',
        'hold', affiliate.integer_field(p_request, 'hold_days', 0, 365) || ' days',
        'attribution_window', affiliate.integer_field(p_request, 'attribution_days', 1, 365) || ' days',
        'minimum_click_to_order', affiliate.integer_field(p_request, 'minimum_click_to_order_seconds', 0, 86400) || ' seconds',
        'minimum_payout', p_request -> 'minimum_payout'));
    if jsonb_typeof(p_request -> 'product_rates') <> 'null' then
        command := command || affiliate.product_rates_command(p_request, p_campaign.currency);
    end if;
    if not command ?| '{rate_basis_points,rate_flat}'
       and not exists (select
                         from affiliate.terms t
                        where t.merchant_id = p_campaign.merchant_id
                          and t.campaign_id = p_campaign.campaign_id) then
        perform affiliate.refuse('rate_percent', 'or rate_flat is required');
    end if;
    return affiliate.add_terms(command, p_campaign);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Campaigns: what is shown
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.campaign_state(c affiliate.campaign)
returns text
language sql immutable parallel safe
return case when c.suspended @> 'infinity'::timestamptz then 'suspended' else c.state end;

create function affiliate.campaign_view(c affiliate.campaign)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'campaign', c.campaign_id,
        'merchant', c.merchant_id,
        'name', c.name,
        'description', c.description,
        'rules', c.rules,
        'categories', c.categories,
        'currency', c.currency,
        'joining', c.joining,
        'state', affiliate.campaign_state(c),
        'suspension_reason', c.suspension_reason,
        'terms', (select affiliate.terms_view(t, c.currency, false) from affiliate.terms_now(c) t where t.terms_id is not null),
        'created_at', c.created_at,
        'version', c.version)
$$;

-- The same with what only one campaign shows.
create function affiliate.campaign_detail(c affiliate.campaign)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.campaign_view(c) || jsonb_build_object(
        'product_rates', (
            select affiliate.product_rates_json(t, u.decimals)
              from affiliate.terms_now(c) t
              join affiliate.currency u on u.currency = c.currency
             where t.terms_id is not null),
        'affiliates', (
            select jsonb_build_object(
                       'applied', count(*) filter (where j.state = 'applied'),
                       'approved', count(*) filter (where j.state = 'approved'))
              from affiliate.membership j
             where j.merchant_id = c.merchant_id
               and j.campaign_id = c.campaign_id))
$$;

-- As affiliates see it: without the network's fee, with their own membership.
create function affiliate.campaign_offer(c affiliate.campaign, p_affiliate_id bigint)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'campaign', c.campaign_id,
        'merchant', c.merchant_id,
        'merchant_name', (select m.name from affiliate.merchant m where m.merchant_id = c.merchant_id),
        'name', c.name,
        'description', c.description,
        'rules', c.rules,
        'categories', c.categories,
        'currency', c.currency,
        'joining', c.joining,
        'state', affiliate.campaign_state(c),
        'membership', (
            select j.state
              from affiliate.membership j
             where j.merchant_id = c.merchant_id
               and j.campaign_id = c.campaign_id
               and j.affiliate_id = p_affiliate_id),
        'terms', (select affiliate.terms_view(t, c.currency, true) from affiliate.terms_now(c) t where t.terms_id is not null),
        'created_at', c.created_at)
$$;

-- Those that affiliates may join and make links for: the merchant approved and at work, terms in force.
create view affiliate.open_campaign with (security_invoker = true) as
select c.merchant_id, c.campaign_id, c.currency, c as campaign, t.terms
  from affiliate.campaign c
  join affiliate.merchant m using (merchant_id)
 cross join lateral (
       select x as terms
         from affiliate.terms x
        where x.merchant_id = c.merchant_id
          and x.campaign_id = c.campaign_id
          and x.valid_from <= now()
        order by x.valid_from desc
        limit 1) t
 where c.state = 'active'
   and affiliate.is_active(c.suspended)
   and m.state = 'approved';

comment on view affiliate.open_campaign is 'Campaigns that affiliates may join, with the terms in force';

grant select on affiliate.open_campaign to affiliate_tenant;

create function affiliate.campaign_is_open(c affiliate.campaign)
returns boolean
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select exists (
        select
          from affiliate.open_campaign o
         where o.merchant_id = c.merchant_id
           and o.campaign_id = c.campaign_id)
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Campaigns: what merchants do
-- ---------------------------------------------------------------------------------------------------------------

-- The campaign of the request at the actor's merchant, of any merchant for an admin; locked.
create function affiliate.lock_campaign(p_actor affiliate.actor, p_request jsonb)
returns affiliate.campaign
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign;
begin
    select x.* into c
      from affiliate.campaign x
     where x.campaign_id = affiliate.path_id(p_request, 'campaign')
       and (x.merchant_id = p_actor.merchant_id or p_actor.kind = 'admin' and p_actor.merchant_id is null)
       for update;
    if not found then
        perform affiliate.refuse_missing('campaign');
    end if;
    perform affiliate.check_version(p_request, c.version);
    return c;
end
$$;

-- The campaign of the request that the actor may see.
create function affiliate.seek_campaign(p_actor affiliate.actor, p_request jsonb)
returns affiliate.campaign
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign;
begin
    select x.* into c
      from affiliate.campaign x
     where x.campaign_id = affiliate.path_id(p_request, 'campaign')
       and x.merchant_id = coalesce(p_actor.merchant_id, x.merchant_id);
    if not found then
        perform affiliate.refuse_missing('campaign');
    end if;
    return c;
end
$$;

-- For the owner, whose eyes row-level security does not limit: as merchants and admins see it, audited.
create function affiliate.campaign_changed(p_actor affiliate.actor, p_action text, p_from affiliate.campaign, p_reason text default null)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign;
    actor affiliate.actor := p_actor;
begin
    select x.* into c
      from affiliate.campaign x
     where x.merchant_id = p_from.merchant_id
       and x.campaign_id = p_from.campaign_id;
    actor.merchant_id := c.merchant_id;
    perform affiliate.record(actor, p_action, 'campaign', c.campaign_id::text,
        affiliate.campaign_view(p_from) - 'terms', affiliate.campaign_view(c) - 'terms', p_reason);
    perform affiliate.answer_version(c.version);
    return affiliate.campaign_detail(c);
end
$$;

create function affiliate.make_campaign(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made affiliate.campaign;
    terms jsonb := coalesce(nullif(p_request -> 'terms', 'null'), '{}');
begin
    if jsonb_typeof(terms) <> 'object' then
        perform affiliate.refuse('terms', 'must be an object');
    end if;
    insert into affiliate.campaign (merchant_id, name, currency, state, joining, description, rules, categories)
    values (p_actor.merchant_id, affiliate.text_field(p_request, 'name', 200), affiliate.currency_field(p_request, 'currency'), 'draft',
            coalesce(affiliate.choice_field(p_request, 'joining', '{open,approval}'), 'open'),
            affiliate.prose_field(p_request, 'description', 5000), affiliate.prose_field(p_request, 'rules', 5000),
            coalesce(affiliate.topics_field(p_request), '{}'))
    returning * into made;

    if terms <> '{}' then
        perform affiliate.check_fields(terms, '{}', affiliate.terms_fields());
        if terms ->> 'valid_from' is not null and affiliate.time_field(terms, 'valid_from') < now() then
            perform affiliate.refuse('valid_from', 'must not be in the past');
        end if;
        perform affiliate.add_terms_view(p_actor, made, terms);
    end if;
    perform affiliate.record(p_actor, 'campaign_create', 'campaign', made.campaign_id::text, null, affiliate.campaign_view(made));
    perform affiliate.answer_version(made.version);
    perform affiliate.answer(jsonb_build_object(
        'status', 201, 'location', format('/api/v1/merchants/%s/campaigns/%s', made.merchant_id, made.campaign_id)));
    return affiliate.campaign_detail(made);
end
$$;

create function affiliate.change_campaign(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign := affiliate.lock_campaign(p_actor, p_request);
begin
    update affiliate.campaign x
       set name = coalesce(affiliate.text_field(p_request, 'name', 200), x.name),
           joining = coalesce(affiliate.choice_field(p_request, 'joining', '{open,approval}'), x.joining),
           description = case when p_request ? 'description' then affiliate.prose_field(p_request, 'description', 5000) else x.description end,
           rules = case when p_request ? 'rules' then affiliate.prose_field(p_request, 'rules', 5000) else x.rules end,
           categories = coalesce(affiliate.topics_field(p_request), x.categories)
     where x.merchant_id = c.merchant_id
       and x.campaign_id = c.campaign_id;
    return affiliate.campaign_changed(p_actor, 'campaign_update', c);
end
$$;

create function affiliate.set_campaign_state(p_actor affiliate.actor, p_request jsonb, p_state text)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign := affiliate.lock_campaign(p_actor, p_request);
    t affiliate.terms := affiliate.terms_now(c);
begin
    if c.state = 'closed' and p_state <> 'closed' then
        perform affiliate.problem(409, 'state', 'The campaign is closed for good.');
    end if;
    if c.state = 'draft' and p_state = 'paused' then
        perform affiliate.problem(409, 'state', 'The campaign has not begun.');
    end if;
    if p_state = 'active' and t.terms_id is null then
        perform affiliate.problem(409, 'state', 'The campaign has no terms in force.');
    end if;

    update affiliate.campaign x
       set state = p_state
     where x.merchant_id = c.merchant_id
       and x.campaign_id = c.campaign_id
       and x.state <> p_state;
    return affiliate.campaign_changed(p_actor, 'campaign_' || p_state, c);
end
$$;

-- An admin's: orders that are first reported from now on are not paid either.
create function affiliate.set_campaign_suspended(p_actor affiliate.actor, p_request jsonb, p_suspended boolean, p_reason text)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign := affiliate.lock_campaign(p_actor, p_request);
begin
    update affiliate.campaign x
       set suspended = affiliate.switch_on(x.suspended, not p_suspended),
           suspension_reason = p_reason
     where x.merchant_id = c.merchant_id
       and x.campaign_id = c.campaign_id
       and affiliate.is_active(x.suspended) = p_suspended;
    if found and p_suspended then
        perform affiliate.notify(e.user_id, 'campaign_suspended', jsonb_build_object('campaign_name', c.name, 'reason', p_reason))
           from affiliate.member e
          where e.merchant_id = c.merchant_id
            and e.role = 'owner';
    end if;
    return affiliate.campaign_changed(p_actor, 'campaign_' || case when p_suspended then 'suspend' else 'resume' end, c, p_reason);
end
$$;

create function affiliate.make_terms(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign := affiliate.lock_campaign(p_actor, p_request);
    t affiliate.terms;
    shown jsonb;
begin
    if c.state = 'closed' then
        perform affiliate.problem(409, 'state', 'The campaign is closed for good.');
    end if;
    t := affiliate.add_terms_view(p_actor, c, p_request);
    -- The campaign shows its terms: a new version of them is one of it.
    update affiliate.campaign x
       set version = x.version
     where x.merchant_id = c.merchant_id
       and x.campaign_id = c.campaign_id
    returning * into c;
    shown := affiliate.terms_view(t, c.currency, false);
    perform affiliate.record(p_actor, 'terms_create', 'campaign', c.campaign_id::text, null, shown);
    perform affiliate.answer_version(c.version);
    perform affiliate.answer(jsonb_build_object(
        'status', 201, 'location', format('/api/v1/merchants/%s/campaigns/%s/terms', c.merchant_id, c.campaign_id)));
    return shown || jsonb_build_object('product_rates', affiliate.product_rates_json(t, u.decimals))
      from affiliate.currency u
     where u.currency = c.currency;
end
$$;

create function affiliate.set_network_fee(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.network_fee;
    made affiliate.network_fee;
begin
    select f.* into before from affiliate.network_fee f where f.merchant_id = p_actor.merchant_id for update;
    perform affiliate.check_version(p_request, coalesce(before.version, 0));
    insert into affiliate.network_fee as f (merchant_id, fee_basis_points)
    values (p_actor.merchant_id, affiliate.percent_field(p_request, 'fee_percent'))
        on conflict (merchant_id) do update set fee_basis_points = excluded.fee_basis_points
    returning * into made;
    perform affiliate.record(p_actor, 'network_fee_update', 'merchant', made.merchant_id::text,
        jsonb_build_object('fee_percent', affiliate.percent_text(before.fee_basis_points)),
        jsonb_build_object('fee_percent', affiliate.percent_text(made.fee_basis_points)),
        affiliate.text_field(p_request, 'reason', 1000));
    perform affiliate.answer_version(made.version);
    return jsonb_build_object('merchant', made.merchant_id, 'fee_percent', affiliate.percent_text(made.fee_basis_points),
                              'version', made.version);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Campaigns: operations
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.api_campaign_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{state}');
    perform affiliate.choice_field(p_request, 'state', '{draft,active,paused,closed,suspended}');
    return query select affiliate.page(p_actor, p_request,
        'select c, c.campaign_id, c.name, c.created_at
           from affiliate.campaign c
          where c.merchant_id = $1.merchant_id
            and ($2 ->> ''state'' is null or affiliate.campaign_state(c) = $2 ->> ''state'')',
        'affiliate.campaign_view(x.c)', '{-created_at timestamptz,name text}', 'campaign_id bigint');
end
$$;

create function affiliate.api_campaign_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{name,currency}', '{description,rules,categories,joining,terms}');
    return next affiliate.make_campaign(p_actor, p_request);
end
$$;

create function affiliate.api_campaign_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign := affiliate.seek_campaign(p_actor, p_request);
begin
    perform affiliate.check_request(p_request, '{campaign}');
    perform affiliate.answer_version(c.version);
    return next affiliate.campaign_detail(c);
end
$$;

create function affiliate.api_campaign_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign}', '{name,description,rules,categories,joining}');
    return next affiliate.change_campaign(p_actor, p_request);
end
$$;

create function affiliate.api_campaign_activate(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign}');
    return next affiliate.set_campaign_state(p_actor, p_request, 'active');
end
$$;

create function affiliate.api_campaign_pause(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign}');
    return next affiliate.set_campaign_state(p_actor, p_request, 'paused');
end
$$;

create function affiliate.api_campaign_close(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign}');
    return next affiliate.set_campaign_state(p_actor, p_request, 'closed');
end
$$;

create function affiliate.api_terms_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{campaign}');
    perform affiliate.seek_campaign(p_actor, p_request);
    return query select affiliate.page(p_actor, p_request,
        'select t, t.terms_id, t.valid_from, c.currency, u.decimals
           from affiliate.terms t
           join affiliate.campaign c using (merchant_id, campaign_id)
           join affiliate.currency u using (currency)
          where t.merchant_id = $1.merchant_id
            and t.campaign_id = affiliate.path_id($2, ''campaign'')',
        'affiliate.terms_view(x.t, x.currency, false)
             || jsonb_build_object(''product_rates'', affiliate.product_rates_json(x.t, x.decimals))',
        '{-valid_from timestamptz}', 'terms_id bigint');
end
$$;

create function affiliate.api_terms_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign}', affiliate.terms_fields());
    return next affiliate.make_terms(p_actor, p_request);
end
$$;

create function affiliate.api_admin_campaign_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{state}');
    perform affiliate.choice_field(p_request, 'state', '{draft,active,paused,closed,suspended}');
    return query select affiliate.page(p_actor, p_request,
        'select c, c.campaign_id, c.name, c.created_at
           from affiliate.campaign c
          where ($1.merchant_id is null or c.merchant_id = $1.merchant_id)
            and ($2 ->> ''state'' is null or affiliate.campaign_state(c) = $2 ->> ''state'')',
        'affiliate.campaign_view(x.c) || jsonb_build_object(''merchant_name'',
             (select m.name from affiliate.merchant m where m.merchant_id = (x.c).merchant_id))',
        '{-created_at timestamptz,name text}', 'campaign_id bigint');
end
$$;

create function affiliate.api_admin_campaign_suspend(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign,reason}');
    return next affiliate.set_campaign_suspended(p_actor, p_request, true, affiliate.text_field(p_request, 'reason', 1000));
end
$$;

create function affiliate.api_admin_campaign_resume(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign}');
    return next affiliate.set_campaign_suspended(p_actor, p_request, false, null);
end
$$;

create function affiliate.api_network_fee_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    f affiliate.network_fee;
begin
    perform affiliate.check_request(p_request);
    select x.* into f from affiliate.network_fee x where x.merchant_id = p_actor.merchant_id;
    perform affiliate.answer_version(coalesce(f.version, 0));
    return query
    select jsonb_build_object('merchant', p_actor.merchant_id,
                              'fee_percent', affiliate.percent_text(coalesce(f.fee_basis_points, y.fee_basis_points)),
                              'version', coalesce(f.version, 0))
      from affiliate.catalogue_policy y;
end
$$;

create function affiliate.api_network_fee_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{fee_percent}', '{reason}');
    return next affiliate.set_network_fee(p_actor, p_request);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Creatives
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.creative_json(e affiliate.creative)
returns jsonb
language sql immutable parallel safe
return jsonb_build_object('creative', e.creative_id, 'campaign', e.campaign_id, 'title', e.title, 'body', e.body,
                          'language', e.language, 'created_at', e.created_at, 'version', e.version);

create function affiliate.language_field(p_request jsonb)
returns text
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.form_field(p_request, 'language', 10, '^[a-z]{2,3}(-[A-Z]{2})?$', 'must be a language, like ne or en-GB')
$$;

create function affiliate.body_field(p_request jsonb)
returns text
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := affiliate.prose_field(p_request, 'body', 5000);
begin
    if value is null and p_request ? 'body' then
        perform affiliate.refuse('body', 'must have 1 to 5000 characters');
    end if;
    return value;
end
$$;

create function affiliate.make_creative(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign := affiliate.lock_campaign(p_actor, p_request - 'if_match');
    made affiliate.creative;
begin
    insert into affiliate.creative (merchant_id, campaign_id, title, body, language)
    values (c.merchant_id, c.campaign_id, affiliate.text_field(p_request, 'title', 200), affiliate.body_field(p_request),
            affiliate.language_field(p_request))
    returning * into made;
    perform affiliate.record(p_actor, 'creative_create', 'creative', made.creative_id::text, null, affiliate.creative_json(made));
    perform affiliate.answer_version(made.version);
    perform affiliate.answer(jsonb_build_object('status', 201, 'location',
        format('/api/v1/merchants/%s/campaigns/%s/creatives/%s', made.merchant_id, made.campaign_id, made.creative_id)));
    return affiliate.creative_json(made);
end
$$;

create function affiliate.lock_creative(p_actor affiliate.actor, p_request jsonb)
returns affiliate.creative
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.creative;
begin
    select x.* into e
      from affiliate.creative x
     where x.merchant_id = p_actor.merchant_id
       and x.campaign_id = affiliate.path_id(p_request, 'campaign')
       and x.creative_id = affiliate.path_id(p_request, 'creative')
       for update;
    if not found then
        perform affiliate.refuse_missing('creative');
    end if;
    perform affiliate.check_version(p_request, e.version);
    return e;
end
$$;

create function affiliate.change_creative(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.creative := affiliate.lock_creative(p_actor, p_request);
    made affiliate.creative;
begin
    update affiliate.creative x
       set title = coalesce(affiliate.text_field(p_request, 'title', 200), x.title),
           body = coalesce(affiliate.body_field(p_request), x.body),
           language = case when p_request ? 'language' then affiliate.language_field(p_request) else x.language end
     where x.merchant_id = e.merchant_id
       and x.creative_id = e.creative_id
    returning * into made;
    perform affiliate.record(p_actor, 'creative_update', 'creative', e.creative_id::text,
        affiliate.creative_json(e), affiliate.creative_json(made));
    perform affiliate.answer_version(made.version);
    return affiliate.creative_json(made);
end
$$;

create function affiliate.drop_creative(p_actor affiliate.actor, p_request jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    e affiliate.creative := affiliate.lock_creative(p_actor, p_request);
begin
    delete from affiliate.creative x
     where x.merchant_id = e.merchant_id
       and x.creative_id = e.creative_id;
    perform affiliate.record(p_actor, 'creative_delete', 'creative', e.creative_id::text, affiliate.creative_json(e), null);
    perform affiliate.answer('{"status": 204}');
end
$$;

create function affiliate.api_creative_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{campaign}');
    perform affiliate.seek_campaign(p_actor, p_request);
    return query select affiliate.page(p_actor, p_request,
        'select e, e.creative_id, e.created_at
           from affiliate.creative e
          where e.campaign_id = affiliate.path_id($2, ''campaign'')',
        'affiliate.creative_json(x.e)', '{-created_at timestamptz}', 'creative_id bigint');
end
$$;

create function affiliate.api_creative_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign,title,body}', '{language}');
    return next affiliate.make_creative(p_actor, p_request);
end
$$;

create function affiliate.api_creative_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign,creative}', '{title,body,language}');
    return next affiliate.change_creative(p_actor, p_request);
end
$$;

create function affiliate.api_creative_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign,creative}');
    perform affiliate.drop_creative(p_actor, p_request);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Memberships
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.membership_json(j affiliate.membership)
returns jsonb
language sql immutable parallel safe
return jsonb_build_object('campaign', j.campaign_id, 'merchant', j.merchant_id, 'affiliate', j.affiliate_id, 'state', j.state,
                          'message', j.message, 'reason', j.reason, 'decided_at', j.decided_at,
                          'created_at', j.created_at, 'version', j.version);

create function affiliate.record_membership(p_actor affiliate.actor, p_action text, p_from affiliate.membership, j affiliate.membership)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    actor affiliate.actor := p_actor;
begin
    actor.merchant_id := j.merchant_id;
    actor.affiliate_id := j.affiliate_id;
    perform affiliate.record(actor, p_action, 'membership', format('%s/%s', j.campaign_id, j.affiliate_id),
        case when p_from.campaign_id is not null then affiliate.membership_json(p_from) end, affiliate.membership_json(j), j.reason);
    perform affiliate.answer_version(j.version);
end
$$;

-- How an affiliate promotes, for the merchant that it wants to join; nothing by which it could be called or written to.
create function affiliate.applicant(p_merchant_id bigint, p_affiliate_id bigint)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object('affiliate_name', a.name, 'affiliate_state', a.state, 'country', p.country,
                              'description', p.description, 'channels', coalesce(p.channels, '[]'), 'methods', coalesce(p.methods, '{}'))
      from affiliate.affiliate a
      left join affiliate.affiliate_profile p using (affiliate_id)
     where a.affiliate_id = p_affiliate_id
       and exists (select
                     from affiliate.membership j
                    where j.merchant_id = p_merchant_id
                      and j.affiliate_id = p_affiliate_id)
$$;

create function affiliate.join_campaign(p_affiliate_id bigint, p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign;
    before affiliate.membership;
    made affiliate.membership;
begin
    select x.* into c
      from affiliate.campaign x
     where x.campaign_id = affiliate.path_id(p_request, 'campaign')
       for share;
    if not found or not affiliate.campaign_is_open(c) then
        perform affiliate.refuse('campaign', 'there is none with this id that is open');
    end if;

    select j.* into before
      from affiliate.membership j
     where j.merchant_id = c.merchant_id
       and j.campaign_id = c.campaign_id
       and j.affiliate_id = p_affiliate_id
       for update;
    if before.state <> 'left' then
        perform affiliate.problem(409, 'conflict', case before.state
            when 'applied' then 'You have applied already.'
            when 'approved' then 'You have joined already.'
            when 'rejected' then 'The merchant has rejected you: ' || coalesce(before.reason, 'no reason was given')
            else 'The merchant has removed you: ' || coalesce(before.reason, 'no reason was given') end);
    end if;

    -- Who left before he was taken, or came in while it was open, is asked as everybody is.
    insert into affiliate.membership as j (merchant_id, campaign_id, affiliate_id, state, message, decided_at)
    values (c.merchant_id, c.campaign_id, p_affiliate_id, case c.joining when 'open' then 'approved' else 'applied' end,
            affiliate.prose_field(p_request, 'message', 2000), case c.joining when 'open' then now() end)
        on conflict (merchant_id, campaign_id, affiliate_id) do update
       set state = excluded.state, message = excluded.message, decided_at = excluded.decided_at, decided_by = null, reason = null
     where j.state = 'left'
    returning * into made;
    if not found then
        perform affiliate.problem(409, 'conflict', 'You have joined already.');
    end if;

    if made.state = 'applied' then
        perform affiliate.notify(e.user_id, 'membership_applied', jsonb_build_object(
                    'affiliate_name', (select a.name from affiliate.affiliate a where a.affiliate_id = p_affiliate_id),
                    'campaign_name', c.name, 'merchant', c.merchant_id))
           from affiliate.member e
          where e.merchant_id = c.merchant_id
            and e.role in ('owner', 'manager');
    end if;
    perform affiliate.record_membership(p_actor, 'membership_create', before, made);
    perform affiliate.answer(jsonb_build_object('status', 201, 'location', '/api/v1/affiliate/memberships/' || c.campaign_id));
    return affiliate.membership_json(made);
end
$$;

create function affiliate.leave_campaign(p_affiliate_id bigint, p_actor affiliate.actor, p_request jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    j affiliate.membership;
    made affiliate.membership;
begin
    select x.* into j
      from affiliate.membership x
     where x.affiliate_id = p_affiliate_id
       and x.campaign_id = affiliate.path_id(p_request, 'campaign')
       for update;
    if not found then
        perform affiliate.refuse_missing('membership');
    end if;
    perform affiliate.check_version(p_request, j.version);
    if j.state in ('rejected', 'removed') then
        perform affiliate.problem(409, 'state', 'The merchant has decided already.');
    end if;
    update affiliate.membership x
       set state = 'left'
     where x.merchant_id = j.merchant_id
       and x.campaign_id = j.campaign_id
       and x.affiliate_id = j.affiliate_id
    returning * into made;
    perform affiliate.record_membership(p_actor, 'membership_delete', j, made);
    perform affiliate.answer('{"status": 204}');
end
$$;

-- Approves, rejects or removes. What an affiliate has decided for itself stays: one that left can't be taken back.
create function affiliate.decide_membership(p_actor affiliate.actor, p_request jsonb, p_state text)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    allowed text[] := case p_state when 'approved' then '{applied,rejected,removed}' when 'rejected' then '{applied}' else '{approved}' end;
    j affiliate.membership;
    made affiliate.membership;
begin
    select x.* into j
      from affiliate.membership x
     where x.merchant_id = p_actor.merchant_id
       and x.campaign_id = affiliate.path_id(p_request, 'campaign')
       and x.affiliate_id = affiliate.path_id(p_request, 'affiliate')
       for update;
    if not found then
        perform affiliate.refuse_missing('membership');
    end if;
    perform affiliate.check_version(p_request, j.version);
    if j.state <> all (allowed) then
        perform affiliate.problem(409, 'state', format('The membership is %s.', j.state));
    end if;

    update affiliate.membership x
       set state = p_state,
           reason = affiliate.text_field(p_request, 'reason', 1000),
           decided_at = now(),
           decided_by = p_actor.user_id
     where x.merchant_id = j.merchant_id
       and x.campaign_id = j.campaign_id
       and x.affiliate_id = j.affiliate_id
    returning * into made;
    perform affiliate.notify(a.user_id, 'membership_' || p_state, jsonb_build_object(
                'campaign_name', c.name, 'merchant_name', m.name, 'reason', made.reason))
       from affiliate.affiliate a, affiliate.campaign c
       join affiliate.merchant m using (merchant_id)
      where a.affiliate_id = made.affiliate_id
        and a.user_id is not null
        and c.merchant_id = made.merchant_id
        and c.campaign_id = made.campaign_id;
    perform affiliate.record_membership(p_actor, 'membership_' || p_state, j, made);
    return affiliate.membership_json(made) || affiliate.applicant(made.merchant_id, made.affiliate_id);
end
$$;

create function affiliate.api_campaign_affiliate_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{campaign,state}');
    perform affiliate.choice_field(p_request, 'state', '{applied,approved,rejected,removed,left}');
    perform affiliate.seek_campaign(p_actor, p_request);
    return query select affiliate.page(p_actor, p_request,
        'select j, j.affiliate_id, j.created_at
           from affiliate.membership j
          where j.merchant_id = $1.merchant_id
            and j.campaign_id = affiliate.path_id($2, ''campaign'')
            and ($2 ->> ''state'' is null or j.state = $2 ->> ''state'')',
        'affiliate.membership_json(x.j) || affiliate.applicant((x.j).merchant_id, x.affiliate_id)',
        '{-created_at timestamptz}', 'affiliate_id bigint');
end
$$;

create function affiliate.api_campaign_affiliate_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    j affiliate.membership;
begin
    perform affiliate.check_request(p_request, '{campaign,affiliate}');
    select x.* into j
      from affiliate.membership x
     where x.merchant_id = p_actor.merchant_id
       and x.campaign_id = affiliate.path_id(p_request, 'campaign')
       and x.affiliate_id = affiliate.path_id(p_request, 'affiliate');
    if not found then
        perform affiliate.refuse_missing('membership');
    end if;
    perform affiliate.answer_version(j.version);
    return next affiliate.membership_json(j) || affiliate.applicant(j.merchant_id, j.affiliate_id);
end
$$;

create function affiliate.api_campaign_affiliate_approve(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign,affiliate}');
    return next affiliate.decide_membership(p_actor, p_request, 'approved');
end
$$;

create function affiliate.api_campaign_affiliate_reject(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign,affiliate,reason}');
    return next affiliate.decide_membership(p_actor, p_request, 'rejected');
end
$$;

create function affiliate.api_campaign_affiliate_remove(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign,affiliate,reason}');
    return next affiliate.decide_membership(p_actor, p_request, 'removed');
end
$$;

-- Words of a search as a query: each must begin a word of the text; one letter must be a whole word.
create function affiliate.search_query(p_text text)
returns tsquery
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    word text;
    wanted tsquery;
    all_wanted tsquery;
begin
    for word in
        select w
          from regexp_split_to_table(lower(left(p_text, 200)), '[^[:alnum:]]+') with ordinality as t(w, n)
         where w <> ''
         order by n
         limit 8
    loop
        wanted := to_tsquery('simple', quote_literal(word) || case when length(word) > 1 then ':*' else '' end);
        all_wanted := coalesce(all_wanted && wanted, wanted);
    end loop;
    return all_wanted;
end
$$;

create function affiliate.search_field(p_request jsonb)
returns tsquery
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := affiliate.text_field(p_request, 'q', 200);
    wanted tsquery := affiliate.search_query(value);
begin
    if value is not null and wanted is null then
        perform affiliate.refuse('q', 'must have a word');
    end if;
    return wanted;
end
$$;

create function affiliate.api_affiliate_campaign_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{q,category,merchant,currency,joining,joined}');
    perform affiliate.search_field(p_request);
    perform affiliate.id_field(p_request, 'merchant');
    perform affiliate.choice_field(p_request, 'joining', '{open,approval}');
    perform affiliate.boolean_field(p_request, 'joined');
    return query select affiliate.page(p_actor, p_request,
        'select c, c.campaign_id, c.name, c.created_at
           from affiliate.open_campaign o
           join affiliate.campaign c using (merchant_id, campaign_id)
           join affiliate.merchant m using (merchant_id)
          where ($2 ->> ''q'' is null
                 or to_tsvector(''simple'', concat_ws('' '', c.name, m.name, c.description)) @@ affiliate.search_field($2))
            and ($2 ->> ''category'' is null or $2 ->> ''category'' = any (c.categories))
            and ($2 ->> ''merchant'' is null or c.merchant_id = affiliate.id_field($2, ''merchant''))
            and ($2 ->> ''currency'' is null or c.currency = $2 ->> ''currency'')
            and ($2 ->> ''joining'' is null or c.joining = $2 ->> ''joining'')
            and ($2 ->> ''joined'' is null or affiliate.boolean_field($2, ''joined'') = exists (
                    select
                      from affiliate.membership j
                     where j.merchant_id = c.merchant_id
                       and j.campaign_id = c.campaign_id
                       and j.affiliate_id = $1.affiliate_id
                       and j.state = ''approved''))',
        'affiliate.campaign_offer(x.c, $1.affiliate_id)', '{-created_at timestamptz,name text}', 'campaign_id bigint');
end
$$;

create function affiliate.api_affiliate_campaign_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign := affiliate.seek_campaign(p_actor, p_request);
begin
    perform affiliate.check_request(p_request, '{campaign}');
    if not affiliate.campaign_is_open(c)
       and not exists (select from affiliate.membership j where j.campaign_id = c.campaign_id and j.affiliate_id = p_actor.affiliate_id) then
        perform affiliate.refuse_missing('campaign');
    end if;
    return query
    select affiliate.campaign_offer(c, p_actor.affiliate_id) || jsonb_build_object(
               'product_rates', affiliate.product_rates_json(affiliate.terms_now(c), u.decimals),
               'hosts', (select m.hosts from affiliate.merchant m where m.merchant_id = c.merchant_id),
               'next_terms', (
                   select affiliate.terms_view(t, c.currency, true)
                     from affiliate.terms t
                    where t.merchant_id = c.merchant_id
                      and t.campaign_id = c.campaign_id
                      and t.valid_from > now()
                    order by t.valid_from
                    limit 1),
               'creatives', (
                   select coalesce(jsonb_agg(affiliate.creative_json(e) - 'campaign' - 'version' order by e.creative_id), '[]')
                     from affiliate.creative e
                    where e.merchant_id = c.merchant_id
                      and e.campaign_id = c.campaign_id))
      from affiliate.currency u
     where u.currency = c.currency;
end
$$;

create function affiliate.api_affiliate_category_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request,
        'select t, t.topic as category
           from affiliate.topic t',
        'jsonb_build_object(''category'', (x.t).topic, ''name'', (x.t).name, ''campaigns'', (
             select count(*)
               from affiliate.open_campaign o
              where x.category = any ((o.campaign).categories)))',
        '{category text}', 'category text');
end
$$;

create function affiliate.membership_offer(j affiliate.membership)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.membership_json(j) || jsonb_build_object(
               'campaign_name', c.name,
               'campaign_state', affiliate.campaign_state(c),
               'merchant_name', m.name,
               'terms', (select affiliate.terms_view(t, c.currency, true) from affiliate.terms_now(c) t where t.terms_id is not null))
      from affiliate.campaign c
      join affiliate.merchant m using (merchant_id)
     where c.merchant_id = j.merchant_id
       and c.campaign_id = j.campaign_id
$$;

create function affiliate.api_membership_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{state}');
    perform affiliate.choice_field(p_request, 'state', '{applied,approved,rejected,removed,left}');
    return query select affiliate.page(p_actor, p_request,
        'select j, j.campaign_id, j.created_at
           from affiliate.membership j
          where j.affiliate_id = $1.affiliate_id
            and ($2 ->> ''state'' is null or j.state = $2 ->> ''state'')',
        'affiliate.membership_offer(x.j)', '{-created_at timestamptz}', 'campaign_id bigint');
end
$$;

create function affiliate.api_membership_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign}', '{message}');
    perform affiliate.id_field(p_request, 'campaign');
    return next affiliate.join_campaign(p_actor.affiliate_id, p_actor, p_request);
end
$$;

create function affiliate.api_membership_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    j affiliate.membership;
begin
    perform affiliate.check_request(p_request, '{campaign}');
    select x.* into j
      from affiliate.membership x
     where x.affiliate_id = p_actor.affiliate_id
       and x.campaign_id = affiliate.path_id(p_request, 'campaign');
    if not found then
        perform affiliate.refuse_missing('membership');
    end if;
    perform affiliate.answer_version(j.version);
    return next affiliate.membership_offer(j);
end
$$;

create function affiliate.api_membership_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign}');
    perform affiliate.leave_campaign(p_actor.affiliate_id, p_actor, p_request);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Who may
-- ---------------------------------------------------------------------------------------------------------------

select affiliate.enter_as_tenant(variadic array(
    select p.oid::regprocedure
      from pg_catalog.pg_proc p
     where p.pronamespace = 'affiliate'::regnamespace
       and p.proname in ('make_campaign', 'change_campaign', 'set_campaign_state', 'set_campaign_suspended', 'make_terms',
                         'set_network_fee', 'make_creative', 'change_creative', 'drop_creative', 'applicant', 'join_campaign',
                         'leave_campaign', 'decide_membership')));

select affiliate.operation(name, actors => '{merchant,key,admin}')
  from unnest('{campaign_list,campaign_show,terms_list,creative_list,campaign_affiliate_list,campaign_affiliate_show,network_fee_show}'::text[]) name;
select affiliate.operation(name, actors => '{merchant,key,admin}', role => 'manager', creates => true)
  from unnest('{campaign_create,campaign_pause,campaign_close,terms_create,creative_create,
                campaign_affiliate_approve,campaign_affiliate_reject,campaign_affiliate_remove}'::text[]) name;
select affiliate.operation('campaign_activate', actors => '{merchant,key,admin}', role => 'manager', creates => true, approved => true);
select affiliate.operation(name, actors => '{merchant,key,admin}', role => 'manager', mutates => true)
  from unnest('{campaign_update,creative_update,creative_delete}'::text[]) name;
select affiliate.operation('network_fee_update', actors => '{admin}', mutates => true);
select affiliate.operation('admin_campaign_list', actors => '{admin}');
select affiliate.operation(name, actors => '{admin}', creates => true)
  from unnest('{admin_campaign_suspend,admin_campaign_resume}'::text[]) name;
select affiliate.operation(name, actors => '{affiliate}')
  from unnest('{affiliate_campaign_list,affiliate_campaign_show,affiliate_category_list,membership_list,membership_show}'::text[]) name;
select affiliate.operation('membership_create', actors => '{affiliate}', creates => true, approved => true);
select affiliate.operation('membership_delete', actors => '{affiliate}', mutates => true);
select affiliate.seal_operations();
