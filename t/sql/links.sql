-- Links as affiliates make them: where they may lead, their codes, who may touch them, and what stops them; test links.

\ir support/catalogue.psql

select plan(78);

create temp table made (name text primary key, j jsonb);

select is(pg_temp.one('asha', 'membership_create', '{"campaign": 900021}') ->> 'state', 'approved', 'she joins');
insert into made select 'l', pg_temp.one('asha', 'link_create', '{"campaign": 900021, "url": "https://www.shop.example/tea?color=green",
    "name": "Tea story", "sub_ids": {"sub1": "story", "sub3": "bio"}}');
select is((select j - '{link,short_url,created_at}'::text[] from made),
    '{"url": "https://www.shop.example/tea?color=green", "name": "Tea story", "sub_ids": {"sub1": "story", "sub3": "bio"}, "merchant": 900001,
      "merchant_name": "Shop", "campaign": 900021, "campaign_name": "Everything", "affiliate": 900011, "livemode": true, "state": "active",
      "leads": true, "stopped_because": null, "expires_at": null, "version": 1}'::jsonb, 'and makes a link');
select matches((select j ->> 'link' from made), '^[2-9a-hj-km-np-z]{10}$', 'its code has no letters that look alike');
select is((select j ->> 'short_url' from made), (select '/r/' || (j ->> 'link') || '?sub1=story&sub3=bio' from made), 'its short URL has the sub-ids');
select is((select state from affiliate.link_projection where code = (select j ->> 'link' from made)), 1::smallint, 'the redirect is told');
select is((select r - 'location' from pg_temp.call('asha', 'link_create', '{"campaign": 900021, "url": "https://shop.example/"}') r limit 1),
    '{"status": 201, "etag": "\"1\""}'::jsonb, 'created');

create function pg_temp.l(p_more jsonb default '{}', p_name text default 'l')
returns jsonb
language sql
as $$ select jsonb_build_object('link', j -> 'link') || p_more from made where name = p_name $$;
create function pg_temp.try(p_more jsonb)
returns text
language sql
as $$ select pg_temp.refusal('asha', 'link_create', '{"campaign": 900021, "url": "https://shop.example/"}' || p_more) $$;

-- Where it may lead
select is(pg_temp.try('{"url": "https://evil.example/"}'), 'url: its host evil.example is not one of the merchant''s: shop.example, *.shop.example', 'another host');
select is(pg_temp.try('{"url": "https://shop.example@evil.example/"}'), 'url: must be an absolute http or https URL without userinfo', 'userinfo');
select is(pg_temp.try('{"url": "https://shop.example.evil.example/"}') like 'url: its host%', true, 'a host that begins alike');
select is(pg_temp.try('{"url": "javascript:alert(1)"}'), 'url: must be an absolute http or https URL without userinfo', 'no page');
select is(pg_temp.try('{"url": "//shop.example/"}'), 'url: must be an absolute http or https URL without userinfo', 'no scheme');
select is(pg_temp.refusal('asha', 'link_update', pg_temp.l('{"url": "https://evil.example/"}')) like 'url: its host%', true, 'nor by an update');
insert into affiliate.site_verification (merchant_id, host, method, challenge) values (900001, 'shop.example', 'dns', 'c');
select is(pg_temp.try('{}'), 'url: the merchant has not proved yet that its host shop.example is its own', 'a host that is not verified');
select is(pg_temp.refusal('owner', 'test_link_create', '{"merchant": 900001, "campaign": 900021, "url": "https://shop.example/"}'), '201', 'which a test link may lead to');
update affiliate.site_verification set state = 'verified';
select is(pg_temp.try('{"name": "verified"}'), '201', 'one that is');
select is(pg_temp.try('{"campaign": 900022}'), '409 state: You have not joined this campaign.', 'a campaign that she has not joined');
select is(pg_temp.try('{"campaign": 900999}'), 'campaign: there is none with this id that is open', 'none');
select is(pg_temp.try('{"expires_at": "2020-01-01T00:00:00Z"}'), 'expires_at: must not be in the past', 'expired before it begins');
select is(pg_temp.try('{"sub_ids": {"sub6": "x"}}'), 'sub_ids: has other names than sub1 to sub5', 'a sixth sub-id');
select is(pg_temp.try('{"sub_ids": {"sub1": "a&b=c"}}'), 'sub1: must consist of letters, digits and . _ ~ -', 'one that would be two');
select is(pg_temp.try('{"livemode": false}'), '201', 'livemode is for others: hers are live');
select is((select livemode from affiliate.link where affiliate_id = 900011 order by link_id desc limit 1), true, 'as it is');

-- Aliases
select is(pg_temp.try('{"code": "asha-tea"}'), '201', 'a code of her own');
select is(pg_temp.try('{"code": "asha-tea"}'), 'code: is taken', 'once');
select is(pg_temp.refusal('bikram', 'membership_create', '{"campaign": 900021}'), '201', 'another affiliate');
select is(pg_temp.refusal('bikram', 'link_create', '{"campaign": 900021, "url": "https://shop.example/", "code": "asha-tea"}'), 'code: is taken', 'for all');
select is(pg_temp.try('{"code": "fixture-1"}'), 'code: is taken', 'also where the command line made it');
select is(pg_temp.try(jsonb_build_object('code', c)), 'code: must have 4 to 32 characters: a to z, 0 to 9, and single - and _ between them', 'no code: ' || c)
  from unnest('{abc,Tea-1,tea--1,-tea,tea_,te.a,té-1,te/a,aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}'::text[]) c;
select is(pg_temp.try(jsonb_build_object('code', c)), 'code: is reserved', 'reserved: ' || c)
  from unnest('{admin,4dm1n,a-d-m-i-n,log-in,esewa-free,my-k4lt1-khalti,3sewa,sh1t-tea,wallet}'::text[]) c;
select is(pg_temp.try('{"code": "shopping"}'), '201', 'part of a word is not the word');
select is(bool_and(affiliate.is_reserved(w.word)), true, 'every word that is reserved is') from affiliate.reserved_word w;

-- Who may touch it
select is(pg_temp.refusal('bikram', op, pg_temp.l(case op when 'link_update' then '{"name": "x"}' else '{}' end::jsonb)), '404 not_found: There is no such link.', 'not another affiliate: ' || op)
  from unnest('{link_show,link_update,link_pause,link_delete}'::text[]) op;
select is(pg_temp.refusal('owner', 'test_link_delete', pg_temp.l('{"merchant": 900001}')), '404 not_found: There is no such link.', 'nor the merchant');
select is(pg_temp.refusal('owner', 'link_show', pg_temp.l()), '403 forbidden: This is not for you.', 'who has a list of his own');
select is((select l ->> 'affiliate_name' from jsonb_array_elements(pg_temp.data('owner', 'merchant_link_list', '{"merchant": 900001, "q": "tea story"}')) l), 'Asha', 'of all links');
select is(pg_temp.data('stranger', 'merchant_link_list', '{"merchant": 900002, "q": "story"}'), '[]'::jsonb, 'that others don''t see');
select is(pg_temp.refusal('bikram', 'link_list', '{"campaign": "x"}'), 'campaign: must be an id, a whole number from 1', 'a filter that is none');

-- Its life
select is(pg_temp.refusal('asha', 'link_update', pg_temp.l('{"name": "B"}'), '{"if_match": "\"9\""}'), '412 precondition_failed: It was changed meanwhile: its version is 1.', 'another version');
select is(pg_temp.one('asha', 'link_update', pg_temp.l('{"name": null, "sub_ids": {}}')) ->> 'short_url', (select '/r/' || (j ->> 'link') from made), 'an update');
select is(pg_temp.one('asha', 'link_pause', pg_temp.l()) ->> 'stopped_because', 'The link is paused.', 'paused');
select is((select state from affiliate.link_projection where code = (select j ->> 'link' from made)), 2::smallint, 'the redirect is told');
select is(pg_temp.one('asha', 'link_resume', pg_temp.l()) ->> 'leads', 'true', 'resumed');
update affiliate.link set expires_at = now() where code = (select j ->> 'link' from made);
select is(pg_temp.one('asha', 'link_show', pg_temp.l()) ->> 'state', 'expired', 'expired');
select is(pg_temp.data('asha', 'link_list', '{"state": "expired"}') -> 0 ->> 'link', (select j ->> 'link' from made), 'found as such');
select is(pg_temp.one('asha', 'link_update', pg_temp.l('{"expires_at": null}')) ->> 'state', 'active', 'for ever');
select pg_temp.one('owner', 'campaign_pause', '{"merchant": 900001, "campaign": 900021}') \g /dev/null
select is(pg_temp.one('asha', 'link_show', pg_temp.l()) ->> 'stopped_because', 'The campaign is paused.', 'she is told what stops it');
select is(pg_temp.try('{}'), 'campaign: there is none with this id that is open', 'and makes no other');
select pg_temp.one('owner', 'campaign_activate', '{"merchant": 900001, "campaign": 900021}') \g /dev/null
update affiliate.catalogue_policy set links_most = (select count(*) from affiliate.link where affiliate_id = 900011 and campaign_id = 900021 and state <> 'removed');
select is(pg_temp.try('{}') like '409 limit:%', true, 'there is a most');
select is(pg_temp.refusal('asha', 'link_delete', pg_temp.l()), '204', 'removed');
select is(pg_temp.try('{}'), '201', 'removed ones don''t count');
select is(pg_temp.refusal('asha', 'link_resume', pg_temp.l()), '409 state: The link was removed.', 'it stays so');
select is(pg_temp.try('{}'), '409 limit: You have ' || (select links_most from affiliate.catalogue_policy)
    || ' links in this campaign, the most there may be.', 'and the new one does');
select is((select string_agg(action, ' ' order by audit_id) from affiliate.audit_record where kind = 'link' and id = (select j ->> 'link' from made)),
    'link_create link_update link_paused link_active link_update link_removed', 'all of it is on record');
update affiliate.affiliate set decision = 'submitted' where affiliate_id = 900012;
select is(pg_temp.refusal('bikram', 'link_create', '{"campaign": 900021, "url": "https://shop.example/"}'), '403 not_approved: Your account has not been approved yet.', 'an affiliate that is not approved');

-- Test links
insert into made select 'd', pg_temp.one('owner', 'campaign_create', '{"merchant": 900001, "name": "Draft", "currency": "NPR", "terms": {"rate_percent": 5}}');
insert into made select 't', pg_temp.one('owner', 'test_link_create', jsonb_build_object('merchant', 900001, 'campaign', (select j -> 'campaign' from made where name = 'd'), 'url', 'https://shop.example/'));
select is((select (j -> 'livemode', j -> 'leads')::text from made where name = 't'), '(false,true)', 'a test link leads, also in a draft');
select is((select a.name from affiliate.test_affiliate t join affiliate.affiliate a using (affiliate_id) where t.merchant_id = 900001), 'Test of Shop', 'it is an affiliate''s of nobody');
select is(pg_temp.refusal('owner', 'test_link_create', jsonb_build_object('merchant', 900001, 'campaign', 900021, 'url', 'https://evil.example/')) like 'url: its host%', true, 'nor may it lead elsewhere');
select is(pg_temp.refusal('stranger', 'test_link_delete', pg_temp.l('{"merchant": 900002}', 't')), '404 not_found: There is no such link.', 'no other merchant removes it');
select is(pg_temp.refusal('owner', 'test_link_delete', pg_temp.l('{"merchant": 900001}', 't')), '204', 'its own does');

select * from finish();
rollback;
