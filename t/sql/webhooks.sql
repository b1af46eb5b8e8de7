-- Webhooks and postbacks: who is told what, when it is tried again, when that ends, and what their owners may do.

\ir support/calls.psql

select plan(102);

create temp sequence hook_clicks start 5000;
create function pg_temp.ordered(p_order text, p_status text default 'pending', p_link bigint default 900041, p_verdict integer default 0)
returns text
language sql
as $$
    select pg_temp.report(jsonb_build_object('order', p_order, 'status', p_status, 'amount', 100000, 'click',
        pg_temp.click(nextval('pg_temp.hook_clicks')::integer, p_verdict => p_verdict, p_link => p_link)))
$$;

create function pg_temp.said(p_order text, p_status text)
returns text
language sql
as $$ select pg_temp.answer('order_' || p_status, jsonb_build_object('order', p_order, 'reason', 'order_error') - case p_status when 'approve' then 'reason' else '' end) $$;

-- The events of an order to an endpoint, in order.
create function pg_temp.told(p_order text, p_endpoint bigint)
returns text
language sql
as $$
    select string_agg(v.type || ' ' || d.state, ', ' order by v.event_id)
      from affiliate.event v
      join affiliate.delivery d using (event_id)
     where v.data ->> 'order' = p_order
       and d.endpoint_id = p_endpoint
$$;

-- What was taken: deliveries of each endpoint.
create function pg_temp.taken(p_max integer default 1000)
returns text
language sql
as $$
    select string_agg(format('%s:%s', n, c), ' ' order by n)
      from (select d.endpoint_id as n, count(*) as c
              from affiliate.webhook_take(p_max, '1 minute') t
              join affiliate.delivery d using (delivery_id)
             group by 1) x
$$;

-- What an answer does to all that is taken from one endpoint.
create function pg_temp.answered(p_endpoint bigint, p_said jsonb)
returns bigint
language sql
as $$
    select affiliate.webhook_done(coalesce(jsonb_agg('{"ok": false, "gone": false, "latency_ms": 5}'::jsonb || p_said || jsonb_build_object('delivery', d.delivery_id, 'taken', d.next_at)), '[]'))
      from affiliate.delivery d
     where d.endpoint_id = p_endpoint
       and d.state = 'waiting'
       and d.taken
$$;

-- Nobody asked
select pg_temp.ordered('n1', 'approved') \g /dev/null
select is((select count(*) from affiliate.event), 0::bigint, 'nobody asked: nothing is written');
select lives_ok($$select affiliate.emit('bill.issued', 900001, null, true, '1', '{}')$$, 'told of a bill, too');
select is((select count(*) from affiliate.event), 0::bigint, 'that is not written either');

-- Making endpoints
create function pg_temp.hook(p_more jsonb default '{}', p_who text default 'manager')
returns text
language sql
as $$
    select pg_temp.answer('webhook_create', '{"url": "https://hooks.shop.example/in?a=1", "types": ["order.pending", "order.approved", "order.payable", "order.cancelled"], "_secret": "aa"}' || p_more, p_who)
$$;
select is(pg_temp.hook(), '201', 'a webhook');
select is(pg_temp.hook('{"livemode": false, "url": "http://hooks.shop.example:8080/"}'), '201', 'one of test mode, in the clear');
select is(pg_temp.hook('{"url": "http://hooks.shop.example/"}'), '422 url: must be https; http is for test mode alone', 'a live one, not so');
select is(pg_temp.hook(jsonb_build_object('url', u)), '422 url: must be an absolute https URL at a name, without userinfo or fragment', 'refused: ' || u)
  from unnest('{https://127.0.0.1/,https://[::1]/,https://2130706433/,https://0x7f.1/,https://localhost/,https://a:b@shop.example/,https://shop.example/#x,ftp://shop.example/,shop.example,"https://shop.example/{sub1}",https://}'::text[]) u;
select is(pg_temp.hook('{"url": "https://shop.example:25/"}'), '422 url: must have the port 443, 80 or one from 1024', 'no mail server');
select is(pg_temp.hook('{"types": ["order.nothing"]}'),
    '422 types: must be of order.pending, order.approved, order.payable, order.rejected, order.cancelled, order.refunded, order.review, bill.issued, bill.paid', 'an unknown type');
select is(pg_temp.hook('{"types": []}'), '422 types: must have 1 to 50 values', 'no type');
select is(pg_temp.hook('{}', 'reader'), '403 forbidden: This is for a member with the role manager.', 'who only reads makes none');
select is(pg_temp.hook('{}', 'other'), '404 not_found: There is no such merchant.', 'nor a stranger');
select is(pg_temp.hook('{}', 'asha'), '404 not_found: There is no such merchant.', 'nor an affiliate');

create function pg_temp.postback(p_url text, p_more jsonb default '{}', p_who text default 'asha')
returns text
language sql
as $$
    select pg_temp.answer('postback_create', jsonb_build_object('url', p_url, 'types', jsonb_build_array('order.approved', 'payout.paid'), 'merchant', null) || p_more, p_who)
$$;
select is(pg_temp.postback('https://t.asha.example/p?s={sub1}&c={commission}&id={event_id}'), '201', 'a postback');
select is(pg_temp.postback('https://t.bikram.example/?{status}', '{"campaign": 900022}', 'bikram'), '201', 'one of a campaign');
select matches(pg_temp.postback('https://t.asha.example/?x={subject}'), '^422 url: has the unknown macro \{subject\}; there are amount, ', 'an unknown macro is named');
select is(pg_temp.postback('https://{sub1}.asha.example/'), '422 url: must not have macros in its host', 'no macro tells where to');
select is(pg_temp.postback('https://t.asha.example/?{sub1'), '422 url: must be an absolute https URL at a name, without userinfo or fragment', 'a brace that stays open');
select is(pg_temp.postback('https://t.asha.example/', '{"types": ["bill.paid"]}'),
    '422 types: must be of order.pending, order.approved, order.payable, order.rejected, order.cancelled, order.refunded, order.review, payout.requested, payout.approved, payout.paid, payout.failed, payout.rejected, payout.unknown', 'bills are no business of affiliates');
select is(pg_temp.postback('https://t.asha.example/', '{}', 'manager'), '403 forbidden: This is not for you.', 'a merchant has no postbacks');

create temp table e as
select (select endpoint_id from affiliate.endpoint where kind = 'webhook' and livemode) as hook,
       (select endpoint_id from affiliate.endpoint where kind = 'webhook' and not livemode) as test,
       (select endpoint_id from affiliate.endpoint where affiliate_id = 900011) as asha,
       (select endpoint_id from affiliate.endpoint where affiliate_id = 900012) as bikram;

-- Who is told
select pg_temp.ordered('h1') \g /dev/null
select is(pg_temp.told('h1', hook), 'order.pending waiting', 'a new order is told') from e;
select is(pg_temp.told('h1', asha), null, 'not to whom it does not matter') from e;
select is(pg_temp.told('h1', test), null, 'nor in test mode') from e;
select pg_temp.said('h1', 'approve') \g /dev/null
select is(pg_temp.told('h1', hook), 'order.pending waiting, order.approved waiting', 'its approval') from e;
select is(pg_temp.told('h1', asha), 'order.approved waiting', 'to the affiliate, too') from e;
select is(pg_temp.told('h1', bikram), null, 'not to another') from e;
select pg_temp.answer('order_refund', '{"order": "h1", "amount": "10.00", "refund_id": "r1", "reason": "item_returned"}') \g /dev/null
select is(pg_temp.told('h1', hook), 'order.pending waiting, order.approved waiting', 'what leaves its state is not told') from e;
update affiliate.hold set due_at = now() - interval '1 minute' where order_no = (select order_no from affiliate.order_fact where order_id = 'h1');
select affiliate.release_holds(10) \g /dev/null
select is(pg_temp.told('h1', hook), 'order.pending waiting, order.approved waiting, order.payable waiting', 'its release') from e;
select pg_temp.said('h1', 'cancel') \g /dev/null
select is(pg_temp.told('h1', hook), 'order.pending waiting, order.approved waiting, order.payable waiting, order.cancelled waiting', 'its end') from e;
select pg_temp.ordered('h2', 'approved', 900042) \g /dev/null
select is(pg_temp.told('h2', hook), 'order.approved waiting', 'an order that comes approved') from e;
select is(pg_temp.told('h2', bikram), null, 'not to a postback of another campaign') from e;
select is((select count(*) from affiliate.event where data ->> 'order' = 'h1'), 4::bigint, 'one event for all who are told');

-- What is told
select is((select v.data - '{order_no,click,reported_at}'::text[] from affiliate.event v where v.data ->> 'order' = 'h1' and v.type = 'order.payable'),
    '{"order": "h1", "merchant": 900001, "livemode": true, "state": "payable", "reason": null, "affiliate": 900011, "campaign": 900021, "sub_ids": [],
      "amount": "1000.00", "refunded": "10.00", "currency": "NPR", "commission": "99.00", "fee": "19.80", "commission_currency": "NPR"}'::jsonb, 'an order''s event');
select matches(affiliate.event_body(v), '^\{"type":"order\.payable","timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z","data":\{.*\}\}$', 'its body')
  from affiliate.event v where v.data ->> 'order' = 'h1' and v.type = 'order.payable';
select is(affiliate.postback_values(v) ->> 'commission' || ' ' || (affiliate.postback_values(v) ->> 'status') || ' ' || (affiliate.postback_values(v) ->> 'livemode'), '99.00 payable true', 'its macros')
  from affiliate.event v where v.data ->> 'order' = 'h1' and v.type = 'order.payable';
select is((select count(*) from affiliate.event v, jsonb_each_text(affiliate.postback_values(v)) m where v.data ->> 'order' = 'h1' and m.value = 'h1'), 0::bigint, 'not the merchant''s id of the order');
select throws_ok($$update affiliate.event set type = 'x'$$, null, null, 'an event never changes');
select ok((select max(octet_length(affiliate.event_body(v))) < 20480 from affiliate.event v), 'it is small');

-- Payouts
select affiliate.emit('payout.paid', null, 900011, true, '7', '{"payout": 7, "state": "paid", "net": "510.00", "currency": "NPR"}') \g /dev/null
select is((select string_agg(d.endpoint_id::text, ' ') from affiliate.event v join affiliate.delivery d using (event_id) where v.type = 'payout.paid'), asha::text, 'a payout is told to whom it is paid') from e;
select is(affiliate.postback_values(v) ->> 'commission' || ' ' || (affiliate.postback_values(v) ->> 'currency'), '510.00 NPR', 'with what arrives') from affiliate.event v where v.type = 'payout.paid';

-- Taking: a share each
select pg_temp.ordered('m' || n) from generate_series(1, 20) n \g /dev/null
select is(pg_temp.taken(), format('%s:8 %s:2', hook, asha), 'of each endpoint eight') from e;
select is(pg_temp.taken(), null, 'while they are under way, no more');
select is(pg_temp.answered(hook, '{"ok": true, "status": 200}'), 0::bigint, 'delivered') from e;
select is(pg_temp.taken(3), format('%s:3', hook), 'the next, as many as there is room for') from e;
select is((select count(*) from affiliate.delivery where state = 'delivered'), 8::bigint, 'eight have arrived');
select is((select count(*) from affiliate.delivery_attempt where status = 200 and attempt = 1), 8::bigint, 'each attempt is noted');
update affiliate.delivery set next_at = now() - interval '1 second' where taken and state = 'waiting';
select is(pg_temp.taken(), format('%s:8 %s:2', hook, asha), 'what was taken and is not heard of is taken again') from e;
select is((select count(*) from affiliate.delivery d where affiliate.webhook_done(jsonb_build_array(jsonb_build_object('delivery', d.delivery_id, 'taken', now() - interval '5 minutes', 'ok', false, 'gone', false, 'latency_ms', 1))) is null and d.state = 'waiting' and d.taken and d.tries > 0), 0::bigint,
    'who comes too late to fail changes nothing');

-- Failing
update affiliate.delivery set state = 'dropped', taken = false where delivery_id not in (select min(delivery_id) from affiliate.delivery, e where endpoint_id = hook and taken and state = 'waiting');
create temp table d as select min(delivery_id) as id from affiliate.delivery where state = 'waiting';
select is(pg_temp.answered(hook, '{"status": 500, "error": "status 500", "answer": "oops"}'), 0::bigint, 'it fails') from e;
select is((select state || ' ' || tries || ' ' || status || ' ' || error from affiliate.delivery, d where delivery_id = id), 'waiting 1 500 status 500', 'and waits');
select ok((select next_at - now() between interval '4 s' and interval '6 s' from affiliate.delivery, d where delivery_id = id), 'for five seconds');
select ok((select failing_since = now() from affiliate.endpoint, e where endpoint_id = hook), 'since when, is noted');
create function pg_temp.again(p_said jsonb default '{}') returns bigint language sql as $$
    update affiliate.delivery set next_at = now() where delivery_id = (select id from d);
    select count(*) from affiliate.webhook_take(10, '1 minute');
    select pg_temp.answered((select hook from e), '{"status": 503}' || p_said)
$$;
select is(pg_temp.again('{"retry_after": 3600}'), 0::bigint, 'it says when to come back');
select ok((select next_at = now() + interval '1 hour' from affiliate.delivery, d where delivery_id = id), 'then it is');
select is(pg_temp.again('{"retry_after": 999999}'), 0::bigint, 'it says in days');
select ok((select next_at = now() + interval '1 day' from affiliate.delivery, d where delivery_id = id), 'a day at most');
select is((select array_agg(pg_temp.again()) from generate_series(4, 9)), '{0,0,0,0,0,0}', 'it is tried nine times');
select ok((select next_at - now() between interval '19 h' and interval '29 h' from affiliate.delivery, d where delivery_id = id), 'the last pause is a day');
select is(pg_temp.again(), 1::bigint, 'the tenth is the last');
select is((select state || ' ' || tries from affiliate.delivery, d where delivery_id = id), 'failed 10', 'it failed');
select is((select count(*) from affiliate.delivery_attempt, d where delivery_id = id), 10::bigint, 'ten attempts are noted');

-- Again, by hand
select is(pg_temp.answer('webhook_delivery_resend', jsonb_build_object('delivery', id::text)), '202', 'sent again by hand') from d;
select is((select state || ' ' || tries || ' ' || total_tries from affiliate.delivery, d where delivery_id = id), 'waiting 0 10', 'it waits as at first');
select is(pg_temp.answer('webhook_delivery_resend', jsonb_build_object('delivery', id::text), 'reader'), '403 forbidden: This is for a member with the role manager.', 'not by who only reads') from d;
select is(pg_temp.answer('webhook_delivery_show', jsonb_build_object('delivery', id::text, 'merchant', '900002'), 'other'), '404 not_found: There is no such delivery.', 'others do not see it') from d;
select is(pg_temp.answer('postback_delivery_show', jsonb_build_object('delivery', id::text, 'merchant', null), 'asha'), '404 not_found: There is no such delivery.', 'nor does the affiliate') from d;
select is((select jsonb_array_length(r -> 'attempts') || ' ' || (r ->> 'type') from d, pg_temp.rows('webhook_delivery_show', jsonb_build_object('delivery', id::text)) r), '10 order.pending', 'its story');

-- Disabled
select is(pg_temp.answer('webhook_ping', jsonb_build_object('webhook', hook::text)), '202', 'a ping') from e;
select is(pg_temp.again('{"status": 410, "gone": true}'), 2::bigint, 'gone');
select is((select format('%s %s', active, disabled_reason) from affiliate.endpoint, e where endpoint_id = hook), 'f gone', 'it is disabled');
select is((select count(*) from affiliate.delivery, e where endpoint_id = hook and state = 'waiting'), 0::bigint, 'nothing waits for it');
select is((select string_agg(n.template || ' ' || p.name, ', ') from affiliate.notice n join affiliate.person p using (user_id) where n.template like 'webhook%'), 'webhook_disabled_gone owner', 'its owner is told');
select is(pg_temp.answer('webhook_ping', jsonb_build_object('webhook', hook::text)), '409 state: The webhook is not active; nothing is sent to it.', 'no ping any more') from e;
select is(pg_temp.call('manager', 'webhook_update', jsonb_build_object('merchant', '900001', 'webhook', hook::text, 'active', true), '{"if_match": "\"1\""}') ->> 'error', 'AF412', 'of another version') from e;
select is(pg_temp.answer('webhook_update', jsonb_build_object('webhook', hook::text, 'active', true)), '200', 'enabled again') from e;
select is((select format('%s %s %s', active, disabled_reason is null, failing_since is null) from affiliate.endpoint, e where endpoint_id = hook), 't t t', 'it is') from e;
select pg_temp.answer('webhook_ping', jsonb_build_object('webhook', hook::text)) from e \g /dev/null
update affiliate.endpoint set failing_since = now() - interval '6 days' from e where endpoint_id = hook;
select pg_temp.taken() \g /dev/null
select pg_temp.answered(hook, '{"status": 500}') from e \g /dev/null
select is((select disabled_reason from affiliate.endpoint, e where endpoint_id = hook), 'failing', 'after five days of failing it is disabled');

-- Rotation, removal, forgetting
select is(pg_temp.answer('webhook_rotate', jsonb_build_object('webhook', hook::text, '_secret', 'bb')), '200', 'another secret') from e;
select is((select format('%s %s %s', secret, previous_secret, previous_until = now() + interval '1 day') from affiliate.endpoint, e where endpoint_id = hook), 'bb aa t', 'the one before signs for a day');
select is((select count(*) from e, pg_temp.rows('webhook_show', jsonb_build_object('webhook', hook::text)) r where r::text ~ '"(aa|bb)"'), 0::bigint, 'no answer shows it');
select is((select count(*) from affiliate.audit_record a where a.kind = 'webhook' and (a."from"::text || a."to"::text) ~ '"(aa|bb)"'), 0::bigint, 'nor do the records');
select is(pg_temp.answer('webhook_delete', jsonb_build_object('webhook', hook::text)), '204', 'removed') from e;
select is(pg_temp.answer('webhook_show', jsonb_build_object('webhook', hook::text)), '404 not_found: There is no such webhook.', 'it is gone') from e;
select is((select count(*) from e, pg_temp.rows('webhook_delivery_list', jsonb_build_object('webhook', hook::text, 'limit', '200'))), (select count(*) from affiliate.delivery, e where endpoint_id = hook), 'what was sent is still to be seen');
select is((select string_agg(distinct r ->> 'state', ' ') from pg_temp.rows('webhook_delivery_list', '{"state": "dropped", "type": "order.pending", "limit": "200"}') r), 'dropped', 'by state and type');
select is((select count(*) from pg_temp.rows('webhook_delivery_list', '{}', 'ak_test_fixture1')), 0::bigint, 'a test key sees those of test mode');
select is(pg_temp.answer('webhook_update', jsonb_build_object('webhook', test::text, 'active', false), 'ak_live_fixture1'), '404 not_found: There is no such webhook.', 'a live key touches none of test mode') from e;
select is(pg_temp.answer('webhook_update', jsonb_build_object('webhook', test::text, 'active', false), 'ak_test_fixture1'), '200', 'a test key does') from e;
update affiliate.delivery set state = 'dropped' where state = 'waiting';
select is((select count(*) from affiliate.webhook_forget('1 hour')), 1::bigint, 'forgetting');
select ok((select count(*) > 0 from affiliate.event), 'nothing is that old');
select ok(affiliate.webhook_forget('-1 hour') > 0, 'what is over');
select is((select count(*) from affiliate.delivery_attempt), 0::bigint, 'goes with its attempts');

select * from finish();
rollback;
