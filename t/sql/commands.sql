-- Commands: what they take, what they refuse and how they say it.

\ir support/fixture.psql

select plan(51);

create function pg_temp.refused(p_call text, p_message text)
returns text
language sql
as $$ select throws_ok('select ' || p_call, '22023', p_message, p_message) $$;

-- Fields
select pg_temp.refused($$ affiliate.merchant_create('{"name": "A"}') $$, 'host: is required');
select pg_temp.refused($$ affiliate.merchant_create('{"name": "A", "host": "a.example", "nmae": 1}') $$,
    'nmae: is not a field of this command');
select pg_temp.refused($$ affiliate.merchant_create('[]') $$, 'command: must be an object');
select pg_temp.refused($$ affiliate.merchant_create('{"name": "", "host": "a.example"}') $$, 'name: must have 1 to 200 characters');
select pg_temp.refused($$ affiliate.merchant_create('{"name": "A", "host": "http://a"}') $$,
    'host: ''http://a'' must be a host name, or *.name for every name below it');
select pg_temp.refused($$ affiliate.merchant_show('{"merchant": "x"}') $$, 'merchant: must be an id, a whole number from 1');
select pg_temp.refused($$ affiliate.merchant_show('{"merchant": 5555555}') $$, 'merchant: there is none with id 5555555');
select pg_temp.refused($$ affiliate.merchant_list('{"limit": 5000}') $$, 'limit: must be a whole number from 1 to 1000');
select pg_temp.refused($$ affiliate.affiliate_create('{"name": "A", "email": "nobody"}') $$, 'email: must be an e-mail address');
select pg_temp.refused($$ affiliate.campaign_create('{"merchant": 900001, "name": "C", "currency": "XXX", "rate_basis_points": 1}') $$,
    'currency: must be an ISO 4217 currency, like NPR');
select pg_temp.refused($$ affiliate.campaign_create('{"merchant": 900001, "name": "C", "currency": "NPR"}') $$,
    'rate_basis_points: or rate_flat is required');
select pg_temp.refused($$ affiliate.campaign_create('{"merchant": 900001, "name": "C", "currency": "NPR", "rate_flat": "1,5"}') $$,
    'rate_flat: must be a decimal amount, like 1250.50');
select pg_temp.refused($$ affiliate.campaign_create('{"merchant": 900001, "name": "C", "currency": "JPY", "rate_flat": "1.5"}') $$,
    'rate_flat: must have at most 0 decimals');
select pg_temp.refused($$ affiliate.campaign_create('{"merchant": 900001, "name": "C", "currency": "NPR", "rate_flat": "5",
    "rate_basis_points": 5}') $$, 'rate_flat: can''t stand beside rate_basis_points');
select pg_temp.refused($$ affiliate.campaign_create('{"merchant": 900001, "name": "C", "currency": "NPR", "rate_basis_points": 5,
    "hold": "soon"}') $$, 'hold: must be a span of time, like 30 days, 12 hours or 5 seconds');
select pg_temp.refused($$ affiliate.campaign_create('{"merchant": 900001, "name": "C", "currency": "NPR", "rate_basis_points": 5,
    "sku_rate": "TEA"}') $$, 'sku_rate: ''TEA'' must be NAME=RATE');
select pg_temp.refused($$ affiliate.campaign_terms('{"campaign": 900021, "valid_from": "2020-01-01"}') $$,
    format('valid_from: must be after %s, where the latest version begins', now() - interval '3000 hours'));

-- Merchants, affiliates, campaigns
select is((select m ->> 'name' from affiliate.merchant_create('{"name": "A", "host": ["A.example", "*.a.example"]}') m), 'A', 'a merchant');
select is((select hosts from affiliate.merchant where name = 'A'), '{a.example,*.a.example}', 'hosts in lower case');
select is((select m ->> 'active' from affiliate.merchant_suspend('{"merchant": 900001}') m), 'false', 'suspended');
select is((select m ->> 'active' from affiliate.merchant_activate('{"merchant": 900001}') m), 'true', 'active again');
select is((select a ->> 'email' from affiliate.affiliate_create('{"name": "C", "email": "c@example.org"}') a), 'c@example.org', 'an affiliate');
select pg_temp.refused($$ affiliate.affiliate_create('{"name": "D", "email": "C@example.org"}') $$, 'email: is another affiliate''s');
select is((select c -> 'terms' ->> 'rate_flat' from affiliate.campaign_create('{"merchant": 900001, "name": "C", "currency": "NPR",
    "rate_flat": "12.50", "hold": "5 seconds", "sku_rate": ["TEA=500"], "category_flat": ["x=y=1.00"]}') c), '12.50', 'a campaign');
select is((select array_agg(value order by value) from affiliate.product_rate p join affiliate.terms t using (merchant_id, terms_id)
    join affiliate.campaign c using (merchant_id, campaign_id) where c.name = 'C'), '{TEA,x=y}', 'with product rates');
select is((select hold from affiliate.terms t join affiliate.campaign c using (merchant_id, campaign_id) where c.name = 'C'),
    interval '5 seconds', 'and a hold of seconds');
select is((select t ->> 'rate_basis_points' from affiliate.campaign_terms('{"campaign": 900021, "rate_basis_points": 700}') t), '700',
    'new terms');
select is((select c -> 'terms' ->> 'fee_basis_points' from affiliate.campaign_show('{"campaign": 900021}') c), '2000',
    'what they don''t name stays');
select is((select count(*) from affiliate.merchant_list('{"after": 900000, "limit": 2}')), 2::bigint, 'a page');
select is((select m ->> 'merchant' from affiliate.merchant_list('{"after": 900001, "limit": 1}') m), '900002', 'the next');

-- Links
select pg_temp.refused($$ affiliate.link_create('{"campaign": 900021, "affiliate": 900011, "url": "https://evil.example/"}') $$,
    'url: its host evil.example is not one of the merchant''s: shop.example, *.shop.example');
select throws_like(format('select affiliate.link_create(%L)', jsonb_build_object('campaign', 900021, 'affiliate', 900011, 'url', u)),
    'url: %', 'refused: ' || u)
  from unnest(array['javascript:alert(1)', '//shop.example/', 'https://a@shop.example/', 'https://shop.example.evil.example/',
                    'https://notshop.example/', 'https://shop.example:0/', 'https://shop.example/<']) u;
select ok((select l ->> 'code' ~ '^[2-9a-hjkmnp-z]{10}$' from affiliate.link_create(
    '{"campaign": 900021, "affiliate": 900011, "url": "https://WWW.Shop.example:8443/tea?x=1#y"}') l), 'a code without look-alikes');
select pg_temp.refused($$ affiliate.link_create('{"campaign": 900021, "affiliate": 900011, "url": "https://shop.example/",
    "code": "fixture-1"}') $$, 'code: ''fixture-1'' is taken');
select is((select l ->> 'state' from affiliate.link_create('{"campaign": 900021, "affiliate": 900011, "url": "https://shop.example/",
    "expires_at": "2020-01-01"}') l), 'expired', 'a link whose time is over');
select is((select l ->> 'state' from affiliate.link_pause('{"link": "fixture-1"}') l), 'paused', 'paused');
select affiliate.link_remove('{"link": "fixture-1"}') \g /dev/null
select pg_temp.refused($$ affiliate.link_resume('{"link": "fixture-1"}') $$, 'link: was removed');

-- Keys
select is((select k ->> 'active' from affiliate.key_create('{"merchant": 900001, "livemode": "true", "key_id": "ak_live_abc",
    "master_id": "m1"}') k), 'true', 'a key');
select pg_temp.refused($$ affiliate.key_create('{"merchant": 900001, "livemode": true, "key_id": "ak_test_abc", "master_id": "m1"}') $$,
    'key_id: must be ak_live_ and letters or digits');
select is((select k ->> 'active' from affiliate.key_revoke('{"key": "ak_live_abc"}') k), 'false', 'revoked');

-- Orders and balances
select pg_temp.report(jsonb_build_object('order', 'S', 'status', 'approved', 'amount', 125050, 'click', pg_temp.click(1),
    'at', now() - interval '10 minutes')) \g /dev/null
select is((select (o - '{order_no,timeline,transfers,terms,click,clicked_at,reported_at,approved_at,hold_until,sentence}'::text[])::text
             from affiliate.order_show('{"merchant": 900001, "order": "S"}') o),
    jsonb_build_object('order', 'S', 'merchant', 900001, 'livemode', true, 'affiliate', 900011, 'campaign', 900021, 'link', 'fixture-1',
        'state', 'approved', 'outcome', 'accepted', 'reason', null, 'amount', '1250.50', 'refunded', '0.00', 'currency', 'NPR',
        'commission', '125.05', 'fee', '25.01', 'commission_currency', 'NPR', 'customer', null, 'cancelled_at', null,
        'returned_at', null, 'review', null)::text, 'an order');
select is((select o ->> 'sentence' from affiliate.order_show('{"merchant": 900001, "order": "S"}') o),
    'The order is approved; its commission is on hold until '
    || to_char((now() + interval '50 minutes') at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC.', 'in words');
select results_eq($$ select b ->> 'owner', b ->> 'kind', b ->> 'balance' from affiliate.balance_list('{"merchant": 900001}') b order by 1, 2 $$,
    $$ values ('affiliate', 'pending', '125.05'), ('merchant', 'accrued', '150.06'), ('platform', 'fee_pending', '25.01') $$, 'balances');
select pg_temp.report(jsonb_build_object('order', 'S', 'status', 'returned', 'click', o ->> 'click'))
  from affiliate.order_show('{"merchant": 900001, "order": "S"}') o \g /dev/null
select is((select (o ->> 'state') || ' ' || (o ->> 'refunded') from affiliate.order_show('{"merchant": 900001, "order": "S"}') o),
    'refunded 1250.50', 'returned as a whole, all of it is refunded');

-- Every function is safe from a search_path that somebody else set.
select is_empty($$
    select p.oid::regprocedure
      from pg_proc p
     where p.pronamespace = 'affiliate'::regnamespace
       and p.prosqlbody is null
       and not coalesce(p.proconfig::text like '%search_path=pg_catalog, affiliate, pg_temp%', false)
$$, 'search_path is pinned everywhere, or the body is bound');

select * from finish();
rollback;
