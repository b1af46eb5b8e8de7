-- Idempotency, dead letters, several events of an order in one batch, waiting for the click, reviews, the inbox.

\ir support/fixture.psql

select plan(32);


select pg_temp.click(1) \g /dev/null
\set click 'pg_temp.click_id(1, now() - interval ''3 hours'')'

-- Idempotency
select is(pg_temp.report(jsonb_build_object('order', 'I', 'key', 'same', 'body', 'b', 'status', 'pending', 'amount', 1000, 'click', :click)),
    'staged 1 applied 1 waiting 0 duplicates 0 dead 0 accepted 1 review 0 rejected 0', 'new');
select is(pg_temp.report(jsonb_build_object('order', 'I', 'key', 'same', 'body', 'b', 'status', 'pending', 'amount', 1000, 'click', :click)),
    'staged 1 applied 0 waiting 0 duplicates 1 dead 0 accepted 0 review 0 rejected 0', 'the same key and body: a duplicate');
select is(pg_temp.report(jsonb_build_object('order', 'I', 'key', 'same', 'body', 'c', 'status', 'pending', 'amount', 9000, 'click', :click)),
    'staged 1 applied 0 waiting 0 duplicates 0 dead 1 accepted 0 review 0 rejected 0', 'another body: a dead letter');
select is((select reason from affiliate.dead_letter order by dead_letter_id desc limit 1), 'idempotency_conflict', 'with its reason');
select pg_temp.stage(jsonb_build_object('order', 'J', 'key', 'twice', 'body', 'b', 'status', 'pending', 'amount', 1000, 'click', :click))
    \g /dev/null
select pg_temp.stage(jsonb_build_object('order', 'J', 'key', 'twice', 'body', 'b', 'status', 'pending', 'amount', 1000, 'click', :click))
    \g /dev/null
select pg_temp.stage(jsonb_build_object('order', 'J', 'key', 'twice', 'body', 'x', 'status', 'pending', 'amount', 1000, 'click', :click))
    \g /dev/null
select is(pg_temp.apply(), 'staged 3 applied 1 waiting 0 duplicates 1 dead 1 accepted 1 review 0 rejected 0', 'all three within one batch');
select pg_temp.report(jsonb_build_object('order', 'K', 'key', 'call', 'body', 'b', 'source', 2, 'position', 0, 'status', 'pending',
    'amount', 1000, 'click', :click)) \g /dev/null
select is(pg_temp.report(jsonb_build_object('order', 'L', 'key', 'call', 'body', 'c', 'source', 2, 'position', 1, 'status', 'pending',
    'amount', 1000, 'click', :click)),
    'staged 1 applied 0 waiting 0 duplicates 0 dead 1 accepted 0 review 0 rejected 0', 'a free position of a key with another body');
select is(pg_temp.report(jsonb_build_object('order', 'I', 'key', 'same', 'livemode', false, 'body', 'c', 'status', 'pending',
    'amount', 10, 'click', pg_temp.click(9, p_livemode => false))),
    'staged 1 applied 1 waiting 0 duplicates 0 dead 0 accepted 1 review 0 rejected 0', 'the other mode has keys of its own');

-- Several events of one order in one batch
select pg_temp.stage(jsonb_build_object('order', 'M', 'status', 'refunded', 'amount', 500, 'refund', 'a', 'click', :click)) \g /dev/null
select pg_temp.stage(jsonb_build_object('order', 'M', 'status', 'approved', 'amount', 5000, 'click', :click)) \g /dev/null
select pg_temp.stage(jsonb_build_object('order', 'M', 'status', 'refunded', 'amount', 700, 'refund', 'a', 'click', :click,
    'at', now() - interval '1 hour')) \g /dev/null
select is(pg_temp.apply(), 'staged 3 applied 3 waiting 0 duplicates 0 dead 0 accepted 3 review 0 rejected 0', 'three events of one order');
select is((select posted_commission_minor || ' ' || refunded_minor from affiliate.order_fact where order_id = 'M'), '430 700',
    'the same refund told with two amounts: the later report counts');

-- What can't be taken
select is(pg_temp.report(jsonb_build_object('merchant', 987654321, 'status', 'pending', 'amount', 1, 'click', :click)),
    'staged 1 applied 0 waiting 0 duplicates 0 dead 1 accepted 0 review 0 rejected 0', 'an unknown merchant');
select is(pg_temp.report(jsonb_build_object('status', 'pending', 'amount', 100000000000000000, 'click', :click)),
    'staged 1 applied 0 waiting 0 duplicates 0 dead 1 accepted 0 review 0 rejected 0', 'an amount out of range');
select is(pg_temp.report(jsonb_build_object('status', 'pending', 'amount', -1, 'click', :click)),
    'staged 1 applied 0 waiting 0 duplicates 0 dead 1 accepted 0 review 0 rejected 0', 'a negative one');
select is(pg_temp.report(jsonb_build_object('status', 'pending', 'amount', 1)),
    'staged 1 applied 0 waiting 0 duplicates 0 dead 1 accepted 0 review 0 rejected 0', 'no click');
select is(pg_temp.report(jsonb_build_object('status', 'lost', 'amount', 1, 'click', :click)),
    'staged 1 applied 0 waiting 0 duplicates 0 dead 1 accepted 0 review 0 rejected 0', 'no such status');
select results_eq($$ select detail from affiliate.dead_letter where reason = 'invalid_record' order by dead_letter_id $$,
    $$ values ('amount_minor: must have at most 17 digits'), ('amount_minor: must have at most 17 digits'),
              ('click_id: is missing'), ('status: must be 1 to 5') $$, 'each says which field');
select is(pg_temp.report(jsonb_build_object('order', 'big', 'status', 'pending', 'amount', 99999999999999999, 'click', :click)),
    'staged 1 applied 1 waiting 0 duplicates 0 dead 0 accepted 0 review 0 rejected 1', 'the greatest amount is taken, and earns too much');

-- A dead letter is replayed once what stood against it is right
insert into affiliate.merchant (merchant_id, name, hosts) values (987654321, 'Late', '{late.example}');
select is((select count(*) from affiliate.dead_letter_replay(jsonb_build_object('dead_letter',
    (select dead_letter_id from affiliate.dead_letter where reason = 'unknown_merchant')))), 1::bigint, 'replayed');
select is((select outcome || ' ' || problem from affiliate.order_fact where merchant_id = 987654321), 'rejected foreign_click',
    'and applied');
select throws_like($$ select affiliate.dead_letter_replay(jsonb_build_object('dead_letter',
    (select dead_letter_id from affiliate.dead_letter where reason = 'unknown_merchant'))) $$, 'dead_letter: was replayed at%', 'once');
truncate pg_temp.conversion_stage;

-- Waiting for the click
select is(pg_temp.report(jsonb_build_object('order', 'W', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click_id(50, now() - interval '3 hours'))),
    'staged 1 applied 0 waiting 1 duplicates 0 dead 0 accepted 0 review 0 rejected 0', 'its click has not arrived');
select is(affiliate.resolve_waiting(100), 0::bigint, 'still not');
select is((select o ->> 'state' from affiliate.order_show('{"merchant": 900001, "order": "W"}') o), 'waiting', 'the order waits');
select is_empty($$ select pg_temp.audit() $$, 'the books are right while it waits');
select pg_temp.click(50) \g /dev/null
update affiliate.waiting set next_at = now();
select is(affiliate.resolve_waiting(100), 1::bigint, 'the click has come');
select is(pg_temp.outcome('W'), 'accepted', 'and the order counts');
select pg_temp.report(jsonb_build_object('order', 'X', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click_id(51, now() - interval '3 hours'))) \g /dev/null
update affiliate.waiting set next_at = now(), until = now();
select is(affiliate.resolve_waiting(100), 1::bigint, 'a click that never comes');
select is(pg_temp.outcome('X'), 'rejected unknown_click', 'is unknown');
select is((select count(*) from affiliate.waiting), 0::bigint, 'nothing waits');

-- The inbox
select results_eq($$ select affiliate.inbox_accept(1::smallint, '{7,7,7}', '{1,1,1}', '{0,1,0}', '{5,5,5}') $$,
    $$ values (1), (2) $$, 'batches that are new, the same one once');
select results_eq($$ select affiliate.inbox_accept(1::smallint, '{7,7}', '{1,1}', '{1,2}', '{5,5}') $$,
    $$ values (2) $$, 'those that were applied before are left out');
select results_eq($$ select affiliate.inbox_accept(2::smallint, '{7}', '{1}', '{1}', '{0}') $$,
    $$ values (1) $$, 'channels have batches of their own');
select is_empty($$ select pg_temp.audit() $$, 'the books are right');

select * from finish();
rollback;
