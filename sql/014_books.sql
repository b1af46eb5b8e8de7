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
