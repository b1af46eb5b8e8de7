-- Notices: how the role mail takes them, and what becomes of each.
--
-- A notice waits until it was sent, can't be, or need not be. Who takes it has it for a while (next_at is moved): should that
-- one die, another sends it, at the worst a second time and then with the same Message-ID, which follows from the row alone.

-- Until when it is of use; null: for ever.
create function affiliate.notice_expiry(p_data jsonb)
returns timestamptz
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return coalesce(to_timestamp((p_data ->> 'expires')::bigint), (p_data ->> 'expires_at')::timestamptz);
exception when data_exception then
    return null;
end
$$;

-- Why there is no use in sending it any more; null if there is.
create function affiliate.notice_obsolete(n affiliate.notice)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    if affiliate.notice_expiry(n.data) <= now() then
        return 'it would have come after ' || to_char(affiliate.notice_expiry(n.data) at time zone 'UTC', 'YYYY-MM-DD HH24:MI "UTC"');
    end if;
    if n.data ? 'nonce' and not exists (select
                                          from affiliate.token t
                                         where t.user_id = n.user_id
                                           and encode(t.nonce, 'hex') = n.data ->> 'nonce'
                                           and t.used_at is null) then
        return 'its link has been used, or withdrawn';
    end if;
    return null;
end
$$;

-- The next notice whose time has come, the caller's own until `taken`; no row if there is none. Those that are of no use any
-- more are dropped on the way. A name that nobody has vouched for stays out of mails: whoever registers chooses it.
create function affiliate.notice_take(p_lease interval)
returns table (notice_id bigint, template text, recipient text, person text, data jsonb, user_id bigint, created_us bigint,
               expires bigint, taken timestamptz)
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    n affiliate.notice;
    useless text;
begin
    for turn in 1 .. 1000 loop
        select x.* into n
          from affiliate.notice x
         where x.state = 'waiting'
           and x.next_at <= now()
         order by x.next_at, x.notice_id
         limit 1
           for update skip locked;
        exit when not found;

        useless := affiliate.notice_obsolete(n);
        update affiliate.notice x
           set next_at = case when useless is null then now() + p_lease else x.next_at end,
               state = case when useless is null then 'waiting' else 'dropped' end,
               error = coalesce(useless, x.error)
         where x.notice_id = n.notice_id;
        continue when useless is not null;

        return query
            select n.notice_id, n.template, coalesce(n.data ->> 'to', p.email), case when p.verified_at is not null then p.name end,
                   n.data, n.user_id, (extract(epoch from n.created_at) * 1000000)::bigint,
                   extract(epoch from affiliate.notice_expiry(n.data))::bigint, now() + p_lease
              from (values (n.user_id)) as whom (user_id)
              left join affiliate.person p using (user_id);
        return;
    end loop;
end
$$;

comment on function affiliate.notice_take is 'For the role mail: the next mail to be sent';

-- What became of it: sent, failed (this recipient, for good), retry (it was put off; failed after p_attempts) or later (the
-- server is away, which is not the notice's fault). Returns the state it has now. Who comes too late to put it off does not:
-- somebody else has it.
create function affiliate.notice_done(p_notice_id bigint, p_outcome text, p_reason text, p_taken timestamptz, p_attempts integer)
returns text
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    update affiliate.notice x
       set state = case when p_outcome in ('sent', 'failed') then p_outcome
                        when p_outcome = 'retry' and x.tries + 1 >= p_attempts then 'failed'
                        else x.state end,
           sent_at = case when p_outcome = 'sent' then now() end,
           tries = x.tries + (p_outcome = 'retry')::integer,
           next_at = case p_outcome
                         when 'retry' then now() + least(interval '1 hour', interval '1 minute' * power(2, least(x.tries, 10))) * (0.5 + random())
                         else now() end,
           error = case p_outcome
                       when 'sent' then null
                       when 'later' then x.error
                       else left(p_reason, 500) end
     where x.notice_id = p_notice_id
       and x.state = 'waiting'
       and (p_outcome in ('sent', 'failed') or x.next_at = p_taken)
    returning x.state
$$;

comment on function affiliate.notice_done is 'For the role mail: what became of a mail';

create function affiliate.notice_counts()
returns table (waiting bigint, oldest bigint)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select count(*), coalesce(extract(epoch from now() - min(n.created_at))::bigint, 0)
      from affiliate.notice n
     where n.state = 'waiting'
$$;

comment on function affiliate.notice_counts is 'For the role mail: how many mails wait, and since how many seconds the oldest';

-- Addresses and reasons are not kept for ever. Returns how many went.
create function affiliate.notice_forget(p_keep interval)
returns bigint
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with gone as (
        delete from affiliate.notice n
         where n.notice_id in (select x.notice_id
                                 from affiliate.notice x
                                where x.state <> 'waiting'
                                  and x.created_at < now() - p_keep
                                order by x.created_at
                                limit 10000)
        returning 1)
    select count(*) from gone
$$;

comment on function affiliate.notice_forget is 'For the role mail: removes what is long over';

select affiliate.enter_as_owner(
    'affiliate.notice_take(interval)', 'affiliate.notice_done(bigint, text, text, timestamptz, integer)',
    'affiliate.notice_counts()', 'affiliate.notice_forget(interval)');
