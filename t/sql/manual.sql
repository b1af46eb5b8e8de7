-- Orders by hand and by file, as a merchant's people call it.

\ir support/calls.psql

select plan(99);

update affiliate.affiliate set email = 'asha@people.example' where affiliate_id = 900011;

-- Reports an order of 1000.00 with a click of its own, two hours ago.
create temp sequence order_clicks start 1000;
create function pg_temp.ordered(p_order text, p_status text default 'pending', p_amount bigint default 100000, p_verdict integer default 0)
returns text
language sql
as $$
    select pg_temp.report(jsonb_build_object('order', p_order, 'status', p_status, 'click',
        pg_temp.click(nextval('pg_temp.order_clicks')::integer, p_verdict => p_verdict))
        || case when p_amount is null then '{}' else jsonb_build_object('amount', p_amount) end)
$$;

create function pg_temp.shown(p_order text)
returns jsonb
language sql
as $$ select r from pg_temp.rows('order_show', jsonb_build_object('order', p_order)) r $$;

create function pg_temp.state(p_order text)
returns text
language sql
as $$ select concat_ws(' ', s ->> 'state', s ->> 'amount', s ->> 'refunded', s ->> 'commission') from pg_temp.shown(p_order) s $$;

-- By hand
select pg_temp.ordered('h1') \g /dev/null
select is(pg_temp.answer('order_approve', '{"order": "h1"}'), '200', 'approved by hand');
select is(pg_temp.state('h1'), 'approved 1000.00 0.00 100.00', 'it is');
select is((select s ->> 'changed' from pg_temp.rows('order_approve', '{"order": "h1"}') s), 'false', 'again, it changes nothing');
select is((select count(*) from affiliate.conversion where order_id = 'h1'), 2::bigint, 'and is no other event');
select is(pg_temp.answer('order_refund', '{"order": "h1", "amount": "250.50", "currency": "NPR", "refund_id": "r1", "reason": "item_returned"}'),
    '200', 'a part refunded');
select is(pg_temp.state('h1'), 'approved 1000.00 250.50 74.95', 'it is');
select is(pg_temp.answer('order_refund', '{"order": "h1", "amount": "250.50", "refund_id": "r1", "reason": "item_returned"}'),
    '200', 'the same refund again');
select is(pg_temp.state('h1'), 'approved 1000.00 250.50 74.95', 'counts once');
select is(pg_temp.answer('order_return', '{"order": "h1", "amount": "49.50", "refund_id": "r2", "reason": "other", "note": "a gift"}'),
    '200', 'a part returned');
select is(pg_temp.state('h1'), 'approved 1000.00 300.00 70.00', 'counts, too');
select is(pg_temp.answer('order_approve', '{"order": "h1", "amount": "900.00", "reason": "order_update"}'), '200', 'another amount');
select is(pg_temp.state('h1'), 'approved 900.00 300.00 60.00', 'is the order''s');
select is(pg_temp.answer('order_cancel', '{"order": "h1", "reason": "fraud", "note": "stolen card"}'), '200', 'cancelled');
select is(pg_temp.state('h1'), 'cancelled 900.00 300.00 0.00', 'nothing is left');
select is((select count(*) from pg_temp.books()), 0::bigint, 'of any money');

select is((select string_agg(concat_ws(' ', e ->> 'source', e ->> 'status', e -> 'by' ->> 'name', e ->> 'reason'), ', ' order by n)
             from jsonb_array_elements(pg_temp.shown('h1') -> 'timeline') with ordinality as t(e, n)),
    'call pending, hand approved manager, hand refunded manager item_returned, hand returned manager other: a gift, '
    || 'hand approved manager order_update, hand cancelled manager fraud: stolen card', 'the timeline tells who did what');
select is((select count(*) from jsonb_path_query(pg_temp.shown('h1'), '$.** ? (@.type() == "string" && @ like_regex "@people")')), 0::bigint,
    'and nobody''s address');
select is((select string_agg(a.action || ' ' || coalesce(a.reason, '-'), ', ' order by a.audit_id)
             from affiliate.audit_record a where a.kind = 'order' and a.id = 'h1'),
    'order.approve -, order.refund item_returned, order.return other: a gift, order.approve order_update, order.cancel fraud: stolen card',
    'each is audited');
select is((select a."from" ->> 'state' || ' ' || (a."to" ->> 'state') || ' ' || a.user_id from affiliate.audit_record a
            where a.id = 'h1' and a.action = 'order.cancel'), 'approved cancelled 900102', 'with before, after and who');
select is((select count(*) from affiliate.hand_batch b
             join affiliate.conversion c on c.merchant_id = b.merchant_id and c.spool_id = 0 and c.segment = b.batch_id
            where c.order_id = 'h1' and b.user_id = 900102 and b.source = 4 and c.source = 4), 5::bigint, 'each event has its batch');

select pg_temp.ordered('h2') \g /dev/null
select is(pg_temp.answer('order_approve', '{"order": "h2"}', p_key => 'once'), '200', 'with an idempotency key');
select is(pg_temp.answer('order_approve', '{"order": "h2"}', p_key => 'once'), '200 replayed', 'the same answer');
select is(pg_temp.answer('order_approve', '{"order": "h1"}', p_key => 'once'),
    '422 idempotency_conflict: This Idempotency-Key was used with another body.', 'not for another order');
select is(pg_temp.answer('order_refund', '{"order": "h2", "reason": "item_returned"}'), '200', 'refunded whole');
select is(pg_temp.state('h2'), 'refunded 1000.00 1000.00 0.00', 'it is');
select is((select s ->> 'changed' from pg_temp.rows('order_return', '{"order": "h2", "reason": "item_returned"}') s), 'false',
    'returned whole is the same');

-- When it was
select pg_temp.ordered('h3') \g /dev/null
select is(pg_temp.answer('order_approve', jsonb_build_object('order', 'h3', 'occurred_at', to_char(now() - interval '90 minutes',
    'YYYY-MM-DD"T"HH24:MI:SS"Z"'))), '200', 'approved some time ago');
select is((select date_trunc('second', approved_at) from affiliate.order_fact where order_id = 'h3'),
    date_trunc('second', now() - interval '90 minutes'), 'the hold begins there');

-- What makes no sense
select pg_temp.ordered('n-pending') \g /dev/null
select pg_temp.ordered('n-bot', p_verdict => 5) \g /dev/null
select pg_temp.ordered('n-unpriced', p_amount => null) \g /dev/null
select pg_temp.ordered('n-review', p_verdict => 2) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'n-waits', 'status', 'pending', 'amount', 1,
    'click', pg_temp.click_id(77, now() - interval '3 hours'))) \g /dev/null

select is(pg_temp.answer(t.operation, t.request::jsonb), t.answer, t.operation || ' ' || t.request)
  from (values
    ('order_approve', '{"order": "h1"}', '409 order_cancelled: The order was cancelled on '
        || (select affiliate.utc_text(cancelled_at) from affiliate.order_fact where order_id = 'h1') || ', which is final.'),
    ('order_refund', '{"order": "h1", "reason": "item_returned"}', '409 order_cancelled: The order was cancelled on '
        || (select affiliate.utc_text(cancelled_at) from affiliate.order_fact where order_id = 'h1') || ', which is final.'),
    ('order_cancel', '{"order": "h2", "reason": "fraud"}',
        '409 order_returned: The whole order was returned or refunded already.'),
    ('order_approve', '{"order": "h2"}', '409 order_returned: The whole order was returned or refunded already.'),
    ('order_approve', '{"order": "n-bot"}', '409 order_rejected: The order is rejected, and this does not change it: '
        || 'The click came from a declared bot.'),
    ('order_approve', '{"order": "n-waits"}',
        '409 order_waiting: The order was reported, but its click has not arrived yet; nothing can be said of it before.'),
    ('order_approve', '{"order": "none"}', '404 not_found: No order with this id has been reported in this mode; only a call with '
        || 'a click_id can do so.'),
    ('order_approve', '{"order": "n-unpriced"}', '422 amount: The amount of the order is not known; its approval has to tell it.'),
    ('order_refund', '{"order": "n-unpriced", "amount": "1.00", "refund_id": "r", "reason": "fraud"}',
        '422 amount: The amount of the order is not known; it can only be returned or refunded whole.'),
    ('order_refund', '{"order": "n-pending", "amount": "1000.01", "refund_id": "r", "reason": "fraud"}',
        '422 amount: Only 1000.00 NPR of the order is left.'),
    ('order_refund', '{"order": "n-pending", "amount": "0.00", "refund_id": "r", "reason": "fraud"}',
        '422 amount: A refund of nothing is none.'),
    ('order_refund', '{"order": "n-pending", "amount": "1.001", "refund_id": "r", "reason": "fraud"}',
        '422 amount: An amount in NPR has at most 2 decimals and 17 digits.'),
    ('order_refund', '{"order": "n-pending", "amount": "1", "currency": "USD", "refund_id": "r", "reason": "fraud"}',
        '422 currency: The order is in NPR.'),
    ('order_refund', '{"order": "n-pending", "amount": "1", "reason": "fraud"}',
        '422 refund_id: is required with an amount, so that a refund that is told twice counts once'),
    ('order_refund', '{"order": "n-pending", "amount": 1, "refund_id": "r", "reason": "fraud"}',
        '422 amount: must be a text, like "1250.50"'),
    ('order_refund', '{"order": "n-pending", "amount": "1,5", "refund_id": "r", "reason": "fraud"}',
        '422 amount: must be a decimal amount, like 1250.50'),
    ('order_cancel', '{"order": "n-pending"}', '422 reason: is required'),
    ('order_cancel', '{"order": "n-pending", "reason": "because"}',
        '422 reason: must be one of the reasons'' codes, or a code, a colon and a text'),
    ('order_cancel', '{"order": "n-pending", "reason": "other"}', '422 reason: must be told in words, too'),
    ('order_cancel', '{"order": "n-pending", "reason": "fraud", "amount": "1"}', '422 amount: is not a field of this request'),
    ('order_approve', '{"order": "n-pending", "occurred_at": "2999-01-01"}', '422 occurred_at: That time is still to come.'),
    ('order_approve', '{"order": "n-pending", "occurred_at": "yesterday"}',
        '422 occurred_at: must be a time, like 2026-01-31T12:00:00Z'),
    ('order_approve', '{"order": "n-pending", "occurred_at": "2020-01-01"}', '422 occurred_at: The order was reported on '
        || (select affiliate.utc_text(reported_at) from affiliate.order_fact where order_id = 'n-pending')
        || '; this can''t have been before.')
  ) as t(operation, request, answer);

select pg_temp.answer('order_refund', '{"order": "n-pending", "amount": "400", "refund_id": "r9", "reason": "fraud"}') \g /dev/null
select is(pg_temp.answer('order_refund', '{"order": "n-pending", "amount": "401", "refund_id": "r9", "reason": "fraud"}'),
    '422 refund_id: The refund ''r9'' was told with 400.00 NPR; another refund needs another id.', 'a refund has one amount');
select is(pg_temp.answer('order_approve', '{"order": "n-pending", "amount": "399.99"}'),
    '422 amount: 400.00 NPR of the order was refunded already; its amount can''t be less.', 'nor an amount below what was refunded');
select is(pg_temp.answer('order_approve', jsonb_build_object('order', 'h3', 'amount', '1', 'occurred_at',
    (select reported_at from affiliate.order_fact where order_id = 'h3'))),
    '422 occurred_at: A later report, of ' || (select affiliate.utc_text(reported_at) from affiliate.order_fact where order_id = 'h3')
    || ', tells another amount: 1000.00 NPR.', 'nor an amount that would not count');
select is(pg_temp.answer('order_approve', '{"order": "n-unpriced", "amount": "12.00"}'), '200', 'an amount makes it approvable');
select is(pg_temp.answer('order_approve', '{"order": "n-review"}'), '200', 'an order in review can be approved');
select is(pg_temp.outcome('n-review'), 'review suspect_click', 'and stays in review');

-- Rights
select is(pg_temp.answer('order_approve', '{"order": "h3"}', 'reader'), '403 forbidden: This is for a member with the role manager.',
    'who may only read may not');
select is(pg_temp.answer('order_show', '{"order": "h3"}', 'reader'), '200', 'but read');
select is(pg_temp.answer('order_approve', '{"order": "h3"}', 'other'), '404 not_found: There is no such merchant.', 'nor another merchant');
select is(pg_temp.answer('order_show', '{"order": "h3", "merchant": "900002"}', 'other'),
    '404 not_found: There is no order ''h3'' in this mode.', 'whose orders these are not');
select is(pg_temp.answer('order_show', '{"order": "h3", "livemode": false}'), '404 not_found: There is no order ''h3'' in this mode.',
    'and not in the other mode');
select is(pg_temp.answer('review_decide', '{"order": "n-review", "decision": "accept", "reason": "mine"}'),
    '403 forbidden: This is not for you.', 'nobody reviews his own orders');

-- Reviews
select is((select string_agg(r ->> 'order', ' ') from pg_temp.rows('review_list', '{}', 'admin') r), 'n-review', 'the queue');
select is((select count(*) from pg_temp.told('review_list', '{"merchant": "900002"}', 'admin')), 1::bigint, 'of one merchant');
select is(pg_temp.answer('review_decide', '{"order": "n-review", "decision": "accept", "reason": "a regular"}', 'admin'), '200', 'decided');
select is(pg_temp.outcome('n-review'), 'accepted', 'accepted');
select is(pg_temp.answer('review_decide', '{"order": "n-bot", "decision": "accept", "reason": "x"}', 'admin'),
    '409 order_rejected: No review changes this: The click came from a declared bot.', 'what no review changes');
select is((select a.reason || ' ' || (a."to" ->> 'decision') || ' ' || a.actor from affiliate.audit_record a
            where a.action = 'order.review'), 'a regular accept admin', 'audited');

-- Lists: each state's list is the orders of that state.
select is((select string_agg(s || ' ' || (select count(*) from pg_temp.rows('order_list', jsonb_build_object('state', s))), ', ' order by s)
             from unnest('{pending,approved,payable,cancelled,refunded,review,rejected}'::text[]) s),
    (select string_agg(s || ' ' || (select count(*) from affiliate.order_now n
                                     where n.merchant_id = 900001 and n.livemode and affiliate.order_state(n) = s), ', ' order by s)
       from unnest('{pending,approved,payable,cancelled,refunded,review,rejected}'::text[]) s), 'lists by state');
select is((select count(*) from pg_temp.rows('order_list', f::jsonb)), n, 'filter ' || f)
  from (values ('{"order": "n-"}', 4::bigint), ('{"order": "h"}', 3), ('{"outcome": "rejected"}', 1), ('{"campaign": "900021"}', 7),
               ('{"affiliate": "900012"}', 0), ('{"amount_from": "900.00", "amount_to": "900.00", "currency": "NPR"}', 1),
               ('{"reported_to": "2020-01-01"}', 0), ('{"customer": "new"}', 0), ('{"reason": "bot_click"}', 1),
               ('{"livemode": false}', 0)) as t(f, n);
create function pg_temp.walk(p_request jsonb)
returns text
language plpgsql
as $$
declare
    seen text[] := '{}';
    page jsonb[];
    request jsonb := p_request || '{"limit": "2"}';
begin
    for turn in 1 .. 20 loop
        page := array(select r from pg_temp.rows('order_list', request) r);
        seen := seen || array(select r ->> 'order' from unnest(page[1:2]) r);
        exit when cardinality(page) < 3;
        request := request || jsonb_build_object('after', page[2] ->> '_cursor');
    end loop;
    return array_to_string(seen, ' ');
end
$$;
select is(pg_temp.walk('{"sort": "order"}'), 'h1 h2 h3 n-bot n-pending n-review n-unpriced', 'a walk by id');
select is(pg_temp.walk('{"sort": "-order"}'), 'n-unpriced n-review n-pending n-bot h3 h2 h1', 'and back');
select is(pg_temp.walk('{}'), (select string_agg(order_id, ' ' order by reported_at desc, order_no desc) from affiliate.order_fact
    where merchant_id = 900001), 'and by time, as many at once');
select is(pg_temp.answer('order_list', '{"amount_from": "1"}'), '422 currency: is required with an amount', 'an amount needs a currency');
select is(pg_temp.answer('admin_order_list', '{"merchant": null}', 'admin'), '422 merchant: or affiliate is required', 'admins ask for something');
select is((select count(*) from pg_temp.rows('admin_order_list', '{"affiliate": "900011"}', 'admin')), 7::bigint, 'of an affiliate at a merchant');

-- A click that is no longer kept
select pg_temp.ordered('old') \g /dev/null
create temp table kept as select day, relation from affiliate.click_partitions() where day <= (now() at time zone 'UTC')::date;
do $$
declare
    leaf record;
begin
    for leaf in select * from kept loop
        execute 'alter table affiliate.click detach partition ' || leaf.relation;
    end loop;
end
$$;
select is(pg_temp.answer('order_approve', '{"order": "old"}'), '200', 'a click that is gone is in nobody''s way');
select is(pg_temp.state('old'), 'approved 1000.00 0.00 100.00', 'the order keeps its affiliate');
do $$
declare
    leaf record;
begin
    for leaf in select * from kept loop
        execute format('alter table affiliate.click attach partition %s for values from (%L) to (%L)', leaf.relation,
                       affiliate.day_bound(leaf.day), affiliate.day_bound(leaf.day + 1));
    end loop;
end
$$;

-- By file
select pg_temp.ordered('f' || n) from generate_series(1, 6) n \g /dev/null
create temp table file (n integer, line text);
insert into file values
    (1, 'f1,approved,1000.00,NPR,,,'),                      -- the amount it has
    (2, 'f1,refunded,100,NPR,r1,item_returned,'),
    (3, 'f2,cancelled,1000.00,NPR,,order_error,'),
    (4, 'f1,refunded,1000,NPR,r2,item_returned,'),          -- more than is left after line 2
    (5, 'f3,returned,,,,item_returned: too small,'),
    (6, 'f2,approved,,,,,'),                                -- after its cancellation
    (7, 'f4,aproved,,,,,'),
    (8, 'none,approved,,,,,'),
    (9, 'f1,refunded,100.00,,r1,item_returned,'),           -- line 2 once more
    (10, 'f5,pending,500.00,NPR,,order_update,'),
    (11, 'f5,approved,,,,,'),
    (12, 'f5,refunded,500.01,NPR,r,fraud,'),                -- more than line 10 left
    (13, 'f6,approved,,,'),
    (14, 'f6,refunded,1,NPR,,fraud,');
create temp table header as select 'Order_ID, status ,amount,currency,refund_id,reason,occurred_at'::text as h;
create function pg_temp.file(p_dry boolean, p_part integer)
returns jsonb
language sql
as $$
    select pg_temp.upload('order_import_create', h, (select array_agg(line order by n) from file), jsonb_build_object('dry_run', p_dry::text), p_part)
      from header
$$;
create function pg_temp.verdicts(p_import text)
returns text
language sql
as $$
    select string_agg(concat_ws(' ', r ->> 'line', r ->> 'verdict', r ->> 'code'), ', ' order by n)
      from pg_temp.rows('order_import_row_list', jsonb_build_object('import', p_import)) with ordinality as t(r, n)
$$;
create temp table told as select pg_temp.file(true, 3) as dry;
select is((select concat_ws(' ', dry ->> 'lines', dry ->> 'applied', dry ->> 'unchanged', dry ->> 'refused', dry ->> 'dry_run') from told),
    '14 6 1 7 true', 'a dry run');
select is((select pg_temp.verdicts(dry ->> 'import') from told),
    '2 applied, 3 applied, 4 applied, 5 refused rest, 6 applied, 7 refused cancelled, 8 refused invalid, 9 refused unknown, '
    || '10 unchanged, 11 applied, 12 applied, 13 refused rest, 14 refused invalid, 15 refused invalid', 'tells what would be');
select is((select count(*) from affiliate.conversion where source = 5), 0::bigint, 'and is nothing');
alter table told add wet jsonb, add again jsonb;
update told set wet = pg_temp.file(false, 5);
select is((select pg_temp.verdicts(wet ->> 'import') from told), (select pg_temp.verdicts(dry ->> 'import') from told), 'then it is, and no otherwise');
select is((select string_agg(pg_temp.state('f' || n), ', ' order by n) from generate_series(1, 6) n),
    'approved 1000.00 100.00 90.00, cancelled 1000.00 0.00 0.00, refunded 1000.00 1000.00 0.00, pending 1000.00 0.00 100.00, '
    || 'approved 500.00 0.00 50.00, pending 1000.00 0.00 100.00', 'the orders');
update told set again = pg_temp.file(false, 1000);
select is((select pg_temp.verdicts(again ->> 'import') from told),
    '2 unchanged, 3 unchanged, 4 unchanged, 5 refused rest, 6 unchanged, 7 refused cancelled, 8 refused invalid, 9 refused unknown, '
    || '10 unchanged, 11 unchanged, 12 unchanged, 13 refused rest, 14 refused invalid, 15 refused invalid', 'the same file again changes nothing');
select is((select e -> 'by' ->> 'import' from jsonb_array_elements(pg_temp.shown('f2') -> 'timeline') e where e ->> 'source' = 'file'),
    (select wet ->> 'import' from told), 'the timeline tells the file');
select is((select r ->> 'detail' from told, pg_temp.rows('order_import_row_list', jsonb_build_object('import', wet ->> 'import', 'order', 'f4')) r),
    'status: must be pending, approved, cancelled, returned or refunded', 'and the report the rule');
select is(pg_temp.answer('order_import_create', '{"_header": ["order_id", "state"]}'),
    '422 header: has columns that are none here: ''state''; there are order_id, status, amount, currency, refund_id, reason, occurred_at',
    'columns that are none');
select is(pg_temp.answer('order_import_row_list', jsonb_build_object('import', (select wet ->> 'import' from told), 'merchant', '900002'), 'other'),
    '404 not_found: There is no such import in this mode.', 'another merchant''s');

select is((select string_agg(a, e'\n') from pg_temp.audit() a), null, 'the books are right');
select * from finish();
rollback;
