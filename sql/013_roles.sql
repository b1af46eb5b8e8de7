-- Who may do what, where the daemon's login is not the owner of all this.
--
-- The functions that the daemon and its commands call are the way in: they run with their owner's rights, and nobody has
-- them unless grant_rights() gave them. All others run as whoever calls them, so that they give nothing away. A daemon of its
-- own login so has no right to any table but to add clicks; what it may do to money is what these functions do.
--
-- They keep their batches in temporary tables. A login that could make such a table itself could put a trigger on it, that
-- then ran with the owner's rights: grant_rights() refuses a login that may.
--
-- Where one login owns everything and runs the daemon, too, none of this is needed, and none of it is in the way.

create function affiliate.enter_as_owner(variadic p_functions regprocedure[])
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    entry regprocedure;
begin
    foreach entry in array p_functions loop
        execute format('alter function %s security definer', entry);
        execute format('revoke execute on function %s from public', entry);
    end loop;
end
$$;

comment on function affiliate.enter_as_owner is 'Makes functions ways in; for migrations';

-- Creates pg_temp.conversion_stage, which the daemon fills by COPY; once a session. It belongs to the owner: who called
-- may fill and empty it, no more.
create or replace function affiliate.conversion_stage()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.work_tables();

    if to_regclass('pg_temp.conversion_stage') is not null then
        return;
    end if;

    create temp table conversion_stage (
        spool_id bigint, segment bigint, sequence integer, record integer,
        merchant_id bigint, livemode boolean, source smallint, position smallint, key_id text,
        idempotency_key text collate "C", body_hash bytea, received_at timestamptz, occurred_at timestamptz,
        click_id uuid, order_id text collate "C", status smallint, customer smallint,
        amount_minor bigint, currency text, refund_id text collate "C", reason text,
        item_sku text[], item_category text[], item_quantity integer[], item_amount bigint[]
    ) on commit delete rows;

    -- current_user is the owner here; this is who called.
    execute format('grant insert, delete on pg_temp.conversion_stage to %I',
                   coalesce(nullif(current_setting('role'), 'none'), session_user));
end
$$;

-- Whoever may add clicks may add them to every day: the daemon copies straight into the partition.
create or replace function affiliate.create_click_partition(p_day date)
returns text
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    leaf text := 'click_' || to_char(p_day, 'YYYYMMDD');
    writer text;
begin
    -- Attaching takes a lock that lets clicks go on arriving; creating it as a partition at once would not.
    execute format('create table affiliate.%I (like affiliate.click including defaults including constraints)', leaf);
    execute format('alter table affiliate.%I add check (id >= %L and id < %L)',
                   leaf, affiliate.day_bound(p_day), affiliate.day_bound(p_day + 1));
    execute format('alter table affiliate.click attach partition affiliate.%I for values from (%L) to (%L)',
                   leaf, affiliate.day_bound(p_day), affiliate.day_bound(p_day + 1));
    execute format('alter table affiliate.%I set (autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_analyze_scale_factor = 0.2)', leaf);

    for writer in
        select r.rolname
          from pg_catalog.pg_class c
         cross join lateral pg_catalog.aclexplode(c.relacl) g
          join pg_catalog.pg_roles r on r.oid = g.grantee
         where c.oid = 'affiliate.click'::regclass
           and g.privilege_type = 'INSERT'
           and g.grantee <> c.relowner
    loop
        execute format('grant insert on affiliate.%I to %I', leaf, writer);
    end loop;

    return 'affiliate.' || leaf;
end
$$;

-- The ways in. Commands are those that people give: they take a form and return objects.
create function affiliate.entries()
returns table (entry regprocedure, is_command boolean)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select p.oid::regprocedure,
           p.proargtypes = '3802'::oidvector    -- (jsonb)
           or p.proname in ('create_click_partition', 'dead_letter_replayed')
      from pg_catalog.pg_proc p
     where p.pronamespace = 'affiliate'::regnamespace
       and p.prosecdef
$$;

-- Gives a login what the daemon needs and, if p_commands, what the commands of `affiliated` need. For the owner, who is to be
-- somebody else. Again, it takes back the commands if they are not to be.
create function affiliate.grant_rights(p_role name, p_commands boolean default false)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    owner oid := (select n.nspowner from pg_catalog.pg_namespace n where n.nspname = 'affiliate');
    way record;
    leaf text;
begin
    if pg_has_role(p_role, owner, 'member') then
        raise exception '% is a superuser, or the owner of the schema, or may become so: rights would mean nothing', p_role
            using errcode = 'invalid_grant_operation';
    end if;

    execute format('revoke temporary on database %I from public', current_database());
    if has_database_privilege(p_role, current_database(), 'temporary')
        or has_schema_privilege(p_role, 'affiliate', 'create') then
        raise exception '% may create temporary tables in this database, or objects in the schema', p_role
            using errcode = 'invalid_grant_operation',
                  hint = 'The owner of the schema should own the database, too.';
    end if;

    execute format('revoke all on all tables in schema affiliate from %I', p_role);
    execute format('revoke all on all functions in schema affiliate from %I', p_role);
    execute format('grant usage on schema affiliate to %I', p_role);
    execute format('grant select on affiliate.schema_version, affiliate.link_projection, affiliate.key_projection to %I', p_role);
    execute format('grant insert on affiliate.click to %I', p_role);
    for leaf in select p.relation from affiliate.click_partitions() p loop
        execute format('grant insert on %s to %I', leaf, p_role);
    end loop;

    for way in select * from affiliate.entries() e where p_commands or not e.is_command loop
        execute format('grant execute on function %s to %I', way.entry, p_role);
    end loop;

    -- Dead letters are replayed by the command itself, which reads their bytes and looks for their clicks.
    if p_commands then
        execute format('grant select (id, merchant_id) on affiliate.click to %I', p_role);
        execute format('grant select, update (replayed_at) on affiliate.dead_letter to %I', p_role);
    end if;
end
$$;

comment on function affiliate.grant_rights is 'Lets a login that owns nothing run the daemon, and with true also its commands';

-- Gives everybody who had them the rights to what migrations have added. `affiliated migrate` ends with it.
create function affiliate.renew_rights()
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.grant_rights(r.rolname, has_function_privilege(r.oid, 'affiliate.merchant_create(jsonb)', 'execute'))
      from pg_catalog.pg_proc p
     cross join lateral pg_catalog.aclexplode(p.proacl) g
      join pg_catalog.pg_roles r on r.oid = g.grantee
     where p.oid = 'affiliate.apply_conversions()'::regprocedure
       and g.privilege_type = 'EXECUTE'
       and g.grantee <> p.proowner
$$;

select affiliate.enter_as_owner(variadic array(
    select p.oid::regprocedure
      from pg_catalog.pg_proc p
     where p.pronamespace = 'affiliate'::regnamespace
       and (p.proname in ('inbox_accept', 'dead_letter_add', 'maintain_partitions', 'conversion_stage', 'apply_conversions',
                          'resolve_waiting', 'release_holds', 'projection_take', 'projection_done', 'dead_letter_replayed',
                          'create_click_partition')
            or p.proargtypes = '3802'::oidvector and p.proretset)));
