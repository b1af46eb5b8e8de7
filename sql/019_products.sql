-- Products of merchants, one by one or by files of a million, and how affiliates find them.
--
-- A file comes as parts of some thousand rows, each of them one transaction and one call. An import knows the first row that it
-- has not got: a part that comes twice changes nothing, and an upload that broke off goes on where it was. What a row must be
-- is decided once (judge_products), for files, dry runs and single products alike. A dry run does all but store.

create table affiliate.product (
    merchant_id         bigint not null,
    sku                 text collate "C" not null check (length(sku) between 1 and 64),
    product_id          bigint generated always as identity,
    state               text not null default 'active' check (state in ('active', 'gone')),
    availability        text not null check (availability in ('in_stock', 'out_of_stock', 'preorder', 'backorder')),
    currency            text not null,
    price_minor         bigint not null check (price_minor between 0 and 99999999999999999),
    sale_price_minor    bigint check (sale_price_minor between 0 and price_minor),
    category            text collate "C" check (length(category) between 1 and 64),
    title               text not null,
    brand               text,
    url                 text not null,
    image_url           text,
    product_type        text,
    google_category     text,
    description         text,
    version             bigint not null default 1,
    created_at          timestamptz not null default now(),
    updated_at          timestamptz not null default now(),
    -- Words, and what they are found beside: the merchant and the category, as words that no text has. One index does for all.
    search              tsvector not null generated always as (
        to_tsvector('simple', title || ' ' || coalesce(brand, '') || ' ' || coalesce(product_type, category, ''))
        || array_to_tsvector(array['m:' || merchant_id::text, 'c:' || coalesce(lower(category), '')])) stored,
    primary key (merchant_id, sku)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);

create unique index product_id on affiliate.product (product_id);
create index product_search on affiliate.product using gin (search);
create index product_price on affiliate.product (currency, coalesce(sale_price_minor, price_minor), product_id) where state = 'active';

comment on table affiliate.product is 'What merchants sell';
comment on column affiliate.product.sku is 'The merchant''s own id of it; rates of products and items of orders name it';
comment on column affiliate.product.state is 'gone: it was not in the latest file';
comment on column affiliate.product.category is 'What rates of categories and items of orders name; unless said, the first level of product_type';
comment on column affiliate.product.google_category is 'google_product_category of Google Merchant, a number or a path';

create table affiliate.product_category (
    merchant_id         bigint not null references affiliate.merchant,
    category            text collate "C" not null check (length(category) between 1 and 64),
    name                text check (length(name) between 1 and 200),
    version             bigint not null default 1,
    created_at          timestamptz not null default now(),
    primary key (merchant_id, category)
);

create trigger product_category_version before update on affiliate.product_category
    for each row execute function affiliate.count_version();

comment on table affiliate.product_category is 'Categories of a merchant''s products: those that it made, and those that its products brought';

create table affiliate.import (
    merchant_id         bigint not null references affiliate.merchant,
    import_id           bigint generated always as identity,
    kind                text not null check (kind ~ '^[a-z_]{1,32}$'),
    state               text not null default 'open' check (state in ('open', 'done', 'abandoned')),
    livemode            boolean not null,
    dry_run             boolean not null,
    header              text[] not null,
    options             jsonb not null default '{}',
    bytes               bigint,
    next_line           bigint not null default 1,
    created             bigint not null default 0,
    changed             bigint not null default 0,
    unchanged           bigint not null default 0,
    refused             bigint not null default 0,
    vanished            bigint not null default 0,
    actor_kind          text not null,
    user_id             bigint,
    key_id              text,
    request_id          text,
    created_at          timestamptz not null default now(),
    updated_at          timestamptz not null default now(),
    finished_at         timestamptz,
    primary key (merchant_id, import_id)
) with (fillfactor = 50);

create index import_open on affiliate.import (merchant_id, kind) where state = 'open';

comment on table affiliate.import is 'Files that merchants uploaded, of any kind, and how far they came';
comment on column affiliate.import.next_line is 'The first row that has not come; 1 is the one behind the header';

create table affiliate.import_problem (
    merchant_id         bigint not null,
    import_id           bigint not null,
    problem_id          bigint generated always as identity,
    line                bigint not null,
    "column"            text,
    value               text,
    rule                text not null,
    primary key (merchant_id, import_id, line, problem_id)
);

comment on table affiliate.import_problem is 'Cells that were refused, the first of each import (catalogue_policy.report_rows)';
comment on column affiliate.import_problem.line is 'As a spreadsheet counts: the header is 1';

create table affiliate.import_key (
    merchant_id         bigint not null,
    import_id           bigint not null,
    key                 text collate "C" not null,
    primary key (merchant_id, import_id, key)
) with (autovacuum_vacuum_scale_factor = 0.02);

comment on table affiliate.import_key is 'What an open import has brought: nothing twice, and what is missing at its end. Emptied then';

select affiliate.fence('affiliate.product');
select affiliate.fence('affiliate.product_category');
select affiliate.fence('affiliate.import');
select affiliate.fence('affiliate.import_problem');

-- ---------------------------------------------------------------------------------------------------------------
-- Imports of any kind
-- ---------------------------------------------------------------------------------------------------------------

-- Begins an import. One of a kind at a time: another that was heard of within the last minute is in the way, an older one is
-- given up.
create function affiliate.import_begin(p_merchant_id bigint, p_actor affiliate.actor, p_kind text, p_request jsonb, p_options jsonb)
returns affiliate.import
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    dry constant boolean := coalesce(affiliate.boolean_field(p_request, 'dry_run'), false);
    made affiliate.import;
begin
    perform pg_advisory_xact_lock(hashtextextended(format('affiliate.import %s %s', p_merchant_id, p_kind), 0));
    if not dry and exists (
        select
          from affiliate.import i
         where i.merchant_id = p_merchant_id
           and i.kind = p_kind
           and i.state = 'open'
           and not i.dry_run
           and i.livemode = p_actor.livemode
           and i.updated_at > now() - interval '1 minute') then
        perform affiliate.problem(409, 'in_flight', 'Another import is under way; wait until it is done, or a minute after it broke off.');
    end if;

    with given_up as (
        update affiliate.import i
           set state = 'abandoned', finished_at = now()
         where i.merchant_id = p_merchant_id
           and i.kind = p_kind
           and i.state = 'open'
           and (not i.dry_run and not dry and i.livemode = p_actor.livemode or i.updated_at < now() - interval '1 day')
        returning i.import_id
    )
    delete from affiliate.import_key k
     using given_up g
     where k.merchant_id = p_merchant_id
       and k.import_id = g.import_id;

    insert into affiliate.import
          (merchant_id, kind, livemode, dry_run, header, options, bytes, actor_kind, user_id, key_id, request_id)
    select p_merchant_id, p_kind, p_actor.livemode, dry, array(select jsonb_array_elements_text(p_request -> '_header')), p_options,
           (p_request ->> '_bytes')::bigint, p_actor.kind, p_actor.user_id, p_actor.key_id, p_actor.request_id
    returning * into made;
    return made;
end
$$;

-- Locks the import for a part of its file. How many of the part's first rows have come before: all of them, and there is nothing
-- left to do; part of them, if it was cut otherwise the last time.
create function affiliate.import_accept(p_merchant_id bigint, p_import_id bigint, p_kind text, p_first bigint, p_count integer)
returns integer
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    i affiliate.import;
begin
    select x.* into i
      from affiliate.import x
     where x.merchant_id = p_merchant_id
       and x.import_id = p_import_id
       and x.kind = p_kind
       for update;
    if not found then
        perform affiliate.refuse_missing('import');
    end if;
    if i.state = 'abandoned' then
        perform affiliate.problem(409, 'state', 'The import was given up, as another was begun. Upload the file again.');
    end if;
    if i.state = 'done' or p_first + p_count <= i.next_line then
        return p_count;
    end if;
    if p_first is null or p_first < 1 or p_first > i.next_line then
        perform affiliate.problem(409, 'conflict', format('The next row has to be %s.', i.next_line));
    end if;

    update affiliate.import x
       set next_line = p_first + p_count,
           updated_at = now()
     where x.merchant_id = p_merchant_id
       and x.import_id = p_import_id;
    return i.next_line - p_first;
end
$$;

create function affiliate.shortened(p_value text)
returns text
language sql immutable parallel safe
return case when length(p_value) > 80 then left(p_value, 79) || '…' else p_value end;

-- Reports refused cells, given as {"line", "column", "value", "rule"} in the order of the file, up to the most that is kept.
create function affiliate.import_report(p_merchant_id bigint, p_import_id bigint, p_problems jsonb)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    insert into affiliate.import_problem (merchant_id, import_id, line, "column", value, rule)
    select p_merchant_id, p_import_id, (e ->> 'line')::bigint, e ->> 'column', affiliate.shortened(e ->> 'value'), e ->> 'rule'
      from jsonb_array_elements(p_problems) with ordinality as t(e, n)
     order by n
     limit greatest(0, (select y.report_rows from affiliate.catalogue_policy y)
                       - (select count(*) from affiliate.import_problem x where x.merchant_id = p_merchant_id and x.import_id = p_import_id))
$$;

create function affiliate.import_count(
    p_merchant_id bigint, p_import_id bigint, p_created bigint, p_changed bigint, p_unchanged bigint, p_refused bigint)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    update affiliate.import i
       set created = i.created + p_created,
           changed = i.changed + p_changed,
           unchanged = i.unchanged + p_unchanged,
           refused = i.refused + p_refused
     where i.merchant_id = p_merchant_id
       and i.import_id = p_import_id
$$;

-- Ends an import whose file has come as a whole; once more, it only gives it. p_vanished adds what its kind found missing.
create function affiliate.import_end(p_merchant_id bigint, p_import_id bigint, p_vanished bigint default 0)
returns affiliate.import
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    i affiliate.import;
begin
    update affiliate.import x
       set state = 'done', finished_at = now(), updated_at = now(), vanished = x.vanished + p_vanished
     where x.merchant_id = p_merchant_id
       and x.import_id = p_import_id
       and x.state = 'open'
    returning * into i;
    if found then
        delete from affiliate.import_key k
         where k.merchant_id = p_merchant_id
           and k.import_id = p_import_id;
    else
        select x.* into i
          from affiliate.import x
         where x.merchant_id = p_merchant_id
           and x.import_id = p_import_id;
    end if;
    return i;
end
$$;

create function affiliate.import_json(i affiliate.import)
returns jsonb
language sql immutable parallel safe
return jsonb_build_object(
    'import', i.import_id, 'kind', i.kind, 'state', i.state, 'livemode', i.livemode, 'dry_run', i.dry_run, 'lines', i.next_line - 1,
    'created', i.created, 'changed', i.changed, 'unchanged', i.unchanged, 'refused', i.refused, 'vanished', i.vanished,
    'ignored_columns', coalesce(i.options -> 'ignored', '[]'), 'created_at', i.created_at, 'finished_at', i.finished_at);

create function affiliate.import_problem_json(p affiliate.import_problem)
returns jsonb
language sql immutable parallel safe
return jsonb_build_object('line', p.line, 'column', p."column", 'value', p.value, 'rule', p.rule);

-- With its first problems.
create function affiliate.import_detail(i affiliate.import)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.import_json(i) || jsonb_build_object('problems', (
        select coalesce(jsonb_agg(affiliate.import_problem_json(p) order by p.line, p.problem_id), '[]')
          from (select x.*
                  from affiliate.import_problem x
                 where x.merchant_id = i.merchant_id
                   and x.import_id = i.import_id
                 order by x.line, x.problem_id
                 limit 100) p))
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- What a product must be
-- ---------------------------------------------------------------------------------------------------------------

-- Columns of a file in the order in which judge_products() wants them; names are Google Merchant's, but category.
create function affiliate.product_columns()
returns text[]
language sql immutable parallel safe
return '{id,title,description,link,image_link,price,sale_price,availability,brand,category,product_type,google_product_category}'::text[];

-- As feeds write them: "Image Link", "g:image_link".
create function affiliate.column_name(p_cell text)
returns text
language sql immutable parallel safe
return regexp_replace(regexp_replace(lower(btrim(p_cell)), '^g:', ''), '[ -]+', '_', 'g');

-- Where in a row each column of product_columns() is, from 0; null if it is not there.
create function affiliate.product_places(p_header text[])
returns integer[]
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select array_agg(array_position(names, c) - 1 order by n)
      from unnest(affiliate.product_columns()) with ordinality as t(c, n),
           (select array_agg(affiliate.column_name(h) order by k) as names from unnest(p_header) with ordinality as u(h, k)) header
$$;

-- "1250.50 NPR", "NPR 1250.50" or "1250.50": its digits; null if it is none of these. No captures: they cost ten times as much.
create function affiliate.price_digits(p_cell text)
returns text
language sql immutable parallel safe
return case
           when p_cell ~ '^[0-9]+(?:\.[0-9]+)?(?: ?[A-Z][A-Z][A-Z])?$' then rtrim(p_cell, ' ABCDEFGHIJKLMNOPQRSTUVWXYZ')
           when p_cell ~ '^[A-Z][A-Z][A-Z] ?[0-9]+(?:\.[0-9]+)?$' then ltrim(p_cell, ' ABCDEFGHIJKLMNOPQRSTUVWXYZ')
       end;

-- Its currency, where it names one.
create function affiliate.price_currency(p_cell text)
returns text
language sql immutable parallel safe
return nullif(btrim(p_cell, ' .0123456789'), '');

create function affiliate.price_rule(p_cell text, p_digits text, p_currency text, p_decimals smallint)
returns text
language sql immutable parallel safe
return case
           when p_cell is null then null
           when p_digits is null or left(p_digits, 1) = '0' and substr(p_digits, 2, 1) between '0' and '9' then 'must be a price, like 1250.50 NPR'
           when p_currency is null then 'must name its currency, like 1250.50 NPR'
           when p_decimals is null then 'must be in an ISO 4217 currency, like NPR'
           when length(split_part(p_digits, '.', 2)) > p_decimals then 'must have at most ' || p_decimals::text || ' decimals'
           when length(split_part(p_digits, '.', 1)) + p_decimals > 17 then 'must have at most 17 digits'
       end;

-- p_control: whether any cell of the row has a control character.
create function affiliate.text_rule(p_cell text, p_most integer, p_required boolean, p_control boolean)
returns text
language sql immutable parallel safe
return case
           when p_cell is null then case when p_required then 'is required' end
           when length(p_cell) > p_most then 'must have at most ' || p_most::text || ' characters'
           when p_control and p_cell ~ '[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]' then 'must not have control characters'
       end;

-- As url_host(); what nearly all URLs look like at a tenth of its price.
create function affiliate.usual_host(p_url text)
returns text
language sql immutable parallel safe
return case
           when p_url ~ '^https?://[a-z0-9-]+(?:\.[a-z0-9-]+)*(?:/[!#-;=?-\[\]_a-z~]*)?$' and length(p_url) <= 2000 then split_part(p_url, '/', 3)
           else affiliate.url_host(p_url)
       end;

-- The functions above are of the kind that PostgreSQL writes into the query (immutable all through, no subquery): called a million
-- times, that is what counts.

-- Rows of cells as products; problems is null where nothing is wrong, else {column: rule}. p_places as product_places() gives
-- them, p_width the cells of the header. Materialized, as each step is used more than once by the next.
create function affiliate.judge_products(
    p_merchant_id bigint, p_places integer[], p_width integer, p_first bigint, p_rows jsonb, p_currency text)
returns table (line bigint, cells text[], product affiliate.product, problems jsonb)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with parted as materialized (
        select p_first + n - 1 as line,
               case when jsonb_array_length(r) <> p_width
                    then format('has %s cells, the header %s', jsonb_array_length(r), p_width) end as shape_rule,
               nullif(btrim(r ->> p_places[1]), '') as sku,
               nullif(btrim(r ->> p_places[2]), '') as title,
               nullif(btrim(r ->> p_places[3]), '') as description,
               nullif(btrim(r ->> p_places[4]), '') as url,
               nullif(btrim(r ->> p_places[5]), '') as image_url,
               nullif(btrim(r ->> p_places[6]), '') as price,
               nullif(btrim(r ->> p_places[7]), '') as sale_price,
               coalesce(replace(lower(nullif(btrim(r ->> p_places[8]), '')), ' ', '_'), 'in_stock') as availability,
               nullif(btrim(r ->> p_places[9]), '') as brand,
               coalesce(nullif(btrim(r ->> p_places[10]), ''),
                        nullif(left(btrim(split_part(r ->> p_places[11], '>', 1)), 64), '')) as category,
               nullif(btrim(r ->> p_places[11]), '') as product_type,
               nullif(btrim(r ->> p_places[12]), '') as google_category
          from jsonb_array_elements(p_rows) with ordinality as t(r, n)
    ), priced as materialized (
        select p.*,
               concat(sku, title, description, brand, category, product_type, google_category)
                   ~ '[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]' as control,
               affiliate.usual_host(p.url) as host,
               affiliate.usual_host(p.image_url) as image_host,
               affiliate.price_digits(p.price) as digits,
               affiliate.price_digits(p.sale_price) as sale_digits,
               coalesce(affiliate.price_currency(p.price), p_currency) as currency,
               coalesce(affiliate.price_currency(p.sale_price), affiliate.price_currency(p.price), p_currency) as sale_currency
          from parted p
    ), hosts as materialized (
        select h.host, affiliate.host_allowed(h.host, m.hosts) as allowed, array_to_string(m.hosts, ', ') as all_hosts
          from (select distinct p.host from priced p) h
          join affiliate.merchant m on m.merchant_id = p_merchant_id
    ), ruled as materialized (
        select p.*, u.decimals,
               affiliate.text_rule(p.sku, 64, true, p.control) as sku_rule,
               affiliate.text_rule(p.title, 150, true, p.control) as title_rule,
               affiliate.text_rule(p.description, 5000, false, p.control) as description_rule,
               case when p.url is null then 'is required'
                    when p.host is null then 'must be an absolute http or https URL without userinfo'
                    when not h.allowed then format('its host %s is not one of the merchant''s: %s', p.host, h.all_hosts) end as link_rule,
               case when p.image_host is null and p.image_url is not null
                    then 'must be an absolute http or https URL without userinfo' end as image_rule,
               case when p.price is null then 'is required'
                    else affiliate.price_rule(p.price, p.digits, p.currency, u.decimals) end as price_rule,
               case when p.sale_price is null then null
                    when p.sale_digits is null or p.sale_currency = p.currency
                    then coalesce(affiliate.price_rule(p.sale_price, p.sale_digits, p.currency, u.decimals),
                                  case when p.sale_digits::numeric > p.digits::numeric then 'must not be above the price' end)
                    else 'must be in the price''s currency' end as sale_rule,
               case when p.availability not in ('in_stock', 'out_of_stock', 'preorder', 'backorder')
                    then 'must be in_stock, out_of_stock, preorder or backorder' end as availability_rule,
               affiliate.text_rule(p.brand, 70, false, p.control) as brand_rule,
               affiliate.text_rule(p.category, 64, false, p.control) as category_rule,
               affiliate.text_rule(p.product_type, 750, false, p.control) as type_rule,
               affiliate.text_rule(p.google_category, 300, false, p.control) as google_rule
          from priced p
          left join hosts h on h.host = p.host
          left join affiliate.currency u on u.currency = p.currency
    ), judged as materialized (
        select r.*,
               num_nonnulls(shape_rule, sku_rule, title_rule, description_rule, link_rule, image_rule, price_rule, sale_rule,
                            availability_rule, brand_rule, category_rule, type_rule, google_rule) > 0 as wrong
          from ruled r
    )
    select j.line,
           array[sku, title, description, url, image_url, price, sale_price, availability, brand, category, product_type, google_category],
           case when not wrong then row(
               p_merchant_id, sku, null, 'active', availability, currency,
               (digits::numeric * power(10::numeric, decimals))::bigint,
               (sale_digits::numeric * power(10::numeric, decimals))::bigint,
               category, title, brand, url, image_url, product_type, google_category, description,
               null, null, null, null)::affiliate.product end,
           case when wrong then jsonb_strip_nulls(jsonb_build_object(
               '', shape_rule, 'id', sku_rule, 'title', title_rule, 'description', description_rule, 'link', link_rule,
               'image_link', image_rule, 'price', price_rule, 'sale_price', sale_rule, 'availability', availability_rule,
               'brand', brand_rule, 'category', category_rule, 'product_type', type_rule, 'google_product_category', google_rule)) end
      from judged j
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Storing
-- ---------------------------------------------------------------------------------------------------------------

-- Products that are new or other than before; each id once. Rows are taken in the order of their ids, so that two calls never
-- wait for each other.
create function affiliate.store_products(
    p_merchant_id bigint, p_products affiliate.product[], p_dry boolean, out created bigint, out changed bigint, out unchanged bigint)
returns record
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    with judged as materialized (
        select f.*, o.sku is null as is_new,
               o.sku is not null
               and (o.state, o.availability, o.currency, o.price_minor, o.sale_price_minor, o.category, o.title, o.brand, o.url,
                    o.image_url, o.product_type, o.google_category, o.description)
                   is distinct from
                   (f.state, f.availability, f.currency, f.price_minor, f.sale_price_minor, f.category, f.title, f.brand, f.url,
                    f.image_url, f.product_type, f.google_category, f.description) as is_changed
          from unnest(p_products) f
          left join affiliate.product o on o.merchant_id = p_merchant_id and o.sku = f.sku
    ), categories as (
        insert into affiliate.product_category (merchant_id, category)
        select distinct p_merchant_id, j.category
          from judged j
         where not p_dry
           and j.category is not null
           and not exists (select from affiliate.product_category x where x.merchant_id = p_merchant_id and x.category = j.category)
         order by 2
            on conflict do nothing
    ), stored as (
        insert into affiliate.product as p
              (merchant_id, sku, state, availability, currency, price_minor, sale_price_minor, category, title, brand, url, image_url,
               product_type, google_category, description)
        select p_merchant_id, j.sku, j.state, j.availability, j.currency, j.price_minor, j.sale_price_minor, j.category, j.title,
               j.brand, j.url, j.image_url, j.product_type, j.google_category, j.description
          from judged j
         where not p_dry
           and (j.is_new or j.is_changed)
         order by j.sku
            on conflict (merchant_id, sku) do update
           set state = excluded.state, availability = excluded.availability, currency = excluded.currency,
               price_minor = excluded.price_minor, sale_price_minor = excluded.sale_price_minor, category = excluded.category,
               title = excluded.title, brand = excluded.brand, url = excluded.url, image_url = excluded.image_url,
               product_type = excluded.product_type, google_category = excluded.google_category,
               description = excluded.description, version = p.version + 1, updated_at = now()
    )
    select count(*) filter (where j.is_new), count(*) filter (where j.is_changed), count(*) filter (where not j.is_new and not j.is_changed)
      into created, changed, unchanged
      from judged j;
end
$$;

-- One part of a file.
create function affiliate.import_products(p_merchant_id bigint, p_import_id bigint, p_first bigint, p_rows jsonb)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    rows integer := jsonb_array_length(p_rows);
    skip integer;
    i affiliate.import;
    good affiliate.product[];
    problems jsonb;
    wrong bigint;
    stored record;
begin
    if rows is null or rows not between 1 and 10000 then
        perform affiliate.problem(422, 'invalid_csv', 'A part must have 1 to 10000 rows.');
    end if;
    skip := affiliate.import_accept(p_merchant_id, p_import_id, 'products', p_first, rows);
    select x.* into i from affiliate.import x where x.merchant_id = p_merchant_id and x.import_id = p_import_id;
    if skip >= rows then
        return i.next_line;
    end if;

    with judged as materialized (
        select *
          from affiliate.judge_products(p_merchant_id, affiliate.product_places(i.header), cardinality(i.header), p_first, p_rows,
                                        i.options ->> 'currency') j
         where j.line >= p_first + skip
    ), firsts as (
        select distinct on ((j.product).sku) j.line, (j.product).sku
          from judged j
         where j.problems is null
         order by (j.product).sku, j.line
    ), keys as (
        insert into affiliate.import_key (merchant_id, import_id, key)
        select p_merchant_id, p_import_id, f.sku from firsts f
            on conflict do nothing
        returning key
    ), kept as (
        select f.line from firsts f join keys k on k.key = f.sku
    ), told as (
        select j.line, c.column_name, c.value, c.rule
          from judged j
         cross join lateral (
               select e.key, j.cells[array_position(affiliate.product_columns(), e.key)], e.value
                 from jsonb_each_text(j.problems) e
               ) c(column_name, value, rule)
         where j.problems is not null
         union all
        select j.line, 'id', (j.product).sku, 'is the id of an earlier row, too'
          from judged j
         where j.problems is null
           and j.line not in (select k.line from kept k)
    )
    select (select array_agg(j.product order by j.line) from judged j join kept using (line)),
           (select jsonb_agg(jsonb_build_object('line', t.line + 1, 'column', nullif(t.column_name, ''), 'value', t.value, 'rule', t.rule)
                             order by t.line, t.column_name) from told t),
           (select count(distinct t.line) from told t)
      into good, problems, wrong;

    stored := affiliate.store_products(p_merchant_id, coalesce(good, '{}'), i.dry_run);
    perform affiliate.import_count(p_merchant_id, p_import_id, stored.created, stored.changed, stored.unchanged, wrong);
    if problems is not null then
        perform affiliate.import_report(p_merchant_id, p_import_id, problems);
    end if;
    return i.next_line;
end
$$;

create function affiliate.begin_product_import(p_merchant_id bigint, p_actor affiliate.actor, p_request jsonb)
returns affiliate.import
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    names text[] := array(select affiliate.column_name(h) from jsonb_array_elements_text(p_request -> '_header') with ordinality as t(h, n) order by n);
    rules jsonb;
    ignored jsonb;
begin
    select jsonb_object_agg(name, rule) into rules
      from (select c as name, 'is a required column' as rule
              from unnest('{id,title,link,price}'::text[]) c
             where c <> all (names)
             union all
            select n, 'is there twice'
              from unnest(names) n
             where n = any (affiliate.product_columns())
             group by n
            having count(*) > 1) wrong;
    perform affiliate.refuse_fields(rules);

    select coalesce(jsonb_agg(h order by n), '[]') into ignored
      from jsonb_array_elements_text(p_request -> '_header') with ordinality as t(h, n)
     where affiliate.column_name(h) <> all (affiliate.product_columns());
    return affiliate.import_begin(p_merchant_id, p_actor, 'products', p_request, jsonb_strip_nulls(jsonb_build_object(
        'ignored', ignored,
        'currency', affiliate.currency_field(p_request, 'currency'),
        'vanished', affiliate.choice_field(p_request, 'vanished', '{keep,mark}'))));
end
$$;

-- Products that are not in the file become gone, if that was asked for: up to p_most of them. How many.
create function affiliate.mark_vanished(p_merchant_id bigint, i affiliate.import, p_most integer)
returns integer
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    marked integer;
begin
    with missing as materialized (
        select p.sku
          from affiliate.product p
         where p.merchant_id = p_merchant_id
           and p.state = 'active'
           and not exists (select
                             from affiliate.import_key k
                            where k.merchant_id = p_merchant_id
                              and k.import_id = i.import_id
                              and k.key = p.sku)
         limit p_most
    ), gone as (
        update affiliate.product p
           set state = 'gone', version = p.version + 1, updated_at = now()
          from missing m
         where not i.dry_run
           and p.merchant_id = p_merchant_id
           and p.sku = m.sku
    )
    select count(*) into marked from missing;
    return marked;
end
$$;

-- Ends it, in steps that no time-out cuts off: as long as the import comes back open, there is more to do.
create function affiliate.end_product_import(p_merchant_id bigint, p_actor affiliate.actor, p_import_id bigint, p_lines bigint)
returns affiliate.import
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    step constant integer := 50000;
    i affiliate.import;
    done integer := 0;
begin
    perform affiliate.import_accept(p_merchant_id, p_import_id, 'products', p_lines + 1, 0);
    select x.* into i from affiliate.import x where x.merchant_id = p_merchant_id and x.import_id = p_import_id;
    if i.state <> 'open' then
        return i;
    end if;
    if i.next_line <> p_lines + 1 then
        perform affiliate.problem(409, 'conflict', format('The next row has to be %s.', i.next_line));
    end if;

    if i.options ->> 'vanished' = 'mark' then
        done := affiliate.mark_vanished(p_merchant_id, i, case when i.dry_run then null else step end);
        update affiliate.import x
           set vanished = x.vanished + done,
               updated_at = now(),
               -- Once it is known what is missing, the keys may go.
               options = case when done < step or x.dry_run then x.options || '{"vanished": "marked"}' else x.options end
         where x.merchant_id = p_merchant_id
           and x.import_id = p_import_id
        returning * into i;
        return i;
    end if;

    delete from affiliate.import_key k
     where k.ctid = any (array(
               select x.ctid
                 from affiliate.import_key x
                where x.merchant_id = p_merchant_id
                  and x.import_id = p_import_id
                limit 4 * step));
    get diagnostics done = row_count;
    if done < 4 * step then
        i := affiliate.import_end(p_merchant_id, p_import_id);
        if not i.dry_run then
            perform affiliate.record(p_actor, 'import_create', 'import', i.import_id::text, null, affiliate.import_json(i));
        end if;
    end if;
    return i;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Single products
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.product_json(p affiliate.product)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'product', p.sku, 'merchant', p.merchant_id, 'title', p.title, 'description', p.description, 'link', p.url,
        'image_link', p.image_url, 'price', affiliate.amount_text(p.price_minor, c.decimals),
        'sale_price', affiliate.amount_text(p.sale_price_minor, c.decimals), 'currency', p.currency, 'availability', p.availability,
        'brand', p.brand, 'category', p.category, 'product_type', p.product_type, 'google_product_category', p.google_category,
        'state', p.state, 'created_at', p.created_at, 'updated_at', p.updated_at, 'version', p.version)
      from affiliate.currency c
     where c.currency = p.currency
$$;

create function affiliate.lock_product(p_merchant_id bigint, p_request jsonb)
returns affiliate.product
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    p affiliate.product;
begin
    select x.* into p
      from affiliate.product x
     where x.merchant_id = p_merchant_id
       and x.sku = p_request ->> 'product'
       for update;
    if not found then
        perform affiliate.refuse_missing('product');
    end if;
    perform affiliate.check_version(p_request, p.version);
    return p;
end
$$;

-- Fields as a row of a file, and judged as one.
create function affiliate.product_of_fields(p_merchant_id bigint, p_fields jsonb)
returns affiliate.product
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    judged record;
begin
    select j.* into judged
      from affiliate.judge_products(
               p_merchant_id,
               array(select n::integer - 1 from unnest(affiliate.product_columns()) with ordinality as t(c, n) order by n),
               cardinality(affiliate.product_columns()), 1,
               jsonb_build_array((select jsonb_agg(p_fields -> c order by n)
                                    from unnest(affiliate.product_columns()) with ordinality as t(c, n))),
               affiliate.currency_field(p_fields, 'currency')) j;
    perform affiliate.refuse_fields(case when judged.problems ? 'id'
        then judged.problems - 'id' || jsonb_build_object('product', judged.problems -> 'id') else judged.problems end);
    return judged.product;
end
$$;

create function affiliate.put_product(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted affiliate.product := affiliate.product_of_fields(p_actor.merchant_id, p_request || jsonb_build_object('id', p_request -> 'product'));
    stored record;
    made affiliate.product;
begin
    stored := affiliate.store_products(p_actor.merchant_id, array[wanted], true);
    if stored.created = 0 then
        perform affiliate.problem(409, 'conflict', 'There is a product with this id.');
    end if;
    stored := affiliate.store_products(p_actor.merchant_id, array[wanted], false);
    select x.* into made from affiliate.product x where x.merchant_id = p_actor.merchant_id and x.sku = wanted.sku;
    perform affiliate.record(p_actor, 'product_create', 'product', made.sku, null, affiliate.product_json(made));
    perform affiliate.answer_version(made.version);
    perform affiliate.answer(jsonb_build_object('status', 201));
    return affiliate.product_json(made);
end
$$;

create function affiliate.change_product(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.product := affiliate.lock_product(p_actor.merchant_id, p_request);
    shown jsonb := affiliate.product_json(before);
    fields jsonb := (select jsonb_object_agg(c, shown -> c) from unnest(affiliate.product_columns() || '{currency}'::text[]) c);
    made affiliate.product;
    stored record;
begin
    stored := affiliate.store_products(p_actor.merchant_id, array[affiliate.product_of_fields(p_actor.merchant_id,
        fields || (p_request - 'merchant' - 'if_match') || jsonb_build_object('id', before.sku))], false);
    select x.* into made from affiliate.product x where x.merchant_id = before.merchant_id and x.sku = before.sku;
    perform affiliate.record(p_actor, 'product_update', 'product', before.sku, shown, affiliate.product_json(made));
    perform affiliate.answer_version(made.version);
    return affiliate.product_json(made);
end
$$;

create function affiliate.drop_product(p_actor affiliate.actor, p_request jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    p affiliate.product := affiliate.lock_product(p_actor.merchant_id, p_request);
begin
    delete from affiliate.product x
     where x.merchant_id = p.merchant_id
       and x.sku = p.sku;
    perform affiliate.record(p_actor, 'product_delete', 'product', p.sku, affiliate.product_json(p), null);
    perform affiliate.answer('{"status": 204}');
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Finding
-- ---------------------------------------------------------------------------------------------------------------

-- A word of product.search that stands for itself.
create function affiliate.whole_word(p_word text)
returns tsquery
language sql immutable parallel safe
return ('''' || replace(replace(p_word, '\', '\\'), '''', '''''') || '''')::tsquery;

-- What q, category and the merchant ask for; null if nothing.
create function affiliate.product_query(p_request jsonb, p_merchant_id bigint)
returns tsquery
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted tsquery := affiliate.search_field(p_request);
    category text := affiliate.text_field(p_request, 'category', 64);
    part tsquery;
begin
    foreach part in array array[affiliate.whole_word('c:' || lower(category)), affiliate.whole_word('m:' || p_merchant_id::text)] loop
        wanted := case when part is null then wanted when wanted is null then part else wanted && part end;
    end loop;
    return wanted;
end
$$;

-- Rate and terms of a product in each campaign that is open in its currency: its own rate, or its category's, or everybody's.
create function affiliate.product_offers(p affiliate.product, p_affiliate_id bigint)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select coalesce(jsonb_agg(
               jsonb_build_object(
                   'campaign', o.campaign_id,
                   'name', (o.campaign).name,
                   'joining', (o.campaign).joining,
                   'membership', j.state,
                   'rate_for', coalesce(r.kind, 'all'),
                   'hold_days', round(extract(epoch from (o.terms).hold) / 86400, 5)::double precision,
                   'attribution_days', round(extract(epoch from (o.terms).attribution_window) / 86400, 5)::double precision,
                   'minimum_payout', affiliate.amount_text((o.terms).minimum_payout_minor, u.decimals))
               || affiliate.rate_json(case when r.kind is null then (o.terms).rate_basis_points else r.rate_basis_points end,
                                      case when r.kind is null then (o.terms).rate_flat_minor else r.rate_flat_minor end, u.decimals)
               order by o.campaign_id), '[]')
      from affiliate.open_campaign o
      join affiliate.currency u using (currency)
      left join affiliate.membership j
        on j.merchant_id = o.merchant_id and j.campaign_id = o.campaign_id and j.affiliate_id = p_affiliate_id
      left join lateral (
           select x.kind, x.rate_basis_points, x.rate_flat_minor
             from affiliate.product_rate x
            where x.merchant_id = o.merchant_id
              and x.terms_id = (o.terms).terms_id
              and (x.kind = 'sku' and x.value = p.sku or x.kind = 'category' and x.value = p.category)
            order by x.kind desc
            limit 1) r on true
     where o.merchant_id = p.merchant_id
       and o.currency = p.currency
$$;

-- Row-level security would keep the search from its index: words may be compared with rows only that one may see. So the owner
-- searches, among what is open to every affiliate.
create function affiliate.product_page(p_affiliate_id bigint, p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    currency text := affiliate.currency_field(p_request, 'currency');
    request jsonb := p_request || jsonb_strip_nulls(jsonb_build_object(
        'from_minor', affiliate.amount_field(p_request, 'min_price', currency), 'to_minor', affiliate.amount_field(p_request, 'max_price', currency)));
begin
    if currency is null and (p_request ?| '{min_price,max_price}' or p_request ->> 'sort' in ('price', '-price')) then
        perform affiliate.refuse('currency', 'is required where prices are compared');
    end if;
    return query select affiliate.page(p_actor, request,
        'select p, p.product_id, p.product_id as added, coalesce(p.sale_price_minor, p.price_minor) as price
           from affiliate.product p
          where p.state = ''active''
            and p.merchant_id = any (array(select o.merchant_id from affiliate.open_campaign o))
            and (affiliate.product_query($2, affiliate.id_field($2, ''merchant'')) is null
                 or p.search @@ affiliate.product_query($2, affiliate.id_field($2, ''merchant'')))
            and ($2 ->> ''currency'' is null or p.currency = $2 ->> ''currency'')
            and ($2 ->> ''from_minor'' is null or coalesce(p.sale_price_minor, p.price_minor) >= ($2 ->> ''from_minor'')::bigint)
            and ($2 ->> ''to_minor'' is null or coalesce(p.sale_price_minor, p.price_minor) <= ($2 ->> ''to_minor'')::bigint)
            and ($2 ->> ''availability'' is null or p.availability = $2 ->> ''availability'')',
        format('affiliate.product_json(x.p) - ''{version,state}''::text[] || jsonb_build_object(
             ''merchant_name'', (select m.name from affiliate.merchant m where m.merchant_id = (x.p).merchant_id),
             ''campaigns'', affiliate.product_offers(x.p, %s))', p_affiliate_id),
        '{-added bigint,price bigint}', 'product_id bigint');
end
$$;

-- The same for a merchant's own products.
create function affiliate.own_product_page(p_merchant_id bigint, p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.page(p_actor, p_request - 'merchant',
        format('select p, p.sku as product, p.product_id, p.product_id as added
           from affiliate.product p
          where p.merchant_id = %1$s
            and (affiliate.product_query($2, null) is null or p.search @@ affiliate.product_query($2, %1$s))
            and ($2 ->> ''state'' is null or p.state = $2 ->> ''state'')
            and ($2 ->> ''availability'' is null or p.availability = $2 ->> ''availability'')', p_merchant_id),
        'affiliate.product_json(x.p)', '{product text,-added bigint}', 'product_id bigint')
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Operations: products
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.api_product_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{q,category,state,availability}');
    perform affiliate.choice_field(p_request, 'state', '{active,gone}');
    return query select affiliate.own_product_page(p_actor.merchant_id, p_actor, p_request);
end
$$;

create function affiliate.api_product_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{product,title,link,price,currency}', array_remove(affiliate.product_columns(), 'id'));
    return next affiliate.put_product(p_actor, p_request);
end
$$;

create function affiliate.api_product_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    p affiliate.product;
begin
    perform affiliate.check_request(p_request, '{product}');
    select x.* into p
      from affiliate.product x
     where x.merchant_id = p_actor.merchant_id
       and x.sku = p_request ->> 'product';
    if not found then
        perform affiliate.refuse_missing('product');
    end if;
    perform affiliate.answer_version(p.version);
    return next affiliate.product_json(p);
end
$$;

create function affiliate.api_product_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{product}', array_remove(affiliate.product_columns(), 'id') || '{currency}'::text[]);
    return next affiliate.change_product(p_actor, p_request);
end
$$;

create function affiliate.api_product_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{product}');
    perform affiliate.drop_product(p_actor, p_request);
end
$$;

create function affiliate.api_affiliate_product_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{q,category,currency,min_price,max_price,availability}');
    return query select affiliate.product_page(p_actor.affiliate_id, p_actor, p_request);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Operations: imports
-- ---------------------------------------------------------------------------------------------------------------

-- An upload in three: what begins it, each of its parts, its end. See worker/api/upload.h.
create function affiliate.api_import_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_header}', '{_bytes,dry_run,vanished,currency}');
    return next jsonb_build_object('_upload', (affiliate.begin_product_import(p_actor.merchant_id, p_actor, p_request)).import_id::text);
end
$$;

create function affiliate.api_import_create_rows(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return next jsonb_build_object('_line', affiliate.import_products(
        p_actor.merchant_id, affiliate.path_id(p_request, '_upload'), (p_request ->> '_line')::bigint, p_request -> '_rows'));
end
$$;

create function affiliate.api_import_create_done(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    i affiliate.import := affiliate.end_product_import(
        p_actor.merchant_id, p_actor, affiliate.path_id(p_request, '_upload'), (p_request ->> '_lines')::bigint);
begin
    if i.state = 'open' then
        return next jsonb_build_object('_upload', i.import_id::text);
        return;
    end if;
    perform affiliate.answer(jsonb_build_object(
        'status', 201, 'location', format('/api/v1/merchants/%s/imports/%s', i.merchant_id, i.import_id)));
    return next affiliate.import_detail(i);
end
$$;

create function affiliate.api_import_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{kind,state}');
    return query select affiliate.page(p_actor, p_request,
        'select i, i.import_id, i.created_at
           from affiliate.import i
          where i.merchant_id = $1.merchant_id
            and ($2 ->> ''kind'' is null or i.kind = $2 ->> ''kind'')
            and ($2 ->> ''state'' is null or i.state = $2 ->> ''state'')',
        'affiliate.import_json(x.i)', '{-created_at timestamptz}', 'import_id bigint');
end
$$;

create function affiliate.seek_import(p_merchant_id bigint, p_request jsonb)
returns affiliate.import
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    i affiliate.import;
begin
    select x.* into i
      from affiliate.import x
     where x.merchant_id = p_merchant_id
       and x.import_id = affiliate.path_id(p_request, 'import');
    if not found then
        perform affiliate.refuse_missing('import');
    end if;
    return i;
end
$$;

create function affiliate.api_import_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{import}');
    return next affiliate.import_detail(affiliate.seek_import(p_actor.merchant_id, p_request));
end
$$;

create function affiliate.api_import_problem_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{import}');
    perform affiliate.seek_import(p_actor.merchant_id, p_request);
    return query select affiliate.page(p_actor, p_request,
        'select p, p.problem_id, p.line
           from affiliate.import_problem p
          where p.merchant_id = $1.merchant_id
            and p.import_id = affiliate.path_id($2, ''import'')',
        'affiliate.import_problem_json(x.p)', '{line bigint}', 'problem_id bigint');
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Operations: categories
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.product_category_json(c affiliate.product_category)
returns jsonb
language sql immutable parallel safe
return jsonb_build_object('category', c.category, 'name', coalesce(c.name, c.category), 'created_at', c.created_at, 'version', c.version);

create function affiliate.lock_category(p_merchant_id bigint, p_request jsonb)
returns affiliate.product_category
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.product_category;
begin
    select x.* into c
      from affiliate.product_category x
     where x.merchant_id = p_merchant_id
       and x.category = p_request ->> 'category'
       for update;
    if not found then
        perform affiliate.refuse_missing('category');
    end if;
    perform affiliate.check_version(p_request, c.version);
    return c;
end
$$;

create function affiliate.make_category(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made affiliate.product_category;
begin
    insert into affiliate.product_category (merchant_id, category, name)
    values (p_actor.merchant_id, affiliate.text_field(p_request, 'category', 64), affiliate.text_field(p_request, 'name', 200))
        on conflict do nothing
    returning * into made;
    if not found then
        perform affiliate.problem(409, 'conflict', 'There is a category of this name.');
    end if;
    perform affiliate.record(p_actor, 'category_create', 'category', made.category, null, affiliate.product_category_json(made));
    perform affiliate.answer_version(made.version);
    perform affiliate.answer('{"status": 201}');
    return affiliate.product_category_json(made);
end
$$;

create function affiliate.change_category(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.product_category := affiliate.lock_category(p_actor.merchant_id, p_request);
    made affiliate.product_category;
begin
    update affiliate.product_category x
       set name = affiliate.text_field(p_request, 'name', 200)
     where x.merchant_id = c.merchant_id
       and x.category = c.category
    returning * into made;
    perform affiliate.record(p_actor, 'category_update', 'category', c.category,
        affiliate.product_category_json(c), affiliate.product_category_json(made));
    perform affiliate.answer_version(made.version);
    return affiliate.product_category_json(made);
end
$$;

create function affiliate.drop_category(p_actor affiliate.actor, p_request jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    c affiliate.product_category := affiliate.lock_category(p_actor.merchant_id, p_request);
begin
    if exists (select
                 from affiliate.product p
                where p.search @@ affiliate.product_query(jsonb_build_object('category', c.category), c.merchant_id)
                  and p.merchant_id = c.merchant_id
                  and p.category = c.category) then
        perform affiliate.problem(409, 'conflict', 'There are products of this category.');
    end if;
    delete from affiliate.product_category x
     where x.merchant_id = c.merchant_id
       and x.category = c.category;
    perform affiliate.record(p_actor, 'category_delete', 'category', c.category, affiliate.product_category_json(c), null);
    perform affiliate.answer('{"status": 204}');
end
$$;

create function affiliate.api_category_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request,
        'select c, c.category
           from affiliate.product_category c
          where c.merchant_id = $1.merchant_id',
        'affiliate.product_category_json(x.c)', '{category text}', 'category text');
end
$$;

create function affiliate.api_category_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{category}', '{name}');
    return next affiliate.make_category(p_actor, p_request);
end
$$;

create function affiliate.api_category_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{category,name}');
    return next affiliate.change_category(p_actor, p_request);
end
$$;

create function affiliate.api_category_delete(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{category}');
    perform affiliate.drop_category(p_actor, p_request);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Who may
-- ---------------------------------------------------------------------------------------------------------------

select affiliate.enter_as_tenant(variadic array(
    select p.oid::regprocedure
      from pg_catalog.pg_proc p
     where p.pronamespace = 'affiliate'::regnamespace
       and p.proname in ('import_products', 'begin_product_import', 'end_product_import', 'put_product', 'change_product', 'drop_product',
                         'product_page', 'own_product_page', 'make_category', 'change_category', 'drop_category')));

select affiliate.operation(name, actors => '{merchant,key,admin}')
  from unnest('{product_list,product_show,import_list,import_show,import_problem_list,category_list}'::text[]) name;
select affiliate.operation(name, actors => '{merchant,key,admin}', role => 'manager', creates => true)
  from unnest('{product_create,import_create,category_create}'::text[]) name;
select affiliate.operation(name, actors => '{merchant,key,admin}', role => 'manager', mutates => true)
  from unnest('{product_update,product_delete,import_create_rows,import_create_done,category_update,category_delete}'::text[]) name;
select affiliate.operation('affiliate_product_list', actors => '{affiliate}');
select affiliate.seal_operations();
