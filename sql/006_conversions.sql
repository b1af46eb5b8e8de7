-- Conversions: from the daemon's stage to the order facts.

-- Creates pg_temp.conversion_stage, which the daemon fills by COPY; once a session. It belongs to the owner: who called
-- may fill and empty it, no more.
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

    -- current_user is the owner here; this is who called.
    execute format('grant insert, delete on pg_temp.conversion_stage to %I',
                   coalesce(nullif(current_setting('role'), 'none'), session_user));
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

-- Inserts what is new on the stage into conversion, each with its click, and puts it into pg_temp.conversion_new. What is wrong
-- by itself, repeats an idempotency key, or belongs to a batch call whose key was used with another body is left out.
create function affiliate.insert_conversions()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_nestloop = off
set enable_mergejoin = off
set enable_memoize = off
set plan_cache_mode = force_generic_plan
set work_mem = '64MB'
set jit = off
as $$
declare
    kept_since timestamptz := affiliate.clicks_kept_since();
begin
    with known as (
        select m.merchant_id
          from (select distinct s.merchant_id
                  from pg_temp.conversion_stage s) d
         cross join lateral (
                   select m.merchant_id
                     from affiliate.merchant m
                    where m.merchant_id = d.merchant_id
                   offset 0
               ) m
    ),
    matched as (
        select s.*, c.link_id, c.campaign_id, c.affiliate_id, c.verdict,
               case when c.sub_id <> '' then coalesce(n.sub_id, '') end as sub_id,
               case
                   when c.livemode = s.livemode then null
                   when c.livemode is not null then 'wrong_livemode'
                   -- With a limit it is looked up; without one, the planner may hash all clicks there are.
                   when (select true from affiliate.click x where x.id = s.click_id limit 1) then 'foreign_click'
                   when s.clicked_at < kept_since then 'expired_click'
                   else 'waits'
               end as click_problem
          from (select t.*,
                       affiliate.click_time(t.click_id) as clicked_at
                  from pg_temp.conversion_stage t
                 where affiliate.record_problem(
                           t.idempotency_key, t.body_hash, t.position, t.received_at, t.click_id, t.order_id,
                           t.status, t.customer, t.amount_minor, t.currency, t.item_quantity, t.item_amount) is null
                offset 0) s
          left join lateral (
                   select c.livemode, c.link_id, c.campaign_id, c.affiliate_id, c.verdict, c.sub_ids[1] as sub_id
                     from affiliate.click c
                    where c.id = s.click_id
                      and c.merchant_id = s.merchant_id
                   offset 0
               ) c on true
          -- How it was counted, in its own transaction.
          left join lateral (
                   select d.sub_id
                     from affiliate.click_sub_day d
                    where d.merchant_id = s.merchant_id
                      and d.livemode = c.livemode
                      and d.day = affiliate.utc_day(s.clicked_at)
                      and d.link_id = c.link_id
                      and d.campaign_id = c.campaign_id
                      and d.affiliate_id = c.affiliate_id
                      and d.sub_id = c.sub_id
                   offset 0
               ) n on true
         -- Not a join: the merchants are hashed, few as they are, however many records the planner expects.
         where (s.merchant_id in (select k.merchant_id from known k)) is true
           and (s.source <> 2
                or (select true
                      from affiliate.conversion x
                     where x.merchant_id = s.merchant_id
                       and x.livemode = s.livemode
                       and x.idempotency_key = s.idempotency_key
                       and x.body_hash <> s.body_hash
                     limit 1) is null)
        offset 0
    ),
    added as (
        insert into affiliate.conversion
              (merchant_id, livemode, idempotency_key, position, conversion_id, source, status, customer, waiting,
               received_at, occurred_at, effective_at, clicked_at,
               spool_id, segment, sequence, record, click_id, link_id, campaign_id, affiliate_id, verdict, click_problem,
               sub_id, amount_minor, currency, order_id, body_hash, refund_key, key_id, reason,
               item_sku, item_category, item_quantity, item_amount)
        select m.merchant_id, m.livemode, m.idempotency_key, m.position, nextval('affiliate.conversion_id_seq'),
               m.source, m.status, m.customer, m.click_problem is not distinct from 'waits',
               m.received_at, m.occurred_at,
               affiliate.effective_time(m.occurred_at, m.received_at, m.clicked_at), m.clicked_at,
               m.spool_id, m.segment, m.sequence, m.record, m.click_id,
               case when m.click_problem is null then m.link_id end,
               case when m.click_problem is null then m.campaign_id end,
               case when m.click_problem is null then m.affiliate_id end,
               case when m.click_problem is null then m.verdict end,
               nullif(m.click_problem, 'waits'),
               case when m.click_problem is null then m.sub_id end,
               m.amount_minor, m.currency, m.order_id, m.body_hash,
               case when m.status in (4, 5) and m.amount_minor is not null
                    then coalesce('r:' || m.refund_id, 'e:' || m.idempotency_key || ':' || m.position) end,
               m.key_id, m.reason, m.item_sku, m.item_category, m.item_quantity, m.item_amount
          from matched m
         order by m.merchant_id, m.livemode, m.idempotency_key, m.position, m.spool_id, m.segment, m.sequence, m.record
            on conflict (merchant_id, livemode, idempotency_key, position) do nothing
        returning merchant_id, livemode, order_id, status, customer, waiting, refund_key is not null, record, sequence,
                  spool_id, segment, conversion_id, effective_at, clicked_at, click_id, verdict, link_id, campaign_id,
                  affiliate_id, amount_minor, click_problem, currency, sub_id,
                  item_sku, item_category, item_quantity, item_amount
    )
    insert into pg_temp.conversion_new
    select *
      from added;
end
$$;

-- Records on the stage that are no new conversion: dead letters, but for those that repeat a conversion with the same body.
-- A batch call's record whose position is free was left out because its key was used with another body.
create function affiliate.bury_records()
returns void
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_seqscan = off
set enable_nestloop = off
set enable_mergejoin = off
set work_mem = '64MB'
set jit = off
as $$
begin
    insert into pg_temp.record_left
    select s.spool_id, s.segment, s.sequence, s.record,
           case
               when m.merchant_id is null then 'unknown_merchant'
               when s.problem is not null then 'invalid_record'
               when c.body_hash is distinct from s.body_hash then 'idempotency_conflict'
           end,
           s.problem
      from (select t.*,
                   affiliate.record_problem(
                       t.idempotency_key, t.body_hash, t.position, t.received_at, t.click_id, t.order_id, t.status,
                       t.customer, t.amount_minor, t.currency, t.item_quantity, t.item_amount) as problem
              from pg_temp.conversion_stage t
             where not exists (
                       select
                         from pg_temp.conversion_new e
                        where e.spool_id = t.spool_id and e.segment = t.segment
                          and e.sequence = t.sequence and e.record = t.record
                   )
            offset 0) s
      left join lateral (
               select m.merchant_id
                 from affiliate.merchant m
                where m.merchant_id = s.merchant_id
               offset 0
           ) m on true
      left join lateral (
               select c.body_hash
                 from affiliate.conversion c
                where c.merchant_id = s.merchant_id
                  and c.livemode = s.livemode
                  and c.idempotency_key = s.idempotency_key
                  and c.position = s.position
               offset 0
           ) c on true;

    insert into affiliate.dead_letter (channel, spool_id, segment, sequence, record, reason, detail, payload)
    select 2, l.spool_id, l.segment, l.sequence, l.record, l.dead,
           coalesce(l.detail, affiliate.reason_sentence(l.dead)),
           convert_to(row_to_json(s.*)::text, 'UTF8')
      from pg_temp.record_left l
      join pg_temp.conversion_stage s
        on s.spool_id = l.spool_id and s.segment = l.segment
       and s.sequence = l.sequence and s.record = l.record
     where l.dead is not null;
end
$$;

-- Applies pg_temp.conversion_stage. Never raises for data: what can't be taken becomes a dead letter.
create function affiliate.apply_conversions()
returns table (
    staged bigint, applied bigint, waiting bigint, duplicates bigint, dead bigint,
    accepted bigint, review bigint, rejected bigint)
language plpgsql volatile
set search_path = pg_catalog, affiliate, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
set work_mem = '64MB'
set jit = off
as $$
declare
    settled bigint;
begin
    perform affiliate.conversion_stage();
    perform affiliate.fresh_plans();
    perform affiliate.work_clear('conversion_new', 'record_left', 'order_touched', 'order_held', 'move');
    perform affiliate.insert_conversions();

    select count(*) into staged from pg_temp.conversion_stage;
    select count(*) filter (where not e.waiting), count(*) filter (where e.waiting) into applied, waiting
      from pg_temp.conversion_new e;

    if applied + waiting < staged then
        perform affiliate.bury_records();
    end if;
    select count(*) filter (where l.dead is null), count(*) filter (where l.dead is not null) into duplicates, dead
      from pg_temp.record_left l;

    if waiting > 0 then
        insert into affiliate.waiting (merchant_id, livemode, order_id, conversion_id, click_id, until, next_at)
        select e.merchant_id, e.livemode, e.order_id, e.conversion_id, e.click_id,
               now() + affiliate.waiting_limit(), now()
          from pg_temp.conversion_new e
         where e.waiting;
    end if;

    insert into pg_temp.order_touched
    select e.merchant_id, e.livemode, e.order_id, count(*)
      from pg_temp.conversion_new e
     where not e.waiting
     group by e.merchant_id, e.livemode, e.order_id
    having count(*) > 1;

    perform affiliate.decide_orders(false);
    select count(*) into settled from pg_temp.move;

    -- What was known before, or has several events here.
    if settled < applied then
        insert into pg_temp.order_touched
        select e.merchant_id, e.livemode, e.order_id, 1
          from pg_temp.conversion_new e
         where not e.waiting
           and not exists (
                   select
                     from pg_temp.move m
                    where m.merchant_id = e.merchant_id
                      and m.livemode = e.livemode
                      and m.order_id = e.order_id
               )
           and not exists (
                   select
                     from pg_temp.order_touched t
                    where t.merchant_id = e.merchant_id
                      and t.livemode = e.livemode
                      and t.order_id = e.order_id
               );

        perform affiliate.lock_orders();
        perform affiliate.decide_orders(true);
    end if;

    perform affiliate.post_orders();

    select coalesce(sum(coalesce(t.events, 1)) filter (where m.outcome = 'accepted'), 0),
           coalesce(sum(coalesce(t.events, 1)) filter (where m.outcome = 'review'), 0),
           coalesce(sum(coalesce(t.events, 1)) filter (where m.outcome = 'rejected'), 0)
      into accepted, review, rejected
      from pg_temp.move m
      left join pg_temp.order_touched t
        on t.merchant_id = m.merchant_id and t.livemode = m.livemode and t.order_id = m.order_id;

    insert into affiliate.inbox as i (channel, spool_id, segment, sequence, records, conversions, duplicates)
    select 2, r.spool_id, r.segment, r.sequence, count(*), count(*) filter (where r.new), count(*) filter (where r.repeated)
      from (select e.spool_id, e.segment, e.sequence, true as new, false as repeated
              from pg_temp.conversion_new e
             union all
            select l.spool_id, l.segment, l.sequence, false, l.dead is null
              from pg_temp.record_left l) r
     group by r.spool_id, r.segment, r.sequence
     order by r.spool_id, r.segment, r.sequence
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
    perform affiliate.work_clear('order_touched', 'waiting_due');

    insert into pg_temp.waiting_due
    select w.ctid, w.merchant_id, w.livemode, w.order_id, w.conversion_id,
           c.id is not null,
           coalesce(c.livemode = w.livemode, false),
           x.id is not null,
           w.until <= now(),
           c.link_id, c.campaign_id, c.affiliate_id, c.verdict,
           affiliate.counted_sub_id(
               w.merchant_id, w.livemode, affiliate.utc_day(affiliate.click_time(w.click_id)),
               c.link_id, c.campaign_id, c.affiliate_id, c.sub_id)
      from (select *, ctid
              from affiliate.waiting
             where next_at <= now()
             order by next_at
             limit p_max
               for update skip locked) w
      left join lateral (
               select c.id, c.livemode, c.link_id, c.campaign_id, c.affiliate_id, c.verdict, c.sub_ids[1] as sub_id
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
    select distinct d.merchant_id, d.livemode, d.order_id, null::bigint
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
               sub_id = case when due.mine then due.sub_id end,
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
