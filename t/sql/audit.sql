-- The audit sees each corruption that is planted.

\ir support/fixture.psql

select plan(63);

select pg_temp.click(1) \g /dev/null
select pg_temp.stage(jsonb_build_object('order', n, 'status', 'approved', 'amount', 10000, 'key', 'k' || n,
    'at', now() - case when n = 'released' then interval '2 hours' else interval '10 minutes' end,
    'click', pg_temp.click_id(1, now() - interval '3 hours')))
  from unnest('{released,held,refunded}'::text[]) n \g /dev/null
select pg_temp.apply() \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'refunded', 'status', 'refunded', 'amount', 1000,
    'click', pg_temp.click_id(1, now() - interval '3 hours'))) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'waits', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click_id(2, now() - interval '3 hours'))) \g /dev/null
insert into affiliate.click (id, merchant_id, link_id, campaign_id, affiliate_id, livemode, verdict, reasons, sub_ids)
values (pg_temp.click_id(3, now() - interval '3 hours'), 900001, 900041, 900021, 900011, true, 0, 0, '{news}');
select pg_temp.report(jsonb_build_object('order', 'items', 'status', 'approved', 'amount', 1000,
    'at', now() - interval '10 minutes', 'sku', '["tea"]'::jsonb, 'quantity', '[2]'::jsonb, 'item_amount', '[1000]'::jsonb,
    'click', pg_temp.click_id(3, now() - interval '3 hours'))) \g /dev/null
select affiliate.release_holds(10) \g /dev/null
select is_empty($$ select pg_temp.audit() $$, 'the books are right to begin with');

-- Does the damage, past the triggers that forbid it, asks the audit, of everything and of what is new, and undoes it.
create function pg_temp.sees(p_damage text, p_invariant text)
returns text
language plpgsql
as $$
declare
    seen text[];
    seen_since text[];
begin
    begin
        set local session_replication_role = replica;
        execute p_damage;
        set local session_replication_role = origin;
        select array_agg(distinct a.invariant) into seen from affiliate.audit() a;
        select array_agg(distinct a.invariant) into seen_since from affiliate.audit(now() - interval '1 minute') a;
        raise exception using errcode = 'UE001';
    exception when sqlstate 'UE001' then
        null;
    end;
    return is(p_invariant = any (seen) and p_invariant = any (seen_since), true, format('%s: %s', p_invariant, p_damage));
end
$$;

create temp table planted (damage text, invariant text);
insert into planted values
    ('update affiliate.account set credits_minor = credits_minor + 1 where owner = ''affiliate'' and kind = ''pending''',
     'balances sum to zero'),
    ('update affiliate.account set credits_minor = credits_minor + 1, debits_minor = debits_minor + 1 where kind = ''payable''',
     'account is the sum of its transfers'),
    ('update affiliate.transfer set amount_minor = amount_minor + 1 where cause_kind = 1 and code = 1',
     'posted is the position'),
    ('delete from affiliate.transfer where cause_kind = 1 and code = 2', 'posted is the position'),
    ('update affiliate.transfer set currency = ''USD'' where code = 1', 'transfer stays in its mode and currency'),
    ('update affiliate.transfer set livemode = false where code = 1', 'transfer stays in its mode and currency'),
    ('update affiliate.transfer set cause_id = -5 where cause_kind = 2 and code = 11', 'transfer has a cause'),
    ('update affiliate.transfer set cause_revision = 99 where code = 3', 'transfer has a cause'),
    ('update affiliate.release set commission_minor = commission_minor + 1', 'release is the sum of its orders'),
    ('delete from affiliate.transfer where code = 13', 'release is posted'),
    ('update affiliate.release_item set due_at = now() + interval ''1 day''', 'released only when due'),
    ('update affiliate.release_item set release_id = -1', 'released item has a release and an order'),
    ('update affiliate.transfer set amount_minor = 999999 where code = 3', 'reversed at most what was earned'),
    ('delete from affiliate.hold', 'held is what waits'),
    ('update affiliate.order_fact set amount_minor = amount_minor + 10', 'facts are what the conversions say'),
    ('update affiliate.order_fact set posted_commission_minor = 1', 'order remembers what is posted'),
    ('update affiliate.order_fact set outcome = ''rejected'', problem = ''bot_click''', 'outcome follows from the facts'),
    ('delete from affiliate.waiting', 'waiting conversion is waited for'),
    ('update affiliate.click set livemode = false', 'livemode never mixes'),
    ('update affiliate.inbox set records = records + 1 where channel = 2', 'batch is accounted for'),
    ('update affiliate.conversion set record = 1', 'batch is applied exactly once'),
    ('update affiliate.release_item set commission_minor = commission_minor - 1', 'posted is the position'),
    ('update affiliate.release set affiliate_id = 900012', 'posted is the position'),
    ('delete from affiliate.account where kind = ''pending''', 'posted is the position'),
    ('update affiliate.order_fact set posted_payable = true', 'posted is the position'),
    ('update affiliate.order_fact set posted_payable = true', 'payable is what is due'),
    ('update affiliate.hold set due_at = due_at + interval ''1 second''', 'held is what waits'),
    ('insert into affiliate.hold select merchant_id, order_no, now(), affiliate_id, 1, 1, revision, livemode, currency '
     'from affiliate.order_fact where order_id = ''released''', 'held is what waits'),
    ('delete from affiliate.conversion', 'facts are what the conversions say'),
    ('delete from affiliate.conversion', 'batch is applied exactly once'),
    ('update affiliate.inbox set conversions = conversions + 1', 'batch is applied exactly once'),
    ('delete from affiliate.inbox', 'conversion came with a batch'),
    ('update affiliate.conversion set order_id = ''another''', 'conversion belongs to an order'),
    ('update affiliate.click_link_day set valid = valid + 1', 'clicks of a link are the recount'),
    ('delete from affiliate.click where sub_ids is null', 'clicks of a link are the recount'),
    ('delete from affiliate.click_sub_day', 'clicks of a sub id are the recount'),
    ('update affiliate.click_day set bot = bot + 1', 'clicks of a day are those of its links'),
    ('insert into affiliate.click_sub_day select merchant_id, livemode, day, link_id, campaign_id, affiliate_id, ''s'' || n, '
     '0, 0, 0, 0, 0, 0 from affiliate.click_sub_day, generate_series(1, 50) n', 'sub ids of a link are bounded'),
    ('update affiliate.conversion set sub_id = ''other'' where sub_id is not null', 'conversion is counted as its click is'),
    ('delete from affiliate.order_link_day', 'orders of a link are the recount'),
    ('update affiliate.order_day set payable = payable + 1', 'orders of a day are those of its links'),
    ('update affiliate.order_sku_day set pieces = pieces - 1', 'orders of a product are the recount'),
    ('insert into affiliate.click_link_span values (900001, true, 16, ''2026-01-01'', 900041, 900031, 900011, 1, 0, 0, 0, 0, 0)',
     'spans are their days'),
    ('insert into affiliate.click_campaign_span values (900001, true, 1, ''2026-01-01'', 900031, 1, 0, 0, 0, 0, 0)', 'spans are their days'),
    ('update affiliate.order_fact set reversed_minor = 5 where reversed_minor is not null', 'order remembers what was taken of it'),
    ('update affiliate.hold set day = day + 1', 'hold is counted as its order is'),
    ('insert into affiliate.payout (affiliate_id, livemode, currency, amount_minor, payout_method_id, kind, holder, account) values (900011, true, ''NPR'', 1, 1, ''bank'', ''A'', ''1'')', 'payout is the sum of its draws'),
    ('with p as (insert into affiliate.payout (affiliate_id, livemode, currency, amount_minor, payout_method_id, kind, holder, account) values (900011, true, ''NPR'', 1, 1, ''bank'', ''A'', ''1'') returning payout_id), e as (insert into affiliate.payout_event (payout_id, state) select payout_id, ''requested'' from p) '
     'insert into affiliate.payout_draw select 900001, payout_id, 1, null from p', 'payout stands where its state says'),
    ('with p as (insert into affiliate.payout (affiliate_id, livemode, currency, amount_minor, payout_method_id, kind, holder, account) values (900011, true, ''NPR'', 1, 1, ''bank'', ''A'', ''1'') returning payout_id) insert into affiliate.payout_draw select 900001, payout_id, 1, null from p', 'what is set aside is of payouts under way'),
    ('insert into affiliate.transfer (merchant_id, cause_id, cause_revision, cause_kind, code, debit_account, credit_account, amount_minor, livemode, currency) '
     'values (900001, 77, 1, 3, 21, 1, 2, 1, true, ''NPR'')', 'transfer has a payout'),
    ('insert into affiliate.payout_batch (reference, kind, provider, livemode, currency, state, maker, checker, items, amount_minor, net_minor) values (''B'', ''bank'', ''csv'', true, ''NPR'', ''open'', 1, 2, 1, 5, 5)', 'batch is the sum of its payouts'),
    ('insert into affiliate.payout_batch (reference, kind, provider, livemode, currency, state, maker, checker, file, file_sha256) values (''B'', ''bank'', ''csv'', true, ''NPR'', ''processing'', 1, 2, ''x'', ''y'')', 'file is what was made'),
    ('insert into affiliate.bill (merchant_id, bill_id, number, livemode, currency, period_from, period_until, lines, commission_minor, fee_minor, vat_basis_points, vat_minor, total_minor, '
     'seller, buyer, due_on) values (900001, 1, ''INV-2031-000001'', true, ''NPR'', ''2031-01-01'', ''2031-02-01'', 1, 5, 1, 0, 0, 6, ''{}'', ''{}'', ''2031-02-15'')', 'bill is the sum of its lines'),
    ('insert into affiliate.fraud_hold (affiliate_id, held) values (900011, ''{[2026-01-01,)}'')', 'what is held follows from the cases'),
    ('insert into affiliate.bill_number values (true, 2031, 5)', 'numbers of bills have no gaps'),
    ('insert into affiliate.bill_payment (merchant_id, livemode, currency, amount_minor, paid_on, method) values (900001, true, ''NPR'', 5, ''2031-01-01'', ''cash'')', 'what is owed is on bills'),
    ('insert into affiliate.bill_payment (merchant_id, livemode, currency, amount_minor, paid_on, method) values (900001, true, ''NPR'', 5, ''2031-01-01'', ''cash'')', 'bill and payment are in the ledger'),
    ('insert into affiliate.payout_batch (reference, kind, provider, livemode, currency, state, maker, checker) values (''B'', ''bank'', ''npi'', true, ''NPR'', ''processing'', 1, 2)',
     'submission is where its batch is'),
    ('with b as (insert into affiliate.payout_batch (reference, kind, provider, livemode, currency, state, maker, checker) values (''B'', ''bank'', ''csv'', true, ''NPR'', ''open'', 1, 2) '
     'returning batch_id) insert into affiliate.payout_submission (batch_id, state, next_at) select batch_id, ''checking'', now() from b',
     'only a batch of its own is submitted'),
    ('with p as (insert into affiliate.payout (affiliate_id, livemode, currency, amount_minor, payout_method_id, kind, holder, account, state, batch_id, tax_minor) values '
     '(900011, true, ''NPR'', 1, 1, ''bank'', ''A'', ''1'', ''requested'', null, null) returning payout_id) '
     'insert into affiliate.payout_submission_item (batch_id, payout_id, sent_at) select 1, payout_id, now() from p',
     'what was sent is on its way or decided'),
    ('with b as (insert into affiliate.payout_batch (reference, kind, provider, livemode, currency, state, maker, checker) values (''B'', ''bank'', ''npi'', true, ''NPR'', ''processing'', 1, 2) '
     'returning batch_id) insert into affiliate.payout (affiliate_id, livemode, currency, amount_minor, payout_method_id, kind, holder, account, state, batch_id, tax_minor) '
     'select 900011, true, ''NPR'', 1, 1, ''bank'', ''A'', ''1'', ''processing'', batch_id, 0 from b', 'what is on its way was sent');

select pg_temp.sees(damage, invariant) from planted;

select is_empty($$
    select i.name
      from pg_proc p
     cross join lateral (select unnest(regexp_matches(p.prosrc, 'select ''([a-z ]+)''', 'g'))) as i(name)
     where p.pronamespace = 'affiliate'::regnamespace
       and p.proname like 'audit\_%'
    except
    select invariant from planted
$$, 'every invariant is broken here');

select * from finish();
rollback;
