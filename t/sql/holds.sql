-- Holds, releases, and what comes after them.

\ir support/fixture.psql

select plan(27);

select pg_temp.click(1) \g /dev/null
create function pg_temp.event(p_status text, p_amount bigint, p_ago interval, p_extra jsonb default '{}')
returns text
language sql
as $$
    select pg_temp.report(jsonb_strip_nulls(jsonb_build_object('status', p_status, 'amount', p_amount,
        'click', pg_temp.click_id(1, now() - interval '3 hours'), 'at', now() - p_ago)) || p_extra)
$$;
create function pg_temp.balance(p_kind text, p_owner bigint default 900011)
returns bigint
language sql
as $$
    select coalesce(sum(credits_minor - debits_minor), 0)::bigint
      from affiliate.account
     where merchant_id = 900001 and kind = p_kind and owner_id = p_owner
$$;

select pg_temp.event('pending', 10000, '170 minutes') \g /dev/null
select is(affiliate.release_holds(100), 0::bigint, 'what is not approved is not released');
select pg_temp.event('approved', 10000, '50 minutes') \g /dev/null
select is((select due_at from affiliate.hold where merchant_id = 900001), now() + interval '10 minutes', 'the hold starts at approval');
select is(affiliate.release_holds(100), 0::bigint, 'nor what is still on hold');
select pg_temp.event('approved', 10000, '90 minutes') \g /dev/null
select is((select due_at from affiliate.hold where merchant_id = 900001), now() - interval '30 minutes', 'the earliest approval counts');
select is(affiliate.release_holds(100), 1::bigint, 'released');
select is(affiliate.release_holds(100), 0::bigint, 'once');
select results_eq($$ select pg_temp.books() $$, $$ values
    ('affiliate 900011 payable NPR live 1000'),
    ('merchant 900001 owed NPR live -1200'),
    ('platform 0 fee_earned NPR live 200') $$, 'payable, owed and earned');
select is_empty($$ select pg_temp.audit() $$, 'the books are right after a release');

select pg_temp.event('pending', 10000, '170 minutes', '{"order": "A-1"}') \g /dev/null
select is(pg_temp.balance('payable'), 1000::bigint, 'a late duplicate changes nothing');
select pg_temp.event('refunded', 2500, '40 minutes', '{"refund": "r1"}') \g /dev/null
select is(pg_temp.balance('payable'), 750::bigint, 'a refund is taken from payable');

-- Paid out meanwhile (by hand, and undone below: payouts are not this file's matter), and returned afterwards.
update affiliate.account
   set debits_minor = debits_minor + 750
 where merchant_id = 900001 and owner = 'affiliate' and kind = 'payable';
select pg_temp.event('returned', null, '30 minutes') \g /dev/null
select is(pg_temp.balance('payable'), -750::bigint, 'a return after the payout drives payable below zero');
select is(pg_temp.balance('owed', 900001) || ' ' || pg_temp.balance('fee_earned', 0), '0 0', 'and the merchant owes nothing');
select pg_temp.report(jsonb_build_object('order', 'N', 'status', 'approved', 'amount', 3000,
    'click', pg_temp.click_id(1, now() - interval '3 hours'))) \g /dev/null
select affiliate.release_holds(100) \g /dev/null
select is(pg_temp.balance('payable'), -450::bigint, 'later earnings net it');
select pg_temp.event('cancelled', null, '20 minutes', '{"order": "N"}') \g /dev/null
update affiliate.account
   set debits_minor = debits_minor - 750
 where merchant_id = 900001 and owner = 'affiliate' and kind = 'payable';

-- Review accrues and does not mature.
select pg_temp.click(2, p_verdict => 2) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'R', 'status', 'approved', 'amount', 4000,
    'click', pg_temp.click_id(2, now() - interval '3 hours'))) \g /dev/null
select is(pg_temp.balance('pending'), 400::bigint, 'an order in review accrues');
select is(affiliate.release_holds(100), 0::bigint, 'and does not mature');
select affiliate.order_review('{"merchant": 900001, "order": "R", "decision": "accept", "reason": "called the buyer"}') \g /dev/null
select is(affiliate.release_holds(100), 1::bigint, 'accepted, it does');
select is(pg_temp.balance('payable'), 400::bigint, 'and is payable');

-- A doubt that comes after the release takes it back to pending, until somebody decides.
select pg_temp.click(3, p_link => 900042) \g /dev/null
select pg_temp.click(4) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'D', 'status', 'approved', 'amount', 8000,
    'click', pg_temp.click_id(4, now() - interval '3 hours'))) \g /dev/null
select affiliate.release_holds(100) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'D', 'status', 'pending', 'amount', 8000, 'at', now() - interval '1 hour',
    'click', pg_temp.click_id(3, now() - interval '3 hours'))) \g /dev/null
select is(pg_temp.balance('pending') || ' ' || pg_temp.balance('payable'), '800 400', 'a doubt after release: pending again');
select affiliate.order_review('{"merchant": 900001, "order": "D", "decision": "accept", "reason": "fine"}') \g /dev/null
select affiliate.release_holds(100) \g /dev/null
select is(pg_temp.balance('pending') || ' ' || pg_temp.balance('payable'), '0 1200', 'released a second time');
select affiliate.order_review('{"merchant": 900001, "order": "D", "decision": "reject", "reason": "not fine"}') \g /dev/null
select is(pg_temp.balance('pending') || ' ' || pg_temp.balance('payable'), '0 400', 'rejected after release: taken back');
select is(pg_temp.outcome('D'), 'rejected review_rejected', 'with its reason');

-- The stage follows from facts, terms and clock: an earlier report, by a click under terms with a longer hold, takes back what
-- was released; a still earlier one, under terms whose hold is over, gives it back.
insert into affiliate.campaign (merchant_id, campaign_id, name, currency) values (900001, 900024, 'Holds', 'NPR');
insert into affiliate.link (merchant_id, link_id, campaign_id, affiliate_id, livemode, code, url)
values (900001, 900045, 900024, 900011, true, 'fixture-5', 'https://shop.example/');
insert into affiliate.terms
      (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, fee_basis_points, hold, attribution_window)
values (900001, 900024, 900036, now() - interval '10 hours', 1000, 2000, '1 hour', '720 hours'),
       (900001, 900024, 900037, now() - interval '6 hours', 1000, 2000, '48 hours', '720 hours'),
       (900001, 900024, 900038, now() - interval '4 hours', 1000, 2000, '1 hour', '720 hours');
create function pg_temp.stage_of(p_order text)
returns text
language sql
as $$
    select concat_ws(' ', outcome, terms_id, case when payable then 'payable' when due_at is not null then 'held' end)
      from affiliate.order_now
     where merchant_id = 900001 and order_id = p_order
$$;
select pg_temp.click(5, p_link => 900045, p_verdict => 2), pg_temp.click(6, now() - interval '5 hours', p_link => 900045),
       pg_temp.click(7, now() - interval '9 hours', p_link => 900045) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'H', 'status', 'approved', 'amount', 5000,
    'click', pg_temp.click_id(5, now() - interval '3 hours'))) \g /dev/null
select affiliate.order_review('{"merchant": 900001, "order": "H", "decision": "accept", "reason": "fine"}') \g /dev/null
select affiliate.release_holds(100) \g /dev/null
select is(pg_temp.stage_of('H'), 'accepted 900038 payable', 'reviewed, accepted and released');
select pg_temp.report(jsonb_build_object('order', 'H', 'status', 'pending', 'amount', 5000, 'at', now() - interval '270 minutes',
    'click', pg_temp.click_id(6, now() - interval '5 hours'))) \g /dev/null
select is(pg_temp.stage_of('H') || ' ' || pg_temp.balance('payable') || ' ' || pg_temp.balance('pending'),
    'accepted 900037 held 400 500', 'an earlier report by terms with a longer hold: held again');
select is((select due_at from affiliate.order_now where merchant_id = 900001 and order_id = 'H'), now() + interval '46 hours',
    'until that hold is over');
select pg_temp.report(jsonb_build_object('order', 'H', 'status', 'pending', 'amount', 5000, 'at', now() - interval '510 minutes',
    'click', pg_temp.click_id(7, now() - interval '9 hours'))) \g /dev/null
select affiliate.release_holds(100) \g /dev/null
select is(pg_temp.stage_of('H') || ' ' || pg_temp.balance('payable') || ' ' || pg_temp.balance('pending'),
    'accepted 900036 payable 900 0', 'one earlier still, by terms whose hold is over: released again');

-- Rejected when it was payable already, and accepted again: its stage starts from the facts.
select affiliate.order_review('{"merchant": 900001, "order": "H", "decision": "reject", "reason": "no"}') \g /dev/null
select affiliate.order_review('{"merchant": 900001, "order": "H", "decision": "accept", "reason": "yes"}') \g /dev/null
select is(pg_temp.stage_of('H'), 'accepted 900036 held', 'rejected and accepted again: released by the next release');
select is_empty($$ select pg_temp.audit() $$, 'the books are right');

select * from finish();
rollback;
