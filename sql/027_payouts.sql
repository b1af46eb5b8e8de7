-- Money out: what an affiliate asks for, who looks at it, which file it goes into, and what became of it.
--
-- A payout draws from what is payable at each merchant and sets it aside at once, so that nothing is paid twice. One person puts
-- payouts into a batch, another approves it; then its file goes to the rail, and the rail's answer comes back:
--
--   requested ─batch─▶ in_review ─approved by another─▶ approved ─file made─▶ processing ─▶ paid
--       │                  │                                                     │   ╲
--   cancelled          rejected                                               failed  unknown ─decided by a person─▶ paid, failed
--
-- What is rejected, cancelled or failed is payable again. What is unknown stays set aside, and is never sent again by itself.
-- Each change of where the money is is a step: transfers of cause 3, a payout's number, and the step's. Nothing here moves money
-- in the world: it prepares files, and is told what became of them.
--
-- Whoever works on payouts locks their batch, then them by number, then accounts in the order of their key.

-- ---------------------------------------------------------------------------------------------------------------
-- Rules
-- ---------------------------------------------------------------------------------------------------------------

create table affiliate.payout_policy (
    currency        text primary key references affiliate.currency,
    minimum_minor   bigint not null check (minimum_minor > 0),
    maximum_minor   bigint not null check (maximum_minor >= minimum_minor and maximum_minor <= 9000000000000),
    cool_off        interval not null check (cool_off >= '0'),
    batch_items     integer not null check (batch_items between 1 and 10000)
);

insert into affiliate.payout_policy values ('NPR', 50000, 200000000, '72 hours', 10000);

comment on table affiliate.payout_policy is 'Currencies that are paid out, and within which limits; for the owner to change';
comment on column affiliate.payout_policy.cool_off is 'So long after a change of the payout method nothing is requested to it: whoever stole an account wants his money quickly';
comment on column affiliate.payout_policy.batch_items is 'Payouts of one file at most';

create table affiliate.tax_rate (
    valid_from      date not null,
    vat_invoice     boolean not null,
    basis_points    integer not null check (basis_points between 0 and 10000),
    primary key (vat_invoice, valid_from)
);

-- Income Tax Act 2058, section 88 (1); with a VAT invoice as for services.
insert into affiliate.tax_rate values ('2002-04-01', false, 1500), ('2002-04-01', true, 150);

comment on table affiliate.tax_rate is 'Tax that is withheld from commissions, by the day of the batch; for the owner to add to';

create table affiliate.tax_profile (
    affiliate_id    bigint primary key references affiliate.affiliate,
    pan             text check (pan ~ '^[0-9]{9}$'),
    vat_registered  boolean not null default false,
    version         bigint not null default 1,
    updated_at      timestamptz not null default now(),
    check (pan is not null or not vat_registered)
);

create trigger tax_profile_version before update on affiliate.tax_profile
    for each row execute function affiliate.count_version();

comment on table affiliate.tax_profile is 'What the tax office knows an affiliate by';
comment on column affiliate.tax_profile.vat_registered is 'Has a VAT number, which is the PAN: may send VAT invoices';

-- ---------------------------------------------------------------------------------------------------------------
-- Batches and payouts
-- ---------------------------------------------------------------------------------------------------------------

create table affiliate.payout_batch (
    batch_id        bigint generated always as identity primary key,
    reference       text not null unique check (length(reference) <= 20),
    kind            text not null references affiliate.payout_kind,
    provider        text not null check (provider in ('csv', 'manual', 'npi')),
    livemode        boolean not null,
    currency        text not null references affiliate.payout_policy,
    state           text not null default 'open' check (state in ('open', 'proposed', 'approved', 'processing', 'settled', 'rejected')),
    maker           bigint not null references affiliate.person,
    checker         bigint references affiliate.person check (checker <> maker),
    reason          text,
    items           integer not null default 0 check (items >= 0),
    amount_minor    bigint not null default 0 check (amount_minor >= 0),
    tax_minor       bigint not null default 0 check (tax_minor >= 0),
    net_minor       bigint not null default 0 check (net_minor >= 0),
    file            text,
    file_sha256     text,
    proposed_at     timestamptz,
    approved_at     timestamptz,
    exported_at     timestamptz,
    settled_at      timestamptz,
    version         bigint not null default 1,
    created_at      timestamptz not null default now(),
    check (amount_minor = tax_minor + net_minor),
    check ((state in ('approved', 'processing', 'settled')) <= (checker is not null)),
    check ((file is null) = (file_sha256 is null))
);

create trigger payout_batch_version before update on affiliate.payout_batch
    for each row execute function affiliate.count_version();

create index payout_batch_state on affiliate.payout_batch (created_at, batch_id) where state in ('open', 'proposed', 'approved', 'processing');

comment on table affiliate.payout_batch is 'Payouts that go out together, by one rail: made by one person, approved by another';
comment on column affiliate.payout_batch.file is 'As it was made, to the byte: it is made once';

create sequence affiliate.payout_batch_no;

create table affiliate.payout (
    payout_id       bigint generated always as identity primary key,
    affiliate_id    bigint not null references affiliate.affiliate,
    livemode        boolean not null,
    currency        text not null references affiliate.payout_policy,
    amount_minor    bigint not null check (amount_minor > 0),
    tax_basis_points integer check (tax_basis_points between 0 and 10000),
    tax_minor       bigint check (tax_minor >= 0),
    vat_invoice     text check (length(vat_invoice) between 1 and 50),
    state           text not null default 'requested' check (state in ('requested', 'in_review', 'approved', 'processing', 'paid', 'rejected',
                                                                       'failed', 'unknown', 'cancelled', 'recalled')),
    reason          text,
    payout_method_id bigint not null,
    kind            text not null references affiliate.payout_kind,
    holder          text not null,
    account         text not null,
    bank            text,
    branch          text,
    batch_id        bigint references affiliate.payout_batch,
    rail_reference  text check (length(rail_reference) <= 100),
    step            integer not null default 0,
    version         bigint not null default 1,
    requested_at    timestamptz not null default now(),
    decided_at      timestamptz,
    settled_at      timestamptz,
    foreign key (affiliate_id, payout_method_id) references affiliate.payout_method,
    check (tax_minor <= amount_minor),
    check (state not in ('in_review', 'approved', 'processing', 'paid', 'unknown', 'recalled') or batch_id is not null and tax_minor is not null),
    check (state not in ('rejected', 'failed', 'unknown', 'recalled') or reason is not null)
);

create trigger payout_version before update on affiliate.payout
    for each row execute function affiliate.count_version();

-- One at a time, until it is decided.
create unique index payout_open on affiliate.payout (affiliate_id, livemode, currency)
    where state in ('requested', 'in_review', 'approved', 'processing');
create index payout_of_affiliate on affiliate.payout (affiliate_id, livemode, payout_id);
create index payout_of_batch on affiliate.payout (batch_id, payout_id) where batch_id is not null;
create index payout_state on affiliate.payout (livemode, state, requested_at, payout_id);
create index payout_settled on affiliate.payout (settled_at, payout_id) where settled_at is not null;
create index payout_account on affiliate.payout (kind, account);

comment on table affiliate.payout is 'What an affiliate asked to be paid, and what became of it; where it goes is as it was when he asked';
comment on column affiliate.payout.tax_minor is 'Withheld, by the rate of the day of its batch; the affiliate gets amount_minor - tax_minor';
comment on column affiliate.payout.vat_invoice is 'The number of the VAT invoice that came with it';
comment on column affiliate.payout.rail_reference is 'What bank or wallet call it';
comment on column affiliate.payout.step is 'How often its money has moved in the ledger; names its transfers';

create table affiliate.payout_draw (
    merchant_id     bigint not null references affiliate.merchant,
    payout_id       bigint not null references affiliate.payout,
    amount_minor    bigint not null check (amount_minor > 0),
    tax_minor       bigint check (tax_minor between 0 and amount_minor),
    primary key (merchant_id, payout_id)
);

create index payout_draw_payout on affiliate.payout_draw (payout_id);

comment on table affiliate.payout_draw is 'Of which merchant''s payable a payout is';

create table affiliate.payout_event (
    payout_id       bigint not null references affiliate.payout,
    event_id        bigint generated always as identity,
    at              timestamptz not null default now(),
    state           text not null,
    user_id         bigint references affiliate.person,
    reason          text,
    primary key (payout_id, event_id)
);

create index payout_event_at on affiliate.payout_event (at, payout_id);

create trigger immutable before update or delete on affiliate.payout_event
    for each row execute function affiliate.refuse_change();

comment on table affiliate.payout_event is 'The timeline of each payout; user_id is null where the program did it';

-- Money that was asked for is never forgotten.
create trigger kept before delete on affiliate.payout
    for each row execute function affiliate.refuse_change();
create trigger kept before delete on affiliate.payout_batch
    for each row execute function affiliate.refuse_change();

-- ---------------------------------------------------------------------------------------------------------------
-- The ledger
-- ---------------------------------------------------------------------------------------------------------------

create table affiliate.payout_leg (
    verb            text not null check (verb in ('freeze', 'return', 'settle', 'recall')),
    code            smallint primary key references affiliate.transfer_code,
    of              text not null check (of in ('amount', 'net', 'tax')),
    debit           text not null,
    credit          text not null
);

insert into affiliate.payout_leg values
    ('freeze', 21, 'amount', 'payable', 'in_payout'),
    ('return', 22, 'amount', 'in_payout', 'payable'),
    ('settle', 23, 'net', 'in_payout', 'paid'),
    ('settle', 24, 'tax', 'in_payout', 'tds_payable'),
    ('recall', 25, 'net', 'paid', 'payable'),
    ('recall', 26, 'tax', 'tds_payable', 'payable');

comment on table affiliate.payout_leg is 'From where to where each step of a payout moves its money';

create function affiliate.leg_amount(p_of text, p_amount_minor bigint, p_tax_minor bigint)
returns bigint
language sql immutable parallel safe
return case p_of when 'amount' then p_amount_minor when 'tax' then coalesce(p_tax_minor, 0) else p_amount_minor - coalesce(p_tax_minor, 0) end;

-- Moves the money of payouts that the caller has locked, each by its next step.
create function affiliate.post_payouts(p_payouts bigint[], p_verb text)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
as $$
begin
    perform affiliate.work_tables();
    perform affiliate.work_clear('account_change', 'account_changed');
    if to_regclass('pg_temp.payout_move') is null then
        create temp table payout_move (
            merchant_id bigint, payout_id bigint, step integer, livemode boolean, currency text, code smallint, amount_minor bigint,
            debit text, debit_owner text, debit_id bigint, credit text, credit_owner text, credit_id bigint) on commit delete rows;
    end if;
    perform affiliate.work_clear('payout_move');

    with stepped as (
        update affiliate.payout set step = step + 1 where payout_id = any (p_payouts)
        returning payout_id, affiliate_id, livemode, currency, step
    )
    insert into pg_temp.payout_move
    select d.merchant_id, p.payout_id, p.step, p.livemode, p.currency, l.code, affiliate.leg_amount(l.of, d.amount_minor, d.tax_minor),
           l.debit, case l.debit when 'tds_payable' then 'platform' else 'affiliate' end, case l.debit when 'tds_payable' then 0 else p.affiliate_id end,
           l.credit, case l.credit when 'tds_payable' then 'platform' else 'affiliate' end, case l.credit when 'tds_payable' then 0 else p.affiliate_id end
      from stepped p
      join (select * from affiliate.payout_draw x where x.payout_id = any (p_payouts)) d using (payout_id)
     cross join affiliate.payout_leg l
     where l.verb = p_verb
       and affiliate.leg_amount(l.of, d.amount_minor, d.tax_minor) > 0;

    insert into pg_temp.account_change
    select m.merchant_id, m.livemode, m.currency, m.debit_owner, m.debit, m.debit_id, m.amount_minor, 0 from pg_temp.payout_move m
     union all
    select m.merchant_id, m.livemode, m.currency, m.credit_owner, m.credit, m.credit_id, 0, m.amount_minor from pg_temp.payout_move m;

    perform affiliate.post_accounts();

    -- One account after the other, as in post_releases().
    with debited as materialized (
        select m.*, d.account_id as debit_account
          from pg_temp.payout_move m
          join pg_temp.account_changed d
            on d.merchant_id = m.merchant_id and d.livemode = m.livemode and d.currency = m.currency
           and d.owner = m.debit_owner and d.kind = m.debit and d.owner_id = m.debit_id
    )
    insert into affiliate.transfer
           (merchant_id, cause_id, cause_revision, cause_kind, code, debit_account, credit_account, amount_minor, livemode, currency)
    select m.merchant_id, m.payout_id, m.step, 3, m.code, m.debit_account, c.account_id, m.amount_minor, m.livemode, m.currency
      from debited m
      join pg_temp.account_changed c
        on c.merchant_id = m.merchant_id and c.livemode = m.livemode and c.currency = m.currency
       and c.owner = m.credit_owner and c.kind = m.credit and c.owner_id = m.credit_id;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- As people see it
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.payout_sentence(p affiliate.payout)
returns text
language sql immutable parallel safe
return case p.state
           when 'requested' then 'It was requested, and waits for a batch.'
           when 'in_review' then 'It is in a batch that a second person has to approve.'
           when 'approved' then 'It was approved; its file is not made yet.'
           when 'processing' then 'Its file was made; the answer of the bank or wallet is awaited.'
           when 'paid' then 'It was paid.'
           when 'rejected' then 'It was rejected, and is payable again: ' || p.reason
           when 'failed' then 'It could not be paid, and is payable again: ' || p.reason
           when 'unknown' then 'Whether it was paid is not known: ' || p.reason || ' A person has to find out; it is not sent again.'
           when 'cancelled' then 'You cancelled it; it is payable again.'
           when 'recalled' then 'It was paid and came back; it is payable again: ' || p.reason
       end;

create function affiliate.masked(p_account text)
returns text
language sql immutable parallel safe
return repeat('*', greatest(length(p_account) - 4, 0)) || right(p_account, 4);

create function affiliate.payout_json(p affiliate.payout)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    decimals smallint := (select k.decimals from affiliate.currency k where k.currency = p.currency);
begin
    return jsonb_build_object(
        'payout', p.payout_id,
        'livemode', p.livemode,
        'currency', p.currency,
        'amount', affiliate.amount_text(p.amount_minor, decimals),
        'tax_percent', affiliate.percent_text(p.tax_basis_points),
        'tax', affiliate.amount_text(p.tax_minor, decimals),
        'net', affiliate.amount_text(p.amount_minor - p.tax_minor, decimals),
        'vat_invoice', p.vat_invoice,
        'state', p.state,
        'sentence', affiliate.payout_sentence(p),
        'reason', p.reason,
        'kind', p.kind,
        'holder', p.holder,
        'account', affiliate.masked(p.account),
        'bank', p.bank,
        'branch', p.branch,
        'rail_reference', p.rail_reference,
        'requested_at', p.requested_at,
        'decided_at', p.decided_at,
        'settled_at', p.settled_at,
        'version', p.version);
end
$$;

create function affiliate.payout_timeline(p_payout_id bigint, p_names boolean)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select coalesce(jsonb_agg(jsonb_build_object('at', e.at, 'state', e.state, 'reason', e.reason)
                              || case when p_names then jsonb_build_object('user', e.user_id) else '{}' end
                              order by e.event_id), '[]')
      from affiliate.payout_event e
     where e.payout_id = p_payout_id
$$;

create function affiliate.payout_draws(p affiliate.payout)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select coalesce(jsonb_agg(jsonb_build_object(
               'merchant', d.merchant_id, 'merchant_name', m.name,
               'amount', affiliate.amount_text(d.amount_minor, k.decimals), 'tax', affiliate.amount_text(d.tax_minor, k.decimals))
               order by d.merchant_id), '[]')
      from affiliate.payout_draw d
      join affiliate.merchant m using (merchant_id)
      join affiliate.currency k on k.currency = p.currency
     where d.payout_id = p.payout_id
$$;

-- For those who decide: whose it is, and the account in full.
create function affiliate.payout_row(p affiliate.payout)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return affiliate.payout_json(p) || jsonb_build_object(
        'affiliate', p.affiliate_id,
        'affiliate_name', (select a.name from affiliate.affiliate a where a.affiliate_id = p.affiliate_id),
        'account', p.account,
        'batch', p.batch_id);
end
$$;

-- What speaks against paying: for a person to weigh, nothing is decided by it.
create function affiliate.payout_signals(p affiliate.payout)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return (select coalesce(jsonb_agg(jsonb_build_object('signal', s.signal, 'detail', s.detail)), '[]')
      from (
            select 'same_destination' as signal, format('affiliate %s has the same account', string_agg(distinct m.affiliate_id::text, ', ')) as detail
              from affiliate.payout_method m
             where m.account = p.account and m.kind = p.kind and m.bank is not distinct from p.bank
               and m.affiliate_id <> p.affiliate_id
            having count(*) > 0
             union all
            select 'new_destination', 'nothing has been paid to this account yet'
             where not exists (select from affiliate.payout o
                                where o.affiliate_id = p.affiliate_id and o.kind = p.kind and o.account = p.account
                                  and o.livemode = p.livemode and o.state = 'paid')
             union all
            select 'suspended', 'the affiliate is ' || a.state
              from affiliate.affiliate a
             where a.affiliate_id = p.affiliate_id and a.state <> 'approved'
             union all
            select 'in_review', format('%s orders of this affiliate are in review', count(*))
              from affiliate.order_fact o
             where o.affiliate_id = p.affiliate_id and o.livemode = p.livemode and o.outcome = 'review'
            having count(*) > 0
             union all
            select 'fraud_case', f.detail
              from affiliate.fraud_signals(p.affiliate_id, p.livemode) f) s);
end
$$;

create function affiliate.payout_batch_json(b affiliate.payout_batch)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    decimals smallint := (select k.decimals from affiliate.currency k where k.currency = b.currency);
begin
    return jsonb_build_object(
        'batch', b.batch_id,
        'reference', b.reference,
        'kind', b.kind,
        'provider', b.provider,
        'livemode', b.livemode,
        'currency', b.currency,
        'state', b.state,
        'reason', b.reason,
        'items', b.items,
        'amount', affiliate.amount_text(b.amount_minor, decimals),
        'tax', affiliate.amount_text(b.tax_minor, decimals),
        'net', affiliate.amount_text(b.net_minor, decimals),
        'sha256', b.file_sha256,
        'maker', b.maker,
        'checker', b.checker,
        'proposed_at', b.proposed_at,
        'approved_at', b.approved_at,
        'exported_at', b.exported_at,
        'settled_at', b.settled_at,
        'version', b.version,
        'created_at', b.created_at);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- The affiliate asks
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.payout_state(p_payouts bigint[], p_state text, p_user_id bigint, p_reason text)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    update affiliate.payout
       set state = p_state,
           reason = p_reason,
           decided_at = case when p_state in ('rejected', 'cancelled', 'approved') then now() else decided_at end,
           settled_at = case when p_state in ('paid', 'failed') then now() else settled_at end
     where payout_id = any (p_payouts);
    insert into affiliate.payout_event (payout_id, state, user_id, reason)
    select p, p_state, p_user_id, p_reason from unnest(p_payouts) p order by p;

    if p_state in ('requested', 'approved', 'paid', 'failed', 'rejected', 'unknown') then
        perform affiliate.emit('payout.' || p_state, null, p.affiliate_id, p.livemode, p.payout_id::text,
                    jsonb_build_object('payout', p.payout_id, 'state', p.state, 'currency', p.currency, 'reason', p.reason,
                        'amount', affiliate.amount_text(p.amount_minor, k.decimals), 'tax', affiliate.amount_text(p.tax_minor, k.decimals),
                        'net', affiliate.amount_text(p.amount_minor - p.tax_minor, k.decimals)))
           from affiliate.payout p
           join affiliate.currency k using (currency)
          where p.payout_id = any (p_payouts)
          order by p.payout_id;
    end if;
end
$$;

-- What is payable at each merchant, locked with what a payout moves besides, in the order of the key; below zero where more came
-- back than was left.
create function affiliate.lock_payable(p_affiliate_id bigint, p_livemode boolean, p_currency text)
returns table (merchant_id bigint, kind text, balance bigint)
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select a.merchant_id, a.kind, (a.credits_minor - a.debits_minor)::bigint
      from affiliate.account a
     where a.owner = 'affiliate' and a.kind in ('in_payout', 'payable') and a.owner_id = p_affiliate_id
       and a.livemode = p_livemode and a.currency = p_currency
     order by a.merchant_id, a.kind
       for update
$$;

-- Draws an amount, at one merchant after the other: of each no more than is there.
create function affiliate.draw_payout(p affiliate.payout)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    k affiliate.currency;
    merchants bigint[];
    balances bigint[];
    available numeric;
begin
    select * into k from affiliate.currency c where c.currency = p.currency;
    select array_agg(x.merchant_id), array_agg(x.balance), coalesce(sum(x.balance), 0) into merchants, balances, available
      from affiliate.lock_payable(p.affiliate_id, p.livemode, p.currency) x
     where x.kind = 'payable';
    if p.amount_minor > available then
        perform affiliate.refuse('amount', format('must not exceed what is payable, %s %s',
            affiliate.amount_text(greatest(available, 0)::bigint, k.decimals), p.currency));
    end if;

    insert into affiliate.payout_draw (merchant_id, payout_id, amount_minor)
    select x.merchant_id, p.payout_id, least(x.balance, p.amount_minor - x.before)
      from (select y.merchant_id, y.balance, sum(y.balance) over (order by y.merchant_id) - y.balance as before
              from unnest(merchants, balances) y(merchant_id, balance)
             where y.balance > 0) x
     where x.before < p.amount_minor;
end
$$;

-- Tells the affiliates what became of payouts; of those of test mode there is nothing to tell.
create function affiliate.notify_payouts(p_payouts bigint[], p_template text, p_reason text)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.notify(a.user_id, p_template, jsonb_strip_nulls(jsonb_build_object(
               'payout', p.payout_id, 'currency', p.currency, 'kind', y.name, 'account', affiliate.masked(p.account),
               'amount', affiliate.amount_text(p.amount_minor, k.decimals), 'tax', affiliate.amount_text(p.tax_minor, k.decimals),
               'net', affiliate.amount_text(p.amount_minor - p.tax_minor, k.decimals), 'reason', p_reason)))
      from affiliate.payout p
      join affiliate.affiliate a using (affiliate_id)
      join affiliate.payout_kind y using (kind)
      join affiliate.currency k on k.currency = p.currency
     where p.payout_id = any (p_payouts)
       and p.livemode
       and a.user_id is not null
     order by p.payout_id
$$;

create function affiliate.request_payout(p_affiliate_id bigint, p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    policy affiliate.payout_policy;
    method affiliate.payout_method;
    wanted bigint;
    made affiliate.payout;
    k affiliate.currency;
begin
    -- Not for update: whoever posts one of his payouts meanwhile refers to him, and has locked accounts that we need.
    perform from affiliate.affiliate a where a.affiliate_id = p_affiliate_id for no key update;
    select * into policy from affiliate.payout_policy x where x.currency = affiliate.currency_field(p_request, 'currency');
    if not found then
        perform affiliate.refuse('currency', 'must be one that is paid out: ' || (select string_agg(x.currency, ', ' order by x.currency) from affiliate.payout_policy x));
    end if;
    select * into k from affiliate.currency x where x.currency = policy.currency;

    select * into method
      from affiliate.payout_method m
     where m.affiliate_id = p_affiliate_id
       and m.removed_at is null
       and case when p_request ->> 'payout_method' is null then m.is_default
                else m.payout_method_id = affiliate.id_field(p_request, 'payout_method') end;
    if not found then
        perform affiliate.refuse('payout_method', 'must be one of yours; make one first');
    end if;
    if p_actor.livemode and method.changed_at > now() - policy.cool_off then
        perform affiliate.problem(409, 'cool_off', format('This payout method was changed; it is paid to from %s on.',
            affiliate.utc_text(method.changed_at + policy.cool_off)));
    end if;
    if exists (select from affiliate.payout o
                where o.affiliate_id = p_affiliate_id and o.livemode = p_actor.livemode and o.currency = policy.currency
                  and o.state in ('requested', 'in_review', 'approved', 'processing')) then
        perform affiliate.problem(409, 'payout_open', 'Another payout of yours is under way; wait until it is decided, or cancel it.');
    end if;

    wanted := affiliate.amount_field(p_request, 'amount', policy.currency);
    if wanted < policy.minimum_minor or wanted > policy.maximum_minor then
        perform affiliate.refuse('amount', format('must be between %s and %s %s', affiliate.amount_text(policy.minimum_minor, k.decimals),
                                                  affiliate.amount_text(policy.maximum_minor, k.decimals), policy.currency));
    end if;
    if p_request ->> 'vat_invoice' is not null
       and not exists (select from affiliate.tax_profile t where t.affiliate_id = p_affiliate_id and t.vat_registered) then
        perform affiliate.refuse('vat_invoice', 'is for those who are registered for VAT; say so in your tax profile');
    end if;

    insert into affiliate.payout
          (affiliate_id, livemode, currency, amount_minor, vat_invoice, payout_method_id, kind, holder, account, bank, branch)
    values (p_affiliate_id, p_actor.livemode, policy.currency, wanted, affiliate.text_field(p_request, 'vat_invoice', 50),
            method.payout_method_id, method.kind, method.holder, method.account, method.bank, method.branch)
    returning * into made;
    perform affiliate.draw_payout(made);
    perform affiliate.post_payouts(array[made.payout_id], 'freeze');
    perform affiliate.payout_state(array[made.payout_id], 'requested', p_actor.user_id, null);
    perform affiliate.notify_payouts(array[made.payout_id], 'payout_requested', null);
    select * into made from affiliate.payout p where p.payout_id = made.payout_id;
    perform affiliate.record(p_actor, 'payout.request', 'payout', made.payout_id::text, null, affiliate.payout_json(made));
    return affiliate.payout_json(made) || jsonb_build_object('timeline', affiliate.payout_timeline(made.payout_id, false));
end
$$;

create function affiliate.refuse_payout()
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.problem(404, 'not_found', 'There is no such payout.')
$$;

create function affiliate.refuse_payout_state(p affiliate.payout)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select affiliate.problem(409, 'payout_state', 'This is not possible as it stands. ' || affiliate.payout_sentence(p))
$$;

-- Locks the batch first, as everybody does who works on both.
create function affiliate.lock_payout(p_payout_id bigint)
returns affiliate.payout
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    p affiliate.payout;
    before bigint;
begin
    loop
        select o.batch_id into before from affiliate.payout o where o.payout_id = p_payout_id;
        perform from affiliate.payout_batch b where b.batch_id = before for update;
        select * into p from affiliate.payout o where o.payout_id = p_payout_id for update;
        exit when p.batch_id is not distinct from before;
    end loop;
    if p.payout_id is null then
        perform affiliate.refuse_payout();
    end if;
    return p;
end
$$;

create function affiliate.cancel_payout(p_affiliate_id bigint, p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    p affiliate.payout := affiliate.lock_payout(affiliate.id_field(p_request, 'payout'));
begin
    if p.affiliate_id <> p_affiliate_id or p.livemode <> p_actor.livemode then
        perform affiliate.refuse_payout();
    end if;
    if p.state <> 'cancelled' then
        if p.state <> 'requested' then
            perform affiliate.refuse_payout_state(p);
        end if;
        perform affiliate.post_payouts(array[p.payout_id], 'return');
        perform affiliate.payout_state(array[p.payout_id], 'cancelled', p_actor.user_id, null);
        perform affiliate.record(p_actor, 'payout.cancel', 'payout', p.payout_id::text, '{"state": "requested"}', '{"state": "cancelled"}');
        select * into p from affiliate.payout o where o.payout_id = p.payout_id;
    end if;
    return affiliate.payout_json(p) || jsonb_build_object('timeline', affiliate.payout_timeline(p.payout_id, false));
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- One person makes a batch, another approves it
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.lock_batch(p_request jsonb, variadic p_states text[])
returns affiliate.payout_batch
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch;
begin
    select * into b from affiliate.payout_batch x where x.batch_id = affiliate.id_field(p_request, 'batch') for update;
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such batch.');
    end if;
    perform affiliate.check_version(p_request, b.version);
    if b.state <> all (p_states) then
        perform affiliate.problem(409, 'batch_state', format('This is not possible: the batch is %s, not %s.', b.state, array_to_string(p_states, ' or ')));
    end if;
    return b;
end
$$;

create function affiliate.count_batch(p_batch_id bigint)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    update affiliate.payout_batch b
       set items = s.items, amount_minor = s.amount, tax_minor = s.tax, net_minor = s.amount - s.tax
      from (select count(*) as items, coalesce(sum(p.amount_minor), 0) as amount, coalesce(sum(p.tax_minor), 0) as tax
              from affiliate.payout p where p.batch_id = p_batch_id) s
     where b.batch_id = p_batch_id
$$;

-- The tax of what is paid today, half to even; of each merchant's part its share, so that the shares add up.
create function affiliate.tax_payouts(p_payouts bigint[])
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    with rated as (
        select p.payout_id, r.basis_points, affiliate.basis_points_of(p.amount_minor, r.basis_points) as tax
          from affiliate.payout p
         cross join lateral (select t.basis_points
                               from affiliate.tax_rate t
                              where t.vat_invoice = (p.vat_invoice is not null)
                                and t.valid_from <= (now() at time zone 'UTC')::date
                              order by t.valid_from desc
                              limit 1) r
         where p.payout_id = any (p_payouts)
    ),
    taxed as (
        update affiliate.payout p
           set tax_basis_points = r.basis_points, tax_minor = r.tax
          from rated r
         where p.payout_id = r.payout_id
        returning p.payout_id, p.amount_minor, p.tax_minor
    )
    -- Up to here of the amount, up to here of the tax: the share is the difference.
    update affiliate.payout_draw d
       set tax_minor = s.upto - s.before
      from (select x.merchant_id, x.payout_id,
                   div(x.running::numeric * t.tax_minor, t.amount_minor)::bigint as upto,
                   div((x.running - x.amount_minor)::numeric * t.tax_minor, t.amount_minor)::bigint as before
              from (select d.*, sum(d.amount_minor) over (partition by d.payout_id order by d.merchant_id) as running
                      from affiliate.payout_draw d where d.payout_id = any (p_payouts)) x
              join taxed t using (payout_id)) s
     where d.merchant_id = s.merchant_id and d.payout_id = s.payout_id
$$;

-- Those that are named, or else those that wait longest, of one rail, mode and currency, as many as a file may hold.
create function affiliate.fill_batch(b affiliate.payout_batch, p_payouts bigint[], p_user_id bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    most integer := (select y.batch_items from affiliate.payout_policy y where y.currency = b.currency);
    chosen bigint[] := array(
        select p.payout_id
          from affiliate.payout p
          join affiliate.affiliate a using (affiliate_id)
         where p.state = 'requested' and p.kind = b.kind and p.livemode = b.livemode and p.currency = b.currency
           and a.state = 'approved'
           and affiliate.provider_takes(b.provider, p)
           and (p_payouts is null or p.payout_id = any (p_payouts))
         order by p.requested_at, p.payout_id
         limit most - b.items);
begin
    perform from affiliate.payout p where p.payout_id = any (chosen) order by p.payout_id for update;
    -- Looked at again: cancelled meanwhile, or in another's batch.
    chosen := array(select p.payout_id from affiliate.payout p where p.payout_id = any (chosen) and p.state = 'requested' order by p.payout_id);
    if p_payouts is not null and (select count(distinct u) from unnest(p_payouts) u) <> cardinality(chosen) then
        perform affiliate.refuse('payouts', 'must be requested ones of this kind, currency and mode, of affiliates that are approved, that the provider takes, and no more than fit; wrong: '
            || (select string_agg(u::text, ', ' order by u) from unnest(p_payouts) u where u <> all (chosen)));
    end if;
    if cardinality(chosen) = 0 then
        perform affiliate.problem(409, 'nothing_requested', 'No payout of this kind, currency and mode waits for a batch.');
    end if;
    perform affiliate.tax_payouts(chosen);
    update affiliate.payout p set batch_id = b.batch_id where p.payout_id = any (chosen);
    perform affiliate.payout_state(chosen, 'in_review', p_user_id, null);
    perform affiliate.count_batch(b.batch_id);
end
$$;

create function affiliate.make_batch(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch;
    asked bigint[];
begin
    if jsonb_typeof(coalesce(p_request -> 'payouts', '[]')) <> 'array' or jsonb_array_length(coalesce(p_request -> 'payouts', '[]')) > 10000
       or exists (select from jsonb_array_elements_text(coalesce(p_request -> 'payouts', '[]')) v where v !~ '^[1-9][0-9]{0,17}$') then
        perform affiliate.refuse('payouts', 'must be a list of at most 10000 numbers of payouts');
    end if;
    if p_request -> 'payouts' is not null then
        asked := array(select v::bigint from jsonb_array_elements_text(p_request -> 'payouts') v);
    end if;
    insert into affiliate.payout_batch (reference, kind, provider, livemode, currency, maker)
    select format('%s%s-%s', case when p_actor.livemode then 'P' else 'T' end, to_char(now() at time zone 'UTC', 'YYYYMMDD'),
                  lpad(nextval('affiliate.payout_batch_no')::text, 6, '0')),
           affiliate.form_field(p_request, 'kind', 20, '^(' || (select string_agg(k.kind, '|') from affiliate.payout_kind k) || ')$',
                                'must be one of ' || (select string_agg(k.kind, ', ' order by k.kind) from affiliate.payout_kind k)),
           coalesce(affiliate.form_field(p_request, 'provider', 10, '^(csv|manual|npi)$', 'must be csv, manual or npi'), 'csv'),
           p_actor.livemode, y.currency, p_actor.user_id
      from affiliate.payout_policy y
     where y.currency = affiliate.currency_field(p_request, 'currency')
    returning * into b;
    if b.batch_id is null then
        perform affiliate.refuse('currency', 'must be one that is paid out');
    end if;
    perform affiliate.check_provider(b);
    perform affiliate.fill_batch(b, asked, p_actor.user_id);
    select * into b from affiliate.payout_batch x where x.batch_id = b.batch_id;
    perform affiliate.record(p_actor, 'payout_batch.create', 'payout_batch', b.batch_id::text, null, affiliate.payout_batch_json(b));
    return affiliate.payout_batch_json(b);
end
$$;

-- Takes payouts out of a batch that is not approved yet: back to those that wait (requested), or for good (rejected).
create function affiliate.take_from_batch(p_payouts bigint[], p_state text, p_user_id bigint, p_reason text)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    update affiliate.payout p set batch_id = null, tax_minor = null, tax_basis_points = null, state = 'requested' where p.payout_id = any (p_payouts);
    update affiliate.payout_draw d set tax_minor = null where d.payout_id = any (p_payouts);
    if p_state = 'rejected' then
        perform affiliate.post_payouts(p_payouts, 'return');
    end if;
    perform affiliate.payout_state(p_payouts, p_state, p_user_id, p_reason);
end
$$;

create function affiliate.reject_payout(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    p affiliate.payout := affiliate.lock_payout(affiliate.id_field(p_request, 'payout'));
    why text := affiliate.text_field(p_request, 'reason', 1000);
    batch bigint := p.batch_id;
begin
    if p.livemode <> p_actor.livemode then
        perform affiliate.refuse_payout();
    end if;
    if p.state not in ('requested', 'in_review') then
        perform affiliate.refuse_payout_state(p);
    end if;
    perform affiliate.take_from_batch(array[p.payout_id], 'rejected', p_actor.user_id, why);
    if batch is not null then
        perform affiliate.count_batch(batch);
    end if;
    perform affiliate.record(p_actor, 'payout.reject', 'payout', p.payout_id::text, jsonb_build_object('state', p.state), '{"state": "rejected"}', why);
    perform affiliate.notify_payouts(array[p.payout_id], 'payout_rejected', why);
    select * into p from affiliate.payout o where o.payout_id = p.payout_id;
    return affiliate.payout_row(p);
end
$$;

create function affiliate.propose_batch(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch := affiliate.lock_batch(p_request, 'open');
    after affiliate.payout_batch;
begin
    if b.items = 0 then
        perform affiliate.problem(409, 'batch_state', 'There is nothing in this batch.');
    end if;
    update affiliate.payout_batch x set state = 'proposed', proposed_at = now(), maker = p_actor.user_id where x.batch_id = b.batch_id returning * into after;
    perform affiliate.record(p_actor, 'payout_batch.propose', 'payout_batch', b.batch_id::text, affiliate.payout_batch_json(b), affiliate.payout_batch_json(after));
    return affiliate.payout_batch_json(after);
end
$$;

-- Whoever approves is not who made or proposed it, nor who is paid by it.
create function affiliate.approve_batch(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch := affiliate.lock_batch(p_request, 'proposed');
    after affiliate.payout_batch;
    chosen bigint[];
    barred text;
begin
    if b.maker = p_actor.user_id
       or exists (select from affiliate.audit_record r
                   where r.kind = 'payout_batch' and r.id = b.batch_id::text and r.user_id = p_actor.user_id
                     and r.action in ('payout_batch.create', 'payout_batch.propose', 'payout_batch.remove')) then
        perform affiliate.problem(403, 'second_person', 'Whoever made a batch does not approve it; somebody else has to.');
    end if;
    perform from affiliate.payout p where p.batch_id = b.batch_id order by p.payout_id for update;
    select array_agg(p.payout_id order by p.payout_id),
           string_agg(p.payout_id::text, ', ') filter (where a.state <> 'approved')
      into chosen, barred
      from affiliate.payout p
      join affiliate.affiliate a using (affiliate_id)
     where p.batch_id = b.batch_id;
    if exists (select from affiliate.payout p join affiliate.affiliate a using (affiliate_id)
                where p.batch_id = b.batch_id and a.user_id = p_actor.user_id) then
        perform affiliate.problem(403, 'second_person', 'You are paid by this batch; somebody else has to approve it.');
    end if;
    if barred is not null then
        perform affiliate.problem(409, 'batch_state', format('These payouts are of affiliates that are not approved any more; remove them first: %s', barred));
    end if;
    perform affiliate.payout_state(chosen, 'approved', p_actor.user_id, null);
    update affiliate.payout_batch x set state = 'approved', approved_at = now(), checker = p_actor.user_id where x.batch_id = b.batch_id returning * into after;
    perform affiliate.record(p_actor, 'payout_batch.approve', 'payout_batch', b.batch_id::text, affiliate.payout_batch_json(b), affiliate.payout_batch_json(after));
    return affiliate.payout_batch_json(after);
end
$$;

-- Gives a batch up before its file is made: what is in it waits again.
create function affiliate.reject_batch(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch := affiliate.lock_batch(p_request, 'open', 'proposed', 'approved');
    after affiliate.payout_batch;
    why text := affiliate.text_field(p_request, 'reason', 1000);
    chosen bigint[];
begin
    perform from affiliate.payout p where p.batch_id = b.batch_id order by p.payout_id for update;
    -- What a provider has refused already has failed, and stays.
    chosen := array(select p.payout_id from affiliate.payout p where p.batch_id = b.batch_id and p.state <> 'failed' order by p.payout_id);
    perform affiliate.take_from_batch(chosen, 'requested', p_actor.user_id, null);
    perform affiliate.count_batch(b.batch_id);
    update affiliate.payout_batch x set state = 'rejected', reason = why where x.batch_id = b.batch_id returning * into after;
    perform affiliate.record(p_actor, 'payout_batch.reject', 'payout_batch', b.batch_id::text, affiliate.payout_batch_json(b), affiliate.payout_batch_json(after), why);
    return affiliate.payout_batch_json(after);
end
$$;

create function affiliate.remove_from_batch(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch := affiliate.lock_batch(p_request, 'open', 'proposed');
    p affiliate.payout;
begin
    select * into p from affiliate.payout o where o.payout_id = affiliate.id_field(p_request, 'payout') and o.batch_id = b.batch_id for update;
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such payout in this batch.');
    end if;
    perform affiliate.take_from_batch(array[p.payout_id], 'requested', p_actor.user_id, null);
    perform affiliate.count_batch(b.batch_id);
    -- What was proposed is not what there is now.
    update affiliate.payout_batch x set state = 'open', proposed_at = null where x.batch_id = b.batch_id returning * into b;
    perform affiliate.record(p_actor, 'payout_batch.remove', 'payout_batch', b.batch_id::text, null, jsonb_build_object('payout', p.payout_id));
    return affiliate.payout_batch_json(b);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- The file for the rail
-- ---------------------------------------------------------------------------------------------------------------

create table affiliate.rail_map (
    kind            text primary key references affiliate.payout_kind,
    columns         jsonb not null,
    totals          boolean not null default true,
    result          jsonb not null,
    version         bigint not null default 1,
    updated_at      timestamptz not null default now()
);

create trigger rail_map_version before update on affiliate.rail_map
    for each row execute function affiliate.count_version();

insert into affiliate.rail_map (kind, columns, result)
select k.kind,
       case when k.needs_bank then
           '[["Reference", "instruction"], ["Bank", "bank"], ["Branch", "branch"], ["Account Number", "account"],
             ["Account Name", "holder"], ["Amount", "net"], ["Currency", "currency"], ["Remarks", "remarks"]]'::jsonb
       else
           '[["Reference", "instruction"], ["Mobile Number", "account"], ["Name", "holder"], ["Amount", "net"], ["Remarks", "remarks"]]'::jsonb
       end,
       '{"instruction": "Reference", "amount": "Amount", "status": "Status", "reference": "Transaction Id", "detail": "Message",
         "paid": ["paid", "success", "successful", "settled", "acsc"], "failed": ["failed", "rejected", "rjct"]}'::jsonb
  from affiliate.payout_kind k;

comment on table affiliate.rail_map is 'What the files of each rail look like: every bank and wallet wants its own';
comment on column affiliate.rail_map.columns is '[[header, value]...]; values: instruction bank branch account holder amount tax net currency remarks affiliate batch, or ="text"';
comment on column affiliate.rail_map.totals is 'Whether a last line has the number of items and the sum';
comment on column affiliate.rail_map.result is 'Which columns of an answer say what, and which words mean paid or failed; any other word is unknown';

create function affiliate.map_values()
returns text[]
language sql immutable parallel safe
return '{instruction,bank,branch,account,holder,amount,tax,net,currency,remarks,affiliate,batch}'::text[];

-- Our name of a payout in a rail's file, and in its answer: 30 characters at most.
create function affiliate.instruction(p affiliate.payout)
returns text
language sql immutable parallel safe
return case when p.livemode then 'AP' else 'TP' end || p.payout_id;

-- A cell of CSV (RFC 4180). What a spreadsheet would take for a formula gets a blank before it.
create function affiliate.csv_cell(p_text text)
returns text
language sql immutable parallel safe
return (select case when t.v ~ '[",\r\n]' then '"' || replace(t.v, '"', '""') || '"' else t.v end
          from (select case when p_text ~ '^[=+@\t\r-]' and p_text !~ '^-?[0-9.]+$' then ' ' || p_text else coalesce(p_text, '') end) t(v));

create function affiliate.map_cell(p_value text, p affiliate.payout, b affiliate.payout_batch, p_decimals smallint)
returns text
language sql immutable parallel safe
return affiliate.csv_cell(case p_value
           when 'instruction' then affiliate.instruction(p)
           when 'bank' then p.bank
           when 'branch' then p.branch
           when 'account' then p.account
           when 'holder' then p.holder
           when 'amount' then affiliate.amount_text(p.amount_minor, p_decimals)
           when 'tax' then affiliate.amount_text(p.tax_minor, p_decimals)
           when 'net' then affiliate.amount_text(p.amount_minor - p.tax_minor, p_decimals)
           when 'currency' then p.currency
           when 'remarks' then b.reference || ' ' || affiliate.instruction(p)
           when 'affiliate' then p.affiliate_id::text
           when 'batch' then b.reference
           else substr(p_value, 2) end);

create function affiliate.batch_file(b affiliate.payout_batch)
returns text
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select (select string_agg(affiliate.csv_cell(c ->> 0), ',' order by n) from jsonb_array_elements(r.columns) with ordinality as t(c, n))
           || e'\r\n'
           || (select string_agg((select string_agg(affiliate.map_cell(c ->> 1, p, b, k.decimals), ',' order by n)
                                    from jsonb_array_elements(r.columns) with ordinality as t(c, n)) || e'\r\n', '' order by p.payout_id)
                 from affiliate.payout p
                where p.batch_id = b.batch_id)
           || case when r.totals then
                  (select string_agg(case when n = 1 then 'TOTAL ' || b.items
                                          when c ->> 1 = 'net' then affiliate.amount_text(b.net_minor, k.decimals)
                                          when c ->> 1 = 'tax' then affiliate.amount_text(b.tax_minor, k.decimals)
                                          when c ->> 1 = 'amount' then affiliate.amount_text(b.amount_minor, k.decimals)
                                          else '' end, ',' order by n)
                     from jsonb_array_elements(r.columns) with ordinality as t(c, n)) || e'\r\n'
              else '' end
      from affiliate.rail_map r
      join affiliate.currency k on k.currency = b.currency
     where r.kind = b.kind
$$;

-- Makes the file, once, unless each payout is paid by hand; from then on the money is on its way, and only an answer or a person says
-- what became of it.
create function affiliate.export_batch(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch := affiliate.lock_batch(p_request, 'approved');
    after affiliate.payout_batch;
    made text;
    chosen bigint[];
begin
    if b.provider = 'npi' then
        perform affiliate.problem(409, 'batch_state', 'This batch is handed to NPI by itself; there is no file to be made.');
    end if;
    perform from affiliate.payout p where p.batch_id = b.batch_id order by p.payout_id for update;
    chosen := array(select p.payout_id from affiliate.payout p where p.batch_id = b.batch_id order by p.payout_id);
    made := case when b.provider <> 'manual' then affiliate.batch_file(b) end;
    perform affiliate.payout_state(chosen, 'processing', p_actor.user_id, null);
    update affiliate.payout_batch x
       set state = 'processing', exported_at = now(), file = made, file_sha256 = encode(sha256(convert_to(made, 'UTF8')), 'hex')
     where x.batch_id = b.batch_id
    returning * into after;
    perform affiliate.record(p_actor, 'payout_batch.export', 'payout_batch', b.batch_id::text, affiliate.payout_batch_json(b), affiliate.payout_batch_json(after));
    return affiliate.payout_batch_json(after);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- What became of it
-- ---------------------------------------------------------------------------------------------------------------

-- Says what became of payouts that are on their way, all in the same way. The caller has locked batch and payouts.
create function affiliate.settle_payouts(p_payouts bigint[], p_outcome text, p_user_id bigint, p_reason text)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    if cardinality(p_payouts) > 0 then
        if p_outcome <> 'unknown' then
            perform affiliate.post_payouts(p_payouts, case p_outcome when 'paid' then 'settle' else 'return' end);
        end if;
        perform affiliate.payout_state(p_payouts, p_outcome, p_user_id, p_reason);
        if p_outcome <> 'unknown' then
            perform affiliate.notify_payouts(p_payouts, 'payout_' || p_outcome, p_reason);
        end if;
    end if;
end
$$;

-- A batch is settled once all of it is.
create function affiliate.close_batch(p_batch_id bigint)
returns void
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    update affiliate.payout_batch b
       set state = 'settled', settled_at = now()
     where b.batch_id = p_batch_id
       and b.state = 'processing'
       and not exists (select from affiliate.payout p where p.batch_id = b.batch_id and p.state in ('processing', 'unknown'))
$$;

create table affiliate.payout_result (
    batch_id        bigint not null references affiliate.payout_batch,
    result_id       bigint generated always as identity,
    state           text not null default 'open' check (state in ('open', 'applied')),
    header          text[] not null,
    next_line       bigint not null default 1,
    sha256          text,
    paid            integer not null default 0,
    failed          integer not null default 0,
    unknown         integer not null default 0,
    unchanged       integer not null default 0,
    problems        integer not null default 0,
    user_id         bigint references affiliate.person,
    created_at      timestamptz not null default now(),
    applied_at      timestamptz,
    primary key (batch_id, result_id)
);

create unique index payout_result_id on affiliate.payout_result (result_id);

comment on table affiliate.payout_result is 'Answers of the rail, as they were uploaded';

create table affiliate.payout_result_row (
    result_id       bigint not null,
    line            bigint not null,
    instruction     text,
    amount          text,
    status          text,
    rail_reference  text,
    detail          text,
    payout_id       bigint,
    verdict         text check (verdict in ('paid', 'failed', 'unknown', 'unchanged', 'unmatched', 'contradicts')),
    primary key (result_id, line)
);

comment on table affiliate.payout_result_row is 'Each line of an answer, and what it did; contradicts: it is settled otherwise, a person has to look';

create function affiliate.result_json(r affiliate.payout_result)
returns jsonb
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object('result', r.result_id, 'batch', r.batch_id, 'state', r.state, 'lines', r.next_line - 1, 'paid', r.paid, 'failed', r.failed,
                              'unknown', r.unknown, 'unchanged', r.unchanged, 'problems', r.problems, 'user', r.user_id,
                              'created_at', r.created_at, 'applied_at', r.applied_at)
$$;

create function affiliate.result_row_json(r affiliate.payout_result_row)
returns jsonb
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object('line', r.line + 1, 'instruction', r.instruction, 'amount', r.amount, 'status', r.status,
                              'rail_reference', r.rail_reference, 'detail', r.detail, 'payout', r.payout_id, 'verdict', r.verdict)
$$;

create function affiliate.begin_result(p_actor affiliate.actor, p_request jsonb)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch := affiliate.lock_batch(p_request, 'processing', 'settled');
    names text[] := array(select lower(btrim(h)) from unnest(affiliate.header_field(p_request)) h);
    map jsonb := (select r.result from affiliate.rail_map r where r.kind = b.kind);
    lacking text;
    made bigint;
begin
    select string_agg(quote_literal(map ->> f), ', ') into lacking
      from unnest('{instruction,amount,status}'::text[]) f
     where lower(map ->> f) <> all (names);
    if lacking is not null then
        perform affiliate.refuse('header', 'lacks the column ' || lacking);
    end if;
    insert into affiliate.payout_result (batch_id, header, user_id) values (b.batch_id, names, p_actor.user_id) returning result_id into made;
    return made;
end
$$;

create function affiliate.add_result_rows(p_actor affiliate.actor, p_result_id bigint, p_first bigint, p_rows jsonb)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    r affiliate.payout_result;
    map jsonb;
    at integer[];
    rows integer := jsonb_array_length(p_rows);
begin
    select * into r from affiliate.payout_result x where x.result_id = p_result_id and x.user_id = p_actor.user_id for update;
    if not found or r.state <> 'open' then
        perform affiliate.problem(404, 'not_found', 'There is no such upload under way.');
    end if;
    if p_first > r.next_line then
        perform affiliate.problem(409, 'conflict', format('The next row has to be %s.', r.next_line));
    end if;
    if p_first + rows > 20001 then
        perform affiliate.problem(422, 'invalid_csv', 'An answer has at most 20000 lines.');
    end if;
    select m.result into map from affiliate.rail_map m join affiliate.payout_batch b using (kind) where b.batch_id = r.batch_id;
    at := array(select array_position(r.header, lower(map ->> f)) - 1
                  from unnest('{instruction,amount,status,reference,detail}'::text[]) with ordinality as t(f, n) order by n);
    insert into affiliate.payout_result_row (result_id, line, instruction, amount, status, rail_reference, detail)
    select p_result_id, p_first + n - 1, btrim(v ->> at[1]), btrim(v ->> at[2]), btrim(v ->> at[3]),
           left(nullif(btrim(v ->> at[4]), ''), 100), left(nullif(btrim(v ->> at[5]), ''), 500)
      from jsonb_array_elements(p_rows) with ordinality as t(v, n)
     where p_first + n - 1 >= r.next_line;
    update affiliate.payout_result x set next_line = greatest(x.next_line, p_first + rows) where x.result_id = p_result_id;
    return greatest(r.next_line, p_first + rows);
end
$$;

-- An amount as files write it, perhaps with commas between thousands or lakhs; null if it is none.
create function affiliate.file_amount(p_text text)
returns numeric
language sql immutable parallel safe
return case when p_text ~ '^[0-9][0-9,]{0,24}([.][0-9]{1,4})?$' then replace(p_text, ',', '')::numeric end;

-- What a rail's word means, by its map.
create function affiliate.result_outcome(p_map jsonb, p_status text)
returns text
language sql immutable parallel safe
return case when exists (select from jsonb_array_elements_text(p_map -> 'paid') w where lower(w) = lower(p_status)) then 'paid'
            when exists (select from jsonb_array_elements_text(p_map -> 'failed') w where lower(w) = lower(p_status)) then 'failed'
            else 'unknown' end;

-- Applies an answer as a whole, or refuses it: each line's amount has to be the payout's, and none may come twice. Lines of
-- nobody's stay visible as unmatched, as do those that contradict what is settled. Sent again, it changes nothing.
create function affiliate.apply_result(p_actor affiliate.actor, p_result_id bigint, p_lines bigint)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    r affiliate.payout_result;
    b affiliate.payout_batch;
    map jsonb;
    wrong text;
    outcome text;
begin
    select * into r from affiliate.payout_result x where x.result_id = p_result_id and x.user_id = p_actor.user_id for update;
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such upload under way.');
    end if;
    if r.state = 'applied' then
        return affiliate.result_json(r);
    end if;
    if r.next_line <> p_lines + 1 then
        perform affiliate.problem(409, 'conflict', format('The next row has to be %s.', r.next_line));
    end if;
    select * into b from affiliate.payout_batch x where x.batch_id = r.batch_id for update;
    perform from affiliate.payout p where p.batch_id = b.batch_id order by p.payout_id for update;
    select m.result into map from affiliate.rail_map m where m.kind = b.kind;

    -- A last line of totals, as in ours, is none of the items; but it has to be right.
    with totals as (
        delete from affiliate.payout_result_row x where x.result_id = p_result_id and x.instruction ~* '^total' returning x.line, x.amount
    )
    select string_agg(format('line %s says %s, the lines before it are %s', t.line + 1, t.amount, s.total), '; ' order by t.line)
      into wrong
      from totals t
     cross join (select coalesce(sum(affiliate.file_amount(y.amount)), 0) as total
                   from affiliate.payout_result_row y
                  where y.result_id = p_result_id and y.instruction !~* '^total') s
     where affiliate.file_amount(t.amount) is distinct from s.total;
    if wrong is not null then
        perform affiliate.problem(409, 'result_amounts', 'Nothing was applied: the total is wrong: ' || left(wrong, 1000));
    end if;
    update affiliate.payout_result_row x
       set payout_id = p.payout_id
      from affiliate.payout p
     where x.result_id = p_result_id and p.batch_id = b.batch_id and affiliate.instruction(p) = x.instruction;

    select string_agg(x.line + 1 || ': ' || coalesce(nullif(x.amount, ''), 'nothing') || ' instead of ' || affiliate.amount_text(p.amount_minor - p.tax_minor, k.decimals), '; ' order by x.line)
      into wrong
      from affiliate.payout_result_row x
      join affiliate.payout p using (payout_id)
      join affiliate.currency k on k.currency = p.currency
     where x.result_id = p_result_id
       and affiliate.file_amount(x.amount) is distinct from affiliate.amount_text(p.amount_minor - p.tax_minor, k.decimals)::numeric;
    if wrong is not null then
        perform affiliate.problem(409, 'result_amounts', 'Nothing was applied: amounts differ in line ' || left(wrong, 1000));
    end if;
    select string_agg(x.instruction, ', ') into wrong
      from (select y.instruction from affiliate.payout_result_row y where y.result_id = p_result_id and y.payout_id is not null
             group by y.instruction having count(*) > 1 limit 20) x;
    if wrong is not null then
        perform affiliate.problem(409, 'result_twice', 'Nothing was applied: these come twice: ' || wrong);
    end if;

    update affiliate.payout_result_row x
       set verdict = case when x.payout_id is null then 'unmatched' else (
               select case when p.state = o.outcome then 'unchanged'
                           when p.state in ('processing', 'unknown') then o.outcome
                           else 'contradicts' end
                 from affiliate.payout p
                cross join affiliate.result_outcome(map, x.status) o(outcome)
                where p.payout_id = x.payout_id) end
     where x.result_id = p_result_id;

    update affiliate.payout p
       set rail_reference = coalesce(x.rail_reference, p.rail_reference)
      from affiliate.payout_result_row x
     where x.result_id = p_result_id and x.payout_id = p.payout_id and x.verdict in ('paid', 'failed', 'unknown');
    perform affiliate.settle_payouts(array_agg(x.payout_id order by x.payout_id), x.verdict, p_actor.user_id,
                                     case when x.verdict = 'paid' then null else x.why end)
       from (select y.payout_id, y.verdict, coalesce(y.detail, 'The rail says: ' || coalesce(nullif(y.status, ''), 'nothing') || '.') as why
               from affiliate.payout_result_row y
              where y.result_id = p_result_id and y.verdict in ('paid', 'failed', 'unknown')) x
      group by x.verdict, case when x.verdict = 'paid' then null else x.why end;
    perform affiliate.close_batch(b.batch_id);

    update affiliate.payout_result x
       set state = 'applied', applied_at = now(), paid = c.paid, failed = c.failed, unknown = c.unknown, unchanged = c.unchanged, problems = c.problems
      from (select count(*) filter (where verdict = 'paid') as paid, count(*) filter (where verdict = 'failed') as failed,
                   count(*) filter (where verdict = 'unknown') as unknown, count(*) filter (where verdict = 'unchanged') as unchanged,
                   count(*) filter (where verdict in ('unmatched', 'contradicts')) as problems
              from affiliate.payout_result_row where result_id = p_result_id) c
     where x.result_id = p_result_id
    returning x.* into r;
    perform affiliate.record(p_actor, 'payout_result.apply', 'payout_batch', b.batch_id::text, null, affiliate.result_json(r));
    return affiliate.result_json(r);
end
$$;

-- What a person found out of a payout that is on its way, or of which nobody knows.
create function affiliate.resolve_payout(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    p affiliate.payout := affiliate.lock_payout(affiliate.id_field(p_request, 'payout'));
    outcome text := affiliate.form_field(p_request, 'outcome', 10, '^(paid|failed|unknown)$', 'must be paid, failed or unknown');
    why text := affiliate.text_field(p_request, 'reason', 1000);
    before affiliate.payout := p;
begin
    if p.livemode <> p_actor.livemode then
        perform affiliate.refuse_payout();
    end if;
    if p.state not in ('processing', 'unknown') then
        perform affiliate.refuse_payout_state(p);
    end if;
    update affiliate.payout x set rail_reference = coalesce(affiliate.text_field(p_request, 'rail_reference', 100), x.rail_reference) where x.payout_id = p.payout_id;
    perform affiliate.settle_payouts(array[p.payout_id], outcome, p_actor.user_id, why);
    perform affiliate.close_batch(p.batch_id);
    select * into p from affiliate.payout o where o.payout_id = p.payout_id;
    perform affiliate.record(p_actor, 'payout.resolve', 'payout', p.payout_id::text, affiliate.payout_json(before), affiliate.payout_json(p), why);
    return affiliate.payout_row(p);
end
$$;

-- A payout that came back after it was paid: wrong account, closed account.
create function affiliate.recall_payout(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    p affiliate.payout := affiliate.lock_payout(affiliate.id_field(p_request, 'payout'));
    why text := affiliate.text_field(p_request, 'reason', 1000);
begin
    if p.livemode <> p_actor.livemode then
        perform affiliate.refuse_payout();
    end if;
    if p.state <> 'paid' then
        perform affiliate.refuse_payout_state(p);
    end if;
    perform affiliate.post_payouts(array[p.payout_id], 'recall');
    perform affiliate.payout_state(array[p.payout_id], 'recalled', p_actor.user_id, why);
    perform affiliate.record(p_actor, 'payout.recall', 'payout', p.payout_id::text, '{"state": "paid"}', '{"state": "recalled"}', why);
    perform affiliate.notify_payouts(array[p.payout_id], 'payout_recalled', why);
    select * into p from affiliate.payout o where o.payout_id = p.payout_id;
    return affiliate.payout_row(p);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- The proof
-- ---------------------------------------------------------------------------------------------------------------

-- Payouts: each one's money is where its state says, and what is set aside is of payouts that are under way.
create function affiliate.audit_payouts(p_since timestamptz default null)
returns table (invariant text, merchant_id bigint, subject text, detail text)
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
set plan_cache_mode = force_custom_plan
set work_mem = '64MB'
set jit = off
as $$
#variable_conflict use_column
begin
    return query
    select 'payout is the sum of its draws', null::bigint, 'payout ' || p.payout_id,
           format('says %s with tax %s, draws say %s with tax %s', p.amount_minor, p.tax_minor, d.amount, d.tax)
      from affiliate.payout p
      left join (select payout_id, sum(amount_minor) as amount, sum(tax_minor) as tax from affiliate.payout_draw group by payout_id) d using (payout_id)
     where (p.amount_minor, p.tax_minor) is distinct from (d.amount, d.tax)
    union all
    select 'payout stands where its state says', coalesce(w.merchant_id, t.merchant_id), 'payout ' || coalesce(w.payout_id, t.payout_id),
           format('%s: %s moved %s, should have moved %s', w.state, c.name, coalesce(t.amount, 0), coalesce(w.amount, 0))
      from (select d.merchant_id, p.payout_id, p.state, l.code, affiliate.leg_amount(l.of, d.amount_minor, d.tax_minor)::numeric as amount
              from affiliate.payout p
              join affiliate.payout_draw d using (payout_id)
              join affiliate.payout_leg l
                on case l.verb when 'freeze' then true
                               when 'return' then p.state in ('rejected', 'cancelled', 'failed')
                               when 'settle' then p.state in ('paid', 'recalled')
                               else p.state = 'recalled' end
             where affiliate.leg_amount(l.of, d.amount_minor, d.tax_minor) > 0
               and (p_since is null or p.payout_id in (select e.payout_id from affiliate.payout_event e where e.at >= p_since))) w
      full join (select t.merchant_id, t.cause_id as payout_id, t.code, sum(t.amount_minor) as amount
                   from affiliate.transfer t
                  where t.cause_kind = 3
                    and (p_since is null or (t.merchant_id, t.cause_id) in (select d.merchant_id, d.payout_id from affiliate.payout_event e
                                                                             join affiliate.payout_draw d using (payout_id) where e.at >= p_since))
                  group by 1, 2, 3) t
        on t.merchant_id = w.merchant_id and t.payout_id = w.payout_id and t.code = w.code
      left join affiliate.transfer_code c on c.code = coalesce(w.code, t.code)
     where w.amount is distinct from t.amount
    union all
    select 'transfer has a payout', t.merchant_id, format('transfer 3/%s/%s/%s', t.cause_id, t.cause_revision, t.code), 'there is no such payout, part or step'
      from affiliate.transfer t
      left join affiliate.payout p on p.payout_id = t.cause_id
      left join affiliate.payout_draw d on d.merchant_id = t.merchant_id and d.payout_id = t.cause_id
     where t.cause_kind = 3
       and (p_since is null or t.created_at >= p_since)
       and (d.payout_id is null or t.cause_revision > p.step or t.livemode <> p.livemode or t.currency <> p.currency)
    union all
    select 'what is set aside is of payouts under way', coalesce(a.merchant_id, f.merchant_id), format('affiliate %s', coalesce(a.owner_id, f.affiliate_id)),
           format('%s set aside, %s under way', a.balance, f.amount)
      from (select a.merchant_id, a.owner_id, a.livemode, a.currency, a.credits_minor - a.debits_minor as balance
              from affiliate.account a where a.owner = 'affiliate' and a.kind = 'in_payout') a
      full join (select d.merchant_id, p.affiliate_id, p.livemode, p.currency, sum(d.amount_minor) as amount
                   from affiliate.payout p join affiliate.payout_draw d using (payout_id)
                  where p.state in ('requested', 'in_review', 'approved', 'processing', 'unknown')
                  group by d.merchant_id, p.affiliate_id, p.livemode, p.currency) f
        on f.merchant_id = a.merchant_id and f.affiliate_id = a.owner_id and f.livemode = a.livemode and f.currency = a.currency
     where coalesce(a.balance, 0) <> coalesce(f.amount, 0)
    union all
    select 'batch is the sum of its payouts', null, 'batch ' || b.reference,
           format('says %s items of %s, they are %s of %s', b.items, b.amount_minor, coalesce(p.items, 0), coalesce(p.amount, 0))
      from affiliate.payout_batch b
      left join (select batch_id, count(*) as items, sum(amount_minor) as amount, sum(tax_minor) as tax from affiliate.payout group by batch_id) p using (batch_id)
     where (b.items, b.amount_minor, b.tax_minor) is distinct from (coalesce(p.items, 0)::integer, coalesce(p.amount, 0), coalesce(p.tax, 0))
    union all
    select 'file is what was made', null, 'batch ' || b.reference, 'its checksum is another'
      from affiliate.payout_batch b
     where b.file is not null and encode(sha256(convert_to(b.file, 'UTF8')), 'hex') <> b.file_sha256;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Operations
-- ---------------------------------------------------------------------------------------------------------------

select affiliate.fence(t, p_merchant => null, p_affiliate => 'affiliate_id')
  from unnest(array['affiliate.payout', 'affiliate.tax_profile']::regclass[]) t;
select affiliate.fence('affiliate.payout_event', p_merchant => null, p_others =>
    $$(select affiliate.fence_affiliate()) is not null
      and exists (select from affiliate.payout p where p.payout_id = payout_event.payout_id)$$);
select affiliate.fence('affiliate.payout_draw', p_merchant => null, p_others =>
    $$(select affiliate.fence_affiliate()) is not null
      and exists (select from affiliate.payout p where p.payout_id = payout_draw.payout_id)$$);
select affiliate.fence(t, p_merchant => null)
  from unnest(array['affiliate.payout_batch', 'affiliate.payout_result', 'affiliate.payout_result_row', 'affiliate.rail_map']::regclass[]) t;
grant select on affiliate.payout_policy, affiliate.tax_rate to affiliate_tenant;

-- What is asked of admins comes as one function each: (actor, request).
select affiliate.enter_as_tenant(
    'affiliate.request_payout(bigint, affiliate.actor, jsonb)',
    'affiliate.cancel_payout(bigint, affiliate.actor, jsonb)',
    'affiliate.payout_signals(affiliate.payout)',
    'affiliate.reject_payout(affiliate.actor, jsonb)',
    'affiliate.resolve_payout(affiliate.actor, jsonb)',
    'affiliate.recall_payout(affiliate.actor, jsonb)',
    'affiliate.make_batch(affiliate.actor, jsonb)',
    'affiliate.propose_batch(affiliate.actor, jsonb)',
    'affiliate.approve_batch(affiliate.actor, jsonb)',
    'affiliate.reject_batch(affiliate.actor, jsonb)',
    'affiliate.remove_from_batch(affiliate.actor, jsonb)',
    'affiliate.export_batch(affiliate.actor, jsonb)',
    'affiliate.begin_result(affiliate.actor, jsonb)',
    'affiliate.add_result_rows(affiliate.actor, bigint, bigint, jsonb)',
    'affiliate.apply_result(affiliate.actor, bigint, bigint)');

create function affiliate.api_payout_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made jsonb;
begin
    perform affiliate.check_request(p_request, '{amount,currency}', '{payout_method,vat_invoice}');
    made := affiliate.request_payout(p_actor.affiliate_id, p_actor, p_request);
    perform affiliate.answer(jsonb_build_object('status', 201, 'location', '/api/v1/affiliate/payouts/' || (made ->> 'payout')));
    return next made;
end
$$;

create function affiliate.api_payout_cancel(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{payout}');
    return next affiliate.cancel_payout(p_actor.affiliate_id, p_actor, p_request);
end
$$;

create function affiliate.payout_conditions(p_request jsonb)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted text := affiliate.form_field(p_request, 'state', 20,
        '^(requested|in_review|approved|processing|paid|rejected|failed|unknown|cancelled|recalled)$',
        'must be requested, in_review, approved, processing, paid, rejected, failed, unknown, cancelled or recalled');
begin
    return concat_ws(' and ',
        'p.state = ' || quote_literal(wanted),
        'p.currency = ' || quote_literal(affiliate.currency_field(p_request, 'currency')),
        'p.kind = ' || quote_literal(affiliate.text_field(p_request, 'kind', 20)),
        'p.affiliate_id = ' || affiliate.id_field(p_request, 'affiliate'),
        'p.batch_id = ' || affiliate.id_field(p_request, 'batch'),
        'p.requested_at >= ' || quote_literal(affiliate.time_field(p_request, 'requested_from')),
        'p.requested_at < ' || quote_literal(affiliate.time_field(p_request, 'requested_to')));
end
$$;

create function affiliate.api_payout_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{state,currency,requested_from,requested_to}');
    return query select affiliate.page(p_actor, p_request,
        'select p, p.payout_id as payout, p.requested_at from affiliate.payout p where '
        || concat_ws(' and ', 'p.affiliate_id = $1.affiliate_id', 'p.livemode = $1.livemode', nullif(affiliate.payout_conditions(p_request), '')),
        'affiliate.payout_json(x.p)', '{-requested_at timestamptz}', 'payout bigint');
end
$$;

create function affiliate.api_payout_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    p affiliate.payout;
begin
    perform affiliate.check_request(p_request, '{payout}');
    select * into p from affiliate.payout o
     where o.payout_id = affiliate.id_field(p_request, 'payout') and o.affiliate_id = p_actor.affiliate_id and o.livemode = p_actor.livemode;
    if not found then
        perform affiliate.refuse_payout();
    end if;
    perform affiliate.answer_version(p.version);
    return next affiliate.payout_json(p) || jsonb_build_object('timeline', affiliate.payout_timeline(p.payout_id, false));
end
$$;

create function affiliate.tax_profile_json(p_affiliate_id bigint)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object('pan', t.pan, 'vat_registered', coalesce(t.vat_registered, false), 'version', coalesce(t.version, 0))
      from (values (p_affiliate_id)) a(affiliate_id)
      left join affiliate.tax_profile t using (affiliate_id)
$$;

create function affiliate.set_tax_profile(p_affiliate_id bigint, p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before jsonb;
begin
    perform from affiliate.affiliate a where a.affiliate_id = p_affiliate_id for no key update;
    before := affiliate.tax_profile_json(p_affiliate_id);
    perform affiliate.check_version(p_request, (before ->> 'version')::bigint);
    if coalesce(affiliate.boolean_field(p_request, 'vat_registered'), false) and p_request ->> 'pan' is null then
        perform affiliate.refuse('pan', 'is required of who is registered for VAT');
    end if;
    insert into affiliate.tax_profile as t (affiliate_id, pan, vat_registered)
    values (p_affiliate_id, affiliate.form_field(p_request, 'pan', 9, '^[0-9]{9}$', 'must have 9 digits'),
            coalesce(affiliate.boolean_field(p_request, 'vat_registered'), false))
        on conflict (affiliate_id) do update
       set pan = excluded.pan, vat_registered = excluded.vat_registered, updated_at = now();
    perform affiliate.record(p_actor, 'tax_profile.update', 'affiliate', p_affiliate_id::text, before, affiliate.tax_profile_json(p_affiliate_id));
    return affiliate.tax_profile_json(p_affiliate_id);
end
$$;

select affiliate.enter_as_tenant('affiliate.set_tax_profile(bigint, affiliate.actor, jsonb)');

create function affiliate.api_tax_profile_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    shown jsonb := affiliate.tax_profile_json(p_actor.affiliate_id);
begin
    perform affiliate.check_request(p_request);
    perform affiliate.answer_version((shown ->> 'version')::bigint);
    return next shown;
end
$$;

create function affiliate.api_tax_profile_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{}', '{pan,vat_registered}');
    return next affiliate.set_tax_profile(p_actor.affiliate_id, p_actor, p_request);
end
$$;

select affiliate.operation(o, actors => '{affiliate}', while_suspended => true) from unnest('{payout_list,payout_show,tax_profile_show}'::text[]) o;
select affiliate.operation('payout_create', actors => '{affiliate}', creates => true, approved => true),
       affiliate.operation('payout_cancel', actors => '{affiliate}', creates => true),
       affiliate.operation('tax_profile_update', actors => '{affiliate}', mutates => true);

create function affiliate.api_admin_payout_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{state,currency,kind,affiliate,batch,requested_from,requested_to}');
    return query select affiliate.page(p_actor, p_request,
        'select p, p.payout_id as payout, p.requested_at, p.amount_minor as amount from affiliate.payout p where '
        || concat_ws(' and ', 'p.livemode = $1.livemode', nullif(affiliate.payout_conditions(p_request), '')),
        'affiliate.payout_row(x.p)', '{-requested_at timestamptz,amount bigint}', 'payout bigint');
end
$$;

create function affiliate.api_admin_payout_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    p affiliate.payout;
begin
    perform affiliate.check_request(p_request, '{payout}');
    select * into p from affiliate.payout o where o.payout_id = affiliate.id_field(p_request, 'payout') and o.livemode = p_actor.livemode;
    if not found then
        perform affiliate.refuse_payout();
    end if;
    perform affiliate.answer_version(p.version);
    return next affiliate.payout_row(p) || jsonb_build_object('timeline', affiliate.payout_timeline(p.payout_id, true),
        'draws', affiliate.payout_draws(p), 'signals', affiliate.payout_signals(p));
end
$$;

create function affiliate.api_admin_payout_reject(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{payout,reason}');
    return next affiliate.reject_payout(p_actor, p_request);
end
$$;

create function affiliate.api_admin_payout_resolve(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{payout,outcome,reason}', '{rail_reference}');
    return next affiliate.resolve_payout(p_actor, p_request);
end
$$;

create function affiliate.api_admin_payout_recall(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{payout,reason}');
    return next affiliate.recall_payout(p_actor, p_request);
end
$$;

create function affiliate.api_payout_batch_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted text := affiliate.form_field(p_request, 'state', 20, '^(open|proposed|approved|processing|settled|rejected)$',
                                        'must be open, proposed, approved, processing, settled or rejected');
begin
    perform affiliate.check_page(p_request, '{state,currency,kind}');
    return query select affiliate.page(p_actor, p_request,
        'select b, b.batch_id as batch, b.created_at from affiliate.payout_batch b where '
        || concat_ws(' and ', 'b.livemode = $1.livemode', 'b.state = ' || quote_literal(wanted),
                     'b.currency = ' || quote_literal(affiliate.currency_field(p_request, 'currency')),
                     'b.kind = ' || quote_literal(affiliate.text_field(p_request, 'kind', 20))),
        'affiliate.payout_batch_json(x.b)', '{-created_at timestamptz}', 'batch bigint');
end
$$;

create function affiliate.find_batch(p_actor affiliate.actor, p_request jsonb)
returns affiliate.payout_batch
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch;
begin
    select * into b from affiliate.payout_batch x where x.batch_id = affiliate.id_field(p_request, 'batch') and x.livemode = p_actor.livemode;
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such batch.');
    end if;
    return b;
end
$$;

create function affiliate.api_payout_batch_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch;
begin
    perform affiliate.check_request(p_request, '{batch}');
    b := affiliate.find_batch(p_actor, p_request);
    perform affiliate.answer_version(b.version);
    return next affiliate.payout_batch_json(b);
end
$$;

-- The file itself; C answers with it as it is.
create function affiliate.api_payout_batch_file(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch;
begin
    perform affiliate.check_request(p_request, '{batch}');
    b := affiliate.find_batch(p_actor, p_request);
    if b.file is null then
        perform affiliate.problem(409, 'batch_state', case when b.provider = 'manual' then 'This batch is paid by hand: it has no file.'
                                                           else format('The file is not made yet: the batch is %s.', b.state) end);
    end if;
    return next jsonb_build_object('_type', 'text/csv; charset=utf-8', '_name', b.reference || '.csv', '_content', b.file);
end
$$;

create function affiliate.api_payout_batch_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made jsonb;
begin
    perform affiliate.check_request(p_request, '{kind,currency}', '{provider,payouts}');
    made := affiliate.make_batch(p_actor, p_request);
    perform affiliate.answer(jsonb_build_object('status', 201, 'location', '/api/v1/admin/payout-batches/' || (made ->> 'batch')));
    return next made;
end
$$;

create function affiliate.api_payout_batch_propose(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{batch}');
    return next affiliate.propose_batch(p_actor, p_request);
end
$$;

create function affiliate.api_payout_batch_approve(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{batch}');
    return next affiliate.approve_batch(p_actor, p_request);
end
$$;

create function affiliate.api_payout_batch_reject(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{batch,reason}');
    return next affiliate.reject_batch(p_actor, p_request);
end
$$;

create function affiliate.api_payout_batch_remove(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{batch,payout}');
    return next affiliate.remove_from_batch(p_actor, p_request);
end
$$;

create function affiliate.api_payout_batch_export(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{batch}');
    return next affiliate.export_batch(p_actor, p_request);
end
$$;

create function affiliate.api_payout_result_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{batch,_header}', '{_bytes}');
    return next jsonb_build_object('_upload', affiliate.begin_result(p_actor, p_request)::text);
end
$$;

create function affiliate.api_payout_result_create_rows(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_upload,_line,_rows}', '{batch}');
    return next jsonb_build_object('_line', affiliate.add_result_rows(
        p_actor, affiliate.id_field(p_request, '_upload'), affiliate.id_field(p_request, '_line'), p_request -> '_rows'));
end
$$;

create function affiliate.api_payout_result_create_done(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{_upload,_lines}', '{batch}');
    perform affiliate.answer(jsonb_build_object('status', 201, 'location', format('/api/v1/admin/payout-batches/%s/results/%s/rows',
        p_request ->> 'batch', p_request ->> '_upload')));
    return next affiliate.apply_result(p_actor, affiliate.id_field(p_request, '_upload'), (p_request ->> '_lines')::bigint);
end
$$;

create function affiliate.api_payout_result_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch := affiliate.find_batch(p_actor, p_request);
begin
    perform affiliate.check_page(p_request, '{batch}');
    return query select affiliate.page(p_actor, p_request,
        format('select r, r.result_id as result, r.created_at from affiliate.payout_result r where r.batch_id = %s', b.batch_id),
        'affiliate.result_json(x.r)', '{-created_at timestamptz}', 'result bigint');
end
$$;

create function affiliate.api_payout_result_row_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.payout_batch := affiliate.find_batch(p_actor, p_request);
    verdict text := affiliate.form_field(p_request, 'verdict', 20, '^(paid|failed|unknown|unchanged|unmatched|contradicts)$',
                                         'must be paid, failed, unknown, unchanged, unmatched or contradicts');
    r affiliate.payout_result;
begin
    perform affiliate.check_page(p_request, '{batch,result,verdict}');
    select * into r from affiliate.payout_result x where x.batch_id = b.batch_id and x.result_id = affiliate.id_field(p_request, 'result');
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such answer to this batch.');
    end if;
    return query select affiliate.page(p_actor, p_request,
        'select r, r.line from affiliate.payout_result_row r where '
        || concat_ws(' and ', 'r.result_id = ' || r.result_id, 'r.verdict = ' || quote_literal(verdict)),
        'affiliate.result_row_json(x.r)', '{line bigint}', 'line bigint');
end
$$;

create function affiliate.rail_map_json(m affiliate.rail_map)
returns jsonb
language sql immutable parallel safe
return jsonb_build_object('kind', m.kind, 'columns', m.columns, 'totals', m.totals, 'result', m.result, 'version', m.version);

create function affiliate.check_columns(p_columns jsonb)
returns void
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    if jsonb_typeof(p_columns) <> 'array' or jsonb_array_length(p_columns) not between 1 and 50
       or exists (select from jsonb_array_elements(p_columns) c
                   where jsonb_typeof(c) <> 'array' or jsonb_array_length(c) <> 2
                      or jsonb_typeof(c -> 0) <> 'string' or length(c ->> 0) not between 1 and 100
                      or jsonb_typeof(c -> 1) <> 'string' or length(c ->> 1) > 100
                      or (c ->> 1) !~ '^=' and (c ->> 1) <> all (affiliate.map_values())) then
        perform affiliate.refuse('columns', 'must be a list of 1 to 50 pairs [header, value]; a value is one of '
            || array_to_string(affiliate.map_values(), ', ') || ', or a text after =');
    end if;
    if not exists (select from jsonb_array_elements(p_columns) c where c ->> 1 = 'instruction')
       or not exists (select from jsonb_array_elements(p_columns) c where c ->> 1 = 'net') then
        perform affiliate.refuse('columns', 'must have instruction and net: what came of which payout is found by them');
    end if;
end
$$;

create function affiliate.check_result_map(p_result jsonb)
returns void
language plpgsql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    if jsonb_typeof(p_result) <> 'object'
       or not p_result ?& '{instruction,amount,status,paid,failed}'
       or exists (select from jsonb_each(p_result) e
                   where not case when e.key in ('instruction', 'amount', 'status', 'reference', 'detail')
                                  then jsonb_typeof(e.value) = 'string' and length(e.value #>> '{}') between 1 and 100
                                  when e.key in ('paid', 'failed')
                                  then jsonb_typeof(e.value) = 'array' and jsonb_array_length(e.value) between 1 and 20
                                       and not exists (select from jsonb_array_elements(e.value) v where jsonb_typeof(v) <> 'string')
                                  else false end) then
        perform affiliate.refuse('result', 'must have the columns instruction, amount and status, perhaps reference and detail, and the words for paid and failed');
    end if;
end
$$;

create function affiliate.set_rail_map(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.rail_map;
    after affiliate.rail_map;
begin
    select * into before from affiliate.rail_map m where m.kind = p_request ->> 'kind' for update;
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such rail.');
    end if;
    perform affiliate.check_version(p_request, before.version);
    perform affiliate.check_columns(coalesce(p_request -> 'columns', before.columns));
    perform affiliate.check_result_map(coalesce(p_request -> 'result', before.result));
    update affiliate.rail_map m
       set columns = coalesce(p_request -> 'columns', m.columns), result = coalesce(p_request -> 'result', m.result),
           totals = coalesce(affiliate.boolean_field(p_request, 'totals'), m.totals), updated_at = now()
     where m.kind = before.kind
    returning * into after;
    perform affiliate.record(p_actor, 'rail_map.update', 'rail_map', before.kind, affiliate.rail_map_json(before), affiliate.rail_map_json(after));
    return affiliate.rail_map_json(after);
end
$$;

select affiliate.enter_as_tenant('affiliate.set_rail_map(affiliate.actor, jsonb)');

create function affiliate.api_rail_map_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request);
    return query select affiliate.page(p_actor, p_request, 'select m, m.kind from affiliate.rail_map m',
        'affiliate.rail_map_json(x.m)', '{kind text}', 'kind text');
end
$$;

create function affiliate.api_rail_map_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{kind}', '{columns,totals,result}');
    return next affiliate.set_rail_map(p_actor, p_request);
end
$$;

-- What was withheld of whom, by the day that it was paid: for the month's deposit.
create function affiliate.api_tax_register_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    month record;
begin
    perform affiliate.check_page(p_request, '{month,currency}');
    select * into month from affiliate.month_field(p_request, 'month');
    return query select affiliate.page(p_actor, p_request,
        'select p, p.settled_at, p.payout_id as payout from affiliate.payout p where '
        || concat_ws(' and ', 'p.livemode = $1.livemode', 'p.state in (''paid'', ''recalled'')',
                     format('p.settled_at >= %L and p.settled_at < %L', month.since, month.until),
                     'p.currency = ' || quote_literal(affiliate.currency_field(p_request, 'currency'))),
        'affiliate.tax_register_row(x.p)', '{settled_at timestamptz}', 'payout bigint');
end
$$;

create function affiliate.tax_register_row(p affiliate.payout)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    return affiliate.payout_row(p) || jsonb_build_object('pan',
        (select t.pan from affiliate.tax_profile t where t.affiliate_id = p.affiliate_id));
end
$$;

select affiliate.operation(o, actors => '{admin}')
  from unnest('{admin_payout_list,admin_payout_show,payout_batch_list,payout_batch_show,payout_batch_file,payout_result_list,
                payout_result_row_list,rail_map_list,tax_register_list}'::text[]) o;
select affiliate.operation(o, actors => '{admin}', creates => true)
  from unnest('{admin_payout_reject,admin_payout_resolve,admin_payout_recall,payout_batch_create,payout_batch_propose,
                payout_batch_approve,payout_batch_reject,payout_batch_remove,payout_batch_export,payout_result_create}'::text[]) o;
select affiliate.operation(o, actors => '{admin}', mutates => true)
  from unnest('{payout_result_create_rows,payout_result_create_done,rail_map_update}'::text[]) o;

select affiliate.seal_operations();
