-- Conversions to ledger: stages and applies synthetic orders in batches, each a transaction, and prints the rate. Run it by psql
-- in a scratch database that has the schema:
--
--   psql -Xq -v orders=200000 -v batch=10000 -f t/bench/conversions.sql
--
-- The staging by insert is not counted: the daemon's COPY is measured end to end elsewhere. Beside it: pgbench -c 8 -j 2.
-- The processor time of the backend doesn't depend on what else the machine does; it needs Linux and a superuser.

\set QUIET on
\set ON_ERROR_STOP on
\if :{?orders} \else \set orders 200000 \endif
\if :{?batch} \else \set batch 10000 \endif
\if :{?merchants} \else \set merchants 50 \endif
set client_min_messages = warning;
set temp_buffers = '64MB';
select set_config('bench.run', to_char(now(), 'YYYYMMDDHH24MISS'), false), set_config('bench.orders', :'orders', false), set_config('bench.batch', :'batch', false),
       set_config('bench.merchants', :'merchants', false) \g /dev/null
select * from affiliate.maintain_partitions(2, 0) \g /dev/null

-- Merchants with a campaign each, 20 affiliates, and a click for each order.
create or replace procedure pg_temp.prepare()
language plpgsql
as $$
declare
    orders integer := current_setting('bench.orders');
    merchants integer := current_setting('bench.merchants');
begin
    insert into affiliate.merchant (merchant_id, name, hosts)
    select 700000 + m, 'Bench ' || m, '{bench.example}' from generate_series(1, merchants) m
        on conflict do nothing;
    insert into affiliate.affiliate (affiliate_id, name)
    select 700000 + a, 'Bench ' || a from generate_series(1, 20) a
        on conflict do nothing;
    insert into affiliate.campaign (merchant_id, campaign_id, name, currency)
    select 700000 + m, 700000 + m, 'Bench', 'NPR' from generate_series(1, merchants) m
        on conflict do nothing;
    insert into affiliate.terms
          (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, fee_basis_points, hold, attribution_window)
    select 700000 + m, 700000 + m, 700000 + m, now() - interval '1 year', 825, 2000, '720 hours', '720 hours'
      from generate_series(1, merchants) m
        on conflict do nothing;

    create temp table bench_order as
    select n,
           700001 + n % merchants as merchant_id,
           700001 + (n * 7) % 20 as affiliate_id,
           (lpad(to_hex((extract(epoch from now() - interval '1 hour') * 1000 + n % 3600000)::bigint), 12, '0')
            || '7' || substr(md5(random()::text), 1, 3) || '8' || substr(md5(random()::text), 1, 15))::uuid as click_id,
           100 + (n * 7919::bigint) % 1000000 as amount
      from generate_series(1, orders) n;

    insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons)
    select click_id, merchant_id, 1, merchant_id, affiliate_id, true, 0, 0
      from bench_order
     order by click_id;
end
$$;

-- Nanoseconds that this backend has been on a processor.
create or replace function pg_temp.cpu_ns()
returns bigint
language sql volatile
as $$ select split_part(pg_read_file('/proc/self/schedstat', 0, 100), ' ', 1)::bigint $$;

-- One event for each order; prints conversions per second of apply_conversions() with its commit.
create or replace procedure pg_temp.measure(p_status integer, p_prefix text, p_title text)
language plpgsql
as $$
declare
    orders integer := current_setting('bench.orders');
    batch integer := current_setting('bench.batch');
    spool bigint := (random() * 1e15)::bigint;
    started timestamptz;
    started_ns bigint;
    started_wal pg_lsn;
    spent interval := '0';
    spent_ns bigint := 0;
    wal numeric := 0;
    cut integer := 0;
begin
    perform affiliate.conversion_stage();
    commit;
    while cut < orders loop
        insert into pg_temp.conversion_stage
        select spool, 1, cut / batch, row_number() over (), b.merchant_id, true, 1, 0, 'ak_live_bench',
               format('key-%s-%s', spool, b.n), '\x00112233445566778899aabbccddeeff', now(), null,
               b.click_id, format('%s-%s-%s', p_prefix, current_setting('bench.run'), b.n), p_status, 0, b.amount, 'NPR', null, null,
               null, null, null, null
          from bench_order b
         where b.n > cut and b.n <= cut + batch;
        insert into affiliate.inbox (channel, spool_id, segment, sequence, records)
        values (2, spool, 1, cut / batch, least(batch, orders - cut));
        started := clock_timestamp();
        started_ns := pg_temp.cpu_ns();
        started_wal := pg_current_wal_insert_lsn();
        perform affiliate.apply_conversions();
        commit;
        spent := spent + (clock_timestamp() - started);
        spent_ns := spent_ns + pg_temp.cpu_ns() - started_ns;
        wal := wal + (pg_current_wal_insert_lsn() - started_wal);
        cut := cut + batch;
    end loop;
    raise notice '%', format('%-48s %s /s, %s µs of CPU and %s bytes of WAL each', p_title,
                             round(orders / extract(epoch from spent)), round(spent_ns / 1e3 / orders, 1), round(wal / orders));
end
$$;

call pg_temp.prepare();
vacuum analyze affiliate.click;
set client_min_messages = notice;
call pg_temp.measure(1, 'NP', 'conversions applied, new orders, pending');
call pg_temp.measure(2, 'NP', 'conversions applied, approval of known orders');
call pg_temp.measure(2, 'NQ', 'conversions applied, new orders, approved');
\pset tuples_only on
\pset format unaligned
select format('%-44s %s', 'broken invariants', count(*)) from affiliate.audit();
