-- A merchant's books beside ours: every class of difference, and what is fixed from it.

\ir support/calls.psql

select plan(37);

create temp sequence order_clicks start 1000;
create function pg_temp.ordered(p_order text, p_status text default 'pending', p_amount bigint default 100000, p_verdict integer default 0)
returns text
language sql
as $$
    select pg_temp.report(jsonb_build_object('order', p_order, 'status', p_status, 'amount', p_amount,
        'click', pg_temp.click(nextval('pg_temp.order_clicks')::integer, p_verdict => p_verdict)))
$$;
create function pg_temp.state(p_order text)
returns text
language sql
as $$
    select concat_ws(' ', s ->> 'state', s ->> 'amount', s ->> 'refunded', s ->> 'commission')
      from pg_temp.rows('order_show', jsonb_build_object('order', p_order)) s
$$;

select pg_temp.ordered(o, s) from (values
    ('same-pending', 'pending'), ('same-approved', 'approved'), ('to-approve', 'pending'), ('to-approve-more', 'pending'),
    ('to-cancel', 'approved'), ('to-return', 'pending'), ('to-refund', 'approved'), ('less', 'approved'), ('less-pending', 'pending'),
    ('more', 'approved'), ('other-currency', 'approved'), ('back-to-pending', 'approved'), ('not-there', 'approved'),
    ('not-there-2', 'pending'), ('silent', 'approved')) as t(o, s) \g /dev/null
select pg_temp.ordered('cancelled-here', 'cancelled') \g /dev/null
select pg_temp.ordered('cancelled-both', 'cancelled') \g /dev/null
select pg_temp.ordered('bot', 'approved', p_verdict => 5) \g /dev/null
select pg_temp.ordered('bot-not-there', 'approved', p_verdict => 5) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'more', 'status', 'refunded', 'amount', 10000, 'refund', 'r1',
    'click', (select click_id from affiliate.order_fact where order_id = 'more'))) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'waits', 'status', 'approved', 'amount', 1, 'click',
    pg_temp.click_id(77, now() - interval '3 hours'))) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'in-test', 'status', 'approved', 'amount', 1, 'livemode', false, 'click',
    pg_temp.click(78, p_livemode => false))) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'refused', 'status', 'approved', 'amount', 1, 'key', 'k', 'body', 'a', 'click',
    (select click_id from affiliate.order_fact where order_id = 'more'))) \g /dev/null

-- A record that the database refused: its key was another order's.
select pg_temp.report(jsonb_build_object('order', 'dead', 'status', 'approved', 'amount', 1, 'key', 'k', 'body', 'b', 'click',
    (select click_id from affiliate.order_fact where order_id = 'more'))) \g /dev/null

create temp table file (n integer, line text);
insert into file values
    (1, 'same-pending,pending,1000.00,NPR,'), (2, 'same-approved,approved,1000,NPR,'), (3, 'to-approve,approved,1000.00,NPR,'),
    (4, 'to-approve-more,approved,1200.00,NPR,'), (5, 'to-cancel,cancelled,1000.00,NPR,'), (6, 'to-return,returned,,,'),
    (7, 'to-refund,refunded,1000.00,NPR,'), (8, 'less,approved,750.25,NPR,'), (9, 'less-pending,pending,999.99,,'),
    (10, 'more,approved,950.00,NPR,'), (11, 'other-currency,approved,1000.00,USD,'), (12, 'back-to-pending,pending,1000.00,NPR,'),
    (13, 'cancelled-here,approved,1000.00,NPR,'), (14, 'cancelled-both,returned,1000.00,NPR,'), (15, 'bot,approved,1000.00,NPR,'),
    (16, 'unheard,approved,500.00,NPR,' || to_char(now() - interval '2 hours', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
    (17, 'waits,approved,0.01,NPR,'), (18, 'in-test,approved,0.01,NPR,'), (19, 'dead,approved,0.01,NPR,'),
    (20, 'refused,approved,0.01,NPR,'), (21, 'silent,,,,'), (22, 'same-pending,pending,1000.00,NPR,'), (23, ',approved,1,NPR,'),
    (24, 'more-2,approved,1.001,NPR,'), (25, 'more-3,aproved,1,NPR,'), (26, 'more-4,approved,1,XXX,'), (27, 'short,approved');
create function pg_temp.reconcile(p_part integer)
returns jsonb
language sql
as $$
    select pg_temp.upload('reconciliation_create', 'order_id,status,amount,currency,date', (select array_agg(line order by n) from file),
        jsonb_build_object('from', to_char(now() - interval '1 day', 'YYYY-MM-DD'), 'to', to_char(now() + interval '2 days', 'YYYY-MM-DD')), p_part)
$$;
create temp table told as select pg_temp.reconcile(4) as report;
create function pg_temp.listed(p_class text, p_more jsonb default '{}')
returns text
language sql
as $$
    select string_agg(concat_ws(' ', r ->> 'order', r ->> 'fix'), ', ' order by n)
      from told t, pg_temp.rows('reconciliation_row_list', jsonb_build_object('reconciliation', t.report ->> 'reconciliation', 'class', p_class)
                   || p_more) with ordinality as x(r, n)
$$;

-- The report
select is((select concat_ws(' ', report ->> 'lines', report ->> 'refused', report ->> 'state') from told), '27 6 done', 'the whole file');
select is(pg_temp.listed('matched'), 'same-pending, same-approved, cancelled-both, bot, refused, silent', 'matched');
select is(pg_temp.listed('missing_here'), 'unheard, waits, in-test, dead', 'missing here');
select is(pg_temp.listed('missing_there'), 'not-there cancel, not-there-2 cancel', 'missing there: what would be paid');
select is(pg_temp.listed('amount_differs'), 'less part, less-pending part, more amount, other-currency', 'amount differs');
select is(pg_temp.listed('status_differs'),
    'to-approve approve, to-approve-more approve, to-cancel cancel, to-return return, to-refund refund, back-to-pending, cancelled-here',
    'status differs');
select is((select string_agg(format('%s %s %s %s', c ->> 'class', c ->> 'orders', c ->> 'theirs', c ->> 'ours'), ', ' order by n)
             from told, jsonb_array_elements(report -> 'classes') with ordinality as t(c, n)),
    'matched 6 4000.01 4000.01, missing_here 4 500.03 0.00, missing_there 2 0.00 2000.00, amount_differs 4 3700.24 3900.00, '
    || 'status_differs 7 6200.00 6000.00', 'counts and sums of both sides');
select is((select string_agg(p ->> 'line' || ' ' || (p ->> 'column') || ': ' || (p ->> 'rule'), '; ' order by n)
             from told, jsonb_array_elements(report -> 'problems') with ordinality as t(p, n)),
    '23 order_id: is in the file more than once; 24 order_id: is required; 25 amount: must have at most 2 decimals; '
    || '26 status: must be pending, approved, cancelled, returned or refunded; 27 currency: must be an ISO 4217 currency, like NPR; '
    || '28 row: has 2 cells, the header has 5', 'what could not be read');
select is((select concat_ws(' ', x ->> 'their_status', x ->> 'their_amount', x ->> 'our_status', x ->> 'our_amount', x ->> 'line')
             from told, pg_temp.rows('reconciliation_row_list', jsonb_build_object('reconciliation', report ->> 'reconciliation', 'order', 'more')) x),
    'approved 950.00 approved 900.00 11', 'a row has both sides');
select is((select count(*) from pg_temp.rows('reconciliation_row_list',
               jsonb_build_object('reconciliation', (select report ->> 'reconciliation' from told), 'limit', '10')) x), 11::bigint, 'a page and one more');
select is((select concat_ws(' ', (report ->> 'from')::timestamptz::date, (report ->> 'to')::timestamptz::date) from told),
    concat_ws(' ', (now() - interval '1 day')::date, (now() + interval '2 days')::date), 'the time that was asked for');

-- Missing here
create function pg_temp.row_of(p_order text)
returns jsonb
language sql
as $$
    select y from told t,
           pg_temp.rows('reconciliation_row_list', jsonb_build_object('reconciliation', t.report ->> 'reconciliation', 'order', p_order)) x,
           pg_temp.rows('reconciliation_row_show', jsonb_build_object('reconciliation', t.report ->> 'reconciliation', 'row', x ->> 'row')) y
$$;
select alike(pg_temp.row_of('unheard') ->> 'sentence', 'No event of this order has been taken%', 'it says why');
select is(jsonb_array_length(pg_temp.row_of('unheard') -> 'offers' -> 'clicks'), 17, 'and offers the clicks before it, but those of bots and of the other mode');
select alike(pg_temp.row_of('waits') ->> 'sentence', '%its click has not arrived yet%', 'a waiting one');
select is(pg_temp.row_of('waits') -> 'offers' -> 'events' -> 0 ->> 'waiting', 'true', 'is shown');
select alike(pg_temp.row_of('in-test') ->> 'sentence', '%in the other mode%', 'one of the other mode');
select is(pg_temp.row_of('dead') -> 'offers' -> 'refused' -> 0 ->> 'reason', 'idempotency_conflict', 'one that was refused');

-- Fixing
create function pg_temp.fix(p_request jsonb, p_who text default 'manager')
returns text
language sql
as $$
    select concat_ws(' ', x ->> 'applied', x ->> 'unchanged', x ->> 'refused', x ->> 'more')
      from told, pg_temp.rows('reconciliation_fix', jsonb_build_object('reconciliation', report -> 'reconciliation') || p_request, p_who) x
$$;
select is(pg_temp.answer('reconciliation_fix', jsonb_build_object('reconciliation', (select report -> 'reconciliation' from told))),
    '422 rows: or class is required, not both', 'something has to be chosen');
select is(pg_temp.answer('reconciliation_fix', jsonb_build_object('reconciliation', (select report -> 'reconciliation' from told), 'rows', '[1.5]'::jsonb)),
    '422 rows: must be 1 to 2000 numbers of rows', 'rows are numbers');
select is(pg_temp.answer('reconciliation_fix', jsonb_build_object('reconciliation', (select report -> 'reconciliation' from told), 'class', 'matched'), 'reader'),
    '403 forbidden: This is for a member with the role manager.', 'who may only read may not');
select is(pg_temp.fix('{"class": "status_differs", "reason": "order_update"}'), '5 0 0 false', 'statuses');
select is((select string_agg(o || ' ' || pg_temp.state(o), ', ' order by n)
             from unnest('{to-approve,to-approve-more,to-cancel,to-return,to-refund}'::text[]) with ordinality as t(o, n)),
    'to-approve approved 1000.00 0.00 100.00, to-approve-more approved 1200.00 0.00 120.00, to-cancel cancelled 1000.00 0.00 0.00, '
    || 'to-return refunded 1000.00 1000.00 0.00, to-refund refunded 1000.00 1000.00 0.00', 'are as the file has them');
select is(pg_temp.fix('{"class": "amount_differs", "reason": "other", "note": "our books"}'), '3 0 0 false', 'amounts');
select is((select string_agg(o || ' ' || pg_temp.state(o), ', ' order by n)
             from unnest('{less,less-pending,more}'::text[]) with ordinality as t(o, n)),
    'less approved 1000.00 249.75 75.02, less-pending pending 1000.00 0.01 100.00, more approved 1050.00 100.00 95.00',
    'less is left by a refund of the difference, more by another amount');
select is((select c.refund_key || ' ' || c.reason || ' ' || c.source from affiliate.conversion c where c.order_id = 'less' and c.status = 5),
    'r:reconciliation-' || (select report ->> 'reconciliation' from told) || '-8 other: our books 5', 'told as such');
select is(pg_temp.fix('{"class": "amount_differs"}'), '0 0 0 false', 'nothing is fixed twice');
select is(pg_temp.fix('{"class": "missing_there", "reason": "order_error"}'), '2 0 0 false', 'what is not there is cancelled');
select is((select string_agg(pg_temp.state(o), ', ') from unnest('{not-there,not-there-2}'::text[]) o),
    'cancelled 1000.00 0.00 0.00, cancelled 1000.00 0.00 0.00', 'both');
select is(pg_temp.fix('{"rows": [1, 8, 11, 12, 16]}'), '0 1 3 false', 'rows by number: one agrees, three can''t be fixed, one is');
select is((select string_agg(concat_ws(' ', x ->> 'row', x ->> 'fix_verdict'), ', ' order by n)
             from told, pg_temp.rows('reconciliation_row_list', jsonb_build_object('reconciliation', report ->> 'reconciliation')) with ordinality as t2(x, n)
            where x ->> 'fix_verdict' is not null and (x ->> 'row')::integer in (1, 8, 11, 12, 16)),
    '1 unchanged, 8 applied, 11 refused, 12 refused, 16 refused', 'each row knows');
select is((select count(*) from affiliate.reconciliation_row r
             join affiliate.hand_batch b on b.merchant_id = r.merchant_id and b.batch_id = r.fix_batch
              and b.reconciliation_id = r.reconciliation_id
             join affiliate.conversion c on c.merchant_id = b.merchant_id and c.spool_id = 0 and c.segment = b.batch_id
              and c.order_id = r.order_id), 10::bigint, 'each fix is linked to its row');
select is((select string_agg(a.action, ' ' order by a.audit_id) from affiliate.audit_record a where a.kind = 'reconciliation'),
    'reconciliation.create reconciliation.fix reconciliation.fix reconciliation.fix reconciliation.fix reconciliation.fix', 'all is audited');

-- Once more
update told set report = pg_temp.reconcile(1000);
select is(pg_temp.listed('status_differs'), 'back-to-pending, cancelled-here', 'only what can''t be fixed is left');
select is(pg_temp.listed('amount_differs'), 'other-currency', 'of amounts, too');
select is(pg_temp.listed('missing_there'), null, 'nothing is missing there');
select is(pg_temp.answer('reconciliation_show', jsonb_build_object('reconciliation', (select report ->> 'reconciliation' from told), 'merchant', '900002'), 'other'),
    '404 not_found: There is no such reconciliation in this mode.', 'another merchant''s');

select is((select string_agg(a, e'\n') from pg_temp.audit() a), null, 'the books are right');
select * from finish();
rollback;
