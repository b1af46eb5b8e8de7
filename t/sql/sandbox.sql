-- The sandbox: test clocks and magic order ids, and that neither reaches live mode.

\ir support/fixture.psql

select plan(43);

insert into affiliate.link (merchant_id, link_id, campaign_id, affiliate_id, livemode, code, url)
values (900001, 900046, 900021, 900011, false, 'fixture-6', 'https://shop.example/');

-- The clock is set by hand: in one transaction, advance_test_clock() lies after now().
create function pg_temp.clock(p_at timestamptz, p_ahead interval)
returns void
language sql
as $$
    insert into affiliate.test_clock (merchant_id, at, ahead) values (900001, p_at, p_ahead)
$$;
create function pg_temp.event(p_order text, p_livemode boolean, p_extra jsonb default '{}')
returns text
language sql
as $$
    select pg_temp.report(jsonb_build_object('order', p_order, 'livemode', p_livemode, 'status', 'approved', 'amount', 10000,
        'click', pg_temp.click_id(case when p_livemode then 1 else 2 end, now() - interval '3 hours')) || p_extra)
$$;
create function pg_temp.stage_of(p_order text, p_livemode boolean)
returns text
language sql
as $$
    select concat_ws(' ', outcome, problem, case when payable then 'payable' when due_at is not null then 'held' end)
      from affiliate.order_now
     where merchant_id = 900001 and order_id = p_order and livemode = p_livemode
$$;

select pg_temp.click(1), pg_temp.click(2, p_link => 900046, p_livemode => false) \g /dev/null

-- Without a clock, test time is the real one.
select is(affiliate.test_time(900001, false, now()), now(), 'no clock: no difference');
select pg_temp.event('A', false, jsonb_build_object('at', now() - interval '30 minutes')) \g /dev/null
select pg_temp.event('A', true, jsonb_build_object('at', now() - interval '30 minutes')) \g /dev/null
select is(pg_temp.stage_of('A', false) || ', ' || pg_temp.stage_of('A', true), 'accepted held, accepted held', 'both on hold');
select is(affiliate.release_holds(100), 0::bigint, 'neither is due');

-- Ahead.
select pg_temp.clock(now() - interval '10 minutes', '29 minutes') \g /dev/null
select is(affiliate.test_time(900001, false, now()), now() + interval '29 minutes', 'the clock is ahead');
select is(affiliate.test_time(900001, true, now()), now(), 'live mode knows no clock');
select is(affiliate.test_time(900002, false, now()), now(), 'nor does another merchant');
select is(affiliate.test_time(900001, false, now() - interval '11 minutes'), now() - interval '11 minutes', 'before it was moved, it was not');
select is(affiliate.release_holds(100), 0::bigint, 'not far enough');
select pg_temp.clock(now() - interval '9 minutes', '31 minutes') \g /dev/null
select is(affiliate.release_holds(0), 0::bigint, 'no more than is asked for');
select is(affiliate.release_holds(100), 1::bigint, 'far enough: released');
select is(pg_temp.stage_of('A', false) || ', ' || pg_temp.stage_of('A', true), 'accepted payable, accepted held', 'the test order alone');
select is_empty($$ select pg_temp.audit() $$, 'the books are right: it was due by its clock');
select results_eq($$ select pg_temp.books() $$, $$ values
    ('affiliate 900011 payable NPR test 1000'), ('affiliate 900011 pending NPR live 1000'),
    ('merchant 900001 accrued NPR live -1200'), ('merchant 900001 owed NPR test -1200'),
    ('platform 0 fee_earned NPR test 200'), ('platform 0 fee_pending NPR live 200') $$, 'payable in test mode, pending in live mode');
select pg_temp.event('A', false, jsonb_build_object('at', now() - interval '30 minutes', 'amount', 5000)) \g /dev/null
select is(pg_temp.stage_of('A', false), 'accepted payable', 'decided anew, it is still payable: now is what the clock says');
select is_empty($$ select pg_temp.audit() $$, 'also for the audit');

-- Reported with the clock ahead.
select pg_temp.event('B', false, jsonb_build_object('at', now() - interval '1 minute')) \g /dev/null
select is((select reported_at from affiliate.order_fact where merchant_id = 900001 and order_id = 'B'),
    now() + interval '30 minutes', 'a report is dated by the clock');
select is((select due_at from affiliate.hold h join affiliate.order_fact o using (merchant_id, order_no) where order_id = 'B'),
    now() + interval '90 minutes', 'and so is the end of its hold');
select is(affiliate.release_holds(100), 0::bigint, 'which is not over');
select pg_temp.clock(now() - interval '30 seconds', '721 hours') \g /dev/null
select is(affiliate.release_holds(100), 1::bigint, 'until the clock has passed it');
select pg_temp.event('C', false, jsonb_build_object('at', now())) \g /dev/null
select is(pg_temp.stage_of('C', false), 'rejected outside_attribution_window', 'an old click is too old by the clock');
select pg_temp.event('C', true, jsonb_build_object('at', now())) \g /dev/null
select is(pg_temp.stage_of('C', true), 'accepted held', 'in live mode it is not');
select pg_temp.click(3, now() - interval '20 seconds', p_link => 900046, p_livemode => false) \g /dev/null
select pg_temp.event('D', false, jsonb_build_object('at', now(), 'click', pg_temp.click_id(3, now() - interval '20 seconds'))) \g /dev/null
select is(pg_temp.stage_of('D', false), 'accepted held', 'a click made with the clock ahead is a new one');
select pg_temp.event('E', false, jsonb_build_object('at', now(), 'occurred', now() - interval '10 seconds',
    'click', pg_temp.click_id(3, now() - interval '20 seconds'))) \g /dev/null
select is((select round(extract(epoch from reported_at - clicked_at)) from affiliate.order_fact where merchant_id = 900001 and order_id = 'E'),
    10::numeric, 'what the merchant says of time is told in test time, too');
insert into affiliate.terms (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, hold, attribution_window)
values (900001, 900021, 900039, now() + interval '1 hour', 5000, '1 hour', '720 hours');
select is_empty($$ select pg_temp.audit() $$, 'terms made later, before a click in test time, are not its terms');
select pg_temp.event('D', false, jsonb_build_object('at', now(), 'click', pg_temp.click_id(3, now() - interval '20 seconds'))) \g /dev/null
select is((select terms_id from affiliate.order_fact where merchant_id = 900001 and order_id = 'D'), 900031::bigint, 'nor if it is decided anew');

-- Moving it.
select throws_like($$ select affiliate.advance_test_clock(900001, '-1 second') $$, '%forward only%', 'it does not go back');
select throws_like($$ select affiliate.advance_test_clock(900001, '0') $$, '%forward only%', 'nor stand still');
select throws_like($$ select affiliate.advance_test_clock(900001, '87000 hours') $$, '%3650 days%', 'nor to the end of days');
select cmp_ok(affiliate.advance_test_clock(900001, '24 hours'), '>', now() + interval '745 hours', 'it adds up');
select throws_like($$ update affiliate.test_clock set ahead = '1 second' $$, '%never changed%', 'and what it was stays known');
select pg_temp.event('W', false, jsonb_build_object('click', pg_temp.click_id(9, now() - interval '1 hour'))) \g /dev/null
select pg_temp.event('W', true, jsonb_build_object('click', pg_temp.click_id(9, now() - interval '1 hour'))) \g /dev/null
select affiliate.advance_test_clock(900001, '168 hours') \g /dev/null
select affiliate.resolve_waiting(100) \g /dev/null
select is(pg_temp.stage_of('W', false), 'rejected unknown_click', 'a click that was waited for is given up by the clock');
select is(pg_temp.stage_of('W', true), null, 'in live mode it is waited for');

-- Magic order ids.
select is(affiliate.magic_problem(o), p, o || ' asks for ' || coalesce(p, 'nothing'))
  from (values ('TEST-REVIEW-7', 'suspect_click'), ('TEST-REVIEWED', null), ('A TEST-REVIEW', null)) v(o, p);
select is_empty($$
    select p, affiliate.magic_problem('TEST-' || case affiliate.outcome_of(p) when 'review' then 'REVIEW-' else 'REJECTED-' end || upper(p) || '-1')
      from unnest(affiliate.order_problems()) p
     where affiliate.magic_problem('TEST-' || case affiliate.outcome_of(p) when 'review' then 'REVIEW-' else 'REJECTED-' end || upper(p) || '-1')
           is distinct from p or affiliate.reason_sentence(p) = p $$, 'every problem can be asked for, and has a sentence');
select pg_temp.event(o, m, jsonb_build_object('click', pg_temp.click_id(case when m then 1 else 3 end,
           case when m then now() - interval '3 hours' else now() - interval '20 seconds' end), 'at', now()))
  from (select unnest('{TEST-DUPLICATE-1,TEST-REVIEW,TEST-REJECTED,TEST-ACCEPTED}'::text[])
        union all
        select 'TEST-' || case affiliate.outcome_of(p) when 'review' then 'REVIEW-' else 'REJECTED-' end || upper(p)
          from unnest(affiliate.order_problems()) p) as v(o)
 cross join unnest('{true,false}'::boolean[]) m \g /dev/null
select results_eq($$ select distinct outcome, problem from affiliate.order_fact
                      where merchant_id = 900001 and livemode and left(order_id, 5) = 'TEST-' $$,
    $$ values ('accepted', null::text) $$, 'in live mode, they are names like any other');
select is((select string_agg(pg_temp.stage_of(o, false), ', ' order by n)
             from unnest('{TEST-DUPLICATE-1,TEST-REVIEW,TEST-REJECTED,TEST-ACCEPTED}'::text[]) with ordinality as v(o, n)),
    'review duplicate_order, review suspect_click, rejected review_rejected, accepted held', 'in test mode, they get what they ask for');
select is_empty($$
    select order_id, problem from affiliate.order_fact
     where merchant_id = 900001 and not livemode and order_id ~ '^TEST-(REVIEW|REJECTED)-'
       and problem is distinct from lower(substring(order_id from '^TEST-[A-Z]+-(.*)$')) $$, 'each problem there is');
select is_empty($$ select pg_temp.audit() $$, 'the audit knows them');
select affiliate.order_review('{"merchant": 900001, "order": "TEST-DUPLICATE-1", "livemode": false, "decision": "accept", "reason": "fine"}') \g /dev/null
select is(pg_temp.stage_of('TEST-DUPLICATE-1', false), 'accepted held', 'a review that was asked for can be decided');
select pg_temp.click(4, now() - interval '19 seconds', 2, 900046, false) \g /dev/null
select pg_temp.event('TEST-ACCEPTED-2', false, jsonb_build_object('at', now(), 'click', pg_temp.click_id(4, now() - interval '19 seconds'))) \g /dev/null
select is(pg_temp.stage_of('TEST-ACCEPTED-2', false), 'accepted held', 'a suspect click is none where that is asked for');
select is_empty($$ select pg_temp.audit() $$, 'and the books are right');

select * from finish();
rollback;
