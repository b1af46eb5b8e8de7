-- Campaigns over the API: states, terms in human fields, who may join, who sees what; and what the redirect is told.

\ir support/catalogue.psql

select plan(86);

create temp table made (name text primary key, j jsonb);

-- A campaign from draft to active
insert into made select 'c', pg_temp.one('owner', 'campaign_create', '{"merchant": 900001, "name": "Teas", "currency": "NPR",
    "description": "Fine teas", "rules": "No spam\r\nNo coupons", "categories": ["food", "home", "food"], "joining": "approval",
    "terms": {"rate_percent": "7.5", "hold_days": 14, "attribution_days": 30, "minimum_payout": "500",
              "product_rates": [{"sku": "TEA", "rate_percent": "10"}, {"category": "Cups=big", "rate_flat": "12.5"}]}}');
select is((select j - '{campaign,terms,created_at,version}'::text[] from made),
    '{"merchant": 900001, "name": "Teas", "description": "Fine teas", "rules": "No spam\nNo coupons", "categories": ["food", "home"],
      "currency": "NPR", "joining": "approval", "state": "draft", "suspension_reason": null,
      "product_rates": [{"sku": "TEA", "rate_percent": "10.00"}, {"category": "Cups=big", "rate_flat": "12.50"}],
      "affiliates": {"applied": 0, "approved": 0}}'::jsonb, 'a campaign is made as a draft');
select is((select (j -> 'terms') - '{terms,valid_from}'::text[] from made),
    '{"currency": "NPR", "rate_percent": "7.50", "hold_days": 14, "attribution_days": 30, "minimum_payout": "500.00",
      "fee_percent": "20.00", "fee_flat": "0.00", "minimum_click_to_order_seconds": 0}'::jsonb, 'with terms, and the network''s fee');
select is((select r from pg_temp.call('owner', 'campaign_create', '{"merchant": 900001, "name": "X", "currency": "NPR"}') r limit 1)
    - 'location', '{"status": 201, "etag": "\"1\""}'::jsonb, 'created, with an ETag');

create function pg_temp.c(p_more jsonb default '{}', p_name text default 'c')
returns jsonb
language sql
as $$ select jsonb_build_object('merchant', j -> 'merchant', 'campaign', j -> 'campaign') || p_more from made where name = p_name $$;

-- Fields that are wrong
select is(pg_temp.refusal('owner', 'campaign_create', '{"merchant": 900001, "nmae": 1}'),
    '{"name": "is required", "nmae": "is not a field of this request", "currency": "is required"}', 'all wrong fields at once');
select is(pg_temp.refusal('owner', 'campaign_create', '{"merchant": 900001, "name": "A", "currency": "NPR", "categories": ["tea"]}')
    like 'categories: must be of beauty,%', true, 'an unknown category');
select is(pg_temp.refusal('owner', 'campaign_create', '{"merchant": 900001, "name": "A", "currency": "NPR", "joining": "never"}'),
    'joining: must be one of open, approval', 'another way of joining');
select is(pg_temp.refusal('owner', 'campaign_create', '{"merchant": 900001, "name": "A", "currency": "NPR", "description": "a\u0007b"}'),
    'description: must not have control characters', 'a bell in a text');
select is(pg_temp.refusal('owner', 'terms_create', pg_temp.c('{"rate_percent": "7.555"}')),
    'rate_percent: must be a percentage from 0 to 100 with at most two decimals, like 7.5', 'three decimals');
select is(pg_temp.refusal('owner', 'terms_create', pg_temp.c('{"rate_percent": "100.01"}')),
    'rate_percent: must be a percentage from 0 to 100 with at most two decimals, like 7.5', 'more than all');
select is(pg_temp.refusal('owner', 'terms_create', pg_temp.c('{"rate_percent": "5", "rate_flat": "5"}')),
    'rate_flat: can''t stand beside rate_percent', 'two rates');
select is(pg_temp.refusal('owner', 'terms_create', pg_temp.c('{"rate_percent": "5", "fee_percent": "0"}')),
    'fee_percent: is agreed with the network', 'a merchant sets no fee');
select is(pg_temp.refusal('owner', 'terms_create', pg_temp.c('{"product_rates": [{"sku": "A", "rate_percent": "1"}, {"sku": "A", "rate_flat": "1"}]}')),
    'product_rates: sku ''A'' has a rate already', 'two rates of a product');
select is(pg_temp.refusal('owner', 'terms_create', pg_temp.c('{"product_rates": [{"sku": "A"}]}')),
    'product_rates: each must have sku or category, and rate_percent or rate_flat', 'no rate of a product');
select is(pg_temp.refusal('owner', 'terms_create', pg_temp.c('{"valid_from": "2020-01-01"}')) like 'valid_from: must be after %', true,
    'terms of the past');
select is(pg_temp.refusal('owner', 'campaign_create', '{"merchant": 900001, "name": "A", "currency": "NPR",
    "terms": {"rate_percent": 5, "valid_from": "2020-01-01"}}'), 'valid_from: must not be in the past', 'also a campaign''s first');

-- Rights
select is(pg_temp.refusal('reader', 'campaign_update', pg_temp.c('{"name": "B"}')), '403 forbidden: This is for a member with the role manager.',
    'who only reads changes nothing');
select is(pg_temp.refusal('reader', 'campaign_show', pg_temp.c()), '200', 'but reads');
select is(pg_temp.refusal('stranger', 'campaign_show', pg_temp.c()), '404 not_found: There is no such merchant.', 'another merchant');
select is(pg_temp.refusal('stranger', 'campaign_show', pg_temp.c('{"merchant": 900002}')), '404 not_found: There is no such campaign.',
    'also not through his own');
select is(pg_temp.refusal('stranger', 'campaign_update', pg_temp.c('{"merchant": 900002, "name": "Mine"}')),
    '404 not_found: There is no such campaign.', 'nor to change it');
select is(pg_temp.refusal('stranger', 'terms_create', pg_temp.c('{"merchant": 900002, "rate_percent": "90"}')),
    '404 not_found: There is no such campaign.', 'nor its terms');
select is(pg_temp.refusal('asha', 'campaign_show', pg_temp.c()), '404 not_found: There is no such merchant.', 'an affiliate is no member');
select is(pg_temp.refusal('nobody', 'campaign_list', pg_temp.c()), '401 unauthenticated: Log in, or sign with a key.', 'nor is nobody');
select is(pg_temp.refusal('ak_live_shop', 'campaign_show', pg_temp.c() - 'merchant'), '200', 'a key is');
select is(pg_temp.refusal('owner', 'campaign_show', pg_temp.c('{"campaign": "1 or 1"}')), '404 not_found: There is no such campaign.',
    'an id that is none');
select is(pg_temp.refusal('asha', 'affiliate_campaign_show', pg_temp.c()), '404 not_found: There is no such campaign.', 'affiliates see no draft');
select is(pg_temp.refusal('asha', 'membership_create', pg_temp.c()), 'campaign: there is none with this id that is open', 'nor join one');

-- Updates
select is(pg_temp.refusal('owner', 'campaign_update', pg_temp.c('{"name": "B"}'), '{"if_match": "\"77\""}'),
    '412 precondition_failed: It was changed meanwhile: its version is 1.', 'another version');
select is(pg_temp.one('owner', 'campaign_update', pg_temp.c('{"description": null}'), '{"if_match": "\"1\""}') ->> 'description', null,
    'this version; null takes a text away');
select is(pg_temp.one('owner', 'campaign_show', pg_temp.c()) ->> 'rules', E'No spam\nNo coupons', 'what is not named stays');
select is((select ("from", "to")::text from affiliate.audit_record where action = 'campaign_update' order by audit_id desc limit 1),
    (select ('{"description": "Fine teas"}'::jsonb, '{"description": null}'::jsonb)::text), 'it is on record, with what differs');
select is(pg_temp.refusal('owner', 'campaign_pause', pg_temp.c()), '409 state: The campaign has not begun.', 'a draft can''t be paused');
select is(pg_temp.one('owner', 'campaign_activate', pg_temp.c()) ->> 'state', 'active', 'active');
insert into made select 'bare', pg_temp.one('owner', 'campaign_create', '{"merchant": 900001, "name": "Bare", "currency": "NPR"}');
select is(pg_temp.refusal('owner', 'campaign_activate', pg_temp.c(p_name => 'bare')), '409 state: The campaign has no terms in force.',
    'not without terms');

-- Terms
update affiliate.terms set valid_from = valid_from - interval '1 hour' where campaign_id = (select (j ->> 'campaign')::bigint from made where name = 'c');
select is(pg_temp.one('owner', 'terms_create', pg_temp.c('{"rate_flat": "40"}')) - '{terms,valid_from}'::text[],
    '{"currency": "NPR", "rate_flat": "40.00", "hold_days": 14, "attribution_days": 30, "minimum_payout": "500.00", "fee_percent": "20.00",
      "fee_flat": "0.00", "minimum_click_to_order_seconds": 0,
      "product_rates": [{"sku": "TEA", "rate_percent": "10.00"}, {"category": "Cups=big", "rate_flat": "12.50"}]}'::jsonb,
    'new terms keep what they don''t name');
select is(jsonb_array_length(pg_temp.data('owner', 'terms_list', pg_temp.c())), 2, 'both versions');
select is(pg_temp.one('root', 'network_fee_update', '{"merchant": 900001, "fee_percent": "15"}') ->> 'fee_percent', '15.00', 'an agreed fee');
select is(pg_temp.refusal('owner', 'network_fee_update', '{"merchant": 900001, "fee_percent": "0"}'), '403 forbidden: This is not for you.',
    'that no merchant sets');
select is(pg_temp.one('owner', 'terms_create', pg_temp.c(jsonb_build_object('product_rates', '[]'::jsonb, 'valid_from',
    to_char((now() at time zone 'UTC') + interval '1 day', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')))) - '{terms,valid_from,currency}'::text[],
    '{"rate_flat": "40.00", "hold_days": 14, "attribution_days": 30, "minimum_payout": "500.00", "fee_percent": "15.00",
      "fee_flat": "0.00", "minimum_click_to_order_seconds": 0, "product_rates": []}'::jsonb,
    'is in the next version, which may begin later; [] takes all rates of products away');

-- Affiliates
select set_eq($$ select (o ->> 'campaign')::bigint from jsonb_array_elements(pg_temp.data('asha', 'affiliate_campaign_list', '{"merchant": 900001}')) o $$,
    $$ select 900021 union select 900022 union select (pg_temp.c() ->> 'campaign')::bigint $$, 'what is open');
select is(jsonb_array_length(pg_temp.data('asha', 'affiliate_campaign_list', '{"q": "tea"}')), 1, 'found by the beginning of a word');
select is(jsonb_array_length(pg_temp.data('asha', 'affiliate_campaign_list', '{"q": "eas"}')), 0, 'not by its end');
select is(jsonb_array_length(pg_temp.data('asha', 'affiliate_campaign_list', '{"q": "shop TEAS", "category": "food", "currency": "NPR"}')), 1,
    'by the merchant''s name, its category and currency');
select is(pg_temp.refusal('asha', 'affiliate_campaign_list', '{"q": "&|!"}'), 'q: must have a word', 'no word');
select is(pg_temp.one('asha', 'affiliate_campaign_show', pg_temp.c()) - '{campaign,terms,next_terms,created_at}'::text[],
    '{"merchant": 900001, "merchant_name": "Shop", "name": "Teas", "description": null, "rules": "No spam\nNo coupons",
      "categories": ["food", "home"], "currency": "NPR", "joining": "approval", "state": "active", "membership": null,
      "hosts": ["shop.example", "*.shop.example"], "creatives": [],
      "product_rates": [{"sku": "TEA", "rate_percent": "10.00"}, {"category": "Cups=big", "rate_flat": "12.50"}]}'::jsonb, 'as affiliates see it');
select is((pg_temp.one('asha', 'affiliate_campaign_show', pg_temp.c()) -> 'terms') - '{terms,valid_from}'::text[],
    '{"currency": "NPR", "rate_flat": "40.00", "hold_days": 14, "attribution_days": 30, "minimum_payout": "500.00"}'::jsonb,
    'with its terms, but the fee');
select is((select o -> 'campaigns' from jsonb_array_elements(pg_temp.data('asha', 'affiliate_category_list', '{}')) o where o ->> 'category' = 'food')::text,
    (select count(*)::text from affiliate.campaign c where 'food' = any (c.categories) and affiliate.campaign_is_open(c)), 'categories');

-- Joining
select is(pg_temp.one('asha', 'membership_create', pg_temp.c('{"message": "I review teas"}') - 'merchant') ->> 'state', 'applied', 'she asks');
select is((select count(*)::integer from affiliate.notice where template = 'membership_applied' and user_id = 900051), 1, 'the owner hears of it');
select is(pg_temp.refusal('asha', 'membership_create', pg_temp.c() - 'merchant'), '409 conflict: You have applied already.', 'once');
select is((select (o -> 'affiliate_name') || (o -> 'message') from jsonb_array_elements(pg_temp.data('owner', 'campaign_affiliate_list',
    pg_temp.c('{"state": "applied"}'))) o), '["Asha", "I review teas"]'::jsonb, 'the merchant sees who asks');
select is(pg_temp.refusal('stranger', 'campaign_affiliate_approve', pg_temp.c('{"merchant": 900002, "affiliate": 900011}')),
    '404 not_found: There is no such membership.', 'no other merchant decides');
select is(pg_temp.refusal('owner', 'campaign_affiliate_reject', pg_temp.c('{"affiliate": 900011}')), '{"reason": "is required"}', 'a reason is owed');
select is(pg_temp.one('owner', 'campaign_affiliate_reject', pg_temp.c('{"affiliate": 900011, "reason": "No site"}')) ->> 'state', 'rejected', 'rejected');
select is(pg_temp.refusal('asha', 'membership_create', pg_temp.c() - 'merchant'), '409 conflict: The merchant has rejected you: No site', 'and told why');
select is((select data ->> 'reason' from affiliate.notice where template = 'membership_rejected' and user_id = 900054), 'No site', 'by mail, too');
select is(pg_temp.one('owner', 'campaign_affiliate_approve', pg_temp.c('{"affiliate": 900011}')) ->> 'state', 'approved', 'approved after all');
select is(pg_temp.one('asha', 'membership_show', pg_temp.c() - 'merchant') ->> 'state', 'approved', 'as she sees');
select is(pg_temp.refusal('bikram', 'membership_show', pg_temp.c() - 'merchant'), '404 not_found: There is no such membership.', 'and nobody else');
select is(jsonb_array_length(pg_temp.data('asha', 'affiliate_campaign_list', '{"joined": "true"}')), 1, 'what she has joined');
select is(pg_temp.one('bikram', 'membership_create', '{"campaign": 900021}') ->> 'state', 'approved', 'an open one is joined at once');

-- What the redirect is told
create function pg_temp.leads(p_code text default 'tea-1')
returns smallint
language sql
as $$ select state from affiliate.link_projection where code = p_code $$;
insert into affiliate.link (merchant_id, link_id, campaign_id, affiliate_id, livemode, code, url)
select 900001, 900060 + n, (pg_temp.c() ->> 'campaign')::bigint, 900011, live, code, 'https://shop.example/tea'
  from (values (1, true, 'tea-1'), (2, false, 'tea-2')) v(n, live, code);
create function pg_temp.told()
returns bigint
language sql
as $$ with d as (delete from affiliate.projection_change where name in ('tea-1', 'tea-2') returning 1) select count(*) from d $$;
select pg_temp.told() \g /dev/null
create temp table versions as select version from affiliate.link_projection where code = 'tea-1';

select is(pg_temp.leads(), 1::smallint, 'the link leads');
select pg_temp.one('owner', 'campaign_update', pg_temp.c('{"rules": "None"}')) \g /dev/null
select is(pg_temp.told(), 0::bigint, 'new words are no news to the redirect');
select is(pg_temp.one('owner', 'campaign_pause', pg_temp.c()) ->> 'state', 'paused', 'paused');
select is(pg_temp.leads(), 2::smallint, 'its links stop');
select is(pg_temp.leads('tea-2'), 1::smallint, 'test links don''t');
select is(pg_temp.told(), 2::bigint, 'as is told');
select is(affiliate.is_active(suspended), true, 'but orders go on') from affiliate.campaign where campaign_id = (pg_temp.c() ->> 'campaign')::bigint;
select pg_temp.one('owner', 'campaign_activate', pg_temp.c()) \g /dev/null
select is(pg_temp.one('owner', 'campaign_affiliate_remove', pg_temp.c('{"affiliate": 900011, "reason": "Spam"}')) ->> 'state', 'removed', 'she is removed');
select is(pg_temp.leads(), 2::smallint, 'her links stop');
select is(pg_temp.told(), 4::bigint, 'as is told');
select pg_temp.one('owner', 'campaign_affiliate_approve', pg_temp.c('{"affiliate": 900011}')) \g /dev/null
select is(pg_temp.leads(), 1::smallint, 'taken back, they lead again');
select is(pg_temp.refusal('asha', 'membership_delete', pg_temp.c() - 'merchant'), '204', 'she leaves');
select is(pg_temp.leads(), 2::smallint, 'and they stop');
select is(pg_temp.refusal('owner', 'campaign_affiliate_approve', pg_temp.c('{"affiliate": 900011}')), '409 state: The membership is left.',
    'nobody takes her back against her will');
select is(pg_temp.one('asha', 'membership_create', pg_temp.c() - 'merchant') ->> 'state', 'applied', 'she may ask again');
select ok((select version from affiliate.link_projection where code = 'tea-1') > (select version from versions), 'versions count up');
update affiliate.merchant set decision = 'submitted' where merchant_id = 900001;
select is((pg_temp.leads('fixture-1'), pg_temp.leads('tea-2'))::text, '(2,1)', 'an unapproved merchant has test links only');
update affiliate.merchant set decision = 'approved' where merchant_id = 900001;

-- Suspended by an admin
select is(pg_temp.one('root', 'admin_campaign_suspend', pg_temp.c('{"reason": "Fake shop"}') - 'merchant') ->> 'state', 'suspended', 'suspended');
select is(pg_temp.leads('tea-2'), 2::smallint, 'also for test links');
select is(pg_temp.refusal('owner', 'admin_campaign_resume', pg_temp.c() - 'merchant'), '403 forbidden: This is not for you.', 'which no merchant undoes');
select is(pg_temp.one('root', 'admin_campaign_resume', pg_temp.c() - 'merchant') ->> 'state', 'active', 'resumed');

-- Creatives
insert into made select 'e', pg_temp.one('owner', 'creative_create', pg_temp.c('{"title": "Hot", "body": "Tea!\nMore tea!", "language": "ne"}'));
select is(pg_temp.one('asha', 'affiliate_campaign_show', pg_temp.c() - 'merchant') #>> '{creatives,0,body}', E'Tea!\nMore tea!', 'words for affiliates');
select is(pg_temp.refusal('stranger', 'creative_delete', (select pg_temp.c('{"merchant": 900002}') || jsonb_build_object('creative', j -> 'creative')
    from made where name = 'e')), '404 not_found: There is no such creative.', 'that no other merchant deletes');
select is(pg_temp.one('owner', 'campaign_close', pg_temp.c()) ->> 'state', 'closed', 'closed');
select is(pg_temp.refusal('owner', 'campaign_activate', pg_temp.c()), '409 state: The campaign is closed for good.', 'for good');

select * from finish();
rollback;
