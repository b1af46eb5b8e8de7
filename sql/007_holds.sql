-- Holds that are over.

-- Releases up to p_max orders whose hold is over, and returns how many. Orders are taken by due time from an index, rows
-- that somebody else works on are skipped, so any number of daemons may call it. Where a test clock is ahead, so is what is
-- due. However many orders one affiliate has among them, they are one release with three transfers; release_item tells which
-- orders it was made of.
create function affiliate.release_holds(p_max integer)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_nestloop = off
set enable_mergejoin = off
set work_mem = '64MB'
set jit = off
as $$
declare
    -- Of orders at the limit, so many sum up to a bigint.
    most bigint := least(p_max, 9223372036854775807 / affiliate.worth_limit());
    due tid[];
    count bigint;
    tells boolean := affiliate.has_endpoints();
begin
    perform affiliate.work_tables();
    perform affiliate.work_clear('released', 'account_change', 'account_changed', 'order_change', 'order_told');

    due := array(
        select h.ctid
          from affiliate.hold h
         where h.due_at <= now()
         order by h.due_at
         limit most
           for update skip locked);
    if cardinality(due) < most then
        due := due || array(select affiliate.test_holds_due(most - cardinality(due)));
    end if;

    with over as (
        delete from affiliate.hold
         where ctid = any (due)
        returning *
    ),
    grouped as materialized (
        select h.merchant_id, nextval('affiliate.release_id_seq') as release_id, h.affiliate_id, h.livemode, h.currency,
               count(*) as orders, sum(h.commission_minor) as commission, sum(h.fee_minor) as fee
          from over h
         group by h.merchant_id, h.affiliate_id, h.livemode, h.currency
    ),
    itemized as (
        -- Sorted, because the pages of the index are then touched one after the other.
        insert into affiliate.release_item
              (merchant_id, order_no, release_id, commission_minor, fee_minor, due_at, revision)
        select h.merchant_id, h.order_no, g.release_id, h.commission_minor, h.fee_minor, h.due_at, h.revision
          from over h
          join grouped g using (merchant_id, affiliate_id, livemode, currency)
         order by h.merchant_id, h.order_no
    ),
    counted as (
        insert into pg_temp.order_change
        select h.merchant_id, h.livemode, h.day, h.link_id, h.campaign_id, h.affiliate_id, h.sub_id, h.currency,
               0, - count(*), count(*), 0, 0, 0, 0, 0, 0,
               - sum(h.commission_minor), sum(h.commission_minor), 0, - sum(h.fee_minor), sum(h.fee_minor)
          from over h
         group by h.merchant_id, h.livemode, h.day, h.link_id, h.campaign_id, h.affiliate_id, h.sub_id, h.currency
    ),
    noted as (
        insert into pg_temp.order_told
        select h.merchant_id, h.livemode, h.order_no, 'payable'
          from over h
         where tells
    ),
    made as (
        insert into affiliate.release
              (merchant_id, release_id, affiliate_id, livemode, currency, orders, commission_minor, fee_minor)
        select g.merchant_id, g.release_id, g.affiliate_id, g.livemode, g.currency, g.orders, g.commission, g.fee
          from grouped g
        returning *
    )
    insert into pg_temp.released
    select *
      from made;

    select coalesce(sum(r.orders), 0) into count
      from pg_temp.released r;
    if count > 0 then
        perform affiliate.post_releases();
        perform affiliate.count_order_changes();
        if tells then
            perform affiliate.emit_told();
        end if;
    end if;
    return count;
end
$$;

-- Posts pg_temp.released: from pending to payable, from fee_pending to fee_earned, from accrued to owed.
create function affiliate.post_releases()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
as $$
begin
    insert into pg_temp.account_change
    select r.merchant_id, r.livemode, r.currency, side.owner, side.kind, side.owner_id, side.debit, side.credit
      from pg_temp.released r
     cross join lateral (values
               ('affiliate', 'pending', r.affiliate_id, r.commission_minor, 0),
               ('affiliate', 'payable', r.affiliate_id, 0, r.commission_minor),
               ('platform', 'fee_pending', 0, r.fee_minor, 0),
               ('platform', 'fee_earned', 0, 0, r.fee_minor),
               ('merchant', 'owed', r.merchant_id, r.commission_minor + r.fee_minor, 0),
               ('merchant', 'accrued', r.merchant_id, 0, r.commission_minor + r.fee_minor)
           ) as side(owner, kind, owner_id, debit, credit)
     where side.debit + side.credit > 0;

    perform affiliate.post_accounts();

    -- One account after the other: of a merchant's many, each is to be met by its key, not by all the others.
    with leg as materialized (
        select r.merchant_id, r.release_id, r.livemode, r.currency, side.*
          from pg_temp.released r
         cross join lateral (values
                   (11, r.commission_minor, 'pending', 'payable', r.affiliate_id),
                   (12, r.fee_minor, 'fee_pending', 'fee_earned', 0),
                   (13, r.commission_minor + r.fee_minor, 'owed', 'accrued', r.merchant_id)
               ) as side(code, amount, debit_kind, credit_kind, owner_id)
         where side.amount > 0
    ),
    debited as materialized (
        select l.*, d.account_id as debit_account
          from leg l
          join pg_temp.account_changed d
            on d.merchant_id = l.merchant_id and d.livemode = l.livemode and d.currency = l.currency
           and d.kind = l.debit_kind and d.owner_id = l.owner_id
    )
    insert into affiliate.transfer
           (merchant_id, cause_id, cause_revision, cause_kind, code, debit_account, credit_account,
            amount_minor, livemode, currency)
    select l.merchant_id, l.release_id, 1, 2, l.code, l.debit_account, c.account_id, l.amount, l.livemode, l.currency
      from debited l
      join pg_temp.account_changed c
        on c.merchant_id = l.merchant_id and c.livemode = l.livemode and c.currency = l.currency
       and c.kind = l.credit_kind and c.owner_id = l.owner_id;
end
$$;
