-- How commands read their fields: jsonb in, and an error (22023) that names the field and the rule if it breaks one.

create function affiliate.refuse(p_field text, p_rule text)
returns void
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    raise exception using errcode = '22023', message = p_field || ': ' || p_rule;
end
$$;

-- Refuses fields that are not known, and missing ones that are required.
create function affiliate.check_fields(p_command jsonb, p_required text[], p_optional text[])
returns void
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    field text;
begin
    if jsonb_typeof(p_command) is distinct from 'object' then
        perform affiliate.refuse('command', 'must be an object');
    end if;

    for field in select k from jsonb_object_keys(p_command) k order by k loop
        if field <> all (p_required || p_optional) then
            perform affiliate.refuse(field, 'is not a field of this command');
        end if;
    end loop;

    foreach field in array p_required loop
        if p_command -> field is null or jsonb_typeof(p_command -> field) = 'null' then
            perform affiliate.refuse(field, 'is required');
        end if;
    end loop;
end
$$;

-- The same for a list, which pages by after and limit.
create function affiliate.check_list(p_command jsonb, p_filters text[])
returns void
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.check_fields(p_command, '{}', p_filters || '{after,limit}'::text[])
$$;

create function affiliate.text_field(p_command jsonb, p_field text, p_max integer)
returns text
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := p_command ->> p_field;
begin
    if value is null then
        return null;
    end if;
    if jsonb_typeof(p_command -> p_field) not in ('string', 'number', 'boolean') then
        perform affiliate.refuse(p_field, 'must be one value');
    end if;
    if value = '' or length(value) > p_max then
        perform affiliate.refuse(p_field, format('must have 1 to %s characters', p_max));
    end if;
    if value ~ '[[:cntrl:]]' then
        perform affiliate.refuse(p_field, 'must not have control characters');
    end if;
    return value;
end
$$;

-- Text of one form; p_rule says which.
create function affiliate.form_field(p_command jsonb, p_field text, p_max integer, p_pattern text, p_rule text)
returns text
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := affiliate.text_field(p_command, p_field, p_max);
begin
    if value !~ p_pattern then
        perform affiliate.refuse(p_field, p_rule);
    end if;
    return value;
end
$$;

create function affiliate.id_field(p_command jsonb, p_field text)
returns bigint
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.form_field(
               p_command, p_field, 100, '^[1-9][0-9]{0,17}$', 'must be an id, a whole number from 1')::bigint
$$;

create function affiliate.integer_field(p_command jsonb, p_field text, p_low integer, p_high integer)
returns integer
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    rule text := format('must be a whole number from %s to %s', p_low, p_high);
    value integer := affiliate.form_field(p_command, p_field, 100, '^[0-9]{1,9}$', rule);
begin
    if value not between p_low and p_high then
        perform affiliate.refuse(p_field, rule);
    end if;
    return value;
end
$$;

create function affiliate.boolean_field(p_command jsonb, p_field text)
returns boolean
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.form_field(p_command, p_field, 100, '^(true|false)$', 'must be true or false')::boolean
$$;

-- Spans are kept in seconds (a day is 24 hours, a month 30 days), so that no time zone and no calendar moves money.
create function affiliate.interval_field(p_command jsonb, p_field text, p_low interval)
returns interval
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := affiliate.text_field(p_command, p_field, 100);
    span interval;
begin
    if value is null then
        return null;
    end if;
    begin
        span := make_interval(secs => extract(epoch from value::interval)::double precision);
    exception when data_exception then
        perform affiliate.refuse(p_field, 'must be a span of time, like 30 days, 12 hours or 5 seconds');
    end;
    if span < p_low or span > interval '3650 days' then
        perform affiliate.refuse(p_field, format('must be from %s seconds to 3650 days', extract(epoch from p_low)::bigint));
    end if;
    return span;
end
$$;

create function affiliate.time_field(p_command jsonb, p_field text)
returns timestamptz
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
set timezone = 'UTC'
as $$
declare
    rule constant text := 'must be a time, like 2026-01-31T12:00:00Z';
begin
    return affiliate.form_field(
               p_command, p_field, 100,
               '^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:?\d\d)?)?$', rule)::timestamptz;
exception when datetime_field_overflow or invalid_datetime_format then
    perform affiliate.refuse(p_field, rule);
end
$$;

-- Decimal text to minor units, by the same rules as everywhere: digits, one dot, no sign, not too many decimals.
create function affiliate.amount_minor(p_field text, p_text text, p_currency text)
returns bigint
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    places smallint;
begin
    select c.decimals into places
      from affiliate.currency c
     where c.currency = p_currency;

    if p_text is null then
        return null;
    end if;
    if p_text !~ '^(0|[1-9][0-9]*)(\.[0-9]+)?$' then
        perform affiliate.refuse(p_field, 'must be a decimal amount, like 1250.50');
    end if;
    if length(split_part(p_text, '.', 2)) > places then
        perform affiliate.refuse(p_field, format('must have at most %s decimals', places));
    end if;
    if p_text::numeric * power(10::numeric, places::numeric) > 99999999999999999 then
        perform affiliate.refuse(p_field, 'must have at most 17 digits');
    end if;
    return (p_text::numeric * power(10::numeric, places::numeric))::bigint;
end
$$;

create function affiliate.amount_field(p_command jsonb, p_field text, p_currency text)
returns bigint
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.amount_minor(p_field, affiliate.text_field(p_command, p_field, 100), p_currency)
$$;

create function affiliate.currency_field(p_command jsonb, p_field text)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := affiliate.text_field(p_command, p_field, 100);
begin
    if value is not null
       and not exists (select from affiliate.currency c where c.currency = value) then
        perform affiliate.refuse(p_field, 'must be an ISO 4217 currency, like NPR');
    end if;
    return value;
end
$$;

-- One value or an array of them.
create function affiliate.list_field(p_command jsonb, p_field text, p_max integer)
returns text[]
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value jsonb := p_command -> p_field;
    list text[];
begin
    if value is null or jsonb_typeof(value) = 'null' then
        return null;
    end if;
    if jsonb_typeof(value) = 'string' then
        value := jsonb_build_array(value);
    end if;
    if jsonb_typeof(value) <> 'array'
       or exists (select from jsonb_array_elements(value) e where jsonb_typeof(e) <> 'string') then
        perform affiliate.refuse(p_field, 'must be a text or several');
    end if;
    select coalesce(array_agg(e order by n), '{}') into list
      from jsonb_array_elements_text(value) with ordinality as t(e, n);
    if cardinality(list) not between 1 and p_max then
        perform affiliate.refuse(p_field, format('must have 1 to %s values', p_max));
    end if;
    return list;
end
$$;

create function affiliate.limit_field(p_command jsonb)
returns integer
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select coalesce(affiliate.integer_field(p_command, 'limit', 1, 1000), 50)
$$;

create function affiliate.after_field(p_command jsonb)
returns bigint
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select case when p_command ->> 'after' = '0' then 0 else coalesce(affiliate.id_field(p_command, 'after'), 0) end
$$;

-- Hosts in lower case; a name, or *.name for everything below it.
create function affiliate.hosts_field(p_command jsonb, p_field text)
returns text[]
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    list text[] := affiliate.list_field(p_command, p_field, 8);
    host text;
begin
    foreach host in array coalesce(list, '{}') loop
        if length(host) > 253
           or lower(host) !~ '^(\*\.)?[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$' then
            perform affiliate.refuse(p_field, format('%s must be a host name, or *.name for every name below it', quote_literal(host)));
        end if;
    end loop;
    return (select array_agg(lower(h) order by n) from unnest(list) with ordinality as t(h, n));
end
$$;

-- The host of an absolute http or https URL, lower case; null if it is no URL that can be a destination. The same
-- rules as aff_url_check().
create function affiliate.url_host(p_url text)
returns text
language sql immutable parallel safe
return case
           when octet_length(p_url) <= 2000
            and p_url ~ '^[\x21-\x7e]+$'
            and p_url !~ '["<>\\^`{|}]'
            and p_url ~* '^https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?([/?#].*)?$'
            and coalesce(substring(p_url from '(?i)^https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\]):([0-9]{1,5})')::integer, 80)
                between 1 and 65535
           then lower(rtrim(substring(p_url from '(?i)^https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])'), '.'))
       end;

create function affiliate.host_allowed(p_host text, p_hosts text[])
returns boolean
language sql immutable parallel safe
return exists (
    select
      from unnest(p_hosts) h
     where p_host = h
        or (left(h, 2) = '*.' and right(p_host, length(h) - 1) = substr(h, 2) and length(p_host) > length(h) - 1));

create function affiliate.url_field(p_command jsonb, p_field text)
returns text
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    value text := affiliate.text_field(p_command, p_field, 2000);
begin
    if value is not null and affiliate.url_host(value) is null then
        perform affiliate.refuse(p_field, 'must be an absolute http or https URL without userinfo');
    end if;
    return value;
end
$$;

-- A code that can't be guessed or misread: 31 letters and digits without 0 o 1 l i, evenly drawn.
create function affiliate.random_code(p_length integer)
returns text
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    alphabet constant text := '23456789abcdefghjkmnpqrstuvwxyz';
    code text := '';
    random bytea;
    byte integer;
begin
    while length(code) < p_length loop
        random := uuid_send(gen_random_uuid());
        for i in 0..15 loop
            byte := get_byte(random, i);
            -- Bytes 6 and 8 carry the version and variant; those from 248 would favour the first letters.
            continue when i in (6, 8) or byte >= 248;
            code := code || substr(alphabet, byte % 31 + 1, 1);
            exit when length(code) = p_length;
        end loop;
    end loop;
    return code;
end
$$;

create function affiliate.is_active(p_suspended tstzmultirange)
returns boolean
language sql immutable parallel safe
return not p_suspended @> 'infinity'::timestamptz;
