-- What arrives: the inbox, click partitions, dead letters.

-- Inserts the batches that are not there and returns their 1-based positions; the others were applied before.
create function affiliate.inbox_accept(
    p_channel smallint, p_spool bigint[], p_segment bigint[], p_sequence integer[], p_records integer[])
returns setof integer
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with batch as (
        select b.spool_id, b.segment, b.sequence, b.records, b.place::integer
          from unnest(p_spool, p_segment, p_sequence, p_records) with ordinality
               as b(spool_id, segment, sequence, records, place)
    ),
    accepted as (
        insert into affiliate.inbox (channel, spool_id, segment, sequence, records)
        select distinct on (b.spool_id, b.segment, b.sequence)
               p_channel, b.spool_id, b.segment, b.sequence, b.records
          from batch b
         order by b.spool_id, b.segment, b.sequence, b.place
            on conflict do nothing
        returning spool_id, segment, sequence
    )
    select min(b.place)
      from batch b
      join accepted a using (spool_id, segment, sequence)
     group by b.spool_id, b.segment, b.sequence
     order by 1
$$;

-- Null if it is an entry that is there already: it was committed, but came again because its acknowledgement was lost.
create function affiliate.dead_letter_add(
    p_channel smallint, p_spool bigint, p_segment bigint, p_sequence integer, p_record integer,
    p_reason text, p_detail text, p_payload bytea)
returns bigint
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    insert into affiliate.dead_letter (channel, spool_id, segment, sequence, record, reason, detail, payload)
    values (p_channel, p_spool, p_segment, p_sequence, p_record, p_reason, p_detail, p_payload)
        on conflict (channel, detail, sha256(payload)) where record is null and spool_id = 0 do nothing
    returning dead_letter_id
$$;

-- The days that have a partition.
create function affiliate.click_partitions()
returns table (day date, relation text)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select to_date(right(c.relname, 8), 'YYYYMMDD'),
           'affiliate.' || c.relname
      from pg_catalog.pg_inherits i
      join pg_catalog.pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'affiliate.click'::regclass
       and c.relname ~ '^click_[0-9]{8}$'
     order by 1
$$;

-- Clicks before this time are no longer kept.
create function affiliate.clicks_kept_since()
returns timestamptz
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select coalesce(min(day)::timestamp at time zone 'UTC', '-infinity')
      from affiliate.click_partitions()
$$;

-- Whoever may add clicks may add them to every day: the daemon copies straight into the partition.
create function affiliate.create_click_partition(p_day date)
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

-- Creates the partitions of the days from two ago to p_ahead ahead, drops those that ended more than p_retention days
-- ago (0 = never; of less than the floor it is the floor), and prunes the inbox, which must know batches only as long as their
-- spool or stream could send them again.
create function affiliate.maintain_partitions(p_ahead integer, p_retention integer)
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

-- How long a batch could still be sent again: longer than any outage that a spool is made for.
create function affiliate.inbox_retention()
returns interval
language sql immutable parallel safe
return interval '30 days';

-- How long a conversion waits for its click.
create function affiliate.waiting_limit()
returns interval
language sql immutable parallel safe
return interval '7 days';
