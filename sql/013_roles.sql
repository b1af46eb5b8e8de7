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

-- Gives a login what the daemon needs and, if p_commands, what the commands of `affiliated` need. For the owner, who is to be
-- somebody else. Again, it takes back the commands if they are not to be.
create function affiliate.grant_rights(p_role name, p_commands boolean default false)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    serves boolean := has_function_privilege(p_role, 'affiliate.api_call(jsonb, text, jsonb, jsonb)', 'execute');
    way record;
    leaf text;
begin
    perform affiliate.check_grantee(p_role);
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

    if serves then
        perform affiliate.grant_api_rights(p_role);
    end if;
end
$$;

comment on function affiliate.grant_rights is 'Lets a login that owns nothing run the daemon, and with true also its commands';

select affiliate.enter_as_owner(variadic array(
    select p.oid::regprocedure
      from pg_catalog.pg_proc p
     where p.pronamespace = 'affiliate'::regnamespace
       and (p.proname in ('inbox_accept', 'dead_letter_add', 'maintain_partitions', 'conversion_stage', 'apply_conversions',
                          'resolve_waiting', 'release_holds', 'projection_take', 'projection_done', 'dead_letter_replayed',
                          'create_click_partition')
            or p.proargtypes = '3802'::oidvector and p.proretset)));
