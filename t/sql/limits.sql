-- Amounts at their limits: whatever one merchant reports, the batch functions go on for all.

\ir support/fixture.psql

select plan(18);

select cmp_ok(affiliate.worth_limit()::numeric * 1000000, '<=', 9223372036854775807::numeric, 'a release of the largest batch sums up to a bigint');
select is(affiliate.half_even(1e30, 1), 1000000000000000000, 'what is beyond all limits stops far above them');

-- Another merchant whose campaign pays 100 % with a fee as great, and pieces at the greatest flat rate.
update affiliate.terms set rate_basis_points = 10000, fee_basis_points = 10000 where terms_id = 900033;
insert into affiliate.product_rate (merchant_id, terms_id, kind, value, rate_flat_minor)
values (900002, 900033, 'sku', 'CUP', 99999999999999999);
-- Its accounts stand where a bigint ends (undone below).
insert into affiliate.account (merchant_id, livemode, currency, owner, kind, owner_id, debits_minor, credits_minor)
select 900002, true, 'USD', owner, kind, owner_id, 9223372036854775807, 9223372036854775807
  from (values ('affiliate', 'pending', 900011), ('affiliate', 'payable', 900011), ('merchant', 'accrued', 900002),
               ('merchant', 'owed', 900002), ('platform', 'fee_pending', 0), ('platform', 'fee_earned', 0)) a(owner, kind, owner_id);

create function pg_temp.huge(p_order text, p_number integer, p_amount bigint, p_extra jsonb default '{}')
returns void
language sql
as $$
    select pg_temp.stage(jsonb_build_object('order', p_order, 'merchant', 900002, 'status', 'approved', 'amount', p_amount,
        'currency', 'USD', 'click', pg_temp.click_id(p_number, now() - interval '3 hours')) || p_extra)
$$;
create function pg_temp.normal(p_order text, p_number integer)
returns void
language sql
as $$
    select pg_temp.stage(jsonb_build_object('order', p_order, 'status', 'approved', 'amount', 1000,
        'click', pg_temp.click_id(p_number, now() - interval '3 hours')))
$$;
create function pg_temp.worth(p_like text)
returns setof text
language sql
as $$
    select concat_ws(' ', count(*), outcome, problem, sum(posted_commission_minor), sum(posted_fee_minor))
      from affiliate.order_fact
     where order_id like p_like
     group by outcome, problem
$$;

-- Applied at once: dozens of the greatest amount, of pieces beyond any integer and of just the limit, beside normal ones.
select count(pg_temp.click(n, p_link => 900044)) from generate_series(1, 60) n \g /dev/null
select count(pg_temp.click(n)) from generate_series(101, 160) n \g /dev/null
select count(pg_temp.huge('great-' || n, n, 99999999999999999)),
       count(pg_temp.huge('piece-' || n, n, 1000, '{"sku": ["CUP"], "category": [null], "quantity": [2147483647], "item_amount": [1000]}')),
       count(pg_temp.huge('limit-' || n, n, affiliate.worth_limit() / 2)),
       count(pg_temp.normal('normal-' || n, 100 + n))
  from generate_series(1, 60) n \g /dev/null
select is(pg_temp.apply(), 'staged 240 applied 240 waiting 0 duplicates 0 dead 0 accepted 120 review 0 rejected 120', 'applied');
select results_eq($$ select pg_temp.worth('great-%') $$, array['60 rejected above_limit 0 0'], 'the greatest amounts earn too much');
select results_eq($$ select pg_temp.worth('piece-%') $$, array['60 rejected above_limit 0 0'], 'so do pieces beyond any integer');
select results_eq($$ select pg_temp.worth('limit-%') $$, array['60 accepted 270000000000000 270000000000000'], 'just the limit is accepted');

-- The same by clicks that come later.
select count(pg_temp.huge('great-w' || n, 200 + n, 99999999999999999)),
       count(pg_temp.huge('limit-w' || n, 200 + n, affiliate.worth_limit() / 2)),
       count(pg_temp.normal('normal-w' || n, 300 + n))
  from generate_series(1, 60) n \g /dev/null
select is(pg_temp.apply(), 'staged 180 applied 0 waiting 180 duplicates 0 dead 0 accepted 0 review 0 rejected 0', 'others wait for their clicks');
select count(pg_temp.click(n, p_link => 900044)) from generate_series(201, 260) n \g /dev/null
select count(pg_temp.click(n)) from generate_series(301, 360) n \g /dev/null
select is(affiliate.resolve_waiting(1000), 180::bigint, 'and are all resolved');
select results_eq($$ select pg_temp.worth('great-w%') $$, array['60 rejected above_limit 0 0'], 'by the same limit');

select is(affiliate.release_holds(1000), 240::bigint, 'all that counts is released at once');
select results_eq($$ select pg_temp.books() $$, $$ values
    ('affiliate 900011 payable NPR live 12000'),
    ('affiliate 900011 payable USD live 540000000000000'),
    ('merchant 900001 owed NPR live -14400'),
    ('merchant 900002 owed USD live -1080000000000000'),
    ('platform 0 fee_earned NPR live 2400'),
    ('platform 0 fee_earned USD live 540000000000000') $$, 'and stands in the books, past where a bigint ends');
select is((select b ->> 'balance' from affiliate.balance_list('{"merchant": 900002, "affiliate": 900011}') b where b ->> 'kind' = 'payable'),
    '5400000000000.00', 'which balances tell');

-- What is above the limit is no matter of a review; a later report or a refund of all but a little puts it right.
select throws_like($$ select affiliate.order_review('{"merchant": 900002, "order": "great-1", "decision": "accept", "reason": "fine"}') $$,
    '%rejected for a reason that no review changes%9000000000000 minor units%', 'no review lifts the limit');
select is((select o ->> 'state' from affiliate.order_show('{"merchant": 900002, "order": "great-1"}') o), 'rejected', 'its state');
select pg_temp.huge('great-1', 1, 500, jsonb_build_object('at', now() - interval '100 minutes')) \g /dev/null
select pg_temp.huge('great-2', 2, 99999999999999000, '{"status": "refunded", "refund": "r"}') \g /dev/null
select is(pg_temp.apply(), 'staged 2 applied 2 waiting 0 duplicates 0 dead 0 accepted 2 review 0 rejected 0', 'corrected');
select results_eq($$ select w from pg_temp.worth('great-_') w where w like '%accepted%' $$, array['2 accepted 1499 1499'], 'what is right then, counts');
-- Released, then reported at the greatest amount: all of it is taken back.
select pg_temp.huge('limit-1', 1, 99999999999999999, jsonb_build_object('at', now() - interval '90 minutes')) \g /dev/null
select pg_temp.apply() \g /dev/null
select is(pg_temp.outcome('limit-1'), 'rejected above_limit', 'released, and above the limit since');

update affiliate.account
   set debits_minor = debits_minor - 9223372036854775807, credits_minor = credits_minor - 9223372036854775807
 where merchant_id = 900002;
select is_empty($$ select pg_temp.audit() $$, 'the books are right');

select * from finish();
rollback;
