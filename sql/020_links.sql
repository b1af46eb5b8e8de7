-- Links as affiliates make them: to any page of a merchant whose campaign they have joined, under a code that can't be guessed or
-- one that they choose; and the test links of merchants.

create table affiliate.reserved_word (
    word            text primary key check (word ~ '^[a-z0-9]+$'),
    anywhere        boolean not null
);

comment on table affiliate.reserved_word is 'What no alias may be, or, if anywhere, have in it: names that would be taken for the network''s or a bank''s, and insults. For the owner to change';

insert into affiliate.reserved_word
select w, false
  from unnest('{about,account,accounts,admin,administrator,affiliate,affiliated,api,app,assets,auth,balance,bank,billing,blog,
                campaign,campaigns,cdn,click,clicks,config,contact,conversion,conversions,dashboard,demo,docs,download,email,
                favicon,ftp,health,help,home,image,images,index,info,join,legal,link,links,live,login,logout,mail,merchant,
                merchants,metrics,money,news,oauth,official,order,orders,password,pay,payment,payments,payout,payouts,
                postback,privacy,product,products,register,report,reports,reset,robots,root,secure,security,session,sessions,
                settings,shop,signin,signup,sitemap,static,status,support,system,terms,test,true,undefined,upload,user,users,
                verify,wallet,webhook,webhooks,www}'::text[]) w;
insert into affiliate.reserved_word
select w, true
  from unnest('{arsehole,asshole,bastard,bhenchod,bitch,bollock,chutiya,cunt,esewa,faggot,fuck,imepay,khalti,madarchod,muji,
                nazi,nigga,nigger,porn,pussy,randi,rape,shit,slut,whore}'::text[]) w
    on conflict do nothing;

create table affiliate.test_affiliate (
    merchant_id     bigint primary key references affiliate.merchant,
    affiliate_id    bigint not null unique references affiliate.affiliate
);

comment on table affiliate.test_affiliate is 'Whose test links are: an affiliate of nobody, for each merchant that has made one';

select affiliate.fence('affiliate.test_affiliate');

-- ---------------------------------------------------------------------------------------------------------------
-- Codes
-- ---------------------------------------------------------------------------------------------------------------

-- What a code looks like at a glance, whatever digits stand for letters.
create function affiliate.plain_word(p_code text)
returns text
language sql immutable parallel safe
return translate(lower(p_code), '013457$@-_', 'oieastsa');

create function affiliate.is_reserved(p_code text)
returns boolean
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select exists (
        select
          from affiliate.reserved_word w,
               unnest(array[affiliate.plain_word(p_code), translate(lower(p_code), '-_', '')]) as looks
         where case when w.anywhere then strpos(looks, w.word) > 0
                    else looks = w.word or looks = affiliate.plain_word(w.word) end)
$$;

create function affiliate.alias_field(p_request jsonb)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    y affiliate.catalogue_policy;
    value text := affiliate.text_field(p_request, 'code', 100);
begin
    if value is null then
        return null;
    end if;
    select * into y from affiliate.catalogue_policy;
    if length(value) not between y.alias_shortest and y.alias_longest or value !~ '^[a-z0-9]+([_-][a-z0-9]+)*$' then
        perform affiliate.refuse('code', format('must have %s to %s characters: a to z, 0 to 9, and single - and _ between them',
                                                y.alias_shortest, y.alias_longest));
    end if;
    if affiliate.is_reserved(value) then
        perform affiliate.refuse('code', 'is reserved');
    end if;
    return value;
end
$$;

-- Takes a code for a link: the one that is wanted, or one drawn at random until it is nobody's.
create function affiliate.take_code(p_wanted text, p_merchant_id bigint, p_link_id bigint)
returns text
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    code_length integer := (select y.code_length from affiliate.catalogue_policy y);
    drawn text;
begin
    loop
        drawn := coalesce(p_wanted, affiliate.random_code(code_length));
        continue when p_wanted is null and affiliate.is_reserved(drawn);
        insert into affiliate.link_code (code, merchant_id, link_id)
        values (drawn, p_merchant_id, p_link_id)
            on conflict do nothing;
        if found then
            return drawn;
        end if;
        if p_wanted is not null then
            perform affiliate.refuse('code', 'is taken');
        end if;
    end loop;
end
$$;

-- {"sub1": "story", "sub3": "bio"} as an array.
create function affiliate.sub_ids_field(p_request jsonb)
returns text[]
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    given jsonb := p_request -> 'sub_ids';
    value text;
    list text[];
begin
    if given is null or given in ('null', '{}') then
        return null;
    end if;
    if jsonb_typeof(given) <> 'object' then
        perform affiliate.refuse('sub_ids', 'must be an object of sub1 to sub5');
    end if;
    if given - '{sub1,sub2,sub3,sub4,sub5}'::text[] <> '{}' then
        perform affiliate.refuse('sub_ids', 'has other names than sub1 to sub5');
    end if;
    for n in 1..5 loop
        value := affiliate.form_field(given, 'sub' || n, 64, '^[A-Za-z0-9._~-]+$', 'must consist of letters, digits and . _ ~ -');
        if value is not null then
            list[n] := value;
        end if;
    end loop;
    -- Assigning beyond its end fills an array with nulls, but only from where it begins.
    return case when array_lower(list, 1) is not null
                then array(select list[n] from generate_series(1, array_upper(list, 1)) n order by n) end;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- What is shown
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.sub_ids_json(p_sub_ids text[])
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select coalesce(jsonb_object_agg('sub' || n, s), '{}')
      from unnest(p_sub_ids) with ordinality as t(s, n)
     where s is not null
$$;

create function affiliate.short_url(l affiliate.link)
returns text
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select y.short_url || l.code
           || coalesce('?' || (select string_agg(format('sub%s=%s', n, s), '&' order by n)
                                 from unnest(l.sub_ids) with ordinality as t(s, n)
                                where s is not null), '')
      from affiliate.catalogue_policy y
$$;

-- Why a link of a merchant's leads nowhere, for whoever may see the link; the reasons are rows that he may not.
create function affiliate.why_stopped(p_merchant_id bigint, l affiliate.link)
returns text
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select case when l.state = 'removed' then 'The link was removed.'
                when l.state = 'paused' then 'The link is paused.'
                when l.expires_at <= now() then 'The link has expired.'
                else affiliate.link_stopped(l.livemode, m, c, a, j.state) end
      from affiliate.merchant m
      join affiliate.campaign c using (merchant_id)
      join affiliate.affiliate a on a.affiliate_id = l.affiliate_id
      left join affiliate.membership j
        on j.merchant_id = l.merchant_id and j.campaign_id = l.campaign_id and j.affiliate_id = l.affiliate_id
     where m.merchant_id = p_merchant_id
       and c.campaign_id = l.campaign_id
$$;

create function affiliate.link_view(l affiliate.link)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'link', l.code,
        'short_url', affiliate.short_url(l),
        'url', l.url,
        'name', l.name,
        'sub_ids', affiliate.sub_ids_json(l.sub_ids),
        'merchant', l.merchant_id,
        'merchant_name', (select m.name from affiliate.merchant m where m.merchant_id = l.merchant_id),
        'campaign', l.campaign_id,
        'campaign_name', (select c.name from affiliate.campaign c where c.merchant_id = l.merchant_id and c.campaign_id = l.campaign_id),
        'affiliate', l.affiliate_id,
        'livemode', l.livemode,
        'state', case when l.state = 'active' and l.expires_at <= now() then 'expired' else l.state end,
        'leads', affiliate.why_stopped(l.merchant_id, l) is null,
        'stopped_because', affiliate.why_stopped(l.merchant_id, l),
        'expires_at', l.expires_at,
        'created_at', l.created_at,
        'version', l.version)
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- What is done
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.future_field(p_request jsonb, p_field text)
returns timestamptz
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value timestamptz := affiliate.time_field(p_request, p_field);
begin
    if value <= now() then
        perform affiliate.refuse(p_field, 'must not be in the past');
    end if;
    return value;
end
$$;

create function affiliate.link_made(p_actor affiliate.actor, l affiliate.link, p_location text)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    actor affiliate.actor := p_actor;
begin
    actor.merchant_id := l.merchant_id;
    actor.affiliate_id := l.affiliate_id;
    perform affiliate.record(actor, 'link_create', 'link', l.code, null, affiliate.link_view(l));
    perform affiliate.answer_version(l.version);
    perform affiliate.answer(jsonb_build_object('status', 201, 'location', p_location || l.code));
    return affiliate.link_view(l);
end
$$;

-- The page of a link: at a host of the merchant, which it has proved to be its own. Hosts that the command line gave are taken as
-- they are; a test link may lead to one whose proof is under way.
create function affiliate.page_field(p_request jsonb, p_merchant_id bigint, p_livemode boolean)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := affiliate.destination_field(p_request, p_merchant_id);
begin
    if p_livemode and exists (
        select
          from affiliate.site_verification s
         where s.merchant_id = p_merchant_id
           and s.host = affiliate.url_host(value)
           and s.state <> 'verified') then
        perform affiliate.refuse('url', format('the merchant has not proved yet that its host %s is its own', affiliate.url_host(value)));
    end if;
    return value;
end
$$;

create function affiliate.add_link(p_campaign affiliate.campaign, p_affiliate_id bigint, p_livemode boolean, p_request jsonb)
returns affiliate.link
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    new_id bigint := nextval(pg_get_serial_sequence('affiliate.link', 'link_id'));
    made affiliate.link;
begin
    insert into affiliate.link (merchant_id, link_id, campaign_id, affiliate_id, livemode, code, url, name, sub_ids, expires_at)
    values (p_campaign.merchant_id, new_id, p_campaign.campaign_id, p_affiliate_id, p_livemode,
            affiliate.take_code(affiliate.alias_field(p_request), p_campaign.merchant_id, new_id),
            affiliate.page_field(p_request, p_campaign.merchant_id, p_livemode), affiliate.text_field(p_request, 'name', 200),
            affiliate.sub_ids_field(p_request), affiliate.future_field(p_request, 'expires_at'))
    returning * into made;
    return made;
end
$$;

create function affiliate.make_link(p_affiliate_id bigint, p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign;
    joined affiliate.membership;
    most integer := (select y.links_most from affiliate.catalogue_policy y);
begin
    select x.* into c
      from affiliate.campaign x
     where x.campaign_id = affiliate.id_field(p_request, 'campaign')
       for share;
    if not found or not affiliate.campaign_is_open(c) then
        perform affiliate.refuse('campaign', 'there is none with this id that is open');
    end if;
    -- The lock makes those who count below wait for each other.
    select j.* into joined
      from affiliate.membership j
     where j.merchant_id = c.merchant_id
       and j.campaign_id = c.campaign_id
       and j.affiliate_id = p_affiliate_id
       for update;
    if joined.state is distinct from 'approved' then
        perform affiliate.problem(409, 'state', 'You have not joined this campaign' || case joined.state when 'applied' then ' yet.' else '.' end);
    end if;
    if (select count(*)
          from affiliate.link l
         where l.merchant_id = c.merchant_id
           and l.campaign_id = c.campaign_id
           and l.affiliate_id = p_affiliate_id
           and l.state <> 'removed') >= most then
        perform affiliate.problem(409, 'limit', format('You have %s links in this campaign, the most there may be.', most));
    end if;
    return affiliate.link_made(p_actor, affiliate.add_link(c, p_affiliate_id, true, p_request), '/api/v1/affiliate/links/');
end
$$;

create function affiliate.make_test_link(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign := affiliate.lock_campaign(p_actor, p_request - 'if_match');
    tester bigint;
begin
    perform pg_advisory_xact_lock(hashtextextended('affiliate.test_affiliate ' || c.merchant_id, 0));
    select t.affiliate_id into tester from affiliate.test_affiliate t where t.merchant_id = c.merchant_id;
    if not found then
        with made as (
            insert into affiliate.affiliate (name)
            select left('Test of ' || m.name, 200) from affiliate.merchant m where m.merchant_id = c.merchant_id
            returning affiliate_id
        )
        insert into affiliate.test_affiliate (merchant_id, affiliate_id)
        select c.merchant_id, made.affiliate_id from made
        returning affiliate_id into tester;
    end if;
    return affiliate.link_made(p_actor, affiliate.add_link(c, tester, false, p_request),
                               format('/api/v1/merchants/%s/links/', c.merchant_id));
end
$$;

-- A link of the affiliate, or a test link of the merchant.
create function affiliate.lock_link(p_actor affiliate.actor, p_request jsonb)
returns affiliate.link
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    l affiliate.link;
begin
    select x.* into l
      from affiliate.link_code k
      join affiliate.link x using (merchant_id, link_id)
     where k.code = p_request ->> 'link'
       and (x.affiliate_id = p_actor.affiliate_id
            or x.merchant_id = p_actor.merchant_id and exists (
                   select from affiliate.test_affiliate t where t.merchant_id = x.merchant_id and t.affiliate_id = x.affiliate_id))
       for update of x;
    if not found then
        perform affiliate.refuse_missing('link');
    end if;
    perform affiliate.check_version(p_request, l.version);
    if l.state = 'removed' then
        perform affiliate.problem(409, 'state', 'The link was removed.');
    end if;
    return l;
end
$$;

create function affiliate.link_changed(p_actor affiliate.actor, p_action text, p_from affiliate.link)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    actor affiliate.actor := p_actor;
    l affiliate.link;
begin
    select x.* into l from affiliate.link x where x.merchant_id = p_from.merchant_id and x.link_id = p_from.link_id;
    actor.merchant_id := l.merchant_id;
    actor.affiliate_id := l.affiliate_id;
    perform affiliate.record(actor, p_action, 'link', l.code, affiliate.link_view(p_from), affiliate.link_view(l));
    perform affiliate.answer_version(l.version);
    return affiliate.link_view(l);
end
$$;

create function affiliate.change_link(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    l affiliate.link := affiliate.lock_link(p_actor, p_request);
begin
    update affiliate.link x
       set url = coalesce(affiliate.page_field(p_request, l.merchant_id, l.livemode), x.url),
           name = case when p_request ? 'name' then affiliate.text_field(p_request, 'name', 200) else x.name end,
           sub_ids = case when p_request ? 'sub_ids' then affiliate.sub_ids_field(p_request) else x.sub_ids end,
           expires_at = case when p_request ? 'expires_at' then affiliate.future_field(p_request, 'expires_at') else x.expires_at end
     where x.merchant_id = l.merchant_id
       and x.link_id = l.link_id;
    return affiliate.link_changed(p_actor, 'link_update', l);
end
$$;

create function affiliate.change_link_state(p_actor affiliate.actor, p_request jsonb, p_state text)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    l affiliate.link := affiliate.lock_link(p_actor, p_request);
begin
    update affiliate.link x
       set state = p_state
     where x.merchant_id = l.merchant_id
       and x.link_id = l.link_id
       and x.state <> p_state;
    return affiliate.link_changed(p_actor, 'link_' || p_state, l);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Operations
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.check_link_page(p_request jsonb)
returns void
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.choice_field(p_request, 'state', '{active,paused,expired,removed}');
    perform affiliate.id_field(p_request, 'campaign');
    perform affiliate.id_field(p_request, 'affiliate');
    perform affiliate.text_field(p_request, 'q', 200);
end
$$;

-- What both lists of links ask for, $2 being the request.
create function affiliate.link_filters()
returns text
language sql immutable parallel safe
return 'and ($2 ->> ''campaign'' is null or l.campaign_id = affiliate.id_field($2, ''campaign''))
        and ($2 ->> ''q'' is null or strpos(lower(concat_ws('' '', l.code, l.name, l.url)), lower($2 ->> ''q'')) > 0)
        and case coalesce($2 ->> ''state'', ''kept'')
                when ''kept'' then l.state <> ''removed''
                when ''expired'' then l.state = ''active'' and l.expires_at <= now()
                when ''active'' then l.state = ''active'' and (l.expires_at > now()) is not false
                else l.state = $2 ->> ''state''
            end';

create function affiliate.api_link_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{campaign,state,q}');
    perform affiliate.check_link_page(p_request);
    return query select affiliate.page(p_actor, p_request,
        'select l, l.link_id, l.link_id as added
           from affiliate.link l
          where l.affiliate_id = $1.affiliate_id ' || affiliate.link_filters(),
        'affiliate.link_view(x.l)', '{-added bigint}', 'link_id bigint');
end
$$;

create function affiliate.api_link_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign,url}', '{code,name,sub_ids,expires_at}');
    return next affiliate.make_link(p_actor.affiliate_id, p_actor, p_request);
end
$$;

create function affiliate.api_link_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    l affiliate.link;
begin
    perform affiliate.check_request(p_request, '{link}');
    select x.* into l
      from affiliate.link x
     where x.affiliate_id = p_actor.affiliate_id
       and x.code = p_request ->> 'link';
    if not found then
        perform affiliate.refuse_missing('link');
    end if;
    perform affiliate.answer_version(l.version);
    return next affiliate.link_view(l);
end
$$;

create function affiliate.api_link_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{link}', '{url,name,sub_ids,expires_at}');
    return next affiliate.change_link(p_actor, p_request);
end
$$;

create function affiliate.api_link_pause(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{link}');
    return next affiliate.change_link_state(p_actor, p_request, 'paused');
end
$$;

create function affiliate.api_link_resume(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{link}');
    return next affiliate.change_link_state(p_actor, p_request, 'active');
end
$$;

create function affiliate.api_link_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{link}');
    perform affiliate.change_link_state(p_actor, p_request, 'removed');
    perform affiliate.answer('{"status": 204}');
end
$$;

create function affiliate.api_merchant_link_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{campaign,affiliate,state,q}');
    perform affiliate.check_link_page(p_request);
    return query select affiliate.page(p_actor, p_request,
        'select l, l.link_id, l.link_id as added
           from affiliate.link l
          where l.merchant_id = $1.merchant_id
            and l.livemode = $1.livemode
            and ($2 ->> ''affiliate'' is null or l.affiliate_id = affiliate.id_field($2, ''affiliate'')) ' || affiliate.link_filters(),
        'affiliate.link_view(x.l) || jsonb_build_object(''affiliate_name'',
             (select a.name from affiliate.affiliate a where a.affiliate_id = (x.l).affiliate_id))',
        '{-added bigint}', 'link_id bigint');
end
$$;

create function affiliate.api_test_link_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{campaign,url}', '{name,sub_ids,expires_at}');
    return next affiliate.make_test_link(p_actor, p_request);
end
$$;

create function affiliate.api_test_link_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{link}');
    perform affiliate.change_link_state(p_actor, p_request, 'removed');
    perform affiliate.answer('{"status": 204}');
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Who may
-- ---------------------------------------------------------------------------------------------------------------

select affiliate.enter_as_tenant(variadic array(
    select p.oid::regprocedure
      from pg_catalog.pg_proc p
     where p.pronamespace = 'affiliate'::regnamespace
       and p.proname in ('why_stopped', 'make_link', 'make_test_link', 'change_link', 'change_link_state')));

select affiliate.operation(name, actors => '{affiliate}') from unnest('{link_list,link_show}'::text[]) name;
select affiliate.operation('link_create', actors => '{affiliate}', creates => true, approved => true);
select affiliate.operation(name, actors => '{affiliate}', creates => true) from unnest('{link_pause,link_resume}'::text[]) name;
select affiliate.operation(name, actors => '{affiliate}', mutates => true) from unnest('{link_update,link_delete}'::text[]) name;
select affiliate.operation('merchant_link_list', actors => '{merchant,key,admin}');
select affiliate.operation('test_link_create', actors => '{merchant,key,admin}', role => 'manager', creates => true, by_mode => true);
select affiliate.operation('test_link_delete', actors => '{merchant,key,admin}', role => 'manager', mutates => true, by_mode => true);
select affiliate.seal_operations();
