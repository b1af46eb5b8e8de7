-- Payouts: so many affiliates, each with something payable at three merchants, ask to be paid; all of it goes through one batch,
-- its file and the rail's answer. Prints how long each step took, by api_call() as the API makes it, commits included.
--
--   psql -Xq -v items=10000 -f t/bench/payouts.sql
--
-- Needs a scratch database with the schema.

\set QUIET on
\set ON_ERROR_STOP on
\if :{?items} \else \set items 10000 \endif
set client_min_messages = warning;
select set_config('bench.items', :'items', false) \g /dev/null
select * from affiliate.maintain_partitions(2, 0) \g /dev/null

create or replace procedure pg_temp.prepare()
language plpgsql
as $$
declare
    items integer := current_setting('bench.items');
begin
    insert into affiliate.merchant (merchant_id, name, hosts) select 730000 + m, 'Bench ' || m, '{bench.example}' from generate_series(1, 3) m;
    insert into affiliate.campaign (merchant_id, campaign_id, name, currency) select 730000 + m, 730000 + m, 'Bench', 'NPR' from generate_series(1, 3) m;
    insert into affiliate.terms (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, fee_basis_points, hold, attribution_window)
    select 730000 + m, 730000 + m, 730000 + m, now() - interval '1 year', 1000, 2000, '0', '720 hours' from generate_series(1, 3) m;
    insert into affiliate.person (user_id, email, name, password, verified_at, is_admin)
    select 730000 + n, 'bench' || n || '@bench.example', 'Bench ' || n, '$scrypt$bench', now(), n > items from generate_series(1, items + 2) n;
    insert into affiliate.affiliate (affiliate_id, name, user_id) select 730000 + n, 'Bench ' || n, 730000 + n from generate_series(1, items) n;
    insert into affiliate.session (user_id, token_hash, csrf_hash, created_at, last_seen_at)
    select p.user_id, 'bench-' || p.user_id, 'bench', now(), now() from affiliate.person p where p.user_id > 730000;
    insert into affiliate.payout_method (affiliate_id, kind, holder, account, is_default, changed_at)
    select 730000 + n, 'esewa', 'Bench ' || n, (9800000000 + n)::text, true, now() - interval '30 days' from generate_series(1, items) n;

    create temp table bench_order as
    select n, 730001 + n % 3 as merchant_id, 730001 + n / 3 as affiliate_id, 500000 + (n * 7919::bigint) % 1000000 as amount,
           (lpad(to_hex((extract(epoch from now() - interval '1 hour') * 1000 + n)::bigint), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid as click_id
      from generate_series(0, items * 3 - 1) n;
    insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons)
    select click_id, merchant_id, 1, merchant_id, affiliate_id, true, 0, 0 from bench_order order by click_id;
    perform affiliate.conversion_stage();
    for part in 0 .. (items * 3 - 1) / 10000 loop
        truncate pg_temp.conversion_stage;
        insert into affiliate.inbox (channel, spool_id, segment, sequence, records) values (2, 730000, 1, part, least(10000, items * 3 - part * 10000));
        insert into pg_temp.conversion_stage
        select 730000, 1, part, n, merchant_id, true, 1, 0, 'ak_live_bench', 'bench-' || n, '\x00112233445566778899aabbccddeeff', now(), null,
               click_id, 'B-' || n, 2, 0, amount, 'NPR', null, null, null, null, null, null
          from bench_order where n / 10000 = part;
        perform affiliate.apply_conversions();
    end loop;
    perform affiliate.release_holds(items * 3);
    commit;
end
$$;

create or replace function pg_temp.call(p_user bigint, p_operation text, p_request jsonb)
returns jsonb
language sql
as $$
    select r from affiliate.api_call(jsonb_build_object('session', 'bench-' || p_user, 'csrf', 'bench'), p_operation, p_request,
        jsonb_build_object('request_id', 'bench', 'body_hash', 'b', 'address', '127.0.0.1', 'idempotency_key', gen_random_uuid())) with ordinality c(r, n)
     where n > 1
$$;

create or replace procedure pg_temp.measure()
language plpgsql
as $$
declare
    items integer := current_setting('bench.items');
    maker bigint := 730000 + items + 1;
    batch jsonb;
    lines jsonb;
    upload text;
    step text;
    began timestamptz := clock_timestamp();
    started timestamptz;
    requested interval;
begin
    for n in 1 .. items loop
        perform pg_temp.call(730000 + n, 'payout_create', '{"amount": "1500.00", "currency": "NPR"}');
        commit;
    end loop;
    requested := clock_timestamp() - began;
    raise notice 'payouts requested, each in its own transaction  %', round(items / extract(epoch from requested));

    began := clock_timestamp();
    foreach step in array '{create,propose,approve,export}'::text[] loop
        started := clock_timestamp();
        batch := pg_temp.call(maker + case when step = 'approve' then 1 else 0 end, 'payout_batch_' || step,
            case when step = 'create' then '{"kind": "esewa", "currency": "NPR"}'::jsonb else jsonb_build_object('batch', batch ->> 'batch') end);
        commit;
        raise notice 'batch %, ms  %', step, round(1000 * extract(epoch from clock_timestamp() - started));
    end loop;

    started := clock_timestamp();
    upload := pg_temp.call(maker, 'payout_result_create', jsonb_build_object('batch', batch ->> 'batch', '_header', '["Reference", "Amount", "Status", "Transaction Id"]'::jsonb)) ->> '_upload';
    for part in 0 .. (items - 1) / 1000 loop
        lines := (select jsonb_agg(jsonb_build_array(affiliate.instruction(p), affiliate.amount_text(p.amount_minor - p.tax_minor, 2::smallint),
                                   case when p.payout_id % 100 = 0 then 'rejected' else 'paid' end, 'T' || p.payout_id) order by p.payout_id)
                    from (select p.* from affiliate.payout p where p.batch_id = (batch ->> 'batch')::bigint order by p.payout_id limit 1000 offset part * 1000) p);
        perform pg_temp.call(maker, 'payout_result_create_rows', jsonb_build_object('batch', batch ->> 'batch', '_upload', upload, '_line', part * 1000 + 1, '_rows', lines));
        commit;
    end loop;
    raise notice 'answer uploaded, ms  %', round(1000 * extract(epoch from clock_timestamp() - started));
    started := clock_timestamp();
    batch := pg_temp.call(maker, 'payout_result_create_done', jsonb_build_object('batch', batch ->> 'batch', '_upload', upload, '_lines', items));
    commit;
    raise notice 'answer applied, ms  %', round(1000 * extract(epoch from clock_timestamp() - started));
    raise notice 'paid % failed %  %', batch ->> 'paid', batch ->> 'failed', items;
    raise notice 'payouts through the batch, from its making to the last commit  %', round(items / extract(epoch from clock_timestamp() - began));
    raise notice 'payouts from request to paid  %', round(items / extract(epoch from clock_timestamp() - began + requested));
end
$$;

call pg_temp.prepare();
-- Only what is filled: of tables that are empty the planner had better know nothing.
vacuum analyze affiliate.account, affiliate.order_fact, affiliate.transfer, affiliate.release, affiliate.release_item, affiliate.affiliate,
    affiliate.person, affiliate.session, affiliate.payout_method;
set client_min_messages = notice;
call pg_temp.measure();
\pset tuples_only on
\pset format unaligned
select format('broken invariants  %s', count(*)) from affiliate.audit();
