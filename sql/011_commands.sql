-- The commands of affiliated: NOUN_VERB(jsonb) returns setof jsonb.

create function affiliate.find_merchant(p_command jsonb)
returns affiliate.merchant
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    id bigint := affiliate.id_field(p_command, 'merchant');
    found_row affiliate.merchant;
begin
    select * into found_row from affiliate.merchant m where m.merchant_id = id;
    if not found then
        perform affiliate.refuse('merchant', format('there is none with id %s', id));
    end if;
    return found_row;
end
$$;

create function affiliate.find_affiliate(p_command jsonb)
returns affiliate.affiliate
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    id bigint := affiliate.id_field(p_command, 'affiliate');
    found_row affiliate.affiliate;
begin
    select * into found_row from affiliate.affiliate a where a.affiliate_id = id;
    if not found then
        perform affiliate.refuse('affiliate', format('there is none with id %s', id));
    end if;
    return found_row;
end
$$;

create function affiliate.find_campaign(p_command jsonb)
returns affiliate.campaign
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    id bigint := affiliate.id_field(p_command, 'campaign');
    merchant bigint := affiliate.id_field(p_command, 'merchant');
    found_row affiliate.campaign;
begin
    select * into found_row
      from affiliate.campaign c
     where c.campaign_id = id
       and c.merchant_id = coalesce(merchant, c.merchant_id);
    if not found then
        perform affiliate.refuse('campaign', format('there is none with id %s', id)
            || case when merchant is null then '' else format(' at merchant %s', merchant) end);
    end if;
    return found_row;
end
$$;

-- What was suspended until now, and is switched on or off from now on.
create function affiliate.switch_on(p_suspended tstzmultirange, p_active boolean)
returns tstzmultirange
language sql stable
return case when p_active then p_suspended - tstzmultirange(tstzrange(now(), null))
            else p_suspended + tstzmultirange(tstzrange(now(), null)) end;

-- ---------------------------------------------------------------------------------------------------------------
-- merchant; who makes, changes or suspends one is told of in 015
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.merchant_list(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_list(p_command, '{}');
    return query
    select affiliate.merchant_json(m)
      from affiliate.merchant m
     where m.merchant_id > affiliate.after_field(p_command)
     order by m.merchant_id
     limit affiliate.limit_field(p_command);
end
$$;

create function affiliate.merchant_show(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_fields(p_command, '{merchant}', '{}');
    return next affiliate.merchant_json(affiliate.find_merchant(p_command));
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- affiliate; as above
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.email_field(p_command jsonb)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := affiliate.form_field(
        p_command, 'email', 254, '^[^@[:space:]]+@[^@[:space:]]+$', 'must be an e-mail address');
begin
    if exists (select
                 from affiliate.affiliate a
                where lower(a.email) = lower(value)
                  and a.affiliate_id is distinct from affiliate.id_field(p_command, 'affiliate')) then
        perform affiliate.refuse('email', 'is another affiliate''s');
    end if;
    return value;
end
$$;

create function affiliate.affiliate_list(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_list(p_command, '{}');
    return query
    select affiliate.affiliate_json(a)
      from affiliate.affiliate a
     where a.affiliate_id > affiliate.after_field(p_command)
     order by a.affiliate_id
     limit affiliate.limit_field(p_command);
end
$$;

create function affiliate.affiliate_show(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_fields(p_command, '{affiliate}', '{}');
    return next affiliate.affiliate_json(affiliate.find_affiliate(p_command));
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- campaign
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.terms_json(t affiliate.terms, p_currency text)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_strip_nulls(jsonb_build_object(
               'terms', t.terms_id,
               'valid_from', t.valid_from,
               'rate_basis_points', t.rate_basis_points,
               'rate_flat', affiliate.amount_text(t.rate_flat_minor, c.decimals),
               'fee_basis_points', t.fee_basis_points,
               'fee_flat', affiliate.amount_text(t.fee_flat_minor, c.decimals),
               'currency', c.currency,
               'hold', t.hold,
               'attribution_window', t.attribution_window,
               'minimum_click_to_order', t.minimum_click_to_order,
               'minimum_payout', affiliate.amount_text(t.minimum_payout_minor, c.decimals),
               'product_rates', (
                   select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                              p.kind, p.value,
                              'rate_basis_points', p.rate_basis_points,
                              'rate_flat', affiliate.amount_text(p.rate_flat_minor, c.decimals)))
                              order by p.kind desc, p.value)
                     from affiliate.product_rate p
                    where p.merchant_id = t.merchant_id
                      and p.terms_id = t.terms_id)))
      from affiliate.currency c
     where c.currency = p_currency
$$;

create function affiliate.campaign_json(c affiliate.campaign)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'campaign', c.campaign_id,
        'merchant', c.merchant_id,
        'name', c.name,
        'currency', c.currency,
        'active', affiliate.is_active(c.suspended),
        'created_at', c.created_at,
        'terms', (
            select affiliate.terms_json(t, c.currency)
              from affiliate.terms t
             where t.merchant_id = c.merchant_id
               and t.campaign_id = c.campaign_id
               and t.valid_from <= now()
             order by t.valid_from desc
             limit 1))
$$;

-- Product rates as options: sku_rate ABC=500 (basis points), sku_flat ABC=10.00 (a piece), and the same of categories.
create function affiliate.add_product_rates(p_command jsonb, p_terms affiliate.terms, p_currency text)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    field text;
    item text;
    name text;
    value text;
begin
    foreach field in array '{sku_rate,sku_flat,category_rate,category_flat}'::text[] loop
        foreach item in array coalesce(affiliate.list_field(p_command, field, 1000), '{}') loop
            name := substring(item from '^(.*)=');
            value := substring(item from '=([^=]*)$');
            if coalesce(name, '') = '' or length(name) > 64 then
                perform affiliate.refuse(field, format('%s must be NAME=RATE', quote_literal(item)));
            end if;
            if field like '%rate' and (value !~ '^[0-9]{1,5}$' or value::integer > 10000) then
                perform affiliate.refuse(field, format('%s must end in basis points, 0 to 10000', quote_literal(item)));
            end if;
            begin
                insert into affiliate.product_rate
                       (merchant_id, terms_id, kind, value, rate_basis_points, rate_flat_minor)
                values (p_terms.merchant_id, p_terms.terms_id, split_part(field, '_', 1), name,
                        case when field like '%rate' then value::integer end,
                        case when field like '%flat' then affiliate.amount_minor(field, value, p_currency) end);
            exception when unique_violation then
                perform affiliate.refuse(field, format('%s has a rate already', quote_literal(name)));
            end;
        end loop;
    end loop;
end
$$;

-- Adds a version of terms; what is not named stays as in the version before.
create function affiliate.add_terms(p_command jsonb, p_campaign affiliate.campaign)
returns affiliate.terms
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.terms;
    made affiliate.terms;
    basis_points integer := affiliate.integer_field(p_command, 'rate_basis_points', 0, 10000);
    flat_minor bigint := affiliate.amount_field(p_command, 'rate_flat', p_campaign.currency);
    starts timestamptz := coalesce(affiliate.time_field(p_command, 'valid_from'), now());
begin
    select * into before
      from affiliate.terms t
     where t.merchant_id = p_campaign.merchant_id
       and t.campaign_id = p_campaign.campaign_id
     order by t.valid_from desc
     limit 1;

    if found and starts <= before.valid_from then
        perform affiliate.refuse('valid_from', format('must be after %s, where the latest version begins', before.valid_from));
    end if;
    if found and starts < now() then
        perform affiliate.refuse('valid_from', 'must not be in the past: orders may have been paid by the version before');
    end if;
    if basis_points is not null and flat_minor is not null then
        perform affiliate.refuse('rate_flat', 'can''t stand beside rate_basis_points');
    end if;
    if basis_points is null and flat_minor is null then
        basis_points := before.rate_basis_points;
        flat_minor := before.rate_flat_minor;
    end if;
    if basis_points is null and flat_minor is null then
        perform affiliate.refuse('rate_basis_points', 'or rate_flat is required');
    end if;

    insert into affiliate.terms
          (merchant_id, campaign_id, valid_from, rate_basis_points, rate_flat_minor, fee_basis_points, fee_flat_minor,
           hold, attribution_window, minimum_click_to_order, minimum_payout_minor)
    values (p_campaign.merchant_id, p_campaign.campaign_id, starts, basis_points, flat_minor,
            coalesce(affiliate.integer_field(p_command, 'fee_basis_points', 0, 10000), before.fee_basis_points, 0),
            coalesce(affiliate.amount_field(p_command, 'fee_flat', p_campaign.currency), before.fee_flat_minor, 0),
            coalesce(affiliate.interval_field(p_command, 'hold', '0'), before.hold, interval '720 hours'),
            coalesce(affiliate.interval_field(p_command, 'attribution_window', '1 second'),
                     before.attribution_window, interval '720 hours'),
            coalesce(affiliate.interval_field(p_command, 'minimum_click_to_order', '0'),
                     before.minimum_click_to_order, interval '0'),
            coalesce(affiliate.amount_field(p_command, 'minimum_payout', p_campaign.currency),
                     before.minimum_payout_minor, 0))
    returning * into made;

    if p_command ?| '{sku_rate,sku_flat,category_rate,category_flat}' then
        perform affiliate.add_product_rates(p_command, made, p_campaign.currency);
    elsif before.terms_id is not null then
        insert into affiliate.product_rate (merchant_id, terms_id, kind, value, rate_basis_points, rate_flat_minor)
        select p.merchant_id, made.terms_id, p.kind, p.value, p.rate_basis_points, p.rate_flat_minor
          from affiliate.product_rate p
         where p.merchant_id = before.merchant_id
           and p.terms_id = before.terms_id;
    end if;

    return made;
end
$$;

create function affiliate.campaign_create(p_command jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    m affiliate.merchant;
    made affiliate.campaign;
begin
    perform affiliate.check_fields(p_command, '{merchant,name,currency}',
        '{rate_basis_points,rate_flat,fee_basis_points,fee_flat,hold,attribution_window,minimum_click_to_order,
          minimum_payout,valid_from,sku_rate,sku_flat,category_rate,category_flat}');
    m := affiliate.find_merchant(p_command);
    insert into affiliate.campaign (merchant_id, name, currency)
    values (m.merchant_id, affiliate.text_field(p_command, 'name', 200), affiliate.currency_field(p_command, 'currency'))
    returning * into made;
    perform affiliate.add_terms(p_command, made);
    return next affiliate.campaign_json(made);
end
$$;

create function affiliate.campaign_terms(p_command jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign;
begin
    perform affiliate.check_fields(p_command, '{campaign}',
        '{merchant,rate_basis_points,rate_flat,fee_basis_points,fee_flat,hold,attribution_window,minimum_click_to_order,
          minimum_payout,valid_from,sku_rate,sku_flat,category_rate,category_flat}');
    c := affiliate.find_campaign(p_command);
    return next affiliate.terms_json(affiliate.add_terms(p_command, c), c.currency);
end
$$;

create function affiliate.campaign_list(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_list(p_command, '{merchant}');
    return query
    select affiliate.campaign_json(c)
      from affiliate.campaign c
     where c.campaign_id > affiliate.after_field(p_command)
       and c.merchant_id = coalesce(affiliate.id_field(p_command, 'merchant'), c.merchant_id)
     order by c.campaign_id
     limit affiliate.limit_field(p_command);
end
$$;

create function affiliate.campaign_show(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign;
begin
    perform affiliate.check_fields(p_command, '{campaign}', '{merchant}');
    c := affiliate.find_campaign(p_command);
    return next affiliate.campaign_json(c) || jsonb_build_object('versions', (
        select jsonb_agg(affiliate.terms_json(t, c.currency) order by t.valid_from)
          from affiliate.terms t
         where t.merchant_id = c.merchant_id
           and t.campaign_id = c.campaign_id));
end
$$;

create function affiliate.campaign_update(p_command jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign;
begin
    perform affiliate.check_fields(p_command, '{campaign,name}', '{merchant}');
    c := affiliate.find_campaign(p_command);
    update affiliate.campaign x
       set name = affiliate.text_field(p_command, 'name', 200)
     where x.merchant_id = c.merchant_id
       and x.campaign_id = c.campaign_id
    returning * into c;
    return next affiliate.campaign_json(c);
end
$$;

create function affiliate.set_campaign_active(p_command jsonb, p_active boolean)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign;
begin
    perform affiliate.check_fields(p_command, '{campaign}', '{merchant}');
    c := affiliate.find_campaign(p_command);
    update affiliate.campaign x
       set suspended = affiliate.switch_on(x.suspended, p_active)
     where x.merchant_id = c.merchant_id
       and x.campaign_id = c.campaign_id
       and affiliate.is_active(x.suspended) <> p_active;
    return affiliate.campaign_json(affiliate.find_campaign(p_command));
end
$$;

create function affiliate.campaign_suspend(p_command jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.set_campaign_active(p_command, false)
$$;

create function affiliate.campaign_activate(p_command jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.set_campaign_active(p_command, true)
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- link
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.find_link(p_command jsonb)
returns affiliate.link
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted text := affiliate.text_field(p_command, 'link', 64);
    found_row affiliate.link;
begin
    select l.* into found_row
      from affiliate.link_code k
      join affiliate.link l using (merchant_id, link_id)
     where k.code = wanted;
    if not found then
        perform affiliate.refuse('link', format('there is none with code %s', quote_literal(wanted)));
    end if;
    return found_row;
end
$$;

create function affiliate.link_json(l affiliate.link)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'link', l.code,
        'code', l.code,
        'link_id', l.link_id,
        'merchant', l.merchant_id,
        'campaign', l.campaign_id,
        'affiliate', l.affiliate_id,
        'livemode', l.livemode,
        'url', l.url,
        'param', l.param,
        'fallback', l.fallback,
        'expires_at', l.expires_at,
        'state', case when l.state = 'active' and l.expires_at <= now() then 'expired' else l.state end,
        'created_at', l.created_at)
$$;

-- A link may lead to its merchant only: the database refuses any other host.
create function affiliate.destination_field(p_command jsonb, p_merchant_id bigint)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := affiliate.url_field(p_command, 'url');
    allowed text[];
begin
    if value is null then
        return null;
    end if;
    select m.hosts into allowed from affiliate.merchant m where m.merchant_id = p_merchant_id;
    if not affiliate.host_allowed(affiliate.url_host(value), allowed) then
        perform affiliate.refuse('url', format('its host %s is not one of the merchant''s: %s',
            affiliate.url_host(value), array_to_string(allowed, ', ')));
    end if;
    return value;
end
$$;

create function affiliate.param_field(p_command jsonb)
returns text
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.form_field(
               p_command, 'param', 64, '^[A-Za-z0-9._~-]+$', 'must consist of letters, digits and . _ ~ -')
$$;

create function affiliate.link_create(p_command jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.campaign;
    a affiliate.affiliate;
    new_code text := affiliate.text_field(p_command, 'code', 64);
    made affiliate.link;
begin
    perform affiliate.check_fields(p_command, '{campaign,affiliate,url}',
        '{merchant,livemode,code,param,fallback,expires_at}');
    c := affiliate.find_campaign(p_command);
    a := affiliate.find_affiliate(p_command);

    if new_code !~ '^[A-Za-z0-9_-]+$' then
        perform affiliate.refuse('code', 'must consist of letters, digits, _ and -');
    end if;

    insert into affiliate.link
          (merchant_id, campaign_id, affiliate_id, livemode, code, url, param, fallback, expires_at)
    values (c.merchant_id, c.campaign_id, a.affiliate_id, coalesce(affiliate.boolean_field(p_command, 'livemode'), true),
            coalesce(new_code, affiliate.random_code(10)),
            affiliate.destination_field(p_command, c.merchant_id), affiliate.param_field(p_command),
            affiliate.url_field(p_command, 'fallback'), affiliate.time_field(p_command, 'expires_at'))
    returning * into made;

    insert into affiliate.link_code (code, merchant_id, link_id)
    values (made.code, made.merchant_id, made.link_id)
        on conflict do nothing;
    if not found then
        perform affiliate.refuse('code', format('%s is taken', quote_literal(made.code)));
    end if;

    return next affiliate.link_json(made);
end
$$;

create function affiliate.link_list(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_list(p_command, '{merchant,campaign,affiliate}');
    return query
    select affiliate.link_json(l)
      from affiliate.link l
     where l.link_id > affiliate.after_field(p_command)
       and l.merchant_id = coalesce(affiliate.id_field(p_command, 'merchant'), l.merchant_id)
       and l.campaign_id = coalesce(affiliate.id_field(p_command, 'campaign'), l.campaign_id)
       and l.affiliate_id = coalesce(affiliate.id_field(p_command, 'affiliate'), l.affiliate_id)
     order by l.link_id
     limit affiliate.limit_field(p_command);
end
$$;

create function affiliate.link_show(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_fields(p_command, '{link}', '{}');
    return next affiliate.link_json(affiliate.find_link(p_command));
end
$$;

create function affiliate.link_update(p_command jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    l affiliate.link;
begin
    perform affiliate.check_fields(p_command, '{link}', '{url,param,fallback,expires_at}');
    l := affiliate.find_link(p_command);
    update affiliate.link x
       set url = coalesce(affiliate.destination_field(p_command, l.merchant_id), x.url),
           param = coalesce(affiliate.param_field(p_command), x.param),
           fallback = coalesce(affiliate.url_field(p_command, 'fallback'), x.fallback),
           expires_at = coalesce(affiliate.time_field(p_command, 'expires_at'), x.expires_at)
     where x.merchant_id = l.merchant_id
       and x.link_id = l.link_id
    returning * into l;
    return next affiliate.link_json(l);
end
$$;

-- A removed link stays removed; its code is not given out again.
create function affiliate.set_link_state(p_command jsonb, p_state text)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    l affiliate.link;
begin
    perform affiliate.check_fields(p_command, '{link}', '{}');
    l := affiliate.find_link(p_command);
    if l.state = 'removed' and p_state <> 'removed' then
        perform affiliate.refuse('link', 'was removed');
    end if;
    update affiliate.link x
       set state = p_state
     where x.merchant_id = l.merchant_id
       and x.link_id = l.link_id
       and x.state <> p_state;
    return affiliate.link_json(affiliate.find_link(p_command));
end
$$;

create function affiliate.link_pause(p_command jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.set_link_state(p_command, 'paused')
$$;

create function affiliate.link_resume(p_command jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.set_link_state(p_command, 'active')
$$;

create function affiliate.link_remove(p_command jsonb)
returns setof jsonb
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.set_link_state(p_command, 'removed')
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- key
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.key_json(k affiliate.api_key)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'key', k.key_id,
        'merchant', k.merchant_id,
        'livemode', k.livemode,
        'master_id', k.master_id,
        'label', k.label,
        'active', k.revoked_at is null,
        'revoked_at', k.revoked_at,
        'created_at', k.created_at)
$$;

create function affiliate.find_key(p_command jsonb)
returns affiliate.api_key
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted text := affiliate.text_field(p_command, 'key', 64);
    found_row affiliate.api_key;
begin
    select k.* into found_row
      from affiliate.api_key_id i
      join affiliate.api_key k using (merchant_id, key_id)
     where i.key_id = wanted;
    if not found then
        perform affiliate.refuse('key', format('there is none with id %s', quote_literal(wanted)));
    end if;
    return found_row;
end
$$;

create function affiliate.key_create(p_command jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    m affiliate.merchant;
    live boolean := affiliate.boolean_field(p_command, 'livemode');
    mode text := case when live then 'live' else 'test' end;
    new_id text := affiliate.text_field(p_command, 'key_id', 64);
    made affiliate.api_key;
begin
    perform affiliate.check_fields(p_command, '{merchant,livemode,key_id,master_id}', '{label}');
    m := affiliate.find_merchant(p_command);
    if new_id !~ ('^ak_' || mode || '_[A-Za-z0-9]{1,56}$') then
        perform affiliate.refuse('key_id', format('must be ak_%s_ and letters or digits', mode));
    end if;

    insert into affiliate.api_key_id (key_id, merchant_id)
    values (new_id, m.merchant_id)
        on conflict do nothing;
    if not found then
        perform affiliate.refuse('key_id', format('%s is taken', quote_literal(new_id)));
    end if;

    insert into affiliate.api_key (merchant_id, key_id, livemode, master_id, label)
    values (m.merchant_id, new_id, live, affiliate.text_field(p_command, 'master_id', 64),
            affiliate.text_field(p_command, 'label', 200))
    returning * into made;
    return next affiliate.key_json(made);
end
$$;

create function affiliate.key_list(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_list(p_command, '{merchant}');
    return query
    select affiliate.key_json(k)
      from affiliate.api_key k
     where k.key_id > coalesce(affiliate.text_field(p_command, 'after', 64), '') collate "C"
       and k.merchant_id = coalesce(affiliate.id_field(p_command, 'merchant'), k.merchant_id)
     order by k.key_id
     limit affiliate.limit_field(p_command);
end
$$;

create function affiliate.key_show(p_command jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_fields(p_command, '{key}', '{}');
    return next affiliate.key_json(affiliate.find_key(p_command));
end
$$;

create function affiliate.key_revoke(p_command jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    k affiliate.api_key;
begin
    perform affiliate.check_fields(p_command, '{key}', '{}');
    k := affiliate.find_key(p_command);
    update affiliate.api_key x
       set revoked_at = now()
     where x.merchant_id = k.merchant_id
       and x.key_id = k.key_id
       and x.revoked_at is null;
    return next affiliate.key_json(affiliate.find_key(p_command));
end
$$;
