-- Conversions that wait for their click.

\ir support/fixture.psql
select plan(4);

-- A session that has looked when there was nothing, then finds many to resolve, on tables that had pages and no row when they
-- were vacuumed: the planner takes any index for as good as another.
update pg_class
   set relpages = 4, reltuples = 0
 where oid in ('affiliate.order_fact'::regclass, 'affiliate.conversion'::regclass, 'affiliate.waiting'::regclass);
create procedure pg_temp.look(p_times integer)
language plpgsql
as $$
begin
    for n in 1..p_times loop
        perform affiliate.resolve_waiting(100);
    end loop;
end
$$;
call pg_temp.look(8);
-- The conversions are large, so that their table's size hides how the orders' grows.
select count(pg_temp.stage(jsonb_build_object('order', 'w' || n, 'key', 'w' || n || repeat('-', 1000), 'status', 'approved', 'amount', 1000,
                                              'click', pg_temp.click_id(n, now() - interval '3 hours'))))
  from generate_series(1, 2000) n \g /dev/null
select is(pg_temp.apply(), 'staged 2000 applied 0 waiting 2000 duplicates 0 dead 0 accepted 0 review 0 rejected 0',
          'conversions wait for their clicks');
select count(pg_temp.click(n)) from generate_series(1, 2000) n \g /dev/null

-- Rows of a table that this transaction has fetched.
create function pg_temp.fetched(p_table text)
returns bigint
language sql volatile
as $$
    select seq_tup_read + idx_tup_fetch
      from pg_stat_xact_user_tables
     where schemaname = 'affiliate' and relname = p_table
$$;
call pg_temp.look(8);
create temp table before as select pg_temp.fetched('order_fact') as orders, pg_temp.fetched('conversion') as conversions;
select is(affiliate.resolve_waiting(100), 100::bigint, 'they are resolved by the hundred');
select cmp_ok(pg_temp.fetched('order_fact') - orders, '<', 1000::bigint, 'which looks at their orders, not at all the orders there are')
  from before;
select cmp_ok(pg_temp.fetched('conversion') - conversions, '<', 1000::bigint, 'and at their conversions, not at all of them')
  from before;

select * from finish();
rollback;
