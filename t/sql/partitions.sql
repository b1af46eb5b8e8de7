-- Click partitions: a day each, no default, dropped by retention; the inbox is pruned.

\ir support/fixture.psql

select plan(19);

select results_eq($$ select day from affiliate.click_partitions() where day >= (now() at time zone 'UTC')::date - 2 $$,
    $$ select d::date from generate_series((now() at time zone 'UTC')::date - 2, (now() at time zone 'UTC')::date + 2,
                                          interval '1 day') d $$, 'two days back, two ahead');
select is_empty($$ select * from affiliate.maintain_partitions(2, 0) $$, 'again, nothing to do');
select is((select count(*) from affiliate.maintain_partitions(4, 0) where action = 'created'), 2::bigint, 'two more days');
select is(affiliate.day_bound('1970-01-02'), '00000526-5c00-0000-0000-000000000000'::uuid, 'a day''s bound');
select is(affiliate.click_time(affiliate.day_bound('2026-07-01')), '2026-07-01 00:00:00+00'::timestamptz, 'and back');
select throws_ok(format('insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons)
    values (%L, 1, 1, 1, 1, true, 0, 0)', affiliate.day_bound('2001-01-01')), '23514', null, 'no partition, no click');
select affiliate.create_click_partition('2001-01-01') \g /dev/null
select results_eq($$ select * from affiliate.maintain_partitions(4, 30) where action = 'dropped' $$,
    $$ values ('dropped', 'affiliate.click_20010101') $$, 'what is older than the retention is dropped');
insert into affiliate.inbox (channel, spool_id, segment, sequence, records, applied_at)
values (1, 1, 1, 1, 1, now() - interval '31 days'), (1, 1, 1, 2, 1, now() - interval '29 days');
select results_eq($$ select action, relation from affiliate.maintain_partitions(4, 30) $$,
    $$ values ('pruned', 'affiliate.inbox') $$, 'old batches are forgotten');
select results_eq($$ select sequence from affiliate.inbox where channel = 1 $$, $$ values (2) $$, 'younger ones are not');


-- The floor of retention, and rows that nobody changes.
select affiliate.create_click_partition(((now() at time zone 'UTC')::date - 20)) \g /dev/null
select is_empty($$ select * from affiliate.maintain_partitions(4, 20) where action = 'dropped' $$, 'within the retention it stays');
update affiliate.retention_floor set days = 25;
select is_empty($$ select * from affiliate.maintain_partitions(4, 3) where action = 'dropped' $$, 'and below the floor, whatever is asked for');
update affiliate.retention_floor set days = 7;
select is((select count(*) from affiliate.maintain_partitions(4, 3) where action = 'dropped'), 1::bigint, 'above it, it goes');
select throws_ok('update affiliate.retention_floor set days = 1', '23514', null, 'days that arrive are never dropped');
select throws_ok('insert into affiliate.retention_floor (days) values (2)', '23505', null, 'there is one floor');

insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons)
values (affiliate.day_bound((now() at time zone 'UTC')::date), 1, 1, 1, 1, true, 0, 0);
select throws_ok('update affiliate.click set merchant_id = 2', '42501', null, 'a click is never changed');
select throws_ok(format('delete from %s', (select relation from affiliate.click_partitions() where day = (now() at time zone 'UTC')::date)),
    '42501', null, 'nor deleted, from its partition neither');
select throws_ok('truncate affiliate.click', '42501', null, 'nor all of them');
select throws_ok('delete from affiliate.conversion', '42501', null, 'conversions are not deleted');
select throws_ok('update affiliate.transfer set amount_minor = 1', '42501', null, 'transfers are not changed');

select * from finish();
rollback;
