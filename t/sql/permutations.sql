-- Whatever the order in which events arrive, however often, and however they are cut into batches, the books end the same.

\ir support/fixture.psql

select plan(4);

-- The five events and a duplicate of each. A duplicate of a partial refund tells the same refund_id again.
create temp table event (name text, body jsonb);
insert into event
select name, body || jsonb_build_object('click', pg_temp.click_id(1, now() - interval '3 hours'), 'order', 'P')
  from (values
           ('pending',   '{"status": "pending",   "amount": 100005, "key": "k1"}'::jsonb
                         || jsonb_build_object('at', now() - interval '160 minutes')),
           ('approved',  '{"status": "approved",  "amount": 90005, "key": "k2"}'
                         || jsonb_build_object('at', now() - interval '150 minutes')),
           ('refund 1',  '{"status": "refunded",  "amount": 10001, "refund": "r1", "key": "k3"}'
                         || jsonb_build_object('at', now() - interval '140 minutes')),
           ('refund 2',  '{"status": "returned",  "amount": 333, "refund": "r2", "key": "k4"}'
                         || jsonb_build_object('at', now() - interval '130 minutes')),
           ('cancelled', '{"status": "cancelled", "key": "k5"}'
                         || jsonb_build_object('at', now() - interval '120 minutes'))
       ) as e(name, body);
select pg_temp.click(1) \g /dev/null

-- Runs the sequence of events under an order id and keys of its own; cut into batches where the mask has a bit.
create function pg_temp.run(p_serial integer, p_names text[], p_cuts integer)
returns text
language plpgsql
as $$
declare
    place integer := 0;
    step text;
    body jsonb;
begin
    foreach step in array p_names loop
        select e.body into body from event e where e.name = step;
        -- A second telling comes with the same key, or, every other time, with a key of its own.
        perform pg_temp.stage(body || jsonb_build_object(
            'order', 'P-' || p_serial,
            'body', body ->> 'key',
            'key', format('%s-%s%s', body ->> 'key', p_serial,
                          case when (p_serial + place) % 2 = 0 then '' else '-' || place end)));
        place := place + 1;
        if p_cuts & (1 << (place % 12)) <> 0 then
            perform pg_temp.apply();
        end if;
    end loop;
    perform pg_temp.apply();

    return (select format('%s %s %s %s %s %s', outcome, problem, posted_commission_minor, posted_fee_minor,
                          refunded_minor, amount_minor)
              from affiliate.order_fact
             where merchant_id = 900001 and livemode and order_id = 'P-' || p_serial);
end
$$;

create function pg_temp.permutations(p_names text[])
returns setof text[]
language sql
as $$
    with recursive p as (
        select '{}'::text[] as taken, p_names as rest
         union all
        select p.taken || p.rest[i], p.rest[:i - 1] || p.rest[i + 1:]
          from p, generate_series(1, cardinality(p.rest)) i
    )
    select taken from p where rest = '{}'
$$;

create function pg_temp.without_cancel()
returns text[]
language sql
as $$ select '{pending,approved,refund 1,refund 2}'::text[] $$;

create temp table ending as
select 'five' as kind, pg_temp.run(n::integer, taken, (n * 2654435761 % 4096)::integer) as ending
  from pg_temp.permutations('{pending,approved,refund 1,refund 2,cancelled}') with ordinality as p(taken, n);

insert into ending
select 'four', pg_temp.run(1000 + n::integer, taken || pg_temp.without_cancel(), (n * 40503 % 4096)::integer)
  from pg_temp.permutations(pg_temp.without_cancel()) with ordinality as p(taken, n);

-- Random shuffles of all ten, duplicates anywhere.
insert into ending
select 'ten', pg_temp.run(2000 + n, (
           select array_agg(name order by md5(name || copy || n))
             from event, generate_series(1, 2) copy), n * 7919 % 4096)
  from generate_series(1, 200) n;

select results_eq(
    $$ select distinct ending from ending where kind = 'five' $$,
    $$ values ('accepted  0 0 10334 90005') $$,
    'every permutation of five ends in nothing due, the refunds and the latest amount known');
select results_eq(
    $$ select distinct ending from ending where kind = 'four' $$,
    $$ values ('accepted  7967 1593 10334 90005') $$,
    'without the cancellation, 10 % of what was kept, half-even: 7967.1 -> 7967, fee 1593.4 -> 1593');
select results_eq(
    $$ select distinct ending from ending where kind = 'ten' $$,
    $$ values ('accepted  0 0 10334 90005') $$,
    'so does every shuffle with a duplicate of each, in random batches');
select is_empty($$ select pg_temp.audit() $$, 'and the books are right');

select * from finish();
rollback;
