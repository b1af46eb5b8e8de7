-- What the redirect and the conversion location must know, on its way to Redis.
--
-- A record's version is the sum of the versions of the rows that it is made of. Each counts up under its row's lock, so every
-- committed change makes the sum greater, whatever the order of commits. Changes are claimed and deleted, never read by a
-- cursor: a cursor would lose those that commit late.

-- Counts a row's version up with every update, whoever makes it.
create function affiliate.count_version()
returns trigger
language plpgsql
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    new.version := old.version + 1;
    return new;
end
$$;

create trigger merchant_version before update on affiliate.merchant
    for each row execute function affiliate.count_version();
create trigger affiliate_version before update on affiliate.affiliate
    for each row execute function affiliate.count_version();
create trigger campaign_version before update on affiliate.campaign
    for each row execute function affiliate.count_version();
create trigger link_version before update on affiliate.link
    for each row execute function affiliate.count_version();
create trigger api_key_version before update on affiliate.api_key
    for each row execute function affiliate.count_version();

-- Notes which records a change affects; a merchant's keys follow the merchant, too. Its argument says what changed.
create function affiliate.note_projection()
returns trigger
language plpgsql
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    case tg_argv[0]
        when 'link' then
            insert into affiliate.projection_change (kind, name)
            select 'link', coalesce(new.code, old.code);
        when 'key' then
            insert into affiliate.projection_change (kind, name)
            select 'key', coalesce(new.key_id, old.key_id);
        when 'campaign' then
            insert into affiliate.projection_change (kind, name)
            select 'link', l.code
              from affiliate.link l
             where l.merchant_id = new.merchant_id
               and l.campaign_id = new.campaign_id;
        when 'merchant' then
            insert into affiliate.projection_change (kind, name)
            select 'link', l.code
              from affiliate.link l
             where l.merchant_id = new.merchant_id
             union all
            select 'key', k.key_id
              from affiliate.api_key k
             where k.merchant_id = new.merchant_id;
        when 'affiliate' then
            insert into affiliate.projection_change (kind, name)
            select 'link', l.code
              from affiliate.link l
             where l.affiliate_id = new.affiliate_id;
    end case;

    if found then
        notify affiliate_projection;
    end if;

    return null;
end
$$;

create trigger link_projection after insert or update or delete on affiliate.link
    for each row execute function affiliate.note_projection('link');
create trigger key_projection after insert or update or delete on affiliate.api_key
    for each row execute function affiliate.note_projection('key');
-- A new description is no news to the redirect, however many links there are.
create trigger campaign_projection after update on affiliate.campaign
    for each row when (old.suspended is distinct from new.suspended or old.state is distinct from new.state)
    execute function affiliate.note_projection('campaign');
create trigger merchant_projection after update on affiliate.merchant
    for each row execute function affiliate.note_projection('merchant');
create trigger affiliate_projection after update on affiliate.affiliate
    for each row execute function affiliate.note_projection('affiliate');

-- A live key works only once its merchant is approved; a test key also before, but not of one that is rejected or suspended.
create view affiliate.key_projection as
select k.key_id,
       k.version + m.version as version,
       k.merchant_id,
       k.livemode,
       k.revoked_at is not null
           or m.state in ('suspended', 'rejected')
           or k.livemode and m.state <> 'approved' as revoked,
       k.master_id
  from affiliate.api_key k
  join affiliate.merchant m using (merchant_id);

comment on view affiliate.key_projection is 'API keys as protocol/projection.h wants them';

create index link_by_code on affiliate.link (code);
create index api_key_by_id on affiliate.api_key (key_id);

-- The oldest changes, to be written to Redis and then given to projection_done(). They stay until then.
create function affiliate.projection_take(p_max integer)
returns table (change_id bigint, kind text, name text)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select p.change_id, p.kind, p.name
      from affiliate.projection_change p
     order by p.change_id
     limit p_max
$$;

create function affiliate.projection_done(p_ids bigint[])
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    delete from affiliate.projection_change
     where change_id = any (p_ids)
$$;
