-- Fraud: what each rule finds at its thresholds and just below them, what a case holds, and that the books stay right.

\ir support/people.psql

select plan(77);

-- The affiliates that a rule finds among those of the fixture, with these thresholds.
create function pg_temp.found(p_rule text, p_thresholds jsonb)
returns text
language sql
as $$
    select string_agg(concat_ws('/', f.affiliate_id, f.merchant_id, f.campaign_id), ' ' order by f.affiliate_id, f.merchant_id, f.campaign_id)
      from affiliate.fraud_find(p_rule, p_thresholds, now()) f
     where f.affiliate_id in (900011, 900012)
$$;

create function pg_temp.clicked(p_affiliate bigint, p_valid bigint, p_suspect bigint default 0, p_bot bigint default 0, p_prefetch bigint default 0)
returns void
language sql
as $$
    insert into affiliate.click_day as d values (900001, true, affiliate.utc_day(now()), 900021, p_affiliate, p_valid, 0, p_suspect, p_prefetch, 0, p_bot)
        on conflict (merchant_id, livemode, day, campaign_id, affiliate_id) do update
       set valid = excluded.valid, suspect = excluded.suspect, bot = excluded.bot, prefetch = excluded.prefetch
$$;

-- An order of 1000.00 by Asha (900041) or Bikram (900042), so long after its click.
create temp sequence fraud_clicks start 5000;
create function pg_temp.ordered(p_order text, p_link bigint default 900041, p_after interval default '1 hour',
                                p_at timestamptz default now() - interval '1 minute', p_status text default 'approved')
returns void
language sql
as $$
    select pg_temp.report(jsonb_build_object('order', p_order, 'status', p_status, 'amount', 100000, 'at', p_at, 'click',
        pg_temp.click(nextval('pg_temp.fraud_clicks')::integer, p_at - p_after, p_link => p_link)))
$$;

create function pg_temp.decide(p_state text)
returns text
language sql
as $$
    select string_agg((affiliate.decide_case(row('admin', 900107, null, null, null, null, null, true, 'r')::affiliate.actor,
                                             c.case_id, p_state, 'seen')).state, ' ')
      from affiliate.fraud_case c
     where c.state = 'open' and not c.shadow
$$;

-- Of the audits, those that look at orders, money and cases: the clicks here were only counted.
create function pg_temp.audited()
returns setof text
language sql
as $$
    select a::text from affiliate.audit_balances() a union all select a::text from affiliate.audit_causes() a
     union all select a::text from affiliate.audit_positions() a union all select a::text from affiliate.audit_facts() a
     union all select a::text from affiliate.audit_fraud() a
$$;

-- Thresholds
select is(affiliate.threshold_fault('order_velocity', '{"orders": 20, "times": 20}'), null, 'thresholds that are right');
select is(affiliate.threshold_fault('order_velocity', '{"orders": 20}'), 'lacks times', 'one that is missing');
select is(affiliate.threshold_fault('order_velocity', '{"orders": 20, "times": 20, "x": 1}'), 'has no x', 'one too many');
select is(affiliate.threshold_fault('order_velocity', '{"orders": 1, "times": 20}'), 'orders must be an integer from 2 to 1000000', 'out of range');
select is(affiliate.threshold_fault('order_velocity', '{"orders": 2.5, "times": 20}'), 'orders must be an integer from 2 to 1000000', 'no integer');
select is(affiliate.threshold_fault('order_velocity', '{"orders": "9", "times": 20}'), 'orders must be an integer from 2 to 1000000', 'no number');
select is((select count(*) from affiliate.fraud_rule_kind k where (affiliate.fraud_rule_now(k.rule)).shadow), 7::bigint,
    'every rule begins in shadow');
select throws_ok('update affiliate.fraud_rule set active = false', null, null, 'a version is never changed');

-- Orders: ten of Asha's, an hour after their clicks
select pg_temp.ordered('a' || n, p_after => n * interval '10 minutes') from generate_series(1, 10) n \g /dev/null

select is(pg_temp.found('self_referral', '{"days": 30, "orders": 1}'), null, 'no self-referral');
insert into affiliate.member (merchant_id, user_id, role) values (900001, 900105, 'read_only');
select is(pg_temp.found('self_referral', '{"days": 30, "orders": 10}'), '900011/900001', 'one of the merchant''s people');
select is(pg_temp.found('self_referral', '{"days": 30, "orders": 11}'), null, 'with too few orders');
delete from affiliate.member where merchant_id = 900001 and user_id = 900105;
insert into affiliate.merchant_profile (merchant_id, contact_email) values (900001, 'ASHA@people.example')
    on conflict (merchant_id) do update set contact_email = excluded.contact_email;
select is(pg_temp.found('self_referral', '{"days": 30, "orders": 1}'), '900011/900001', 'the merchant''s own address');
update affiliate.merchant_profile set contact_email = null where merchant_id = 900001;

select pg_temp.clicked(900011, 100) \g /dev/null
select is(pg_temp.found('conversion_rate', '{"days": 15, "clicks": 100, "orders": 10, "high_basis_points": 999, "low_clicks": 100000, "low_basis_points": 0}'),
    '900011/900001/900021', 'more than 9.99 % of 100 clicks');
select is(pg_temp.found('conversion_rate', '{"days": 15, "clicks": 100, "orders": 10, "high_basis_points": 1000, "low_clicks": 100000, "low_basis_points": 0}'),
    null, 'but not more than 10 %');
select is(pg_temp.found('conversion_rate', '{"days": 15, "clicks": 101, "orders": 10, "high_basis_points": 999, "low_clicks": 100000, "low_basis_points": 0}'),
    null, 'too few clicks');
select is(pg_temp.found('conversion_rate', '{"days": 15, "clicks": 100, "orders": 11, "high_basis_points": 999, "low_clicks": 100000, "low_basis_points": 0}'),
    null, 'too few orders');
select is(pg_temp.found('conversion_rate', '{"days": 15, "clicks": 1000, "orders": 11, "high_basis_points": 999, "low_clicks": 100, "low_basis_points": 1001}'),
    '900011/900001/900021', 'fewer than 10.01 %');
select is(pg_temp.found('conversion_rate', '{"days": 15, "clicks": 1000, "orders": 11, "high_basis_points": 999, "low_clicks": 100, "low_basis_points": 1000}'),
    null, 'but not fewer than 10 %');

select is(pg_temp.found('click_to_order', '{"days": 15, "orders": 10, "seconds": 601, "share_basis_points": 1000, "spread_seconds": 0}'),
    '900011', 'a tenth within 601 seconds');
select is(pg_temp.found('click_to_order', '{"days": 15, "orders": 10, "seconds": 599, "share_basis_points": 1000, "spread_seconds": 0}'),
    null, 'none within 599');
select is(pg_temp.found('click_to_order', '{"days": 15, "orders": 10, "seconds": 601, "share_basis_points": 1001, "spread_seconds": 0}'),
    null, 'not more than a tenth');
select is(pg_temp.found('click_to_order', '{"days": 15, "orders": 11, "seconds": 601, "share_basis_points": 1000, "spread_seconds": 0}'),
    null, 'too few orders');
select is(pg_temp.found('click_to_order', '{"days": 15, "orders": 10, "seconds": 1, "share_basis_points": 10000, "spread_seconds": 1800}'),
    '900011', 'a spread below half an hour: 1723.4 s');
select is(pg_temp.found('click_to_order', '{"days": 15, "orders": 10, "seconds": 1, "share_basis_points": 10000, "spread_seconds": 1723}'),
    null, 'not below 1723 s');

select is(pg_temp.found('order_velocity', '{"orders": 10, "times": 2}'), '900011', 'ten orders in an hour, of somebody who had none');
select is(pg_temp.found('order_velocity', '{"orders": 11, "times": 2}'), null, 'too few');
insert into affiliate.order_day values (900001, true, affiliate.utc_day(now()) - 5, 900021, 900011, 'NPR', 720, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
select is(pg_temp.found('order_velocity', '{"orders": 10, "times": 10}'), '900011', 'ten times of one an hour');
select is(pg_temp.found('order_velocity', '{"orders": 10, "times": 11}'), null, 'but not eleven times');
delete from affiliate.order_day where merchant_id = 900001 and day = affiliate.utc_day(now()) - 5;

select pg_temp.ordered('b' || n, 900042, p_status => case when n <= 5 then 'cancelled' else 'approved' end) from generate_series(1, 10) n \g /dev/null
select is(pg_temp.found('reversal_rate', '{"days": 30, "orders": 10, "share_basis_points": 5000}'), '900012/900001', 'half of ten taken back');
select is(pg_temp.found('reversal_rate', '{"days": 30, "orders": 10, "share_basis_points": 5001}'), null, 'not more than half');
select is(pg_temp.found('reversal_rate', '{"days": 30, "orders": 11, "share_basis_points": 5000}'), null, 'too few orders');

select pg_temp.clicked(900011, 25, 50, 25, 1000) \g /dev/null
select is(pg_temp.found('click_verdicts', '{"days": 15, "clicks": 100, "share_basis_points": 7500}'), '900011', 'three quarters doubtful');
select is(pg_temp.found('click_verdicts', '{"days": 15, "clicks": 100, "share_basis_points": 7501}'), null, 'not more');
select is(pg_temp.found('click_verdicts', '{"days": 15, "clicks": 101, "share_basis_points": 7500}'), null, 'prefetches are no clicks');

-- Never by addresses alone: a thousand clicks of one network are nothing to any rule.
select pg_temp.clicked(900011, 1000) \g /dev/null
select is((select count(*) from pg_catalog.pg_proc p where p.pronamespace = 'affiliate'::regnamespace and p.proname like 'fraud\_%'
              and p.prosrc ~ 'address_prefix|visitor'), 0::bigint, 'no rule looks at addresses');

-- Cases
insert into affiliate.fraud_rule (rule, rule_version, level, thresholds, active, shadow)
select r.rule, 2, 'review', r.thresholds, r.rule = 'order_velocity', false from affiliate.fraud_rule r;
insert into affiliate.fraud_rule (rule, rule_version, level, thresholds, active, shadow)
values ('order_velocity', 3, 'review', '{"orders": 10, "times": 2}', true, false);
select is((select count(*) from affiliate.fraud_run() r where r.opened >= 1), 1::bigint, 'the run opens cases');
select is((select opened from affiliate.fraud_run()), 0::bigint, 'once');
select is(pg_temp.outcome('a1'), 'accepted', 'what was reported before is not held');
select pg_temp.ordered('late1', p_at => now() + interval '1 minute') \g /dev/null
select is(pg_temp.outcome('late1'), 'review under_review', 'what is reported now is');
select is((select count(*) from affiliate.hold h join affiliate.order_fact o using (merchant_id, order_no) where o.order_id = 'late1'), 0::bigint, 'and does not mature');
select is((select count(*) from pg_temp.audited()), 0::bigint, 'the books are right while it is held');
select ok(pg_temp.decide('dismissed') is not null, 'dismissed');
select is(pg_temp.outcome('late1'), 'accepted', 'releases it');
select is((select opened from affiliate.fraud_run()), 0::bigint, 'a case that was decided is not opened again at once');
select is((select count(*) from affiliate.hold h join affiliate.order_fact o using (merchant_id, order_no) where o.order_id = 'late1'), 1::bigint, 'it is on hold as others');
select is((select count(*) from pg_temp.audited()), 0::bigint, 'the books are right');


-- The same account at two affiliates
insert into affiliate.payout_method (affiliate_id, kind, holder, account, is_default, changed_at)
select a, 'esewa', 'A', '9841000000', true, now() from unnest('{900011,900012}'::bigint[]) a;
select is(pg_temp.found('duplicate_destination', '{"affiliates": 2}'), '900011 900012', 'both have the account');
select is(pg_temp.found('duplicate_destination', '{"affiliates": 3}'), null, 'but not three');
select is((select f.figures ->> 'account' from affiliate.fraud_find('duplicate_destination', '{"affiliates": 2}', now()) f where f.affiliate_id = 900011),
    affiliate.masked('9841000000'), 'of which a reviewer sees the end');
update affiliate.payout_method set removed_at = now() where affiliate_id = 900012;
select is(pg_temp.found('duplicate_destination', '{"affiliates": 2}'), null, 'one has it no more');

-- What a rule would have held: late1, which was reported after it would have found the ten orders of an hour; Bikram has nothing since.
select is(affiliate.fraud_preview('order_velocity', '{"orders": 10, "times": 2}', 30),
    '{"days": 30, "affiliates": 2, "orders": 1, "money": [{"currency": "NPR", "orders": 1, "amount": "1000.00", "commission": "100.00"}]}'::jsonb, 'a preview');
select is(affiliate.fraud_preview('order_velocity', '{"orders": 1000, "times": 2}', 30), '{"days": 30, "affiliates": 0, "orders": 0, "money": []}'::jsonb,
    'of what finds nothing');
select is(affiliate.fraud_preview(k.rule, (affiliate.fraud_rule_now(k.rule)).thresholds, 90) ->> 'days', '90', 'of ' || k.rule)
  from affiliate.fraud_rule_kind k order by k.place;

-- In shadow: a case, and nothing held; nobody looks, and it ends. In force it is no reason to overlook what it found.
insert into affiliate.member (merchant_id, user_id, role) values (900001, 900105, 'read_only');
insert into affiliate.fraud_rule (rule, rule_version, level, thresholds, active, shadow) values ('self_referral', 3, 'reject', '{"days": 30, "orders": 1}', true, true);
select is((select opened from affiliate.fraud_run()), 1::bigint, 'a case in shadow');
select pg_temp.ordered('late2', p_at => now() + interval '2 minutes') \g /dev/null
select is(pg_temp.outcome('late2'), 'accepted', 'holds nothing');
update affiliate.fraud_case set opened_at = opened_at - interval '29 days' where state = 'open' and shadow;
select is((select expired from affiliate.fraud_run()), 0::bigint, 'it stays for a while');
update affiliate.fraud_case set opened_at = opened_at - interval '1 day' where state = 'open' and shadow;
select is((select expired from affiliate.fraud_run()), 1::bigint, 'and ends');
select is((select opened from affiliate.fraud_run()), 0::bigint, 'not to be found again at once');
insert into affiliate.fraud_rule (rule, rule_version, level, thresholds, active, shadow) values ('self_referral', 4, 'reject', '{"days": 30, "orders": 1}', true, false);
select is((select opened from affiliate.fraud_run()), 1::bigint, 'in force it is found');

-- Had it been open for an hour, it held what was reported since: that follows, some orders at a time.
update affiliate.fraud_case set opened_at = now() - interval '1 hour' where state = 'open' and not shadow;
select affiliate.renew_fraud_hold(900011) \g /dev/null
select is(affiliate.fraud_settle(5), 5::bigint, 'five orders follow');
select is(affiliate.fraud_settle(100) > 0, true, 'and the others');
select is(affiliate.fraud_settle(100), 0::bigint, 'that is all');
select is(pg_temp.outcome('a1'), 'review under_review', 'they are held');
select is((select count(*) from affiliate.fraud_case where state = 'expired' or settled is false and state = 'open'), 2::bigint, 'what holds money never ends by itself');
select is((select count(*) from pg_temp.audited()), 0::bigint, 'the books are right');
select ok(pg_temp.decide('confirmed') is not null, 'confirmed');
select is(pg_temp.outcome('a1'), 'rejected review_rejected', 'at the level reject its orders are rejected');
select pg_temp.ordered('late3', p_at => now() + interval '3 minutes') \g /dev/null
select is(pg_temp.outcome('late3'), 'accepted', 'later ones are not');
select affiliate.order_review('{"merchant": 900001, "order": "a1", "decision": "accept", "reason": "Hers after all"}') \g /dev/null
select is(affiliate.fraud_settle(100), 0::bigint, 'what a person accepts stays');
select is(pg_temp.outcome('a1'), 'accepted', 'accepted');
select is((select count(*) from pg_temp.audited()), 0::bigint, 'the books are right');

select * from finish();
rollback;
