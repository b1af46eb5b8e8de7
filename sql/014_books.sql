-- What was written into the books stays as it was written, also for whoever owns them and makes a mistake.
--
-- For rows of a click partition the trigger is the partition's own: PostgreSQL gives it to each, whoever adds it. Nothing here
-- runs when rows are added. The owner can still take a trigger away, and a partition that retention drops is gone.

create function affiliate.refuse_change()
returns trigger
language plpgsql
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    raise exception '% of affiliate.% is refused: its rows are never changed', tg_op, tg_table_name
        using errcode = 'insufficient_privilege';
end
$$;

create trigger immutable
before update or delete or truncate on affiliate.transfer
for each statement execute function affiliate.refuse_change();

create trigger immutable
before update or delete on affiliate.click
for each row execute function affiliate.refuse_change();

create trigger kept
before truncate on affiliate.click
for each statement execute function affiliate.refuse_change();

-- Only what becomes of a conversion changes.
create trigger kept
before delete or truncate on affiliate.conversion
for each statement execute function affiliate.refuse_change();

-- The bound of retention, for a daemon that is not the owner: nobody is given the right to write here.
create table affiliate.retention_floor (
    days integer not null check (days >= 2),
    only_row boolean primary key default true check (only_row)
);

comment on table affiliate.retention_floor is
    'Days that click partitions are kept at least, whatever the daemon is told; for the owner to change';

insert into affiliate.retention_floor (days) values (7);

create function affiliate.retention_floor()
returns integer
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select coalesce((select f.days from affiliate.retention_floor f), 2)
$$;

-- Creates the partitions of the days from two ago to p_ahead ahead, drops those that ended more than p_retention days
-- ago (0 = never; of less than the floor it is the floor), and prunes the inbox, which must know batches only as long as their
-- spool or stream could send them again.
create or replace function affiliate.maintain_partitions(p_ahead integer, p_retention integer)
returns table (action text, relation text)
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set lock_timeout = '2s'
as $$
declare
    today date := (now() at time zone 'UTC')::date;
    pruned bigint;
    leaf record;
begin
    -- Whoever comes second has nothing to do.
    if not pg_try_advisory_xact_lock(hashtextextended('affiliate.maintain_partitions', 0)) then
        return;
    end if;

    for leaf in
        select d::date as day
          from generate_series(today - 2, today + greatest(p_ahead, 0), interval '1 day') d
         where to_regclass('affiliate.click_' || to_char(d, 'YYYYMMDD')) is null
    loop
        action := 'created';
        relation := affiliate.create_click_partition(leaf.day);
        return next;
    end loop;

    if p_retention > 0 then
        for leaf in
            select p.relation as name
              from affiliate.click_partitions() p
             where p.day < today - greatest(p_retention, affiliate.retention_floor())
             order by p.day
        loop
            execute format('alter table affiliate.click detach partition %s', leaf.name);
            execute format('drop table %s', leaf.name);
            action := 'dropped';
            relation := leaf.name;
            return next;
        end loop;
    end if;

    delete from affiliate.inbox i
     where i.applied_at < now() - affiliate.inbox_retention();
    get diagnostics pruned = row_count;

    if pruned > 0 then
        action := 'pruned';
        relation := 'affiliate.inbox';
        return next;
    end if;
end
$$;

-- Replacing it made it one that runs as whoever calls it.
select affiliate.enter_as_owner('affiliate.maintain_partitions(integer, integer)');
