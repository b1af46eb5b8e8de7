-- Merchants' bills: each month, what became owed by orders that stuck, and what later reversals gave back.
--
-- A bill is of one merchant, mode and currency. Its lines are the postings to what the merchant owes that no bill has had yet and
-- that are older than its end: orders whose hold is over (kept), and what changed of such orders since (correction). So every
-- posting is on one bill, and the bills less the payments, with what is not billed yet, are what the ledger says is owed;
-- audit_bills() proves it. A bill is never changed: what is wrong on it is put right by lines of the next.
--
-- Whoever issues a bill holds the row of bill_cursor, then the account of what is owed: whoever posts to it holds that, too, until
-- its commit, so that what is seen is whole. A posting that began before the month's end and ended after its bill is on the next.

create table affiliate.bill_policy (
    seller_name     text not null check (length(seller_name) between 1 and 200),
    seller_address  text check (length(seller_address) <= 500),
    seller_tax_no   text check (length(seller_tax_no) <= 50),
    vat             boolean not null,
    net_days        integer not null check (net_days between 0 and 365),
    grace           interval not null check (grace >= '0'),
    note            text check (length(note) <= 1000),
    version         bigint not null default 1,
    only_row        boolean primary key default true check (only_row),
    check (seller_tax_no is not null or not vat)
);

create trigger bill_policy_version before update on affiliate.bill_policy
    for each row execute function affiliate.count_version();

insert into affiliate.bill_policy (seller_name, vat, net_days, grace) values ('The network', false, 15, '2 days');

comment on table affiliate.bill_policy is 'Who sends the bills, and how; it counts for those to come';
comment on column affiliate.bill_policy.vat is 'Whether VAT is charged on the network fee: only for who has a number for it';
comment on column affiliate.bill_policy.grace is 'So long after a month its bills are made';
comment on column affiliate.bill_policy.note is 'Stands below: where to pay, for example';

create table affiliate.vat_rate (
    valid_from      date primary key,
    basis_points    integer not null check (basis_points between 0 and 10000)
);

-- Value Added Tax Act 2052 (Nepal), section 7.
insert into affiliate.vat_rate values ('2005-01-15', 1300);

comment on table affiliate.vat_rate is 'VAT on the network fee, by the day of the bill; for the owner to add to';

create table affiliate.bill (
    merchant_id     bigint not null references affiliate.merchant,
    bill_id         bigint not null,
    number          text not null unique,
    livemode        boolean not null,
    currency        text not null references affiliate.currency,
    period_from     timestamptz not null,
    period_until    timestamptz not null check (period_until > period_from),
    lines           integer not null check (lines > 0),
    commission_minor bigint not null,
    fee_minor       bigint not null,
    vat_basis_points integer not null check (vat_basis_points between 0 and 10000),
    vat_minor       bigint not null,
    total_minor     bigint not null,
    seller          jsonb not null,
    buyer           jsonb not null,
    issued_at       timestamptz not null default now(),
    due_on          date not null,
    primary key (merchant_id, bill_id),
    check (total_minor = commission_minor + fee_minor + vat_minor)
);

create index bill_of on affiliate.bill (merchant_id, livemode, currency, bill_id);
create index bill_issued on affiliate.bill (livemode, issued_at, bill_id);
create index bill_due on affiliate.bill (due_on) where livemode and total_minor > 0;

create sequence affiliate.bill_id_seq owned by affiliate.bill.bill_id;

comment on table affiliate.bill is 'Bills as they were sent; below zero they are credit notes';
comment on column affiliate.bill.seller is 'As it was when the bill was made; so is the buyer';

create table affiliate.bill_line (
    merchant_id     bigint not null,
    bill_id         bigint not null,
    line            integer not null check (line > 0),
    kind            text not null check (kind in ('kept', 'correction')),
    cause_kind      smallint not null check (cause_kind in (1, 2)),
    cause_id        bigint not null,
    cause_revision  integer not null,
    order_no        bigint not null,
    order_id        text collate "C" not null,
    affiliate_id    bigint not null,
    at              timestamptz not null,
    amount_minor    bigint,
    commission_minor bigint not null,
    fee_minor       bigint not null,
    primary key (merchant_id, bill_id, line),
    foreign key (merchant_id, bill_id) references affiliate.bill deferrable initially deferred
);

-- Once on a bill.
create unique index bill_line_cause on affiliate.bill_line (merchant_id, order_no, cause_kind, cause_id, cause_revision);

comment on table affiliate.bill_line is 'An order on a bill';
comment on column affiliate.bill_line.kind is 'kept: its hold was over; correction: it changed, or was given back, since it was on a bill';
comment on column affiliate.bill_line.amount_minor is 'Of the order, when the bill was made';

create trigger immutable before update or delete on affiliate.bill
    for each row execute function affiliate.refuse_change();
create trigger immutable before update or delete on affiliate.bill_line
    for each row execute function affiliate.refuse_change();

create table affiliate.bill_cursor (
    merchant_id     bigint not null references affiliate.merchant,
    livemode        boolean not null,
    currency        text not null,
    until           timestamptz not null,
    primary key (merchant_id, livemode, currency)
);

comment on table affiliate.bill_cursor is 'Up to when bills are made';

create table affiliate.bill_number (
    livemode        boolean not null,
    year            integer not null,
    last            bigint not null check (last > 0),
    primary key (livemode, year)
);

comment on table affiliate.bill_number is 'The last number of each year: none is left out';

create table affiliate.bill_payment (
    merchant_id     bigint not null references affiliate.merchant,
    payment_id      bigint generated always as identity,
    livemode        boolean not null,
    currency        text not null references affiliate.currency,
    amount_minor    bigint not null check (amount_minor > 0),
    paid_on         date not null,
    method          text not null check (length(method) between 1 and 50),
    reference       text check (length(reference) <= 100),
    note            text check (length(note) <= 1000),
    recorded_by     bigint references affiliate.person,
    reversed_at     timestamptz,
    reversed_by     bigint references affiliate.person,
    reason          text,
    created_at      timestamptz not null default now(),
    primary key (merchant_id, payment_id),
    check ((reversed_at is null) = (reason is null))
);

create index bill_payment_of on affiliate.bill_payment (merchant_id, livemode, currency, payment_id);

create trigger kept before delete on affiliate.bill_payment
    for each row execute function affiliate.refuse_change();

comment on table affiliate.bill_payment is 'What a merchant has paid; it counts for the oldest bill that is open, and what is too much for those to come';

create table affiliate.bill_reminder (
    merchant_id     bigint not null,
    bill_id         bigint not null,
    at              timestamptz not null default now(),
    primary key (merchant_id, bill_id),
    foreign key (merchant_id, bill_id) references affiliate.bill
);

comment on table affiliate.bill_reminder is 'Bills whose owners have been told that they are overdue';

create index release_item_release on affiliate.release_item using brin (release_id) with (pages_per_range = 32);

-- ---------------------------------------------------------------------------------------------------------------
-- Making them
-- ---------------------------------------------------------------------------------------------------------------

-- One movement, with the accounts that it needs.
create function affiliate.post_transfer(
    p_merchant_id bigint, p_livemode boolean, p_currency text, p_cause_kind integer, p_cause_id bigint, p_revision integer, p_code integer,
    p_debit_owner text, p_debit text, p_debit_id bigint, p_credit_owner text, p_credit text, p_credit_id bigint, p_amount_minor bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.work_tables();
    perform affiliate.work_clear('account_change', 'account_changed');
    insert into pg_temp.account_change values
        (p_merchant_id, p_livemode, p_currency, p_debit_owner, p_debit, p_debit_id, p_amount_minor, 0),
        (p_merchant_id, p_livemode, p_currency, p_credit_owner, p_credit, p_credit_id, 0, p_amount_minor);
    perform affiliate.post_accounts();
    insert into affiliate.transfer
           (merchant_id, cause_id, cause_revision, cause_kind, code, debit_account, credit_account, amount_minor, livemode, currency)
    select p_merchant_id, p_cause_id, p_revision, p_cause_kind, p_code, d.account_id, c.account_id, p_amount_minor, p_livemode, p_currency
      from pg_temp.account_changed d
     cross join pg_temp.account_changed c
     where d.owner = p_debit_owner and d.kind = p_debit
       and c.owner = p_credit_owner and c.kind = p_credit;
end
$$;

-- What was posted to an account of what is owed in some time: an order each.
create function affiliate.owed_postings(p_merchant_id bigint, p_account_id bigint, p_from timestamptz, p_until timestamptz)
returns table (kind text, cause_kind smallint, cause_id bigint, cause_revision integer, order_no bigint, affiliate_id bigint,
               at timestamptz, commission_minor bigint, fee_minor bigint)
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set jit = off
as $$
    with posted as materialized (
        select t.cause_kind, t.cause_id, t.cause_revision, t.code, t.created_at,
               case when t.debit_account = p_account_id then t.amount_minor else - t.amount_minor end as amount_minor
          from affiliate.transfer t
         where t.merchant_id = p_merchant_id
           and p_account_id in (t.debit_account, t.credit_account)
           and t.cause_kind in (1, 2)
           and t.created_at >= p_from
           and t.created_at < p_until
    ),
    span as (
        select min(p.cause_id) as low, max(p.cause_id) as high from posted p where p.cause_kind = 2
    ),
    item as materialized (
        select i.*
          from span s
         cross join lateral (
                   select i.release_id, i.order_no, i.commission_minor, i.fee_minor
                     from affiliate.release_item i
                    where i.merchant_id = p_merchant_id
                      and i.release_id between s.low and s.high
                   offset 0
               ) i
    ),
    released as materialized (
        select r.*
          from span s
         cross join lateral (
                   select r.release_id, r.affiliate_id
                     from affiliate.release r
                    where r.merchant_id = p_merchant_id
                      and r.release_id between s.low and s.high
                   offset 0
               ) r
    )
    select 'kept', 2::smallint, p.cause_id, 1, i.order_no, r.affiliate_id, p.created_at, i.commission_minor, i.fee_minor
      from posted p
      join item i on i.release_id = p.cause_id
      join released r on r.release_id = p.cause_id
     where p.cause_kind = 2
     union all
    select 'correction', 1::smallint, p.cause_id, p.cause_revision, p.cause_id, o.posted_affiliate_id, p.at, p.commission_minor, p.fee_minor
      from (select p.cause_id, p.cause_revision, min(p.created_at) as at,
                   coalesce(sum(p.amount_minor) filter (where p.code in (1, 3)), 0)::bigint as commission_minor,
                   coalesce(sum(p.amount_minor) filter (where p.code in (2, 4)), 0)::bigint as fee_minor
              from posted p
             where p.cause_kind = 1
             group by p.cause_id, p.cause_revision) p
     cross join lateral (
               select o.posted_affiliate_id
                 from affiliate.order_fact o
                where o.merchant_id = p_merchant_id
                  and o.order_no = p.cause_id
               offset 0
           ) o
$$;

create function affiliate.next_bill_number(p_livemode boolean)
returns text
language sql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
    insert into affiliate.bill_number as n (livemode, year, last)
    values (p_livemode, extract(year from now() at time zone 'UTC')::integer, 1)
        on conflict (livemode, year) do update set last = n.last + 1
    returning format('%s-%s-%s', case when n.livemode then 'INV' else 'TEST' end, n.year, lpad(n.last::text, greatest(6, length(n.last::text)), '0'))
$$;

-- Makes the bill of what became owed before a time; null if it is made, or there is nothing to bill.
create function affiliate.issue_bill(p_merchant_id bigint, p_livemode boolean, p_currency text, p_until timestamptz)
returns affiliate.bill
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    owed affiliate.account;
    since timestamptz;
    policy affiliate.bill_policy;
    made affiliate.bill;
    -- A transaction lasts a week at the longest: what one posts is at most that much older than its commit.
    longest constant interval := '7 days';
begin
    insert into affiliate.bill_cursor (merchant_id, livemode, currency, until)
    select a.merchant_id, a.livemode, a.currency, date_trunc('month', a.created_at, 'UTC')
      from affiliate.account a
     where a.merchant_id = p_merchant_id and a.livemode = p_livemode and a.currency = p_currency and a.owner = 'merchant' and a.kind = 'owed'
        on conflict do nothing;
    select c.until into since
      from affiliate.bill_cursor c
     where c.merchant_id = p_merchant_id and c.livemode = p_livemode and c.currency = p_currency
       for update;
    if not found or since >= p_until then
        return null;
    end if;
    select * into owed
      from affiliate.account a
     where a.merchant_id = p_merchant_id and a.livemode = p_livemode and a.currency = p_currency and a.owner = 'merchant' and a.kind = 'owed'
       for update;

    update affiliate.bill_cursor c
       set until = p_until
     where c.merchant_id = p_merchant_id and c.livemode = p_livemode and c.currency = p_currency;
    made.bill_id := nextval('affiliate.bill_id_seq');
    insert into affiliate.bill_line
    select p_merchant_id, made.bill_id, row_number() over (order by p.at, p.order_no, p.cause_kind, p.cause_revision), p.kind, p.cause_kind, p.cause_id,
           p.cause_revision, p.order_no, o.order_id, p.affiliate_id, p.at, o.amount_minor, p.commission_minor, p.fee_minor
      from affiliate.owed_postings(p_merchant_id, owed.account_id, since - longest, p_until) p
      join affiliate.order_fact o on o.merchant_id = p_merchant_id and o.order_no = p.order_no
     where not exists (select from affiliate.bill_line l
                        where l.merchant_id = p_merchant_id and l.order_no = p.order_no and l.cause_kind = p.cause_kind
                          and l.cause_id = p.cause_id and l.cause_revision = p.cause_revision);
    select count(*), coalesce(sum(l.commission_minor), 0), coalesce(sum(l.fee_minor), 0)
      into made.lines, made.commission_minor, made.fee_minor
      from affiliate.bill_line l
     where l.merchant_id = p_merchant_id and l.bill_id = made.bill_id;
    if made.lines = 0 then
        return null;
    end if;

    select * into policy from affiliate.bill_policy;
    made.vat_basis_points := case when policy.vat then coalesce((select v.basis_points from affiliate.vat_rate v
        where v.valid_from <= (now() at time zone 'UTC')::date order by v.valid_from desc limit 1), 0) else 0 end;
    made.vat_minor := sign(made.fee_minor) * affiliate.basis_points_of(abs(made.fee_minor), made.vat_basis_points);
    insert into affiliate.bill
          (merchant_id, bill_id, number, livemode, currency, period_from, period_until, lines, commission_minor, fee_minor, vat_basis_points, vat_minor,
           total_minor, seller, buyer, due_on)
    select p_merchant_id, made.bill_id, affiliate.next_bill_number(p_livemode), p_livemode, p_currency, since, p_until, made.lines,
           made.commission_minor, made.fee_minor, made.vat_basis_points, made.vat_minor, made.commission_minor + made.fee_minor + made.vat_minor,
           jsonb_build_object('name', policy.seller_name, 'address', policy.seller_address, 'tax_no', policy.seller_tax_no, 'note', policy.note),
           jsonb_build_object('name', coalesce(f.legal_name, m.name), 'address', f.address, 'tax_no', f.tax_no, 'registration_no', f.registration_no),
           (now() at time zone 'UTC')::date + policy.net_days
      from affiliate.merchant m
      left join affiliate.merchant_profile f using (merchant_id)
     where m.merchant_id = p_merchant_id
    returning * into made;

    if made.vat_minor > 0 then
        perform affiliate.post_transfer(p_merchant_id, p_livemode, p_currency, 5, made.bill_id, 1, 33,
            'merchant', 'owed', p_merchant_id, 'platform', 'vat_payable', 0, made.vat_minor);
    elsif made.vat_minor < 0 then
        perform affiliate.post_transfer(p_merchant_id, p_livemode, p_currency, 5, made.bill_id, 1, 34,
            'platform', 'vat_payable', 0, 'merchant', 'owed', p_merchant_id, - made.vat_minor);
    end if;
    if p_livemode then
        perform affiliate.notify_owners(p_merchant_id, 'bill_issued', affiliate.bill_notice(made));
    end if;
    perform affiliate.emit('bill.issued', p_merchant_id, null, p_livemode, made.number, affiliate.bill_notice(made));
    return made;
end
$$;

create function affiliate.bill_notice(b affiliate.bill)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object('number', b.number, 'amount', affiliate.amount_text(b.total_minor, k.decimals), 'currency', b.currency,
                              'due_on', b.due_on, 'name', m.name)
      from affiliate.currency k
     cross join affiliate.merchant m
     where k.currency = b.currency
       and m.merchant_id = b.merchant_id
$$;

-- Makes bills of months that are over, each merchant's oldest first, and tells of those that are overdue. Gives how much it has
-- done: again, until that is nothing. Each call is a transaction; whoever dies in one has done nothing of it.
create function affiliate.issue_bills(p_limit integer)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    month_end timestamptz := date_trunc('month', now() - (select grace from affiliate.bill_policy), 'UTC');
    a record;
    done bigint := 0;
begin
    for a in select x.merchant_id, x.currency,
                    least(month_end, date_trunc('month', coalesce(c.until, x.created_at), 'UTC') + interval '1 month') as until
               from affiliate.account x
               left join affiliate.bill_cursor c using (merchant_id, livemode, currency)
              where x.owner = 'merchant' and x.kind = 'owed' and x.livemode
                and coalesce(c.until, date_trunc('month', x.created_at, 'UTC')) < month_end
              order by x.merchant_id, x.currency
              limit p_limit loop
        perform affiliate.issue_bill(a.merchant_id, true, a.currency, a.until);
        done := done + 1;
    end loop;

    for a in select b.*
               from affiliate.bill b
              where b.livemode and b.total_minor > 0
                and b.due_on < (now() at time zone 'UTC')::date
                -- Paid ones are looked at each time: of the last months only.
                and b.due_on > (now() at time zone 'UTC')::date - 100
                and not exists (select from affiliate.bill_reminder r where r.merchant_id = b.merchant_id and r.bill_id = b.bill_id)
                and affiliate.bill_paid(b) < b.total_minor
              order by b.bill_id
              limit p_limit loop
        insert into affiliate.bill_reminder values (a.merchant_id, a.bill_id) on conflict do nothing;
        if found then
            perform affiliate.notify_owners(a.merchant_id, 'bill_overdue', affiliate.bill_notice(b))
               from affiliate.bill b where b.merchant_id = a.merchant_id and b.bill_id = a.bill_id;
            done := done + 1;
        end if;
    end loop;
    return done;
end
$$;

select affiliate.enter_as_owner('affiliate.issue_bills(integer)');

-- ---------------------------------------------------------------------------------------------------------------
-- As people see them
-- ---------------------------------------------------------------------------------------------------------------

-- What counts for bills: payments and credit notes.
create function affiliate.bill_credit(p_merchant_id bigint, p_livemode boolean, p_currency text)
returns numeric
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select (select coalesce(sum(p.amount_minor), 0) from affiliate.bill_payment p
             where p.merchant_id = p_merchant_id and p.livemode = p_livemode and p.currency = p_currency and p.reversed_at is null)
           - (select coalesce(sum(o.total_minor), 0) from affiliate.bill o
               where o.merchant_id = p_merchant_id and o.livemode = p_livemode and o.currency = p_currency and o.total_minor < 0)
$$;

-- How much of a bill is paid: the oldest come first.
create function affiliate.bill_paid(b affiliate.bill)
returns bigint
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select greatest(0, least(greatest(b.total_minor, 0), x.credit - x.before))::bigint
      from (select affiliate.bill_credit(b.merchant_id, b.livemode, b.currency) as credit,
                   (select coalesce(sum(o.total_minor), 0) from affiliate.bill o
                     where o.merchant_id = b.merchant_id and o.livemode = b.livemode and o.currency = b.currency and o.total_minor > 0
                       and o.bill_id < b.bill_id) as before) x
$$;

create function affiliate.bill_state(b affiliate.bill, p_paid bigint)
returns text
language sql stable
return case when b.total_minor < 0 then 'credit'
            when p_paid >= b.total_minor then 'paid'
            when b.due_on < (now() at time zone 'UTC')::date then 'overdue'
            when p_paid > 0 then 'part_paid'
            else 'issued' end;

create function affiliate.bill_json(b affiliate.bill)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    decimals smallint := (select k.decimals from affiliate.currency k where k.currency = b.currency);
    paid bigint := affiliate.bill_paid(b);
    state text := affiliate.bill_state(b, paid);
begin
    return jsonb_build_object(
        'bill', b.bill_id,
        'merchant', b.merchant_id,
        'merchant_name', (select m.name from affiliate.merchant m where m.merchant_id = b.merchant_id),
        'number', b.number,
        'livemode', b.livemode,
        'currency', b.currency,
        'from', b.period_from,
        'until', b.period_until,
        'lines', b.lines,
        'commission', affiliate.amount_text(b.commission_minor, decimals),
        'fee', affiliate.amount_text(b.fee_minor, decimals),
        'vat_percent', affiliate.percent_text(b.vat_basis_points),
        'vat', affiliate.amount_text(b.vat_minor, decimals),
        'total', affiliate.amount_text(b.total_minor, decimals),
        'paid', affiliate.amount_text(paid, decimals),
        'state', state,
        'sentence', case state
            when 'credit' then 'More came back than became owed: it counts as a payment.'
            when 'paid' then 'It is paid.'
            when 'overdue' then 'It was due on ' || b.due_on || '; ' || affiliate.amount_text(b.total_minor - paid, decimals) || ' ' || b.currency || ' are open.'
            when 'part_paid' then affiliate.amount_text(b.total_minor - paid, decimals) || ' ' || b.currency || ' are open, due on ' || b.due_on || '.'
            else 'It is due on ' || b.due_on || '.' end,
        'issued_at', b.issued_at,
        'due_on', b.due_on,
        'seller', b.seller,
        'buyer', b.buyer);
end
$$;

create function affiliate.bill_line_json(l affiliate.bill_line, p_currency text, p_decimals smallint)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'line', l.line, 'kind', l.kind, 'order', l.order_id, 'order_no', l.order_no, 'affiliate', l.affiliate_id,
        'affiliate_name', (select a.name from affiliate.affiliate a where a.affiliate_id = l.affiliate_id),
        'at', l.at, 'amount', affiliate.amount_text(l.amount_minor, p_decimals),
        'commission', affiliate.amount_text(l.commission_minor, p_decimals), 'fee', affiliate.amount_text(l.fee_minor, p_decimals),
        'currency', p_currency)
$$;

create function affiliate.bill_payment_json(p affiliate.bill_payment)
returns jsonb
language sql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select jsonb_build_object(
        'payment', p.payment_id, 'merchant', p.merchant_id, 'livemode', p.livemode, 'currency', p.currency,
        'amount', affiliate.amount_text(p.amount_minor, (select k.decimals from affiliate.currency k where k.currency = p.currency)),
        'paid_on', p.paid_on, 'method', p.method, 'reference', p.reference, 'note', p.note,
        'reversed_at', p.reversed_at, 'reason', p.reason, 'created_at', p.created_at)
$$;

create function affiliate.html(p_text text)
returns text
language sql immutable parallel safe
return replace(replace(replace(replace(replace(coalesce(p_text, ''), '&', '&amp;'), '<', '&lt;'), '>', '&gt;'), '"', '&quot;'), '''', '&#39;');

create function affiliate.bill_party_html(p_party jsonb)
returns text
language sql immutable
set search_path = pg_catalog, affiliate, pg_temp
as $$
    select format('<strong>%s</strong><br>%s', affiliate.html(p_party ->> 'name'), concat_ws('<br>',
        nullif(replace(affiliate.html(p_party ->> 'address'), e'\n', '<br>'), ''),
        'PAN/VAT ' || affiliate.html(nullif(p_party ->> 'tax_no', '')),
        'Registration ' || affiliate.html(nullif(p_party ->> 'registration_no', ''))))
$$;

-- A page of its own, for printing; of very long bills the first lines, as the whole is there as CSV.
create function affiliate.bill_html(b affiliate.bill)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    shown constant integer := 2000;
    j jsonb := affiliate.bill_json(b);
    decimals smallint := (select k.decimals from affiliate.currency k where k.currency = b.currency);
    word text := case when b.total_minor < 0 then 'Credit note' else 'Invoice' end || case when b.livemode then '' else ' (test)' end;
begin
    return '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>'
        || affiliate.html(word || ' ' || b.number)
        || '</title><style>body{font:14px/1.4 sans-serif;max-width:56em;margin:2em auto;padding:0 1em;color:#111}'
        || 'table{border-collapse:collapse;width:100%}td,th{padding:.25em .5em;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}'
        || '.n{text-align:right;white-space:nowrap}tr.t td{font-weight:bold;border-top:2px solid #111}.p{display:flex;justify-content:space-between;margin:1.5em 0}'
        || 'thead{display:table-header-group}tr{break-inside:avoid}@media print{body{margin:0;max-width:none;font-size:11px}}</style></head><body><h1>'
        || affiliate.html(word || ' ' || b.number) || '</h1><div class="p"><div>From<br>' || affiliate.bill_party_html(b.seller)
        || '</div><div>To<br>' || affiliate.bill_party_html(b.buyer) || '</div><div>'
        || format('Issued %s<br>Due %s<br>Orders from %s<br>to %s (UTC)', (b.issued_at at time zone 'UTC')::date, b.due_on,
                  to_char(b.period_from at time zone 'UTC', 'YYYY-MM-DD HH24:MI'), to_char(b.period_until at time zone 'UTC', 'YYYY-MM-DD HH24:MI'))
        || '</div></div><table>'
        || format('<tr><td>Commissions of affiliates</td><td class="n">%s %s</td></tr><tr><td>Network fee</td><td class="n">%3$s %2$s</td></tr>',
                  j ->> 'commission', affiliate.html(b.currency), j ->> 'fee')
        || case when b.vat_basis_points > 0 then format('<tr><td>VAT on the network fee, %s %%</td><td class="n">%s %s</td></tr>', j ->> 'vat_percent', j ->> 'vat', affiliate.html(b.currency)) else '' end
        || format('<tr class="t"><td>Total</td><td class="n">%s %s</td></tr><tr><td>%s</td><td class="n">paid %s</td></tr></table>', j ->> 'total', affiliate.html(b.currency), affiliate.html(j ->> 'sentence'), j ->> 'paid')
        || '<h2>Orders</h2><table><thead><tr><th>Order<th>Day<th>Affiliate<th class="n">Amount<th class="n">Commission<th class="n">Fee<th></tr></thead><tbody>'
        || (select string_agg(format('<tr><td>%s</td><td>%s</td><td>%s</td><td class="n">%s</td><td class="n">%s</td><td class="n">%s</td><td>%s</td></tr>',
                    affiliate.html(l.order_id), (l.at at time zone 'UTC')::date, affiliate.html(a.name), affiliate.amount_text(l.amount_minor, decimals),
                    affiliate.amount_text(l.commission_minor, decimals), affiliate.amount_text(l.fee_minor, decimals),
                    case when l.kind = 'correction' then 'changed since' else '' end), '' order by l.line)
              from affiliate.bill_line l
              left join affiliate.affiliate a using (affiliate_id)
             where l.merchant_id = b.merchant_id and l.bill_id = b.bill_id and l.line <= shown)
        || '</tbody></table>'
        || case when b.lines > shown then format('<p>%s of %s orders; all of them are in the list as CSV.</p>', shown, b.lines) else '' end
        || case when b.seller ->> 'note' is not null then '<p>' || replace(affiliate.html(b.seller ->> 'note'), e'\n', '<br>') || '</p>' else '' end
        || '</body></html>' || e'\n';
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Payments
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.record_bill_payment(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made affiliate.bill_payment;
    wanted text := affiliate.currency_field(p_request, 'currency');
    minor bigint := affiliate.amount_field(p_request, 'amount', wanted);
    day text := affiliate.form_field(p_request, 'paid_on', 10, '^[0-9]{4}-[0-9]{2}-[0-9]{2}$', 'must be a day like 2026-11-23');
begin
    if minor <= 0 then
        perform affiliate.refuse('amount', 'must be above zero');
    end if;
    begin
        made.paid_on := day::date;
    exception when data_exception then
        perform affiliate.refuse('paid_on', 'must be a day like 2026-11-23');
    end;
    if made.paid_on > (now() at time zone 'UTC')::date + 1 then
        perform affiliate.refuse('paid_on', 'is still to come');
    end if;
    insert into affiliate.bill_payment (merchant_id, livemode, currency, amount_minor, paid_on, method, reference, note, recorded_by)
    values (p_actor.merchant_id, p_actor.livemode, wanted, minor, made.paid_on, affiliate.text_field(p_request, 'method', 50),
            affiliate.text_field(p_request, 'reference', 100), affiliate.text_field(p_request, 'note', 1000), p_actor.user_id)
    returning * into made;
    perform affiliate.post_transfer(made.merchant_id, made.livemode, made.currency, 4, made.payment_id, 1, 31,
        'platform', 'cash', 0, 'merchant', 'owed', made.merchant_id, made.amount_minor);
    -- Bills that are paid up to here, and were not before.
    perform affiliate.emit('bill.paid', x.merchant_id, null, x.livemode, x.number, affiliate.bill_notice(x.b))
       from (select b.merchant_id, b.livemode, b.number, b, sum(b.total_minor) over (order by b.bill_id) as upto, c.credit
               from affiliate.bill b
              cross join affiliate.bill_credit(made.merchant_id, made.livemode, made.currency) c(credit)
              where b.merchant_id = made.merchant_id and b.livemode = made.livemode and b.currency = made.currency and b.total_minor > 0) x
      where x.upto <= x.credit and x.upto > x.credit - made.amount_minor;
    perform affiliate.record(p_actor, 'bill_payment.create', 'bill_payment', made.payment_id::text, null, affiliate.bill_payment_json(made));
    return affiliate.bill_payment_json(made);
end
$$;

create function affiliate.reverse_bill_payment(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.bill_payment;
    after affiliate.bill_payment;
    why text := affiliate.text_field(p_request, 'reason', 1000);
begin
    select * into before
      from affiliate.bill_payment p
     where p.merchant_id = p_actor.merchant_id and p.livemode = p_actor.livemode and p.payment_id = affiliate.id_field(p_request, 'payment')
       for update;
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such payment.');
    end if;
    if before.reversed_at is not null then
        return affiliate.bill_payment_json(before);
    end if;
    update affiliate.bill_payment p
       set reversed_at = now(), reversed_by = p_actor.user_id, reason = why
     where p.merchant_id = before.merchant_id and p.payment_id = before.payment_id
    returning * into after;
    perform affiliate.post_transfer(after.merchant_id, after.livemode, after.currency, 4, after.payment_id, 2, 32,
        'merchant', 'owed', after.merchant_id, 'platform', 'cash', 0, after.amount_minor);
    perform affiliate.record(p_actor, 'bill_payment.reverse', 'bill_payment', after.payment_id::text, affiliate.bill_payment_json(before),
        affiliate.bill_payment_json(after), why);
    return affiliate.bill_payment_json(after);
end
$$;

-- In test mode a merchant makes a bill of what became owed up to now.
create function affiliate.issue_test_bill(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made affiliate.bill;
begin
    if p_actor.livemode then
        perform affiliate.problem(403, 'test_mode_only', 'Bills of live orders are made by themselves, after each month. Add ?livemode=false for one of test orders.');
    end if;
    made := affiliate.issue_bill(p_actor.merchant_id, false, affiliate.currency_field(p_request, 'currency'), clock_timestamp());
    if made.bill_id is null then
        perform affiliate.problem(409, 'nothing_owed', 'Nothing has become owed in this currency since the last bill.');
    end if;
    perform affiliate.record(p_actor, 'bill.issue', 'bill', made.number, null, affiliate.bill_json(made));
    return affiliate.bill_json(made);
end
$$;

create function affiliate.bill_policy_json(p affiliate.bill_policy)
returns jsonb
language sql immutable parallel safe
return jsonb_build_object('seller_name', p.seller_name, 'seller_address', p.seller_address, 'seller_tax_no', p.seller_tax_no, 'vat', p.vat,
                          'net_days', p.net_days, 'note', p.note, 'version', p.version);

create function affiliate.set_bill_policy(p_actor affiliate.actor, p_request jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    before affiliate.bill_policy;
    after affiliate.bill_policy;
begin
    select * into before from affiliate.bill_policy for update;
    perform affiliate.check_version(p_request, before.version);
    after := before;
    after.seller_name := coalesce(affiliate.text_field(p_request, 'seller_name', 200), before.seller_name);
    after.seller_address := case when p_request ? 'seller_address' then affiliate.text_field(p_request, 'seller_address', 500) else before.seller_address end;
    after.seller_tax_no := case when p_request ? 'seller_tax_no' then affiliate.text_field(p_request, 'seller_tax_no', 50) else before.seller_tax_no end;
    after.note := case when p_request ? 'note' then affiliate.text_field(p_request, 'note', 1000) else before.note end;
    after.vat := coalesce(affiliate.boolean_field(p_request, 'vat'), before.vat);
    after.net_days := coalesce(affiliate.integer_field(p_request, 'net_days', 0, 365), before.net_days);
    if after.vat and after.seller_tax_no is null then
        perform affiliate.refuse('vat', 'needs a seller_tax_no: only who has a number for VAT charges it');
    end if;
    update affiliate.bill_policy
       set seller_name = after.seller_name, seller_address = after.seller_address, seller_tax_no = after.seller_tax_no, note = after.note,
           vat = after.vat, net_days = after.net_days
    returning * into after;
    perform affiliate.record(p_actor, 'bill_policy.update', 'bill_policy', '1', affiliate.bill_policy_json(before), affiliate.bill_policy_json(after));
    return affiliate.bill_policy_json(after);
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- The proof
-- ---------------------------------------------------------------------------------------------------------------

create function affiliate.audit_bills(p_since timestamptz default null)
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
    select 'bill is the sum of its lines', b.merchant_id, 'bill ' || b.number,
           format('says %s lines of %s and %s, they are %s of %s and %s', b.lines, b.commission_minor, b.fee_minor, l.lines, l.commission, l.fee)
      from affiliate.bill b
      left join lateral (select count(*) as lines, sum(l.commission_minor) as commission, sum(l.fee_minor) as fee
                           from affiliate.bill_line l where l.merchant_id = b.merchant_id and l.bill_id = b.bill_id) l on true
     where (p_since is null or b.issued_at >= p_since)
       and (b.lines, b.commission_minor, b.fee_minor) is distinct from (l.lines, l.commission, l.fee)
    union all
    select 'numbers of bills have no gaps', null, format('%s %s', case when n.livemode then 'live' else 'test' end, n.year),
           format('the last is %s, there are %s', n.last, b.bills)
      from affiliate.bill_number n
     cross join lateral (select count(*) as bills from affiliate.bill b
                          where b.livemode = n.livemode and b.number like format('%s-%s-%%', case when n.livemode then 'INV' else 'TEST' end, n.year)) b
     where n.last <> b.bills
    union all
    -- What is owed by the ledger is what bills and payments say, and what is on no bill yet.
    select 'what is owed is on bills', a.merchant_id, a.currency || case when a.livemode then ' live' else ' test' end,
           format('the ledger says %s, bills %s, payments %s, on no bill %s', a.balance, b.total, p.paid, u.unbilled)
      from (select a.merchant_id, a.account_id, a.livemode, a.currency, a.debits_minor - a.credits_minor as balance
              from affiliate.account a where a.owner = 'merchant' and a.kind = 'owed') a
     cross join lateral (select coalesce(sum(b.total_minor), 0) as total from affiliate.bill b
                          where b.merchant_id = a.merchant_id and b.livemode = a.livemode and b.currency = a.currency) b
     cross join lateral (select coalesce(sum(p.amount_minor) filter (where p.reversed_at is null), 0) as paid from affiliate.bill_payment p
                          where p.merchant_id = a.merchant_id and p.livemode = a.livemode and p.currency = a.currency) p
      left join affiliate.bill_cursor c on c.merchant_id = a.merchant_id and c.livemode = a.livemode and c.currency = a.currency
     cross join lateral (select coalesce(sum(x.commission_minor + x.fee_minor), 0) as unbilled
                           from affiliate.owed_postings(a.merchant_id, a.account_id, coalesce(c.until - interval '7 days', '-infinity'), 'infinity') x
                          where not exists (select from affiliate.bill_line l
                                             where l.merchant_id = a.merchant_id and l.order_no = x.order_no and l.cause_kind = x.cause_kind
                                               and l.cause_id = x.cause_id and l.cause_revision = x.cause_revision)) u
     where a.balance <> b.total - p.paid + u.unbilled
    union all
    select 'bill and payment are in the ledger', coalesce(w.merchant_id, t.merchant_id), format('%s %s', case coalesce(w.cause_kind, t.cause_kind) when 4 then 'payment' else 'bill' end, coalesce(w.cause_id, t.cause_id)),
           format('code %s should be %s, is %s', coalesce(w.code, t.code), w.amount, t.amount_minor)
      from (select p.merchant_id, 4 as cause_kind, p.payment_id as cause_id, 31 as code, p.amount_minor as amount from affiliate.bill_payment p
             union all
            select p.merchant_id, 4, p.payment_id, 32, p.amount_minor from affiliate.bill_payment p where p.reversed_at is not null
             union all
            select b.merchant_id, 5, b.bill_id, case when b.vat_minor > 0 then 33 else 34 end, abs(b.vat_minor) from affiliate.bill b where b.vat_minor <> 0) w
      full join (select t.merchant_id, t.cause_kind, t.cause_id, t.code, t.amount_minor from affiliate.transfer t where t.cause_kind in (4, 5)) t
        on t.merchant_id = w.merchant_id and t.cause_kind = w.cause_kind and t.cause_id = w.cause_id and t.code = w.code
     where w.amount is distinct from t.amount_minor;
end
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Operations
-- ---------------------------------------------------------------------------------------------------------------

select affiliate.fence(t) from unnest(array['affiliate.bill', 'affiliate.bill_line', 'affiliate.bill_payment']::regclass[]) t;
select affiliate.fence(t, p_merchant => null) from unnest(array['affiliate.bill_policy', 'affiliate.bill_cursor', 'affiliate.bill_number', 'affiliate.bill_reminder']::regclass[]) t;

select affiliate.enter_as_tenant(
    'affiliate.record_bill_payment(affiliate.actor, jsonb)',
    'affiliate.reverse_bill_payment(affiliate.actor, jsonb)',
    'affiliate.issue_test_bill(affiliate.actor, jsonb)',
    'affiliate.set_bill_policy(affiliate.actor, jsonb)');

-- Its state is worked out only of those that can be in it.
create function affiliate.bill_conditions(p_request jsonb)
returns text
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    wanted text := affiliate.form_field(p_request, 'state', 20, '^(credit|paid|overdue|part_paid|issued)$', 'must be issued, part_paid, paid, overdue or credit');
begin
    return concat_ws(' and ',
        case when wanted in ('issued', 'part_paid') then 'b.due_on >= (now() at time zone ''UTC'')::date' end,
        case when wanted = 'overdue' then 'b.due_on < (now() at time zone ''UTC'')::date' end,
        case when wanted = 'credit' then 'b.total_minor < 0' end,
        'affiliate.bill_state(b, affiliate.bill_paid(b)) = ' || quote_literal(wanted),
        'b.currency = ' || quote_literal(affiliate.currency_field(p_request, 'currency')));
end
$$;

create function affiliate.find_bill(p_actor affiliate.actor, p_request jsonb)
returns affiliate.bill
language plpgsql stable
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.bill;
begin
    select * into b from affiliate.bill x
     where x.merchant_id = p_actor.merchant_id and x.livemode = p_actor.livemode and x.bill_id = affiliate.id_field(p_request, 'bill');
    if not found then
        perform affiliate.problem(404, 'not_found', 'There is no such bill.');
    end if;
    return b;
end
$$;

create function affiliate.api_bill_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{state,currency}');
    return query select affiliate.page(p_actor, p_request,
        'select b, b.bill_id as bill, b.issued_at from affiliate.bill b where '
        || concat_ws(' and ', 'b.merchant_id = $1.merchant_id', 'b.livemode = $1.livemode', nullif(affiliate.bill_conditions(p_request), '')),
        'affiliate.bill_json(x.b)', '{-issued_at timestamptz}', 'bill bigint');
end
$$;

create function affiliate.api_bill_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{bill}');
    return next affiliate.bill_json(affiliate.find_bill(p_actor, p_request));
end
$$;

create function affiliate.api_bill_line_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    b affiliate.bill := affiliate.find_bill(p_actor, p_request);
begin
    perform affiliate.check_page(p_request, '{bill}');
    return query select affiliate.page(p_actor, p_request,
        format('select l, l.line from affiliate.bill_line l where l.merchant_id = $1.merchant_id and l.bill_id = %s', b.bill_id),
        format('affiliate.bill_line_json(x.l, %L, %s::smallint)', b.currency, (select k.decimals from affiliate.currency k where k.currency = b.currency)),
        '{line integer}', 'line integer');
end
$$;

-- A page to print; C answers with it as it is.
create function affiliate.api_bill_print(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{bill}');
    return next jsonb_build_object('_type', 'text/html; charset=utf-8', '_content', affiliate.bill_html(affiliate.find_bill(p_actor, p_request)));
end
$$;

create function affiliate.api_bill_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made jsonb;
begin
    perform affiliate.check_request(p_request, '{currency}');
    made := affiliate.issue_test_bill(p_actor, p_request);
    perform affiliate.answer(jsonb_build_object('status', 201, 'location', format('/api/v1/merchants/%s/bills/%s', p_actor.merchant_id, made ->> 'bill')));
    return next made;
end
$$;

create function affiliate.api_bill_payment_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{currency}');
    return query select affiliate.page(p_actor, p_request,
        'select p, p.payment_id as payment, p.created_at from affiliate.bill_payment p where '
        || concat_ws(' and ', 'p.merchant_id = $1.merchant_id', 'p.livemode = $1.livemode', 'p.currency = ' || quote_literal(affiliate.currency_field(p_request, 'currency'))),
        'affiliate.bill_payment_json(x.p)', '{-created_at timestamptz}', 'payment bigint');
end
$$;

create function affiliate.api_bill_payment_create(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    made jsonb;
begin
    perform affiliate.check_request(p_request, '{amount,currency,paid_on,method}', '{reference,note}');
    made := affiliate.record_bill_payment(p_actor, p_request);
    perform affiliate.answer(jsonb_build_object('status', 201, 'location', format('/api/v1/merchants/%s/bill-payments', p_actor.merchant_id)));
    return next made;
end
$$;

create function affiliate.api_bill_payment_reverse(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{payment,reason}');
    return next affiliate.reverse_bill_payment(p_actor, p_request);
end
$$;

create function affiliate.api_admin_bill_list(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_page(p_request, '{state,currency,merchant}');
    return query select affiliate.page(p_actor, p_request,
        'select b, b.bill_id as bill, b.issued_at from affiliate.bill b where '
        || concat_ws(' and ', 'b.livemode = $1.livemode', 'b.merchant_id = ' || affiliate.id_field(p_request, 'merchant'), nullif(affiliate.bill_conditions(p_request), '')),
        'affiliate.bill_json(x.b)', '{-issued_at timestamptz}', 'bill bigint');
end
$$;

create function affiliate.api_bill_policy_show(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
declare
    p affiliate.bill_policy;
begin
    perform affiliate.check_request(p_request);
    select * into p from affiliate.bill_policy;
    perform affiliate.answer_version(p.version);
    return next affiliate.bill_policy_json(p);
end
$$;

create function affiliate.api_bill_policy_update(p_actor affiliate.actor, p_request jsonb)
returns setof jsonb
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.check_request(p_request, '{}', '{seller_name,seller_address,seller_tax_no,vat,net_days,note}');
    return next affiliate.set_bill_policy(p_actor, p_request);
end
$$;

select affiliate.operation(o, actors => '{merchant,key,admin}')
  from unnest('{bill_list,bill_show,bill_line_list,bill_print,bill_payment_list}'::text[]) o;
select affiliate.operation('bill_create', actors => '{merchant,key,admin}', role => 'manager', creates => true);
select affiliate.operation(o, actors => '{admin}', creates => true) from unnest('{bill_payment_create,bill_payment_reverse}'::text[]) o;
select affiliate.operation(o, actors => '{admin}') from unnest('{admin_bill_list,bill_policy_show}'::text[]) o;
select affiliate.operation('bill_policy_update', actors => '{admin}', mutates => true);

select affiliate.seal_operations();
