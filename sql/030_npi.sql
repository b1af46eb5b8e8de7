-- Batches that the role payouts hands to a provider itself: NPI, the interface of Nepal's clearing house (NCHL) that a bank's
-- customer may be let into. What is true of a file is true here: it goes out once, and what became of it is what the rail says.
--
--   approved ─taken, accounts looked at─▶ checking ─written down, then sent─▶ submitting ─▶ submitted ─asked─▶ over
--       ▲                                                                        │  ╲           │
--       └──────────────── certainly nothing was taken ──────────────────────────┘   unknown ◀───┘
--
-- "submitting" is committed before the first byte that moves money goes out, and only who did that may say that nothing was
-- taken. Whoever finds it later, because that one died, asks; so does whoever finds it unknown. Nothing is ever sent again by
-- itself: a payout may have been sent once, which a unique index says.

create table affiliate.payout_provider (
    provider        text not null check (provider in ('npi')),
    livemode        boolean not null,
    until           timestamptz not null,
    primary key (provider, livemode)
);

comment on table affiliate.payout_provider is 'Which providers a daemon is connected to, as it says again and again';

create table affiliate.payout_submission (
    batch_id        bigint primary key references affiliate.payout_batch,
    state           text not null check (state in ('checking', 'submitting', 'submitted', 'unknown', 'over')),
    next_at         timestamptz not null,
    tries           integer not null default 0,
    detail          text check (length(detail) <= 500),
    sent            integer check (sent > 0),
    submitted_at    timestamptz,
    created_at      timestamptz not null default now(),
    check ((state in ('submitting', 'submitted', 'unknown')) <= (submitted_at is not null and sent is not null))
);

create trigger kept before delete on affiliate.payout_submission
    for each row execute function affiliate.refuse_change();

comment on table affiliate.payout_submission is 'How far a batch is that a daemon hands to a provider';
comment on column affiliate.payout_submission.next_at is 'When somebody may take it; who has taken it knows it by this very time';
comment on column affiliate.payout_submission.sent is 'How many payouts went out: one alone goes by another way than several';
comment on column affiliate.payout_submission.detail is 'What the provider said last';

create table affiliate.payout_submission_item (
    batch_id        bigint not null references affiliate.payout_submission,
    payout_id       bigint not null references affiliate.payout,
    checked_at      timestamptz not null default now(),
    sent_at         timestamptz,
    primary key (batch_id, payout_id)
);

create unique index payout_sent on affiliate.payout_submission_item (payout_id) where sent_at is not null;

comment on table affiliate.payout_submission_item is 'Payouts whose account the provider has found, and which were perhaps sent';

-- ---------------------------------------------------------------------------------------------------------------
-- What may go there
-- ---------------------------------------------------------------------------------------------------------------

-- A daemon says that it is connected, for so long.
create function affiliate.payout_provider_seen(p_provider text, p_livemode boolean, p_for interval)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    insert into affiliate.payout_provider values (p_provider, p_livemode, now() + p_for)
    on conflict (provider, livemode) do update set until = excluded.until
$$;

comment on function affiliate.payout_provider_seen is 'For the role payouts: it is connected to this provider';

-- Field lengths are NPI's: a bank and a branch by their codes, an account of 20 characters.
create function affiliate.provider_takes(p_provider text, p affiliate.payout)
returns boolean
language sql immutable parallel safe
return p_provider <> 'npi'
       or p.currency = 'NPR' and coalesce(p.bank, '') ~ '^[0-9]{4}$' and coalesce(p.branch, '1') ~ '^[0-9]{1,4}$'
          and length(p.account) <= 20 and length(p.holder) <= 140;

create function affiliate.check_provider(b affiliate.payout_batch)
returns void
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    if b.provider = 'npi' then
        if not exists (select from affiliate.payout_provider x where x.provider = b.provider and x.livemode = b.livemode and x.until > now()) then
            perform affiliate.refuse('provider', format('must be csv or manual: no daemon is connected to NPI for %s payouts',
                case when b.livemode then 'live' else 'test' end));
        end if;
        if b.currency <> 'NPR' or not (select k.needs_bank from affiliate.payout_kind k where k.kind = b.kind) then
            perform affiliate.refuse('provider', 'must be csv or manual: NPI pays NPR to bank accounts');
        end if;
    end if;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- For the role payouts
-- ---------------------------------------------------------------------------------------------------------------

-- Locks batch and payouts, if the batch is still the one's who took it; a row of nulls if not.
create function affiliate.lock_submission(p_batch_id bigint, p_taken timestamptz)
returns affiliate.payout_submission
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    s affiliate.payout_submission;
begin
    perform from affiliate.payout_batch b where b.batch_id = p_batch_id for update;
    select * into s from affiliate.payout_submission x where x.batch_id = p_batch_id and x.next_at = p_taken;
    if found then
        perform from affiliate.payout p where p.batch_id = p_batch_id order by p.payout_id for update;
    end if;
    return s;
end
$$;

-- The next batch whose time has come, the caller's own until `taken`; no row if there is none. step is submit (nothing was sent
-- yet) or query (perhaps it was).
create function affiliate.payout_submit_take(p_provider text, p_livemode boolean, p_lease interval)
returns table (batch_id bigint, reference text, currency text, decimals smallint, step text, sent integer, items jsonb, taken timestamptz)
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
#variable_conflict use_column
declare
    b affiliate.payout_batch;
    s affiliate.payout_submission;
begin
    select x.* into b
      from affiliate.payout_batch x
      left join affiliate.payout_submission y using (batch_id)
     where x.provider = p_provider
       and x.livemode = p_livemode
       and x.state in ('approved', 'processing')
       and coalesce(y.next_at, '-infinity') <= now()
     order by coalesce(y.next_at, x.approved_at), x.batch_id
     limit 1
       for update of x skip locked;
    if not found then
        return;
    end if;

    insert into affiliate.payout_submission as z (batch_id, state, next_at)
    values (b.batch_id, 'checking', now() + p_lease)
    on conflict (batch_id) do update
       set next_at = now() + p_lease, state = case when z.state = 'submitting' then 'unknown' else z.state end
     where z.next_at <= now()
    returning * into s;
    -- Another one was faster between our look at it and our lock.
    if s.batch_id is null then
        return;
    end if;

    return query
        select b.batch_id, b.reference, b.currency, k.decimals, case s.state when 'checking' then 'submit' else 'query' end, s.sent,
               coalesce((select jsonb_agg(jsonb_build_object(
                             'instruction', affiliate.instruction(p), 'bank', p.bank, 'branch', p.branch, 'account', p.account,
                             'holder', p.holder, 'amount_minor', p.amount_minor - p.tax_minor, 'checked', i.payout_id is not null) order by p.payout_id)
                           from affiliate.payout p
                           left join affiliate.payout_submission_item i on i.batch_id = b.batch_id and i.payout_id = p.payout_id
                          where p.batch_id = b.batch_id
                            and p.state in ('approved', 'processing', 'unknown')), '[]'),
               s.next_at
          from affiliate.currency k
         where k.currency = b.currency;
end
$$;

comment on function affiliate.payout_submit_take is 'For the role payouts: the next batch to be handed over, or asked about';

-- The payouts of a batch that the provider speaks of: [{instruction, verdict, detail, reference}].
create function affiliate.verdicts(p_batch_id bigint, p_items jsonb)
returns table (payout_id bigint, state text, reason text, verdict text, detail text, reference text)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with said as materialized (
        select x.*, case when x.instruction ~ '^[A-Z]{2}[0-9]{1,18}$' then substr(x.instruction, 3)::bigint end as payout_id
          from jsonb_to_recordset(p_items) x (instruction text, verdict text, detail text, reference text)
    )
    select p.payout_id, p.state, p.reason, x.verdict, coalesce(x.detail, ''), coalesce(x.reference, '')
      from said x
     cross join lateral (
               select p.payout_id, p.state, p.reason
                 from affiliate.payout p
                where p.payout_id = x.payout_id
                  and p.batch_id = p_batch_id
                  and affiliate.instruction(p) = x.instruction
               offset 0
           ) p
$$;

-- Says what became of payouts, by the provider's words.
create function affiliate.apply_verdicts(p_batch_id bigint, p_items jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    update affiliate.payout p
       set rail_reference = left(x.reference, 100)
      from affiliate.verdicts(p_batch_id, p_items) x
     where p.payout_id = x.payout_id
       and x.state in ('processing', 'unknown') and x.verdict in ('settled', 'rejected') and x.reference <> '';
    -- What was unknown for one reason may be it for another by now: a person has to know the last.
    update affiliate.payout p
       set reason = left(x.detail, 500)
      from affiliate.verdicts(p_batch_id, p_items) x
     where p.payout_id = x.payout_id
       and x.state = 'unknown' and x.verdict = 'unknown' and x.detail <> '' and x.reason <> left(x.detail, 500);
    perform affiliate.settle_payouts(array_agg(v.payout_id order by v.payout_id), v.outcome, null, v.why)
       from (select x.payout_id, o.outcome,
                    case when o.outcome <> 'paid' then left(coalesce(nullif(x.detail, ''), 'NPI gives no reason.'), 500) end as why
               from affiliate.verdicts(p_batch_id, p_items) x
              cross join lateral (select case x.verdict when 'settled' then 'paid' when 'rejected' then 'failed' when 'unknown' then 'unknown' end) o(outcome)
              where x.state in ('approved', 'processing', 'unknown')
                and (x.state <> 'approved' or o.outcome = 'failed')
                and o.outcome <> x.state) v
      group by v.outcome, v.why;
end
$$;

-- Of a batch that is being looked at: accounts that were found (accepted), or not (rejected: such a payout has failed). The
-- batch is the caller's for another while; null if it is not any more, or nothing is left of it.
create function affiliate.payout_submit_checked(p_batch_id bigint, p_items jsonb, p_taken timestamptz, p_lease interval)
returns timestamptz
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    s affiliate.payout_submission := affiliate.lock_submission(p_batch_id, p_taken);
    mine timestamptz;
begin
    if s.state is distinct from 'checking'
       or not exists (select from affiliate.payout_batch b where b.batch_id = p_batch_id and b.state = 'approved') then
        return null;
    end if;
    perform affiliate.apply_verdicts(p_batch_id,
        (select coalesce(jsonb_agg(i), '[]') from jsonb_array_elements(p_items) i where i ->> 'verdict' = 'rejected'));
    insert into affiliate.payout_submission_item (batch_id, payout_id)
    select p_batch_id, x.payout_id
      from affiliate.verdicts(p_batch_id, p_items) x
     where x.verdict = 'accepted' and x.state = 'approved'
        on conflict do nothing;
    if exists (select from affiliate.payout p where p.batch_id = p_batch_id and p.state = 'approved') then
        update affiliate.payout_submission x set next_at = now() + p_lease where x.batch_id = p_batch_id returning next_at into mine;
    else
        update affiliate.payout_batch b set state = 'settled', settled_at = now() where b.batch_id = p_batch_id;
        update affiliate.payout_submission x set state = 'over' where x.batch_id = p_batch_id;
    end if;
    return mine;
end
$$;

comment on function affiliate.payout_submit_checked is 'For the role payouts: which accounts the provider has found';

-- Writes down that the batch is about to go out. From this commit on it is only asked about, unless the caller himself knows
-- that nothing was taken. Null: it may not go out.
create function affiliate.payout_submit_begin(p_batch_id bigint, p_taken timestamptz, p_lease interval)
returns timestamptz
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    s affiliate.payout_submission := affiliate.lock_submission(p_batch_id, p_taken);
    chosen bigint[] := array(select p.payout_id from affiliate.payout p where p.batch_id = p_batch_id and p.state = 'approved' order by p.payout_id);
    mine timestamptz;
begin
    if s.state is distinct from 'checking' or cardinality(chosen) = 0
       or not exists (select from affiliate.payout_batch b where b.batch_id = p_batch_id and b.state = 'approved') then
        return null;
    end if;
    update affiliate.payout_submission_item i
       set sent_at = now()
     where i.batch_id = p_batch_id and i.payout_id = any (chosen);
    if (select count(*) from affiliate.payout_submission_item i where i.batch_id = p_batch_id and i.sent_at is not null) <> cardinality(chosen) then
        raise exception 'batch % has payouts whose accounts were not looked at', p_batch_id using errcode = 'check_violation';
    end if;
    perform affiliate.payout_state(chosen, 'processing', null, null);
    update affiliate.payout_batch b set state = 'processing', exported_at = now(), reason = null where b.batch_id = p_batch_id;
    update affiliate.payout_submission x
       set state = 'submitting', submitted_at = now(), sent = cardinality(chosen), next_at = now() + p_lease, detail = null
     where x.batch_id = p_batch_id
    returning next_at into mine;
    return mine;
end
$$;

comment on function affiliate.payout_submit_begin is 'For the role payouts: the batch goes out now';

-- Nothing of it was taken: it is approved as it was, tried again, and may be rejected.
create function affiliate.unsubmit(p_batch_id bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    chosen bigint[] := array(select p.payout_id from affiliate.payout p where p.batch_id = p_batch_id and p.state = 'processing' order by p.payout_id);
begin
    perform affiliate.payout_state(chosen, 'approved', null, null);
    update affiliate.payout_submission_item i set sent_at = null where i.batch_id = p_batch_id;
    update affiliate.payout_batch b set state = 'approved', exported_at = null where b.batch_id = p_batch_id;
    update affiliate.payout_submission x set state = 'checking', submitted_at = null, sent = null where x.batch_id = p_batch_id;
end
$$;

-- What came of handing it over, or of asking: submitted (the provider has it), refused (it has it not, and never will: all of it
-- has failed), unknown, or later (the provider was not reached: certainly nothing was taken, or nothing was said). p_items are
-- verdicts on single payouts: settled, rejected, unknown; pending ones stay as they are. Returns the state that the batch has
-- now; null if it was not the caller's any more: then nothing is changed, and who has it will ask.
create function affiliate.payout_submit_done(p_batch_id bigint, p_outcome text, p_detail text, p_items jsonb, p_taken timestamptz, p_pause interval)
returns text
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    s affiliate.payout_submission := affiliate.lock_submission(p_batch_id, p_taken);
    why text := left(coalesce(nullif(p_detail, ''), 'NPI gives no reason.'), 500);
    now_state text;
begin
    if s.batch_id is null then
        return null;
    elsif p_outcome = 'later' then
        if s.state = 'submitting' then
            perform affiliate.unsubmit(p_batch_id);
        end if;
    elsif s.state not in ('submitting', 'submitted', 'unknown') or p_outcome not in ('submitted', 'refused', 'unknown') then
        raise exception 'batch % is %, and can''t be %', p_batch_id, s.state, p_outcome using errcode = 'check_violation';
    else
        perform affiliate.apply_verdicts(p_batch_id, coalesce(p_items, '[]'));
        if p_outcome in ('refused', 'unknown') then
            perform affiliate.settle_payouts(
                array(select p.payout_id from affiliate.payout p
                       where p.batch_id = p_batch_id and (p.state = 'processing' or p.state = 'unknown' and p_outcome = 'refused')
                         and p.payout_id <> all (array(select x.payout_id from affiliate.verdicts(p_batch_id, p_items) x
                                                        where x.verdict in ('pending', 'unknown')))
                       order by p.payout_id),
                case p_outcome when 'refused' then 'failed' else 'unknown' end, null, why);
        end if;
        perform affiliate.close_batch(p_batch_id);
    end if;

    update affiliate.payout_submission x
       set state = case when b.state = 'settled' then 'over' when p_outcome in ('submitted', 'unknown') then p_outcome else x.state end,
           tries = case when s.state = 'submitting' and p_outcome <> 'later' then 0 else x.tries + 1 end,
           next_at = now() + greatest(p_pause, least(p_pause * power(2, least(x.tries, 12)), '1 hour')) * (0.75 + random() / 2),
           detail = case when p_outcome = 'submitted' and coalesce(p_detail, '') = '' then null else why end
      from affiliate.payout_batch b
     where x.batch_id = p_batch_id and b.batch_id = p_batch_id
    returning x.state into now_state;
    update affiliate.payout_batch b
       set reason = x.detail
      from affiliate.payout_submission x
     where b.batch_id = p_batch_id and x.batch_id = p_batch_id and b.reason is distinct from x.detail;
    return now_state;
end
$$;

comment on function affiliate.payout_submit_done is 'For the role payouts: what the provider said to a batch';

-- How many batches are under way, and since how many seconds the oldest of which nobody knows.
create function affiliate.payout_submit_counts()
returns table (waiting bigint, oldest bigint)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select count(*), coalesce(extract(epoch from now() - min(s.submitted_at) filter (where s.state = 'unknown'))::bigint, 0)
      from affiliate.payout_batch b
      left join affiliate.payout_submission s using (batch_id)
     where b.provider = 'npi' and b.state in ('approved', 'processing')
$$;

comment on function affiliate.payout_submit_counts is 'For the role payouts: batches under way, and the age of the oldest unknown one';

-- ---------------------------------------------------------------------------------------------------------------
-- The proof
-- ---------------------------------------------------------------------------------------------------------------

-- Submissions: each is where its batch is, and what was sent is what is under way or was decided.
create function affiliate.audit_npi(p_since timestamptz default null)
returns table (invariant text, merchant_id bigint, subject text, detail text)
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select 'submission is where its batch is', null::bigint, 'batch ' || b.reference, format('%s, and %s', b.state, coalesce(s.state, 'not submitted'))
      from affiliate.payout_batch b
      left join affiliate.payout_submission s using (batch_id)
     where b.provider = 'npi'
       and case b.state when 'processing' then coalesce(s.state, '') not in ('submitting', 'submitted', 'unknown')
                        when 'settled' then coalesce(s.state, 'checking') = 'checking'
                        else coalesce(s.state, 'checking') <> 'checking' end
    union all
    select 'only a batch of its own is submitted', null, 'batch ' || b.reference, format('its provider is %s', b.provider)
      from affiliate.payout_submission s
      join affiliate.payout_batch b using (batch_id)
     where b.provider <> 'npi'
    union all
    select 'what was sent is on its way or decided', null, 'payout ' || p.payout_id, format('sent, and %s in batch %s', p.state, coalesce(p.batch_id::text, 'none'))
      from affiliate.payout_submission_item i
      join affiliate.payout p using (payout_id)
     where i.sent_at is not null
       and (p.state not in ('processing', 'unknown', 'paid', 'failed', 'recalled') or p.batch_id is distinct from i.batch_id)
    union all
    select 'what is on its way was sent', null, 'payout ' || p.payout_id, format('%s in batch %s', p.state, b.reference)
      from affiliate.payout p
      join affiliate.payout_batch b using (batch_id)
     where b.provider = 'npi' and p.state in ('processing', 'unknown', 'paid')
       and not exists (select from affiliate.payout_submission_item i
                        where i.batch_id = b.batch_id and i.payout_id = p.payout_id and i.sent_at is not null);
end
$$;

select affiliate.enter_as_owner(
    'affiliate.payout_provider_seen(text, boolean, interval)', 'affiliate.payout_submit_take(text, boolean, interval)',
    'affiliate.payout_submit_checked(bigint, jsonb, timestamptz, interval)', 'affiliate.payout_submit_begin(bigint, timestamptz, interval)',
    'affiliate.payout_submit_done(bigint, text, text, jsonb, timestamptz, interval)', 'affiliate.payout_submit_counts()');
