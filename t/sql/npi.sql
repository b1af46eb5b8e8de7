-- Batches that the role payouts hands to a provider: what may go there, leases, what was perhaps sent is only asked about.

\ir support/people.psql

select plan(80);

insert into affiliate.person (user_id, email, name, password, verified_at, is_admin)
values (900109, 'second@people.example', 'second', '$scrypt$fixture-second', now(), true);
insert into affiliate.session (user_id, token_hash, csrf_hash, created_at, last_seen_at) values (900109, 'token-second', 'csrf-second', now(), now());
update affiliate.payout_policy set cool_off = '0';

-- 10000.00 payable to each.
select pg_temp.report(jsonb_build_object('order', 'O' || n, 'status', 'approved', 'amount', 10000000,
           'click', pg_temp.click(n, p_link => 900040 + n)))
  from generate_series(1, 2) n \g /dev/null
select affiliate.release_holds(100) \g /dev/null

create function pg_temp.method(p_who text, p_fields jsonb default '{}')
returns text
language sql
as $$
    select pg_temp.outcome(p_who, 'payout_method_create', '{"kind": "bank", "holder": "Asha Rai", "account": "01900017501011", "bank": "0401", "default": true}'
           || p_fields)
$$;
create function pg_temp.asked(p_who text, p_amount text default '1000.00')
returns bigint
language sql
as $$ select (pg_temp.row(p_who, 'payout_create', jsonb_build_object('amount', p_amount, 'currency', 'NPR')) ->> 'payout')::bigint $$;
create function pg_temp.made(p_fields jsonb default '{}')
returns text
language sql
as $$ select pg_temp.outcome('admin', 'payout_batch_create', '{"kind": "bank", "currency": "NPR", "provider": "npi"}' || p_fields) $$;
create function pg_temp.batch()
returns affiliate.payout_batch
language sql
as $$ select b from affiliate.payout_batch b order by b.batch_id desc limit 1 $$;
create function pg_temp.moved(p_operation text, p_who text default 'admin', p_fields jsonb default '{}')
returns text
language sql
as $$ select pg_temp.outcome(p_who, p_operation, jsonb_build_object('batch', (pg_temp.batch()).batch_id::text) || p_fields) $$;
create function pg_temp.approved()
returns text
language sql
as $$
    select concat_ws(' ', pg_temp.made(), pg_temp.moved('payout_batch_propose'), pg_temp.moved('payout_batch_approve', 'second'))
$$;
create function pg_temp.states()
returns text
language sql
as $$
    select concat_ws(' ', (pg_temp.batch()).state, (select s.state from affiliate.payout_submission s where s.batch_id = (pg_temp.batch()).batch_id),
                     '|', string_agg(p.state, ' ' order by p.payout_id))
      from affiliate.payout p where p.batch_id = (pg_temp.batch()).batch_id
$$;

-- What was taken last, and what is made of it.
create temp table hand (batch_id bigint, reference text, currency text, decimals smallint, step text, sent integer, items jsonb, taken timestamptz);
create function pg_temp.take()
returns text
language sql
as $$
    delete from hand;
    insert into hand select * from affiliate.payout_submit_take('npi', true, '1 minute');
    select coalesce((select step || ' ' || jsonb_array_length(items) from hand), 'nothing');
$$;
create function pg_temp.verdicts(p_verdict text, p_detail text default null, p_reference text default null)
returns jsonb
language sql
as $$
    select jsonb_agg(jsonb_strip_nulls(jsonb_build_object('instruction', i -> 'instruction', 'verdict', p_verdict, 'detail', p_detail, 'reference', p_reference)))
      from hand, jsonb_array_elements(items) i
$$;
create function pg_temp.checked(p_items jsonb default pg_temp.verdicts('accepted'))
returns boolean
language plpgsql
as $$
declare
    mine timestamptz := (select affiliate.payout_submit_checked(batch_id, p_items, taken, '1 minute') from hand);
begin
    update hand set taken = mine;
    return mine is not null;
end
$$;
create function pg_temp.begun()
returns boolean
language plpgsql
as $$
declare
    mine timestamptz := (select affiliate.payout_submit_begin(batch_id, taken, '1 minute') from hand);
begin
    update hand set taken = mine;
    return mine is not null;
end
$$;
create function pg_temp.done(p_outcome text, p_detail text default null, p_items jsonb default '[]')
returns text
language sql
as $$ select affiliate.payout_submit_done(batch_id, p_outcome, p_detail, p_items, taken, '1 minute') from hand $$;
-- Time passes for who waits.
create function pg_temp.later()
returns void
language sql
as $$ update affiliate.payout_submission set next_at = next_at - interval '2 hours' where next_at > now() $$;
create function pg_temp.wallet(p_affiliate bigint default 900011)
returns text
language sql
as $$
    select string_agg(coalesce(s.amount, 0)::text, ' ' order by k.n)
      from unnest('{payable,in_payout,paid}'::text[]) with ordinality k(kind, n)
      left join lateral (select sum(a.credits_minor - a.debits_minor) as amount from affiliate.account a
                          where a.owner = 'affiliate' and a.owner_id = p_affiliate and a.kind = k.kind and a.merchant_id = 900001) s on true
$$;

-- What may go there
select is(pg_temp.method('asha'), '201', 'a bank account');
select is(pg_temp.method('bikram', '{"account": "123456789012345678901", "holder": "Bikram"}'), '201', 'another, with more digits than NPI takes');
select isnt(pg_temp.asked('asha'), null, 'a payout');
select isnt(pg_temp.asked('bikram'), null, 'another');
select is(pg_temp.made(), '22023 provider: must be csv or manual: no daemon is connected to NPI for live payouts', 'no daemon is connected');
select affiliate.payout_provider_seen('npi', false, '1 minute') \g /dev/null
select is(pg_temp.made(), '22023 provider: must be csv or manual: no daemon is connected to NPI for live payouts', 'one for test payouts does not do');
select affiliate.payout_provider_seen('npi', true, '-1 second') \g /dev/null
select is(pg_temp.made(), '22023 provider: must be csv or manual: no daemon is connected to NPI for live payouts', 'nor one that was');
select affiliate.payout_provider_seen('npi', true, '1 minute') \g /dev/null
select is(pg_temp.made('{"kind": "esewa"}'), '22023 provider: must be csv or manual: NPI pays NPR to bank accounts', 'no wallet');
select is(pg_temp.made(), '201', 'a batch');
select is((select string_agg(affiliate_id::text, ' ') from affiliate.payout where batch_id = (pg_temp.batch()).batch_id), '900011', 'of what NPI takes');
select is(pg_temp.take(), 'nothing', 'what is not approved is not taken');
select is(pg_temp.moved('payout_batch_propose'), '200', 'proposed');
select is(pg_temp.take(), 'nothing', 'nor what is proposed');
select is(pg_temp.moved('payout_batch_approve', 'second'), '200', 'approved');
select is(pg_temp.moved('payout_batch_export'), 'AF409 batch_state', 'there is no file');
select is_empty($$ select * from affiliate.payout_submit_take('npi', false, '1 minute') $$, 'a daemon for test payouts does not take it');

-- Looked at
select is(pg_temp.take(), 'submit 1', 'taken');
select is((select i - 'instruction' from hand, jsonb_array_elements(items) i),
    '{"bank": "0401", "branch": null, "holder": "Asha Rai", "account": "01900017501011", "checked": false, "amount_minor": 85000}', 'with what NPI is to pay');
select is_empty($$ select * from affiliate.payout_submit_take('npi', true, '1 minute') $$, 'by one alone');
select is(pg_temp.states(), 'approved checking | approved', 'and nothing is on its way');
select throws_ok($$ select affiliate.payout_submit_begin(batch_id, taken, '1 minute') from hand $$, '23514', null, 'it does not go out before its accounts are found');
select ok(affiliate.payout_submit_begin((select batch_id from hand), now() - interval '1 hour', '1 minute') is null, 'nor by somebody else');
select is(pg_temp.done('later', 'NPI is away'), 'checking', 'NPI was not reached');
select is(concat_ws(' ', pg_temp.states(), (pg_temp.batch()).reason), 'approved checking | approved NPI is away', 'which the batch says');
select is(pg_temp.take(), 'nothing', 'a pause');
select pg_temp.later() \g /dev/null
select is(pg_temp.take(), 'submit 1', 'and again');
select throws_ok($$ select pg_temp.done('submitted') $$, '23514', null, 'nobody says what became of what was not sent');
select ok(pg_temp.checked(), 'its account is found');
select is_empty('select pg_temp.audit()', 'the books hold');

-- Sent
select ok(pg_temp.begun(), 'it goes out');
select is(pg_temp.states(), 'processing submitting | processing', 'which is written down');
select is(pg_temp.moved('payout_batch_reject', 'admin', '{"reason": "Late"}'), 'AF409 batch_state', 'it is too late to reject it');
select is_empty('select pg_temp.audit()', 'the books hold');
select is(pg_temp.done('later', 'no connection'), 'checking', 'it did not: certainly nothing was taken');
select is(pg_temp.states(), 'approved checking | approved', 'it is approved as before');
select is_empty('select pg_temp.audit()', 'the books hold');
select pg_temp.later() \g /dev/null
select is(pg_temp.take(), 'submit 1', 'and tried again');
select is((select items -> 0 ->> 'checked' from hand), 'true', 'its account was looked at');
select ok(pg_temp.begun(), 'it goes out');
select is(affiliate.payout_submit_done((select batch_id from hand), 'submitted', null, '[]', now(), '1 minute'), null, 'somebody else knows nothing of it');

-- Who sent it dies
select pg_temp.later() \g /dev/null
select is(pg_temp.take(), 'query 1', 'whoever finds it asks');
select is(pg_temp.states(), 'processing unknown | processing', 'nobody knows');
select is((select sent from hand), 1, 'knowing how many went out');
select is(pg_temp.done('later', 'no connection'), 'unknown', 'NPI can''t be asked');
select is(pg_temp.states(), 'processing unknown | processing', 'which does not make it approved again');
select pg_temp.later() \g /dev/null
select is(pg_temp.take(), 'query 1', 'asked again');
select is(pg_temp.done('unknown', 'NPI does not know it'), 'unknown', 'no answer helps');
select is(pg_temp.states(), 'processing unknown | unknown', 'the payout is unknown');
select is(pg_temp.wallet(), '900000 100000 0', 'its money stays aside');
select pg_temp.later() \g /dev/null
select pg_temp.take() \g /dev/null
select is(pg_temp.done('submitted', null, pg_temp.verdicts('unknown', 'The credit: 999')), 'submitted', 'asked again');
select is((select state || ': ' || reason from affiliate.payout where batch_id = (pg_temp.batch()).batch_id), 'unknown: The credit: 999', 'it is unknown for another reason');
select is_empty('select pg_temp.audit()', 'the books hold');
select isnt(pg_temp.asked('asha', '500.00'), null, 'another may be asked for');
select pg_temp.later() \g /dev/null
select is(pg_temp.take(), 'query 1', 'asked again');
select is(pg_temp.done('submitted', null, pg_temp.verdicts('pending')), 'submitted', 'it is pending');
select is(pg_temp.states(), 'processing submitted | unknown', 'and unknown until it is known');
select pg_temp.later() \g /dev/null
select is(pg_temp.take(), 'query 1', 'asked again');
select is(pg_temp.done('submitted', null, pg_temp.verdicts('settled', null, 'FT123')), 'over', 'it is settled');
select is(pg_temp.states() || (select rail_reference from affiliate.payout where batch_id = (pg_temp.batch()).batch_id), 'settled over | paidFT123', 'paid');
select is(pg_temp.wallet(), '850000 50000 85000', 'and in the wallet');
select is(pg_temp.take(), 'nothing', 'nobody asks any more');
select is_empty('select pg_temp.audit()', 'the books hold');

-- Several: an account that is not found, a refusal
update affiliate.payout set account = '123456789' where state = 'requested' and affiliate_id = 900012;
select is(pg_temp.approved(), '201 200 200', 'two payouts');
select is(pg_temp.take(), 'submit 2', 'taken');
select ok(pg_temp.checked((select jsonb_agg(i || case when n = 1 then '{"verdict": "rejected", "detail": "Account not found"}'::jsonb else '{"verdict": "accepted"}' end)
                             from hand, jsonb_array_elements(pg_temp.verdicts('x')) with ordinality t(i, n))), 'one account is not found');
select is(pg_temp.states(), 'approved checking | failed approved', 'that one has failed; nothing of it was sent');
select is(pg_temp.done('later', 'away'), 'checking', 'NPI goes away');
select is(pg_temp.moved('payout_batch_reject', 'admin', '{"reason": "NPI is away"}'), '200', 'the rest may be given up');
select is((select string_agg(state, ' ' order by payout_id) from affiliate.payout where state in ('requested', 'failed')), 'failed requested', 'and waits for another batch; what failed has failed');
select is_empty('select pg_temp.audit()', 'the books hold');
select is(pg_temp.approved(), '201 200 200', 'a batch of it');
select pg_temp.take() \g /dev/null
select pg_temp.checked() \g /dev/null
select pg_temp.begun() \g /dev/null
select is(pg_temp.done('refused', 'Insufficient funds'), 'over', 'NPI refuses it');
select is(pg_temp.states(), 'settled over | failed', 'it has failed');
select is((select reason from affiliate.payout where batch_id = (pg_temp.batch()).batch_id), 'Insufficient funds', 'with what NPI said');
select is_empty('select pg_temp.audit()', 'the books hold');
select is(pg_temp.wallet(900011) || ', ' || pg_temp.wallet(900012), '900000 0 85000, 1000000 0 0', 'all of it is payable again');

-- No account of a whole batch is found
select pg_temp.asked('asha', '600.00') \g /dev/null
select pg_temp.approved() \g /dev/null
select pg_temp.take() \g /dev/null
select ok(not pg_temp.checked(pg_temp.verdicts('rejected', 'Account closed')), 'nothing of it is left');
select is(pg_temp.states(), 'settled over | failed', 'it is over');
select throws_ok(format($$ update affiliate.payout_submission_item set sent_at = now() where payout_id = %s;
                           insert into affiliate.payout_submission_item (batch_id, payout_id, sent_at)
                           select min(batch_id), %1$s, now() from affiliate.payout_submission $$,
                        (select payout_id from affiliate.payout_submission_item order by payout_id desc limit 1)), '23505', null, 'nothing is sent twice');
select is_empty('select pg_temp.audit()', 'the books hold');

select * from finish();
rollback;
