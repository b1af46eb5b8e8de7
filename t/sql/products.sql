-- Products: files in parts that may come twice, what a row must be, dry runs, what vanished; single ones; and how affiliates find them.

\ir support/catalogue.psql

select plan(84);

create temp table made (name text primary key, j jsonb);

-- Begins an import; gives its number.
create function pg_temp.begin_import(p_header text, p_more jsonb default '{}', p_meta jsonb default '{}')
returns text
language sql
as $$
    select pg_temp.one('owner', 'import_create', jsonb_build_object('merchant', 900001, '_bytes', 100,
        '_header', to_jsonb(string_to_array(p_header, ','))) || p_more, p_meta) ->> '_upload'
$$;

-- A part, its rows in lines, cells between |; gives the next row that is wanted.
create function pg_temp.part(p_upload text, p_line integer, p_rows text)
returns text
language sql
as $$
    select coalesce(pg_temp.one('owner', 'import_create_rows', r) ->> '_line', '')
      from (select jsonb_build_object('merchant', 900001, '_upload', p_upload, '_line', p_line, '_rows',
                   (select jsonb_agg(to_jsonb(string_to_array(l, '|')) order by n)
                      from regexp_split_to_table(p_rows, E'\n') with ordinality as t(l, n))) as r) x
$$;

-- The end, as often as it has more to do.
create function pg_temp.done(p_upload text, p_lines integer)
returns jsonb
language plpgsql
as $$
declare
    answer jsonb;
begin
    loop
        answer := pg_temp.one('owner', 'import_create_done', jsonb_build_object('merchant', 900001, '_upload', p_upload, '_lines', p_lines));
        exit when not answer ? '_upload';
    end loop;
    return answer;
end
$$;

create function pg_temp.counts(j jsonb)
returns text
language sql
as $$ select concat_ws(' ', j ->> 'created', j ->> 'changed', j ->> 'unchanged', j ->> 'refused', j ->> 'vanished') $$;

create function pg_temp.products()
returns bigint
language sql
as $$ select count(*) from affiliate.product where merchant_id = 900001 $$;

-- Headers
select is(pg_temp.refusal('owner', 'import_create', '{"merchant": 900001, "_header": ["id", "title", "Title"], "_bytes": 9}'),
    '{"link": "is a required column", "price": "is a required column", "title": "is there twice"}', 'columns that are missing or twice');
select is(pg_temp.refusal('owner', 'import_create', '{"merchant": 900001, "_header": ["id", "title", "link", "price"], "currency": "RUPEES"}'),
    'currency: must be an ISO 4217 currency, like NPR', 'no currency');
select is(pg_temp.refusal('reader', 'import_create', '{"merchant": 900001, "_header": ["id", "title", "link", "price"]}'),
    '403 forbidden: This is for a member with the role manager.', 'who only reads imports nothing');

-- A dry run
insert into made select 'dry', to_jsonb(pg_temp.begin_import('ID,g:Title,Link,price,Image Link,gtin', '{"dry_run": "true", "currency": "NPR"}'));
select is(pg_temp.part((select j ->> 0 from made where name = 'dry'), 1, E'A|Tea|https://shop.example/a|10|| \nB||https://shop.example/b|x|ftp://x|1'), '3',
    'it takes a part');
insert into made select 'dry done', pg_temp.done((select j ->> 0 from made where name = 'dry'), 2);
select is(pg_temp.counts((select j from made where name = 'dry done')), '1 0 0 1 0', 'and says what would be');
select is((select j -> 'problems' from made where name = 'dry done'),
    '[{"line": 3, "column": "image_link", "value": "ftp://x", "rule": "must be an absolute http or https URL without userinfo"},
      {"line": 3, "column": "price", "value": "x", "rule": "must be a price, like 1250.50 NPR"},
      {"line": 3, "column": "title", "value": null, "rule": "is required"}]'::jsonb, 'cell by cell');
select is((select j -> 'ignored_columns' from made where name = 'dry done'), '["gtin"]'::jsonb, 'with the columns that it doesn''t know');
select is(pg_temp.products(), 0::bigint, 'and stores nothing');
select is((select count(*) from affiliate.product_category where merchant_id = 900001), 0::bigint, 'no category either');
select is((select count(*) from affiliate.import_key), 0::bigint, 'and leaves nothing behind');

-- What a cell must be
create function pg_temp.wrong(p_cells text)
returns text
language sql
as $$
    select string_agg(e.key || ': ' || e.value, '; ' order by e.key)
      from affiliate.judge_products(900001, affiliate.product_places(string_to_array('id,title,link,price,sale_price,availability,brand,product_type', ',')),
               8, 1, jsonb_build_array(to_jsonb(string_to_array(p_cells, '|'))), null) j,
           jsonb_each_text(j.problems) e
$$;
select is(pg_temp.wrong('A|Tea|https://shop.example/|1 NPR||||'), null, 'a product');
select is(pg_temp.wrong('A|Tea|https://www.shop.example:8443/x?y#z|NPR 1.5|1 NPR|Out of stock||'), null, 'another');
select is(pg_temp.wrong('A|Tea|HTTPS://SHOP.EXAMPLE/|0 NPR||preorder||'), null, 'and one in capitals');
select is(pg_temp.wrong('A|Tea|https://shop.example/|1 NPR'), ': has 4 cells, the header 8', 'too few cells');
select is(pg_temp.wrong('A|Tea|https://evil.example/|1 NPR||||'),
    'link: its host evil.example is not one of the merchant''s: shop.example, *.shop.example', 'another''s page');
select is(pg_temp.wrong('A|Tea|https://shop.example@evil.example/|1 NPR||||'), 'link: must be an absolute http or https URL without userinfo', 'userinfo');
select is(pg_temp.wrong('A|Tea|https://shop.example.evil.example/|1 NPR||||') like 'link: its host%', true, 'a host that begins alike');
select is(pg_temp.wrong('A|Tea|https://evilshop.example/|1 NPR||||') like 'link: its host%', true, 'or ends alike');
select is(pg_temp.wrong('A|Tea|javascript:alert(1)|1 NPR||||'), 'link: must be an absolute http or https URL without userinfo', 'no page');
select is(pg_temp.wrong('A|Tea|https://shop.example/a b|1 NPR||||'), 'link: must be an absolute http or https URL without userinfo', 'a space');
select is(pg_temp.wrong('A|Tea|https://shop.example/चिया|1 NPR||||'), 'link: must be an absolute http or https URL without userinfo', 'not encoded');
select is(pg_temp.wrong('A|Tea|https://shop.example/|1||||'), 'price: must name its currency, like 1250.50 NPR', 'no currency');
select is(pg_temp.wrong('A|Tea|https://shop.example/|1 XXX||||'), 'price: must be in an ISO 4217 currency, like NPR', 'no such currency');
select is(pg_temp.wrong('A|Tea|https://shop.example/|1,250.00 NPR||||'), 'price: must be a price, like 1250.50 NPR', 'a comma');
select is(pg_temp.wrong('A|Tea|https://shop.example/|-1 NPR||||'), 'price: must be a price, like 1250.50 NPR', 'below nothing');
select is(pg_temp.wrong('A|Tea|https://shop.example/|01 NPR||||'), 'price: must be a price, like 1250.50 NPR', 'a zero in front');
select is(pg_temp.wrong('A|Tea|https://shop.example/|1.005 NPR||||'), 'price: must have at most 2 decimals', 'too many decimals');
select is(pg_temp.wrong('A|Tea|https://shop.example/|1234567890123456 NPR||||'), 'price: must have at most 17 digits', 'too many digits');
select is(pg_temp.wrong('A|Tea|https://shop.example/|123456789012345 NPR||||'), null, 'and the most');
select is(pg_temp.wrong('A|Tea|https://shop.example/|2 NPR|3 NPR|||'), 'sale_price: must not be above the price', 'dearer on sale');
select is(pg_temp.wrong('A|Tea|https://shop.example/|2 NPR|1 USD|||'), 'sale_price: must be in the price''s currency', 'on sale elsewhere');
select is(pg_temp.wrong('A|Tea|https://shop.example/|2 NPR||soon||'), 'availability: must be in_stock, out_of_stock, preorder or backorder', 'neither');
select is(pg_temp.wrong(repeat('a', 65) || '|' || repeat('b', 151) || '|https://shop.example/|2 NPR|||' || repeat('c', 71) || '|'),
    'brand: must have at most 70 characters; id: must have at most 64 characters; title: must have at most 150 characters', 'too long');
select is(pg_temp.wrong(E'A|T\x01ea|https://shop.example/|2 NPR||||'), 'title: must not have control characters', 'a control character');
select is(affiliate.usual_host(u), affiliate.url_host(u), 'the quick way to a host gives the same: ' || left(u, 40))
  from unnest(array['https://shop.example', 'https://shop.example/a?b=c', 'http://-a.example/', 'https://a..b/', 'https://[::1]/', 'https://a.b./x',
                    'https://a_b.example/', 'https://a.example?x', 'https://a.example:99999/', 'https://a.example/"', 'https://a.example/' || repeat('x', 2000)]) u;

-- Stored, in parts; a part that comes twice, one that overlaps, one that is too far
insert into made select 'up', to_jsonb(pg_temp.begin_import('id,title,link,price,sale_price,brand,product_type,category', '{"vanished": "mark"}', '{"idempotency_key": "file"}'));
create function pg_temp.up()
returns text
language sql
as $$ select j ->> 0 from made where name = 'up' $$;
select is(pg_temp.part(pg_temp.up(), 1, E'A|Green tea|https://shop.example/a|10 NPR||Ilam|Food > Tea|\nB|Cup|https://shop.example/b|20.5 NPR|19 NPR|||Cups'), '3', 'a part');
select is(pg_temp.part(pg_temp.up(), 1, E'A|Black tea|https://shop.example/a|10 NPR||||\nB|Cup|https://shop.example/b|20.5 NPR||||'), '3', 'again');
select is((select title from affiliate.product where merchant_id = 900001 and sku = 'A'), 'Green tea', 'it changes nothing');
select is(pg_temp.part(pg_temp.up(), 2, E'B|Mug|https://shop.example/b|1 NPR||||\nC|Pot|https://shop.example/c|5 USD||||\nA|Tea|https://shop.example/a|1 NPR||||'), '5',
    'cut otherwise, only its new rows count');
select is(pg_temp.refusal('owner', 'import_create_rows', jsonb_build_object('merchant', 900001, '_upload', pg_temp.up(), '_line', 7, '_rows', '[["a"]]'::jsonb)),
    '409 conflict: The next row has to be 5.', 'one behind a gap');
select is(pg_temp.refusal('owner', 'import_create_done', jsonb_build_object('merchant', 900001, '_upload', pg_temp.up(), '_lines', 9)),
    '409 conflict: The next row has to be 5.', 'an end behind a gap');
select is(pg_temp.refusal('owner', 'import_create', '{"merchant": 900001, "_header": ["id", "title", "link", "price"]}') like '409 in_flight:%', true,
    'another import has to wait');
select is(pg_temp.refusal('stranger', 'import_create_rows', jsonb_build_object('merchant', 900002, '_upload', pg_temp.up(), '_line', 5, '_rows', '[["a"]]'::jsonb)),
    '404 not_found: There is no such import.', 'no other merchant adds to it');
select is(pg_temp.begin_import('id,title,link,price,sale_price,brand,product_type,category', '{"vanished": "mark"}', '{"idempotency_key": "file"}'), pg_temp.up(),
    'the same upload again goes on with it');
insert into made select 'up done', pg_temp.done(pg_temp.up(), 4);
select is(pg_temp.counts(j), '3 0 0 1 0', 'its end') from made where name = 'up done';
select is(j -> 'problems', '[{"line": 5, "column": "id", "value": "A", "rule": "is the id of an earlier row, too"}]'::jsonb, 'an id twice') from made where name = 'up done';
select is(pg_temp.done(pg_temp.up(), 4), j, 'again, the same') from made where name = 'up done';
select is(pg_temp.part(pg_temp.up(), 1, E'A|Black tea|https://shop.example/a|10 NPR||||'), '5', 'and nothing comes in any more');
select is((select jsonb_agg(jsonb_build_array(sku, price_minor, sale_price_minor, currency, category, availability) order by sku) from affiliate.product where merchant_id = 900001),
    '[["A", 1000, null, "NPR", "Food", "in_stock"], ["B", 2050, 1900, "NPR", "Cups", "in_stock"], ["C", 500, null, "USD", null, "in_stock"]]'::jsonb, 'what is stored');
select is((select jsonb_agg(c ->> 'category') from jsonb_array_elements(pg_temp.data('owner', 'category_list', '{"merchant": 900001}')) c),
    '["Cups", "Food"]'::jsonb, 'with its categories');

-- The next file
update affiliate.import set updated_at = updated_at - interval '2 minutes';
insert into made select 'next', to_jsonb(pg_temp.begin_import('id,title,link,price,product_type,brand', '{"vanished": "mark"}'));
select pg_temp.part((select j ->> 0 from made where name = 'next'), 1, E'A|Green tea|https://shop.example/a|10 NPR|Food > Tea|Ilam\nC|Pot|https://shop.example/c|6 USD||\nD|Jar|https://shop.example/d|6 NPR||') \g /dev/null
select is(pg_temp.counts(pg_temp.done((select j ->> 0 from made where name = 'next'), 3)), '1 1 1 0 1', 'new, changed, as it was, gone');
select is((select string_agg(sku || ' ' || state || ' ' || version, ', ' order by sku) from affiliate.product where merchant_id = 900001),
    'A active 1, B gone 2, C active 2, D active 1', 'as their states say; what is as it was, was not touched');
insert into made select 'old', to_jsonb(pg_temp.begin_import('id,title,link,price'));
update affiliate.import set updated_at = updated_at - interval '2 minutes';
insert into made select 'new', to_jsonb(pg_temp.begin_import('id,title,link,price'));
select is(pg_temp.refusal('owner', 'import_create_rows', (select jsonb_build_object('merchant', 900001, '_upload', j, '_line', 1, '_rows', '[["a"]]'::jsonb) from made where name = 'old')),
    '409 state: The import was given up, as another was begun. Upload the file again.', 'one that broke off is given up for another');

-- Single products
select is(pg_temp.one('owner', 'product_create', '{"merchant": 900001, "product": "E", "title": "Kettle", "link": "https://shop.example/e", "price": "99.90", "currency": "NPR"}')
    - '{created_at,updated_at}'::text[], '{"product": "E", "merchant": 900001, "title": "Kettle", "description": null, "link": "https://shop.example/e", "image_link": null,
      "price": "99.90", "sale_price": null, "currency": "NPR", "availability": "in_stock", "brand": null, "category": null, "product_type": null,
      "google_product_category": null, "state": "active", "version": 1}'::jsonb, 'a product');
select is(pg_temp.refusal('owner', 'product_create', '{"merchant": 900001, "product": "E", "title": "Kettle", "link": "https://evil.example/e", "price": "9x", "currency": "NPR"}'),
    '{"link": "its host evil.example is not one of the merchant''s: shop.example, *.shop.example", "price": "must be a price, like 1250.50 NPR"}', 'judged as in files');
select is(pg_temp.refusal('owner', 'product_create', '{"merchant": 900001, "product": "E", "title": "Kettle", "link": "https://shop.example/e", "price": "9", "currency": "NPR"}'),
    '409 conflict: There is a product with this id.', 'only once');
select is(pg_temp.one('owner', 'product_update', '{"merchant": 900001, "product": "E", "sale_price": "89.90", "brand": "Hot"}', '{"if_match": "\"1\""}') ->> 'sale_price', '89.90', 'changed');
select is(pg_temp.refusal('owner', 'product_update', '{"merchant": 900001, "product": "E", "price": "80"}'),
    '{"sale_price": "must not be above the price"}', 'with what it had');
select is(pg_temp.refusal('stranger', 'product_update', '{"merchant": 900002, "product": "E", "price": "80"}'), '404 not_found: There is no such product.', 'not by others');
select is(pg_temp.refusal('stranger', 'product_show', '{"merchant": 900002, "product": "E"}'), '404 not_found: There is no such product.', 'who don''t see it either');
select is(jsonb_array_length(pg_temp.data('stranger', 'product_list', '{"merchant": 900002}')), 0, 'in no list');
select is((select string_agg(p ->> 'product', '') from jsonb_array_elements(pg_temp.data('owner', 'product_list', '{"merchant": 900001, "state": "active"}')) p), 'ACDE', 'a list');
select is((select string_agg(p ->> 'product', '') from jsonb_array_elements(pg_temp.data('owner', 'product_list', '{"merchant": 900001, "q": "tea green"}')) p), 'A', 'searched');
select is(pg_temp.refusal('owner', 'category_delete', '{"merchant": 900001, "category": "Food"}'), '409 conflict: There are products of this category.', 'a category in use');

-- Affiliates
insert into affiliate.product_rate (merchant_id, terms_id, kind, value, rate_basis_points) values (900001, 900031, 'sku', 'A', 1500), (900001, 900031, 'category', 'Food', 1200);
create function pg_temp.found(p_request jsonb)
returns text
language sql
as $$ select coalesce(string_agg(p ->> 'product', '' order by n), '')
        from jsonb_array_elements(pg_temp.data('asha', 'affiliate_product_list', p_request)) with ordinality as t(p, n) $$;
select is(pg_temp.found('{}'), 'EDCA', 'what is on offer, the newest first; nothing that is gone');
select is(pg_temp.found('{"q": "gre te"}'), 'A', 'by beginnings of words');
select is(pg_temp.found('{"category": "food"}') || pg_temp.found('{"category": "Fo"}'), 'A', 'by category');
select is(pg_temp.found('{"merchant": "900002"}') || pg_temp.found('{"merchant": "900001", "q": "kettle"}'), 'E', 'by merchant');
select is(pg_temp.found('{"currency": "NPR", "sort": "price"}'), 'DAE', 'by price');
select is(pg_temp.found('{"currency": "NPR", "min_price": "6.01", "max_price": "89.90"}'), 'EA', 'which is the sale''s');
select is(pg_temp.refusal('asha', 'affiliate_product_list', '{"sort": "price"}'), 'currency: is required where prices are compared', 'of one currency');
select is((select jsonb_agg(jsonb_build_array(o -> 'campaign', o -> 'rate_for', o -> 'rate_percent', o -> 'rate_flat')) from jsonb_array_elements(
    pg_temp.one('asha', 'affiliate_product_list', '{"q": "green"}') -> 'campaigns') o),
    '[[900021, "sku", "15.00", null], [900022, "all", null, "50.00"]]'::jsonb, 'with the rate of each campaign');
delete from affiliate.product_rate where kind = 'sku' and terms_id = 900031;
select is(pg_temp.one('asha', 'affiliate_product_list', '{"q": "green"}') #>> '{campaigns,0,rate_percent}', '12.00', 'its own, or its category''s');
update affiliate.merchant set decision = 'submitted' where merchant_id = 900001;
select is(pg_temp.found('{}'), '', 'nothing of merchants that are not approved');

select * from finish();
rollback;
