-- Holds that are over.

-- Releases up to p_max orders whose hold is over, and returns how many. Orders are taken by due time from an index, rows
-- that somebody else works on are skipped, so any number of daemons may call it. However many orders one affiliate
-- has among them, they are one release with three transfers; release_item tells which orders it was made of.
create function affiliate.release_holds(p_max integer)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
as $$
declare
    released bigint;
begin
    perform affiliate.work_tables();
    perform affiliate.work_clear('hold_over', 'posting', 'posting_account');

    with over as (
        delete from affiliate.hold
         where ctid = any (array(
                   select h.ctid
                     from affiliate.hold h
                    where h.due_at <= now()
                    order by h.due_at
                    limit p_max
                      for update skip locked))
        returning *
    )
    insert into pg_temp.hold_over
    select *
      from over;
    get diagnostics released = row_count;

    if released = 0 then
        return 0;
    end if;

    with made as (
        insert into affiliate.release
              (merchant_id, release_id, affiliate_id, livemode, currency, orders, commission_minor, fee_minor)
        select g.merchant_id, nextval('affiliate.release_id_seq'), g.affiliate_id, g.livemode, g.currency,
               g.orders, g.commission, g.fee
          from (select h.merchant_id, h.affiliate_id, h.livemode, h.currency,
                       count(*) as orders, sum(h.commission_minor) as commission, sum(h.fee_minor) as fee
                  from pg_temp.hold_over h
                 group by h.merchant_id, h.affiliate_id, h.livemode, h.currency) g
        returning *
    ),
    itemized as (
        insert into affiliate.release_item
              (merchant_id, order_no, release_id, commission_minor, fee_minor, due_at, revision)
        select h.merchant_id, h.order_no, m.release_id, h.commission_minor, h.fee_minor, h.due_at, h.revision
          from pg_temp.hold_over h
          join made m using (merchant_id, affiliate_id, livemode, currency)
    )
    insert into pg_temp.posting
    select m.merchant_id, m.release_id, 1, 2, leg.code, m.livemode, m.currency, leg.amount,
           leg.owner, leg.debit_kind, leg.owner_id, leg.owner, leg.credit_kind, leg.owner_id
      from made m
     cross join lateral (values
               (11, m.commission_minor, 'affiliate', 'pending', 'payable', m.affiliate_id),
               (12, m.fee_minor, 'platform', 'fee_pending', 'fee_earned', 0),
               (13, m.commission_minor + m.fee_minor, 'merchant', 'owed', 'accrued', m.merchant_id)
           ) as leg(code, amount, owner, debit_kind, credit_kind, owner_id)
     where leg.amount > 0;

    perform affiliate.post_transfers();
    return released;
end
$$;
