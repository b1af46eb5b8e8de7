-- Conversions: from the daemon's stage to the order facts.

-- Creates pg_temp.conversion_stage, which the daemon fills by COPY; once a session.
create function affiliate.conversion_stage()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
as $$
begin
    perform affiliate.work_tables();

    if to_regclass('pg_temp.conversion_stage') is not null then
        return;
    end if;

    create temp table conversion_stage (
        spool_id bigint, segment bigint, sequence integer, record integer,
        merchant_id bigint, livemode boolean, source smallint, position smallint, key_id text,
        idempotency_key text collate "C", body_hash bytea, received_at timestamptz, occurred_at timestamptz,
        click_id uuid, order_id text collate "C", status smallint, customer smallint,
        amount_minor bigint, currency text, refund_id text collate "C", reason text,
        item_sku text[], item_category text[], item_quantity integer[], item_amount bigint[]
    ) on commit delete rows;
end
$$;

-- What is wrong with a staged record by itself; null if nothing is.
create function affiliate.record_problem(
    p_idempotency_key text, p_body_hash bytea, p_position smallint, p_received_at timestamptz, p_click_id uuid,
    p_order_id text, p_status smallint, p_customer smallint, p_amount_minor bigint, p_currency text,
    p_quantity integer[], p_amounts bigint[])
returns text
language sql immutable parallel safe
return case
           when p_idempotency_key is null or p_idempotency_key = '' then 'idempotency_key: is missing'
           when p_body_hash is null then 'body_hash: is missing'
           when p_position is null or p_position < 0 then 'position: must not be negative'
           when p_received_at is null then 'received_at: is missing'
           when p_click_id is null then 'click_id: is missing'
           when p_order_id is null or p_order_id = '' then 'order_id: is missing'
           when p_status is null or p_status not between 1 and 5 then 'status: must be 1 to 5'
           when p_customer is null or p_customer not between 0 and 2 then 'customer: must be 0 to 2'
           when p_amount_minor not between 0 and 99999999999999999 then 'amount_minor: must have at most 17 digits'
           when p_currency !~ '^[A-Z]{3}$' then 'currency: must be three upper-case letters'
           when p_amounts is null then null
           when cardinality(p_amounts) <> cardinality(p_quantity) then 'items: arrays differ in length'
           when 0 > any (p_amounts) then 'item_amount: must not be negative'
           when 99999999999999999 < any (p_amounts) then 'item_amount: must have at most 17 digits'
           when 0 > any (p_quantity) then 'item_quantity: must not be negative'
       end;

-- Fills pg_temp.conversion_work from the stage: each record with its click and with what keeps it from being applied.
create function affiliate.match_conversions()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    kept_since timestamptz := affiliate.clicks_kept_since();
begin
    perform affiliate.work_clear('conversion_work', 'conversion_new', 'order_touched');

    insert into pg_temp.conversion_work
          (conversion_id, spool_id, segment, sequence, record, merchant_id, livemode, source, position, key_id,
           idempotency_key, body_hash, received_at, occurred_at, effective_at, clicked_at, click_id, order_id,
           status, customer, amount_minor, currency, refund_id, refund_key, reason,
           item_sku, item_category, item_quantity, item_amount,
           link_id, campaign_id, affiliate_id, verdict, click_problem, waiting, dead, detail)
    select nextval('affiliate.conversion_id_seq'),
           s.spool_id, s.segment, s.sequence, s.record, s.merchant_id, s.livemode, s.source, s.position, s.key_id,
           s.idempotency_key, s.body_hash, s.received_at, s.occurred_at,
           affiliate.effective_time(s.occurred_at, s.received_at, s.clicked_at), s.clicked_at, s.click_id, s.order_id,
           s.status, s.customer, s.amount_minor, s.currency, s.refund_id,
           case when s.status in (4, 5) and s.amount_minor is not null
                then coalesce('r:' || s.refund_id, 'e:' || s.idempotency_key || ':' || s.position) end,
           s.reason, s.item_sku, s.item_category, s.item_quantity, s.item_amount,
           case when own.mine then c.link_id end,
           case when own.mine then c.campaign_id end,
           case when own.mine then c.affiliate_id end,
           case when own.mine then c.verdict end,
           case
               when own.mine then null
               when c.id is not null then 'wrong_livemode'
               when other.id is not null then 'foreign_click'
               when s.clicked_at < kept_since then 'expired_click'
           end,
           c.id is null and other.id is null and s.clicked_at >= kept_since,
           case when m.merchant_id is null then 'unknown_merchant'
                when s.problem is not null then 'invalid_record' end,
           s.problem
      from (select t.*,
                   affiliate.click_time(t.click_id) as clicked_at,
                   affiliate.record_problem(
                       t.idempotency_key, t.body_hash, t.position, t.received_at, t.click_id, t.order_id, t.status,
                       t.customer, t.amount_minor, t.currency, t.item_quantity, t.item_amount) as problem
              from pg_temp.conversion_stage t
            offset 0) s
      left join lateral (
               select m.merchant_id
                 from affiliate.merchant m
                where m.merchant_id = s.merchant_id
               offset 0
           ) m on true
      left join lateral (
               select c.id, c.livemode, c.link_id, c.campaign_id, c.affiliate_id, c.verdict
                 from affiliate.click c
                where c.id = s.click_id
                  and c.merchant_id = s.merchant_id
               offset 0
           ) c on true
      left join lateral (
               select x.id
                 from affiliate.click x
                where c.id is null
                  and x.id = s.click_id
                limit 1
           ) other on true
     cross join lateral (select coalesce(c.livemode = s.livemode, false) as mine) own;
end
$$;

-- Inserts what is new into conversion, and tells the rest apart: repeated with the same body (a duplicate), or the same
-- idempotency key with another body (a dead letter).
create function affiliate.insert_conversions()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_mergejoin = off
set jit = off
as $$
begin
    -- A later record of a batch call whose key was used with another body, even where its position is free.
    update pg_temp.conversion_work w
       set dead = 'idempotency_conflict'
     where w.dead is null
       and w.source = 2
       and exists (
               select
                 from affiliate.conversion c
                where c.merchant_id = w.merchant_id
                  and c.livemode = w.livemode
                  and c.idempotency_key = w.idempotency_key
                  and c.body_hash <> w.body_hash
           );

    with added as (
        insert into affiliate.conversion
              (merchant_id, livemode, source, position, status, customer, waiting, conversion_id,
               received_at, occurred_at, effective_at, clicked_at, spool_id, segment, sequence, record,
               click_id, link_id, campaign_id, affiliate_id, verdict, click_problem, amount_minor, currency,
               order_id, idempotency_key, body_hash, refund_key, key_id, reason,
               item_sku, item_category, item_quantity, item_amount)
        select w.merchant_id, w.livemode, w.source, w.position, w.status, w.customer, w.waiting, w.conversion_id,
               w.received_at, w.occurred_at, w.effective_at, w.clicked_at, w.spool_id, w.segment, w.sequence, w.record,
               w.click_id, w.link_id, w.campaign_id, w.affiliate_id, w.verdict, w.click_problem, w.amount_minor, w.currency,
               w.order_id, w.idempotency_key, w.body_hash, w.refund_key, w.key_id, w.reason,
               w.item_sku, w.item_category, w.item_quantity, w.item_amount
          from pg_temp.conversion_work w
         where w.dead is null
         order by w.merchant_id, w.livemode, w.idempotency_key, w.position, w.conversion_id
            on conflict (merchant_id, livemode, idempotency_key, position) do nothing
        returning conversion_id
    )
    insert into pg_temp.conversion_new
    select conversion_id
      from added;

    if (select count(*) from pg_temp.conversion_new) < (select count(*) from pg_temp.conversion_work) then
        update pg_temp.conversion_work w
           set new = false,
               dead = case when w.dead is null and c.body_hash <> w.body_hash
                           then 'idempotency_conflict' else w.dead end
          from pg_temp.conversion_work x
          left join lateral (
                   select c.body_hash
                     from affiliate.conversion c
                    where c.merchant_id = x.merchant_id
                      and c.livemode = x.livemode
                      and c.idempotency_key = x.idempotency_key
                      and c.position = x.position
                   offset 0
               ) c on true
         where w.conversion_id = x.conversion_id
           and not exists (select from pg_temp.conversion_new n where n.conversion_id = x.conversion_id);

        insert into affiliate.dead_letter (channel, spool_id, segment, sequence, record, reason, detail, payload)
        select 2, w.spool_id, w.segment, w.sequence, w.record, w.dead,
               coalesce(w.detail, affiliate.reason_sentence(w.dead)),
               convert_to(row_to_json(s.*)::text, 'UTF8')
          from pg_temp.conversion_work w
          join pg_temp.conversion_stage s
            on s.spool_id = w.spool_id and s.segment = w.segment
           and s.sequence = w.sequence and s.record = w.record
         where w.dead is not null;
    end if;

    insert into affiliate.waiting (merchant_id, livemode, order_id, conversion_id, click_id, until, next_at)
    select w.merchant_id, w.livemode, w.order_id, w.conversion_id, w.click_id, now() + affiliate.waiting_limit(), now()
      from pg_temp.conversion_work w
     where w.waiting
       and w.new is null
       and w.dead is null;
end
$$;

-- Applies pg_temp.conversion_stage. Never raises for data: what can't be taken becomes a dead letter.
create function affiliate.apply_conversions()
returns table (
    staged bigint, applied bigint, waiting bigint, duplicates bigint, dead bigint,
    accepted bigint, review bigint, rejected bigint)
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set jit = off
as $$
begin
    perform affiliate.conversion_stage();
    perform affiliate.fresh_plans();
    perform affiliate.match_conversions();
    perform affiliate.insert_conversions();

    select count(*),
           count(*) filter (where w.new is null and w.dead is null and not w.waiting),
           count(*) filter (where w.new is null and w.dead is null and w.waiting),
           count(*) filter (where not w.new and w.dead is null),
           count(*) filter (where w.dead is not null)
      into staged, applied, waiting, duplicates, dead
      from pg_temp.conversion_work w;

    insert into pg_temp.order_touched
    select w.merchant_id, w.livemode, w.order_id, count(*), min(w.conversion_id)
      from pg_temp.conversion_work w
     where w.new is null
       and w.dead is null
       and not w.waiting
     group by w.merchant_id, w.livemode, w.order_id;

    select s.accepted, s.review, s.rejected
      into accepted, review, rejected
      from affiliate.settle_orders() s;

    insert into affiliate.inbox as i (channel, spool_id, segment, sequence, records, conversions, duplicates)
    select 2, w.spool_id, w.segment, w.sequence, count(*),
           count(*) filter (where w.new is null and w.dead is null),
           count(*) filter (where not w.new and w.dead is null)
      from pg_temp.conversion_work w
     group by w.spool_id, w.segment, w.sequence
     order by w.spool_id, w.segment, w.sequence
        on conflict (channel, spool_id, segment, sequence) do update
       set conversions = i.conversions + excluded.conversions,
           duplicates = i.duplicates + excluded.duplicates;

    return next;
end
$$;

-- Looks after conversions that wait for their click: those whose click has arrived are applied, those that have waited too
-- long are rejected. Each is looked at again after twice the time, at most a minute. Returns how many were settled.
create function affiliate.resolve_waiting(p_max integer)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_mergejoin = off
set jit = off
as $$
declare
    settled bigint;
begin
    perform affiliate.work_tables();
    perform affiliate.fresh_plans();
    perform affiliate.work_clear('conversion_work', 'order_touched', 'waiting_due');

    insert into pg_temp.waiting_due
    select w.ctid, w.merchant_id, w.livemode, w.order_id, w.conversion_id,
           c.id is not null,
           coalesce(c.livemode = w.livemode, false),
           x.id is not null,
           w.until <= now(),
           c.link_id, c.campaign_id, c.affiliate_id, c.verdict
      from (select *, ctid
              from affiliate.waiting
             where next_at <= now()
             order by next_at
             limit p_max
               for update skip locked) w
      left join lateral (
               select c.id, c.livemode, c.link_id, c.campaign_id, c.affiliate_id, c.verdict
                 from affiliate.click c
                where c.id = w.click_id
                  and c.merchant_id = w.merchant_id
               offset 0
           ) c on true
      left join lateral (
               select x.id
                 from affiliate.click x
                where c.id is null
                  and x.id = w.click_id
                limit 1
           ) x on true;

    update affiliate.waiting w
       set tries = w.tries + 1,
           next_at = least(now() + least(power(2, least(w.tries, 6)), 60) * interval '1 second', w.until)
     where w.ctid = any (array(
               select d.place
                 from pg_temp.waiting_due d
                where not d.arrived and not d.elsewhere and not d.over));

    delete from pg_temp.waiting_due d
     where not d.arrived and not d.elsewhere and not d.over;

    select count(*) into settled from pg_temp.waiting_due;
    if settled = 0 then
        return 0;
    end if;

    delete from affiliate.waiting w
     where w.ctid = any (array(select d.place from pg_temp.waiting_due d));

    perform affiliate.complete_waiting();

    insert into pg_temp.order_touched
    select distinct d.merchant_id, d.livemode, d.order_id, null::bigint, null::bigint
      from pg_temp.waiting_due d;

    perform affiliate.settle_orders();
    return settled;
end
$$;

-- Writes the click, or what is wrong with it, into the conversions in pg_temp.waiting_due.
create function affiliate.complete_waiting()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_mergejoin = off
set enable_hashjoin = off
set jit = off
as $$
declare
    due record;
begin
    for due in
        select d.*, c.place as conversion
          from pg_temp.waiting_due d
         cross join lateral (
                   select c.ctid as place
                     from affiliate.conversion c
                    where c.merchant_id = d.merchant_id
                      and c.livemode = d.livemode
                      and c.order_id = d.order_id
                      and c.conversion_id = d.conversion_id
                   offset 0
               ) c
    loop
        update affiliate.conversion
           set waiting = false,
               link_id = case when due.mine then due.link_id end,
               campaign_id = case when due.mine then due.campaign_id end,
               affiliate_id = case when due.mine then due.affiliate_id end,
               verdict = case when due.mine then due.verdict end,
               click_problem = case
                                   when due.mine then null
                                   when due.arrived then 'wrong_livemode'
                                   when due.elsewhere then 'foreign_click'
                                   else 'unknown_click'
                               end
         where ctid = due.conversion;
    end loop;
end
$$;
