-- Each check of a conversion, with its reason and its sentence.

\ir support/fixture.psql

select plan(29);

select pg_temp.click(1) \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'good', 'click', pg_temp.click_id(1, now() - interval '3 hours'),
    'status', 'pending', 'amount', 1000)) \g /dev/null
select is(pg_temp.outcome('good'), 'accepted', 'a plain order is accepted');

-- verdicts
create function pg_temp.by_verdict(p_verdict integer)
returns text
language plpgsql
as $$
begin
    perform pg_temp.report(jsonb_build_object('order', 'v' || p_verdict, 'status', 'pending', 'amount', 1000,
        'click', pg_temp.click(10 + p_verdict, p_verdict => p_verdict)));
    return pg_temp.outcome('v' || p_verdict);
end
$$;
select is(pg_temp.by_verdict(1), 'accepted', 'a duplicate click counts');
select is(pg_temp.by_verdict(2), 'review suspect_click', 'a suspect click goes to review');
select is(pg_temp.by_verdict(3), 'rejected prefetch_click', 'a prefetch');
select is(pg_temp.by_verdict(4), 'rejected preview_click', 'a preview');
select is(pg_temp.by_verdict(5), 'rejected bot_click', 'a bot');

-- clicks that are none
select pg_temp.report(jsonb_build_object('order', 'foreign', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click(20, p_link => 900044))) \g /dev/null
select is(pg_temp.outcome('foreign'), 'rejected foreign_click', 'another merchant''s click');
select pg_temp.report(jsonb_build_object('order', 'expired', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click_id(21, now() - interval '300 days'))) \g /dev/null
select is(pg_temp.outcome('expired'), 'rejected expired_click', 'a click older than the oldest partition');
select pg_temp.report(jsonb_build_object('order', 'mode', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click(22, p_livemode => false))) \g /dev/null
select is(pg_temp.outcome('mode'), 'rejected wrong_livemode', 'a test click of a live order');

-- times
select pg_temp.report(jsonb_build_object('order', 'late', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click(23), 'at', now() - interval '3 hours' + interval '721 hours')) \g /dev/null
select is(pg_temp.outcome('late'), 'rejected outside_attribution_window', 'after the window');
select pg_temp.report(jsonb_build_object('order', 'edge', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click(24), 'at', affiliate.click_time(pg_temp.click_id(24, now() - interval '3 hours'))
                                      + interval '720 hours')) \g /dev/null
select is(pg_temp.outcome('edge'), 'accepted', 'the last instant of the window counts');
select pg_temp.report(jsonb_build_object('order', 'fast', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click(25), 'at', now() - interval '3 hours' + interval '1 second')) \g /dev/null
select is(pg_temp.outcome('fast'), 'rejected too_fast', 'faster than the minimum');
select pg_temp.report(jsonb_build_object('order', 'future', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click(26), 'occurred', now() + interval '1 day')) \g /dev/null
select is((select reported_at from affiliate.order_fact where order_id = 'future'), now() - interval '2 hours',
    'a time after the reception counts as the reception');
select pg_temp.report(jsonb_build_object('order', 'past', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click(27), 'occurred', now() - interval '1 day')) \g /dev/null
select is((select reported_at from affiliate.order_fact where order_id = 'past'), now() - interval '2 hours',
    'so does a time before the click');
select pg_temp.report(jsonb_build_object('order', 'said', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click(28), 'occurred', now() - interval '150 minutes')) \g /dev/null
select is((select reported_at from affiliate.order_fact where order_id = 'said'), now() - interval '150 minutes',
    'a believable time is the merchant''s');

-- money
select pg_temp.report(jsonb_build_object('order', 'usd', 'status', 'pending', 'amount', 1000, 'currency', 'USD',
    'click', pg_temp.click(29))) \g /dev/null
select is(pg_temp.outcome('usd'), 'rejected wrong_currency', 'another currency than the campaign''s');
select pg_temp.report(jsonb_build_object('order', 'blank', 'status', 'approved', 'click', pg_temp.click(30))) \g /dev/null
select is(pg_temp.outcome('blank'), 'review missing_amount', 'approved without an amount');
select pg_temp.report(jsonb_build_object('order', 'usd back', 'status', 'pending', 'amount', 1000, 'click', pg_temp.click(31)))
    \g /dev/null
select pg_temp.report(jsonb_build_object('order', 'usd back', 'status', 'refunded', 'amount', 10, 'currency', 'USD',
    'click', pg_temp.click_id(31, now() - interval '3 hours'))) \g /dev/null
select is(pg_temp.outcome('usd back'), 'review refund_currency', 'a refund in another currency');
select pg_temp.report(jsonb_build_object('order', 'huge', 'status', 'pending', 'amount', 75000000000000, 'click', pg_temp.click(33)))
    \g /dev/null
select is(pg_temp.outcome('huge'), 'accepted', 'the most that an order may earn');
select pg_temp.report(jsonb_build_object('order', 'huge', 'status', 'pending', 'amount', 75000000000010, 'at', now() - interval '1 hour',
    'click', pg_temp.click_id(33, now() - interval '3 hours'))) \g /dev/null
select is(pg_temp.outcome('huge'), 'rejected above_limit', 'more than an order may earn');

-- another click
select pg_temp.report(jsonb_build_object('order', 'good', 'status', 'approved', 'amount', 1000, 'at', now() - interval '1 hour',
    'click', pg_temp.click(32, p_link => 900042))) \g /dev/null
select is(pg_temp.outcome('good'), 'review duplicate_order', 'the same order with another click');
select is((select affiliate_id from affiliate.order_fact where order_id = 'good'), 900011::bigint,
    'still belongs to the earliest report''s affiliate');

-- who is suspended
create function pg_temp.while_suspended(p_noun text, p_body jsonb, p_number integer)
returns text
language plpgsql
as $$
begin
    execute format('select affiliate.%s_suspend($1)', p_noun) using p_body;
    perform pg_temp.report(jsonb_build_object('order', p_noun, 'status', 'pending', 'amount', 1000,
        'click', pg_temp.click(p_number), 'at', now() + interval '1 minute'));
    perform pg_temp.report(jsonb_build_object('order', p_noun || ' before', 'status', 'pending', 'amount', 1000,
        'click', pg_temp.click_id(p_number, now() - interval '3 hours'), 'at', now() - interval '1 minute'));
    execute format('select affiliate.%s_activate($1)', p_noun) using p_body;
    return pg_temp.outcome(p_noun) || ', ' || pg_temp.outcome(p_noun || ' before');
end
$$;
select is(pg_temp.while_suspended('merchant', '{"merchant": 900001}', 40),
    'rejected inactive_merchant, accepted', 'a suspended merchant; what was reported before counts');
select is(pg_temp.while_suspended('campaign', '{"campaign": 900021}', 41),
    'rejected inactive_campaign, accepted', 'a suspended campaign');
select is(pg_temp.while_suspended('affiliate', '{"affiliate": 900011}', 42),
    'rejected inactive_affiliate, accepted', 'a suspended affiliate');

insert into affiliate.campaign (merchant_id, campaign_id, name, currency) values (900001, 900029, 'No terms', 'NPR');
insert into affiliate.link (merchant_id, link_id, campaign_id, affiliate_id, livemode, code, url)
values (900001, 900049, 900029, 900011, true, 'fixture-9', 'https://shop.example/');
select pg_temp.report(jsonb_build_object('order', 'terms', 'status', 'pending', 'amount', 1000,
    'click', pg_temp.click(43, p_link => 900049))) \g /dev/null
select is(pg_temp.outcome('terms'), 'rejected no_terms', 'a campaign without terms at the click');

select is_empty($$
    select problem from affiliate.order_fact where affiliate.reason_sentence(problem) = problem
$$, 'every reason has a sentence');
select is_empty($$
    select problem from affiliate.order_fact
     where outcome = 'rejected' and posted_commission_minor + posted_fee_minor > 0
$$, 'nothing is due for a rejected order');
select is_empty($$ select pg_temp.audit() $$, 'the books are right');

select * from finish();
rollback;
