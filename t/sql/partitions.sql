-- Click partitions: a day each, no default, dropped by retention; the inbox is pruned.

\ir support/fixture.psql

select plan(9);

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

select * from finish();
rollback;
