-- The log of calls, keys, the checklist, the dry run and the test clock, as operations of the API see them.

\ir support/fixture.psql

select plan(57);

insert into affiliate.link (merchant_id, link_id, campaign_id, affiliate_id, livemode, code, url)
values (900001, 900046, 900021, 900011, false, 'fixture-6', 'https://shop.example/');
select affiliate.call_stage() \g /dev/null

create function pg_temp.actor(p_livemode boolean default false, p_merchant bigint default 900001, p_kind text default 'merchant')
returns affiliate.actor
language plpgsql
as $$
declare
    actor affiliate.actor := row(p_kind, null, null, p_merchant, 'owner', null, case p_kind when 'key' then 'ak_test_1' end, p_livemode, 'request')::affiliate.actor;
begin
    perform affiliate.raise_fence(actor);
    return actor;
end
$$;
create function pg_temp.make_key(p_id text, p_livemode boolean)
returns jsonb
language sql
as $$
    select affiliate.api_key_create(pg_temp.actor(p_livemode),
        jsonb_build_object('merchant', '900001', '_key_id', p_id, '_master_id', 'm1', 'label', 'Shop'))
$$;
-- Stages a refused call.
create function pg_temp.refuse_call(p_key text, p_call jsonb default '{}')
returns void
language sql
as $$
    insert into pg_temp.call_stage
    select r.*
      from jsonb_populate_record(null::pg_temp.call_stage, jsonb_build_object(
               'spool_id', 1, 'segment', 1, 'sequence', currval('pg_temp.fixture_batch'), 'record', nextval('pg_temp.fixture_serial'),
               'merchant_id', 900001, 'livemode', false, 'authentic', true, 'source', 1, 'status', 422, 'position', 0,
               'at', now(), 'body_bytes', 10, 'body_hash', '\x' || repeat('00', 32), 'key_id', p_key, 'code', 'validation',
               'pointers', '{/amount}'::text[], 'rules', '{is required}'::text[]) || p_call) r
$$;

select nextval('pg_temp.fixture_batch') \g /dev/null

-- Keys.
select is(pg_temp.make_key('ak_test_1', false) ->> 'key', 'ak_test_1', 'a test key is made');
select is(affiliate.answer_head() ->> 'location', '/api/v1/merchants/900001/keys/ak_test_1', 'and its place is told');
select pg_temp.make_key('ak_test_2', false) \g /dev/null
select throws_ok($$ select pg_temp.make_key('ak_test_3', false) $$, 'AF409', null, 'a third is refused');
update affiliate.merchant set decision = 'submitted' where merchant_id = 900001;
select throws_ok($$ select pg_temp.make_key('ak_live_1', true) $$, 'AF403', null, 'a live key is for approved merchants');
update affiliate.merchant set decision = 'approved' where merchant_id = 900001;
select is(pg_temp.make_key('ak_live_1', true) ->> 'livemode', 'true', 'approved: it is made');
select throws_ok($$ select affiliate.api_key_revoke(pg_temp.actor(false, 900002), '{"key": "ak_test_2"}') $$, 'AF404', null, 'another merchant''s key is none');
select throws_ok($$ select affiliate.api_key_update(pg_temp.actor(), '{"key": "ak_test_2", "label": "x", "if_match": "\"7\""}') $$, 'AF412', null, 'nor another version');
select is(affiliate.api_key_update(pg_temp.actor(), '{"key": "ak_test_2", "label": "Till 2"}') ->> 'label', 'Till 2', 'a key is labelled');
select is(affiliate.api_key_revoke(pg_temp.actor(), '{"key": "ak_test_2"}') ->> 'active', 'false', 'and revoked');
select is(affiliate.api_key_revoke(pg_temp.actor(), '{"key": "ak_test_2"}') ->> 'version', '3', 'which, again, changes nothing');
select is((select string_agg(action, ' ' order by audit_id) from affiliate.audit_record where merchant_id = 900001 and kind = 'key'),
    'key_create key_create key_create key_update key_revoke', 'what was changed is in the audit records');
select is(pg_temp.make_key('ak_test_3', false) ->> 'active', 'true', 'then there is room for another');
select is((select string_agg(r ->> 'key', ' ' order by r ->> 'key') from affiliate.api_key_list(pg_temp.actor(), '{}') r),
    'ak_test_1 ak_test_2 ak_test_3', 'keys are listed by mode');

-- Refused calls.
select pg_temp.refuse_call('ak_test_1', '{"order_id": "A-1"}'), pg_temp.refuse_call('ak_test_9'), pg_temp.refuse_call('ak_test_1', '{"merchant_id": 900002}') \g /dev/null
select pg_temp.stage(jsonb_build_object('status', 'approved', 'amount', 100, 'livemode', false,
    'click', pg_temp.click(2, p_link => 900046, p_livemode => false))) \g /dev/null
update pg_temp.conversion_stage set key_id = 'ak_test_1';
insert into affiliate.inbox (channel, spool_id, segment, sequence, records)
select 2, 1, 1, currval('pg_temp.fixture_batch'), 4;
select affiliate.apply_conversions() \g /dev/null
select affiliate.note_key_use() \g /dev/null
select is(affiliate.apply_calls(), 1::bigint, 'a call of a key that is known is taken');
select is((select format('%s %s', conversions, refusals) from affiliate.inbox where spool_id = 1 and sequence = currval('pg_temp.fixture_batch')),
    '1 3', 'all of the batch is accounted for');
select is_empty($$ select * from affiliate.audit_batches() where invariant = 'batch is accounted for' $$, 'also for the audit');
select is_empty($$ select * from pg_temp.call_stage $$, 'the stage is empty');
truncate pg_temp.conversion_stage;
select is((select last_used_at from affiliate.key_use where key_id = 'ak_test_1'), now() - interval '2 hours', 'a key''s last use is known');
select is((select string_agg(concat_ws(' ', r ->> 'status', r ->> 'code', r ->> 'order', r -> 'errors' -> 0 ->> 'pointer'), ', ')
             from affiliate.api_key_call_list(pg_temp.actor(), '{"key": "ak_test_1"}') r),
    '422 validation A-1 /amount, 202 A-1', 'the calls of a key, newest first');
select is((select count(*) from affiliate.api_key_call_list(pg_temp.actor(), '{"key": "ak_test_1", "result": "refused"}')), 1::bigint, 'the refused ones');
select is((select count(*) from affiliate.api_key_call_list(pg_temp.actor(), '{"key": "ak_test_1", "result": "accepted"}')), 1::bigint, 'the accepted ones');
select throws_ok($$ select affiliate.api_key_call_list(pg_temp.actor(false, 900002), '{"key": "ak_test_1"}') $$, 'AF404', null, 'for nobody else');
select nextval('pg_temp.fixture_batch') \g /dev/null
select pg_temp.refuse_call('ak_test_1', jsonb_build_object('authentic', false, 'code', 'bad_signature')) from generate_series(1, affiliate.calls_kept() + 50) \g /dev/null
select affiliate.apply_calls() \g /dev/null
select is((select count(*) from affiliate.call_log where not authentic), affiliate.calls_kept()::bigint, 'so many are kept');
select is((select count(*) from affiliate.call_log where authentic), 1::bigint, 'and who only knows the id does not push the merchant''s own out');
update affiliate.call_log set at = now() - interval '31 days' where authentic;
select nextval('pg_temp.fixture_batch') \g /dev/null
select pg_temp.refuse_call('ak_test_3', '{"status": 200, "code": "repeated"}') \g /dev/null
select affiliate.apply_calls() \g /dev/null
select is((select count(*) from affiliate.call_log where key_id = 'ak_test_1' and authentic), 0::bigint, 'old ones are forgotten');
select is_empty($$ select c from unnest('{bad_signature,clock_skew,unknown_key,missing_header,malformed_json,unsupported_media_type,body_too_large,rate_limited,unknown_click_id,wrong_livemode,expired_click_id,idempotency_key_reused,repeated}'::text[]) c
    where affiliate.call_hint(c) is null $$, 'what can be done about it is told');

select is((select r ->> 'valid' from affiliate.api_signature_check(pg_temp.actor(), '{"key": "ak_test_1", "body": "", "_result": {"valid": true}}') r), 'true',
    'what was found of a signature is told to whose key it is');
select throws_ok($$ select affiliate.api_signature_check(pg_temp.actor(false, 900002), '{"key": "ak_test_1", "body": "", "_result": {"valid": true}}') $$, 'AF404', null, 'and to nobody else');

-- The checklist.
select is((select string_agg(i ->> 'item', ' ' order by n)
             from affiliate.api_checklist_show(pg_temp.actor(), '{}') r
            cross join jsonb_array_elements(r -> 'items') with ordinality as e(i, n) where (i ->> 'done')::boolean),
    'test_key_made test_link_followed signed_call_accepted approval_seen retry_seen live_key_made', 'what was done is ticked off by itself');
select is((select r ->> 'done' from affiliate.api_checklist_show(pg_temp.actor(), '{}') r), 'false', 'not all is');
select is((select string_agg(i ->> 'item', ' ' order by n)
             from affiliate.api_checklist_show(pg_temp.actor(false, 900002), '{}') r
            cross join jsonb_array_elements(r -> 'items') with ordinality as e(i, n) where (i ->> 'done')::boolean), null, 'nothing of another merchant''s');

-- The dry run.
create function pg_temp.dry(p_event jsonb, p_livemode boolean default false)
returns jsonb
language sql
as $$
    select affiliate.api_dry_run_create(pg_temp.actor(p_livemode), jsonb_build_object('_checks', '[]'::jsonb, 'body', '{}', '_event', jsonb_build_object(
        'order_id', 'D-1', 'status', 2, 'customer', 0, 'amount_minor', 10000, 'currency', 'NPR', 'idempotency_key', 'dry', 'body_hash', '\x01',
        'key_id', 'ak_test_1', 'click_id', pg_temp.click_id(2, now() - interval '3 hours')) || p_event))
$$;
create function pg_temp.failed(p_answer jsonb)
returns text
language sql
as $$
    select string_agg(format('%s %s: %s', c ->> 'check', c ->> 'verdict', c ->> 'detail'), ', ')
      from jsonb_array_elements(p_answer -> 'checks') c
     where c ->> 'detail' is not null
$$;
create function pg_temp.state()
returns text
language sql
as $$
    select format('%s %s %s %s %s', (select count(*) from affiliate.conversion), (select count(*) from affiliate.order_fact),
        (select count(*) from affiliate.hold), (select sum(revision) from affiliate.order_fact), (select sum(credits_minor) from affiliate.account))
$$;
create temp table before as select pg_temp.state() as state;

select is(pg_temp.dry('{}') -> 'order' ->> 'state', 'approved', 'what would become of an order');
select is(pg_temp.dry('{}') -> 'order' ->> 'commission', '10.00', 'what would be paid');
select is((pg_temp.dry('{}') -> 'order' ->> 'payable_at')::timestamptz > now(), true, 'and when');
select is(pg_temp.failed(pg_temp.dry('{}')), null, 'each check passed');
select is(jsonb_array_length(pg_temp.dry('{}') -> 'checks'), 8, 'and is told');
select is(pg_temp.failed(pg_temp.dry('{}', true)), 'click failed: ' || affiliate.reason_sentence('wrong_livemode'), 'a click of the other mode');
select matches(pg_temp.failed(pg_temp.dry(jsonb_build_object('click_id', pg_temp.click_id(77, now())))), '^click passed: .*not arrived', 'one that is not there yet');
select is(pg_temp.failed(pg_temp.dry('{"currency": "USD"}')), 'currency failed: ' || affiliate.reason_sentence('wrong_currency'), 'another currency');
select is(pg_temp.failed(pg_temp.dry('{"order_id": "TEST-DUPLICATE"}')), 'review review: ' || affiliate.reason_sentence('duplicate_order'), 'magic order ids work here, too');
select matches(pg_temp.failed(pg_temp.dry(jsonb_build_object('idempotency_key', c.idempotency_key, 'body_hash', c.body_hash))), '^idempotency_key passed: .*same body', 'a call that was made')
  from affiliate.conversion c where c.merchant_id = 900001;
select matches(pg_temp.failed(pg_temp.dry(jsonb_build_object('idempotency_key', c.idempotency_key))), '^idempotency_key failed: .*another body', 'and one with another body')
  from affiliate.conversion c where c.merchant_id = 900001;
select is(pg_temp.dry('{"order_id": "A-1", "status": 5, "amount_minor": 50}') -> 'order' ->> 'refunded', '0.50', 'an order that is known is seen with what is known of it');
select is(affiliate.api_dry_run_create(pg_temp.actor(), '{"body": "{}", "_checks": [{"check": "signature", "verdict": "failed"}]}') ->> 'accepted', 'false',
    'what does not pass before does not come here');
select is(jsonb_array_length(affiliate.api_dry_run_create(pg_temp.actor(), '{"body": "{}", "_checks": []}') -> 'checks'), 0, 'nor is it said to have passed');
select is(pg_temp.state(), (select state from before), 'nothing of all that was recorded');
select is_empty($$ select pg_temp.audit() $$, 'and the books are right');

-- The same as the real thing.
create temp table dry as
select o, pg_temp.dry(jsonb_build_object('order_id', o)) -> 'order' as told from unnest('{R-1,TEST-REVIEW-2,TEST-REJECTED-TOO_FAST}'::text[]) o;
select nextval('pg_temp.fixture_batch') \g /dev/null
select pg_temp.stage(jsonb_build_object('order', o, 'status', 'approved', 'amount', 10000, 'livemode', false, 'at', clock_timestamp(),
           'click', pg_temp.click_id(2, now() - interval '3 hours'))) from dry \g /dev/null
select pg_temp.apply() \g /dev/null
select is_empty($$
    select d.o, d.told, affiliate.order_json(n)
      from dry d
      left join affiliate.order_now n on n.merchant_id = 900001 and n.order_id = d.o and not n.livemode
     where (d.told ->> 'state', d.told ->> 'reason', d.told ->> 'commission', d.told ->> 'fee') is distinct from
           (affiliate.order_state(n), n.problem, affiliate.order_json(n) ->> 'commission', affiliate.order_json(n) ->> 'fee') $$,
    'what was told is what happens');

-- The test clock, as it is called.
select is(affiliate.api_test_clock_show(pg_temp.actor(), '{}') ->> 'ahead_seconds', '0', 'a clock that was not moved');
select is(affiliate.api_test_clock_advance(pg_temp.actor(), '{"advance": "2 days"}') ->> 'ahead_seconds', '172800', 'two days ahead');
select is((r ->> 'ahead_seconds')::bigint between 259100 and 259201, true, 'to a time')
  from affiliate.api_test_clock_advance(pg_temp.actor(), jsonb_build_object('to',
           to_char(now() at time zone 'UTC' + interval '3 days', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))) r;
select throws_like($$ select affiliate.api_test_clock_advance(pg_temp.actor(), '{"to": "2001-01-01T00:00:00Z"}') $$, '%forward only%', 'not back');
select throws_like($$ select affiliate.api_test_clock_advance(pg_temp.actor(), '{}') $$, '%is required%', 'not nowhere');
select throws_ok($$ select affiliate.api_test_clock_advance(pg_temp.actor(true, 900001, 'key'), '{"advance": "1 day"}') $$, 'AF403', null, 'not by a live key');
select is((select count(*) from affiliate.audit_record where kind = 'test_clock'), 2::bigint, 'and each time is in the audit records');
select cmp_ok((select count(*) from affiliate.api_magic_order_list(pg_temp.actor(), '{"all": true}')), '=', 25::bigint, 'magic order ids are listed');
select is_empty($$ select r from affiliate.api_magic_order_list(pg_temp.actor(), '{"all": true}') r where r ->> 'sentence' is null or r ->> 'outcome' is null $$, 'each with what it gives');

select * from finish();
rollback;
