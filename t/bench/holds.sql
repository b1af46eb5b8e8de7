-- Releasing holds with a large backlog: releases orders that are due, in batches, each a transaction, and prints the rate and the
-- processor time with nothing, a tenth and all of the backlog waiting behind them: the cost must be flat.
--
--   psql -Xq -v waiting=10000000 -v due=500000 -v batch=20000 -f t/bench/holds.sql
--
-- Needs a scratch database with the schema, and a superuser on Linux for the processor time. Orders that are due are written as
-- apply_conversions() leaves them, without their conversions. Those that only wait are rows of hold alone: releasing looks at
-- nothing else of them. They are taken away before the ledger is audited.

\set QUIET on
\set ON_ERROR_STOP on
\if :{?waiting} \else \set waiting 1000000 \endif
\if :{?due} \else \set due 200000 \endif
\if :{?batch} \else \set batch 20000 \endif
set client_min_messages = warning;
set maintenance_work_mem = '512MB';
select set_config('bench.batch', :'batch', false) \g /dev/null

-- The backlog up to p_count rows, due within the next thirty days.
create or replace procedure pg_temp.wait(p_first bigint, p_count bigint)
language plpgsql
as $$
declare
    key text := (select conname from pg_constraint where conrelid = 'affiliate.hold'::regclass and contype = 'p');
begin
    execute format('alter table affiliate.hold drop constraint %I', key);
    insert into affiliate.hold (merchant_id, order_no, due_at, affiliate_id, commission_minor, fee_minor, revision, livemode, currency,
                                day, campaign_id, link_id)
    select 710000 + n % 50, 7000000000000 + n, now() + interval '1 day' + n * 7919 % 2592000 * interval '1 second',
           720000 + n * 7 % 200, 100, 20, 1, true, 'NPR', affiliate.utc_day(now()), 710000 + n % 50, 1
      from generate_series(p_first, p_count) n;
    execute format('alter table affiliate.hold add constraint %I primary key (due_at, merchant_id, order_no)', key);
    commit;
end
$$;

create or replace procedure pg_temp.fill(p_first bigint, p_count bigint)
language plpgsql
as $$
begin
    insert into affiliate.merchant (merchant_id, name, hosts)
    select 710000 + m, 'Bench ' || m, '{bench.example}' from generate_series(0, 49) m on conflict do nothing;
    insert into affiliate.campaign (merchant_id, campaign_id, name, currency)
    select 710000 + m, 710000 + m, 'Bench', 'NPR' from generate_series(0, 49) m on conflict do nothing;
    insert into affiliate.terms (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, fee_basis_points, hold,
                                 attribution_window)
    select 710000 + m, 710000 + m, 710000 + m, now() - interval '1 year', 1000, 2000, '720 hours', '720 hours'
      from generate_series(0, 49) m on conflict do nothing;

    create temp table bench_due on commit drop as
    select 5000000000000 + n as order_no, 710000 + n % 50 as merchant_id, 720000 + (n * 7) % 200 as affiliate_id,
           1000 + n % 90000 * 100 as amount, 100 + n % 90000 * 10 as commission, 20 + n % 90000 * 2 as fee,
           now() - interval '721 hours' - n * 7919 % 86400 * interval '1 second' as approved_at
      from generate_series(p_first, p_first + p_count - 1) n;

    insert into affiliate.order_fact
          (merchant_id, livemode, has_report, other_click, refund_currency, verdict, customer, revision, order_no,
           reported_at, clicked_at, approved_at, click_id, link_id, campaign_id, affiliate_id, terms_id,
           amount_minor, refunded_minor, posted_affiliate_id, posted_commission_minor, posted_fee_minor, posted_payable,
           currency, posted_currency, outcome, hold_until, order_id)
    select merchant_id, true, true, false, false, 0, 0, 1, order_no,
           approved_at, approved_at, approved_at, affiliate.day_bound('2026-01-01'), 1, merchant_id, affiliate_id, merchant_id,
           amount, 0, affiliate_id, commission, fee, false,
           'NPR', 'NPR', 'accepted', approved_at + interval '720 hours', 'NP-' || order_no
      from bench_due;

    insert into affiliate.account as a (merchant_id, livemode, currency, owner, kind, owner_id, debits_minor, credits_minor)
    select o.merchant_id, true, 'NPR', side.owner, side.kind, side.owner_id, sum(side.debit), sum(side.credit)
      from bench_due o
     cross join lateral (values ('affiliate', 'pending', o.affiliate_id, 0, commission), ('platform', 'fee_pending', 0, 0, fee),
                                ('merchant', 'accrued', o.merchant_id, commission + fee, 0)) as side(owner, kind, owner_id, debit, credit)
     group by 1, 4, 5, 6
        on conflict (merchant_id, livemode, currency, owner, kind, owner_id) do update
       set debits_minor = a.debits_minor + excluded.debits_minor, credits_minor = a.credits_minor + excluded.credits_minor;

    analyze affiliate.account;
    analyze bench_due;

    insert into affiliate.transfer (merchant_id, cause_id, cause_revision, cause_kind, code, debit_account, credit_account,
                                    amount_minor, livemode, currency)
    select o.merchant_id, o.order_no, 1, 1, leg.code, d.account_id, c.account_id, leg.amount, true, 'NPR'
      from bench_due o
     cross join lateral (values (1, 'affiliate', 'pending', o.affiliate_id, o.commission),
                                (2, 'platform', 'fee_pending', 0, o.fee)
                        ) as leg(code, owner, kind, owner_id, amount)
      join affiliate.account d on d.merchant_id = o.merchant_id and d.livemode and d.owner = 'merchant' and d.kind = 'accrued'
      join affiliate.account c on c.merchant_id = o.merchant_id and c.livemode and c.owner = leg.owner and c.kind = leg.kind
                              and c.owner_id = leg.owner_id;

    insert into affiliate.hold (merchant_id, order_no, due_at, affiliate_id, commission_minor, fee_minor, revision, livemode, currency,
                                day, campaign_id, link_id)
    select merchant_id, order_no, approved_at + interval '720 hours', affiliate_id, commission, fee, 1, true, 'NPR',
           affiliate.utc_day(approved_at), merchant_id, 1
      from bench_due;
    commit;
end
$$;

-- Nanoseconds that this backend has been on a processor.
create or replace function pg_temp.cpu_ns()
returns bigint
language sql volatile
as $$ select split_part(pg_read_file('/proc/self/schedstat', 0, 100), ' ', 1)::bigint $$;

create or replace procedure pg_temp.release(p_title text)
language plpgsql
as $$
declare
    started timestamptz := clock_timestamp();
    started_ns bigint := pg_temp.cpu_ns();
    started_wal pg_lsn := pg_current_wal_insert_lsn();
    released bigint;
    total bigint := 0;
begin
    loop
        released := affiliate.release_holds(current_setting('bench.batch')::integer);
        commit;
        total := total + released;
        exit when released < current_setting('bench.batch')::integer;
    end loop;
    raise notice '%', format('%-50s %s /s, %s µs of CPU and %s bytes of WAL each', p_title,
                             round(total / extract(epoch from clock_timestamp() - started)),
                             round((pg_temp.cpu_ns() - started_ns) / 1e3 / greatest(total, 1), 1),
                             round((pg_current_wal_insert_lsn() - started_wal) / greatest(total, 1)));
end
$$;

call pg_temp.fill(0, :due);
vacuum analyze affiliate.hold;
set client_min_messages = notice;
call pg_temp.release('holds released, nothing else waiting');
set client_min_messages = warning;

call pg_temp.wait(1, :waiting / 10);
call pg_temp.fill(100000000, :due);
vacuum analyze affiliate.hold;
set client_min_messages = notice;
call pg_temp.release('holds released, with ' || :waiting / 10 || ' waiting');
set client_min_messages = warning;

call pg_temp.wait(:waiting / 10 + 1, :waiting);
call pg_temp.fill(200000000, :due);
vacuum analyze affiliate.hold;
set client_min_messages = notice;
call pg_temp.release('holds released, with ' || :waiting || ' waiting');
set client_min_messages = warning;

delete from affiliate.hold where order_no > 7000000000000;
\pset tuples_only on
\pset format unaligned
select format('%-60s %s', 'broken invariants of the ledger', count(*))
  from (select from affiliate.audit_balances() union all select from affiliate.audit_causes()
        union all select from affiliate.audit_positions()) broken;
