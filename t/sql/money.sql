-- Rounding, rates, versions of terms, currencies and modes.

\ir support/fixture.psql

select plan(32);

select is(affiliate.half_even(n, d), r::bigint, format('%s / %s = %s', n, d, r))
  from (values (0, 2, 0), (1, 2, 0), (3, 2, 2), (5, 2, 2), (7, 2, 4), (1, 3, 0), (2, 3, 1), (10, 4, 2), (14, 4, 4),
               (9999, 10000, 1), (5000, 10000, 0), (15000, 10000, 2), (25000, 10000, 2), (25001, 10000, 3)) as t(n, d, r);
select is_empty($$
    select a, p
      from generate_series(0, 20100, 3) a, unnest('{0,1,3,50,333,825,5000,9999,10000}'::integer[]) p
     where affiliate.basis_points_of(a, p) <> affiliate.half_even(a::numeric * p, 10000) $$,
    'basis points in integers are the same as half_even');
select is_empty($$
    select a, p
      from unnest('{99999999999999999,99999999999995000,99999999999985000,12345678901234567}'::bigint[]) a,
           generate_series(0, 10000, 7) p
     where affiliate.basis_points_of(a, p) <> affiliate.half_even(a::numeric * p, 10000) $$,
    'up to the greatest amount, without overflow');
select is(affiliate.half_even(99999999999999999::numeric * 10000, 10000), 99999999999999999,
    'the greatest amount at 100 % is itself');

-- Reversal is recomputation: refunding minor unit by minor unit never drifts and never goes below zero.
select is_empty($$
    select kept
      from generate_series(0, 1000) kept
     cross join lateral (
               select affiliate.commission_minor(kept, 1000, 825, null, null, null, false) as now,
                      affiliate.commission_minor(kept + 1, 1000, 825, null, null, null, false) as before) c
     where c.now > c.before or c.now < 0
$$, 'less kept is never more commission');

-- Items: SKU before category before campaign; delivery at the campaign's rate; a discount scales percentages.
insert into affiliate.product_rate (merchant_id, terms_id, kind, value, rate_basis_points, rate_flat_minor) values
    (900001, 900031, 'sku', 'TEA', 2000, null),
    (900001, 900031, 'sku', 'CUP', null, 70),
    (900001, 900031, 'category', 'kitchen', 500, null);
create function pg_temp.items(p_amount bigint, p_sku text[], p_category text[], p_quantity integer[], p_amounts bigint[])
returns bigint
language sql
as $$
    select affiliate.commission_minor(p_amount, p_amount, t.rate_basis_points, t.rate_flat_minor, f[1], f[2], false)
      from affiliate.terms t,
           affiliate.item_fraction(t, p_amount, p_sku, p_category, p_quantity, p_amounts) f
     where t.terms_id = 900031
$$;
select is(pg_temp.items(10000, '{TEA}', '{kitchen}', '{1}', '{10000}'), 2000::bigint, 'the SKU''s rate goes first');
select is(pg_temp.items(10000, '{POT}', '{kitchen}', '{1}', '{10000}'), 500::bigint, 'then the category''s');
select is(pg_temp.items(10000, '{POT}', '{garden}', '{1}', '{10000}'), 1000::bigint, 'then the campaign''s');
select is(pg_temp.items(10000, '{CUP}', '{kitchen}', '{3}', '{10000}'), 210::bigint, 'flat per piece');
select is(pg_temp.items(11000, '{TEA}', '{kitchen}', '{1}', '{10000}'), 2100::bigint, 'delivery earns the campaign''s rate');
select is(pg_temp.items(9000, '{TEA}', '{kitchen}', '{1}', '{10000}'), 1800::bigint, 'a discount scales percentages');

select pg_temp.report(jsonb_build_object('order', 'items', 'status', 'approved', 'amount', 20000, 'click', pg_temp.click(1),
    'sku', '["TEA", "POT"]'::jsonb, 'category', '["kitchen", "kitchen"]'::jsonb, 'quantity', '[1, 2]'::jsonb,
    'item_amount', '[10000, 10000]'::jsonb)) \g /dev/null
select is((select posted_commission_minor from affiliate.order_fact where order_id = 'items'), 2500::bigint, 'items of an order');
select pg_temp.report(jsonb_build_object('order', 'items', 'status', 'refunded', 'amount', 5000, 'refund', 'r',
    'click', pg_temp.click_id(1, now() - interval '3 hours'))) \g /dev/null
select is((select posted_commission_minor from affiliate.order_fact where order_id = 'items'), 1875::bigint,
    'a refund takes its share of all of them');

-- Flat per order.
select pg_temp.report(jsonb_build_object('order', 'flat', 'status', 'approved', 'amount', 30000,
    'click', pg_temp.click(2, p_link => 900043))) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'flat', 'status', 'refunded', 'amount', 10000,
    'click', pg_temp.click_id(2, now() - interval '3 hours'))) \g /dev/null
select is((select posted_commission_minor from affiliate.order_fact where order_id = 'flat'), 3333::bigint,
    'a flat commission shrinks with what was kept');

-- Terms in force at the click, whatever has come since.
insert into affiliate.terms
      (merchant_id, campaign_id, terms_id, valid_from, rate_basis_points, hold, attribution_window)
values (900001, 900021, 900039, now() - interval '170 minutes', 5000, '1 hour', '720 hours');
select pg_temp.report(jsonb_build_object('order', 'old', 'status', 'pending', 'amount', 1000, 'click', pg_temp.click(3))) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'new', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click(4, now() - interval '160 minutes'))) \g /dev/null
select results_eq(
    $$ select order_id, posted_commission_minor from affiliate.order_fact where order_id in ('old', 'new') order by 1 $$,
    $$ values ('new' collate "C", 500::bigint), ('old', 100) $$,
    'each order by the terms at its click');

-- Modes and currencies have accounts of their own.
select pg_temp.report(jsonb_build_object('order', 'old', 'livemode', false, 'status', 'pending', 'amount', 7000,
    'click', pg_temp.click(5, p_livemode => false))) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'usd', 'merchant', 900002, 'status', 'pending', 'amount', 10000, 'currency', 'USD',
    'click', pg_temp.click(6, p_link => 900044))) \g /dev/null
select is((select posted_commission_minor from affiliate.order_fact where order_id = 'old' and livemode), 100::bigint,
    'a test order of the same name leaves the live one alone');
select results_eq(
    $$ select livemode, currency, credits_minor - debits_minor from affiliate.account
        where owner = 'affiliate' and kind = 'pending' and merchant_id in (900001, 900002) order by 1, 2 $$,
    $$ values (false, 'NPR', 700::numeric), (true, 'NPR', 1875 + 3333 + 100 + 500), (true, 'USD', 500) $$,
    'pending by mode and currency');
select is(affiliate.money_text(125050, 'NPR') || ', ' || affiliate.money_text(-5, 'JPY') || ', '
          || affiliate.money_text(1, 'KWD'), '1250.50 NPR, -5 JPY, 0.001 KWD', 'amounts as text');
select is_empty($$ select pg_temp.audit() $$, 'the books are right');

select * from finish();
rollback;
